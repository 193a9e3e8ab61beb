//! What comes out: a step in three phases. What it changed is persisted together with its report;
//! only then are its acts to be had.

use serde::{Deserialize, Serialize};

use super::container::Container;
use super::event::{Health, PortBinding};
use super::reason::{ErrorClass, FailureKind, StopCause, cut_reason};
use super::resource::ResourceKey;
use super::{ContainerStatus, Task, TaskStatus};
use crate::ids::{AttemptId, ContainerName, EngineId, GpuId};
use crate::spec::ContainerSpec;
use crate::units::{Millis, Timestamp};

/// The outcome of one event.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use = "a step has to be persisted, and its acts performed"]
pub struct Step {
    /// Whether the task's state changed and has to be persisted before anything else.
    pub changed: bool,
    /// What the control plane is to be told, persisted in the same transaction.
    pub report: Option<Report>,
    pub(super) acts: Vec<Act>,
}

impl Step {
    /// Whether nothing follows from it yet: there is nothing to tell and nothing to do.
    #[must_use]
    pub fn is_silent(&self) -> bool {
        self.report.is_none() && self.acts.is_empty()
    }

    /// Whether there is nothing to tell, and nothing to do but to release resources. Once it is on
    /// record that the task is to stop, that may go ahead of the record: after a crash the same follows
    /// from what the world is asked, and releasing is safe also when it was done before.
    #[must_use]
    pub fn only_releases(&self) -> bool {
        self.report.is_none()
            && !self.acts.is_empty()
            && self.acts.iter().all(|act| matches!(act, Act::Release { .. }))
    }

    /// Says that state and report are durable (or that nothing changed, or that the step
    /// [only releases](Self::only_releases)), and yields what is to be done now.
    #[must_use]
    pub fn persisted(self) -> Vec<Act> {
        self.acts
    }
}

/// Something to be done in the world. Every act with an attempt ends as one
/// [`super::Event::Done`] of that attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Act {
    /// Acquire a resource. One that is held already is held anew.
    Acquire {
        /// The attempt.
        attempt: AttemptId,
        /// The resource.
        resource: ResourceKey,
    },
    /// Release a resource. One that is not held is released already.
    Release {
        /// The attempt.
        attempt: AttemptId,
        /// The resource.
        resource: ResourceKey,
    },
    /// Make a container.
    Create {
        /// The attempt.
        attempt: AttemptId,
        /// The container.
        container: ContainerName,
        /// Its host ports, chosen and fixed ones.
        bindings: Vec<PortBinding>,
        /// The GPUs that are its alone.
        gpus: Vec<GpuId>,
        /// The cgroup that it goes under.
        cgroup_parent: Option<String>,
        /// The container whose network it joins, in `awsvpc` alone.
        holder: Option<EngineId>,
    },
    /// Start a container that does not run.
    Start {
        /// The attempt.
        attempt: AttemptId,
        /// The container.
        container: ContainerName,
        /// The engine's id.
        id: EngineId,
    },
    /// Ask the engine what is true of a container.
    Inspect {
        /// The attempt.
        attempt: AttemptId,
        /// The container.
        container: ContainerName,
        /// The engine's id.
        id: EngineId,
    },
    /// Stop a container.
    Stop {
        /// The attempt.
        attempt: AttemptId,
        /// The container.
        container: ContainerName,
        /// The engine's id.
        id: EngineId,
        /// Time between the stop signal and SIGKILL.
        grace: Millis,
        /// How often stopping it has failed before; above zero, it is killed.
        failed_before: u32,
    },
    /// Remove a container from the engine.
    Remove {
        /// The attempt.
        attempt: AttemptId,
        /// The container.
        container: ContainerName,
        /// The engine's id; by its name when none is known.
        id: Option<EngineId>,
    },
    /// Give up what is in flight under this attempt; its answer does not matter any more. A container that
    /// is made all the same is removed again.
    Abandon {
        /// The attempt.
        attempt: AttemptId,
    },
    /// Return what the ledger granted, or leave its waiting line.
    ReturnGrant,
    /// Forget the task: nothing of it is left.
    Forget,
}

