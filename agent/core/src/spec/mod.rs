//! What a task is to be: the validated specification of a task and its containers.
//!
//! A [`TaskSpec`] can only be made from fields that passed every check, also when it is read back
//! from the state file or from a container's label. The rules are those of ECS's task definition
//! (developer guide, "Task definition parameters").

mod check;
mod drivers;
mod environment;
mod firelens;
mod linux;
mod restart;
mod volume;

use std::collections::BTreeMap;
use std::ops::Deref;

use serde::{Deserialize, Serialize};

use crate::attachment::Attachment;
use crate::ids::{ContainerName, Family, TaskArn};
use crate::resources::{Ports, Resources};
use crate::units::{CpuUnits, Mebibytes, Millis, PortRange, Protocol};

pub use self::check::InvalidSpec;
pub use self::environment::{EnvVar, SecretRef};
pub use self::firelens::{
    BUFFER_LIMIT, EXCLUDE_PATTERN, FIRELENS_DRIVER, Firelens, INCLUDE_PATTERN, RouterConfig, RouterKind,
    RouterSecret, check_router_user, router_owner,
};
pub use self::linux::{Device, LinuxParameters, LogConfiguration, Sharing, Tmpfs};
pub use self::restart::RestartPolicy;
pub use self::volume::{EngineVolume, MountPoint, Volume, VolumeSource, VolumesFrom};

/// Most containers that a task definition may have.
pub const MAX_CONTAINERS: usize = 10;

/// How the containers of a task are connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "lowercase")]
pub enum NetworkMode {
    /// A namespace for each container on the engine's bridge.
    #[default]
    Bridge,
    /// The host's own network stack.
    Host,
    /// Loopback only.
    None,
    /// One network interface for the task, shared by its containers.
    Awsvpc,
}

impl NetworkMode {
    /// As ECS writes it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Bridge => "bridge",
            Self::Host => "host",
            Self::None => "none",
            Self::Awsvpc => "awsvpc",
        }
    }
}

/// A port of a container and where it is to be found on the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortMapping {
    /// The container's port, or a range of them.
    pub container: PortRange,
    /// The host's first port; `None` lets the agent choose from its dynamic range.
    pub host: Option<u16>,
    /// The protocol.
    pub protocol: Protocol,
}

impl PortMapping {
    /// The host ports, where they are fixed by the definition.
    #[must_use]
    pub fn static_host_ports(&self) -> Option<PortRange> {
        let first = self.host?;
        PortRange::new(first, first.checked_add(self.container.count() - 1)?)
    }
}

/// What another container must have reached before this one starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Condition {
    /// It was started.
    Start,
    /// It ran to its end, whatever the exit code.
    Complete,
    /// It ran to its end with exit code 0.
    Success,
    /// Its health check passed.
    Healthy,
}

/// One entry of `dependsOn`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dependency {
    /// The container that is waited for.
    pub container: ContainerName,
    /// What it must have reached.
    pub condition: Condition,
}

/// One entry of `links`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// The container that is reached.
    pub container: ContainerName,
    /// The name that it is reached by.
    pub alias: String,
}

/// A health check that the engine runs inside the container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthCheck {
    /// `["CMD", …]` or `["CMD-SHELL", line]`.
    pub command: Vec<String>,
    /// Time between two checks.
    pub interval: Millis,
    /// Time after which a check counts as failed.
    pub timeout: Millis,
    /// Failures in a row before the container is unhealthy.
    pub retries: u32,
    /// Time after the start in which failures do not count.
    pub start_period: Millis,
}

/// A resource limit of the container's processes (`setrlimit`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ulimit {
    /// The kernel's name in lower case, such as `nofile`.
    pub name: String,
    /// The soft limit.
    pub soft: i64,
    /// The hard limit.
    pub hard: i64,
}

