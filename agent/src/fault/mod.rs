//! What tasks do to their own networks, to see how they bear it: ports that swallow packets, packets that come
//! late or never (AWS FIS, "Amazon ECS task actions"). What was done is known from the kernel alone, and ends
//! with the task.
//!
//! | part | its one job |
//! | --- | --- |
//! | `request` | what a task asks for, in ECS's words |
//! | `plan` | what that is in the kernel's: rules, queueing disciplines, filters |
//! | `kernel` | puts it in force, looks at it, undoes it |
//! | `probe` | what this kernel can do of it |
//! | `off` | a host that does nothing of the kind |

pub mod kernel;
pub mod off;
mod plan;
pub mod probe;
mod request;

use std::collections::BTreeSet;

use berth_core::spec::TaskSpec;
use futures_util::future::BoxFuture;

pub use self::request::{Fault, Hole, Impairment, Request, Subject};

/// A kind of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Packets of a port are swallowed.
    BlackHole,
    /// Packets come late.
    Latency,
    /// Packets do not come.
    PacketLoss,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::BlackHole, Self::Latency, Self::PacketLoss];

    /// As ECS writes it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::BlackHole => "network-blackhole-port",
            Self::Latency => "network-latency",
            Self::PacketLoss => "network-packet-loss",
        }
    }
}

/// What is to be done about a fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Operation {
    /// It begins.
    Start,
    /// It ends.
    Stop,
    /// Nothing; how is it?
    Status,
}

impl Operation {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Start, Self::Stop, Self::Status];

    /// As ECS writes it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Stop => "stop",
            Self::Status => "status",
        }
    }
}

/// How a fault is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// It is in force.
    Running,
    /// It is not.
    NotRunning,
    /// It is not any more.
    Stopped,
}

impl Status {
    /// As ECS writes it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::NotRunning => "not-running",
            Self::Stopped => "stopped",
        }
    }
}

/// Why there is no fault, or still one. The text is for users.
#[derive(Debug, thiserror::Error)]
pub enum FaultError {
    /// One that holds packets up is there already: there is room for one.
    #[error("There is already one {} fault running", .0.as_str().replace('-', " "))]
    Running(Kind),
    /// The task has no network yet, or none any more.
    #[error("the task has no network to be broken: it is starting or ending")]
    Closed,
    /// This host cannot.
    #[error("{0}")]
    Unsupported(String),
    /// The kernel refuses.
    #[error("internal error: {what}: {source}")]
    Kernel {
        /// What was tried.
        what: String,
        /// What it says.
        source: std::io::Error,
    },
}

/// The networks of tasks, as far as tasks may break them. One thing at a time is done to a network.
pub trait Faults: Send + Sync + 'static {
    /// The task may break its network from now on.
    fn open(&self, task: &TaskSpec);
    /// The task may not any more, and what it broke is whole again. Done again, it changes nothing.
    ///
    /// # Errors
    /// [`FaultError`].
    fn close<'a>(&'a self, task: &'a TaskSpec) -> BoxFuture<'a, Result<(), FaultError>>;
    /// Does what a task asks for.
    ///
    /// # Errors
    /// [`FaultError`].
    fn ask<'a>(&'a self, task: &'a TaskSpec, request: Request) -> BoxFuture<'a, Result<Status, FaultError>>;
    /// The ids of this agent's tasks that have broken the host's own network.
    ///
    /// # Errors
    /// [`FaultError`].
    fn list(&self) -> BoxFuture<'_, Result<Vec<String>, FaultError>>;
    /// Makes whole what the task of that id broke of the host's own network.
    ///
    /// # Errors
    /// [`FaultError`].
    fn undo<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<(), FaultError>>;
    /// The kinds that this host can do.
    fn kinds(&self) -> BTreeSet<Kind>;
}
