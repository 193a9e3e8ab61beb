//! The control plane as a whole: what is started in which order, and stopped in which.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use berth_core::units::Millis;
use tokio::net::TcpListener;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

use crate::agents::listener::{AgentAddress, Listener};
use crate::agents::registry::Registry;
use crate::agents::streams::Streams;
use crate::agents::{self, Agents, HEARTBEAT_INTERVAL};
use crate::api;
use crate::arn::Arns;
use crate::controller::Controller;
use crate::credentials;
use crate::remote::Remote;
use crate::simulated::{Dial, Simulated};
use crate::state::{AccessKey, ApiState};
use crate::store::Store;
use crate::store::embedded::EmbeddedStore;
use crate::supervise::Tracker;
use crate::tls::{Authority, Certifier, DEFAULT_CERTIFICATE_LIFETIME, server_config};
use crate::vpc::CurrentVpc;

/// How long everything together may take to end.
pub const SHUTDOWN_DEADLINE: Duration = Duration::from_secs(5);
/// How long a task stays describable after it has STOPPED, unless configured.
pub const DEFAULT_TASK_RETENTION: Duration = Duration::from_secs(60 * 60);

const STORE_FILE: &str = "store.redb";

/// Whether the agents' listener speaks TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AgentTls {
    /// Where others than this machine can reach it.
    #[default]
    Auto,
    /// Always.
    On,
    /// Never.
    Off,
}

/// Everything that can be configured.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where the JSON API listens.
    pub listen: SocketAddr,
    /// Where agents connect to.
    pub agent_listen: AgentAddress,
    /// Whether agents speak TLS.
    pub agent_tls: AgentTls,
    /// Names and addresses that agents dial, beside the address that is listened at.
    pub agent_names: Vec<String>,
    /// Where records, certificates and tokens are kept.
    pub data_dir: PathBuf,
    /// The region in ARNs.
    pub region: String,
    /// The account in ARNs.
    pub account: String,
    /// Who may call the JSON API; everybody when empty.
    pub access_keys: Vec<AccessKey>,
    /// Whether agents may be simulated and everything may be deleted.
    pub dev: bool,
    /// The file with subnets and security groups; without one there are none.
    pub vpc: Option<PathBuf>,
    /// Where credentials for the roles of tasks come from; without one there are none.
    pub credentials: Option<credentials::Source>,
    /// How long a host's certificate holds.
    pub certificate_lifetime: Millis,
    /// How long a task stays describable after it has STOPPED.
    pub task_retention: Duration,
    /// How often agents are heard at least; one that misses three in a row counts as dead.
    pub heartbeat_interval: Duration,
}

impl Config {
    /// Loopback alone, at ports that the system chooses.
    #[must_use]
    pub fn local(data_dir: impl Into<PathBuf>) -> Self {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        Self {
            listen: any,
            agent_listen: AgentAddress::Tcp(any),
            agent_tls: AgentTls::Auto,
            agent_names: Vec::new(),
            data_dir: data_dir.into(),
            region: "us-east-1".to_owned(),
            account: "123456789012".to_owned(),
            access_keys: Vec::new(),
            dev: false,
            vpc: None,
            credentials: None,
            certificate_lifetime: DEFAULT_CERTIFICATE_LIFETIME,
            task_retention: DEFAULT_TASK_RETENTION,
            heartbeat_interval: HEARTBEAT_INTERVAL,
        }
    }

    /// Refuses what would open the control plane to strangers, and what makes no ARN.
    fn check(&self) -> anyhow::Result<()> {
        if !self.listen.ip().is_loopback() && self.access_keys.is_empty() {
            bail!(
                "--listen {}: others than this machine would reach the API and nobody would be asked for a key; give --access-key ID:SECRET, or listen at a loopback address",
                self.listen
            );
        }
        if self.agent_tls == AgentTls::Off && !self.agent_listen.is_local() {
            bail!(
                "--agent-listen {}: without TLS only loopback addresses and unix:/<path> are accepted; leave out --agent-tls off, or listen at a loopback address",
                self.agent_listen
            );
        }
        if self.agent_tls == AgentTls::On && matches!(self.agent_listen, AgentAddress::Unix(_)) {
            bail!("--agent-listen {}: a unix socket speaks no TLS; leave out --agent-tls", self.agent_listen);
        }
        if self.account.len() != 12 || !self.account.bytes().all(|b| b.is_ascii_digit()) {
            bail!("--account {:?}: twelve digits are needed", self.account);
        }
        if self.region.is_empty()
            || !self.region.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        {
            bail!(
                "--region {:?}: lower-case letters, digits and hyphens are needed, such as us-east-1",
                self.region
            );
        }
        Ok(())
    }

    fn with_tls(&self) -> bool {
        match self.agent_tls {
            AgentTls::Auto => !self.agent_listen.is_local(),
            AgentTls::On => true,
            AgentTls::Off => false,
        }
    }

