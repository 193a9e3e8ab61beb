//! The container engine, in the agent's words: the port that every adapter fulfils.
//!
//! Calls are plain: one attempt, one answer, no retries and no decisions; deadlines are the
//! caller's. Events are a hint that something happened; [`Runtime::list`] and
//! [`Runtime::inspect`] are the fact.

mod details;
pub mod docker;
mod exec;
pub mod fake;
pub mod holder;

use std::collections::BTreeMap;

use berth_core::ids::{ContainerInstanceArn, ContainerName, EngineId, GpuId, TaskArn};
use berth_core::spec::{ContainerSpec, EnvVar, LogConfiguration, TaskSpec};
use berth_core::task::{Exit, Fact, PortBinding};
use berth_core::units::{Millis, Timestamp};
use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream, StreamExt};
use std::sync::Arc;

pub use self::details::{Checked, Details, Interface, Mounted};
pub use self::exec::{Exec, ExecRequest, Said};

/// What went wrong with a call to the engine.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// The engine did not answer at all: socket away, connection refused or cut before an answer.
    #[error("the container engine does not answer: {0}")]
    Unavailable(String),
    /// The engine has no such container.
    #[error("no such container: {0}")]
    NoSuchContainer(String),
    /// The engine has no such image.
    #[error("no such image: {0}")]
    NoSuchImage(String),
    /// A host port could not be bound.
    #[error("{0}")]
    PortTaken(String),
    /// A container of the same task and name is there, and was started before.
    #[error("container {0} of this task was started before")]
    StartedBefore(EngineId),
    /// The engine answered with an error; the text is the engine's own.
    #[error("{0}")]
    Refused(String),
}

/// What the engine is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct EngineInfo {
    /// Its version, such as `20.10.24`.
    pub version: String,
    /// The API version in use, as (major, minor).
    pub api: (u32, u32),
    /// The cgroup version that it uses, 1 or 2.
    pub cgroup_version: u8,
    /// Whether it makes cgroups through systemd.
    pub cgroup_systemd: bool,
    /// Its log drivers.
    pub log_drivers: Vec<String>,
    /// Its volume drivers, those of plug-ins that it has not used yet among them.
    pub volume_drivers: Vec<String>,
    /// Where it keeps its data.
    pub root: String,
    /// Its security options, such as `name=apparmor`.
    pub security_options: Vec<String>,
    /// Whether containers run on while it is stopped or restarted.
    pub live_restore: bool,
}

/// A container to be made.
#[derive(Debug, Clone)]
pub struct CreateRequest {
    /// The engine's name for it; unique for task and container, so that a repeated request finds
    /// the container that the first one made.
    pub name: String,
    /// The whole task.
    pub task: Arc<TaskSpec>,
    /// The container, by its index in the task.
    pub container: usize,
    /// Its host ports, chosen and fixed ones alike.
    pub bindings: Vec<PortBinding>,
    /// The GPUs that are its alone.
    pub gpus: Vec<GpuId>,
    /// The containers that it reaches by name: (the engine's name for it, the alias).
    pub links: Vec<(String, String)>,
    /// The engine's names for the volumes of the task that it mounts, by their names in the task.
    pub volumes: BTreeMap<String, String>,
    /// The containers whose mount points it has as well: (the engine's name for it, whether read-only).
    pub volumes_from: Vec<(String, bool)>,
    /// Files and folders of the agent's that it mounts. They are there.
    pub host_mounts: Vec<HostMount>,
    /// Where its output goes, by a driver of the engine; the engine's own driver where absent.
    pub log: Option<LogConfiguration>,
    /// The cgroup that it goes under; the engine's default when absent.
    pub cgroup_parent: Option<String>,
    /// The container whose network it joins, in `awsvpc` alone.
    pub holder: Option<EngineId>,
    /// Labels of the agent, over those of the user.
    pub labels: BTreeMap<String, String>,
    /// What was fetched for it.
    pub fetched: Fetched,
}

/// A file or folder of the host in a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostMount {
    /// Its path on the host.
    pub host_path: String,
    /// Its path in the container.
    pub path: String,
    /// Whether the container may not change it.
    pub read_only: bool,
    /// Whether it is to get the container's own SELinux label.
    pub relabel: bool,
}

/// What was fetched for a container from where it is kept; it lives in memory alone. `Debug` shows
/// names, no values.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Fetched {
    /// Environment under that of the definition: environment files. A later entry wins.
    pub below: Vec<EnvVar>,
    /// Environment over that of the definition: secrets.
    pub above: Vec<EnvVar>,
    /// Options of the log driver.
    pub log_options: Vec<EnvVar>,
}

impl CreateRequest {
    /// The container's specification.
    #[must_use]
    pub fn spec(&self) -> &ContainerSpec {
        &self.task.containers[self.container]
    }
}

