//! Work in flight, as state: at most one attempt for each container and resource, kept with the
//! task, so that after a crash the world can be asked what became of it.

use serde::{Deserialize, Serialize};

use crate::ids::AttemptId;
use crate::units::{Millis, Timestamp};

/// What is being tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum AttemptKind {
    /// A resource is being acquired.
    Acquire,
    /// A resource is being released.
    Release,
    /// A container is being made.
    Create,
    /// A container is being started.
    Start,
    /// The engine is being asked about a container.
    Inspect,
    /// A container is being stopped.
    Stop,
    /// A container is being removed.
    Remove,
}

/// One attempt in flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    /// Its number in the task.
    pub id: AttemptId,
    /// What is being tried.
    pub kind: AttemptKind,
    /// Since when.
    pub since: Timestamp,
}

/// The pause after the failure number `tries`: 100 ms, doubling, at most 5 s.
#[must_use]
pub(super) fn pause(tries: u32) -> Millis {
    Millis((100u64 << tries.saturating_sub(1).min(6)).min(5_000))
}
