//! What state changes do to the records. Pure: a view and messages in, a transaction out.
//!
//! The position in the agent's outbox moves in the same transaction as the tasks, so that a change
//! which is delivered twice counts once.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;

use berth_core::units::Timestamp;
use berth_proto::v1;

use super::convert::{moment, stop_cause};
use crate::arn;
use crate::model::{Instance, NetworkBinding, ObservedContainer, OutboxCursor, Task, TaskStatus};
use crate::store::{Key, Record, Txn, Versioned, View};

/// Longest reason of a container that is kept, in bytes.
const MAX_REASON: usize = 1024;

/// What is to be committed and then acknowledged.
pub(super) struct Applied {
    /// `None` when all was known already.
    pub(super) txn: Option<Txn>,
    /// Every change up to this one is durable once the transaction is.
    pub(super) ack: u64,
}

/// A task that changes: its key, its record, and what becomes of it.
pub(super) struct Touched {
    pub(super) key: Key,
    pub(super) found: Versioned<Arc<Task>>,
    after: Option<Task>,
}

/// The outbox of the session is not the instance's any more: a newer session began.
pub(super) struct Stale;

/// Applies changes in the order in which they came.
pub(super) fn apply(
    view: &dyn View,
    instance: &Versioned<Arc<Instance>>,
    epoch: &str,
    changes: &[v1::TaskStateChange],
    now: Timestamp,
) -> Result<Applied, Stale> {
    let cursor = &instance.value.outbox;
    if cursor.epoch != epoch {
        return Err(Stale);
    }
    let mut last = cursor.sequence;
    let mut tasks: BTreeMap<&str, Touched> = BTreeMap::new();
    for change in changes {
        if change.sequence <= last {
            continue;
        }
        if change.sequence != last + 1 && last != 0 {
            // The control plane lost what it had acknowledged. Every change is the whole of its
            // task, so that going on loses less than insisting on what the agent has forgotten.
            tracing::warn!(
                instance = instance.value.arn,
                last,
                sequence = change.sequence,
                "state changes are missing"
            );
        }
        last = change.sequence;
        let touched = match tasks.entry(&change.task_arn) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => {
                let Some(touched) = find(view, &instance.value, &change.task_arn) else {
                    tracing::debug!(
                        task = change.task_arn,
                        instance = instance.value.arn,
                        "a state change of a task that is not this instance's"
                    );
                    continue;
                };
                entry.insert(touched)
            }
        };
        let before = touched.after.as_ref().unwrap_or(&touched.found.value);
        if let Some(after) = changed(before, change, now) {
            touched.after = Some(after);
        }
    }
    if last == cursor.sequence {
        return Ok(Applied { txn: None, ack: last });
    }
    let mut txn = Txn::default();
    for Touched { key, found, after } in tasks.into_values() {
        if let Some(after) = after {
            txn.compares.push((key.clone(), Some(found.revision)));
            txn.puts.push((key, Record::Task(Arc::new(after))));
        }
    }
    let mut moved = Instance::clone(&instance.value);
    moved.outbox = OutboxCursor { epoch: epoch.to_owned(), sequence: last };
    let key = Key::Instance(moved.cluster.clone(), arn::id_of(&moved.arn).to_owned());
    txn.compares.push((key.clone(), Some(instance.revision)));
    txn.puts.push((key, Record::Instance(Arc::new(moved))));
    Ok(Applied { txn: Some(txn), ack: last })
}

/// A task of the instance.
pub(super) fn find(view: &dyn View, instance: &Instance, task_arn: &str) -> Option<Touched> {
    let (cluster, id) = arn::scoped_of(task_arn)?;
    let found = view.task(cluster, id)?;
    let ours = found.value.arn == task_arn && found.value.instance == instance.arn;
    ours.then(|| Touched { key: Key::Task(cluster.to_owned(), id.to_owned()), found, after: None })
}

