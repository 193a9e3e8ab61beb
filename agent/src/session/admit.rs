//! The door: messages of the protocol become types that cannot be wrong, or a refusal that names
//! the field.

use std::sync::Arc;

use berth_core::ids::{ContainerName, Family, TaskArn};
use berth_core::spec::{
    Condition, ContainerSpec, Dependency, EnvVar, HealthCheck, InvalidSpec, Link, NetworkMode, PortMapping,
    TaskFields, TaskSpec, Ulimit,
};
use berth_core::task::{StopCause, StopCode, TaskStatus};
use berth_core::units::{CpuUnits, Mebibytes, Millis, PortRange, Protocol};
use berth_proto::v1;

use super::attachment::attachment;
use super::environment::{restart_policy, secret};
use super::linux::{firelens, linux_parameters, log_configuration, sharing};
use super::volume::{mount_point, volume, volumes_from};
use crate::engine::Assignment;

/// What came of an assignment at the door.
#[derive(Debug)]
pub enum Admitted {
    /// It is well-formed.
    Assignment(Assignment),
    /// It names a task and asks for something that cannot be.
    Refused(TaskArn, String),
    /// It does not even name a task.
    Unreadable(String),
}

/// Checks one assignment.
#[must_use]
pub fn assignment(message: v1::Assignment) -> Admitted {
    let task = match TaskArn::new(&message.task_arn) {
        Ok(task) => task,
        Err(error) => return Admitted::Unreadable(error.to_string()),
    };
    let refused = |task: TaskArn, problem: String| {
        Admitted::Refused(task, format!("UnrecognizedTaskError: Error loading task - {problem}"))
    };
    let stop = match message.desired() {
        v1::DesiredStatus::Running => None,
        v1::DesiredStatus::Stopped => Some(stop_cause(message.stop.clone())),
        v1::DesiredStatus::Unspecified => {
            return refused(task, "desired: neither RUNNING nor STOPPED".to_owned());
        }
    };
    let last_heard = match message.last_heard() {
        v1::TaskStatus::Running => TaskStatus::Running,
        v1::TaskStatus::Stopped => TaskStatus::Stopped,
        v1::TaskStatus::Unspecified | v1::TaskStatus::Pending => TaskStatus::Pending,
    };
    let spec = match message.spec.map(|spec| task_spec(&task, spec)) {
        Some(Ok(spec)) => Some(Arc::new(spec)),
        Some(Err(error)) => return refused(task, error.to_string()),
        None if stop.is_none() => return refused(task, "spec: is missing".to_owned()),
        None => None,
    };
    Admitted::Assignment(Assignment { task, spec, stop, last_heard })
}

fn stop_cause(cause: Option<v1::StopCause>) -> StopCause {
    let cause = cause.unwrap_or_default();
    let code = StopCode::parse(&cause.code).unwrap_or(StopCode::UserInitiated);
    let reason = if cause.reason.is_empty() { StopCause::BY_USER.to_owned() } else { cause.reason };
    StopCause { code, reason }
}

fn wrong(field: impl Into<String>, problem: impl Into<String>) -> InvalidSpec {
    InvalidSpec { field: field.into(), problem: problem.into() }
}

fn task_spec(task: &TaskArn, message: v1::TaskSpec) -> Result<TaskSpec, InvalidSpec> {
    let family = Family::new(&message.family).map_err(|e| wrong("family", e.to_string()))?;
    let network_mode = match message.network_mode.as_str() {
        "" | "bridge" => NetworkMode::Bridge,
        "host" => NetworkMode::Host,
        "none" => NetworkMode::None,
        "awsvpc" => NetworkMode::Awsvpc,
        other => {
            return Err(wrong("networkMode", format!("{other:?} is not a network mode")));
        }
    };
    let containers = message.containers.into_iter().map(container_spec).collect::<Result<_, _>>()?;
    let attachment = message.attachment.map(attachment).transpose()?;
    if network_mode == NetworkMode::Awsvpc && attachment.is_none() {
        return Err(wrong("attachment", "is missing, but the network mode is awsvpc"));
    }
    TaskSpec::try_from(TaskFields {
        arn: task.clone(),
        family,
        revision: message.revision,
        network_mode,
        cpu: (message.cpu > 0).then_some(CpuUnits(message.cpu)),
        memory: (message.memory_mib > 0).then_some(Mebibytes(message.memory_mib)),
        containers,
        attachment,
        pid_mode: sharing(&message.pid_mode).map_err(|problem| wrong("pidMode", problem))?,
        ipc_mode: sharing(&message.ipc_mode).map_err(|problem| wrong("ipcMode", problem))?,
        volumes: message
            .volumes
            .into_iter()
            .map(|v| volume(v).map_err(|problem| wrong("volumes", problem)))
            .collect::<Result<_, _>>()?,
        task_role: (!message.task_role.is_empty()).then_some(message.task_role),
        fault_injection: message.fault_injection,
    })
}

