//! Builds the agent from its configuration: the only file that names both ports and adapters, and
//! the place where start order and stop order are written down.

mod departure;
mod faults;
mod place;
mod seams;
mod serve;
mod service;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use berth_core::task::Settings;
use tokio_util::sync::CancellationToken;

use crate::cgroup::cgroupfs::{Cgroupfs, CgroupfsConfig};
use crate::cgroup::driver::{DriverKind, driver};
use crate::cgroup::off::Off as NoCgroups;
use crate::cgroup::systemd::{Systemd, SystemdConfig};
use crate::cgroup::{Cgroups, mounted};
use crate::config::{Config, TaskLimits};
use crate::credentials::{Credentials, Sealed};
use crate::endpoint::introspection::Introspection;
use crate::endpoint::readings::Readings;
use crate::endpoint::{address, debug};
use crate::engine::{self, Engine, Parts, Timeouts, World};
use crate::environment::Environments;
use crate::fault::{self, Kind};
use crate::firelens::LogRouters;
use crate::gpu::{self, GpuChooser, Inventory};
use crate::host;
use crate::host_life::notify::Notify;
use crate::image::{Images, Logins, PullSettings, Records};
use crate::journal::Journal;
use crate::metadata_file::{self, MetadataFiles};
use crate::network::awsvpc::{Awsvpc, AwsvpcConfig};
use crate::network::ports::PortChooser;
use crate::network::shared::SharedOnly;
use crate::network::{Offers, TaskNetwork, probe};
use crate::object::Objects;
use crate::random;
use crate::runtime::docker::{Docker, DockerConfig};
use crate::runtime::holder::Holders;
use crate::runtime::{EngineInfo, Runtime, RuntimeError};
use crate::secret::Secrets;
use crate::session::{Attaching, Backend, Endpoint, Registration, Session, SessionError};
use crate::store::memory::MemoryStore;
use crate::store::redb::RedbStore;
use crate::store::{Identity, Saved, Store, StoreError, Write};
use crate::supervise::Tracker;

use self::departure::HostWatch;
use self::place::Place;
pub use self::seams::{Seamless, Seams};
pub use self::serve::socket;
use self::service::Service;

/// Longest that the agent takes to stop. Containers run on.
const STOP: Duration = Duration::from_secs(5);
const ENGINE_PAUSE: Duration = Duration::from_millis(100);
const ENGINE_PAUSE_MAX: Duration = Duration::from_secs(2);
/// Longest that the engine may take to answer the first questions.
const ENGINE_ANSWER: Duration = Duration::from_secs(60);

/// Why the agent cannot run.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// The configuration, or what the host remembers, makes no sense: restarting will not help.
    #[error("{0}")]
    Terminal(String),
    /// Something failed that may work another time.
    #[error("{0}")]
    Failed(String),
}

fn failed(error: impl std::fmt::Display) -> DaemonError {
    DaemonError::Failed(error.to_string())
}

/// Runs the agent until `stop` is cancelled, and keeps the service manager informed.
///
/// # Errors
/// [`DaemonError`], with what to do.
pub async fn run(config: Config, stop: CancellationToken) -> Result<(), DaemonError> {
    run_within(config, stop, &Seamless).await
}

/// The same, with something round the agent's ports.
///
/// # Errors
/// [`DaemonError`], with what to do.
pub async fn run_within(
    config: Config,
    stop: CancellationToken,
    seams: &dyn Seams,
) -> Result<(), DaemonError> {
    let tracker = Tracker::new();
    let service = Service::start(Notify::from_env(), &tracker);
    let result = service.turning(run_agent(config, stop, seams, &tracker, &service)).await;
    if let Err(error) = &result {
        service.ending(&error.to_string());
    }
    // Where the start was not finished, there is little to be ended.
    tracker.shutdown(STOP).await;
    result
}