/// A container that carries our labels.
#[derive(Debug, Clone, PartialEq)]
pub struct Listed {
    /// The engine's id.
    pub id: EngineId,
    /// The task that it belongs to.
    pub task: TaskArn,
    /// Its name in the task.
    pub container: ContainerName,
    /// The instance that made it.
    pub instance: Option<ContainerInstanceArn>,
    /// The task's specification from its label, as JSON.
    pub spec: Option<String>,
    /// What is true of it as far as a listing tells; `None` when an inspection is needed.
    pub fact: Option<Fact>,
}

/// Something happened to a container of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineEvent {
    /// When, by the engine's clock, in nanoseconds: the cursor to go on from.
    pub time_ns: i64,
    /// The container.
    pub id: EngineId,
    /// Its task.
    pub task: TaskArn,
    /// Its name in the task.
    pub container: ContainerName,
    /// What happened.
    pub kind: EngineEventKind,
}

impl EngineEvent {
    /// When, to the millisecond.
    #[must_use]
    pub fn time(&self) -> Timestamp {
        Timestamp(u64::try_from(self.time_ns / 1_000_000).unwrap_or_default())
    }
}

/// What happened to a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EngineEventKind {
    /// Its main process started.
    Started,
    /// Its main process is gone.
    Died {
        /// Its exit code, where the engine says.
        exit_code: Option<i32>,
    },
    /// A process in it was killed for want of memory.
    OutOfMemory,
    /// Its health changed.
    Health,
    /// It was removed from the engine.
    Removed,
}

/// Parts of what a container has said, as they come.
pub type LogStream = BoxStream<'static, Result<bytes::Bytes, RuntimeError>>;

/// A container engine.
pub trait Runtime: Send + Sync + 'static {
    /// Connects if need be and tells what the engine is.
    fn info(&self) -> BoxFuture<'_, Result<EngineInfo, RuntimeError>>;
    /// Makes a container, or finds the one that an earlier request of the same name made for the
    /// same task and container.
    ///
    /// # Errors
    /// [`RuntimeError::NoSuchImage`] when the image has to be pulled first.
    fn create(&self, request: CreateRequest) -> BoxFuture<'_, Result<EngineId, RuntimeError>>;
    /// Starts a container that does not run. Starting a running one changes nothing.
    ///
    /// # Errors
    /// [`RuntimeError::PortTaken`] when a host port cannot be bound; the container did not start.
    fn start<'a>(&'a self, id: &'a EngineId) -> BoxFuture<'a, Result<(), RuntimeError>>;
    /// Sends the container's stop signal, waits for `grace`, kills it; returns when it is gone, with
    /// how it ended where the engine told that on the way. A container that does not run, or does
    /// not exist, is stopped already.
    fn stop<'a>(
        &'a self,
        id: &'a EngineId,
        grace: Millis,
    ) -> BoxFuture<'a, Result<Option<Exit>, RuntimeError>>;
    /// Kills a container at once; one that does not run is dead already.
    fn kill<'a>(&'a self, id: &'a EngineId) -> BoxFuture<'a, Result<(), RuntimeError>>;
    /// Removes a container with its anonymous volumes; one that is gone is removed already.
    fn remove<'a>(&'a self, id: &'a EngineId) -> BoxFuture<'a, Result<(), RuntimeError>>;
    /// Removes a volume unless a container still has it; one that is gone is removed already.
    fn remove_volume<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<(), RuntimeError>>;
    /// What is true of a container now: [`Fact::Missing`] when there is none.
    fn inspect<'a>(&'a self, id: &'a EngineId) -> BoxFuture<'a, Result<Fact, RuntimeError>>;
    /// A container in detail; `None` when there is none.
    fn details<'a>(&'a self, id: &'a EngineId) -> BoxFuture<'a, Result<Option<Details>, RuntimeError>>;
    /// What a container has said: all of it, or its last lines; with `follow`, also what it says from now
    /// on. Not every log driver can tell.
    fn logs<'a>(
        &'a self,
        id: &'a EngineId,
        tail: Option<u32>,
        follow: bool,
    ) -> BoxFuture<'a, Result<LogStream, RuntimeError>>;
    /// Starts a program in a container that runs.
    fn exec<'a>(
        &'a self,
        id: &'a EngineId,
        request: ExecRequest,
    ) -> BoxFuture<'a, Result<Exec, RuntimeError>>;
    /// Tells the terminal of such a program its size, in columns and rows.
    fn exec_resize<'a>(
        &'a self,
        exec: &'a str,
        columns: u16,
        rows: u16,
    ) -> BoxFuture<'a, Result<(), RuntimeError>>;
    /// How such a program ended; `None` while it runs.
    fn exec_exit<'a>(&'a self, exec: &'a str) -> BoxFuture<'a, Result<Option<i32>, RuntimeError>>;
    /// All containers that carry our labels, whatever their state.
    fn list(&self) -> BoxFuture<'_, Result<Vec<Listed>, RuntimeError>>;
    /// Events of containers that carry our labels, from `since_ns` (exclusive) on. The stream ends
    /// with an error when the connection is lost; whoever reads it lists and begins anew. It is
    /// connected when the future resolves: what happens afterwards is not missed.
    fn events(
        &self,
        since_ns: Option<i64>,
    ) -> BoxFuture<'_, Result<BoxStream<'static, Result<EngineEvent, RuntimeError>>, RuntimeError>>;
    /// Whether the engine still knows of an event of that moment, which it told of before: then it was not started
    /// again since. That it does not, may mean nothing: engines forget.
    fn remembers(&self, event_ns: i64) -> BoxFuture<'_, Result<bool, RuntimeError>> {
        let _ = event_ns;
        Box::pin(std::future::ready(Ok(false)))
    }
    /// The local image of that reference, if there is one.
    fn image<'a>(&'a self, reference: &'a str) -> BoxFuture<'a, Result<Option<ImageFacts>, RuntimeError>>;
    /// All images that have a name, an entry for each of their names.
    fn images(&self) -> BoxFuture<'_, Result<Vec<LocalImage>, RuntimeError>>;
    /// Takes a name from an image, and removes the image with its last name. False when a container has it.
    fn remove_image<'a>(&'a self, reference: &'a str) -> BoxFuture<'a, Result<bool, RuntimeError>>;
    /// Gives an image another name.
    fn tag<'a>(&'a self, from: &'a str, to: &'a str) -> BoxFuture<'a, Result<(), RuntimeError>>;
    /// Stopped containers that no agent has made, with when they ended, or were made where they never ran.
    fn strangers(&self) -> BoxFuture<'_, Result<Vec<(EngineId, Timestamp)>, RuntimeError>>;
    /// Pulls an image and says what it is then.
    fn pull<'a>(&'a self, request: PullRequest<'a>) -> BoxFuture<'a, Result<ImageFacts, RuntimeError>>;
    /// The engine's time, for cursors.
    fn now(&self) -> Timestamp;
}

