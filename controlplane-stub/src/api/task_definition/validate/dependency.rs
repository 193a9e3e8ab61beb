//! Rules for what containers wait for: dependsOn, and links, volumesFrom and logging to the task's log
//! router, which count as START.

use super::super::input::{Container, Definition};
use super::{one_of, refuse};
use crate::api::error::ApiResult;

pub(super) fn check(definition: &Definition) -> ApiResult<()> {
    let containers = &definition.container_definitions;
    for container in containers {
        for dependency in &container.depends_on {
            let Some(other) = containers.iter().find(|c| c.name == dependency.container_name) else {
                return refuse(format!(
                    "Cannot depend on container + '{}' because it does not exist",
                    dependency.container_name
                ));
            };
            one_of(
                "ContainerDependency.condition",
                &dependency.condition,
                &["START", "COMPLETE", "SUCCESS", "HEALTHY"],
            )?;
            match dependency.condition.as_str() {
                "COMPLETE" | "SUCCESS" if other.is_essential() => {
                    return refuse(
                        "A dependency container with SUCCESS or COMPLETE condition cannot be an essential container",
                    );
                }
                "HEALTHY" if other.health_check.is_none() => {
                    return refuse(format!(
                        "Container '{}' depends on container '{}' being HEALTHY, but that one has no health check.",
                        container.name, other.name
                    ));
                }
                _ => {}
            }
        }
        for link in &container.links {
            if !containers.iter().any(|c| c.name == linked(link)) {
                return refuse(format!(
                    "Container '{}' links to container '{}', which does not exist.",
                    container.name,
                    linked(link)
                ));
            }
        }
    }
    if cyclic(containers, |c| c.links.iter().map(|link| linked(link)).collect()) {
        return refuse("Container links should not have a cycle");
    }
    let router = containers.iter().find(|c| c.firelens_configuration.is_some());
    if cyclic(containers, |container| edges(container, router)) {
        return refuse("Container dependencies should not have a cycle");
    }
    Ok(())
}

/// The container of a link `name[:alias]`.
fn linked(link: &str) -> &str {
    link.split(':').next().unwrap_or(link)
}

fn edges<'a>(container: &'a Container, router: Option<&'a Container>) -> Vec<&'a str> {
    let depends = container.depends_on.iter().map(|d| d.container_name.as_str());
    let links = container.links.iter().map(|link| linked(link));
    let volumes = container.volumes_from.iter().map(|from| from.source_container.as_str());
    let router = router.filter(|r| container.logs_to_router() && r.name != container.name);
    depends.chain(links).chain(volumes).chain(router.map(|router| router.name.as_str())).collect()
}

/// Peels off containers whose edges lead to peeled ones; what remains is a cycle.
fn cyclic<'a>(containers: &'a [Container], edges: impl Fn(&'a Container) -> Vec<&'a str>) -> bool {
    let mut left: Vec<&Container> = containers.iter().collect();
    loop {
        let names: Vec<&str> = left.iter().map(|c| c.name.as_str()).collect();
        let before = left.len();
        left.retain(|c| edges(c).iter().any(|edge| names.contains(edge)));
        if left.is_empty() {
            return false;
        }
        if left.len() == before {
            return true;
        }
    }
}
