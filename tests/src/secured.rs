//! A control plane that speaks TLS, and hosts that join it with a token.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, Permissions};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use tempfile::TempDir;

use crate::expect::PATIENCE;
use crate::program::{Program, binary};
use crate::{Cluster, Ecs};

const PROGRAM: &str = "berth-controlplane";

/// A control plane whose agents speak TLS. Ends with its value.
#[derive(Debug)]
pub struct Secured {
    data: TempDir,
    service: Option<Service>,
    lifetime: String,
    program: Program,
    /// Where its API listens.
    pub api: SocketAddr,
    /// Where agents connect.
    pub agents: SocketAddr,
    /// A token that hosts may join with.
    pub token: String,
    /// The fingerprint of its authority.
    pub fingerprint: String,
}

/// A user that serves, and a copy of the program that it can reach.
#[derive(Debug)]
struct Service {
    user: u32,
    program: PathBuf,
    _folder: TempDir,
}

impl Service {
    fn of(user: u32) -> Result<Self> {
        let readable = Permissions::from_mode(0o755);
        let folder = tempfile::Builder::new()
            .prefix("berth-controlplane-program-")
            .permissions(readable.clone())
            .tempdir()?;
        let program = folder.path().join(PROGRAM);
        fs::copy(binary(PROGRAM)?, &program)?;
        fs::set_permissions(&program, readable)?;
        Ok(Self { user, program, _folder: folder })
    }
}

impl Secured {
    /// Starts one; certificates hold for that long.
    ///
    /// # Errors
    /// When it does not get ready.
    pub async fn start(lifetime: &str) -> Result<Self> {
        let data = tempfile::Builder::new().prefix("berth-controlplane-").tempdir()?;
        let (program, api, agents) = serve(data.path(), None, lifetime, [any(), any()]).await?;
        // As an operator would: beside the control plane that runs.
        let (token, fingerprint) = token(data.path()).await?;
        let lifetime = lifetime.to_owned();
        Ok(Self { data, service: None, lifetime, program, api, agents, token, fingerprint })
    }

    /// Starts one that serves as a user of its own; root makes the token before its first start or beside it.
    ///
    /// # Errors
    /// When it does not get ready.
    pub async fn start_as_user(user: u32, token_first: bool) -> Result<Self> {
        let data = tempfile::Builder::new().prefix("berth-controlplane-").tempdir()?;
        std::os::unix::fs::chown(data.path(), Some(user), Some(user))?;
        let (service, lifetime) = (Service::of(user)?, "1h".to_owned());
        let first = if token_first { Some(token(data.path()).await?) } else { None };
        let (program, api, agents) = serve(data.path(), Some(&service), &lifetime, [any(), any()]).await?;
        let (token, fingerprint) = match first {
            Some(made) => made,
            None => token(data.path()).await?,
        };
        Ok(Self { data, service: Some(service), lifetime, program, api, agents, token, fingerprint })
    }

    /// Starts it again at the same addresses with its records, but another authority and another token.
    ///
    /// # Errors
    /// When it does not end or get ready.
    pub async fn replace_authority(&mut self) -> Result<()> {
        self.program.terminate(PATIENCE).await?;
        for name in ["ca.key", "ca.pem", "join-tokens.json"] {
            fs::remove_file(self.data.path().join(name))?;
        }
        let at = [self.api, self.agents];
        (self.program, self.api, self.agents) =
            serve(self.data.path(), self.service.as_ref(), &self.lifetime, at).await?;
        (self.token, self.fingerprint) = token(self.data.path()).await?;
        Ok(())
    }

    /// What `ECS_BACKEND_HOST` is for its hosts.
    #[must_use]
    pub fn host(&self) -> String {
        format!("https://{}", self.agents)
    }

    /// A cluster of this control plane with an agent of that environment, not waited for.
    ///
    /// # Errors
    /// When the agent does not start.
    pub async fn cluster(&self, env: &[(&str, &str)]) -> Result<Cluster> {
        let host = self.host();
        let all: Vec<(&str, &str)> =
            [("ECS_BACKEND_HOST", host.as_str())].into_iter().chain(env.iter().copied()).collect();
        let mut cluster = Cluster::start_unregistered(&all).await?;
        // Its own control plane stays idle: everything is asked of this one.
        cluster.ecs = Ecs::new(self.api);
        cluster.ecs.call("CreateCluster", json!({ "clusterName": cluster.name })).await?;
        Ok(cluster)
    }

    /// The same with an agent that has what it needs to join.
    ///
    /// # Errors
    /// When it does not join.
    pub async fn joined(&self) -> Result<Cluster> {
        let (token, fingerprint) = (self.token.as_str(), self.fingerprint.as_str());
        let cluster =
            self.cluster(&[("BERTH_JOIN_TOKEN", token), ("BERTH_CA_FINGERPRINT", fingerprint)]).await?;
        cluster.registered().await?;
        Ok(cluster)
    }

    /// Where it keeps records, certificates and tokens.
    #[must_use]
    pub fn data_dir(&self) -> &Path {
        self.data.path()
    }

    /// What it has said so far.
    #[must_use]
    pub fn output(&self) -> String {
        self.program.output()
    }
}

fn any() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

async fn serve(
    data: &Path,
    service: Option<&Service>,
    lifetime: &str,
    at: [SocketAddr; 2],
) -> Result<(Program, SocketAddr, SocketAddr)> {
    let [api, agents] = at.map(|address| address.to_string());
    let mut args = with_data(&["serve", "--agent-tls=on", "--listen", &api, "--agent-listen", &agents], data);
    args.extend(["--certificate-lifetime".into(), lifetime.into()]);
    let mut program = match service {
        Some(service) => Program::start_as_user(service.user, &service.program, &args, &BTreeMap::new())?,
        None => Program::start(PROGRAM, &args, &BTreeMap::new())?,
    };
    let line = program.line("listening ", PATIENCE).await?;
    let address = |key: &str| {
        let found = line.split_whitespace().find_map(|word| word.strip_prefix(key));
        found.and_then(|address| address.parse().ok()).with_context(|| format!("{key} in {line:?}"))
    };
    let (api, agents) = (address("api=")?, address("agents=")?);
    Ok((program, api, agents))
}

/// A token and the fingerprint of the authority, as `berth-controlplane token` prints them.
async fn token(data: &Path) -> Result<(String, String)> {
    let mut made = Program::start(PROGRAM, &with_data(&["token"], data), &BTreeMap::new())?;
    ensure!(made.end(PATIENCE).await?.success(), "{}", made.output());
    let output = made.output();
    let value = |key: &str| {
        let found = output.lines().find_map(|line| line.strip_prefix(key));
        found.map(str::to_owned).with_context(|| format!("{key} in what `token` prints"))
    };
    Ok((value("token=")?, value("ca=")?))
}

/// Arguments of the control plane, and its data folder.
#[must_use]
pub fn with_data(args: &[&str], data: &Path) -> Vec<OsString> {
    let args = args.iter().map(OsString::from);
    args.chain([OsString::from("--data-dir"), data.into()]).collect()
}

/// The lines of PEM between the armour: what must be in no log.
#[must_use]
pub fn private_lines(pem: &str) -> Vec<&str> {
    let key = pem.split_once("PRIVATE KEY-----").and_then(|(_, rest)| rest.split_once("-----END"));
    key.map_or_else(Vec::new, |(key, _)| key.lines().filter(|line| line.len() > 16).collect())
}