/// What a container is to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerSpec {
    /// Its name, unique in the task.
    pub name: ContainerName,
    /// The image as the definition names it.
    pub image: String,
    /// Whether the task ends with it.
    pub essential: bool,
    /// Relative CPU weight inside the task; 0 when the definition gives none.
    #[serde(default)]
    pub cpu: CpuUnits,
    /// Hard memory limit.
    #[serde(default)]
    pub memory: Option<Mebibytes>,
    /// Soft memory limit; what placement counts.
    #[serde(default)]
    pub memory_reservation: Option<Mebibytes>,
    /// Replaces the image's entry point.
    #[serde(default)]
    pub entry_point: Option<Vec<String>>,
    /// Replaces the image's command.
    #[serde(default)]
    pub command: Option<Vec<String>>,
    /// Environment, later entries win.
    #[serde(default)]
    pub environment: Vec<EnvVar>,
    /// Files of more environment, under `environment`; of a name in two, the earlier file wins.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub environment_files: Vec<String>,
    /// Variables whose values are fetched when the container is made.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<SecretRef>,
    /// Ports.
    #[serde(default)]
    pub ports: Vec<PortMapping>,
    /// What must be reached before this container starts.
    #[serde(default)]
    pub depends_on: Vec<Dependency>,
    /// How long others wait for this container to reach their condition.
    #[serde(default)]
    pub start_timeout: Option<Millis>,
    /// Time between SIGTERM and SIGKILL; the agent's default where absent.
    #[serde(default)]
    pub stop_timeout: Option<Millis>,
    /// User (and group) of the processes.
    #[serde(default)]
    pub user: Option<String>,
    /// Working directory.
    #[serde(default)]
    pub working_directory: Option<String>,
    /// Host name inside.
    #[serde(default)]
    pub hostname: Option<String>,
    /// Labels of the user.
    #[serde(default)]
    pub docker_labels: BTreeMap<String, String>,
    /// Whether the root file system is read-only.
    #[serde(default)]
    pub readonly_root_filesystem: bool,
    /// Whether the container has all of the host's powers.
    #[serde(default)]
    pub privileged: bool,
    /// Whether standard input is kept open.
    #[serde(default)]
    pub interactive: bool,
    /// Whether there is a terminal.
    #[serde(default)]
    pub pseudo_terminal: bool,
    /// Health check.
    #[serde(default)]
    pub health_check: Option<HealthCheck>,
    /// Process limits.
    #[serde(default)]
    pub ulimits: Vec<Ulimit>,
    /// Lines for `/etc/hosts`: (host name, address).
    #[serde(default)]
    pub extra_hosts: Vec<(String, String)>,
    /// Other containers of the task that this one reaches by name (`bridge` alone). A link counts
    /// as a dependency with [`Condition::Start`].
    #[serde(default)]
    pub links: Vec<Link>,
    /// DNS servers.
    #[serde(default)]
    pub dns_servers: Vec<String>,
    /// DNS search domains.
    #[serde(default)]
    pub dns_search_domains: Vec<String>,
    /// Capabilities, devices, shared memory, swap.
    #[serde(default)]
    pub linux: LinuxParameters,
    /// Kernel parameters: (name, value).
    #[serde(default)]
    pub system_controls: Vec<(String, String)>,
    /// Security options of the engine.
    #[serde(default)]
    pub security_options: Vec<String>,
    /// Whether it has no network at all, whatever the task's mode.
    #[serde(default)]
    pub disable_networking: bool,
    /// Where its output goes; the engine's own driver where absent.
    #[serde(default)]
    pub log: Option<LogConfiguration>,
    /// Volumes of the task in this container.
    #[serde(default)]
    pub mount_points: Vec<MountPoint>,
    /// Mount points of other containers, taken over. One counts as a [`Condition::Start`] dependency.
    #[serde(default)]
    pub volumes_from: Vec<VolumesFrom>,
    /// Whether it is started again after it ended; never where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restart_policy: Option<RestartPolicy>,
    /// Where the login of its image's registry is kept, in the manner of a secret's `valueFrom`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repository_credentials: Option<String>,
    /// How it is the log router of its task, if it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub firelens: Option<Firelens>,
    /// Its ARN; empty where the control plane gave none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub arn: String,
    /// How many whole GPUs of the host are its alone.
    #[serde(default)]
    pub gpus: u32,
}

impl ContainerSpec {
    /// A container with nothing but a name, an image and a hard memory limit; essential.
    #[must_use]
    pub fn minimal(name: ContainerName, image: impl Into<String>, memory: Mebibytes) -> Self {
        Self {
            name,
            image: image.into(),
            essential: true,
            cpu: CpuUnits(0),
            memory: Some(memory),
            memory_reservation: None,
            entry_point: None,
            command: None,
            environment: Vec::new(),
            environment_files: Vec::new(),
            secrets: Vec::new(),
            ports: Vec::new(),
            depends_on: Vec::new(),
            start_timeout: None,
            stop_timeout: None,
            user: None,
            working_directory: None,
            hostname: None,
            docker_labels: BTreeMap::new(),
            readonly_root_filesystem: false,
            privileged: false,
            interactive: false,
            pseudo_terminal: false,
            health_check: None,
            ulimits: Vec::new(),
            extra_hosts: Vec::new(),
            links: Vec::new(),
            dns_servers: Vec::new(),
            dns_search_domains: Vec::new(),
            linux: LinuxParameters::default(),
            system_controls: Vec::new(),
            security_options: Vec::new(),
            disable_networking: false,
            log: None,
            mount_points: Vec::new(),
            volumes_from: Vec::new(),
            restart_policy: None,
            repository_credentials: None,
            firelens: None,
            arn: String::new(),
            gpus: 0,
        }
    }
}

