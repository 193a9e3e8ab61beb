//! Builds the agent from its configuration: the only room that names both ports and adapters, and
//! the place where start order and stop order are written down.

mod choice;
mod departure;
mod faults;
mod place;
mod seams;
mod serve;
mod service;
mod state;

use std::sync::Arc;
use std::time::Duration;

use berth_core::task::Settings;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::credentials::Credentials;
use crate::endpoint::introspection::Introspection;
use crate::endpoint::readings::Readings;
use crate::endpoint::{address, debug};
use crate::engine::{Engine, Parts, Timeouts};
use crate::environment::Environments;
use crate::fault;
use crate::firelens::LogRouters;
use crate::gpu::{self, GpuChooser};
use crate::host;
use crate::host_life::notify::Notify;
use crate::image::{Images, Records};
use crate::network::ports::PortChooser;
use crate::object::Objects;
use crate::runtime::Runtime;
use crate::runtime::docker::{Docker, DockerConfig};
use crate::secret::Secrets;
use crate::session::{Attaching, Backend, Endpoint, Session, SessionError};
use crate::supervise::Tracker;

use self::departure::HostWatch;
use self::place::Place;
pub use self::seams::{Seamless, Seams};
pub use self::serve::socket;
use self::service::Service;

/// Longest that the agent takes to stop. Containers run on.
const STOP: Duration = Duration::from_secs(5);

/// Pauses between questions to an engine that does not answer yet.
const ENGINE_PAUSE: Duration = Duration::from_millis(100);
const ENGINE_PAUSE_MAX: Duration = Duration::from_secs(2);

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

impl DaemonError {
    /// Something that may work another time.
    pub fn failed(error: impl std::fmt::Display) -> Self {
        Self::Failed(error.to_string())
    }

    /// Something that somebody has to change.
    fn terminal(error: impl std::fmt::Display) -> Self {
        Self::Terminal(error.to_string())
    }
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
    let gpus = gpus.map_err(DaemonError::terminal)?;
    let data_dir = state::prepare_data_dir(&config.data_dir)?;
    state::private("BERTH_RUN_DIR", &config.run_dir)?;
    let Some(place) = stop.run_until_cancelled(Place::find(&config, &data_dir)).await else {
        return Ok(());
    };
    let place = place?;
    let agent = place.data_dir.display().to_string();
    let store = seams.store(state::open_store(&config, &data_dir).await?);
    let docker = DockerConfig {
        host: config.docker_host.clone(),
        namespace: Some(agent.clone()),
        own: place.contained.as_ref().map(|contained| contained.id.clone()),
        gpu_runtime: config.gpus.as_ref().and_then(|gpus| gpus.runtime.clone()),
        ..DockerConfig::default()
    };
    let docker = Arc::new(Docker::new(docker).map_err(DaemonError::terminal)?);
    let runtime = seams.runtime(Arc::clone(&docker) as Arc<dyn Runtime>);

    let saved = store.load().await.map_err(DaemonError::failed)?;
    service.starts("waiting for the container engine");
    // What the kernel can do of faults is tried out while the engine answers.
    let met = async { tokio::join!(choice::meet_engine(&*runtime), fault::probe::kinds(tracker)) };
    let Some(((info, world), kinds)) = stop.run_until_cancelled(met).await else {
        return Ok(());
    };
    let cgroups = seams.cgroups(choice::cgroups(&config, &info, &place)?);
    service.starts("taking up its tasks");
    let network = choice::network(&config, &data_dir, &place, seams.holders(docker), tracker).await?;
    let network = seams.network(network);
    let offers = network.offers();
    let total = host::capacity(&config, place.cgroups_of_host(&config), offers.interfaces, gpus.count())
        .map_err(DaemonError::terminal)?;
    let (saved, identity) = state::identify(&config, &*store, saved, &world).await?;
    let endpoint = serve::open_endpoint(&config, &place.for_endpoint(), tracker).await;
    let endpoint_at = config.endpoint.filter(|_| endpoint.is_some());
    // What did not open is not offered.
    let config = Config { endpoint: endpoint_at, ..config };
    let faults = faults::choose(kinds, endpoint_at.map(|at| at.ip()), &data_dir, &place, tracker);
    let registration =
        choice::registration(&config, &info, &*cgroups, &total, &offers, &faults.kinds(), &gpus);

    let secrets = Arc::new(Secrets::new(config.secrets.clone()));
    let objects = Arc::new(Objects::new(config.object_store.clone()));
    let parts = Parts {
        images: Images::new(
            Arc::clone(&runtime),
            choice::pull_settings(&config),
            choice::logins(&config, &secrets),
            Records::open(config.checkpoint.then_some(&*data_dir)),
        ),
        environments: Environments::new(secrets, Arc::clone(&objects)),
        log_routers: LogRouters::new(&data_dir, objects, config.firelens_async).seen_at(&place.data_dir),
        credentials: Credentials::new(state::seal(&config, &data_dir, &place), seams.effects(), tracker),
        runtime,
        cgroups,
        ports: PortChooser::new(config.dynamic_ports),
        gpus: GpuChooser::new(gpus.ids),
        network,
        faults,
        clean_up: config.image_cleanup.clone(),
        disk: place.engine_disk(&info),
        journal: state::start_journal(&config, &data_dir, seams.effects(), tracker),
        metadata_files: state::metadata_files(&config, &data_dir, &place, &info),
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
    let engine = Engine::start(parts, saved, world, tracker.child()).await.map_err(DaemonError::failed)?;
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
        draining: session.draining(),
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
            SessionError::Refused(_) => DaemonError::terminal(error),
            SessionError::Store(_) => DaemonError::failed(error),
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
        .map_err(DaemonError::terminal)?;
    if let Some(gpus) = &config.gpus {
        gpu::read(&gpus.inventory).map_err(DaemonError::terminal)?;
    }
    host::capacity(config, Some(&config.cgroup_path), 0, 0).map_err(DaemonError::terminal)?;
    Ok(())
}

fn backend(config: &Config) -> Result<Backend, DaemonError> {
    let endpoint = config.backend.as_deref().ok_or(crate::session::InvalidEndpoint::Missing);
    let endpoint = endpoint.and_then(Endpoint::parse).map_err(DaemonError::terminal)?;
    Ok(Backend {
        endpoint,
        join_token: config.join_token.clone(),
        ca_fingerprint: config.ca_fingerprint.clone(),
        server_name: config.server_name.clone(),
        data_dir: config.data_dir.clone(),
    })
}
