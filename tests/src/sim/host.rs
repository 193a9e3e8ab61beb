//! A simulated host: the real agent library on an engine, cgroups and a store in memory.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use berth_agent::cgroup::fake::FakeCgroups;
use berth_agent::config::{Config, PullBehavior, Variables};
use berth_agent::credentials::Credentials;
use berth_agent::effects::Effects;
use berth_agent::engine::{self, Engine, Parts, Timeouts, World};
use berth_agent::environment::Environments;
use berth_agent::firelens::LogRouters;
use berth_agent::gpu::{GpuChooser, Inventory};
use berth_agent::host;
use berth_agent::image::{Images, Logins, PullSettings, Records};
use berth_agent::network::Offers;
use berth_agent::network::ports::PortChooser;
use berth_agent::object::Objects;
use berth_agent::runtime::fake::FakeRuntime;
use berth_agent::runtime::{EngineInfo, Runtime};
use berth_agent::secret::Secrets;
use berth_agent::session::{Attaching, Backend, Endpoint, Registration, Session, SessionStatus};
use berth_agent::store::memory::MemoryStore;
use berth_agent::store::{Identity, Store, Write};
use berth_agent::supervise::Tracker;
use berth_core::ids::GpuId;
use berth_core::resources::Resources;
use berth_core::task::{Fact, Settings};
use berth_core::units::Millis;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// How long an agent may take to stop.
const STOP: Duration = Duration::from_secs(5);
/// Between two attempts to have the engine's first answer.
const ENGINE_PAUSE: Duration = Duration::from_millis(10);

/// A host whose agent is switched on.
pub struct Host {
    /// Its name.
    pub name: String,
    /// Its container engine; containers outlive the agent.
    pub runtime: FakeRuntime,
    /// Its cgroups.
    pub cgroups: FakeCgroups,
    /// The agent's state; outlives the agent.
    pub store: Arc<MemoryStore>,
    /// What it can hold.
    pub total: Resources,
    config: Config,
    agent: Agent,
}

/// One life of the agent.
struct Agent {
    engine: Engine,
    session: Arc<Session>,
    tracker: Tracker,
    call: CancellationToken,
}

impl Host {
    /// Switches a host on. Its agent dials the control plane at that address.
    ///
    /// # Errors
    /// When the configuration does not do, or the agent does not start.
    pub async fn start(name: &str, cluster: &str, agents: &str, total: Resources) -> Result<Self> {
        let variables: Variables =
            [("ECS_CLUSTER", cluster), ("ECS_BACKEND_HOST", agents)].into_iter().collect();
        let config = Config::read(&variables)?;
        // As the daemon does: agents see their own containers alone.
        let runtime = FakeRuntime::new().in_namespace(name);
        let (cgroups, store) = (FakeCgroups::new(), Arc::new(MemoryStore::default()));
        let agent = Agent::start(name, &config, &runtime, &cgroups, &store, &total).await?;
        let host = Self { name: name.to_owned(), runtime, cgroups, store, total, config, agent };
        host.dial_by(&host.agent);
        Ok(host)
    }

    /// The agent ends as if killed, and is started again on what it left.
    ///
    /// # Errors
    /// When the agent does not end or does not start.
    pub async fn crash(&mut self) -> Result<()> {
        ensure!(self.agent.tracker.shutdown(STOP).await, "the agent of {} does not end", self.name);
        self.agent =
            Agent::start(&self.name, &self.config, &self.runtime, &self.cgroups, &self.store, &self.total)
                .await?;
        self.dial_by(&self.agent);
        Ok(())
    }

    /// The line is cut: the conversation ends in the middle of whatever it was at.
    pub fn hang_up(&self) {
        self.agent.call.cancel();
    }

    /// The agent dials again after [`hang_up`](Self::hang_up).
    pub fn dial(&mut self) {
        self.agent.call = self.agent.tracker.token().child_token();
        self.dial_by(&self.agent);
    }

