//! What this host and its engine allow, and what of it the agent uses: cgroups, networks, registries, and what it
//! registers with.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;

use super::place::Place;
use super::{DaemonError, ENGINE_PAUSE, ENGINE_PAUSE_MAX};
use crate::cgroup::cgroupfs::{Cgroupfs, CgroupfsConfig};
use crate::cgroup::driver::{DriverKind, driver};
use crate::cgroup::off::Off as NoCgroups;
use crate::cgroup::systemd::{Systemd, SystemdConfig};
use crate::cgroup::{Cgroups, mounted};
use crate::config::{Config, TaskLimits};
use crate::engine::{self, World};
use crate::fault::Kind;
use crate::gpu::Inventory;
use crate::host;
use crate::image::{Logins, PullSettings};
use crate::network::awsvpc::{Awsvpc, AwsvpcConfig};
use crate::network::shared::SharedOnly;
use crate::network::{Offers, TaskNetwork, probe};
use crate::runtime::holder::Holders;
use crate::runtime::{EngineInfo, Runtime, RuntimeError};
use crate::secret::Secrets;
use crate::session::Registration;
use crate::supervise::Tracker;

/// Longest that the engine may take to answer the first questions.
const ENGINE_ANSWER: Duration = Duration::from_secs(60);

/// Waits until the container engine answers, and has a look at what it holds of ours.
pub(super) async fn meet_engine(runtime: &dyn Runtime) -> (EngineInfo, World) {
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

/// The cgroups of tasks, where they are wanted and possible.
pub(super) fn cgroups(
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
pub(super) async fn network(
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
    let impossible = |error: std::io::Error| match error.raw_os_error().map(Errno::from_raw) {
        // What a host runs out of, and has again.
        Some(Errno::EAGAIN | Errno::ENOMEM | Errno::EMFILE | Errno::ENFILE | Errno::ENOSPC) => {
            DaemonError::Failed(format!("no network namespace was to be had: {error}"))
        }
        _ => DaemonError::Terminal(format!(
            "ECS_ENABLE_TASK_ENI=true: the agent may not make network namespaces: {error}; \
             it needs CAP_NET_ADMIN and CAP_SYS_ADMIN"
        )),
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

/// What opens registries: the configuration's, what `docker login` left, and secrets that definitions name.
pub(super) fn logins(config: &Config, secrets: &Arc<Secrets>) -> Logins {
    let home = || Some(PathBuf::from(std::env::var_os("HOME")?).join(".docker"));
    let docker = std::env::var_os("DOCKER_CONFIG").map(PathBuf::from).or_else(home);
    Logins::new(config.registry_logins.clone(), config.ecr.clone(), docker, Arc::clone(secrets))
}

/// How images are pulled.
pub(super) fn pull_settings(config: &Config) -> PullSettings {
    PullSettings {
        behavior: config.pull_behavior,
        begin: config.pull_begin_timeout,
        mirrors: config.registry_mirrors.clone(),
        inactivity: config.pull_inactivity_timeout,
        total: config.pull_timeout,
    }
}

/// What the host tells of itself when it registers.
pub(super) fn registration(
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
