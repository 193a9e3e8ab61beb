//! A task definition as it was registered.

use serde::{Deserialize, Serialize};

/// A task definition: immutable but for its status.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TaskDefinition {
    /// Its family.
    pub family: String,
    /// Its revision, from 1.
    pub revision: u32,
}
