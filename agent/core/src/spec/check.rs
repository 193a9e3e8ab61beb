//! The rules that a specification must keep before it exists.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Condition, ContainerSpec, Dependency, MAX_CONTAINERS, NetworkMode, TaskFields, TaskSpec, VolumeSource,
    firelens, host_ports,
};
use crate::ids::ContainerName;
use crate::units::Protocol;

/// Why a specification is refused: the field, and what is wrong with it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct InvalidSpec {
    /// The path of the field, such as `containers[web].portMappings`.
    pub field: String,
    /// What is wrong.
    pub problem: String,
}

pub(super) fn invalid<T>(field: impl Into<String>, problem: impl Into<String>) -> Result<T, InvalidSpec> {
    Err(InvalidSpec { field: field.into(), problem: problem.into() })
}

impl TryFrom<TaskFields> for TaskSpec {
    type Error = InvalidSpec;

    fn try_from(mut fields: TaskFields) -> Result<Self, InvalidSpec> {
        check_set(&fields)?;
        if fields.attachment.is_some() && fields.network_mode != NetworkMode::Awsvpc {
            return invalid("attachment", "only possible in network mode awsvpc");
        }
        let router = fields.router().map(|(router, _)| router.name.clone());
        for container in &mut fields.containers {
            depend_on_others(container, router.as_ref());
        }
        firelens::check(&fields)?;
        check_volumes(&fields)?;
        for container in &fields.containers {
            check_container(&fields, container)?;
        }
        check_host_ports(&fields)?;
        check_dependencies(&fields)?;
        Ok(Self(fields))
    }
}

/// What is linked, what has the mount points of this one, and what its output goes to must be there
/// first, whether or not the definition says so.
fn depend_on_others(container: &mut ContainerSpec, router: Option<&ContainerName>) {
    let linked = container.links.iter().map(|link| &link.container);
    let sources = container.volumes_from.iter().map(|from| &from.container);
    // The router may log to itself.
    let router = router.filter(|router| container.logs_to_router() && **router != container.name);
    let others: BTreeSet<_> = linked.chain(sources).chain(router).cloned().collect();
    for other in others {
        if !container.depends_on.iter().any(|d| d.container == other) {
            container.depends_on.push(Dependency { container: other, condition: Condition::Start });
        }
    }
}

fn check_volumes(fields: &TaskFields) -> Result<(), InvalidSpec> {
    let mut names = BTreeSet::new();
    for volume in &fields.volumes {
        if volume.name.is_empty() || !names.insert(volume.name.as_str()) {
            return invalid("volumes", format!("{:?} is no name, or that of two volumes", volume.name));
        }
        if let VolumeSource::Host { path } = &volume.source
            && !path.starts_with('/')
        {
            return invalid(format!("volumes[{}].host.sourcePath", volume.name), "is not an absolute path");
        }
    }
    for container in &fields.containers {
        let at = |field: &str| format!("containers[{}].{field}", container.name);
        for mount in &container.mount_points {
            if !names.contains(mount.volume.as_str()) {
                return invalid(at("mountPoints"), format!("the task has no volume {:?}", mount.volume));
            }
            if !mount.path.starts_with('/') {
                return invalid(at("mountPoints"), format!("{:?} is not an absolute path", mount.path));
            }
        }
        if let Some(from) = container.volumes_from.iter().find(|from| from.container == container.name) {
            return invalid(at("volumesFrom"), format!("{} is the container itself", from.container));
        }
    }
    Ok(())
}

fn check_set(fields: &TaskFields) -> Result<(), InvalidSpec> {
    let containers = &fields.containers;
    if containers.is_empty() {
        return invalid("containers", "a task has at least one container");
    }
    if containers.len() > MAX_CONTAINERS {
        return invalid("containers", format!("{} containers, at most {MAX_CONTAINERS}", containers.len()));
    }
    let names: BTreeSet<_> = containers.iter().map(|c| &c.name).collect();
    if names.len() != containers.len() {
        return invalid("containers", "two containers have the same name");
    }
    if !containers.iter().any(|c| c.essential) {
        return invalid("containers", "no container is essential");
    }
    Ok(())
}

