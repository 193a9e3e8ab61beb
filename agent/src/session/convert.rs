//! What the agent has to tell becomes messages of the protocol; answers to its questions come back.

use berth_core::resources::{Resources, describe};
use berth_core::task::{
    AttachmentStatus, ContainerReport, ContainerStatus, Health, PortBinding, Report, TaskStatus,
};
use berth_core::units::{Protocol, Timestamp};
use berth_proto::v1;
use berth_proto::v1::task_protection_reply::Outcome;

use super::inquiries::{Answer, Question};
use crate::engine::{ContainerWait, Departure, Usage};
use crate::store::OutboxEntry;

/// Resources for the protocol.
pub(super) fn resources(resources: &Resources) -> v1::Resources {
    v1::Resources {
        cpu: resources.cpu.0,
        memory_mib: resources.memory.0,
        tcp_ports: resources.ports.tcp.iter().map(|p| u32::from(*p)).collect(),
        udp_ports: resources.ports.udp.iter().map(|p| u32::from(*p)).collect(),
        enis: resources.enis,
        gpus: resources.gpus,
    }
}

/// A question of a task.
pub(super) fn question(id: u64, question: &Question) -> v1::TaskProtectionRequest {
    v1::TaskProtectionRequest {
        request_id: id,
        task_arn: question.task.to_string(),
        change: question.change.map(|change| v1::TaskProtectionChange {
            enabled: change.enabled,
            expires_in_minutes: change.expires_in_minutes,
        }),
    }
}

/// That the host goes, or stays.
pub(super) fn host_notice(departure: Option<&Departure>) -> v1::HostNotice {
    v1::HostNotice {
        going: departure.is_some(),
        reason: departure.map_or_else(String::new, |departure| departure.cause.reason.clone()),
        deadline_ms: departure.and_then(|departure| departure.deadline).unwrap_or_default().0,
    }
}

/// What the control plane answered.
pub(super) fn answer(outcome: Option<Outcome>) -> Answer {
    match outcome {
        Some(Outcome::Protection(told)) => {
            Answer::Protection { until: told.enabled.then_some(Timestamp(told.expires_at_ms)) }
        }
        Some(Outcome::Failure(told)) => Answer::Failure {
            reason: told.reason,
            detail: Some(told.detail).filter(|detail| !detail.is_empty()),
        },
        Some(Outcome::Error(told)) => {
            Answer::Error { code: told.code, message: told.message, request_id: told.request_id }
        }
        None => Answer::Error {
            code: "ServerException".to_owned(),
            message: "the control plane gave an answer that this agent does not know".to_owned(),
            request_id: String::new(),
        },
    }
}

/// A heartbeat.
pub(super) fn heartbeat(
    sequence: u64,
    usage: &Usage,
    engine_healthy: bool,
    waits: Vec<ContainerWait>,
) -> v1::Heartbeat {
    let of_tasks = usage.waiting.iter().map(|(task, missing)| v1::WaitingTask {
        task_arn: task.to_string(),
        missing: describe(missing),
        container: String::new(),
    });
    let of_containers = waits.into_iter().map(|wait| v1::WaitingTask {
        task_arn: wait.task.to_string(),
        missing: wait.on,
        container: wait.container.to_string(),
    });
    v1::Heartbeat {
        sequence,
        in_use: Some(resources(&usage.in_use)),
        remaining: Some(resources(&usage.total.remaining(&usage.in_use))),
        engine_healthy,
        waiting: of_tasks.chain(of_containers).collect(),
    }
}

/// A state change.
pub(super) fn state_change(entry: &OutboxEntry) -> v1::TaskStateChange {
    let Report { status, stop, waiting_for, containers, .. } = &entry.report;
    let at = |time: Option<Timestamp>| time.unwrap_or_default().0;
    let status = match status {
        TaskStatus::Pending => v1::TaskStatus::Pending,
        TaskStatus::Running => v1::TaskStatus::Running,
        TaskStatus::Stopped => v1::TaskStatus::Stopped,
    };
    v1::TaskStateChange {
        sequence: entry.sequence,
        task_arn: entry.task.to_string(),
        status: status.into(),
        stop: stop
            .as_ref()
            .map(|s| v1::StopCause { code: s.code.as_str().to_owned(), reason: s.reason.clone() }),
        containers: containers.iter().map(container_state).collect(),
        waiting_for: waiting_for.clone(),
        pull_started_at_ms: at(entry.report.pull_started_at),
        pull_stopped_at_ms: at(entry.report.pull_stopped_at),
        started_at_ms: at(entry.report.started_at),
        execution_stopped_at_ms: at(entry.report.execution_stopped_at),
        stopped_at_ms: at(entry.report.stopped_at),
        attachment: match entry.report.attachment {
            None => v1::AttachmentStatus::Unspecified,
            Some(AttachmentStatus::Attaching) => v1::AttachmentStatus::Attaching,
            Some(AttachmentStatus::Attached) => v1::AttachmentStatus::Attached,
            Some(AttachmentStatus::Detached) => v1::AttachmentStatus::Detached,
        }
        .into(),
    }
}

fn container_state(report: &ContainerReport) -> v1::ContainerState {
    let status = match report.status {
        ContainerStatus::Pending | ContainerStatus::Created => v1::ContainerStatus::Pending,
        ContainerStatus::Running => v1::ContainerStatus::Running,
        ContainerStatus::Stopped => v1::ContainerStatus::Stopped,
    };
    let health = match report.health {
        None => v1::HealthStatus::Unspecified,
        Some(Health::Unknown) => v1::HealthStatus::Unknown,
        Some(Health::Healthy) => v1::HealthStatus::Healthy,
        Some(Health::Unhealthy) => v1::HealthStatus::Unhealthy,
    };
    v1::ContainerState {
        name: report.name.to_string(),
        status: status.into(),
        runtime_id: report.id.as_ref().map(ToString::to_string).unwrap_or_default(),
        exit_code: report.exit_code,
        reason: report.reason.clone().unwrap_or_default(),
        network_bindings: report.bindings.iter().map(binding).collect(),
        image_digest: report.digest.clone().unwrap_or_default(),
        health: health.into(),
        gpu_ids: report.gpus.iter().map(ToString::to_string).collect(),
    }
}

fn binding(binding: &PortBinding) -> v1::NetworkBinding {
    let protocol = match binding.protocol {
        Protocol::Tcp => v1::Protocol::Tcp,
        Protocol::Udp => v1::Protocol::Udp,
    };
    let ports = binding.container_ports;
    v1::NetworkBinding {
        bind_ip: "0.0.0.0".to_owned(),
        container_port: ports.first().into(),
        container_port_last: if ports.is_single() { 0 } else { ports.last().into() },
        host_port: binding.host_ports.first().into(),
        protocol: protocol.into(),
    }
}