fn container_spec(message: v1::ContainerSpec) -> Result<ContainerSpec, InvalidSpec> {
    let name = ContainerName::new(&message.name).map_err(|e| wrong("containers.name", e.to_string()))?;
    let at = |field: &str| format!("containers[{name}].{field}");
    let ports = message
        .port_mappings
        .iter()
        .map(|m| port_mapping(m).ok_or_else(|| wrong(at("portMappings"), "a port is not within 1 to 65535")))
        .collect::<Result<_, _>>()?;
    let depends_on = message
        .depends_on
        .iter()
        .map(|d| {
            dependency(d).ok_or_else(|| {
                wrong(at("dependsOn"), format!("{} {:?} is no dependency", d.container, d.condition))
            })
        })
        .collect::<Result<_, _>>()?;
    let links = message
        .links
        .iter()
        .map(|l| link(l).ok_or_else(|| wrong(at("links"), format!("{:?} is no container name", l.key))))
        .collect::<Result<_, _>>()?;
    let text = |value: String| (!value.is_empty()).then_some(value);
    let pairs = |list: Vec<v1::KeyValue>| list.into_iter().map(|pair| (pair.key, pair.value)).collect();
    Ok(ContainerSpec {
        name: name.clone(),
        image: message.image,
        essential: message.essential,
        cpu: CpuUnits(message.cpu),
        memory: (message.memory_mib > 0).then_some(Mebibytes(message.memory_mib)),
        memory_reservation: (message.memory_reservation_mib > 0)
            .then_some(Mebibytes(message.memory_reservation_mib)),
        entry_point: message.entry_point.map(|list| list.values),
        command: message.command.map(|list| list.values),
        environment: message
            .environment
            .into_iter()
            .map(|pair| EnvVar { name: pair.key, value: pair.value })
            .collect(),
        environment_files: message.environment_files,
        secrets: message.secrets.into_iter().map(secret).collect(),
        ports,
        depends_on,
        start_timeout: (message.start_timeout_ms > 0).then_some(Millis(message.start_timeout_ms)),
        stop_timeout: message.stop_timeout_ms.map(Millis),
        user: text(message.user),
        working_directory: text(message.working_directory),
        hostname: text(message.hostname),
        docker_labels: message.docker_labels.into_iter().collect(),
        readonly_root_filesystem: message.readonly_root_filesystem,
        privileged: message.privileged,
        interactive: message.interactive,
        pseudo_terminal: message.pseudo_terminal,
        health_check: message.health_check.map(health_check),
        ulimits: message
            .ulimits
            .into_iter()
            .map(|u| Ulimit { name: u.name, soft: u.soft, hard: u.hard })
            .collect(),
        extra_hosts: pairs(message.extra_hosts),
        links,
        dns_servers: message.dns_servers,
        dns_search_domains: message.dns_search_domains,
        linux: message
            .linux_parameters
            .map(|linux| linux_parameters(linux).map_err(|problem| wrong(at("linuxParameters"), problem)))
            .transpose()?
            .unwrap_or_default(),
        system_controls: pairs(message.system_controls),
        security_options: message.security_options,
        disable_networking: message.disable_networking,
        log: message
            .log_configuration
            .map(|log| log_configuration(log).map_err(|problem| wrong(at("logConfiguration"), problem)))
            .transpose()?,
        mount_points: message.mount_points.into_iter().map(mount_point).collect(),
        volumes_from: message
            .volumes_from
            .iter()
            .map(|from| volumes_from(from).map_err(|problem| wrong(at("volumesFrom"), problem)))
            .collect::<Result<_, _>>()?,
        restart_policy: message.restart_policy.map(restart_policy),
        repository_credentials: text(message.repository_credentials),
        firelens: message
            .firelens_configuration
            .map(|router| firelens(router).map_err(|problem| wrong(at("firelensConfiguration"), problem)))
            .transpose()?,
        arn: message.arn,
        gpus: message.gpus,
    })
}

