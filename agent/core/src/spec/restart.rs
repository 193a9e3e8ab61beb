//! When a container that ended is started again: ECS's `restartPolicy`.

use serde::{Deserialize, Serialize};

use crate::units::Millis;

/// A policy that is enabled.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestartPolicy {
    /// Exit codes after which it is left as it is.
    pub ignored_exit_codes: Vec<i32>,
    /// How long it must have run to be started again.
    pub attempt_period: Millis,
}
