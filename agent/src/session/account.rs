//! What the agent tells a control plane whose records are not those that it knew: how far it has seen them, and
//! what it has of a task.

use berth_core::ids::TaskArn;
use berth_core::task::Report;
use berth_proto::v1;

use super::convert;
use crate::engine::Engine;
use crate::store::{Identity, OutboxEntry, RecordsPoint};

/// What the greeting says of the control plane's records. An agent that has seen none and runs tasks has lost what
/// it had seen.
pub(super) fn last_seen(identity: &Identity, engine: &Engine) -> Option<v1::RecordsPoint> {
    match &identity.last_seen {
        Some(seen) => Some(v1::RecordsPoint { life: seen.life.clone(), revision: seen.revision }),
        None if identity.manifest_sequence == 0 && engine.live() > 0 => Some(v1::RecordsPoint::default()),
        None => None,
    }
}

/// A point of the records from the wire.
pub(super) fn records_point(at: v1::RecordsPoint) -> RecordsPoint {
    RecordsPoint { life: at.life, revision: at.revision }
}

/// What is known after a payload, where that is more than before: of the records that the last manifest was of.
pub(super) fn newer(identity: &Identity, at: Option<v1::RecordsPoint>) -> Option<Identity> {
    let (at, seen) = (at?, identity.last_seen.as_ref()?);
    (at.life == seen.life && at.revision > seen.revision)
        .then(|| Identity { last_seen: Some(records_point(at)), ..identity.clone() })
}

/// All that the agent has of a task.
pub(super) fn account(engine: &Engine, task_arn: String) -> v1::TaskAccount {
    let task = TaskArn::new(&task_arn).ok().and_then(|task| engine.task(&task));
    let Some(task) = task else { return v1::TaskAccount { task_arn, ..v1::TaskAccount::default() } };
    let entry = OutboxEntry { sequence: 0, task: task.spec().arn.clone(), report: Report::of(&task) };
    v1::TaskAccount {
        task_arn,
        // As in the state file, where it was written once already.
        spec_json: serde_json::to_string(&**task.spec()).unwrap_or_default(),
        state: Some(convert::state_change(&entry)),
    }
}