    fn dial_by(&self, agent: &Agent) {
        let (session, call, name) = (Arc::clone(&agent.session), agent.call.clone(), self.name.clone());
        agent.tracker.spawn("session", async move {
            if let Some(Err(why)) = call.run_until_cancelled(session.run()).await {
                tracing::error!(name, %why, "the agent gave up");
            }
        });
    }

    /// Where the session stands.
    #[must_use]
    pub fn status(&self) -> watch::Receiver<SessionStatus> {
        self.agent.session.status()
    }

    /// The ARN of the instance that the host is, once it is registered.
    ///
    /// # Errors
    /// When it is not.
    pub fn instance(&self) -> Result<String> {
        let instance = self.agent.session.instance();
        let arn = instance.borrow().as_ref().map(ToString::to_string);
        arn.with_context(|| format!("{} is not registered", self.name))
    }

    /// The engine of the present agent.
    #[must_use]
    pub fn engine(&self) -> &Engine {
        &self.agent.engine
    }

    /// The conversation with the control plane of the present agent.
    #[must_use]
    pub fn session(&self) -> &Session {
        &self.agent.session
    }

    /// How many state changes the agent has written down to tell, told ones included.
    #[must_use]
    pub fn reports(&self) -> u64 {
        *self.store.outbox().newest().borrow()
    }

    /// Engine ids of the containers that run, by task ARN and container name.
    #[must_use]
    pub fn running(&self) -> BTreeMap<(String, String), String> {
        let containers = self.runtime.containers().into_iter();
        let running = containers.filter_map(|(request, fact)| match fact {
            Fact::Running { id, .. } => {
                Some(((request.task.arn.to_string(), request.spec().name.to_string()), id.to_string()))
            }
            _ => None,
        });
        running.collect()
    }

    /// Looks at the engine itself: what runs there fits the host, nothing is there twice, and no GPU
    /// is given to two.
    ///
    /// # Errors
    /// What is wrong.
    pub fn check(&self) -> Result<()> {
        let mut seen = BTreeSet::new();
        let mut needs = BTreeMap::new();
        let mut gpus = BTreeMap::new();
        for (request, fact) in self.runtime.containers() {
            let (task, container) = (request.task.arn.clone(), request.spec().name.clone());
            if matches!(fact, Fact::Running { .. }) {
                needs.insert(task.clone(), request.task.need());
                for gpu in &request.gpus {
                    let other = gpus.insert(gpu.clone(), task.clone());
                    ensure!(other.is_none(), "{}: {task} and {other:?} both have {gpu}", self.name);
                }
                let count = usize::try_from(request.spec().gpus)?;
                ensure!(request.gpus.len() == count, "{}: {container} of {task} has no GPU", self.name);
            }
            ensure!(
                seen.insert((task.clone(), container.clone())),
                "{}: {container} of {task} is there twice",
                self.name
            );
        }
        let mut in_use = Resources::default();
        for (task, need) in needs {
            let missing = self.total.shortfalls(&in_use, &need);
            ensure!(missing.is_empty(), "{} runs more than it can hold: with {task}, {missing:?}", self.name);
            in_use.add(&need);
        }
        Ok(())
    }

    /// Switches the agent off; containers would run on.
    pub async fn stop(self) -> bool {
        self.agent.tracker.shutdown(STOP).await
    }
}

