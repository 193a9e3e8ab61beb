//! After a start: what was persisted and what the engine has are brought together. Tasks that are
//! known are restored, tasks that are not are rebuilt from the labels of their containers.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use berth_core::ids::{ContainerInstanceArn, ContainerName, TaskArn};
use berth_core::task::{Event, Fact, ResourceKey, ResourceStatus, Task};
use berth_core::units::Timestamp;
use futures_util::StreamExt;
use tokio::time::timeout;

use super::Shared;
use super::keepsake::Keepsake;
use crate::network::Survivor;
use crate::runtime::{Listed, RuntimeError};
use crate::store::Saved;

/// Looks at the engine that may be under way at once.
const LOOKS: usize = 8;
/// Longest that a look at one container may take: the engine says nothing of one that it is busy with, such as
/// for want of a volume, and the others are not to wait for that.
const GLANCE: Duration = Duration::from_secs(3);

/// Longest that a look at the networks of all tasks may take, and how often it is tried before the agent goes on
/// without.
const LOOK_AT_NETWORKS: Duration = Duration::from_secs(30);
const LOOKS_AT_NETWORKS: u32 = 3;
const AGAIN: Duration = Duration::from_millis(500);
/// Longest that the list of all containers may take, on a busy host.
const LISTING: Duration = Duration::from_secs(60);

/// What the engine has of one task.
#[derive(Debug, Default)]
struct Found {
    facts: Vec<(ContainerName, Fact)>,
    keepsakes: Vec<(ContainerName, String)>,
}

/// What the engine has of all our tasks.
#[derive(Debug, Default)]
pub struct World {
    tasks: BTreeMap<TaskArn, Found>,
    /// The instance that made the containers, where their labels tell.
    pub instance: Option<ContainerInstanceArn>,
    /// The moment before the look, as a cursor for events.
    pub(super) cursor: i64,
}

/// Asks the engine for everything that is ours.
///
/// # Errors
/// The engine's, when it does not answer.
pub async fn look(runtime: &dyn crate::runtime::Runtime) -> Result<World, RuntimeError> {
    let cursor = i64::try_from(runtime.now().0).unwrap_or(i64::MAX).saturating_mul(1_000_000);
    let listed = timeout(LISTING, runtime.list()).await;
    let listed = listed
        .unwrap_or_else(|_| Err(RuntimeError::Unavailable("it does not list its containers".to_owned())))?;
    let looks = futures_util::stream::iter(listed).map(|listed| async move {
        let fact = match &listed.fact {
            Some(fact) => Ok(fact.clone()),
            None => {
                let id = listed.id.clone();
                timeout(GLANCE, runtime.inspect(&listed.id)).await.unwrap_or(Ok(Fact::Silent { id }))
            }
        };
        (listed, fact)
    });
    let mut looks = looks.buffer_unordered(LOOKS);
    let mut world = World { cursor, ..World::default() };
    while let Some((listed, fact)) = looks.next().await {
        let Listed { task, container, instance, spec, .. } = listed;
        world.instance = world.instance.or(instance);
        let found = world.tasks.entry(task).or_default();
        found.keepsakes.extend(spec.map(|spec| (container.clone(), spec)));
        found.facts.push((container, fact?));
    }
    Ok(world)
}