fn check_container(task: &TaskFields, container: &ContainerSpec) -> Result<(), InvalidSpec> {
    let at = |field: &str| format!("containers[{}].{field}", container.name);
    if container.image.trim().is_empty() {
        return invalid(at("image"), "is empty");
    }
    if task.memory.is_none() && container.memory.is_none() && container.memory_reservation.is_none() {
        return invalid(
            at("memory"),
            "the task has no memory bound, so memory or memoryReservation is needed",
        );
    }
    if let (Some(hard), Some(soft)) = (container.memory, container.memory_reservation)
        && hard < soft
    {
        return invalid(at("memory"), format!("{hard} is less than memoryReservation, {soft}"));
    }
    if let (Some(hard), Some(bound)) = (container.memory, task.memory)
        && hard > bound
    {
        return invalid(at("memory"), format!("{hard} is more than the task's {bound}"));
    }
    for mapping in &container.ports {
        let fixed = mapping.static_host_ports();
        if mapping.host.is_some() && fixed.is_none() {
            return invalid(at("portMappings"), "the host ports reach past 65535");
        }
        match task.network_mode {
            NetworkMode::None => {
                return invalid(at("portMappings"), "not possible in network mode none");
            }
            NetworkMode::Host | NetworkMode::Awsvpc
                if fixed.is_some_and(|host| host != mapping.container) =>
            {
                return invalid(
                    at("portMappings"),
                    "host port and container port must be the same in this network mode",
                );
            }
            _ => {}
        }
    }
    if !container.links.is_empty() && task.network_mode != NetworkMode::Bridge {
        return invalid(at("links"), "only possible in network mode bridge");
    }
    if let Some(check) = &container.health_check
        && check.command.is_empty()
    {
        return invalid(at("healthCheck.command"), "is empty");
    }
    Ok(())
}

fn check_host_ports(fields: &TaskFields) -> Result<(), InvalidSpec> {
    // Ranges that share no port, as last by first: one may have all ports there are.
    let mut seen: [BTreeMap<u16, u16>; 2] = Default::default();
    for container in &fields.containers {
        for mapping in &container.ports {
            let Some(range) = host_ports(fields.network_mode, mapping) else { continue };
            let seen = &mut seen[usize::from(mapping.protocol == Protocol::Udp)];
            let before = seen.range(..=range.first()).next_back().filter(|(_, last)| **last >= range.first());
            let twice = before.map(|_| range.first());
            let within = || seen.range(range.ports()).next().map(|(first, _)| *first);
            if let Some(port) = twice.or_else(within) {
                return invalid(
                    format!("containers[{}].portMappings", container.name),
                    format!("{} host port {port} is used twice in the task", mapping.protocol),
                );
            }
            seen.insert(range.first(), range.last());
        }
    }
    Ok(())
}

fn check_dependencies(fields: &TaskFields) -> Result<(), InvalidSpec> {
    for container in &fields.containers {
        let at = format!("containers[{}].dependsOn", container.name);
        for dependency in &container.depends_on {
            let Some(other) = fields.containers.iter().find(|c| c.name == dependency.container) else {
                return invalid(at, format!("there is no container {}", dependency.container));
            };
            match dependency.condition {
                Condition::Complete | Condition::Success if other.essential => {
                    return invalid(
                        at,
                        format!("{} is essential and may not end before the task", other.name),
                    );
                }
                Condition::Healthy if other.health_check.is_none() => {
                    return invalid(at, format!("{} has no health check", other.name));
                }
                _ => {}
            }
        }
    }
    // Peel off containers whose dependencies are all peeled; what remains is a cycle.
    let mut left: Vec<&ContainerSpec> = fields.containers.iter().collect();
    loop {
        let names: BTreeSet<_> = left.iter().map(|c| &c.name).collect();
        let before = left.len();
        left.retain(|c| c.depends_on.iter().any(|d| names.contains(&d.container)));
        if left.is_empty() {
            return Ok(());
        }
        if left.len() == before {
            return invalid(
                format!("containers[{}].dependsOn", left[0].name),
                "the dependencies form a cycle",
            );
        }
    }
}