async fn run_agent(
    config: Config,
    stop: CancellationToken,
    seams: &dyn Seams,
    tracker: &Tracker,
    service: &Service,
) -> Result<(), DaemonError> {
    let backend = backend(&config)?;
    let Some(gpus) = stop.run_until_cancelled(gpu::find(config.gpus.as_ref())).await else {
        return Ok(());
    };
    let gpus = gpus.map_err(|e| DaemonError::Terminal(e.to_string()))?;
    let data_dir = prepare_data_dir(&config.data_dir)?;
    private("BERTH_RUN_DIR", &config.run_dir)?;
    let Some(place) = stop.run_until_cancelled(Place::find(&config, &data_dir)).await else {
        return Ok(());
    };
    let place = place?;
    let agent = place.data_dir.display().to_string();
    let store = seams.store(open_store(&config, &data_dir).await?);
    let docker = DockerConfig {
        host: config.docker_host.clone(),
        namespace: Some(agent.clone()),
        own: place.contained.as_ref().map(|contained| contained.id.clone()),
        gpu_runtime: config.gpus.as_ref().and_then(|gpus| gpus.runtime.clone()),
        ..DockerConfig::default()
    };
    let docker = Arc::new(Docker::new(docker).map_err(|e| DaemonError::Terminal(e.to_string()))?);
    let runtime = seams.runtime(Arc::clone(&docker) as Arc<dyn Runtime>);

    let saved = store.load().await.map_err(failed)?;
    service.starts("waiting for the container engine");
    // What the kernel can do of faults is tried out while the engine answers.
    let met = async { tokio::join!(meet_engine(&*runtime), fault::probe::kinds(tracker)) };
    let Some(((info, world), kinds)) = stop.run_until_cancelled(met).await else {
        return Ok(());
    };
    let cgroups = seams.cgroups(choose_cgroups(&config, &info, &place)?);
    service.starts("taking up its tasks");
    let network = choose_network(&config, &data_dir, &place, seams.holders(docker), tracker).await?;
    let network = seams.network(network);
    let offers = network.offers();
    let total = host::capacity(&config, place.cgroups_of_host(&config), offers.interfaces, gpus.count())
        .map_err(|e| DaemonError::Terminal(e.to_string()))?;
    let (saved, identity) = identify(&config, &*store, saved, &world).await?;
    let endpoint = serve::open_endpoint(&config, &place.for_endpoint(), tracker).await;
    let endpoint_at = config.endpoint.filter(|_| endpoint.is_some());
    // What did not open is not offered.
    let config = Config { endpoint: endpoint_at, ..config };
    let faults = faults::choose(kinds, endpoint_at.map(|at| at.ip()), &data_dir, &place, tracker);
    let registration = registration(&config, &info, &*cgroups, &total, &offers, &faults.kinds(), &gpus);

    let secrets = Arc::new(Secrets::new(config.secrets.clone()));
    let objects = Arc::new(Objects::new(config.object_store.clone()));
    let parts = Parts {
        images: Images::new(
            Arc::clone(&runtime),
            pull_settings(&config),
            logins(&config, &secrets),
            Records::open(config.checkpoint.then_some(&*data_dir)),
        ),
        environments: Environments::new(secrets, Arc::clone(&objects)),
        log_routers: LogRouters::new(&data_dir, objects, config.firelens_async).seen_at(&place.data_dir),
        credentials: Credentials::new(seal(&config, &data_dir, &place), tracker),
        runtime,
        cgroups,
        ports: PortChooser::new(config.dynamic_ports),
        gpus: GpuChooser::new(gpus.ids),
        network,
        faults,
        clean_up: config.image_cleanup.clone(),
        disk: place.engine_disk(&info),
        journal: start_journal(&config, &data_dir, tracker),
        metadata_files: metadata_files(&config, &data_dir, &place, &info),
        store: Arc::clone(&store),
        settings: Settings { stop_timeout: config.stop_timeout, retention: config.cleanup_wait },
        retention_jitter: config.cleanup_wait_jitter,
        timeouts: Timeouts { create: config.create_timeout, start: config.start_timeout },
        pids_limit: config.pids_limit,
        agent,
        endpoint: endpoint_at.map(serve::endpoint_base),
        total,
        effects: seams.effects(),
    };
    let engine = Engine::start(parts, saved, world, tracker.child()).await.map_err(failed)?;
    let host = HostWatch::new(&config, engine.clone(), service.is_there());
    let session = Arc::new(Session::new(
        backend,
        registration,
        engine.clone(),
        store,
        identity,
        Attaching::new(engine.clone(), tracker.clone(), config.remote_exec),
    ));
    service.is_up(&engine, &session);
    // A notice that stands already is told with the first word to the control plane.
    let host = host.follow(tracker).await;
    let readings = Readings::new(engine.clone(), place.cgroups_of_tasks(&config));
    let about = Introspection {
        engine: engine.clone(),
        cluster: config.cluster.to_string(),
        instance: session.instance(),
        session: session.status(),
        readings: Arc::clone(&readings),
        debug: config.runtime_stats,
    };
    if config.runtime_stats {
        debug::tell(engine.clone(), tracker);
    }
    serve::introspection_api(&config, tracker, about.clone()).await;
    serve::operator_socket(&config, &data_dir, tracker, about);
    let tasks = engine.clone();
    serve::task_endpoint(&config, tracker, engine, endpoint, readings, session.inquiries());

    let result = tokio::select! {
        // Whatever was on its way is in the outbox, and goes out after the next start.
        () = async { stop.cancelled().await; host.end(service).await } => Ok(()),
        ended = session.run() => ended.map_err(|error| match error {
            SessionError::Refused(_) => DaemonError::Terminal(error.to_string()),
            SessionError::Store(_) => failed(error),
        }),
    };
    tracing::info!("stopping; containers run on");
    service.ending("stopping; containers run on");
    // While tasks run, what they ask for comes to this host, and no further: the next agent will answer.
    if let Some(at) = endpoint_at.filter(|_| tasks.live() == 0) {
        address::withdraw(at, tracker).await;
    }
    if !tracker.shutdown(STOP).await {
        tracing::warn!("some work did not end within {} s and was left", STOP.as_secs());
    }
    result
}

