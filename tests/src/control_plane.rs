//! The real control plane as a child process, with a data folder of its own.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;

use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use serde_json::Value;
use tempfile::TempDir;

use crate::ecs::Ecs;
use crate::expect::PATIENCE;
use crate::program::Program;

/// A control plane on loopback. Ends with its value, and so does its data.
#[derive(Debug)]
pub struct ControlPlane {
    data: TempDir,
    vpc: Option<PathBuf>,
    env: BTreeMap<String, String>,
    program: Program,
    /// Where the JSON API listens.
    pub api: SocketAddr,
    /// Where agents connect.
    pub agents: SocketAddr,
}

impl ControlPlane {
    /// Starts one with an empty store on ports that the kernel chooses.
    ///
    /// # Errors
    /// When it does not get ready.
    pub async fn start() -> Result<Self> {
        Self::start_with(None, &[]).await
    }

    /// Like [`start`](Self::start), with subnets and security groups, and more environment.
    ///
    /// # Errors
    /// When it does not get ready.
    pub async fn start_with(vpc: Option<&Value>, env: &[(&str, &str)]) -> Result<Self> {
        let data = tempfile::Builder::new().prefix("berth-controlplane-").tempdir()?;
        let path = vpc.map(|_| data.path().join("vpc.json"));
        if let (Some(path), Some(vpc)) = (&path, vpc) {
            fs::write(path, vpc.to_string())?;
        }
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let env = env.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let (program, api, agents) = launch(&data, path.as_deref(), &env, any, any).await?;
        Ok(Self { data, vpc: path, env, program, api, agents })
    }

    /// Changes its subnets and security groups while it runs.
    ///
    /// # Errors
    /// When it was started without any.
    pub fn set_vpc(&self, vpc: &Value) -> Result<()> {
        let path = self.vpc.as_ref().context("the control plane was started without subnets")?;
        fs::write(path, vpc.to_string())?;
        self.program.signal(Signal::SIGHUP)
    }

    /// A client for its API.
    #[must_use]
    pub fn ecs(&self) -> Ecs {
        Ecs::new(self.api)
    }

    /// `kill -9`. Its store stays.
    ///
    /// # Errors
    /// When the process cannot be waited for.
    pub async fn kill(&mut self) -> Result<()> {
        self.program.kill().await
    }

    /// SIGTERM, then waits for the end.
    ///
    /// # Errors
    /// When it does not end.
    pub async fn terminate(&mut self) -> Result<ExitStatus> {
        self.program.terminate(PATIENCE).await
    }

    /// Starts it again with the same store and the same ports, after [`kill`](Self::kill) or
    /// [`terminate`](Self::terminate).
    ///
    /// # Errors
    /// When it does not get ready.
    pub async fn start_again(&mut self) -> Result<()> {
        (self.program, self.api, self.agents) =
            launch(&self.data, self.vpc.as_deref(), &self.env, self.api, self.agents).await?;
        Ok(())
    }

    /// The file of its records, which it has open while it runs.
    #[must_use]
    pub fn records(&self) -> PathBuf {
        self.data.path().join("store.redb")
    }

    /// What it has said so far.
    #[must_use]
    pub fn output(&self) -> String {
        self.program.output()
    }
}

async fn launch(
    data: &TempDir,
    vpc: Option<&Path>,
    env: &BTreeMap<String, String>,
    api: SocketAddr,
    agents: SocketAddr,
) -> Result<(Program, SocketAddr, SocketAddr)> {
    let mut args: Vec<OsString> = vec![
        "serve".into(),
        "--data-dir".into(),
        data.path().into(),
        "--listen".into(),
        api.to_string().into(),
        "--agent-listen".into(),
        agents.to_string().into(),
    ];
    if let Some(vpc) = vpc {
        args.extend(["--vpc".into(), vpc.into()]);
    }
    let mut program = Program::start("berth-controlplane", &args, env)?;
    let line = program.line("listening ", PATIENCE).await?;
    let address = |key: &str| {
        line.split_whitespace()
            .find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
            .and_then(|address| address.parse().ok())
            .with_context(|| format!("the control plane said {line:?}, without {key}=ADDRESS"))
    };
    let (api, agents) = (address("api")?, address("agents")?);
    Ok((program, api, agents))
}
