//! What a container is told of itself: where to ask, and its metadata file. The file follows the
//! container's life from beside its task's actor, which waits for no disk.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use berth_core::ids::{ContainerName, TaskArn};
use berth_core::spec::{ContainerSpec, EnvVar, NetworkMode, TaskSpec};
use berth_core::task::{Container, ContainerStatus, Task};
use berth_core::units::Timestamp;
use tokio::sync::watch;

use super::Shared;
use crate::effects;
use crate::metadata_file::{Life, MetadataFiles};
use crate::runtime::{Fetched, HostMount};

/// The pause before a file is tried again that could not be written, and the longest.
const AGAIN: Duration = Duration::from_secs(1);
const AGAIN_MAX: Duration = Duration::from_secs(30);
/// Longest that the engine may take to tell of a container.
const DETAILS: Duration = Duration::from_secs(5);

/// Tells a container where to ask about itself; one without a network cannot ask.
pub(super) fn with_endpoint(
    mut fetched: Fetched,
    shared: &Shared,
    spec: &TaskSpec,
    container: &ContainerSpec,
) -> Fetched {
    let var = |name: &str, value: String| EnvVar { name: name.to_owned(), value };
    let region = spec.arn.region().to_owned();
    for (name, value) in [
        ("AWS_EXECUTION_ENV", "AWS_ECS_EC2".to_owned()),
        ("AWS_REGION", region.clone()),
        ("AWS_DEFAULT_REGION", region),
    ] {
        fetched.below.insert(0, var(name, value));
    }
    let reaches = spec.network_mode != NetworkMode::None && !container.disable_networking;
    if let (true, Some(base), Some(id)) =
        (reaches, &shared.endpoint, shared.path_ids.of(&spec.arn, &container.name))
    {
        fetched.above.push(var("ECS_CONTAINER_METADATA_URI", format!("{base}/v3/{id}")));
        fetched.above.push(var("ECS_CONTAINER_METADATA_URI_V4", format!("{base}/v4/{id}")));
        fetched.above.push(var("ECS_AGENT_URI", format!("{base}/api/{id}")));
        if spec.task_role.is_some() {
            let path = format!("/v2/credentials/{}", shared.path_ids.of_task(&spec.arn).unwrap_or_default());
            fetched.above.push(var("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", path));
        }
    }
    fetched
}

/// Makes the file of a container that is about to be made. One whose file cannot be made does without.
pub(super) async fn begin_file(
    shared: &Shared,
    spec: &Arc<TaskSpec>,
    container: &ContainerName,
) -> Option<(HostMount, EnvVar)> {
    let files = shared.metadata_files.as_ref().filter(|files| files.makes())?;
    let (task, name, instance) = (Arc::clone(spec), container.clone(), shared.instance());
    let begin = files.off_runtime(move |files| files.begin(&task, &name, instance.as_ref()));
    let begun = shared.effects.around(effects::METADATA_BEGIN, io::Error::other, begin).await;
    begun
        .map_err(|error| {
            tracing::warn!(task = %spec.arn, %container, %error, "the container gets no metadata file");
        })
        .ok()
}

/// Removes the file of a container that is gone.
pub(super) async fn remove_file(shared: &Shared, task: &TaskArn, container: &ContainerName) {
    let Some(files) = &shared.metadata_files else { return };
    let (arn, name) = (task.clone(), container.clone());
    let removal = files.off_runtime(move |files| files.remove(&arn, &name));
    if let Err(error) = shared.effects.around(effects::METADATA_REMOVE, io::Error::other, removal).await {
        tracing::warn!(%task, %container, %error, "a metadata file stays until the agent starts again");
    }
}

