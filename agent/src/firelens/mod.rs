//! Log routers of tasks (ECS's FireLens): what they find on the host, and how the others' output gets
//! to them.
//!
//! | part | its one job |
//! | --- | --- |
//! | `config` | what a router is told |
//! | `folder` | the files and folders in which it finds that |
//!
//! A router's folder is below the agent's data folder, which the container engine sees under the same
//! path (for an agent in a container, under the one that `seen_at` is told): it connects to the socket there, and the router has the same socket in `/var/run`.

mod config;
mod folder;

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use berth_core::ids::TaskArn;
use berth_core::spec::{
    BUFFER_LIMIT, ContainerSpec, EnvVar, LogConfiguration, NetworkMode, RouterConfig, RouterKind, TaskSpec,
    router_owner,
};

use self::config::configuration;
use self::folder::{Content, Folders};
use crate::object::{ObjectError, Objects};
use crate::runtime::HostMount;

/// Where a router listens, where it has a network.
const PORT: u16 = 24224;
/// The socket in the router's own file system, and the folder that it is in.
const SOCKET: &str = "/var/run/fluent.sock";
const SOCKET_FOLDER: &str = "/var/run";
const SOCKET_NAME: &str = "fluent.sock";
/// Longest path of a socket: unix(7), `sun_path`.
const LONGEST_PATH: usize = 107;

/// Why a log router cannot be had. The text is for users.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
pub enum FirelensError {
    /// Trying again would not help.
    #[error("{0}")]
    Refused(String),
    /// It may be had another time.
    #[error("{0}")]
    Passing(String),
}

/// The log routers of all tasks.
pub struct LogRouters {
    folders: Folders,
    objects: Arc<Objects>,
    asynchronous: bool,
}

impl LogRouters {
    /// With their folders below the agent's, and configuration of users from `objects`. `asynchronous`:
    /// containers start and run on also while their router does not answer.
    #[must_use]
    pub fn new(data_dir: &Path, objects: Arc<Objects>, asynchronous: bool) -> Self {
        Self { folders: Folders::below(data_dir.join("firelens")), objects, asynchronous }
    }

    /// Where the engine has the data folder, for an agent in a container.
    #[must_use]
    pub fn seen_at(self, data_dir: &Path) -> Self {
        Self { folders: self.folders.seen_at(data_dir.join("firelens")), ..self }
    }

    /// Where there is no disk: for simulations. No task has a router there.
    #[must_use]
    pub fn nowhere(objects: Arc<Objects>) -> Self {
        Self { folders: Folders::nowhere(), objects, asynchronous: true }
    }

    /// Makes what the task's router finds on the host.
    ///
    /// # Errors
    /// [`FirelensError`].
    pub async fn prepare(&self, spec: &TaskSpec) -> Result<(), FirelensError> {
        let (Some((router, firelens)), Some(config)) = (spec.router(), configuration(spec)) else {
            return Ok(());
        };
        let id = spec.arn.id();
        let socket = self.folders.sockets(id).join(SOCKET_NAME);
        let length = socket.as_os_str().len();
        if length > LONGEST_PATH {
            return Err(FirelensError::Refused(format!(
                "its socket {} has a path of {length} bytes, and one may have {LONGEST_PATH}: set a shorter ECS_DATADIR",
                socket.display()
            )));
        }
        let fetched = match &firelens.config {
            Some(RouterConfig::Object(arn)) => {
                let why = |why: String| format!("container {}, config-file-value {arn}: {why}", router.name);
                Some(self.objects.read(arn).await.map_err(|error| match error {
                    ObjectError::Refused(text) => FirelensError::Refused(why(text)),
                    ObjectError::Away(text) => FirelensError::Passing(why(text)),
                })?)
            }
            _ => None,
        };
        let owner = router.user.as_deref().and_then(router_owner);
        let made = self.folders.make(id, Content { config, fetched, owner }).await;
        made.map_err(|error| FirelensError::Passing(error.to_string()))
    }

