//! The door from a task definition with its overrides to a task specification.
//!
//! What the specification has no field for is left out here: the definition requires an attribute
//! for it, so that no instance gets the task which does not know how to do it.

mod environment;
mod gpu;
mod linux;
mod volume;

use std::ops::RangeInclusive;

use berth_core::ids::{ContainerName, Family, InvalidId, TaskArn};
use berth_core::spec::{
    Condition, ContainerSpec, Dependency, HealthCheck, Link, NetworkMode, PortMapping, TaskFields, TaskSpec,
    Ulimit,
};
use berth_core::units::{CpuUnits, Mebibytes, Millis, PortRange, Protocol};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::error::{ApiError, ApiResult};
use super::task_definition::defaults::normalise_sizes;
use super::task_definition::input::{self, Definition, LEAST_MEMORY, Pair, TASK_CPU};
use crate::model::TaskDefinition;
use crate::scheduler::placement::RequiredAttribute;

/// The most characters of the overrides as JSON.
const MAX_OVERRIDES: usize = 8192;

/// What a request changes of the definition for its tasks.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Overrides {
    container_overrides: Vec<ContainerOverride>,
    cpu: Option<String>,
    memory: Option<String>,
    task_role_arn: Option<String>,
    ephemeral_storage: Option<Value>,
    inference_accelerator_overrides: Vec<Value>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ContainerOverride {
    name: Option<String>,
    command: Option<Vec<String>>,
    environment: Vec<Pair>,
    environment_files: Vec<input::EnvironmentFile>,
    cpu: Option<i64>,
    memory: Option<i64>,
    memory_reservation: Option<i64>,
    resource_requirements: Vec<input::ResourceRequirement>,
}

/// A specification, and what an instance must have to run it.
#[derive(Debug)]
pub(super) struct Specified {
    /// The specification.
    pub(super) spec: TaskSpec,
    /// What an instance must have.
    pub(super) required: Vec<RequiredAttribute>,
}

/// Applies `overrides` (ECS's JSON) to a definition. `arn` is the task's, `log_mode` how log drivers take
/// what they are given where their options do not say (`blocking`, `non-blocking`).
///
/// # Errors
/// `InvalidParameterException` for overrides that the definition cannot take.
pub(super) fn specify(
    definition: &TaskDefinition,
    overrides: &Value,
    arn: TaskArn,
    log_mode: &str,
) -> ApiResult<Specified> {
    let overrides = read_overrides(overrides)?;
    let view = Definition::read(&definition.body)?;
    for changed in &overrides.container_overrides {
        let name = changed.name.as_deref().unwrap_or_default();
        if !view.container_definitions.iter().any(|container| container.name == name) {
            return Err(ApiError::invalid_parameter(format!(
                "Override for container named {name} is not a container in the TaskDefinition."
            )));
        }
    }
    let mode = mode(view.network_mode())?;
    let mut containers = view
        .container_definitions
        .iter()
        .map(|container| {
            let changed =
                overrides.container_overrides.iter().find(|o| o.name.as_deref() == Some(&container.name));
            container_spec(container, mode, changed)
        })
        .collect::<ApiResult<Vec<ContainerSpec>>>()?;
    for log in containers.iter_mut().filter_map(|container| container.log.as_mut()) {
        linux::default_mode(log, log_mode);
    }
    let fields = TaskFields {
        arn: arn.clone(),
        family: Family::new(&definition.family).map_err(|error| invalid_id(&error))?,
        revision: definition.revision,
        network_mode: mode,
        cpu: size(overrides.cpu.as_deref(), view.cpu(), "cpu", &TASK_CPU)?.map(CpuUnits),
        memory: size(overrides.memory.as_deref(), view.memory(), "memory", &(1..=u32::MAX))?.map(Mebibytes),
        containers,
        attachment: None,
        pid_mode: linux::sharing(view.pid_mode.as_deref(), "pidMode")?,
        ipc_mode: linux::sharing(view.ipc_mode.as_deref(), "ipcMode")?,
        volumes: view.volumes.iter().map(volume::volume).collect(),
        task_role: text(overrides.task_role_arn.as_ref())
            .or_else(|| text(view.task_role_arn.as_ref()))
            .map(|role| role_arn(role, &arn)),
        fault_injection: view.fault_injection,
    };
    let spec = TaskSpec::try_from(fields).map_err(|error| ApiError::invalid_parameter(error.to_string()))?;
    Ok(Specified { spec, required: required(definition, &overrides) })
}