/// Removes all files of a task that is gone.
pub(super) async fn remove_files(shared: &Shared, task: &TaskArn) {
    let Some(files) = &shared.metadata_files else { return };
    let id = task.id().to_owned();
    let removal = files.off_runtime(move |files| files.forget(&id));
    if let Err(error) = shared.effects.around(effects::METADATA_FORGET, io::Error::other, removal).await {
        tracing::warn!(%task, %error, "metadata files stay until the agent starts again");
    }
}

/// Removes files that belong to no task.
pub(super) async fn sweep_files(shared: &Shared) {
    let Some(files) = &shared.metadata_files else { return };
    let left_over = match files.off_runtime(MetadataFiles::list).await {
        Ok(ids) => ids,
        Err(error) => {
            tracing::warn!(%error, "cannot look for metadata files that were left over");
            return;
        }
    };
    // A task is known before it has a file.
    let known: Vec<String> =
        shared.registry.views().iter().map(|task| task.spec().arn.id().to_owned()).collect();
    for task in left_over.into_iter().filter(|id| !known.contains(id)) {
        let id = task.clone();
        match files.off_runtime(move |files| files.forget(&id)).await {
            Ok(()) => tracing::info!(task, "removed metadata files that were left over"),
            Err(error) => tracing::warn!(task, %error, "metadata files that were left over"),
        }
    }
}

/// Keeps the files of a task's containers true for as long as the task is here: each is written once in
/// each life of its container. In one loop, so that an older life never comes after a newer one.
pub(super) async fn follow(shared: Arc<Shared>, mut view: watch::Receiver<Arc<Task>>) {
    let mut told: HashMap<ContainerName, Timestamp> = HashMap::new();
    let mut pause = AGAIN;
    loop {
        let task = Arc::clone(&view.borrow_and_update());
        let mut failed = false;
        for container in &task.state().containers {
            let Some(life) = life_of(&shared, &task, container) else { continue };
            if told.get(&container.name) == Some(&life.started_at) {
                continue;
            }
            let started_at = life.started_at;
            match tell(&shared, &task, life).await {
                Ok(()) => {
                    told.insert(container.name.clone(), started_at);
                }
                Err(error) => {
                    tracing::debug!(
                        task = %task.spec().arn, container = %container.name, %error, "a metadata file waits"
                    );
                    failed = true;
                }
            }
        }
        // The value of a watch stays until it is marked as seen.
        let changed = view.changed();
        let goes_on = if failed {
            let changed = tokio::time::timeout(pause, changed).await;
            pause = (pause * 2).min(AGAIN_MAX);
            changed.unwrap_or(Ok(()))
        } else {
            pause = AGAIN;
            changed.await
        };
        if goes_on.is_err() {
            return;
        }
    }
}

/// The present life of a container; `None` where it does not run.
fn life_of(shared: &Shared, task: &Task, container: &Container) -> Option<Life> {
    let runs = container.status == ContainerStatus::Running;
    Some(Life {
        task: Arc::clone(task.spec()),
        container: container.name.clone(),
        id: container.id.clone().filter(|_| runs)?,
        started_at: container.started_at?,
        instance: shared.instance(),
    })
}

async fn tell(shared: &Shared, task: &Task, life: Life) -> io::Result<()> {
    let Some(files) = &shared.metadata_files else { return Ok(()) };
    let life = Arc::new(life);
    let known = Arc::clone(&life);
    if files.off_runtime(move |files| Ok(files.is_told(&known))).await? {
        return Ok(());
    }
    let details = tokio::time::timeout(DETAILS, shared.runtime.details(&life.id)).await;
    let details = details.map_err(io::Error::other)?.map_err(io::Error::other)?;
    // It has ended meanwhile; its task is about to hear of that.
    let details = details.filter(|details| details.pid != 0);
    let details = details.ok_or_else(|| io::Error::other("the container does not run"))?;
    let bindings = task.bindings(&life.container);
    let ready = files.off_runtime(move |files| files.ready(&life, &bindings, &details));
    shared.effects.around(effects::METADATA_TELL, io::Error::other, ready).await
}
