//! What comes in: wishes of the control plane, answers to acts, and observations of the world.

use serde::{Deserialize, Serialize};

use super::reason::{Failure, StopCause};
use crate::ids::{AttemptId, ContainerName, EngineId, GpuId};
use crate::resources::Shortfall;
use crate::units::{PortRange, Protocol, Timestamp};

/// Something that a task is told.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// The task is to be stopped. The first cause stands.
    Stop(StopCause),
    /// The host goes: the task is to be stopped, and to be gone by then. Of several, the earliest counts.
    HostGoes {
        /// Why it is to stop, unless it is to already.
        cause: StopCause,
        /// When nothing can run here any more.
        by: Timestamp,
    },
    /// The ledger granted what the task needs.
    Granted,
    /// The ledger has nothing yet: what is missing.
    Waiting(Vec<Shortfall>),
    /// The host can never hold the task: what is missing even when it is empty.
    Never(Vec<Shortfall>),
    /// What is true of a container now.
    Observed {
        /// The container.
        container: ContainerName,
        /// What is true of it.
        fact: Fact,
    },
    /// An act came to its end.
    Done {
        /// The attempt that it was.
        attempt: AttemptId,
        /// How it ended.
        outcome: Outcome,
    },
    /// The agent started again: what is true of every container of the task that the engine
    /// knows. Containers that are not listed do not exist.
    Restored(Vec<(ContainerName, Fact)>),
    /// The same, and the host itself was started again since: whatever ran was cut off.
    Rebooted(Vec<(ContainerName, Fact)>),
    /// The report that the task stopped is durable with the control plane.
    Acknowledged,
    /// The container that holds the task's network namespace has ended, and with it the network.
    NamespaceLost {
        /// The container.
        holder: EngineId,
    },
    /// The time that [`super::Task::next_deadline`] named has come.
    Deadline,
}

/// How an act ended.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// A resource is ready.
    Acquired(Acquired),
    /// A resource is gone.
    Released,
    /// What is true of the container after the act.
    Fact(Fact),
    /// The container was removed from the engine.
    Removed,
    /// It did not work.
    Failed(Failure),
}

/// What acquiring a resource yielded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Acquired {
    /// Nothing but the resource itself.
    Plain,
    /// The cgroup that containers go under, if task limits are on.
    Cgroup {
        /// What the engine is given as the containers' parent.
        parent: Option<String>,
    },
    /// The host ports that were chosen, for mappings that left them open.
    Ports(Vec<PortBinding>),
    /// The GPUs that were chosen.
    Gpus(Vec<GpuId>),
    /// The image.
    Image {
        /// The digest that the registry gave it.
        digest: Option<String>,
        /// How many bytes came for it; 0 when it was here, or came for another task.
        pulled_bytes: u64,
    },
    /// The network namespace.
    Namespace {
        /// The container that holds it.
        holder: EngineId,
    },
}

/// A container's port and its place on the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortBinding {
    /// The container.
    pub container: ContainerName,
    /// The ports inside.
    pub container_ports: PortRange,
    /// The ports on the host, as many.
    pub host_ports: PortRange,
    /// The protocol.
    pub protocol: Protocol,
}

/// What is true of a container, as the engine says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Fact {
    /// It exists and was never started.
    Created {
        /// The engine's id.
        id: EngineId,
    },
    /// Its main process runs.
    Running {
        /// The engine's id.
        id: EngineId,
        /// When it started.
        started_at: Timestamp,
        /// Its health, where it has a health check.
        health: Option<Health>,
    },
    /// Its main process is gone, and the engine has let go of its ports.
    Exited {
        /// The engine's id.
        id: EngineId,
        /// How it ended.
        exit: Exit,
    },
    /// The engine knows no such container.
    Missing,
    /// It exists, and the engine did not say more of it in time: it is busy with it.
    Silent {
        /// The engine's id.
        id: EngineId,
    },
}

/// How a container ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// The exit code, 128 + signal for a process that was killed.
    pub code: i32,
    /// Whether the kernel killed a process of it for want of memory.
    pub oom_killed: bool,
    /// With that, the most bytes of memory that its task had in use, where the kernel tells.
    #[serde(default)]
    pub task_memory_peak: Option<u64>,
    /// Whether it ended while the engine was restarted, and takes its containers along: it has no live-restore.
    #[serde(default)]
    pub with_engine: bool,
    /// What the engine says went wrong, if anything.
    pub error: Option<String>,
    /// When it started, if it did.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub finished_at: Option<Timestamp>,
}

impl Exit {
    /// That of one that ran and of which the engine says that it was never started: its last words about it were lost
    /// with the power. The code is the one that engines give to what they find dead.
    pub(super) const fn forgotten(started_at: Option<Timestamp>) -> Self {
        Self {
            code: 255,
            oom_killed: false,
            task_memory_peak: None,
            with_engine: false,
            error: None,
            started_at,
            finished_at: None,
        }
    }

    /// Whether both are the same end. What was found out about it apart from the engine may differ.
    pub(super) fn is(&self, other: &Self) -> bool {
        let told = |exit: &Self| (exit.code, exit.started_at, exit.finished_at);
        told(self) == told(other)
    }
}

/// The health of a container that has a health check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Health {
    /// Not known yet.
    Unknown,
    /// The last check passed.
    Healthy,
    /// As many checks failed in a row as the definition allows.
    Unhealthy,
}
