//! The state machine of a task.
//!
//! ```text
//!            Granted                     all run, bound in force
//!  Waiting ───────────▶ (resources, containers) ───────────▶ RUNNING
//!     │                          │                              │
//!     │ Stop / Never             │ Stop, essential one ended,   │
//!     ▼                          ▼ something cannot be had      ▼
//!  STOPPED ◀── grant returned ◀── everything released ◀── all containers stopped
//!     │ acknowledged, retention over
//!     ▼
//!  containers removed ──▶ forgotten
//! ```
//!
//! A task is told events by [`Task::handle`] and answers with a [`Step`]. `observe` and `failures`
//! take an event into the state, `plan` and `wind_down` decide what is to be done now, `timers` when
//! to ask again, `waits` what people are told of waiting; `container` and `resource` have tables of their own,
//! `graph` the dependencies, `restart` the policy of starting a container again, `host_goes` what a host that
//! goes down leaves them of time.
//!
//! Invariants, held by `tests/properties.rs`: at most one attempt is in flight for each node;
//! nothing starts before its dependencies hold; a stopped container is never started; STOPPED is
//! reported once every container is seen to be gone and every resource released; an answer to an
//! attempt that is not in flight changes nothing.

mod attempt;
mod container;
mod event;
mod failures;
mod graph;
mod host_goes;
mod observe;
mod plan;
mod reason;
mod resource;
mod restart;
mod step;
mod timers;
mod waits;
mod wind_down;

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub use attempt::{Attempt, AttemptKind};
pub use container::{Container, ContainerInput, ContainerStatus};
pub use event::{Acquired, Event, Exit, Fact, Health, Outcome, PortBinding};
pub use reason::{ErrorClass, Failure, FailureKind, MAX_REASON_BYTES, StopCause, StopCode, cut_reason};
pub use resource::{Resource, ResourceInput, ResourceKey, ResourceStatus, Yield};
pub use step::{Act, AttachmentStatus, ContainerReport, Report, Step};

use crate::ids::{AttemptId, ContainerName, GpuId};
use crate::resources::Shortfall;
use crate::spec::{NetworkMode, Sharing, TaskSpec};
use crate::units::{Millis, Timestamp};

/// The status of a task, as the agent reports it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum TaskStatus {
    /// On its way.
    Pending,
    /// Every container runs, or has run to its allowed end.
    Running,
    /// Gone: no process, no resource is left.
    Stopped,
}

impl TaskStatus {
    /// As ECS writes it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "PENDING",
            Self::Running => "RUNNING",
            Self::Stopped => "STOPPED",
        }
    }
}

/// Where the task stands with the ledger.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Admission {
    /// Nothing granted yet: what is missing.
    Waiting(Vec<Shortfall>),
    /// Granted.
    Granted,
    /// Returned.
    Returned,
}

/// What the operator set for every task of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// Time between SIGTERM and SIGKILL where the definition gives none.
    pub stop_timeout: Millis,
    /// How long stopped containers stay before they are removed.
    pub retention: Millis,
}

impl Default for Settings {
    /// ECS's defaults: 30 s and 3 h.
    fn default() -> Self {
        Self { stop_timeout: Millis::from_secs(30), retention: Millis::from_secs(3 * 3600) }
    }
}

/// Everything that changes about a task. What is persisted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskState {
    /// Where it stands with the ledger.
    pub admission: Admission,
    /// Why it is to stop; absent while it is to run.
    #[serde(default)]
    pub stop: Option<StopCause>,
    /// By when it has to be gone, because its host goes; absent while nobody is in a hurry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_by: Option<Timestamp>,
    /// Its status.
    pub status: TaskStatus,
    /// Its containers, in the order of the specification.
    pub containers: Vec<Container>,
    /// Its resources.
    pub resources: Vec<Resource>,
    /// The number of the next attempt.
    pub next_attempt: AttemptId,
    /// When the agent got it.
    pub created_at: Timestamp,
    /// When pulling began.
    #[serde(default)]
    pub pull_started_at: Option<Timestamp>,
    /// When pulling ended.
    #[serde(default)]
    pub pull_stopped_at: Option<Timestamp>,
    /// When all of it ran.
    #[serde(default)]
    pub started_at: Option<Timestamp>,
    /// When its first essential container ended.
    #[serde(default)]
    pub execution_stopped_at: Option<Timestamp>,
    /// When it was gone.
    #[serde(default)]
    pub stopped_at: Option<Timestamp>,
    /// Whether the control plane has its STOPPED durably.
    #[serde(default)]
    pub acknowledged: bool,
    /// Whether nothing of it is left to be kept.
    #[serde(default)]
    pub forgotten: bool,
}

