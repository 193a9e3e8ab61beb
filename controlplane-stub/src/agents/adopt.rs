//! Tasks that run on a host and are not in the records, because these were replaced or put back to an older
//! state: they become records again, from what their host was given for them. Pure.
//!
//! A host's word is enough to keep a task running, to show it and to stop it. It is not enough for more: no role
//! and no way in from afar comes with it.

use std::collections::{BTreeSet, HashMap};

use berth_core::spec::TaskSpec;
use berth_core::units::Timestamp;
use berth_proto::v1;

use super::apply::changed;
use crate::arn::{self, Arns};
use crate::model::{Instance, ObservedTask, Tags, Task, TaskStatus};
use crate::store::{History, Point, Revision};

/// `startedBy` of such a task.
const STARTED_BY: &str = "adopted";
/// Most state changes of tasks without a record that are kept in one session.
const MOST_STRAYS: usize = 4096;

/// A point of the records for the wire.
pub(super) fn records_point(point: Point) -> v1::RecordsPoint {
    v1::RecordsPoint { life: point.life, revision: point.revision }
}

/// That a host knows other records than these, or newer ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Estrangement {
    /// Why, for people.
    why: &'static str,
    /// Whether it has seen what came after these records: it may be through with a task that is yet to begin
    /// by them.
    is_ahead: bool,
}

/// Whether, and how, a host is estranged.
pub(super) fn estrangement(
    history: &History,
    now: Revision,
    instance: &Instance,
    hello: &v1::Hello,
) -> Option<Estrangement> {
    let ahead = |why| Some(Estrangement { why, is_ahead: true });
    if instance.estranged {
        return ahead("what it runs was not taken up to the end before");
    }
    match &hello.last_seen {
        Some(seen) if seen.life.is_empty() => {
            Some(Estrangement { why: "it has lost what it knew, and runs tasks", is_ahead: false })
        }
        Some(seen) => {
            let seen = Point { life: seen.life.clone(), revision: seen.revision };
            match history.holds(&seen, now) {
                true => None,
                false => ahead("it has seen records that are not here: these were replaced, or put back"),
            }
        }
        // An agent of before there were points.
        None if hello.last_manifest_sequence > 0 && instance.outbox.epoch.is_empty() => {
            ahead("it was told of tasks before, and these records have never met it")
        }
        None => None,
    }
}

/// What is still open with an estranged host, in one session.
#[derive(Debug)]
pub(super) struct Reunion {
    /// Why it is estranged.
    pub(super) why: &'static str,
    /// Whether it is to say of each task that is on record whether it had it, before it is told to begin any.
    pub(super) holds_back: bool,
    /// The tasks that it was asked about and has said nothing of.
    pub(super) asked: BTreeSet<String>,
    /// How many became records.
    pub(super) adopted: usize,
    /// Whether it runs some that cannot.
    pub(super) left: bool,
    /// Whether it knows of these records now, durably.
    pub(super) noted: bool,
    /// What was told of tasks before they were records.
    strays: HashMap<String, v1::TaskStateChange>,
}

impl Reunion {
    /// With a host that is estranged so.
    pub(super) fn begin(estrangement: Estrangement) -> Self {
        Self {
            why: estrangement.why,
            holds_back: estrangement.is_ahead,
            asked: BTreeSet::new(),
            adopted: 0,
            left: false,
            noted: false,
            strays: HashMap::new(),
        }
    }

    /// Keeps what was told of a task that is no record yet: it is the whole of it, and not told twice.
    pub(super) fn keep(&mut self, change: &v1::TaskStateChange) {
        if self.strays.len() < MOST_STRAYS || self.strays.contains_key(&change.task_arn) {
            self.strays.insert(change.task_arn.clone(), change.clone());
        }
    }

    /// A task as its host's account has it, and with what was told since.
    ///
    /// # Errors
    /// Why it cannot be a record.
    pub(super) fn task(
        &self,
        instance: &Instance,
        account: &v1::TaskAccount,
        now: Timestamp,
    ) -> Result<Task, String> {
        let mut task = adopted(instance, account, now)?;
        for told in account.state.iter().chain(self.strays.get(&account.task_arn)) {
            task = changed(&task, told, now).unwrap_or(task);
        }
        task.version = 1;
        Ok(task)
    }

    /// Whether nothing is open any more.
    pub(super) fn is_over(&self) -> bool {
        self.noted && self.asked.is_empty() && !self.left
    }
}

/// The record of a task that a host which is ahead of the records has no more.
pub(super) fn over(task: &Task, now: Timestamp) -> Option<Task> {
    let code = match task.observed.status {
        TaskStatus::Running => "EssentialContainerExited",
        _ => "TaskFailedToStart",
    };
    let reason =
        "The control plane's records were put back, and the container instance is through with the task";
    let over = v1::TaskStateChange {
        task_arn: task.arn.clone(),
        status: v1::TaskStatus::Stopped.into(),
        stop: Some(v1::StopCause { code: code.to_owned(), reason: reason.to_owned() }),
        ..v1::TaskStateChange::default()
    };
    changed(task, &over, now)
}

/// The record of a task of which nothing was observed yet.
fn adopted(instance: &Instance, account: &v1::TaskAccount, now: Timestamp) -> Result<Task, String> {
    let spec: TaskSpec = serde_json::from_str(&account.spec_json)
        .map_err(|error| format!("its specification cannot be read: {error}"))?;
    if spec.arn.as_str() != account.task_arn {
        return Err(format!("its specification is that of {}", spec.arn));
    }
    let (cluster, id) = arn::scoped_of(&account.task_arn).ok_or("that is no ARN of a task")?;
    if cluster != instance.cluster {
        return Err(format!("it is of cluster {cluster}, and its host of {}", instance.cluster));
    }
    let arns = Arns::of(&account.task_arn).ok_or("that is no ARN of a task")?;
    let observed = ObservedTask::unseen(&spec, |container| match container.arn.as_str() {
        "" => arns.container(cluster, id, &arn::new_container_id()),
        known => known.to_owned(),
    });
    let first = account.state.iter().flat_map(|state| [state.pull_started_at_ms, state.started_at_ms]);
    let first = first.filter(|millis| *millis > 0).min().map(Timestamp);
    Ok(Task {
        arn: account.task_arn.clone(),
        cluster: cluster.to_owned(),
        instance: instance.arn.clone(),
        task_definition: arns.task_definition(spec.family.as_str(), spec.revision),
        group: format!("family:{}", spec.family),
        started_by: Some(STARTED_BY.to_owned()),
        adopted: true,
        execute_command: false,
        overrides: serde_json::json!({}),
        spec,
        tags: Tags::new(),
        client_token: None,
        stop_requested: None,
        protected_until: None,
        version: 1,
        created_at: first.unwrap_or(now),
        stopping_at: None,
        observed,
    })
}
