//! A task as ECS's replies show it.

use berth_core::attachment::Attachment;
use berth_core::spec::ContainerSpec;
use berth_core::units::Timestamp;
use serde_json::{Map, Value, json};

use crate::agents::registry::Waiting;
use crate::api::context::{Context, epoch};
use crate::api::tag;
use crate::model::{NetworkBinding, ObservedContainer, Tags, Task, TaskStatus};
use crate::store::View;

/// Renders tasks as of one view.
pub(super) struct Renderer<'a> {
    context: &'a Context,
    view: &'a dyn View,
}

impl<'a> Renderer<'a> {
    /// For a view.
    pub(super) const fn new(context: &'a Context, view: &'a dyn View) -> Self {
        Self { context, view }
    }

    /// A task; its tags are empty unless asked for.
    pub(super) fn task(&self, task: &Task, tags: bool) -> Value {
        let need = task.spec.need();
        let instance_id = crate::arn::id_of(&task.instance);
        let instance = self.view.instance(&task.cluster, instance_id).map(|found| found.value);
        let cluster = self.view.cluster(&task.cluster).map(|found| found.value.arn.clone());
        let attribute = |name: &str| instance.as_ref().and_then(|i| i.attributes.get(name)).cloned();
        let registry = &self.context.state.registry;
        let connected = registry.is_connected(&task.instance);
        let mut shown = Map::new();
        let mut set = |member: &str, value: Value| {
            shown.insert(member.to_owned(), value);
        };
        set("taskArn", json!(task.arn));
        set("clusterArn", json!(cluster.unwrap_or_else(|| self.context.arns.cluster(&task.cluster))));
        set("taskDefinitionArn", json!(task.task_definition));
        set("containerInstanceArn", json!(task.instance));
        set("group", json!(task.group));
        set("launchType", json!("EC2"));
        set("lastStatus", json!(task.last_status().as_str()));
        set("desiredStatus", json!(if task.wants_running() { "RUNNING" } else { "STOPPED" }));
        set("healthStatus", json!(health(task)));
        set("cpu", json!(need.cpu.0.to_string()));
        set("memory", json!(need.memory.0.to_string()));
        set("overrides", overrides(task));
        set("attachments", attachments(task));
        let architecture = attribute("ecs.cpu-architecture");
        set(
            "attributes",
            architecture.map_or_else(|| json!([]), |a| json!([{"name": "ecs.cpu-architecture", "value": a}])),
        );
        set("containers", self.containers(task));
        set("connectivity", json!(if connected { "CONNECTED" } else { "DISCONNECTED" }));
        set("enableExecuteCommand", json!(task.execute_command));
        set("version", json!(task.version));
        set("tags", tag::render(if tags { &task.tags } else { const { &Tags::new() } }));
        let of_subnet = task.spec.attachment.as_ref().and_then(|attachment| {
            self.context.state.vpc.get().subnets.get(&attachment.subnet_id)?.zone.clone()
        });
        if let Some(zone) = of_subnet.or_else(|| attribute("ecs.availability-zone")) {
            set("availabilityZone", json!(zone));
        }
        if let Some(by) = &task.started_by {
            set("startedBy", json!(by));
        }
        // What somebody asked for is the reason, whatever the containers then did.
        if let Some(cause) = task.stop_requested.as_ref().or(task.observed.stop.as_ref()) {
            set("stopCode", json!(cause.code));
            set("stoppedReason", json!(cause.reason));
        }
        for (member, at) in self.times(task) {
            set(member, epoch(at));
        }
        Value::Object(shown)
    }

    fn times(&self, task: &Task) -> impl Iterator<Item = (&'static str, Timestamp)> {
        let observed = &task.observed;
        let connected_at = self.context.state.registry.connected_at(&task.instance);
        [
            ("createdAt", Some(task.created_at)),
            // A task hears of its agent from the later of its own beginning and the session's.
            ("connectivityAt", connected_at.map(|at| at.max(task.created_at))),
            ("pullStartedAt", observed.pull_started_at),
            ("pullStoppedAt", observed.pull_stopped_at),
            ("startedAt", observed.started_at),
            ("stoppingAt", task.stopping_at),
            ("executionStoppedAt", observed.execution_stopped_at),
            ("stoppedAt", observed.stopped_at),
        ]
        .into_iter()
        .filter_map(|(member, at)| at.map(|at| (member, at)))
    }

    fn containers(&self, task: &Task) -> Value {
        let waits = self.waits(task);
        let containers = task.spec.containers.iter().map(|spec| {
            let observed =
                task.observed.containers.iter().find(|observed| observed.name == spec.name.as_str());
            // What the last heartbeat told of one container may be over.
            let begins = observed.is_none_or(|observed| observed.status < TaskStatus::Running);
            let own = waits.iter().find(|wait| match &wait.container {
                Some(name) => begins && name == spec.name.as_str(),
                None => true,
            });
            container(task, spec, observed, own.map(|wait| wait.on.as_str()))
        });
        containers.collect()
    }

    /// What a task that does not run yet, or a container of it, waits for, in its agent's words.
    fn waits(&self, task: &Task) -> Vec<Waiting> {
        if task.observed.status > TaskStatus::Pending {
            return Vec::new();
        }
        if !task.observed.waiting_for.is_empty() {
            let on = task.observed.waiting_for.clone();
            return vec![Waiting { task: task.arn.clone(), container: None, on }];
        }
        let heartbeat = self.context.state.registry.heartbeat(&task.instance);
        let all = heartbeat.into_iter().flat_map(|heartbeat| heartbeat.waiting);
        all.filter(|wait| wait.task == task.arn).collect()
    }
}