    /// Names and addresses that the listener's certificate is for.
    fn names(&self) -> Vec<String> {
        let mut names = vec!["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()];
        if let AgentAddress::Tcp(address) = &self.agent_listen
            && !address.ip().is_unspecified()
        {
            names.push(address.ip().to_string());
        }
        names.extend(self.agent_names.iter().cloned());
        // An address in another spelling is the same name.
        let same = |name: String| name.parse::<IpAddr>().map_or(name, |ip| ip.to_string());
        let names: std::collections::BTreeSet<String> = names.into_iter().map(same).collect();
        names.into_iter().collect()
    }
}

/// Starts control planes.
#[derive(Debug)]
pub struct Daemon;

/// A control plane that runs.
#[derive(Debug)]
pub struct Running {
    /// Where the JSON API listens really.
    pub api_addr: SocketAddr,
    /// Where agents connect to really.
    pub agent_addr: AgentAddress,
    /// The fingerprint of the certificate authority; `None` without TLS.
    pub ca_fingerprint: Option<String>,
    /// What the API works with.
    pub state: ApiState,
    store: Arc<EmbeddedStore>,
    /// API, agents and their sessions.
    front: Tracker,
    /// What those rely on.
    back: Tracker,
    /// Cancelled when a server has ended by itself.
    broken: CancellationToken,
}

impl Daemon {
    /// Starts everything; it serves when this returns.
    ///
    /// # Errors
    /// One line that says what can't be done, and what to do about it.
    pub async fn start(config: Config) -> anyhow::Result<Running> {
        config.check()?;
        let vpc = CurrentVpc::open(config.vpc.as_deref()).context("--vpc")?;
        // Ports first: a second start fails before it touches anything.
        let api_listener =
            TcpListener::bind(config.listen).await.with_context(|| format!("--listen {}", config.listen))?;
        let listener = Listener::bind(&config.agent_listen)
            .await
            .with_context(|| format!("--agent-listen {}", config.agent_listen))?;
        let (api_addr, agent_addr) = (api_listener.local_addr()?, listener.address().clone());

        let path = config.data_dir.join(STORE_FILE);
        let embedded = Arc::new(tokio::task::spawn_blocking(move || EmbeddedStore::open(&path)).await??);
        let store: Arc<dyn Store> = Arc::<EmbeddedStore>::clone(&embedded);
        let authority = if config.with_tls() {
            let directory = config.data_dir.clone();
            Some(Arc::new(tokio::task::spawn_blocking(move || Authority::open(&directory)).await??))
        } else {
            None
        };
        let tls = authority.as_ref().map(|authority| server_config(authority, config.names())).transpose()?;

        let roles = match config.credentials.clone() {
            Some(source) => Some(credentials::provider(source, &config.region).context("--credentials")?),
            None => None,
        };
        let (front, back, broken) = (Tracker::new(), Tracker::new(), CancellationToken::new());
        let arns = Arns::new(&config.region, &config.account);
        let registry = Registry::new();
        let streams = Streams::new(registry.clone());
        let controller = Controller::start(
            Arc::clone(&store),
            registry.clone(),
            arns.clone(),
            vpc.clone(),
            config.task_retention,
            &back,
        );
        if let Err(error) = controller.ensure_default_cluster().await {
            back.token().cancel();
            return Err(error.into());
        }

        let certifier = authority.as_ref().map(|authority| {
            Certifier::new(Arc::clone(authority), &config.data_dir, config.certificate_lifetime)
        });
        let parts = agents::Parts {
            store: Arc::clone(&store),
            controller: controller.clone(),
            registry: registry.clone(),
            streams: streams.clone(),
            arns: arns.clone(),
            vpc: vpc.clone(),
            certifier,
            heartbeat_interval: config.heartbeat_interval,
            credentials: roles,
        };
        let agents = Agents::start(parts, &front);
        let connections = ReceiverStream::new(listener.accept(tls, &front));
        let guard = broken.clone().drop_guard();
        front.spawn("agents", async move {
            let _guard = guard;
            if let Err(error) = agents.serve(connections).await {
                tracing::error!(%error, "the agents' server failed");
            }
        });

        let dial = match (&authority, &agent_addr) {
            (Some(authority), AgentAddress::Tcp(address)) => Dial::Tls(*address, Arc::clone(authority)),
            (_, address) => Dial::Plain(address.clone()),
        };
        let state = ApiState {
            store: Arc::clone(&store),
            controller,
            registry,
            remote: Remote::new(streams, &front),
            vpc,
            simulated: config.dev.then(|| Simulated::new(Arc::clone(&store), dial, &front)),
            arns,
            access_keys: config.access_keys.into(),
        };
        let (api_state, stop, guard) = (state.clone(), front.token().clone(), broken.clone().drop_guard());
        front.spawn("api", async move {
            let _guard = guard;
            if let Err(error) = api::serve(api_listener, api_state, stop).await {
                tracing::error!(%error, "the API ended");
            }
        });
        let ca_fingerprint = authority.as_ref().map(|authority| authority.fingerprint());
        Ok(Running { api_addr, agent_addr, ca_fingerprint, state, store: embedded, front, back, broken })
    }
}

impl Running {
    /// Waits until a server has ended by itself, which it should not.
    pub async fn broken(&self) {
        self.broken.cancelled().await;
    }

    /// Stops everything: first who asks, then who answers, then the store.
    ///
    /// # Errors
    /// When something has not ended after [`SHUTDOWN_DEADLINE`]; the store is closed all the same.
    pub async fn stop(self) -> anyhow::Result<()> {
        let began = Instant::now();
        let left = || SHUTDOWN_DEADLINE.saturating_sub(began.elapsed());
        let front = self.front.stop(left()).await;
        let back = self.back.stop(left()).await;
        self.store.close().await;
        front?;
        back?;
        Ok(())
    }
}
