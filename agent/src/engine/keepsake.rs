//! What a container carries in its labels, so that a lost state can be rebuilt from the engine alone.

use std::collections::BTreeMap;

use berth_core::ids::{ContainerInstanceArn, ContainerName, GpuId};
use berth_core::spec::{TaskSpec, Volume, VolumeSource};
use berth_core::task::PortBinding;
use serde::{Deserialize, Serialize};

use super::path_ids::KeptIds;
use crate::runtime::labels;

/// The label [`labels::SPEC`], as JSON.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Keepsake {
    /// The whole task.
    pub(super) spec: TaskSpec,
    /// The host ports that were chosen for this container.
    #[serde(default)]
    pub(super) bindings: Vec<PortBinding>,
    /// The GPUs that were chosen for this container.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) gpus: Vec<GpuId>,
    /// The names by which this container asks about itself.
    #[serde(default)]
    pub(super) path_ids: KeptIds,
}

/// All labels of the agent for a container.
pub(super) fn labels_of(
    spec: &TaskSpec,
    container: &ContainerName,
    (bindings, gpus): (&[PortBinding], &[GpuId]),
    path_ids: KeptIds,
    agent: &str,
    instance: Option<&ContainerInstanceArn>,
) -> BTreeMap<String, String> {
    let keepsake =
        Keepsake { spec: spec.clone(), bindings: bindings.to_vec(), gpus: gpus.to_vec(), path_ids };
    let mut all = BTreeMap::from([
        (labels::CLUSTER.to_owned(), spec.arn.cluster().to_owned()),
        (labels::TASK_ARN.to_owned(), spec.arn.to_string()),
        (labels::CONTAINER_NAME.to_owned(), container.to_string()),
        (labels::FAMILY.to_owned(), spec.family.to_string()),
        (labels::REVISION.to_owned(), spec.revision.to_string()),
        (labels::AGENT.to_owned(), agent.to_owned()),
    ]);
    if let Ok(json) = serde_json::to_string(&keepsake) {
        all.insert(labels::SPEC.to_owned(), json);
    }
    if let Some(instance) = instance {
        all.insert(labels::INSTANCE.to_owned(), instance.to_string());
    }
    all
}

/// The engine's name for a volume of the task: the task's own has its id in it, one that tasks share is
/// called by its own name. `None` for a folder of the host.
pub(super) fn volume_name(spec: &TaskSpec, volume: &Volume) -> Option<String> {
    match &volume.source {
        VolumeSource::Host { .. } => None,
        VolumeSource::Task(_) => {
            Some(format!("ecs-{}-{}-{}-{}", spec.family, spec.revision, volume.name, spec.arn.id()))
        }
        VolumeSource::Shared { .. } => Some(volume.name.clone()),
    }
}

/// The engine's name for a container: unique for task and container, and the same at every try.
#[must_use]
pub fn engine_name(spec: &TaskSpec, container: &ContainerName) -> String {
    format!("ecs-{}-{}-{container}-{}", spec.family, spec.revision, spec.arn.id())
}