fn read_overrides(value: &Value) -> ApiResult<Overrides> {
    let length = value.to_string().chars().count();
    if length > MAX_OVERRIDES {
        return Err(ApiError::invalid_parameter(format!(
            "Overrides length must not be longer than {MAX_OVERRIDES} characters. Actual length: {length}."
        )));
    }
    let mut members = value.as_object().cloned().unwrap_or_else(Map::new);
    normalise_sizes(&mut members);
    Overrides::deserialize(Value::Object(members)).map_err(|error| ApiError::serialization(error.to_string()))
}

/// What the definition requires, and what the overrides add to it.
fn required(definition: &TaskDefinition, overrides: &Overrides) -> Vec<RequiredAttribute> {
    let of_definition = definition.required_attributes.iter();
    let mut required: Vec<RequiredAttribute> =
        of_definition.map(|a| RequiredAttribute { name: a.name.clone(), value: a.value.clone() }).collect();
    let containers = &overrides.container_overrides;
    for (name, needed) in [
        ("ecs.capability.task-cpu-mem-limit", overrides.cpu.is_some() || overrides.memory.is_some()),
        (
            "com.amazonaws.ecs.capability.task-iam-role",
            overrides.task_role_arn.as_ref().is_some_and(|r| !r.is_empty()),
        ),
        ("ecs.capability.env-files.s3", containers.iter().any(|c| !c.environment_files.is_empty())),
        ("berth.capability.ephemeral-storage", overrides.ephemeral_storage.is_some()),
        ("ecs.capability.task-eia", !overrides.inference_accelerator_overrides.is_empty()),
    ] {
        if needed && !required.iter().any(|attribute| attribute.name == name) {
            required.push(RequiredAttribute { name: name.to_owned(), value: None });
        }
    }
    for requirement in containers.iter().flat_map(|c| &c.resource_requirements) {
        let name = requirement.capability();
        if !required.iter().any(|attribute| attribute.name == name) {
            required.push(RequiredAttribute { name, value: None });
        }
    }
    required
}

fn container_spec(
    container: &input::Container,
    network: NetworkMode,
    changed: Option<&ContainerOverride>,
) -> ApiResult<ContainerSpec> {
    let none = ContainerOverride::default();
    let changed = changed.unwrap_or(&none);
    let invalid = |member: &str| {
        ApiError::invalid_parameter(format!("Invalid '{member}' setting for container '{}'.", container.name))
    };
    let memory = |member: &str, changed: Option<i64>, own: Option<i64>| match changed.or(own) {
        None => Ok(None),
        Some(amount) if amount < LEAST_MEMORY => Err(invalid(member)),
        Some(amount) => {
            u32::try_from(amount).map(|amount| Some(Mebibytes(amount))).map_err(|_| invalid(member))
        }
    };
    let ports: Option<Vec<PortMapping>> =
        container.port_mappings.iter().map(|port| port_mapping(port, network)).collect();
    let depends_on: ApiResult<Vec<Dependency>> = container.depends_on.iter().map(dependency).collect();
    Ok(ContainerSpec {
        name: ContainerName::new(&container.name).map_err(|error| invalid_id(&error))?,
        image: container.image.clone(),
        essential: container.is_essential(),
        cpu: CpuUnits(u32::try_from(changed.cpu.unwrap_or(container.cpu)).map_err(|_| invalid("cpu"))?),
        memory: memory("memory", changed.memory, container.memory)?,
        memory_reservation: memory(
            "memoryReservation",
            changed.memory_reservation,
            container.memory_reservation,
        )?,
        entry_point: given(container.entry_point.as_ref()),
        command: given(changed.command.as_ref()).or_else(|| given(container.command.as_ref())),
        environment: environment::environment(&container.environment, &changed.environment),
        environment_files: environment::files(&container.environment_files, &changed.environment_files),
        secrets: container.secrets.iter().map(environment::secret).collect(),
        ports: ports.ok_or_else(|| invalid("portMappings"))?,
        depends_on: depends_on?,
        start_timeout: container.start_timeout.and_then(seconds),
        stop_timeout: container.stop_timeout.and_then(seconds),
        user: text(container.user.as_ref()),
        working_directory: text(container.working_directory.as_ref()),
        hostname: text(container.hostname.as_ref()),
        docker_labels: container.docker_labels.clone(),
        readonly_root_filesystem: container.readonly_root_filesystem,
        privileged: container.privileged,
        interactive: container.interactive,
        pseudo_terminal: container.pseudo_terminal,
        health_check: container.health_check.as_ref().map(health_check),
        ulimits: container
            .ulimits
            .iter()
            .map(|limit| Ulimit { name: limit.name.clone(), soft: limit.soft_limit, hard: limit.hard_limit })
            .collect(),
        extra_hosts: container
            .extra_hosts
            .iter()
            .map(|host| (host.hostname.clone(), host.ip_address.clone()))
            .collect(),
        links: container.links.iter().map(|text| link(text)).collect::<Result<_, _>>()?,
        dns_servers: container.dns_servers.clone(),
        dns_search_domains: container.dns_search_domains.clone(),
        linux: container.linux_parameters.as_ref().map(linux::parameters).unwrap_or_default(),
        system_controls: container
            .system_controls
            .iter()
            .map(|control| (control.namespace.clone(), control.value.clone()))
            .collect(),
        security_options: container.docker_security_options.clone(),
        disable_networking: container.disable_networking,
        log: container.log_configuration.as_ref().map(linux::log_configuration),
        mount_points: container.mount_points.iter().map(volume::mount_point).collect(),
        volumes_from: container.volumes_from.iter().map(volume::volumes_from).collect::<Result<_, _>>()?,
        restart_policy: container.restart_policy.as_ref().and_then(environment::restart_policy),
        repository_credentials: container
            .repository_credentials
            .as_ref()
            .map(|credentials| credentials.credentials_parameter.clone()),
        firelens: linux::firelens(container)?,
        arn: String::new(),
        gpus: gpu::count(container, &changed.resource_requirements)?,
    })
}

