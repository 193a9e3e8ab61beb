//! The records of the control plane: what is stored, one type per noun.
//!
//! A record holds desired state (written by the API) and observed state (written by the agents'
//! side) in separate fields, so that the two never overwrite each other.

pub mod task_definition;

use std::collections::BTreeMap;

use berth_core::resources::Resources;
use berth_core::spec::{ContainerSpec, TaskSpec};
use berth_core::units::Timestamp;
use serde::{Deserialize, Serialize};

pub use task_definition::TaskDefinition;

/// Tags by key.
pub type Tags = BTreeMap<String, String>;

/// A cluster.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Cluster {
    /// Its ARN.
    pub arn: String,
    /// Its name.
    pub name: String,
    /// `ACTIVE` or `INACTIVE`.
    pub active: bool,
    /// Settings by name, such as `containerInsights`.
    #[serde(default)]
    pub settings: BTreeMap<String, String>,
    /// Tags.
    #[serde(default)]
    pub tags: Tags,
    /// When it was made.
    pub created_at: Timestamp,
}

/// What an operator wants of a container instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum InstanceStatus {
    /// Takes tasks.
    Active,
    /// Takes no new tasks.
    Draining,
    /// Deregistered.
    Inactive,
}

impl InstanceStatus {
    /// As ECS writes it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Active => "ACTIVE",
            Self::Draining => "DRAINING",
            Self::Inactive => "INACTIVE",
        }
    }
}

/// A container instance: one host.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Instance {
    /// Its ARN.
    pub arn: String,
    /// Name of its cluster.
    pub cluster: String,
    /// The host's own key; empty for an instance registered through the JSON API.
    pub host_key: String,
    /// Whom the certificate names that it was registered with; empty without one, and in older stores.
    #[serde(default)]
    pub host_id: String,
    /// What the operator wants of it.
    pub status: InstanceStatus,
    /// Whether it drains because its host said that it goes, and not because an operator wants it to.
    #[serde(default)]
    pub drained_by_host: bool,
    /// Counts changes, as ECS's `version` does.
    pub version: u64,
    /// What it can hold; ports are the reserved ones.
    pub total: Resources,
    /// The ids of the GPUs that `total` counts; none where only their number is known.
    #[serde(default)]
    pub gpu_ids: Vec<String>,
    /// Attributes; an empty value is an attribute without one.
    pub attributes: BTreeMap<String, String>,
    /// Version of the agent.
    pub agent_version: String,
    /// Commit of the agent.
    pub agent_hash: String,
    /// Version of the engine, as `DockerVersion: 20.10.24`.
    pub engine_version: String,
    /// The host's name, for people.
    #[serde(default)]
    pub hostname: String,
    /// Tags.
    #[serde(default)]
    pub tags: Tags,
    /// When it registered first.
    pub registered_at: Timestamp,
    /// The outbox life whose state changes are applied, and the last one applied.
    #[serde(default)]
    pub outbox: OutboxCursor,
    /// Whether its host knew other records than these, and not all that it runs has been taken up yet: until
    /// then nothing there is stopped for want of a record.
    #[serde(default)]
    pub estranged: bool,
}

/// How far the state changes of an instance have been applied.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutboxCursor {
    /// The outbox life.
    pub epoch: String,
    /// The last state change applied of it.
    pub sequence: u64,
}

/// The status of a task as users see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum TaskStatus {
    /// Waits for its interface or capacity.
    Provisioning,
    /// With the agent.
    Pending,
    /// All containers run.
    Running,
    /// Being stopped.
    Stopping,
    /// Gone.
    Stopped,
}

impl TaskStatus {
    /// As ECS writes it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Provisioning => "PROVISIONING",
            Self::Pending => "PENDING",
            Self::Running => "RUNNING",
            Self::Stopping => "STOPPING",
            Self::Stopped => "STOPPED",
        }
    }
}

/// Why a task stops.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StopCause {
    /// ECS's `stopCode`.
    pub code: String,
    /// ECS's `stoppedReason`.
    pub reason: String,
}

/// A task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Task {
    /// Its ARN.
    pub arn: String,
    /// Name of its cluster.
    pub cluster: String,
    /// ARN of its container instance.
    pub instance: String,
    /// ARN of its task definition.
    pub task_definition: String,
    /// Its group, `family:<family>` unless given.
    pub group: String,
    /// Who started it.
    #[serde(default)]
    pub started_by: Option<String>,
    /// Whether it is a record on the word of its host alone.
    #[serde(default)]
    pub adopted: bool,
    /// Whether programs may be started in its containers from afar.
    #[serde(default)]
    pub execute_command: bool,
    /// The overrides of RunTask as they came (ECS's JSON shape), `{}` when none.
    pub overrides: serde_json::Value,
    /// What the agent is to run; the definition with the overrides applied.
    pub spec: TaskSpec,
    /// Tags.
    #[serde(default)]
    pub tags: Tags,
    /// `clientToken` of the RunTask call and a digest of its parameters.
    #[serde(default)]
    pub client_token: Option<(String, String)>,
    /// Whether it is to be stopped (desired state).
    #[serde(default)]
    pub stop_requested: Option<StopCause>,
    /// Until when scale-in and deployments are to leave it alone (desired state); it may have passed.
    #[serde(default)]
    pub protected_until: Option<Timestamp>,
    /// Counts changes, as ECS's `version` does.
    pub version: u64,
    /// When it was placed.
    pub created_at: Timestamp,
    /// When a stop was first on its way.
    #[serde(default)]
    pub stopping_at: Option<Timestamp>,
    /// What the agent has told (observed state).
    pub observed: ObservedTask,
}

