//! Rules for the definition as a whole: its set of containers, sizes, volumes, roles, constraints.

use std::collections::BTreeSet;

use berth_core::ids::is_resource_name;
use berth_core::spec::MAX_CONTAINERS;

use super::super::input::{Container, Definition, TASK_CPU, Volume};
use super::{one_of, refuse};
use crate::api::error::ApiResult;
use crate::scheduler::query::{MAX_LENGTH, Query};

/// The most placement constraints of a definition.
const MAX_CONSTRAINTS: usize = 10;

pub(super) fn check_set(definition: &Definition) -> ApiResult<()> {
    if definition.family.is_empty() {
        return refuse("Family should not be null or empty.");
    }
    if !is_resource_name(&definition.family) {
        return refuse(if definition.family.len() > 255 {
            "Family should not be longer than 255 characters."
        } else {
            "Family contains invalid characters."
        });
    }
    let containers = &definition.container_definitions;
    if containers.is_empty() {
        return refuse("Container list cannot be empty.");
    }
    if containers.len() > MAX_CONTAINERS {
        return refuse("Too many containers.");
    }
    for container in containers {
        check_name(container)?;
    }
    let names: BTreeSet<_> = containers.iter().map(|c| &c.name).collect();
    if names.len() != containers.len() {
        return refuse("Container names must be unique within a Task Definition.");
    }
    if !containers.iter().any(Container::is_essential) {
        return refuse("Task definition doesn't have any essential container.");
    }
    one_of("networkMode", definition.network_mode(), &["bridge", "host", "awsvpc", "none"])
}

fn check_name(container: &Container) -> ApiResult<()> {
    if container.name.is_empty() {
        return refuse("Container.name should not be null or empty.");
    }
    if !is_resource_name(&container.name) {
        return refuse(if container.name.len() > 255 {
            "Container.name should not be longer than 255 characters."
        } else {
            "Container.name contains invalid characters."
        });
    }
    Ok(())
}

/// Sizes of the task against those of its containers.
pub(super) fn check_sizes(definition: &Definition) -> ApiResult<()> {
    let (cpu, memory) = (definition.cpu(), definition.memory());
    if definition.cpu.is_some() && !cpu.is_some_and(|cpu| TASK_CPU.contains(&cpu)) {
        return refuse("Invalid 'cpu' setting for task.");
    }
    if definition.memory.is_some() && memory.is_none_or(|memory| memory == 0) {
        return refuse("Invalid 'memory' setting for task.");
    }
    let containers = &definition.container_definitions;
    if let Some(bound) = memory.map(i64::from) {
        for container in containers {
            if container.memory.is_some_and(|memory| memory > bound) {
                return refuse(format!(
                    "The 'memory' setting for container '{}' is greater than for the task.",
                    container.name
                ));
            }
        }
        if total(containers, |c| c.memory_reservation.unwrap_or_default()) > bound {
            return refuse(
                "The sum of all container 'memoryReservation' values cannot be greater than the value of the task 'memory'.",
            );
        }
    } else if let Some(container) =
        containers.iter().find(|c| c.memory.is_none() && c.memory_reservation.is_none())
    {
        return refuse(format!(
            "Invalid setting for container '{}'. At least one of 'memory' or 'memoryReservation' must be specified.",
            container.name
        ));
    }
    if cpu.is_some_and(|bound| total(containers, |c| c.cpu) > i64::from(bound)) {
        return refuse(
            "The sum of all container 'cpu' values cannot be greater than the value of the task 'cpu'.",
        );
    }
    Ok(())
}

fn total(containers: &[Container], amount: impl Fn(&Container) -> i64) -> i64 {
    containers.iter().fold(0, |sum: i64, c| sum.saturating_add(amount(c)))
}

pub(super) fn check_volumes(definition: &Definition) -> ApiResult<()> {
    let mut names = BTreeSet::new();
    for volume in &definition.volumes {
        if volume.name.is_empty() {
            return refuse("Volume.name should not be null or empty.");
        }
        if !is_resource_name(&volume.name) {
            return refuse("Volume.name contains invalid characters.");
        }
        if !names.insert(volume.name.as_str()) {
            return refuse("Volume names must be unique within a Task Definition.");
        }
        check_volume_kind(volume)?;
    }
    for container in &definition.container_definitions {
        for mount in &container.mount_points {
            if !names.contains(mount.source_volume.as_str()) {
                return refuse(format!("Unknown volume '{}'.", mount.source_volume));
            }
            if mount.container_path.is_empty() {
                return refuse(format!(
                    "Invalid 'containerPath' setting for a mount point of container '{}'.",
                    container.name
                ));
            }
        }
        for from in &container.volumes_from {
            if !definition.container_definitions.iter().any(|c| c.name == from.source_container) {
                return refuse(format!(
                    "Container '{}' takes volumes from container '{}', which does not exist.",
                    container.name, from.source_container
                ));
            }
        }
    }
    Ok(())
}