/// `name` or `name:alias`.
fn link(text: &str) -> ApiResult<Link> {
    let (name, alias) = text.split_once(':').unwrap_or((text, text));
    let container = ContainerName::new(name).map_err(|error| invalid_id(&error))?;
    Ok(Link { container, alias: alias.to_owned() })
}

/// An empty list is as good as none: the image decides.
fn given(list: Option<&Vec<String>>) -> Option<Vec<String>> {
    list.filter(|list| !list.is_empty()).cloned()
}

fn text(text: Option<&String>) -> Option<String> {
    text.filter(|text| !text.is_empty()).cloned()
}

/// A role may be given by its name alone: it is one of the account's then.
fn role_arn(role: String, task: &TaskArn) -> String {
    if role.starts_with("arn:") {
        return role;
    }
    let mut words = task.as_str().split(':').skip(1);
    let (partition, account) = (words.next().unwrap_or("aws"), words.nth(2).unwrap_or_default());
    format!("arn:{partition}:iam::{account}:role/{role}")
}

fn seconds(seconds: i64) -> Option<Millis> {
    u64::try_from(seconds).ok().map(Millis::from_secs)
}

fn port_mapping(port: &input::PortMapping, network: NetworkMode) -> Option<PortMapping> {
    let container = match &port.container_port_range {
        Some(range) => PortRange::parse(range)?,
        None => PortRange::single(u16::try_from(port.container_port?).ok()?)?,
    };
    let host = match network {
        NetworkMode::Bridge => {
            port.host_port.and_then(|port| u16::try_from(port).ok()).filter(|port| *port != 0)
        }
        NetworkMode::Host | NetworkMode::Awsvpc | NetworkMode::None => Some(container.first()),
    };
    let protocol = if port.protocol() == "udp" { Protocol::Udp } else { Protocol::Tcp };
    Some(PortMapping { container, host, protocol })
}

fn dependency(dependency: &input::Dependency) -> ApiResult<Dependency> {
    let condition = match dependency.condition.as_str() {
        "START" => Condition::Start,
        "COMPLETE" => Condition::Complete,
        "SUCCESS" => Condition::Success,
        "HEALTHY" => Condition::Healthy,
        other => {
            return Err(ApiError::invalid_parameter(format!(
                "{other} is no condition of a container dependency."
            )));
        }
    };
    let container = ContainerName::new(&dependency.container_name).map_err(|error| invalid_id(&error))?;
    Ok(Dependency { container, condition })
}

fn health_check(check: &input::HealthCheck) -> HealthCheck {
    let span = |given: Option<i64>, default| {
        Millis::from_secs(given.and_then(|s| u64::try_from(s).ok()).unwrap_or(default))
    };
    HealthCheck {
        command: check.command.clone(),
        interval: span(check.interval, 30),
        timeout: span(check.timeout, 5),
        retries: check.retries.and_then(|retries| u32::try_from(retries).ok()).unwrap_or(3),
        start_period: span(check.start_period, 0),
    }
}