impl Task {
    /// Whether it is to run or to be gone.
    #[must_use]
    pub fn wants_running(&self) -> bool {
        self.stop_requested.is_none()
            && self.observed.stop.is_none()
            && self.observed.status != TaskStatus::Stopped
    }

    /// Whether a service runs it, as its group says.
    #[must_use]
    pub fn is_of_service(&self) -> bool {
        self.group.starts_with("service:")
    }

    /// Until when scale-in and deployments leave it alone; `None` when they do not.
    #[must_use]
    pub fn protection(&self, now: Timestamp) -> Option<Timestamp> {
        self.protected_until.filter(|until| *until > now && self.observed.status != TaskStatus::Stopped)
    }

    /// ECS's `lastStatus`.
    #[must_use]
    pub fn last_status(&self) -> TaskStatus {
        self.observed.status
    }
}

/// What an agent told about a task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ObservedTask {
    /// Last status.
    pub status: TaskStatus,
    /// Why it stopped or is stopping.
    #[serde(default)]
    pub stop: Option<StopCause>,
    /// Its containers, in the order of the definition.
    pub containers: Vec<ObservedContainer>,
    /// What its agent told of its interface: `ATTACHING`, `ATTACHED` or `DETACHED`.
    #[serde(default)]
    pub attachment: Option<String>,
    /// What it waits for.
    #[serde(default)]
    pub waiting_for: String,
    /// When pulling began.
    #[serde(default)]
    pub pull_started_at: Option<Timestamp>,
    /// When pulling ended.
    #[serde(default)]
    pub pull_stopped_at: Option<Timestamp>,
    /// When it ran.
    #[serde(default)]
    pub started_at: Option<Timestamp>,
    /// When its first essential container ended.
    #[serde(default)]
    pub execution_stopped_at: Option<Timestamp>,
    /// When it was gone.
    #[serde(default)]
    pub stopped_at: Option<Timestamp>,
}

impl ObservedTask {
    /// That of a task of which no agent told anything yet; `arn_of` names its containers.
    #[must_use]
    pub fn unseen(spec: &TaskSpec, mut arn_of: impl FnMut(&ContainerSpec) -> String) -> Self {
        let unseen = |container: &ContainerSpec| ObservedContainer {
            arn: arn_of(container),
            name: container.name.to_string(),
            status: TaskStatus::Pending,
            runtime_id: None,
            exit_code: None,
            reason: None,
            network_bindings: Vec::new(),
            image_digest: None,
            health: container.health_check.as_ref().map(|_| "UNKNOWN".to_owned()),
            gpu_ids: Vec::new(),
        };
        Self {
            // Until its interface is there.
            status: if spec.attachment.is_some() { TaskStatus::Provisioning } else { TaskStatus::Pending },
            stop: None,
            containers: spec.containers.iter().map(unseen).collect(),
            attachment: None,
            waiting_for: String::new(),
            pull_started_at: None,
            pull_stopped_at: None,
            started_at: None,
            execution_stopped_at: None,
            stopped_at: None,
        }
    }
}

/// What an agent told about a container.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ObservedContainer {
    /// Its ARN: `arn:…:container/<cluster>/<task id>/<uuid>`.
    pub arn: String,
    /// Its name.
    pub name: String,
    /// `PENDING`, `RUNNING` or `STOPPED`.
    pub status: TaskStatus,
    /// The engine's id.
    #[serde(default)]
    pub runtime_id: Option<String>,
    /// Exit code.
    #[serde(default)]
    pub exit_code: Option<i32>,
    /// Why it stopped.
    #[serde(default)]
    pub reason: Option<String>,
    /// Where its ports are.
    #[serde(default)]
    pub network_bindings: Vec<NetworkBinding>,
    /// Digest of its image.
    #[serde(default)]
    pub image_digest: Option<String>,
    /// `HEALTHY`, `UNHEALTHY` or `UNKNOWN`; absent without a health check.
    #[serde(default)]
    pub health: Option<String>,
    /// The GPUs that its agent chose for it.
    #[serde(default)]
    pub gpu_ids: Vec<String>,
}

/// Where a container's port is on the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkBinding {
    /// The host's address.
    pub bind_ip: String,
    /// First container port.
    pub container_port: u16,
    /// Last container port of a range.
    #[serde(default)]
    pub container_port_last: Option<u16>,
    /// First host port.
    pub host_port: u16,
    /// `tcp` or `udp`.
    pub protocol: String,
}