fn container(
    task: &Task,
    spec: &ContainerSpec,
    observed: Option<&ObservedContainer>,
    waiting: Option<&str>,
) -> Value {
    let mut shown = json!({
        "taskArn": task.arn,
        "name": spec.name,
        "image": spec.image,
        "lastStatus": observed.map_or("PENDING", |o| o.status.as_str()),
        "networkBindings": observed.map(|o| o.network_bindings.iter().map(binding).collect::<Vec<_>>()).unwrap_or_default(),
        "networkInterfaces": task.spec.attachment.iter().map(interface).collect::<Vec<_>>(),
        "healthStatus": observed.and_then(|o| o.health.as_deref()).unwrap_or("UNKNOWN"),
        "cpu": spec.cpu.0.to_string(),
    });
    let mut set = |member: &str, value: Option<Value>| {
        if let (Some(value), Some(shown)) = (value, shown.as_object_mut()) {
            shown.insert(member.to_owned(), value);
        }
    };
    set("memory", spec.memory.map(|memory| json!(memory.0.to_string())));
    set("memoryReservation", spec.memory_reservation.map(|memory| json!(memory.0.to_string())));
    // What AWS's tools look at before they let anybody try.
    let agent = |status: &TaskStatus| json!([{"name": "ExecuteCommandAgent", "lastStatus": status.as_str()}]);
    set("managedAgents", observed.filter(|_| task.execute_command).map(|o| agent(&o.status)));
    set("reason", waiting.map(|waiting| json!(waiting)));
    if let Some(observed) = observed {
        set("containerArn", Some(json!(observed.arn)));
        set("runtimeId", observed.runtime_id.as_ref().map(|id| json!(id)));
        set("imageDigest", observed.image_digest.as_ref().map(|digest| json!(digest)));
        set("gpuIds", (!observed.gpu_ids.is_empty()).then(|| json!(observed.gpu_ids)));
        set("exitCode", observed.exit_code.map(|code| json!(code)));
        set(
            "reason",
            observed.reason.as_ref().filter(|reason| !reason.is_empty()).map(|reason| json!(reason)),
        );
    }
    shown
}

/// ECS's view of a task's own interface.
fn attachments(task: &Task) -> Value {
    let Some(attachment) = &task.spec.attachment else { return json!([]) };
    let status = match task.observed.attachment.as_deref() {
        _ if task.observed.status == TaskStatus::Stopped => "DELETED",
        Some(status) => status,
        None => "PRECREATED",
    };
    let detail = |name: &str, value: String| json!({"name": name, "value": value});
    let mut details = vec![
        detail("subnetId", attachment.subnet_id.clone()),
        detail("networkInterfaceId", attachment.interface_id.clone()),
        detail("macAddress", attachment.mac.to_string()),
        detail("privateDnsName", attachment.hostname.clone()),
    ];
    for address in &attachment.addresses {
        let name = if address.address.is_ipv4() { "privateIPv4Address" } else { "ipv6Address" };
        details.push(detail(name, address.address.to_string()));
    }
    json!([{
        "id": attachment.id, "type": "ElasticNetworkInterface", "status": status, "details": details,
    }])
}

fn interface(attachment: &Attachment) -> Value {
    let mut shown = json!({"attachmentId": attachment.id});
    for address in &attachment.addresses {
        let name = if address.address.is_ipv4() { "privateIpv4Address" } else { "ipv6Address" };
        shown[name] = json!(address.address.to_string());
    }
    shown
}

fn binding(binding: &NetworkBinding) -> Value {
    let mut shown = json!({"bindIP": binding.bind_ip, "protocol": binding.protocol});
    let range = binding.container_port_last.filter(|last| *last > binding.container_port);
    match range {
        Some(last) => {
            let host_last = binding.host_port.saturating_add(last - binding.container_port);
            shown["containerPortRange"] = json!(format!("{}-{last}", binding.container_port));
            shown["hostPortRange"] = json!(format!("{}-{host_last}", binding.host_port));
        }
        None => {
            shown["containerPort"] = json!(binding.container_port);
            shown["hostPort"] = json!(binding.host_port);
        }
    }
    shown
}

/// The health of the essential containers that have a health check.
fn health(task: &Task) -> &'static str {
    let checked = task.spec.containers.iter().filter(|spec| spec.essential && spec.health_check.is_some());
    let mut healths = checked.map(|spec| {
        let observed = task.observed.containers.iter().find(|observed| observed.name == spec.name.as_str());
        observed.and_then(|observed| observed.health.as_deref()).unwrap_or("UNKNOWN")
    });
    let Some(first) = healths.next() else { return "UNKNOWN" };
    let all: Vec<&str> = std::iter::once(first).chain(healths).collect();
    if all.contains(&"UNHEALTHY") {
        "UNHEALTHY"
    } else if all.iter().all(|health| *health == "HEALTHY") {
        "HEALTHY"
    } else {
        "UNKNOWN"
    }
}

/// The overrides as they came, with an entry for every container.
fn overrides(task: &Task) -> Value {
    let mut shown = task.overrides.as_object().cloned().unwrap_or_default();
    let mut containers =
        shown.get("containerOverrides").and_then(Value::as_array).cloned().unwrap_or_default();
    for spec in &task.spec.containers {
        if !containers
            .iter()
            .any(|given| given.get("name").and_then(Value::as_str) == Some(spec.name.as_str()))
        {
            containers.push(json!({"name": spec.name}));
        }
    }
    shown.insert("containerOverrides".to_owned(), Value::Array(containers));
    shown.entry("inferenceAcceleratorOverrides").or_insert_with(|| json!([]));
    Value::Object(shown)
}
