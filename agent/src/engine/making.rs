//! Makes a container: puts together what the container engine is asked for, from the task's
//! specification, from what was acquired for it, and from what the agent adds.

use std::net::IpAddr;
use std::sync::Arc;

use berth_core::ids::{ContainerName, EngineId, GpuId};
use berth_core::spec::{ContainerSpec, NetworkMode, TaskSpec};
use berth_core::task::{ErrorClass, Fact, Failure, Outcome, PortBinding};

use super::keepsake::{engine_name, labels_of, volume_name};
use super::perform::{failure, into_outcome, within};
use super::{Shared, inform};
use crate::firelens;
use crate::runtime::{CreateRequest, Fetched, RuntimeError};

/// What was acquired for a container.
pub(super) struct Place {
    /// Its host ports, chosen and fixed ones.
    pub(super) bindings: Vec<PortBinding>,
    /// Its GPUs.
    pub(super) gpus: Vec<GpuId>,
    /// The cgroup that it goes under.
    pub(super) cgroup_parent: Option<String>,
    /// The container that holds its namespaces.
    pub(super) holder: Option<EngineId>,
}

/// Makes a container of the task.
pub(super) async fn create(
    shared: &Shared,
    spec: &Arc<TaskSpec>,
    container: &ContainerName,
    place: Place,
) -> Outcome {
    let Some(index) = spec.containers.iter().position(|c| &c.name == container) else {
        return Outcome::Fact(Fact::Missing);
    };
    let Some(fetched) = shared.environments.held_for(spec, &spec.containers[index]) else {
        let detail = "the values of its secrets are not here";
        return Outcome::Failed(Failure::refused(ErrorClass::ResourceInitialization, detail));
    };
    let call = async {
        let made = async {
            let router_at = router_address(shared, spec, &spec.containers[index]).await?;
            let (file, variable) = inform::begin_file(shared, spec, container).await.unzip();
            let mut request = request(shared, spec, index, place, fetched, router_at);
            request.host_mounts.extend(file);
            request.fetched.above.extend(variable);
            shared.runtime.create(request).await
        };
        made.await.map_err(|e| failure(ErrorClass::CannotCreateContainer, e))
    };
    into_outcome(within(shared.timeouts.create, "CREATED", call).await, |id| {
        Outcome::Fact(Fact::Created { id })
    })
}

fn request(
    shared: &Shared,
    spec: &Arc<TaskSpec>,
    index: usize,
    place: Place,
    fetched: Fetched,
    router_at: Option<IpAddr>,
) -> CreateRequest {
    let container = &spec.containers[index];
    let mut fetched = inform::with_endpoint(fetched, shared, spec, container);
    fetched.above.extend(firelens::variables(spec, container, router_at));
    let path_ids = shared.path_ids.kept(&spec.arn, &container.name);
    let instance = shared.instance();
    CreateRequest {
        name: engine_name(spec, &container.name),
        task: Arc::clone(spec),
        container: index,
        labels: labels_of(
            spec,
            &container.name,
            (&place.bindings, &place.gpus),
            path_ids,
            &shared.agent,
            instance.as_ref(),
        ),
        bindings: place.bindings,
        gpus: place.gpus,
        links: container
            .links
            .iter()
            .map(|link| (engine_name(spec, &link.container), link.alias.clone()))
            .collect(),
        volumes: spec
            .volumes
            .iter()
            .filter_map(|volume| Some((volume.name.clone(), volume_name(spec, volume)?)))
            .collect(),
        volumes_from: container
            .volumes_from
            .iter()
            .map(|from| (engine_name(spec, &from.container), from.read_only))
            .collect(),
        host_mounts: shared.log_routers.mounts(spec, container),
        log: shared.log_routers.log(spec, container),
        cgroup_parent: place.cgroup_parent,
        holder: place.holder,
        fetched,
    }
}

/// Where on the bridge the router is that a container logs to; `None` for one that logs to none, or to
/// one that has no address any more.
async fn router_address(
    shared: &Shared,
    spec: &TaskSpec,
    container: &ContainerSpec,
) -> Result<Option<IpAddr>, RuntimeError> {
    let router =
        spec.router().filter(|(router, _)| container.logs_to_router() && router.name != container.name);
    let Some((router, _)) = router.filter(|_| spec.network_mode == NetworkMode::Bridge) else {
        return Ok(None);
    };
    // A name of that form is an id: the engine takes both.
    let Ok(id) = EngineId::new(engine_name(spec, &router.name)) else {
        return Ok(None);
    };
    let details = shared.runtime.details(&id).await?;
    let mut addresses = details.into_iter().flat_map(|d| d.networks).flat_map(|network| network.addresses);
    Ok(addresses.next())
}