fn port_mapping(message: &v1::PortMapping) -> Option<PortMapping> {
    let port = |value: u32| u16::try_from(value).ok();
    let first = port(message.container_port)?;
    let last = if message.container_port_last == 0 { first } else { port(message.container_port_last)? };
    let host = port(message.host_port)?;
    let protocol = match message.protocol() {
        v1::Protocol::Tcp => Protocol::Tcp,
        v1::Protocol::Udp => Protocol::Udp,
    };
    Some(PortMapping { container: PortRange::new(first, last)?, host: (host > 0).then_some(host), protocol })
}

fn dependency(message: &v1::Dependency) -> Option<Dependency> {
    let condition = match message.condition.as_str() {
        "START" => Condition::Start,
        "COMPLETE" => Condition::Complete,
        "SUCCESS" => Condition::Success,
        "HEALTHY" => Condition::Healthy,
        _ => return None,
    };
    Some(Dependency { container: ContainerName::new(&message.container).ok()?, condition })
}

fn link(message: &v1::KeyValue) -> Option<Link> {
    Some(Link { container: ContainerName::new(&message.key).ok()?, alias: message.value.clone() })
}

fn health_check(message: v1::HealthCheck) -> HealthCheck {
    HealthCheck {
        command: message.command,
        interval: Millis(message.interval_ms),
        timeout: Millis(message.timeout_ms),
        retries: message.retries,
        start_period: Millis(message.start_period_ms),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message() -> v1::Assignment {
        v1::Assignment {
            task_arn: format!("arn:aws:ecs:us-east-1:123456789012:task/default/{:032x}", 7),
            desired: v1::DesiredStatus::Running.into(),
            spec: Some(v1::TaskSpec {
                family: "web".into(),
                revision: 1,
                network_mode: "bridge".into(),
                containers: vec![v1::ContainerSpec {
                    name: "web".into(),
                    image: "web".into(),
                    essential: true,
                    memory_mib: 64,
                    port_mappings: vec![v1::PortMapping { container_port: 80, ..Default::default() }],
                    ..Default::default()
                }],
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    fn refusal(change: impl FnOnce(&mut v1::Assignment)) -> String {
        let mut message = message();
        change(&mut message);
        match assignment(message) {
            Admitted::Refused(_, reason) => reason,
            Admitted::Unreadable(reason) => reason,
            Admitted::Assignment(_) => String::new(),
        }
    }

    #[test]
    fn what_is_well_formed_comes_in() {
        assert_eq!(refusal(|_| {}), "");
    }

    #[test]
    fn what_is_not_is_refused_with_its_field() {
        let spec = |m: &mut v1::Assignment| m.spec.take().unwrap();
        let cases: Vec<(String, &str)> = vec![
            (refusal(|m| m.task_arn = "nonsense".into()), "task ARN"),
            (refusal(|m| m.desired = 0), "desired"),
            (refusal(|m| m.desired = 77), "desired"),
            (refusal(|m| m.spec = None), "spec"),
            (refusal(|m| m.spec = Some(v1::TaskSpec { family: "a b".into(), ..spec(m) })), "family"),
            (
                refusal(|m| m.spec = Some(v1::TaskSpec { network_mode: "vpc".into(), ..spec(m) })),
                "networkMode",
            ),
            (refusal(|m| m.spec = Some(v1::TaskSpec { containers: vec![], ..spec(m) })), "containers"),
            (
                refusal(|m| m.spec.as_mut().unwrap().containers[0].port_mappings[0].container_port = 70_000),
                "containers[web].portMappings",
            ),
            (
                refusal(|m| {
                    m.spec.as_mut().unwrap().containers[0].depends_on =
                        vec![v1::Dependency { container: "db".into(), condition: "SOON".into() }];
                }),
                "containers[web].dependsOn",
            ),
        ];
        for (reason, field) in cases {
            assert!(reason.contains(field), "{reason:?} should name {field}");
        }
    }
}
