//! One life of the agent: the real engine and session on what the world has, wired as the daemon wires them, and
//! with somebody before and after everything that it does.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use berth_agent::config::{CleanUp, PullBehavior};
use berth_agent::credentials::Credentials;
use berth_agent::effects::{Effects, Sentry};
use berth_agent::engine::{self, Engine, Parts, Timeouts, World as Found};
use berth_agent::environment::Environments;
use berth_agent::firelens::LogRouters;
use berth_agent::gpu::GpuChooser;
use berth_agent::image::{Images, Logins, PullSettings, Records};
use berth_agent::network::TaskNetwork;
use berth_agent::network::ports::PortChooser;
use berth_agent::object::Objects;
use berth_agent::random;
use berth_agent::runtime::{EngineInfo, Runtime};
use berth_agent::secret::Secrets;
use berth_agent::session::{Attaching, Backend, Endpoint, Registration, Session};
use berth_agent::store::{Identity, Saved, Store, Write};
use berth_agent::supervise::Tracker;
use berth_core::ids::GpuId;
use berth_core::resources::Resources;
use berth_core::task::Settings;
use berth_core::units::{CpuUnits, Mebibytes, Millis, PortRange};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::control_plane::{ControlPlane, Way};
use super::engine::Remote;
use super::store::Written;
use super::world::{Fate, World};
use crate::faults;

/// How long stopped containers are kept.
pub const RETENTION: Millis = Millis::from_secs(60);
/// Longest that the agent takes to stop.
const STOP: Duration = Duration::from_secs(5);
/// As the daemon has it: the pause between looks at an engine that does not answer, and longest for one look.
const AGAIN: Duration = Duration::from_millis(100);
const LOOK: Duration = Duration::from_secs(30);
/// Longest that it takes to come up while the engine hangs, and for a while after.
const START: Duration = Duration::from_secs(900);
const GPUS: u32 = 4;

/// What the host can hold.
#[must_use]
pub fn total() -> Resources {
    Resources { cpu: CpuUnits(2048), memory: Mebibytes(2048), gpus: GPUS, enis: 6, ..Resources::default() }
}

/// One life.
pub struct Life {
    /// Over when it is cancelled.
    pub dead: CancellationToken,
    engine: Option<Engine>,
    tracker: Tracker,
}

impl Life {
    /// Begins. It may die on the way: then there is no engine.
    ///
    /// # Errors
    /// When it does not come up.
    pub async fn begin(world: &Arc<World>, control_plane: &ControlPlane) -> Result<Self> {
        let (dead, tracker) = (CancellationToken::new(), Tracker::new());
        world.network.forget_news();
        let start = start(world, control_plane, dead.clone(), tracker.clone());
        let started = timeout(START, dead.run_until_cancelled(start)).await;
        let engine = match started.context("the agent does not come up")? {
            Some(Ok(engine)) => Some(engine),
            Some(Err(why)) => {
                // As the daemon: it ends, and whoever keeps it starts it again.
                world.note(format_args!("agent ended: {why}"));
                dead.cancel();
                None
            }
            None => None,
        };
        world.note(format_args!("agent {}", if engine.is_some() { "runs" } else { "is dead" }));
        Ok(Self { dead, engine, tracker })
    }

    /// The engine; `None` where the agent died at its start.
    #[must_use]
    pub const fn engine(&self) -> Option<&Engine> {
        self.engine.as_ref()
    }

    /// Ends it as `kill -9` does.
    pub async fn kill(self) {
        self.dead.cancel();
        // What stands still at something that never comes about stands there until the world ends.
        self.tracker.shutdown(Duration::from_millis(1)).await;
    }

    /// Ends it as SIGTERM does; whether all of it ended.
    pub async fn stop(self) -> bool {
        let ended = self.tracker.shutdown(STOP).await;
        self.dead.cancel();
        ended
    }
}

async fn start(
    world: &Arc<World>,
    control_plane: &ControlPlane,
    dead: CancellationToken,
    tracker: Tracker,
) -> Result<Engine> {
    let fate: Arc<dyn Sentry> = Arc::new(Fate::new(Arc::clone(world), dead.clone()));
    let effects = Effects::watched_by(fate);
    let store = faults::store(Arc::new(Written::begin(world, dead.clone())), effects.clone());
    let runtime = faults::runtime(Arc::new(Remote(Arc::clone(world))), effects.clone());
    let network: Arc<dyn TaskNetwork> = Arc::new(world.network.clone());
    let mut saved = reread(store.load().await?)?;
    let (_, found) = meet(&*runtime).await;
    let identity = identify(&*store, &mut saved, &found).await?;
    let parts = parts(world, &effects, (runtime, network, Arc::clone(&store)), &tracker)?;
    let registration = registration(parts.total.clone());
    let engine = Engine::start(parts, saved, found, tracker.child()).await?;
    let backend = Backend {
        endpoint: Endpoint::parse("http://127.0.0.1:1")?,
        join_token: None,
        ca_fingerprint: None,
        server_name: None,
        data_dir: "/nonexistent".into(),
    };
    let attaching = Attaching::new(engine.clone(), tracker.clone(), false);
    let session = Session::new(backend, registration, engine.clone(), store, identity, attaching);
    let session = session.by_way_of(Arc::new(Way::new(control_plane.clone(), dead)));
    let teller = Arc::clone(world);
    tracker.spawn_droppable("session", async move {
        if let Err(why) = session.run().await {
            teller.wrong(format!("the agent gave up: {why}"));
        }
    });
    Ok(engine)
}