fn mode(text: &str) -> ApiResult<NetworkMode> {
    Ok(match text {
        "bridge" => NetworkMode::Bridge,
        "host" => NetworkMode::Host,
        "none" => NetworkMode::None,
        "awsvpc" => NetworkMode::Awsvpc,
        other => return Err(ApiError::invalid_parameter(format!("{other} is no network mode."))),
    })
}

/// A size of the task: the override's before the definition's.
fn size(
    changed: Option<&str>,
    own: Option<u32>,
    member: &str,
    allowed: &RangeInclusive<u32>,
) -> ApiResult<Option<u32>> {
    let invalid = || ApiError::invalid_parameter(format!("Invalid '{member}' setting for task."));
    match changed {
        None => Ok(own),
        Some(text) => {
            text.parse().ok().filter(|amount| allowed.contains(amount)).map(Some).ok_or_else(invalid)
        }
    }
}

fn invalid_id(error: &InvalidId) -> ApiError {
    ApiError::invalid_parameter(error.to_string())
}

#[cfg(test)]
mod tests {
    use berth_core::units::Timestamp;
    use serde_json::json;

    use super::*;
    use crate::arn::Arns;

    fn definition(body: Value) -> TaskDefinition {
        let mut definition = TaskDefinition::new("arn".to_owned(), "web".to_owned(), 3, Timestamp(0));
        definition.body = body.as_object().unwrap().clone();
        definition
    }

    fn specified(body: Value, overrides: &Value) -> ApiResult<Specified> {
        let arn = Arns::new("us-east-1", "123456789012").placeholder_task("default").unwrap();
        specify(&definition(body), overrides, arn, "")
    }

    #[test]
    fn every_member_of_the_specification_is_mapped() {
        let body = json!({"networkMode": "bridge", "cpu": "512", "memory": "1024", "containerDefinitions": [
            {"name": "db", "image": "pg", "memory": 64, "essential": false},
            {
                "name": "app", "image": "i:1", "cpu": 10, "memory": 128, "memoryReservation": 64, "entryPoint": ["sh"],
                "command": ["-c", "x"], "environment": [{"name": "A", "value": "1"}],
                "portMappings": [
                    {"containerPort": 80, "hostPort": 0}, {"containerPort": 53, "hostPort": 5353, "protocol": "udp"},
                    {"containerPortRange": "9000-9010"}
                ],
                "dependsOn": [{"containerName": "db", "condition": "SUCCESS"}], "startTimeout": 7, "stopTimeout": 9,
                "user": "1000:1000", "workingDirectory": "/w", "hostname": "h", "dockerLabels": {"l": "v"},
                "readonlyRootFilesystem": true, "privileged": true, "interactive": true, "pseudoTerminal": true,
                "healthCheck": {"command": ["CMD-SHELL", "true"], "startPeriod": 4},
                "ulimits": [{"name": "nofile", "softLimit": 1, "hardLimit": 2}],
                "extraHosts": [{"hostname": "x", "ipAddress": "10.0.0.1"}], "dnsServers": ["1.1.1.1"],
                "dnsSearchDomains": ["example.com"], "resourceRequirements": [{"type": "GPU", "value": "2"}]
            }
        ]});
        let spec = specified(body, &json!({})).unwrap().spec;
        assert_eq!((spec.cpu, spec.memory, spec.revision), (Some(CpuUnits(512)), Some(Mebibytes(1024)), 3));
        let app = &spec.containers[1];
        assert_eq!(app.ports[0].host, None);
        assert_eq!((app.ports[1].host, app.ports[1].protocol), (Some(5353), Protocol::Udp));
        assert_eq!(app.ports[2].container, PortRange::new(9000, 9010).unwrap());
        assert_eq!(app.depends_on[0].condition, Condition::Success);
        assert_eq!((app.start_timeout, app.stop_timeout), (Some(Millis(7000)), Some(Millis(9000))));
        assert_eq!((app.gpus, spec.need().gpus), (2, 2));
        let check = app.health_check.as_ref().unwrap();
        assert_eq!(
            (check.interval, check.timeout, check.retries, check.start_period),
            (Millis(30_000), Millis(5000), 3, Millis(4000))
        );
        assert_eq!(app.ulimits[0], Ulimit { name: "nofile".to_owned(), soft: 1, hard: 2 });
        assert_eq!(app.extra_hosts, [("x".to_owned(), "10.0.0.1".to_owned())]);
        assert!(app.readonly_root_filesystem && app.privileged && app.interactive && app.pseudo_terminal);
    }