    /// Removes what a task's router found on the host.
    ///
    /// # Errors
    /// [`FirelensError::Passing`].
    pub async fn dismiss(&self, task: &TaskArn) -> Result<(), FirelensError> {
        self.remove_id(task.id()).await
    }

    /// The ids of the tasks of which something is there.
    ///
    /// # Errors
    /// [`FirelensError::Passing`].
    pub async fn list(&self) -> Result<Vec<String>, FirelensError> {
        self.folders.list().await.map_err(|error| FirelensError::Passing(error.to_string()))
    }

    /// Removes what is there of the task with that id.
    ///
    /// # Errors
    /// [`FirelensError::Passing`].
    pub async fn remove_id(&self, id: &str) -> Result<(), FirelensError> {
        self.folders.remove(id).await.map_err(|error| FirelensError::Passing(error.to_string()))
    }

    /// What of the host is in a container: nothing, but for a router.
    #[must_use]
    pub fn mounts(&self, spec: &TaskSpec, container: &ContainerSpec) -> Vec<HostMount> {
        let Some(firelens) = &container.firelens else {
            return Vec::new();
        };
        let id = spec.arn.id();
        let mount = |from: &Path, to: &str, read_only: bool| HostMount {
            host_path: from.display().to_string(),
            path: to.to_owned(),
            read_only,
            relabel: false,
        };
        let mut mounts = vec![
            mount(&self.folders.config(id), firelens.kind.config_path(), true),
            mount(&self.folders.sockets(id), SOCKET_FOLDER, false),
        ];
        if matches!(firelens.config, Some(RouterConfig::Object(_))) {
            mounts.push(mount(&self.folders.fetched(id), firelens.kind.fetched_path(), true));
        }
        mounts
    }

    /// Where a container's output goes, in words that the container engine knows.
    #[must_use]
    pub fn log(&self, spec: &TaskSpec, container: &ContainerSpec) -> Option<LogConfiguration> {
        let given = container.log.as_ref()?;
        if !container.logs_to_router() {
            return Some(given.clone());
        }
        let id = spec.arn.id();
        let socket = self.folders.sockets(id).join(SOCKET_NAME);
        let limit = given.options.get(BUFFER_LIMIT).map(|limit| ("fluentd-buffer-limit", limit.clone()));
        let options = [
            ("tag", format!("{}-firelens-{id}", container.name)),
            ("fluentd-address", format!("unix://{}", escaped(&socket.display().to_string()))),
            ("fluentd-async", self.asynchronous.to_string()),
            ("fluentd-sub-second-precision", true.to_string()),
        ];
        let options = options.into_iter().chain(limit).map(|(name, value)| (name.to_owned(), value));
        Some(LogConfiguration {
            driver: "fluentd".to_owned(),
            options: options.collect(),
            secret_options: Vec::new(),
        })
    }
}

/// What a container finds in its environment for the sake of the log router. `router_at` is the router's
/// address on the bridge, where it has one.
#[must_use]
pub fn variables(spec: &TaskSpec, container: &ContainerSpec, router_at: Option<IpAddr>) -> Vec<EnvVar> {
    let mut found = Vec::new();
    let mut var = |name: &str, value: String| found.push(EnvVar { name: name.to_owned(), value });
    if container.firelens.as_ref().is_some_and(|firelens| firelens.kind == RouterKind::Fluentd) {
        // The image's start script takes root away from itself without, and with it the socket.
        var("FLUENT_UID", "0".to_owned());
    }
    let host = match spec.network_mode {
        NetworkMode::Awsvpc => Some(IpAddr::from([127, 0, 0, 1])),
        NetworkMode::Bridge => router_at,
        NetworkMode::Host | NetworkMode::None => None,
    };
    if let Some(host) = host.filter(|_| container.logs_to_router()) {
        var("FLUENT_HOST", host.to_string());
        var("FLUENT_PORT", PORT.to_string());
    }
    found
}

/// A path as a URL has it.
fn escaped(path: &str) -> String {
    let plain = |b: &u8| b.is_ascii_alphanumeric() || b"/-._~".contains(b);
    path.bytes().map(|b| if plain(&b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

#[cfg(test)]
mod tests;
