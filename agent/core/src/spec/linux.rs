//! What a container may do beyond the ordinary, and what it is denied: the kernel's side of its
//! specification.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::environment::SecretRef;
use crate::units::Mebibytes;

/// ECS's `linuxParameters`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LinuxParameters {
    /// Kernel capabilities beyond the engine's default.
    pub add_capabilities: Vec<String>,
    /// Kernel capabilities of the engine's default that are taken away.
    pub drop_capabilities: Vec<String>,
    /// Devices of the host.
    pub devices: Vec<Device>,
    /// Whether an init process forwards signals and reaps zombies.
    pub init_process: bool,
    /// Size of `/dev/shm`; the engine's default where absent.
    pub shared_memory: Option<Mebibytes>,
    /// Swap beyond the container's memory; the engine's default where absent.
    pub max_swap: Option<Mebibytes>,
    /// How willingly the kernel swaps, 0 to 100; the engine's default where absent. Without `max_swap` it
    /// is ignored, as ECS ignores it, and cgroup v2 has no such thing.
    pub swappiness: Option<u8>,
    /// File systems in memory.
    pub tmpfs: Vec<Tmpfs>,
}

/// A device of the host in a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// Its path on the host.
    pub host_path: String,
    /// Its path in the container.
    pub container_path: String,
    /// Any of `r`, `w` and `m` (make nodes), in this order.
    pub permissions: String,
}

/// A file system in memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tmpfs {
    /// Where it is mounted.
    pub path: String,
    /// Its largest size.
    pub size: Mebibytes,
    /// Options of the mount.
    pub options: Vec<String>,
}

/// With whom the containers of a task share processes or IPC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Sharing {
    /// With the host.
    Host,
    /// With each other.
    Task,
    /// With nobody, not even the engine's default allows.
    None,
}

/// Where a container's output goes. `Debug` shows no values: tokens are among them.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogConfiguration {
    /// A log driver of the engine.
    pub driver: String,
    /// Its options.
    pub options: BTreeMap<String, String>,
    /// Options whose values are fetched when the container is made.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub secret_options: Vec<SecretRef>,
}

impl fmt::Debug for LogConfiguration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?}", self.driver, self.options.keys().collect::<Vec<_>>())
    }
}