fn check_volume_kind(volume: &Volume) -> ApiResult<()> {
    // An empty `host` leaves the place to the engine, as none does: it is no kind of its own.
    let on_host = volume.host.as_ref().and_then(|host| host.source_path.as_ref());
    let kinds = [
        on_host.is_some_and(|path| !path.is_empty()),
        volume.docker_volume_configuration.is_some(),
        volume.efs_volume_configuration.is_some(),
        volume.fsx_windows_file_server_volume_configuration.is_some(),
    ];
    if kinds.into_iter().filter(|given| *given).count() > 1 {
        return refuse(
            "When the volume parameter is specified, only one volume configuration type should be used.",
        );
    }
    let Some(docker) = &volume.docker_volume_configuration else { return Ok(()) };
    let scope = docker.scope.as_deref().unwrap_or("task");
    one_of("dockerVolumeConfiguration.scope", scope, &["task", "shared"])?;
    if docker.autoprovision && scope != "shared" {
        return refuse(format!(
            "Volume '{}': autoprovision is only possible with the scope 'shared'.",
            volume.name
        ));
    }
    Ok(())
}

pub(super) fn check_constraints(definition: &Definition) -> ApiResult<()> {
    if definition.placement_constraints.len() > MAX_CONSTRAINTS {
        return refuse(format!("Too many placement constraints: at most {MAX_CONSTRAINTS}."));
    }
    for constraint in &definition.placement_constraints {
        if constraint.kind != "memberOf" {
            return refuse(format!("constraint.type '{}' is not supported.", constraint.kind));
        }
        let expression = constraint.expression.as_deref().unwrap_or_default();
        if expression.trim().is_empty() {
            return refuse("constraint.expression should not be null or empty.");
        }
        if expression.chars().count() > MAX_LENGTH {
            return refuse(format!(
                "constraint.expression should not be longer than {MAX_LENGTH} characters."
            ));
        }
        if let Err(error) = Query::parse(expression) {
            return refuse(format!("constraint.expression '{expression}' is not valid: {error}"));
        }
    }
    Ok(())
}

/// Members of the definition that stand alone.
pub(super) fn check_members(definition: &Definition) -> ApiResult<()> {
    for role in [&definition.task_role_arn, &definition.execution_role_arn].into_iter().flatten() {
        if !is_role(role) {
            return refuse("Role is not valid");
        }
    }
    if let Some(mode) = &definition.pid_mode {
        one_of("pidMode", mode, &["host", "task"])?;
    }
    if let Some(mode) = &definition.ipc_mode {
        one_of("ipcMode", mode, &["host", "task", "none"])?;
    }
    for kind in &definition.requires_compatibilities {
        one_of("requiresCompatibilities", kind, &["EC2", "FARGATE", "EXTERNAL", "MANAGED_INSTANCES"])?;
    }
    check_proxy(definition)?;
    if let Some(architecture) =
        definition.runtime_platform.as_ref().and_then(|p| p.cpu_architecture.as_deref())
    {
        one_of("runtimePlatform.cpuArchitecture", architecture, &["X86_64", "ARM64"])?;
    }
    Ok(())
}

/// The proxy is one of the task's own containers (API reference, `ProxyConfiguration`).
fn check_proxy(definition: &Definition) -> ApiResult<()> {
    let Some(proxy) = &definition.proxy_configuration else { return Ok(()) };
    one_of("proxyConfiguration.type", proxy.kind.as_deref().unwrap_or("APPMESH"), &["APPMESH"])?;
    if !definition.container_definitions.iter().any(|c| c.name == proxy.container_name) {
        return refuse(format!(
            "The proxy configuration names container '{}', which does not exist.",
            proxy.container_name
        ));
    }
    Ok(())
}

/// A role's ARN, or its bare name.
fn is_role(role: &str) -> bool {
    let is_name = |name: &str| {
        (1..=64).contains(&name.len())
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"+=,.@-_".contains(&b))
    };
    match role.strip_prefix("arn:") {
        None => role.is_empty() || is_name(role),
        Some(rest) => {
            let parts: Vec<&str> = rest.splitn(5, ':').collect();
            matches!(parts.as_slice(), [_, "iam", _, account, resource]
                if !account.is_empty() && resource.strip_prefix("role/").and_then(|path| path.rsplit('/').next()).is_some_and(is_name))
        }
    }
}