/// A task: its specification, which never changes, and its state, which only [`Task::handle`]
/// changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Task {
    spec: Arc<TaskSpec>,
    settings: Settings,
    state: TaskState,
}

impl Task {
    /// A task that the control plane has just handed over.
    #[must_use]
    pub fn new(spec: Arc<TaskSpec>, settings: Settings, now: Timestamp) -> Self {
        let containers = spec.containers.iter().map(|c| Container::new(c.name.clone())).collect();
        let resources = needed_resources(&spec);
        let state = TaskState {
            admission: Admission::Waiting(Vec::new()),
            stop: None,
            stop_by: None,
            status: TaskStatus::Pending,
            containers,
            resources,
            next_attempt: AttemptId(1),
            created_at: now,
            pull_started_at: None,
            pull_stopped_at: None,
            started_at: None,
            execution_stopped_at: None,
            stopped_at: None,
            acknowledged: false,
            forgotten: false,
        };
        Self { spec, settings, state }
    }

    /// A task that was found running on the host while nothing is known of it: made from the labels
    /// of its containers, with the host ports and the GPUs that were chosen for them. Feed it [`Event::Restored`] next.
    #[must_use]
    pub fn adopted(
        spec: Arc<TaskSpec>,
        settings: Settings,
        bindings: &[PortBinding],
        gpus: &BTreeMap<ContainerName, Vec<GpuId>>,
        now: Timestamp,
    ) -> Self {
        let mut task = Self::new(spec, settings, now);
        task.state.admission = Admission::Granted;
        for resource in &mut task.state.resources {
            // The containers were made under a cgroup, in the task's namespace, with a folder of its router.
            resource.touched = matches!(
                resource.key,
                ResourceKey::Cgroup
                    | ResourceKey::Namespace
                    | ResourceKey::Interface
                    | ResourceKey::LogRouter
                    | ResourceKey::Faults
            );
            if let ResourceKey::Ports(container) = &resource.key {
                resource.yielded.ports =
                    bindings.iter().filter(|b| &b.container == container).cloned().collect();
                if !resource.yielded.ports.is_empty() {
                    resource.status = ResourceStatus::Ready;
                }
            }
            if let ResourceKey::Gpus(container) = &resource.key
                && let Some(chosen) = gpus.get(container).filter(|chosen| !chosen.is_empty())
            {
                resource.yielded.gpus.clone_from(chosen);
                resource.status = ResourceStatus::Ready;
            }
        }
        task
    }

    /// The same of a task of which nothing runs. What it held, others may have by now: it waits for its place like any
    /// other, and what is to be started again of it is made anew. Feed it [`Event::Restored`] next.
    #[must_use]
    pub fn found_at_rest(spec: Arc<TaskSpec>, settings: Settings, now: Timestamp) -> Self {
        let mut task = Self::adopted(spec, settings, &[], &BTreeMap::new(), now);
        task.state.admission = Admission::Waiting(Vec::new());
        task
    }

    /// A task as it was persisted. Feed it [`Event::Restored`] next.
    #[must_use]
    pub const fn restored(spec: Arc<TaskSpec>, settings: Settings, state: TaskState) -> Self {
        Self { spec, settings, state }
    }

    /// Takes an event and says what follows from it.
    pub fn handle(&mut self, now: Timestamp, event: Event) -> Step {
        let before = self.state.clone();
        self.observe(now, event);
        let acts = self.plan(now);
        let changed = self.state != before;
        let report = (changed && self.is_worth_telling(&before)).then(|| Report::of(self));
        Step { changed, report, acts }
    }

    /// Its specification.
    #[must_use]
    pub const fn spec(&self) -> &Arc<TaskSpec> {
        &self.spec
    }

    /// Its state, to be persisted or shown.
    #[must_use]
    pub const fn state(&self) -> &TaskState {
        &self.state
    }

    /// The host ports of a container: those that were chosen and those of the definition.
    #[must_use]
    pub fn bindings(&self, name: &ContainerName) -> Vec<PortBinding> {
        let Some(spec) = self.spec.container(name) else {
            return Vec::new();
        };
        let fixed = spec.ports.iter().filter_map(|mapping| {
            let host_ports = match self.spec.network_mode {
                NetworkMode::Bridge => mapping.static_host_ports()?,
                NetworkMode::Host => mapping.container,
                NetworkMode::None | NetworkMode::Awsvpc => return None,
            };
            Some(PortBinding {
                container: name.clone(),
                container_ports: mapping.container,
                host_ports,
                protocol: mapping.protocol,
            })
        });
        let chosen = self.resource(&ResourceKey::Ports(name.clone())).map(|r| r.yielded.ports.clone());
        fixed.chain(chosen.unwrap_or_default()).collect()
    }