/// Checks what can be checked without touching anything.
///
/// # Errors
/// [`DaemonError::Terminal`].
pub fn check(config: &Config) -> Result<(), DaemonError> {
    backend(config)?;
    Docker::new(DockerConfig { host: config.docker_host.clone(), ..DockerConfig::default() })
        .map_err(|e| DaemonError::Terminal(e.to_string()))?;
    if let Some(gpus) = &config.gpus {
        gpu::read(&gpus.inventory).map_err(|e| DaemonError::Terminal(e.to_string()))?;
    }
    host::capacity(config, Some(&config.cgroup_path), 0, 0)
        .map_err(|e| DaemonError::Terminal(e.to_string()))?;
    Ok(())
}

fn backend(config: &Config) -> Result<Backend, DaemonError> {
    let endpoint = config.backend.as_deref().ok_or(crate::session::InvalidEndpoint::Missing);
    let endpoint = endpoint.and_then(Endpoint::parse).map_err(|e| DaemonError::Terminal(e.to_string()))?;
    Ok(Backend {
        endpoint,
        join_token: config.join_token.clone(),
        ca_fingerprint: config.ca_fingerprint.clone(),
        server_name: config.server_name.clone(),
        data_dir: config.data_dir.clone(),
    })
}

/// Makes the data directory and tells its real path, which names this agent among those that share
/// a container engine: the same after a restart, and after the directory was emptied.
fn prepare_data_dir(path: &Path) -> Result<PathBuf, DaemonError> {
    let wrong = |e| DaemonError::Failed(format!("ECS_DATADIR={}: {e}", path.display()));
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(wrong)?;
    private("ECS_DATADIR", path)?;
    path.canonicalize().map_err(wrong)
}

/// Refuses a folder, where it is there, that others than its owner may write to: who can put another file in the
/// place of the agent's has the host.
fn private(variable: &str, path: &Path) -> Result<(), DaemonError> {
    const OTHERS_WRITE: u32 = 0o022;
    let Ok(found) = fs::metadata(path) else { return Ok(()) };
    let mode = found.permissions().mode() & 0o7777;
    if mode & OTHERS_WRITE == 0 {
        return Ok(());
    }
    Err(DaemonError::Terminal(format!(
        "{variable}={}: others than its owner may write there (mode {mode:o}); chmod go-w it, or name another folder",
        path.display()
    )))
}

async fn open_store(config: &Config, data_dir: &Path) -> Result<Arc<dyn Store>, DaemonError> {
    if !config.checkpoint {
        tracing::warn!("ECS_CHECKPOINT=false: a restart knows no more than the labels of running containers");
        return Ok(Arc::new(MemoryStore::default()));
    }
    let data_dir = data_dir.to_owned();
    let opened = tokio::task::spawn_blocking(move || RedbStore::open(&data_dir)).await.map_err(failed)?;
    Ok(Arc::new(opened.map_err(|e| match e {
        StoreError::InUse { .. } | StoreError::Newer { .. } => DaemonError::Terminal(e.to_string()),
        other => failed(other),
    })?))
}

