//! A task definition as ECS's JSON has it, typed: what validation and the task specification read.
//!
//! The members are ECS's own; its API reference says what they mean. Those that are only stored
//! and echoed are kept as JSON.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use berth_core::spec::FIRELENS_DRIVER;
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::api::error::{ApiError, ApiResult};

/// CPU units that a task may have, by its definition or by an override.
pub(in crate::api) const TASK_CPU: RangeInclusive<u32> = 128..=196_608;
/// The least memory of a container in MiB.
pub(in crate::api) const LEAST_MEMORY: i64 = 6;

/// The whole definition.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(in crate::api) struct Definition {
    pub(in crate::api) family: String,
    pub(in crate::api) container_definitions: Vec<Container>,
    pub(in crate::api) volumes: Vec<Volume>,
    pub(in crate::api) network_mode: Option<String>,
    pub(in crate::api) cpu: Option<String>,
    pub(in crate::api) memory: Option<String>,
    pub(in crate::api) requires_compatibilities: Vec<String>,
    pub(in crate::api) placement_constraints: Vec<Constraint>,
    pub(in crate::api) task_role_arn: Option<String>,
    pub(in crate::api) execution_role_arn: Option<String>,
    pub(in crate::api) pid_mode: Option<String>,
    pub(in crate::api) ipc_mode: Option<String>,
    pub(in crate::api) proxy_configuration: Option<Proxy>,
    pub(in crate::api) runtime_platform: Option<RuntimePlatform>,
    pub(in crate::api) ephemeral_storage: Option<EphemeralStorage>,
    pub(in crate::api) inference_accelerators: Vec<Value>,
    #[serde(rename = "enableFaultInjection")]
    pub(in crate::api) fault_injection: bool,
    pub(in crate::api) trusted_execution_configuration: Option<Value>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(in crate::api) struct Container {
    pub(in crate::api) name: String,
    pub(in crate::api) image: String,
    pub(in crate::api) cpu: i64,
    pub(in crate::api) memory: Option<i64>,
    pub(in crate::api) memory_reservation: Option<i64>,
    pub(in crate::api) essential: Option<bool>,
    pub(in crate::api) entry_point: Option<Vec<String>>,
    pub(in crate::api) command: Option<Vec<String>>,
    pub(in crate::api) environment: Vec<Pair>,
    pub(in crate::api) environment_files: Vec<EnvironmentFile>,
    pub(in crate::api) secrets: Vec<Secret>,
    pub(in crate::api) port_mappings: Vec<PortMapping>,
    pub(in crate::api) links: Vec<String>,
    pub(in crate::api) depends_on: Vec<Dependency>,
    pub(in crate::api) start_timeout: Option<i64>,
    pub(in crate::api) stop_timeout: Option<i64>,
    pub(in crate::api) user: Option<String>,
    pub(in crate::api) working_directory: Option<String>,
    pub(in crate::api) hostname: Option<String>,
    pub(in crate::api) docker_labels: BTreeMap<String, String>,
    pub(in crate::api) docker_security_options: Vec<String>,
    pub(in crate::api) readonly_root_filesystem: bool,
    pub(in crate::api) privileged: bool,
    pub(in crate::api) interactive: bool,
    pub(in crate::api) pseudo_terminal: bool,
    pub(in crate::api) disable_networking: bool,
    pub(in crate::api) health_check: Option<HealthCheck>,
    pub(in crate::api) ulimits: Vec<Ulimit>,
    pub(in crate::api) extra_hosts: Vec<Host>,
    pub(in crate::api) dns_servers: Vec<String>,
    pub(in crate::api) dns_search_domains: Vec<String>,
    pub(in crate::api) mount_points: Vec<MountPoint>,
    pub(in crate::api) volumes_from: Vec<VolumeFrom>,
    pub(in crate::api) linux_parameters: Option<LinuxParameters>,
    pub(in crate::api) log_configuration: Option<LogConfiguration>,
    pub(in crate::api) system_controls: Vec<SystemControl>,
    pub(in crate::api) resource_requirements: Vec<ResourceRequirement>,
    pub(in crate::api) repository_credentials: Option<RepositoryCredentials>,
    pub(in crate::api) firelens_configuration: Option<Firelens>,
    pub(in crate::api) restart_policy: Option<RestartPolicy>,
    pub(in crate::api) credential_specs: Vec<String>,
}

