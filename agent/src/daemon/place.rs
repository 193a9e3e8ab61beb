//! Where the agent runs: on the host itself, or in a container there. In a container it has less, says so, and
//! offers no more than it has.

use std::path::{Path, PathBuf};

use super::{DaemonError, ENGINE_PAUSE, ENGINE_PAUSE_MAX};
use crate::config::{Config, TaskLimits};
use crate::contained::{Contained, own_id, tell};
use crate::runtime::docker::{Docker, DockerConfig};
use crate::runtime::{EngineInfo, Runtime};

/// Where the agent runs.
pub(super) struct Place {
    /// The container, where it is in one.
    pub(super) contained: Option<Contained>,
    /// The data folder as host and engine have it. It names the agent among those that share the engine.
    pub(super) data_dir: PathBuf,
}

impl Place {
    /// Finds out; in a container only the engine can tell, and is waited for.
    ///
    /// # Errors
    /// [`DaemonError::Terminal`] when the agent's state would go with its container.
    pub(super) async fn find(config: &Config, data_dir: &Path) -> Result<Self, DaemonError> {
        let Some(contained) = container(config).await? else {
            return Ok(Self { contained: None, data_dir: data_dir.to_owned() });
        };
        let Some(on_host) = contained.on_host(data_dir) else {
            let at = data_dir.display();
            return Err(DaemonError::Terminal(format!(
                "ECS_DATADIR={at} is in the agent's own container, and what it knows of its tasks would go with \
                 that; add --volume=/var/lib/ecs/data:{at}"
            )));
        };
        tracing::info!(container = %contained.id, data = %on_host.display(), "the agent runs in a container");
        Ok(Self { contained: Some(contained), data_dir: on_host })
    }

    /// Where cgroups tell how much of the host there is: in a container, they tell of that alone.
    pub(super) fn cgroups_of_host<'a>(&self, config: &'a Config) -> Option<&'a Path> {
        self.contained.is_none().then_some(&*config.cgroup_path)
    }

    /// Where cgroups tell what tasks use; `None` where they are out of sight.
    pub(super) fn cgroups_of_tasks(&self, config: &Config) -> Option<PathBuf> {
        let seen = |contained: &Contained| contained.for_cgroups(&config.cgroup_path, false).is_empty();
        self.contained.as_ref().is_none_or(seen).then(|| config.cgroup_path.clone())
    }

    /// Whether cgroups of tasks can be made as far as this place is concerned.
    ///
    /// # Errors
    /// [`DaemonError::Terminal`] when they cannot, and have to.
    pub(super) fn allows_cgroups(&self, config: &Config, info: &EngineInfo) -> Result<bool, DaemonError> {
        let Some(contained) = &self.contained else { return Ok(true) };
        let missing = contained.for_cgroups(&config.cgroup_path, info.cgroup_systemd);
        if config.task_limits == TaskLimits::Required && !missing.is_empty() {
            return Err(DaemonError::Terminal(format!(
                "ECS_ENABLE_TASK_CPU_MEM_LIMIT=true: not possible in this container; add {}",
                missing.join(" ")
            )));
        }
        Ok(!tell("tasks have no limits as a whole (their containers have), and no statistics", &missing))
    }

    /// Tells whether tasks can have interfaces of their own as far as this place is concerned.
    ///
    /// # Errors
    /// [`DaemonError::Terminal`] when they cannot, and have to.
    pub(super) fn allows_interfaces(&self, config: &Config, data_dir: &Path) -> Result<(), DaemonError> {
        let Some(contained) = &self.contained else { return Ok(()) };
        let mut missing = contained.for_interfaces(data_dir);
        if config.task_eni {
            return if missing.is_empty() {
                Ok(())
            } else {
                Err(DaemonError::Terminal(format!(
                    "ECS_ENABLE_TASK_ENI=true: not possible in this container; add {}",
                    missing.join(" ")
                )))
            };
        }
        missing.push("--env=ECS_ENABLE_TASK_ENI=true".to_owned());
        tell("network mode awsvpc is not offered", &missing);
        Ok(())
    }

    /// Whether credentials may be kept on the disk, sealed.
    pub(super) fn allows_sealing(&self, config: &Config) -> bool {
        let missing = self.contained.as_ref().map(|contained| contained.for_credentials(&config.run_dir));
        !missing.is_some_and(|missing| {
            tell("credentials of tasks are not kept across restarts of the agent", &missing)
        })
    }

    /// Where the engine keeps images, if that can be looked at.
    pub(super) fn engine_disk(&self, info: &EngineInfo) -> Option<PathBuf> {
        if let Some(contained) = &self.contained {
            tell("images are not cleaned up because the disk fills", &contained.for_disk(&info.root));
        }
        Some(PathBuf::from(&info.root)).filter(|root| root.is_dir())
    }

    /// What the task's endpoint needs, where that is missing.
    pub(super) fn for_endpoint(&self) -> Vec<String> {
        self.contained.as_ref().map(Contained::for_endpoint).unwrap_or_default()
    }
}

/// The container that the agent runs in; `None` where it is on the host, or in a container of another engine.
async fn container(config: &Config) -> Result<Option<Contained>, DaemonError> {
    let Some(id) = own_id() else { return Ok(None) };
    let plain = DockerConfig { host: config.docker_host.clone(), ..DockerConfig::default() };
    let docker = Docker::new(plain).map_err(|e| DaemonError::Terminal(e.to_string()))?;
    let mut pause = ENGINE_PAUSE;
    let mut told = false;
    loop {
        match docker.details(&id).await {
            Ok(details) => return Ok(details.map(|details| Contained::new(id, details))),
            Err(error) if told => tracing::debug!(%error, "still waiting for the container engine"),
            Err(error) => {
                tracing::warn!(
                    %error,
                    "waiting for the container engine; add --volume=/var/run/docker.sock:/var/run/docker.sock, or set DOCKER_HOST"
                );
                told = true;
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(ENGINE_PAUSE_MAX);
    }
}
