//! Between the protocol's messages and the types that the control plane works with.

use std::collections::BTreeSet;

use berth_core::resources::{Ports, Resources};
use berth_core::spec::{Condition, ContainerSpec, HealthCheck, PortMapping, TaskSpec};
use berth_core::units::{CpuUnits, Mebibytes, Protocol, Timestamp};
use berth_proto::v1;

use super::attachment::attachment;
use super::linux::{firelens, linux_parameters, log_configuration, secret, sharing};
use super::registry::{Heartbeat, Waiting};
use super::volume::{mount_point, volume, volumes_from};
use crate::model::{StopCause, Task, TaskStatus};

/// A task as its agent is told of it. Without `spec` when nothing but a stop is asked of a task
/// that the agent knows.
pub(super) fn assignment(task: &Task, with_spec: bool) -> v1::Assignment {
    let stop = task.stop_requested.as_ref().or(task.observed.stop.as_ref());
    let desired = desired(task);
    let last_heard = match task.observed.status {
        TaskStatus::Provisioning | TaskStatus::Pending => v1::TaskStatus::Pending,
        TaskStatus::Running | TaskStatus::Stopping => v1::TaskStatus::Running,
        TaskStatus::Stopped => v1::TaskStatus::Stopped,
    };
    v1::Assignment {
        task_arn: task.arn.clone(),
        desired: desired.into(),
        stop: (desired == v1::DesiredStatus::Stopped)
            .then(|| {
                stop.map(|cause| v1::StopCause { code: cause.code.clone(), reason: cause.reason.clone() })
            })
            .flatten(),
        last_heard: last_heard.into(),
        spec: with_spec.then(|| {
            let mut spec = task_spec(&task.spec);
            for container in &mut spec.containers {
                let known = task.observed.containers.iter().find(|c| c.name == container.name);
                container.arn = known.map(|known| known.arn.clone()).unwrap_or_default();
            }
            spec
        }),
    }
}

/// What is to become of a task.
pub(super) fn desired(task: &Task) -> v1::DesiredStatus {
    if task.wants_running() { v1::DesiredStatus::Running } else { v1::DesiredStatus::Stopped }
}

/// A specification for the wire.
#[must_use]
pub fn task_spec(spec: &TaskSpec) -> v1::TaskSpec {
    v1::TaskSpec {
        family: spec.family.to_string(),
        revision: spec.revision,
        network_mode: spec.network_mode.as_str().to_owned(),
        cpu: spec.cpu.unwrap_or_default().0,
        memory_mib: spec.memory.unwrap_or_default().0,
        containers: spec.containers.iter().map(container_spec).collect(),
        attachment: spec.attachment.as_ref().map(attachment),
        pid_mode: sharing(spec.pid_mode).to_owned(),
        ipc_mode: sharing(spec.ipc_mode).to_owned(),
        volumes: spec.volumes.iter().map(volume).collect(),
        task_role: spec.task_role.clone().unwrap_or_default(),
        fault_injection: spec.fault_injection,
    }
}

