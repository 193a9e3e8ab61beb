//! The agent's configuration: environment variables under the names that operators of ECS hosts
//! know, ours beyond them under `BERTH_`. Read once, checked whole, before anything is bound.

mod cleanup;
mod gpus;
mod host_life;
mod logins;
mod read;
mod secrets;
mod variables;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use berth_core::ids::ClusterName;
use berth_core::resources::Ports;
use berth_core::units::{Mebibytes, Millis, PortRange};

pub use self::gpus::Gpus;
pub use self::host_life::HostLife;
pub use self::logins::{EcrAccess, RegistryLogin};
pub use self::secrets::{Secret, SecretSource, VaultSource, VaultToken};
pub use self::variables::{SECRET_VARIABLES, Strings, VARIABLES, Variables, without_secrets};

/// When images are pulled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PullBehavior {
    /// Always tried; where it fails, an image that is here already is used.
    #[default]
    Default,
    /// Always, and a failure stops the task.
    Always,
    /// When the agent has not pulled it before.
    Once,
    /// When it is not here.
    PreferCached,
}

/// What the log looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogFormat {
    /// Human on a terminal, journald under systemd, JSON otherwise.
    #[default]
    Auto,
    /// `key=value` text.
    Text,
    /// One JSON object a line.
    Json,
}

/// When a log file is rolled over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rollover {
    /// With every full hour.
    Hourly,
    /// When it would grow beyond that many bytes.
    Size(u64),
}

/// Where the log goes, and how much of it is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogFile {
    /// The file; older ones have `.1`, `.2` and so on behind its name.
    pub path: PathBuf,
    /// When it is rolled over.
    pub rollover: Rollover,
    /// How many older files are kept.
    pub keep: u32,
}

/// Everything that an operator can set.
#[derive(Debug, Clone)]
#[expect(missing_docs, reason = "each field is the variable of the table VARIABLES, which says what it is")]
pub struct Config {
    pub cluster: ClusterName,
    pub cluster_is_default: bool,
    pub backend: Option<String>,
    pub docker_host: String,
    pub data_dir: PathBuf,
    pub checkpoint: bool,
    pub reserved_ports: Ports,
    pub reserved_memory: Mebibytes,
    pub stop_timeout: Millis,
    pub start_timeout: Millis,
    pub create_timeout: Millis,
    pub cleanup_wait: Millis,
    pub cleanup_wait_jitter: Millis,
    pub pull_behavior: PullBehavior,
    pub pull_inactivity_timeout: Millis,
    pub pull_begin_timeout: Millis,
    pub pull_timeout: Millis,
    pub registry_mirrors: BTreeMap<String, Vec<String>>,
    pub log_level: String,
    pub log_format: LogFormat,
    pub log_file: Option<LogFile>,
    pub log_drivers: Vec<String>,
    pub firelens_async: bool,
    pub disable_privileged: bool,
    pub selinux: bool,
    pub apparmor: bool,
    pub task_limits: TaskLimits,
    pub cgroup_path: PathBuf,
    pub cgroup_root: String,
    pub cgroup_cpu_period: Millis,
    pub pids_limit: Option<u32>,
    pub task_eni: bool,
    pub block_instance_metadata: bool,
    pub high_density: bool,
    pub instance_type: Option<String>,
    pub task_interfaces: Option<u32>,
    pub task_interface: Option<String>,
    pub pause_pool: usize,
    pub attributes: BTreeMap<String, String>,
    pub dynamic_ports: PortRange,
    pub disable_health_check: bool,
    pub gpus: Option<Gpus>,
    pub host_life: HostLife,
    pub introspection: Option<SocketAddr>,
    pub runtime_stats: bool,
    pub endpoint: Option<SocketAddr>,
    pub endpoint_rate: (u32, u32),
    pub metadata_files: bool,
    pub task_role: bool,
    pub task_role_on_host: bool,
    pub run_dir: PathBuf,
    pub remote_exec: bool,
    pub join_token: Option<Secret>,
    pub ca_fingerprint: Option<String>,
    pub server_name: Option<String>,
    pub secrets: Option<SecretSource>,
    pub object_store: Option<String>,
    pub image_cleanup: Option<CleanUp>,
    pub ecr: Option<EcrAccess>,
    pub registry_logins: std::collections::HashMap<String, RegistryLogin>,
}

/// When images that nobody uses are removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CleanUp {
    /// How often.
    pub interval: Millis,
    /// How long ago they must have been pulled.
    pub age: Millis,
    /// How many at a time.
    pub at_once: usize,
    /// The share of the disk in percent above which that does not count, and below which it does again.
    pub pressure: (u8, u8),
    /// Whether images and stopped containers of somebody else are removed, too: after how long, and which
    /// images not.
    pub untracked: Option<(Millis, Vec<String>)>,
}

/// Whether tasks have cgroups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TaskLimits {
    /// They do, and the agent does not start where it cannot make them.
    Required,
    /// They do where the host allows it.
    WherePossible,
    /// They do not.
    Off,
}

/// A value that does not do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{variable}={value:?}: expected {expected}")]
pub struct InvalidValue {
    /// The variable.
    pub variable: &'static str,
    /// Its value.
    pub value: String,
    /// What is accepted.
    pub expected: String,
}

/// All values that do not do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InvalidConfig(pub Vec<InvalidValue>);

impl std::error::Error for InvalidConfig {}

impl std::fmt::Display for InvalidConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (at, invalid) in self.0.iter().enumerate() {
            write!(f, "{}{invalid}", if at == 0 { "" } else { "\n" })?;
        }
        Ok(())
    }
}