    /// The GPUs that were chosen for a container; those that it had, once they are given back.
    #[must_use]
    pub fn gpus(&self, name: &ContainerName) -> &[GpuId] {
        let of_it =
            self.state.resources.iter().find(|r| matches!(&r.key, ResourceKey::Gpus(of) if of == name));
        of_it.map_or(&[], |resource| &resource.yielded.gpus)
    }

    /// The digest of an image of the task, where the registry gave one.
    #[must_use]
    pub fn digest(&self, image: &str) -> Option<String> {
        let resource =
            self.state.resources.iter().find(|r| matches!(&r.key, ResourceKey::Image(i) if i == image))?;
        resource.yielded.digest.clone()
    }

    /// What is known of its own network interface; none where it has none.
    #[must_use]
    pub fn attachment(&self) -> Option<AttachmentStatus> {
        self.resource(&ResourceKey::Interface).map(|interface| match interface.status {
            ResourceStatus::None | ResourceStatus::Acquiring => AttachmentStatus::Attaching,
            ResourceStatus::Ready | ResourceStatus::Releasing => AttachmentStatus::Attached,
            ResourceStatus::Gone => AttachmentStatus::Detached,
        })
    }

    /// The resource of that key, if the task has it.
    #[must_use]
    pub fn resource(&self, key: &ResourceKey) -> Option<&Resource> {
        self.state.resources.iter().find(|r| &r.key == key)
    }

    /// Whether it is to be stopped.
    #[must_use]
    pub const fn is_stopping(&self) -> bool {
        self.state.stop.is_some()
    }

    /// Whether it still counts against what the host can hold.
    #[must_use]
    pub fn holds_grant(&self) -> bool {
        self.state.admission == Admission::Granted
    }

    /// Whether the difference to an earlier state is one that the control plane's users see. What
    /// happens on the way up, and between the last process's end and STOPPED, is not told by itself.
    fn is_worth_telling(&self, before: &TaskState) -> bool {
        let now = &self.state;
        if now.status != before.status {
            return true;
        }
        let arrived = |task: &Self| task.attachment() == Some(AttachmentStatus::Attached);
        if arrived(self) && !arrived(&Self { state: before.clone(), ..self.clone() }) {
            return true;
        }
        match now.status {
            TaskStatus::Pending => {
                let chosen =
                    |state: &TaskState| state.resources.iter().filter(|r| !r.yielded.gpus.is_empty()).count();
                let ill = |state: &TaskState| {
                    state.containers.iter().map(|c| c.health == Some(Health::Unhealthy)).collect::<Vec<_>>()
                };
                chosen(now) != chosen(before)
                    || ill(now) != ill(before)
                    || Self { state: before.clone(), ..self.clone() }.waiting_for() != self.waiting_for()
            }
            TaskStatus::Running => {
                !now.containers.iter().all(Container::is_stopped)
                    && (now.stop.is_some() != before.stop.is_some()
                        || now
                            .containers
                            .iter()
                            .zip(&before.containers)
                            .any(|(a, b)| a.as_seen() != b.as_seen()))
            }
            TaskStatus::Stopped => false,
        }
    }
}

fn needed_resources(spec: &TaskSpec) -> Vec<Resource> {
    let mut keys = vec![ResourceKey::Cgroup];
    if spec.cpu.is_some() {
        keys.push(ResourceKey::CpuBound);
    }
    let awsvpc = spec.network_mode == NetworkMode::Awsvpc;
    if awsvpc || [spec.pid_mode, spec.ipc_mode].contains(&Some(Sharing::Task)) {
        keys.push(ResourceKey::Namespace);
    }
    if awsvpc {
        keys.push(ResourceKey::Interface);
    }
    if spec.containers.iter().any(|container| spec.has_values_elsewhere(container)) {
        keys.push(ResourceKey::Environment);
    }
    if spec.router().is_some() {
        keys.push(ResourceKey::LogRouter);
    }
    // Without a network there is no way to ask for them.
    if spec.task_role.is_some() && spec.network_mode != NetworkMode::None {
        keys.push(ResourceKey::Credentials);
    }
    if spec.takes_faults() {
        keys.push(ResourceKey::Faults);
    }
    for container in &spec.containers {
        let image = ResourceKey::Image(container.image.clone());
        if !keys.contains(&image) {
            keys.push(image);
        }
        if spec.network_mode == NetworkMode::Bridge && container.ports.iter().any(|p| p.host.is_none()) {
            keys.push(ResourceKey::Ports(container.name.clone()));
        }
        if container.gpus > 0 {
            keys.push(ResourceKey::Gpus(container.name.clone()));
        }
    }
    keys.into_iter().map(Resource::new).collect()
}