fn container_spec(container: &ContainerSpec) -> v1::ContainerSpec {
    let list = |values: &Option<Vec<String>>| values.clone().map(|values| v1::StringList { values });
    let pair = |key: &str, value: &str| v1::KeyValue { key: key.to_owned(), value: value.to_owned() };
    v1::ContainerSpec {
        name: container.name.to_string(),
        image: container.image.clone(),
        essential: container.essential,
        cpu: container.cpu.0,
        memory_mib: container.memory.unwrap_or_default().0,
        memory_reservation_mib: container.memory_reservation.unwrap_or_default().0,
        entry_point: list(&container.entry_point),
        command: list(&container.command),
        environment: container.environment.iter().map(|var| pair(&var.name, &var.value)).collect(),
        port_mappings: container.ports.iter().map(port_mapping).collect(),
        depends_on: container
            .depends_on
            .iter()
            .map(|dependency| v1::Dependency {
                container: dependency.container.to_string(),
                condition: condition(dependency.condition).to_owned(),
            })
            .collect(),
        start_timeout_ms: container.start_timeout.unwrap_or_default().0,
        stop_timeout_ms: container.stop_timeout.map(|timeout| timeout.0),
        user: container.user.clone().unwrap_or_default(),
        working_directory: container.working_directory.clone().unwrap_or_default(),
        hostname: container.hostname.clone().unwrap_or_default(),
        docker_labels: container.docker_labels.clone().into_iter().collect(),
        readonly_root_filesystem: container.readonly_root_filesystem,
        privileged: container.privileged,
        interactive: container.interactive,
        pseudo_terminal: container.pseudo_terminal,
        health_check: container.health_check.as_ref().map(health_check),
        ulimits: container
            .ulimits
            .iter()
            .map(|limit| v1::Ulimit { name: limit.name.clone(), soft: limit.soft, hard: limit.hard })
            .collect(),
        extra_hosts: container.extra_hosts.iter().map(|(host, address)| pair(host, address)).collect(),
        links: container.links.iter().map(|link| pair(link.container.as_str(), &link.alias)).collect(),
        dns_servers: container.dns_servers.clone(),
        dns_search_domains: container.dns_search_domains.clone(),
        linux_parameters: Some(linux_parameters(&container.linux)),
        system_controls: container.system_controls.iter().map(|(name, value)| pair(name, value)).collect(),
        security_options: container.security_options.clone(),
        disable_networking: container.disable_networking,
        log_configuration: container.log.as_ref().map(log_configuration),
        mount_points: container.mount_points.iter().map(mount_point).collect(),
        volumes_from: container.volumes_from.iter().map(volumes_from).collect(),
        environment_files: container.environment_files.clone(),
        secrets: container.secrets.iter().map(secret).collect(),
        restart_policy: container.restart_policy.as_ref().map(|policy| v1::RestartPolicy {
            ignored_exit_codes: policy.ignored_exit_codes.clone(),
            attempt_period_ms: policy.attempt_period.0,
        }),
        repository_credentials: container.repository_credentials.clone().unwrap_or_default(),
        arn: container.arn.clone(),
        firelens_configuration: container.firelens.as_ref().map(firelens),
        gpus: container.gpus,
    }
}

const fn condition(condition: Condition) -> &'static str {
    match condition {
        Condition::Start => "START",
        Condition::Complete => "COMPLETE",
        Condition::Success => "SUCCESS",
        Condition::Healthy => "HEALTHY",
    }
}

fn port_mapping(mapping: &PortMapping) -> v1::PortMapping {
    let range = mapping.container;
    v1::PortMapping {
        container_port: range.first().into(),
        container_port_last: if range.is_single() { 0 } else { range.last().into() },
        host_port: mapping.host.unwrap_or_default().into(),
        protocol: match mapping.protocol {
            Protocol::Tcp => v1::Protocol::Tcp,
            Protocol::Udp => v1::Protocol::Udp,
        }
        .into(),
    }
}

fn health_check(check: &HealthCheck) -> v1::HealthCheck {
    v1::HealthCheck {
        command: check.command.clone(),
        interval_ms: check.interval.0,
        timeout_ms: check.timeout.0,
        retries: check.retries,
        start_period_ms: check.start_period.0,
    }
}

/// Resources from the wire; the problem when a port is none.
pub(super) fn resources(wire: &v1::Resources) -> Result<Resources, String> {
    Ok(Resources {
        cpu: CpuUnits(wire.cpu),
        memory: Mebibytes(wire.memory_mib),
        ports: Ports { tcp: ports("tcp_ports", &wire.tcp_ports)?, udp: ports("udp_ports", &wire.udp_ports)? },
        enis: wire.enis,
        gpus: wire.gpus,
    })
}

fn ports(field: &str, wire: &[u32]) -> Result<BTreeSet<u16>, String> {
    wire.iter().map(|port| u16::try_from(*port).map_err(|_| format!("{field}: {port} is no port"))).collect()
}

/// A heartbeat from the wire.
pub(super) fn heartbeat(wire: &v1::Heartbeat, now: Timestamp) -> Result<Heartbeat, String> {
    let amount =
        |wire: &Option<v1::Resources>| wire.as_ref().map_or_else(|| Ok(Resources::default()), resources);
    Ok(Heartbeat {
        in_use: amount(&wire.in_use)?,
        remaining: amount(&wire.remaining)?,
        engine_healthy: wire.engine_healthy,
        waiting: wire.waiting.iter().map(waiting).collect(),
        at: now,
    })
}

fn waiting(wire: &v1::WaitingTask) -> Waiting {
    Waiting {
        task: wire.task_arn.clone(),
        container: Some(wire.container.clone()).filter(|name| !name.is_empty()),
        on: wire.missing.clone(),
    }
}

/// A cause from the wire.
pub(super) fn stop_cause(wire: &v1::StopCause) -> StopCause {
    StopCause { code: wire.code.clone(), reason: wire.reason.clone() }
}

/// A point in time from the wire, where 0 is none.
pub(super) fn moment(millis: u64) -> Option<Timestamp> {
    (millis != 0).then_some(Timestamp(millis))
}