/// Waits until the container engine answers, and has a look at what it holds of ours.
async fn meet_engine(runtime: &dyn Runtime) -> (EngineInfo, World) {
    let mut pause = ENGINE_PAUSE;
    let mut told = false;
    loop {
        match both(runtime).await {
            Ok(met) => return met,
            Err(error) if told => tracing::debug!(%error, "still waiting for the container engine"),
            Err(error) => {
                tracing::warn!(%error, "waiting for the container engine; start it, or set DOCKER_HOST");
                told = true;
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(ENGINE_PAUSE_MAX);
    }
}

async fn both(runtime: &dyn Runtime) -> Result<(EngineInfo, World), RuntimeError> {
    let both = async { tokio::join!(runtime.info(), engine::look(runtime)) };
    let late = |_| RuntimeError::Unavailable(format!("no answer within {} s", ENGINE_ANSWER.as_secs()));
    let (info, world) = tokio::time::timeout(ENGINE_ANSWER, both).await.map_err(late)?;
    Ok((info?, world?))
}

fn choose_cgroups(
    config: &Config,
    info: &EngineInfo,
    place: &Place,
) -> Result<Arc<dyn Cgroups>, DaemonError> {
    if config.task_limits == TaskLimits::Off || !place.allows_cgroups(config, info)? {
        return Ok(Arc::new(NoCgroups));
    }
    let (mount, root, period) =
        (config.cgroup_path.clone(), config.cgroup_root.clone(), config.cgroup_cpu_period);
    match driver(info.cgroup_version, info.cgroup_systemd, mounted(&config.cgroup_path)) {
        Ok(DriverKind::Cgroupfs(version)) => {
            Ok(Arc::new(Cgroupfs::new(CgroupfsConfig { mount, root, period }, version)))
        }
        Ok(DriverKind::Systemd(version)) => Ok(Arc::new(Systemd::new(
            SystemdConfig { mount, prefix: format!("{root}tasks"), period },
            version,
        ))),
        Err(error) if config.task_limits == TaskLimits::WherePossible => {
            tracing::warn!(%error, "tasks have no limits of their own here");
            Ok(Arc::new(NoCgroups))
        }
        Err(error) => Err(DaemonError::Terminal(format!("ECS_ENABLE_TASK_CPU_MEM_LIMIT=true: {error}"))),
    }
}

/// The networks of `awsvpc` tasks, where they are wanted.
async fn choose_network(
    config: &Config,
    data_dir: &Path,
    place: &Place,
    docker: Arc<dyn Holders>,
    tracker: &Tracker,
) -> Result<Arc<dyn TaskNetwork>, DaemonError> {
    place.allows_interfaces(config, data_dir)?;
    if !config.task_eni {
        return Ok(Arc::new(SharedOnly::new(docker, tracker.child())));
    }
    let impossible = |error: std::io::Error| {
        DaemonError::Terminal(format!(
            "ECS_ENABLE_TASK_ENI=true: the agent may not make network namespaces: {error}; \
             it needs CAP_NET_ADMIN and CAP_SYS_ADMIN"
        ))
    };
    let providers = probe::providers(data_dir, tracker).await.map_err(impossible)?;
    let interfaces = host::task_interfaces(config, &providers);
    tracing::info!(?providers, tasks = interfaces, "network interfaces for tasks");
    let config = AwsvpcConfig {
        data_dir: place.data_dir.clone(),
        pins: data_dir.to_owned(),
        parent: config.task_interface.clone().or_else(host::default_interface).unwrap_or_default(),
        pool: config.pause_pool,
        endpoint_port: config.endpoint.map(|at| at.port()),
        offers: Offers { providers, interfaces, blocks_instance_metadata: config.block_instance_metadata },
    };
    Ok(Arc::new(Awsvpc::new(config, docker, tracker.child()).map_err(impossible)?))
}

fn logins(config: &Config, secrets: &Arc<Secrets>) -> Logins {
    let home = || Some(PathBuf::from(std::env::var_os("HOME")?).join(".docker"));
    let docker = std::env::var_os("DOCKER_CONFIG").map(PathBuf::from).or_else(home);
    Logins::new(config.registry_logins.clone(), config.ecr.clone(), docker, Arc::clone(secrets))
}

fn pull_settings(config: &Config) -> PullSettings {
    PullSettings {
        behavior: config.pull_behavior,
        begin: config.pull_begin_timeout,
        mirrors: config.registry_mirrors.clone(),
        inactivity: config.pull_inactivity_timeout,
        total: config.pull_timeout,
    }
}

/// Finds out who this agent is. The host's key is durable before the first registration, so that
/// a crash in between finds the same instance again.
async fn identify(
    config: &Config,
    store: &dyn Store,
    mut saved: Saved,
    world: &World,
) -> Result<(Saved, Identity), DaemonError> {
    let boot = host::boot();
    let identity = match saved.identity.take() {
        Some(identity) if identity.cluster != config.cluster.as_str() => {
            return Err(DaemonError::Terminal(format!(
                "this host belongs to cluster {}, but ECS_CLUSTER={}; set it back, or empty {} to join anew",
                identity.cluster,
                config.cluster,
                config.data_dir.display()
            )));
        }
        Some(identity) if !identity.endpoint_key.is_empty() && identity.boot == boot => identity,
        Some(identity) => {
            saved.rebooted = !identity.boot.is_empty() && !boot.is_empty() && identity.boot != boot;
            let known = Some(identity.endpoint_key.clone()).filter(|key| !key.is_empty());
            let endpoint_key = known.unwrap_or_else(|| random::name().to_string());
            let identity = Identity { endpoint_key, boot, ..identity };
            store.commit(vec![Write::Identity(identity.clone())]).await.map_err(failed)?;
            identity
        }
        None => {
            let identity = Identity {
                endpoint_key: random::name().to_string(),
                host_key: random::name().to_string(),
                cluster: config.cluster.to_string(),
                instance: world.instance.clone(),
                outbox_epoch: random::name().to_string(),
                manifest_sequence: 0,
                boot,
                settled: false,
            };
            store.commit(vec![Write::Identity(identity.clone())]).await.map_err(failed)?;
            identity
        }
    };
    saved.identity = Some(identity.clone());
    Ok((saved, identity))
}

fn registration(
    config: &Config,
    info: &EngineInfo,
    cgroups: &dyn Cgroups,
    total: &berth_core::resources::Resources,
    offers: &Offers,
    faults: &BTreeSet<Kind>,
    gpus: &Inventory,
) -> Registration {
    Registration {
        cluster: config.cluster.to_string(),
        total: total.clone(),
        attributes: host::attributes(config, info, cgroups.enabled(), offers, faults, gpus),
        gpus: gpus.ids.clone(),
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        agent_hash: option_env!("BERTH_BUILD_HASH").unwrap_or_default().to_owned(),
        engine_version: format!("DockerVersion: {}", info.version),
        hostname: host::hostname(),
    }
}

/// What happens to tasks, for people. Tasks run without it, too.
fn start_journal(config: &Config, data_dir: &Path, tracker: &Tracker) -> Option<Journal> {
    if !config.checkpoint {
        return None;
    }
    let started = Journal::start(data_dir, tracker);
    started
        .map_err(|error| tracing::warn!(%error, "no journal of tasks: berth-agent explain knows nothing"))
        .ok()
}

/// The metadata files of containers; those of earlier containers are minded where none are made any more.
fn metadata_files(
    config: &Config,
    data_dir: &Path,
    place: &Place,
    info: &EngineInfo,
) -> Option<MetadataFiles> {
    let host = metadata_file::Host {
        zone: config.attributes.get("ecs.availability-zone").cloned(),
        address: host::address(),
        selinux: info.security_options.iter().any(|option| option == "name=selinux"),
    };
    let files = MetadataFiles::new(data_dir, config.metadata_files, host).seen_at(&place.data_dir);
    (files.makes() || files.list().is_ok_and(|tasks| !tasks.is_empty())).then_some(files)
}

/// What seals credentials; without it they are in memory alone.
fn seal(config: &Config, data_dir: &Path, place: &Place) -> Option<Sealed> {
    if !config.checkpoint || !place.allows_sealing(config) {
        return None;
    }
    let sealed = Sealed::new(data_dir, &config.run_dir);
    sealed
        .map_err(|error| {
            tracing::warn!(
                %error,
                "BERTH_RUN_DIR={}: credentials of tasks are not kept across restarts of the agent",
                config.run_dir.display()
            );
        })
        .ok()
}
