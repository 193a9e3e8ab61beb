//! Takes in what the control plane wants of this host: new tasks in one transaction, stops before
//! starts, and an answer for what cannot be understood.

use std::sync::Arc;

use berth_core::ids::TaskArn;
use berth_core::ledger::Verdict;
use berth_core::spec::TaskSpec;
use berth_core::task::{Event, Report, StopCause, StopCode, Task, TaskStatus};
use tokio::sync::watch;

use super::actor::writes_of;
use super::narrate::arrival;
use super::{Engine, event_of};
use crate::clock;
use crate::store::{StoreError, Write};

/// What the control plane wants of a task.
#[derive(Debug, Clone)]
pub struct Assignment {
    /// The task.
    pub task: TaskArn,
    /// What to run; absent when the task is known and only to be stopped.
    pub spec: Option<Arc<TaskSpec>>,
    /// Why it is to stop; absent while it is to run.
    pub stop: Option<StopCause>,
    /// What the control plane last heard of it.
    pub last_heard: TaskStatus,
}

impl Engine {
    /// Takes what the control plane wants; durable when it returns. Stops come before starts. What
    /// is known already changes nothing.
    ///
    /// # Errors
    /// When the state cannot be written: nothing was taken that was not known before.
    pub async fn accept(&self, assignments: Vec<Assignment>) -> Result<(), StoreError> {
        let (stops, starts): (Vec<_>, Vec<_>) = assignments.into_iter().partition(|a| a.stop.is_some());
        let mut fresh = Vec::new();
        let mut known = Vec::new();
        for Assignment { task, spec, stop, last_heard } in stops.into_iter().chain(starts) {
            if let Some(handle) = self.shared.registry.get(&task) {
                known.extend(stop.map(|cause| (handle, Event::Stop(cause))));
            } else if let (Some(spec), true) = (spec, last_heard != TaskStatus::Stopped) {
                fresh.push((spec, stop.or_else(|| lost(last_heard))));
            }
        }
        self.admit(fresh).await?;
        self.tell(known).await;
        Ok(())
    }

    /// Tells the control plane that a task was refused: it is STOPPED, and why.
    ///
    /// # Errors
    /// When the state cannot be written.
    pub async fn refuse(&self, task: TaskArn, reason: String) -> Result<(), StoreError> {
        if self.shared.registry.get(&task).is_some() {
            return Ok(()); // It was understood once: what runs is not hurt by a message that is not.
        }
        if self.shared.store.outbox().has_stopped(&task) {
            return Ok(()); // It is told already, or about to be.
        }
        tracing::warn!(%task, reason, "refused a task");
        let report = Report {
            status: TaskStatus::Stopped,
            stop: Some(StopCause::new(StopCode::TaskFailedToStart, reason)),
            waiting_for: String::new(),
            containers: Vec::new(),
            attachment: None,
            pull_started_at: None,
            pull_stopped_at: None,
            started_at: None,
            execution_stopped_at: None,
            stopped_at: Some(clock::now()),
        };
        self.shared.store.commit(vec![Write::Report { task, report: Box::new(report) }]).await
    }

    /// Takes in tasks that are new here, in one transaction.
    async fn admit(&self, fresh: Vec<(Arc<TaskSpec>, Option<StopCause>)>) -> Result<(), StoreError> {
        let clock = clock::Watch::begin();
        let now = clock.now();
        let mut writes = Vec::new();
        let mut started = Vec::new();
        for (spec, stop) in fresh {
            let mut task = Task::new(Arc::clone(&spec), self.shared.settings_of(&spec.arn), now);
            // A host that goes starts nothing.
            let (event, receiver) = match stop.or_else(|| self.cause_of_departure()) {
                Some(cause) => (Event::Stop(cause), watch::channel(Verdict::Granted).1),
                None => {
                    let (verdict, receiver) = self.shared.admission.request(&spec.arn, &spec.need());
                    (event_of(verdict), receiver)
                }
            };
            let step = task.handle(now, event);
            writes.push(Write::NewTask { spec: Arc::clone(&spec), state: task.state().clone() });
            writes.extend(writes_of(&task, step.report.clone()).into_iter().skip(1));
            started.push((task, receiver, step.persisted()));
        }
        if started.is_empty() {
            return Ok(());
        }
        if let Err(error) = self.shared.store.commit(writes).await {
            for (task, ..) in &started {
                self.shared.admission.release(&task.spec().arn);
            }
            return Err(error);
        }
        for (task, receiver, acts) in started {
            if let Some(journal) = &self.shared.journal {
                journal.note(&task.spec().arn, arrival(&task, now));
            }
            self.spawn(task, receiver, acts, clock);
        }
        self.follow_departure().await;
        Ok(())
    }
}

/// A task that ran before and of which nothing is left must not be started a second time.
fn lost(last_heard: TaskStatus) -> Option<StopCause> {
    (last_heard == TaskStatus::Running).then(|| {
        StopCause::new(
            StopCode::EssentialContainerExited,
            "ContainerVanishedError: the container instance lost its record of the task, and none of its containers was found",
        )
    })
}