/// The task after a change; `None` when that changes nothing. What is STOPPED stays as it is, and
/// no status goes back.
pub(super) fn changed(before: &Task, change: &v1::TaskStateChange, now: Timestamp) -> Option<Task> {
    if before.observed.status == TaskStatus::Stopped {
        return None;
    }
    let mut task = before.clone();
    let observed = &mut task.observed;
    let heard = match change.status() {
        v1::TaskStatus::Unspecified => observed.status,
        v1::TaskStatus::Pending => TaskStatus::Pending,
        v1::TaskStatus::Running => TaskStatus::Running,
        v1::TaskStatus::Stopped => TaskStatus::Stopped,
    };
    let attachment = match change.attachment() {
        v1::AttachmentStatus::Unspecified => None,
        v1::AttachmentStatus::Attaching => Some("ATTACHING"),
        v1::AttachmentStatus::Attached => Some("ATTACHED"),
        v1::AttachmentStatus::Detached => Some("DETACHED"),
    };
    observed.attachment = attachment.map(str::to_owned).or_else(|| observed.attachment.take());
    let is_there = task.spec.attachment.is_none() || observed.attachment.as_deref() == Some("ATTACHED");
    if is_there || heard > TaskStatus::Pending {
        observed.status = observed.status.max(heard);
    }
    if let Some(cause) = &change.stop {
        observed.stop = Some(stop_cause(cause));
    }
    change.waiting_for.clone_into(&mut observed.waiting_for);
    observed.pull_started_at = moment(change.pull_started_at_ms).or(observed.pull_started_at);
    observed.pull_stopped_at = moment(change.pull_stopped_at_ms).or(observed.pull_stopped_at);
    observed.started_at = moment(change.started_at_ms).or(observed.started_at);
    observed.execution_stopped_at = moment(change.execution_stopped_at_ms).or(observed.execution_stopped_at);
    observed.stopped_at = moment(change.stopped_at_ms).or(observed.stopped_at);
    for state in &change.containers {
        if let Some(container) = observed.containers.iter_mut().find(|c| c.name == state.name) {
            observe(container, state);
        }
    }
    if observed.status == TaskStatus::Running {
        observed.started_at = observed.started_at.or(Some(now));
    }
    if observed.status == TaskStatus::Stopped {
        observed.stopped_at = observed.stopped_at.or(Some(now));
        observed.waiting_for.clear();
        for container in &mut observed.containers {
            container.status = TaskStatus::Stopped;
        }
    }
    if task.observed.stop.is_some() || task.observed.status == TaskStatus::Stopped {
        task.stopping_at = task.stopping_at.or(Some(now));
    }
    if task == *before {
        return None;
    }
    task.version += 1;
    Some(task)
}

fn observe(container: &mut ObservedContainer, state: &v1::ContainerState) {
    container.status = match state.status() {
        v1::ContainerStatus::Unspecified => container.status,
        v1::ContainerStatus::Pending => TaskStatus::Pending,
        v1::ContainerStatus::Running => TaskStatus::Running,
        v1::ContainerStatus::Stopped => TaskStatus::Stopped,
    };
    let text = |value: &String| (!value.is_empty()).then(|| value.clone());
    container.runtime_id = text(&state.runtime_id).or_else(|| container.runtime_id.take());
    container.exit_code = state.exit_code.or(container.exit_code);
    container.reason = text(&state.reason).map(|reason| cut(&reason).to_owned());
    container.image_digest = text(&state.image_digest).or_else(|| container.image_digest.take());
    container.health = match state.health() {
        v1::HealthStatus::Unspecified => None,
        v1::HealthStatus::Unknown => Some("UNKNOWN".to_owned()),
        v1::HealthStatus::Healthy => Some("HEALTHY".to_owned()),
        v1::HealthStatus::Unhealthy => Some("UNHEALTHY".to_owned()),
    };
    if !state.gpu_ids.is_empty() {
        container.gpu_ids.clone_from(&state.gpu_ids);
    }
    if !state.network_bindings.is_empty() {
        container.network_bindings = state.network_bindings.iter().filter_map(binding).collect();
    }
}

fn binding(wire: &v1::NetworkBinding) -> Option<NetworkBinding> {
    let last = u16::try_from(wire.container_port_last).ok()?;
    Some(NetworkBinding {
        bind_ip: wire.bind_ip.clone(),
        container_port: u16::try_from(wire.container_port).ok()?,
        container_port_last: (last != 0).then_some(last),
        host_port: u16::try_from(wire.host_port).ok()?,
        protocol: match wire.protocol() {
            v1::Protocol::Tcp => "tcp",
            v1::Protocol::Udp => "udp",
        }
        .to_owned(),
    })
}

fn cut(reason: &str) -> &str {
    let mut end = reason.len().min(MAX_REASON);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    reason.get(..end).unwrap_or_default()
}
