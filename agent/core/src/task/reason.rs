//! Why a task or a container stopped, in the words that ECS's users know.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::ids::ContainerName;
use crate::units::Millis;

/// ECS's `stopCode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum StopCode {
    /// It never reached RUNNING.
    TaskFailedToStart,
    /// An essential container ended.
    EssentialContainerExited,
    /// A user stopped it.
    UserInitiated,
    /// A service's scheduler stopped it.
    ServiceSchedulerInitiated,
    /// The host is taken back.
    SpotInterruption,
    /// The host is going down.
    TerminationNotice,
    /// The host is not well.
    InfrastructureHealth,
}

impl StopCode {
    /// As ECS writes it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::TaskFailedToStart => "TaskFailedToStart",
            Self::EssentialContainerExited => "EssentialContainerExited",
            Self::UserInitiated => "UserInitiated",
            Self::ServiceSchedulerInitiated => "ServiceSchedulerInitiated",
            Self::SpotInterruption => "SpotInterruption",
            Self::TerminationNotice => "TerminationNotice",
            Self::InfrastructureHealth => "InfrastructureHealth",
        }
    }

    /// Reads ECS's spelling.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        [
            Self::TaskFailedToStart,
            Self::EssentialContainerExited,
            Self::UserInitiated,
            Self::ServiceSchedulerInitiated,
            Self::SpotInterruption,
            Self::TerminationNotice,
            Self::InfrastructureHealth,
        ]
        .into_iter()
        .find(|code| code.as_str() == text)
    }
}

/// Why a task stops: ECS's `stopCode` and `stoppedReason`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StopCause {
    /// The code.
    pub code: StopCode,
    /// The reason, for people.
    pub reason: String,
}

impl StopCause {
    /// What ECS says when an essential container ended.
    pub const ESSENTIAL_EXITED: &'static str = "Essential container in task exited";
    /// The same, where the host was started again meanwhile and cut it off.
    pub const CUT_OFF: &'static str = "Essential container in task exited: its host was restarted";
    /// The same, where the container engine was started again meanwhile and took it along.
    pub const WITH_ENGINE: &'static str = "Essential container in task exited: the container engine was restarted, which ends containers without live-restore";
    /// What ECS says when a user gave no reason.
    pub const BY_USER: &'static str = "Task stopped by user";

    /// A cause from its two parts.
    #[must_use]
    pub fn new(code: StopCode, reason: impl Into<String>) -> Self {
        Self { code, reason: reason.into() }
    }
}

/// Longest reason that is reported, in bytes.
pub const MAX_REASON_BYTES: usize = 1024;

/// Cuts a reason to [`MAX_REASON_BYTES`], at a character, keeping the beginning and the end:
/// engines put the cause last.
#[must_use]
pub fn cut_reason(reason: &str) -> String {
    if reason.len() <= MAX_REASON_BYTES {
        return reason.to_owned();
    }
    const GAP: &str = " … ";
    let half = (MAX_REASON_BYTES - GAP.len()) / 2;
    let head = (0..=half).rev().find(|i| reason.is_char_boundary(*i)).unwrap_or(0);
    let tail =
        (reason.len() - half..=reason.len()).find(|i| reason.is_char_boundary(*i)).unwrap_or(reason.len());
    format!("{}{GAP}{}", &reason[..head], &reason[tail..])
}

/// What kind of thing went wrong with an act: decides what comes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FailureKind {
    /// The container engine does not answer, or the host has nothing left to act with. Nothing is wrong with the
    /// task: try again.
    EngineAway,
    /// The call took too long; whether it had an effect is not known.
    TimedOut,
    /// A host port was taken by somebody else.
    PortTaken,
    /// The image is not there any more.
    NoSuchImage,
    /// It was refused; trying again would not help.
    Refused,
}

/// Why an act failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// The kind.
    pub kind: FailureKind,
    /// ECS's error class, such as `CannotPullContainerError`.
    pub class: ErrorClass,
    /// What happened, for people.
    pub detail: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.class.as_str(), self.detail)
    }
}

impl Failure {
    /// What the task is told of a failure of one of its containers.
    #[must_use]
    pub fn of(&self, container: &ContainerName) -> String {
        format!("{}: container {container}: {}", self.class.as_str(), self.detail)
    }

    /// A failure that trying again would not help.
    #[must_use]
    pub fn refused(class: ErrorClass, detail: impl Into<String>) -> Self {
        Self { kind: FailureKind::Refused, class, detail: detail.into() }
    }

    /// A call that did not return in time.
    #[must_use]
    pub fn timed_out(to: &str, waited: Millis) -> Self {
        Self {
            kind: FailureKind::TimedOut,
            class: ErrorClass::DockerTimeout,
            detail: format!("Could not transition to {to}; timed out after waiting {waited}"),
        }
    }
}

/// ECS's error classes, as its users meet them in a container's `reason`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ErrorClass {
    /// The image could not be pulled.
    CannotPullContainer,
    /// The container could not be made.
    CannotCreateContainer,
    /// The container could not be started.
    CannotStartContainer,
    /// The container could not be stopped.
    CannotStopContainer,
    /// The container could not be inspected.
    CannotInspectContainer,
    /// The engine did not answer in time.
    DockerTimeout,
    /// The task's cgroup could not be made.
    Cgroup,
    /// Another resource of the task could not be had.
    ResourceInitialization,
    /// The container is not there any more.
    ContainerVanished,
    /// A process of the container was killed for want of memory.
    OutOfMemory,
    /// The engine says that the container's state is an error.
    DockerState,
    /// A dependency can never be fulfilled.
    TaskDependency,
}

impl ErrorClass {
    /// As ECS writes it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::CannotPullContainer => "CannotPullContainerError",
            Self::CannotCreateContainer => "CannotCreateContainerError",
            Self::CannotStartContainer => "CannotStartContainerError",
            Self::CannotStopContainer => "CannotStopContainerError",
            Self::CannotInspectContainer => "CannotInspectContainerError",
            Self::DockerTimeout => "DockerTimeoutError",
            Self::Cgroup => "CgroupError",
            Self::ResourceInitialization => "ResourceInitializationError",
            Self::ContainerVanished => "ContainerVanishedError",
            Self::OutOfMemory => "OutOfMemoryError",
            Self::DockerState => "DockerStateError",
            Self::TaskDependency => "TaskDependencyError",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_reason_keeps_its_beginning_and_its_end() {
        let long = format!("CannotStartContainerError: {}the cause", "é".repeat(2000));
        let cut = cut_reason(&long);
        assert!(cut.len() <= MAX_REASON_BYTES);
        assert!(cut.starts_with("CannotStartContainerError") && cut.ends_with("the cause"));
    }
}
