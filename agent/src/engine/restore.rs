//! After a start: what was persisted and what the engine has are brought together. Tasks that are
//! known are restored, tasks that are not are rebuilt from the labels of their containers.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use berth_core::ids::{ContainerInstanceArn, ContainerName, TaskArn};
use berth_core::task::{Event, Fact, ResourceKey, ResourceStatus, Task};
use futures_util::StreamExt;
use tokio::time::timeout;

use super::Shared;
use super::keepsake::Keepsake;
use crate::clock;
use crate::network::Survivor;
use crate::runtime::{Listed, RuntimeError};
use crate::store::Saved;

/// Looks at the engine that may be under way at once.
const LOOKS: usize = 8;
/// Longest that a look at one container may take: the engine says nothing of one that it is busy with, such as
/// for want of a volume, and the others are not to wait for that.
const GLANCE: Duration = Duration::from_secs(3);

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
pub(super) fn reunite(shared: &Shared, saved: Saved, mut world: World) -> Vec<(Task, Vec<Event>)> {
    let now = clock::now();
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
        let settings = shared.settings_of(&spec.arn);
        let task = Task::adopted(Arc::new(spec), settings, &bindings, &gpus, now);
        tasks.push((task, vec![Event::Restored(found.facts)]));
    }
    for (task, _) in &tasks {
        // What was given back before is somebody else's by now.
        let held = task.state().resources.iter().filter(|r| r.status != ResourceStatus::Gone);
        for resource in held {
            match &resource.key {
                ResourceKey::Ports(_) => shared.ports.adopt(&task.spec().arn, &resource.yielded.ports),
                ResourceKey::Gpus(of) => shared.gpus.adopt(&task.spec().arn, of, &resource.yielded.gpus),
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
    shared.network.restore(&survivors).await.unwrap_or_else(|error| {
        tracing::error!(%error, "the networks of tasks could not be looked at");
        Vec::new()
    })
}

/// What a task is told if it is one of those that lost their network.
pub(super) fn loss_of(task: &Task, lost: &[TaskArn]) -> Option<Event> {
    let holder = task.resource(&ResourceKey::Namespace)?.yielded.holder.clone()?;
    lost.contains(&task.spec().arn).then_some(Event::NamespaceLost { holder })
}
