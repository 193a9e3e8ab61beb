//! The machine of a resource: None → Acquiring → Ready → Releasing → Gone.
//!
//! Release is safe without acquire: what was never acquired is gone at once.

use serde::{Deserialize, Serialize};

use super::attempt::{Attempt, AttemptKind};
use super::event::PortBinding;
use crate::ids::{AttemptId, ContainerName, EngineId, GpuId};
use crate::units::Timestamp;

/// Names a resource of a task.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum ResourceKey {
    /// The task's cgroup, with every bound but the CPU quota.
    Cgroup,
    /// The CPU quota of the task's cgroup, put in force once the containers have started.
    CpuBound,
    /// The host ports that the agent chooses for a container.
    Ports(ContainerName),
    /// The GPUs that the agent chooses for a container: its alone until the task is gone.
    Gpus(ContainerName),
    /// An image, by the reference of the definition.
    Image(String),
    /// What is kept elsewhere for the containers that are still to be made: secrets, environment files.
    /// Held in memory alone, so that it is fetched anew after a restart of the agent.
    Environment,
    /// The folder of the task's log router on the host: its configuration, and the socket that the
    /// others log to.
    LogRouter,
    /// Credentials of the task's role, which the control plane sends.
    Credentials,
    /// The task's network namespace, and the container that holds it open.
    Namespace,
    /// The task's own network interface, configured and guarded in its namespace.
    Interface,
    /// That the task may break its network for a while. What it broke is whole again once this is released.
    Faults,
}

impl ResourceKey {
    /// The resource that has to be there before this one, and is released only after it.
    #[must_use]
    pub const fn rests_on(&self) -> Option<Self> {
        match self {
            Self::Interface => Some(Self::Namespace),
            _ => None,
        }
    }

    /// Whether something has to be done to let go of it. An image stays for the next task, and the
    /// CPU quota goes with the cgroup.
    #[must_use]
    pub const fn needs_release(&self) -> bool {
        matches!(
            self,
            Self::Cgroup
                | Self::Ports(_)
                | Self::Gpus(_)
                | Self::Environment
                | Self::LogRouter
                | Self::Credentials
                | Self::Namespace
                | Self::Interface
                | Self::Faults
        )
    }
}

/// Where a resource is on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum ResourceStatus {
    /// Not acquired.
    None,
    /// Being acquired.
    Acquiring,
    /// There.
    Ready,
    /// Being released.
    Releasing,
    /// Released, or never acquired and not needed any more.
    Gone,
}

/// What a resource yielded when it became ready.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Yield {
    /// Of the cgroup: what the engine is given as the containers' parent.
    #[serde(default)]
    pub cgroup_parent: Option<String>,
    /// Of the ports: the ports chosen.
    #[serde(default)]
    pub ports: Vec<PortBinding>,
    /// Of the GPUs: which were chosen.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gpus: Vec<GpuId>,
    /// Of an image: how many bytes came for this task.
    #[serde(default)]
    pub pulled_bytes: u64,
    /// Of an image: its digest.
    #[serde(default)]
    pub digest: Option<String>,
    /// Of the namespace: the container that holds it, whose network the others join.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub holder: Option<EngineId>,
}

/// A resource of a task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resource {
    /// Which one.
    pub key: ResourceKey,
    /// Where it is on its way.
    pub status: ResourceStatus,
    /// What is in flight.
    #[serde(default)]
    pub attempt: Option<Attempt>,
    /// Whether acquiring it was ever begun: it may be held even while it is not ready.
    #[serde(default)]
    pub touched: bool,
    /// How often the thing in flight, or to be tried again, has failed so far.
    #[serde(default)]
    pub tries: u32,
    /// When to try again.
    #[serde(default)]
    pub retry_at: Option<Timestamp>,
    /// Why it could not be had the last time, while it is tried again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
    /// What it yielded.
    #[serde(default)]
    pub yielded: Yield,
}

/// What can happen to a resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResourceInput {
    /// Somebody needs it.
    Need,
    /// Nobody needs it any more.
    Drop,
    /// The attempt in flight worked.
    Succeeded,
    /// The attempt in flight failed.
    Failed,
    /// The agent started again; whatever was in flight is to be done anew.
    Restart,
    /// What was acquired proved useless and has to be acquired anew.
    Lost,
}

impl ResourceStatus {
    /// All of them, in order.
    pub const ALL: [Self; 5] = [Self::None, Self::Acquiring, Self::Ready, Self::Releasing, Self::Gone];

    /// The table: where `input` leads from here. `None` where it changes nothing.
    #[must_use]
    pub const fn on(self, input: ResourceInput) -> Option<Self> {
        use ResourceInput as I;
        match (self, input) {
            (Self::None, I::Need) => Some(Self::Acquiring),
            (Self::None, I::Drop) => Some(Self::Gone),
            (Self::Acquiring, I::Succeeded) => Some(Self::Ready),
            (Self::Acquiring, I::Failed | I::Restart) | (Self::Ready, I::Lost) => Some(Self::None),
            // What is being acquired is released at once: releasing is safe whatever came of it.
            (Self::Acquiring | Self::Ready, I::Drop) => Some(Self::Releasing),
            (Self::Releasing, I::Succeeded) => Some(Self::Gone),
            (Self::Releasing, I::Failed | I::Restart) => Some(Self::Ready),
            _ => None,
        }
    }
}

impl Resource {
    /// A resource that nobody has acquired yet.
    #[must_use]
    pub fn new(key: ResourceKey) -> Self {
        Self {
            key,
            status: ResourceStatus::None,
            attempt: None,
            touched: false,
            tries: 0,
            retry_at: None,
            trouble: None,
            yielded: Yield::default(),
        }
    }

    /// Moves along the table; tells whether anything changed.
    pub(super) fn apply(&mut self, input: ResourceInput) -> bool {
        match self.status.on(input) {
            Some(next) => {
                self.status = next;
                true
            }
            None => false,
        }
    }

    /// Puts an attempt in flight.
    pub(super) fn begin(&mut self, id: AttemptId, kind: AttemptKind, now: Timestamp) {
        self.attempt = Some(Attempt { id, kind, since: now });
        self.retry_at = None;
        self.touched |= kind == AttemptKind::Acquire;
    }

    /// Whether a new attempt may begin: none is in flight and no pause is on.
    pub(super) fn is_free(&self) -> bool {
        self.attempt.is_none() && self.retry_at.is_none()
    }

    /// Whether it is there.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.status == ResourceStatus::Ready
    }
}