/// What was kept, as a process reads it that knows nothing else.
fn reread(saved: Saved) -> Result<Saved> {
    let read = |(spec, state)| {
        let spec = serde_json::from_str(&serde_json::to_string(&spec)?)?;
        let state = serde_json::from_str(&serde_json::to_string(&state)?)?;
        anyhow::Ok((spec, state))
    };
    let tasks = saved.tasks.into_iter().map(read).collect::<Result<_>>()?;
    Ok(Saved { identity: saved.identity, tasks, rebooted: saved.rebooted })
}

async fn meet(runtime: &dyn Runtime) -> (EngineInfo, Found) {
    loop {
        let both = async { tokio::join!(runtime.info(), engine::look(runtime)) };
        if let Ok((Ok(info), Ok(found))) = timeout(LOOK, both).await {
            return (info, found);
        }
        sleep(AGAIN).await;
    }
}

async fn identify(store: &dyn Store, saved: &mut Saved, found: &Found) -> Result<Identity> {
    let identity = match saved.identity.take() {
        Some(identity) => identity,
        None => {
            let identity = Identity {
                host_key: random::name().to_string(),
                cluster: "story".to_owned(),
                instance: found.instance.clone(),
                outbox_epoch: random::name().to_string(),
                endpoint_key: random::name().to_string(),
                manifest_sequence: 0,
                last_seen: None,
                boot: String::new(),
                settled: false,
            };
            store.commit(vec![Write::Identity(identity.clone())]).await?;
            identity
        }
    };
    saved.identity = Some(identity.clone());
    Ok(identity)
}

fn registration(total: Resources) -> Registration {
    Registration {
        cluster: "story".to_owned(),
        total,
        attributes: BTreeMap::new(),
        gpus: Vec::new(),
        agent_version: String::new(),
        agent_hash: String::new(),
        engine_version: String::new(),
        hostname: "host".to_owned(),
    }
}

fn parts(
    world: &Arc<World>,
    effects: &Effects,
    (runtime, network, store): (Arc<dyn Runtime>, Arc<dyn TaskNetwork>, Arc<dyn Store>),
    tracker: &Tracker,
) -> Result<Parts> {
    let minute = Millis::from_secs(60);
    let settings = PullSettings {
        begin: minute,
        mirrors: BTreeMap::new(),
        behavior: PullBehavior::PreferCached,
        inactivity: minute,
        total: Millis::from_secs(600),
    };
    let secrets = Arc::new(Secrets::new(None));
    let objects = Arc::new(Objects::new(None));
    let gpus = (0..GPUS).map(|n| GpuId::new(format!("GPU-{n}"))).collect::<Result<Vec<_>, _>>()?;
    let logins = Logins::new(HashMap::new(), None, None, Arc::clone(&secrets));
    Ok(Parts {
        credentials: Credentials::new(None, effects.clone(), tracker),
        environments: Environments::new(secrets, Arc::clone(&objects)),
        log_routers: LogRouters::nowhere(objects),
        images: Images::new(Arc::clone(&runtime), settings, logins, Records::open(None)),
        runtime,
        cgroups: faults::cgroups(Arc::new(world.cgroups.clone()), effects.clone()),
        ports: PortChooser::simulated(PortRange::parse("40000-40099").context("ports")?),
        faults: Arc::new(berth_agent::fault::off::Off),
        gpus: GpuChooser::new(gpus),
        network: faults::network(network, effects.clone()),
        clean_up: Some(CleanUp {
            interval: Millis::from_secs(180),
            age: minute,
            at_once: 2,
            pressure: (100, 100),
            untracked: Some((minute, Vec::new())),
        }),
        disk: None,
        retention_jitter: Millis(0),
        metadata_files: None,
        journal: None,
        store,
        settings: Settings { stop_timeout: Millis::from_secs(30), retention: RETENTION },
        timeouts: Timeouts { create: Millis::from_secs(240), start: Millis::from_secs(180) },
        pids_limit: None,
        agent: "host".to_owned(),
        endpoint: None,
        total: total(),
        effects: effects.clone(),
    })
}
