//! A container instance as ECS's replies show it.

use std::collections::BTreeSet;

use berth_core::resources::Resources;
use serde_json::{Value, json};

use super::resources;
use crate::api::context::{Context, epoch};
use crate::api::tag;
use crate::model::{Instance, Tags, TaskStatus};
use crate::store::View;

/// The attribute that carries the host's own id where it has one.
pub(super) const INSTANCE_ID: &str = "ecs.instance-id";

/// Renders instances as of one view.
pub(super) struct Renderer<'a> {
    context: &'a Context,
    view: &'a dyn View,
    tags: bool,
    health: bool,
}

impl<'a> Renderer<'a> {
    /// For a view, with tags as in the replies to changes.
    pub(super) const fn new(context: &'a Context, view: &'a dyn View) -> Self {
        Self { context, view, tags: true, health: false }
    }

    /// With what `include` of a request names.
    pub(super) fn including(self, include: &[String]) -> Self {
        let has = |field: &str| include.iter().any(|included| included == field);
        Self { tags: has("TAGS"), health: has("CONTAINER_INSTANCE_HEALTH"), ..self }
    }

    /// An instance.
    pub(super) fn instance(&self, instance: &Instance) -> Value {
        let tasks = self.view.tasks_on(&instance.arn);
        let live = || tasks.iter().filter(|task| task.value.observed.status != TaskStatus::Stopped);
        let needs: Vec<Resources> = live().map(|task| task.value.spec.need()).collect();
        let in_use = Resources::sum(&needs);
        let remaining = instance.total.remaining(&in_use);
        let held: BTreeSet<&String> =
            live().flat_map(|task| &task.value.observed.containers).flat_map(|c| &c.gpu_ids).collect();
        let gpus: Vec<&String> = instance.gpu_ids.iter().collect();
        let free: Vec<&String> = gpus.iter().copied().filter(|id| !held.contains(id)).collect();
        let count = |wanted: &[TaskStatus]| {
            tasks.iter().filter(|t| wanted.contains(&t.value.observed.status)).count()
        };
        let registry = &self.context.state.registry;
        let mut shown = json!({
            "containerInstanceArn": instance.arn,
            "version": instance.version,
            "versionInfo": {
                "agentVersion": instance.agent_version,
                "agentHash": instance.agent_hash,
                "dockerVersion": instance.engine_version,
            },
            "registeredResources": resources::render(instance, &instance.total, &gpus),
            "remainingResources": resources::render(instance, &remaining, &free),
            "status": instance.status.as_str(),
            "agentConnected": registry.is_connected(&instance.arn),
            "runningTasksCount": count(&[TaskStatus::Running]),
            "pendingTasksCount": count(&[TaskStatus::Provisioning, TaskStatus::Pending]),
            "attributes": attributes(instance),
            "registeredAt": epoch(instance.registered_at),
            "attachments": [],
            "tags": tag::render(if self.tags { &instance.tags } else { const { &Tags::new() } }),
        });
        if let Some(id) = instance.attributes.get(INSTANCE_ID) {
            shown["ec2InstanceId"] = json!(id);
        }
        if self.health
            && let Some(heartbeat) = registry.heartbeat(&instance.arn)
        {
            let status = if heartbeat.engine_healthy { "OK" } else { "IMPAIRED" };
            let detail =
                json!({"type": "CONTAINER_RUNTIME", "status": status, "lastUpdated": epoch(heartbeat.at)});
            shown["healthStatus"] = json!({"overallStatus": status, "details": [detail]});
        }
        shown
    }
}

/// Attributes; one without a value shows its name alone.
fn attributes(instance: &Instance) -> Value {
    let shown = instance.attributes.iter().map(|(name, value)| {
        if value.is_empty() { json!({"name": name}) } else { json!({"name": name, "value": value}) }
    });
    shown.collect()
}
