//! Makes a container: puts together what the container engine is asked for, from the task's
//! specification, from what was acquired for it, and from what the agent adds. Removes one that comes too late.

use std::net::IpAddr;
use std::sync::Arc;

use berth_core::ids::{ContainerName, EngineId, GpuId};
use berth_core::spec::{ContainerSpec, NetworkMode, TaskSpec};
use berth_core::task::{ErrorClass, Fact, Failure, Outcome, PortBinding};
use berth_core::units::Millis;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::keepsake::{engine_name, labels_of, volume_name};
use super::perform::{failure, into_outcome, own_volumes, within};
use super::{Shared, inform, suspects};
use crate::firelens;
use crate::runtime::{CreateRequest, Fetched, Runtime, RuntimeError};

/// How much longer the engine is listened to about a container that nobody waits for any more, and how long its
/// removal may take.
const LATE: Millis = Millis::from_secs(3600);

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
            make(shared, spec, request).await
        };
        made.await.map_err(|e| failure(ErrorClass::CannotCreateContainer, e))
    };
    let made = within(shared.timeouts.create, "CREATED", call).await;
    let made = made.map_err(|failure| suspects::named(failure, spec, container));
    into_outcome(made, |id| Outcome::Fact(Fact::Created { id }))
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

/// Has a container made on a future of its own. The engine does not hear that whoever asked has lost patience, or
/// wants no container any more: what is made all the same is removed again, and so are volumes that nobody has.
async fn make(
    shared: &Shared,
    spec: &Arc<TaskSpec>,
    request: CreateRequest,
) -> Result<EngineId, RuntimeError> {
    let (tell, told) = oneshot::channel();
    let (runtime, spec) = (Arc::clone(&shared.runtime), Arc::clone(spec));
    let limit = Millis(shared.timeouts.create.0.saturating_add(LATE.0));
    shared.tracker.spawn_droppable("create", async move {
        let name = request.name.clone();
        let Ok(made) = timeout(limit.as_duration(), anew(&*runtime, request)).await else { return };
        let Err(Ok(id)) = tell.send(made) else { return };
        tracing::info!(task = %spec.arn, container = name, "it was made too late, and is removed again");
        let removed = timeout(LATE.as_duration(), discard(&*runtime, &spec, &id)).await;
        if !matches!(removed, Ok(Ok(()))) {
            tracing::warn!(task = %spec.arn, container = name, ?removed, "it is removed with the task's records, if not before");
        }
    });
    // Without an answer the agent is stopping, or has given up what the engine does not.
    told.await.unwrap_or_else(|_| Err(RuntimeError::Unavailable("no answer".to_owned())))
}

/// Makes a container, over one that an earlier life of the agent left which lost its records: its start was on its
/// way then, and came about since. With what it was made with, it is no use to the task any more.
async fn anew(runtime: &dyn Runtime, request: CreateRequest) -> Result<EngineId, RuntimeError> {
    match runtime.create(request.clone()).await {
        Err(RuntimeError::StartedBefore(id)) => {
            tracing::warn!(task = %request.task.arn, container = request.name, "started and not on record: it is made anew");
            // An engine that refuses has none to kill any more: it has ended by itself.
            if let Err(away @ RuntimeError::Unavailable(_)) = runtime.kill(&id).await {
                return Err(away);
            }
            runtime.remove(&id).await?;
            runtime.create(request).await
        }
        made => made,
    }
}

/// Removes a container that never ran, and the task's own volumes that no other container has.
async fn discard(runtime: &dyn Runtime, spec: &TaskSpec, id: &EngineId) -> Result<(), RuntimeError> {
    runtime.remove(id).await?;
    for volume in own_volumes(spec) {
        runtime.remove_volume(&volume).await?;
    }
    Ok(())
}