impl Agent {
    /// The same steps as in the daemon.
    async fn start(
        name: &str,
        config: &Config,
        runtime: &FakeRuntime,
        cgroups: &FakeCgroups,
        store: &Arc<MemoryStore>,
        total: &Resources,
    ) -> Result<Self> {
        let store: Arc<dyn Store> = Arc::<MemoryStore>::clone(store);
        let mut saved = store.load().await?;
        let (info, world) = meet(runtime).await;
        let identity = match saved.identity.take() {
            Some(identity) => identity,
            None => {
                let identity = Identity {
                    boot: String::new(),
                    settled: false,
                    host_key: format!("key-of-{name}"),
                    cluster: config.cluster.to_string(),
                    instance: world.instance.clone(),
                    outbox_epoch: uuid::Uuid::new_v4().to_string(),
                    endpoint_key: uuid::Uuid::new_v4().to_string(),
                    manifest_sequence: 0,
                    last_seen: None,
                };
                store.commit(vec![Write::Identity(identity.clone())]).await?;
                identity
            }
        };
        saved.identity = Some(identity.clone());
        let ids = (0..total.gpus).map(|n| GpuId::new(format!("GPU-{n}"))).collect::<Result<Vec<_>, _>>()?;
        let inventory = Inventory { driver: None, ids: ids.clone() };
        let registration = Registration {
            cluster: config.cluster.to_string(),
            total: total.clone(),
            attributes: host::attributes(
                config,
                &info,
                true,
                &Offers::default(),
                &BTreeSet::new(),
                &inventory,
            ),
            gpus: ids.clone(),
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            agent_hash: String::new(),
            engine_version: format!("DockerVersion: {}", info.version),
            hostname: name.to_owned(),
        };
        let runtime: Arc<dyn Runtime> = Arc::new(runtime.clone());
        let settings = PullSettings {
            begin: Millis::from_secs(60),
            mirrors: BTreeMap::new(),
            behavior: PullBehavior::PreferCached,
            inactivity: config.pull_inactivity_timeout,
            total: config.pull_timeout,
        };
        let tracker = Tracker::new();
        let secrets = Arc::new(Secrets::new(None));
        let objects = Arc::new(Objects::new(None));
        let parts = Parts {
            credentials: Credentials::new(None, Effects::default(), &tracker),
            environments: Environments::new(Arc::clone(&secrets), Arc::clone(&objects)),
            log_routers: LogRouters::new(Path::new("/nonexistent"), objects, true),
            images: Images::new(
                Arc::clone(&runtime),
                settings,
                Logins::new(std::collections::HashMap::new(), None, None, secrets),
                Records::open(None),
            ),
            runtime,
            cgroups: Arc::new(cgroups.clone()),
            ports: PortChooser::new(config.dynamic_ports),
            gpus: GpuChooser::new(ids),
            network: Arc::new(berth_agent::network::off::Off),
            faults: Arc::new(berth_agent::fault::off::Off),
            clean_up: None,
            disk: None,
            retention_jitter: Millis(0),
            metadata_files: None,
            journal: None,
            store: Arc::clone(&store),
            settings: Settings { stop_timeout: config.stop_timeout, retention: config.cleanup_wait },
            timeouts: Timeouts { create: config.create_timeout, start: config.start_timeout },
            pids_limit: None,
            agent: name.to_owned(),
            endpoint: Some("http://169.254.170.2".to_owned()),
            total: total.clone(),
            effects: Effects::default(),
        };
        let engine = Engine::start(parts, saved, world, tracker.child()).await?;
        let endpoint = config.backend.as_deref().context("ECS_BACKEND_HOST")?;
        let backend = Backend {
            endpoint: Endpoint::parse(endpoint)?,
            join_token: None,
            ca_fingerprint: None,
            server_name: None,
            data_dir: config.data_dir.clone(),
        };
        let session = Arc::new(Session::new(
            backend,
            registration,
            engine.clone(),
            store,
            identity,
            Attaching::new(engine.clone(), tracker.clone(), false),
        ));
        let call = tracker.token().child_token();
        Ok(Self { engine, session, tracker, call })
    }
}

/// Asks until the engine has answered, as the daemon does.
async fn meet(runtime: &FakeRuntime) -> (EngineInfo, World) {
    loop {
        if let (Ok(info), Ok(world)) = (runtime.info().await, engine::look(runtime).await) {
            return (info, world);
        }
        tokio::time::sleep(ENGINE_PAUSE).await;
    }
}