/// How many inspections are asked for at once: they are short, and the engine answers them beside
/// each other.
const INSPECTIONS: usize = 8;

/// Inspects many containers, several at a time; the answers come in the order of the ids.
pub async fn inspect_all(
    runtime: &dyn Runtime,
    ids: &[EngineId],
) -> Vec<(EngineId, Result<Fact, RuntimeError>)> {
    let inspections = ids.iter().map(|id| async move { (id.clone(), runtime.inspect(id).await) });
    stream::iter(inspections).buffered(INSPECTIONS).collect().await
}

/// An image to be pulled.
pub struct PullRequest<'a> {
    /// The image.
    pub reference: &'a str,
    /// The login of its registry, where it wants one.
    pub auth: Option<RegistryAuth>,
    /// Longest time until the registry says anything.
    pub begin: Millis,
    /// Longest silence afterwards.
    pub inactivity: Millis,
    /// Hears how far it is.
    pub progress: &'a (dyn Fn(Pulling) + Send + Sync),
}

/// How far a pull is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Pulling {
    /// Bytes that have come.
    pub bytes: u64,
    /// Bytes of the layers whose size is known; more may become known.
    pub of: u64,
}

/// An image that the engine has, by one of its names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalImage {
    /// The name, with a tag.
    pub name: String,
    /// When it was made.
    pub made_at: Timestamp,
    /// How large it is on the disk; layers that it shares with others count for each.
    pub bytes: u64,
    /// Whether it is a Berth agent's own.
    pub of_agent: bool,
}

/// What the engine knows of an image.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ImageFacts {
    /// The image's id.
    pub id: String,
    /// The digest of the repository that it came from, `sha256:…`; absent for an image made here.
    pub digest: Option<String>,
}

/// Credentials for a registry. `Debug` shows nothing of them.
#[derive(Clone)]
pub struct RegistryAuth {
    /// User name.
    pub username: String,
    /// Password or token.
    pub password: String,
    /// The registry's address.
    pub server: String,
}

impl std::fmt::Debug for RegistryAuth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RegistryAuth({})", self.server)
    }
}

/// Labels on every container. The first five are those of ECS's agent.
pub mod labels {
    /// The cluster's name.
    pub const CLUSTER: &str = "com.amazonaws.ecs.cluster";
    /// The task's ARN.
    pub const TASK_ARN: &str = "com.amazonaws.ecs.task-arn";
    /// The container's name in the task.
    pub const CONTAINER_NAME: &str = "com.amazonaws.ecs.container-name";
    /// The family of the task's definition.
    pub const FAMILY: &str = "com.amazonaws.ecs.task-definition-family";
    /// The revision of the task's definition.
    pub const REVISION: &str = "com.amazonaws.ecs.task-definition-version";
    /// The ARN of the instance that made the container.
    pub const INSTANCE: &str = "io.berth.container-instance-arn";
    /// The agent's namespace on this host: agents that share an engine leave each other's
    /// containers alone.
    pub const AGENT: &str = "io.berth.agent";
    /// Of a holder: the same namespace. A holder has no other label of the agent's.
    pub const HOLDER: &str = "io.berth.holder";
    /// Of the image that an agent runs from, and so of its container. Nobody cleans these up.
    pub const PROGRAM: &str = "io.berth.program";
    /// The task's specification as JSON, to rebuild a lost state from.
    pub const SPEC: &str = "io.berth.task-spec";
}
