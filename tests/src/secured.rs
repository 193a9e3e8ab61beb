//! A control plane that speaks TLS, and hosts that join it with a token.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use tempfile::TempDir;

use crate::expect::PATIENCE;
use crate::program::Program;
use crate::{Cluster, Ecs};

/// A control plane whose agents speak TLS. Ends with its value.
#[derive(Debug)]
pub struct Secured {
    data: TempDir,
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

impl Secured {
    /// Starts one; certificates hold for that long.
    ///
    /// # Errors
    /// When it does not get ready.
    pub async fn start(lifetime: &str) -> Result<Self> {
        let data = tempfile::Builder::new().prefix("berth-controlplane-").tempdir()?;
        let any = "127.0.0.1:0";
        let mut args =
            with_data(&["serve", "--agent-tls=on", "--listen", any, "--agent-listen", any], data.path());
        args.extend(["--certificate-lifetime".into(), lifetime.into()]);
        let mut program = Program::start("berth-controlplane", &args, &BTreeMap::new())?;
        let line = program.line("listening ", PATIENCE).await?;
        let address = |key: &str| {
            let found = line.split_whitespace().find_map(|word| word.strip_prefix(key));
            found.and_then(|address| address.parse().ok()).with_context(|| format!("{key} in {line:?}"))
        };
        let (api, agents) = (address("api=")?, address("agents=")?);
        // As an operator would: beside the control plane that runs.
        let mut made =
            Program::start("berth-controlplane", &with_data(&["token"], data.path()), &BTreeMap::new())?;
        ensure!(made.end(PATIENCE).await?.success(), "{}", made.output());
        let output = made.output();
        let value = |key: &str| {
            let found = output.lines().find_map(|line| line.strip_prefix(key));
            found.map(str::to_owned).with_context(|| format!("{key} in what `token` prints"))
        };
        let (token, fingerprint) = (value("token=")?, value("ca=")?);
        Ok(Self { data, program, api, agents, token, fingerprint })
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