/// Brings what was persisted and what was found together.
pub(super) fn reunite(
    shared: &Shared,
    saved: Saved,
    mut world: World,
    now: Timestamp,
) -> Vec<(Task, Vec<Event>)> {
    let settled = saved.identity.as_ref().is_some_and(|identity| identity.settled);
    let mut tasks = Vec::new();
    for (spec, state) in saved.tasks {
        let found = world.tasks.remove(&spec.arn).unwrap_or_default();
        tasks.push((
            Task::restored(Arc::clone(&spec), shared.settings_of(&spec.arn), state),
            vec![if saved.rebooted { Event::Rebooted(found.facts) } else { Event::Restored(found.facts) }],
        ));
    }
    for (arn, found) in world.tasks {
        let read = |(name, json): &(ContainerName, String)| {
            serde_json::from_str::<Keepsake>(json).ok().map(|keepsake| (name.clone(), keepsake))
        };
        let keepsakes: Vec<(ContainerName, Keepsake)> = found.keepsakes.iter().filter_map(read).collect();
        let Some(spec) = keepsakes.first().map(|(_, k)| k.spec.clone()).filter(|spec| spec.arn == arn) else {
            tracing::warn!(task = %arn, "containers of an unknown task carry no readable specification; they are left alone");
            continue;
        };
        tracing::info!(task = %arn, "rebuilt from the labels of its containers");
        for (container, keepsake) in &keepsakes {
            shared.path_ids.adopt(&arn, container, &keepsake.path_ids);
        }
        let (mut bindings, mut gpus) = (Vec::new(), BTreeMap::new());
        for (container, keepsake) in keepsakes {
            bindings.extend(keepsake.bindings);
            gpus.insert(container, keepsake.gpus);
        }
        let never_ran = |fact: &Fact| match fact {
            Fact::Created { .. } => true,
            // A state that knew all tasks has forgotten this one: nothing of it ran then.
            Fact::Silent { .. } => settled,
            _ => false,
        };
        if found.facts.iter().all(|(_, fact)| never_ran(fact)) {
            // The engine was late with it, or the control plane is about to ask for it once more.
            tracing::info!(task = %arn, "containers of an unknown task that never ran are not taken for a task");
            continue;
        }
        let settings = shared.settings_of(&spec.arn);
        let runs = |(_, fact): &(_, Fact)| matches!(fact, Fact::Running { .. } | Fact::Silent { .. });
        let task = if found.facts.iter().any(runs) {
            Task::adopted(Arc::new(spec), settings, &bindings, &gpus, now)
        } else {
            Task::found_at_rest(Arc::new(spec), settings, now)
        };
        tasks.push((task, vec![Event::Restored(found.facts)]));
    }
    for (task, _) in &tasks {
        // What was given back before is somebody else's by now.
        let held = task.state().resources.iter().filter(|r| r.status != ResourceStatus::Gone);
        for resource in held {
            match &resource.key {
                ResourceKey::Ports(_) => shared.ports.adopt(&task.spec().arn, &resource.yielded.ports),
                ResourceKey::Gpus(of) => shared.gpus.adopt(&task.spec().arn, of, &resource.yielded.gpus),
                ResourceKey::Faults => shared.faults.open(task.spec()),
                _ => {}
            }
        }
    }
    tasks.sort_by_key(|(task, _)| task.state().created_at);
    tasks
}

/// Brings the networks of the tasks that are left and the host together; the tasks that have lost
/// theirs.
pub(super) async fn reconnect(shared: &Shared, found: &[(Task, Vec<Event>)]) -> Vec<TaskArn> {
    let survivors: Vec<Survivor> = found
        .iter()
        .filter_map(|(task, _)| {
            let namespace = task.resource(&ResourceKey::Namespace)?;
            let is_left = namespace.status != ResourceStatus::Gone;
            is_left.then(|| (Arc::clone(task.spec()), namespace.yielded.holder.clone()))
        })
        .collect();
    for _ in 0..LOOKS_AT_NETWORKS {
        match timeout(LOOK_AT_NETWORKS, shared.network.restore(&survivors)).await {
            Ok(Ok(lost)) => return lost,
            Ok(Err(error)) => tracing::error!(%error, "the networks of tasks could not be looked at"),
            Err(_) => tracing::error!(
                "the networks of tasks could not be looked at within {} s",
                LOOK_AT_NETWORKS.as_secs()
            ),
        }
        tokio::time::sleep(AGAIN).await;
    }
    Vec::new()
}

/// What a task is told if it is one of those that lost their network.
pub(super) fn loss_of(task: &Task, lost: &[TaskArn]) -> Option<Event> {
    let holder = task.resource(&ResourceKey::Namespace)?.yielded.holder.clone()?;
    lost.contains(&task.spec().arn).then_some(Event::NamespaceLost { holder })
}