/// What the control plane is told of a task: always the whole of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Its status.
    pub status: TaskStatus,
    /// Why it stopped or is stopping.
    pub stop: Option<StopCause>,
    /// What it waits for.
    pub waiting_for: String,
    /// Its containers.
    pub containers: Vec<ContainerReport>,
    /// What is known of its own network interface, where it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attachment: Option<AttachmentStatus>,
    /// When pulling began.
    pub pull_started_at: Option<Timestamp>,
    /// When pulling ended.
    pub pull_stopped_at: Option<Timestamp>,
    /// When all of it ran.
    pub started_at: Option<Timestamp>,
    /// When its first essential container ended.
    pub execution_stopped_at: Option<Timestamp>,
    /// When it was gone.
    pub stopped_at: Option<Timestamp>,
}

/// What is known of a task's own network interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum AttachmentStatus {
    /// Not the task's yet.
    Attaching,
    /// There, and the task's.
    Attached,
    /// Given back, or never taken and not needed any more.
    Detached,
}

/// What the control plane is told of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerReport {
    /// Its name.
    pub name: ContainerName,
    /// Its status, as ECS's users see it.
    pub status: ContainerStatus,
    /// The engine's id.
    pub id: Option<EngineId>,
    /// Its exit code.
    pub exit_code: Option<i32>,
    /// Why it stopped.
    pub reason: Option<String>,
    /// Where its ports are on the host.
    pub bindings: Vec<PortBinding>,
    /// The GPUs that are, or were, its alone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gpus: Vec<GpuId>,
    /// Digest of its image.
    pub digest: Option<String>,
    /// Its health.
    pub health: Option<Health>,
}

impl Report {
    /// What is to be told of the task as it stands.
    #[must_use]
    pub fn of(task: &Task) -> Self {
        let state = task.state();
        let containers = task
            .spec()
            .containers
            .iter()
            .zip(&state.containers)
            .map(|(spec, container)| ContainerReport {
                name: container.name.clone(),
                status: container.seen_status(),
                id: container.id.clone(),
                exit_code: container.exit_code(),
                reason: reason_of(spec, container).map(|reason| cut_reason(&reason)),
                bindings: if container.started_at.is_some() {
                    task.bindings(&container.name)
                } else {
                    Vec::new()
                },
                gpus: task.gpus(&container.name).to_vec(),
                digest: task.digest(&spec.image),
                health: container.health,
            })
            .collect();
        Self {
            status: state.status,
            stop: state.stop.clone().map(|stop| StopCause { reason: cut_reason(&stop.reason), ..stop }),
            waiting_for: if state.status == TaskStatus::Pending { task.waiting_for() } else { String::new() },
            containers,
            attachment: task.attachment(),
            pull_started_at: state.pull_started_at,
            pull_stopped_at: state.pull_stopped_at,
            started_at: state.started_at,
            execution_stopped_at: state.execution_stopped_at,
            stopped_at: state.stopped_at,
        }
    }
}

/// Why a container stopped, in ECS's words; `None` when its exit code says it all.
fn reason_of(spec: &ContainerSpec, container: &Container) -> Option<String> {
    if let Some(failure) = &container.failure {
        // An engine that is away is waited for, as the task says: nothing has failed.
        let waits = failure.kind == FailureKind::EngineAway && !container.is_stopped();
        return (!waits).then(|| failure.to_string());
    }
    if let Some(told) = super::restart::tell(container) {
        return Some(told);
    }
    let exit = container.exit.as_ref()?;
    if exit.oom_killed {
        let limit =
            spec.memory.map_or_else(|| "the task's limit".to_owned(), |memory| format!("limit {memory}"));
        let peak = exit.task_memory_peak.map(crate::units::Mebibytes::of_bytes);
        let peak = peak.map_or_else(String::new, |peak| format!(", peak of the task {peak}"));
        return Some(format!(
            "{}: Container killed due to memory usage ({limit}{peak})",
            ErrorClass::OutOfMemory.as_str()
        ));
    }
    if exit.with_engine {
        return Some("it ended with the container engine, which was restarted".to_owned());
    }
    exit.error.as_ref().map(|error| format!("{}: {error}", ErrorClass::DockerState.as_str()))
}