impl Container {
    /// Whether the task ends with it: yes unless it says no.
    pub(in crate::api) fn is_essential(&self) -> bool {
        self.essential.unwrap_or(true)
    }

    /// Whether its output goes to the log router of the task.
    pub(in crate::api) fn logs_to_router(&self) -> bool {
        self.log_configuration.as_ref().is_some_and(|log| log.log_driver == FIRELENS_DRIVER)
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(in crate::api) struct Pair {
    pub(in crate::api) name: String,
    pub(in crate::api) value: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(in crate::api) struct EnvironmentFile {
    pub(in crate::api) value: String,
    #[serde(rename = "type")]
    pub(in crate::api) kind: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(in crate::api) struct Secret {
    pub(in crate::api) name: String,
    pub(in crate::api) value_from: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(in crate::api) struct PortMapping {
    pub(in crate::api) container_port: Option<i64>,
    pub(in crate::api) host_port: Option<i64>,
    pub(in crate::api) protocol: Option<String>,
    pub(in crate::api) container_port_range: Option<String>,
    pub(in crate::api) app_protocol: Option<String>,
}

impl PortMapping {
    pub(in crate::api) fn protocol(&self) -> &str {
        self.protocol.as_deref().unwrap_or("tcp")
    }
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(in crate::api) struct Dependency {
    pub(in crate::api) container_name: String,
    pub(in crate::api) condition: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(in crate::api) struct HealthCheck {
    pub(in crate::api) command: Vec<String>,
    pub(in crate::api) interval: Option<i64>,
    pub(in crate::api) timeout: Option<i64>,
    pub(in crate::api) retries: Option<i64>,
    pub(in crate::api) start_period: Option<i64>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(in crate::api) struct Ulimit {
    pub(in crate::api) name: String,
    pub(in crate::api) soft_limit: i64,
    pub(in crate::api) hard_limit: i64,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(in crate::api) struct Host {
    pub(in crate::api) hostname: String,
    pub(in crate::api) ip_address: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(in crate::api) struct MountPoint {
    pub(in crate::api) source_volume: String,
    pub(in crate::api) container_path: String,
    pub(in crate::api) read_only: bool,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(in crate::api) struct VolumeFrom {
    pub(in crate::api) source_container: String,
    pub(in crate::api) read_only: bool,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(in crate::api) struct LinuxParameters {
    pub(in crate::api) capabilities: Option<Capabilities>,
    pub(in crate::api) devices: Vec<Device>,
    pub(in crate::api) init_process_enabled: bool,
    pub(in crate::api) max_swap: Option<i64>,
    pub(in crate::api) shared_memory_size: Option<i64>,
    pub(in crate::api) swappiness: Option<i64>,
    pub(in crate::api) tmpfs: Vec<Tmpfs>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(in crate::api) struct Capabilities {
    pub(in crate::api) add: Vec<String>,
    pub(in crate::api) drop: Vec<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(in crate::api) struct Device {
    pub(in crate::api) host_path: String,
    pub(in crate::api) container_path: Option<String>,
    pub(in crate::api) permissions: Vec<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(in crate::api) struct Tmpfs {
    pub(in crate::api) container_path: String,
    pub(in crate::api) size: i64,
    pub(in crate::api) mount_options: Vec<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(in crate::api) struct LogConfiguration {
    pub(in crate::api) log_driver: String,
    pub(in crate::api) options: BTreeMap<String, String>,
    pub(in crate::api) secret_options: Vec<Secret>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(in crate::api) struct SystemControl {
    pub(in crate::api) namespace: String,
    pub(in crate::api) value: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(in crate::api) struct ResourceRequirement {
    #[serde(rename = "type")]
    pub(in crate::api) kind: String,
    pub(in crate::api) value: String,
}

impl ResourceRequirement {
    const KINDS: [&str; 3] = ["GPU", "InferenceAccelerator", "NeuronDevice"];

    /// How many GPUs it wants, where it is about GPUs.
    pub(in crate::api) fn gpus(&self) -> Option<u32> {
        (self.kind == "GPU").then(|| self.value.parse().unwrap_or_default())
    }

    /// What an instance must have.
    pub(in crate::api) fn capability(&self) -> String {
        format!("berth.capability.{}", self.kind.to_ascii_lowercase())
    }

    /// What is wrong with it for the container of that name.
    pub(in crate::api) fn problem(&self, container: &str) -> Option<String> {
        if !Self::KINDS.contains(&self.kind.as_str()) {
            let kinds = Self::KINDS.join(", ");
            return Some(format!(
                "ResourceRequirement.type of container '{container}' should be one of [{kinds}]"
            ));
        }
        (self.gpus() == Some(0)).then(|| {
            format!(
                "Invalid 'resourceRequirements' setting for container '{container}'. GPU takes a positive number."
            )
        })
    }
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(in crate::api) struct RepositoryCredentials {
    pub(in crate::api) credentials_parameter: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(in crate::api) struct Firelens {
    #[serde(rename = "type")]
    pub(in crate::api) kind: String,
    pub(in crate::api) options: BTreeMap<String, String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(in crate::api) struct RestartPolicy {
    pub(in crate::api) enabled: Option<bool>,
    pub(in crate::api) ignored_exit_codes: Vec<i64>,
    pub(in crate::api) restart_attempt_period: Option<i64>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(in crate::api) struct Volume {
    pub(in crate::api) name: String,
    pub(in crate::api) host: Option<HostVolume>,
    pub(in crate::api) docker_volume_configuration: Option<DockerVolume>,
    pub(in crate::api) efs_volume_configuration: Option<Value>,
    pub(in crate::api) fsx_windows_file_server_volume_configuration: Option<Value>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(in crate::api) struct HostVolume {
    pub(in crate::api) source_path: Option<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(in crate::api) struct DockerVolume {
    pub(in crate::api) driver: Option<String>,
    pub(in crate::api) scope: Option<String>,
    pub(in crate::api) autoprovision: bool,
    pub(in crate::api) driver_opts: BTreeMap<String, String>,
    pub(in crate::api) labels: BTreeMap<String, String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(in crate::api) struct Proxy {
    pub(in crate::api) container_name: String,
    #[serde(rename = "type")]
    pub(in crate::api) kind: Option<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(in crate::api) struct Constraint {
    #[serde(rename = "type")]
    pub(in crate::api) kind: String,
    pub(in crate::api) expression: Option<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(in crate::api) struct RuntimePlatform {
    pub(in crate::api) cpu_architecture: Option<String>,
    pub(in crate::api) operating_system_family: Option<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(in crate::api) struct EphemeralStorage {
    #[serde(rename = "sizeInGiB")]
    pub(in crate::api) size: i64,
}

impl Definition {
    /// Reads the typed view of a body whose shape was checked.
    ///
    /// # Errors
    /// `SerializationException` for a body of another shape.
    pub(in crate::api) fn read(body: &Map<String, Value>) -> ApiResult<Self> {
        Self::deserialize(Value::Object(body.clone()))
            .map_err(|error| ApiError::serialization(error.to_string()))
    }

    /// The network mode, `bridge` when none is given.
    pub(in crate::api) fn network_mode(&self) -> &str {
        self.network_mode.as_deref().unwrap_or("bridge")
    }

    /// The task's CPU units; `None` when absent or no number.
    pub(in crate::api) fn cpu(&self) -> Option<u32> {
        self.cpu.as_deref().and_then(|text| text.parse().ok())
    }

    /// The task's memory in MiB; `None` when absent or no number.
    pub(in crate::api) fn memory(&self) -> Option<u32> {
        self.memory.as_deref().and_then(|text| text.parse().ok())
    }

    /// Whether it is to be checked as a definition for Fargate.
    pub(in crate::api) fn wants_fargate(&self) -> bool {
        self.requires_compatibilities.iter().any(|kind| kind == "FARGATE")
    }
}