/// The fields of a task specification before they are checked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskFields {
    /// The task.
    pub arn: TaskArn,
    /// Family of its definition.
    pub family: Family,
    /// Revision of its definition.
    pub revision: u32,
    /// Network mode.
    pub network_mode: NetworkMode,
    /// Hard CPU bound of the whole task.
    #[serde(default)]
    pub cpu: Option<CpuUnits>,
    /// Hard memory bound of the whole task.
    #[serde(default)]
    pub memory: Option<Mebibytes>,
    /// The containers.
    pub containers: Vec<ContainerSpec>,
    /// The task's own network interface, in `awsvpc` alone. A task that was not placed yet has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attachment: Option<Attachment>,
    /// Whose processes the containers see; their own where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid_mode: Option<Sharing>,
    /// With whom they share IPC; the engine's default where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipc_mode: Option<Sharing>,
    /// Volumes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<Volume>,
    /// The ARN of the role that its containers get credentials of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task_role: Option<String>,
    /// Whether its containers may break its network for a while.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub fault_injection: bool,
}

/// A task specification that passed every check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "TaskFields", into = "TaskFields")]
pub struct TaskSpec(TaskFields);

impl Deref for TaskSpec {
    type Target = TaskFields;
    fn deref(&self) -> &TaskFields {
        &self.0
    }
}

impl From<TaskSpec> for TaskFields {
    fn from(spec: TaskSpec) -> Self {
        spec.0
    }
}

/// The host ports that a mapping binds for certain; none where the agent chooses or none is bound.
fn host_ports(mode: NetworkMode, mapping: &PortMapping) -> Option<PortRange> {
    match mode {
        NetworkMode::Bridge => mapping.static_host_ports(),
        NetworkMode::Host => Some(mapping.container),
        NetworkMode::None | NetworkMode::Awsvpc => None,
    }
}

impl TaskSpec {
    /// What the ledger counts for the task: its own CPU and memory, or the sums over its
    /// containers (reservation before hard limit); static host ports; an interface in `awsvpc`; the
    /// GPUs of all containers.
    #[must_use]
    pub fn need(&self) -> Resources {
        let mut ports = Ports::default();
        for container in &self.containers {
            for mapping in &container.ports {
                if let Some(range) = host_ports(self.network_mode, mapping) {
                    ports.of_mut(mapping.protocol).extend(range.ports());
                }
            }
        }
        let cpu = self.cpu.unwrap_or_else(|| {
            CpuUnits(self.containers.iter().fold(0, |sum: u32, c| sum.saturating_add(c.cpu.0)))
        });
        let memory = self.memory.unwrap_or_else(|| {
            Mebibytes(self.containers.iter().fold(0, |sum: u32, c| {
                sum.saturating_add(c.memory_reservation.or(c.memory).unwrap_or_default().0)
            }))
        });
        let enis = u32::from(self.network_mode == NetworkMode::Awsvpc);
        let gpus = self.containers.iter().fold(0, |sum: u32, c| sum.saturating_add(c.gpus));
        Resources { cpu, memory, ports, enis, gpus }
    }

    /// Whether its network can be broken for a while: it wants that, and has a network that is told from those
    /// of other tasks on the bridge.
    #[must_use]
    pub fn takes_faults(&self) -> bool {
        self.fault_injection && matches!(self.network_mode, NetworkMode::Host | NetworkMode::Awsvpc)
    }

    /// The container of that name.
    #[must_use]
    pub fn container(&self, name: &ContainerName) -> Option<&ContainerSpec> {
        self.containers.iter().find(|c| &c.name == name)
    }

    /// Whether a container has ports whose host side the agent chooses.
    #[must_use]
    pub fn has_dynamic_ports(&self) -> bool {
        self.network_mode == NetworkMode::Bridge
            && self.containers.iter().any(|c| c.ports.iter().any(|p| p.host.is_none()))
    }
}