    #[test]
    fn overrides_replace_merge_and_add() {
        let body = json!({"containerDefinitions": [{"name": "a", "image": "i", "memory": 64, "command": ["x"],
            "environment": [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}]}]});
        let overrides = json!({"cpu": "0.5 vCPU", "memory": "256", "containerOverrides": [{
            "name": "a", "command": ["y", "z"], "cpu": 5, "memory": 128, "memoryReservation": 32,
            "environment": [{"name": "B", "value": "3"}, {"name": "C", "value": "4"}]}]});
        let specified = specified(body, &overrides).unwrap();
        let a = &specified.spec.containers[0];
        assert_eq!(a.command.as_deref().unwrap(), ["y", "z"]);
        let environment: Vec<_> = a.environment.iter().map(|v| (v.name.as_str(), v.value.as_str())).collect();
        assert_eq!(environment, [("A", "1"), ("B", "3"), ("C", "4")]);
        assert_eq!(
            (a.cpu, a.memory, a.memory_reservation),
            (CpuUnits(5), Some(Mebibytes(128)), Some(Mebibytes(32)))
        );
        assert_eq!((specified.spec.cpu, specified.spec.memory), (Some(CpuUnits(512)), Some(Mebibytes(256))));
        assert_eq!(specified.required[0].name, "ecs.capability.task-cpu-mem-limit");
    }

    #[test]
    fn an_override_of_gpus_replaces_those_of_the_definition() {
        let gpus = |count: &str| json!([{"type": "GPU", "value": count}]);
        let body = |of_a: Value| {
            json!({"containerDefinitions": [
                {"name": "a", "image": "i", "memory": 64, "resourceRequirements": of_a}, {"name": "b", "image": "i", "memory": 64}
            ]})
        };
        let changed = |requirements: Value| json!({"containerOverrides": [{"name": "a", "resourceRequirements": requirements}]});
        let of = |body: Value, overrides: Value| {
            let made = specified(body, &overrides).unwrap();
            let names: Vec<String> = made.required.into_iter().map(|attribute| attribute.name).collect();
            (made.spec.containers.iter().map(|c| c.gpus).collect::<Vec<_>>(), names)
        };
        let gpu = || vec!["berth.capability.gpu".to_owned()];
        assert_eq!(of(body(gpus("2")), json!({})).0, [2, 0]);
        assert_eq!(of(body(gpus("2")), changed(gpus("4"))), (vec![4, 0], gpu()));
        assert_eq!(of(body(json!([])), changed(gpus("1"))), (vec![1, 0], gpu()));
        // Another kind of device leaves the GPUs alone, and no instance offers it.
        let other = changed(json!([{"type": "InferenceAccelerator", "value": "device_1"}]));
        let (count, required) = of(body(gpus("2")), other);
        assert_eq!((count, required), (vec![2, 0], vec!["berth.capability.inferenceaccelerator".to_owned()]));
    }

    #[test]
    fn overrides_that_cannot_be_are_refused() {
        let body = || json!({"containerDefinitions": [{"name": "a", "image": "i", "memory": 64}]});
        for (overrides, message) in [
            (
                json!({"containerOverrides": [{"name": "b"}]}),
                "Override for container named b is not a container in the TaskDefinition.",
            ),
            (
                json!({"containerOverrides": [{"name": "a", "memory": 1}]}),
                "Invalid 'memory' setting for container 'a'.",
            ),
            (
                json!({"containerOverrides": [{"name": "a", "cpu": -1}]}),
                "Invalid 'cpu' setting for container 'a'.",
            ),
            (json!({"memory": "x"}), "Invalid 'memory' setting for task."),
            (
                json!({"containerOverrides": [{"name": "a", "resourceRequirements": [{"type": "GPU", "value": "0"}]}]}),
                "Invalid 'resourceRequirements' setting for container 'a'. GPU takes a positive number.",
            ),
            (
                json!({"containerOverrides": [{"name": "a", "resourceRequirements": [{"type": "TPU", "value": "1"}]}]}),
                "ResourceRequirement.type of container 'a' should be one of [GPU, InferenceAccelerator, NeuronDevice]",
            ),
            (json!({"cpu": "127"}), "Invalid 'cpu' setting for task."),
            (json!({"cpu": "196609"}), "Invalid 'cpu' setting for task."),
            (json!({"memory": "32"}), "containers[a].memory: 64 MiB is more than the task's 32 MiB"),
        ] {
            let error = specified(body(), &overrides).unwrap_err();
            assert_eq!((error.code, error.message.as_str()), ("InvalidParameterException", message));
        }
        let long = json!({"containerOverrides": [{"name": "a", "command": ["x".repeat(9000)]}]});
        assert!(specified(body(), &long).unwrap_err().message.starts_with("Overrides length"));
    }
}
