//! One actor for each task: persists what the core decided, then performs it, and feeds back what
//! comes of it.
//!
//! ```text
//!   mailbox ─┐                        ┌─▶ store (state and report, one transaction)
//!   hints  ──┼─▶ core: handle ─▶ Step ┤
//!   ledger ──┤                        └─▶ then: acts, each on a future of its own ─▶ mailbox
//!   deadline ┘
//! ```
//! Only the actor touches its task. It ends when the task is forgotten, or when the agent stops;
//! the containers do not feel that.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use berth_core::ids::{AttemptId, ContainerName, EngineId};
use berth_core::ledger::Verdict;
use berth_core::task::{Act, AttemptKind, ContainerStatus, Event, Outcome, Report, Task};
use futures_util::StreamExt;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::hints::Hints;
use super::narrate::narrate;
use super::pulse::Pulse;
use super::{Shared, inform, perform};
use crate::clock;
use crate::runtime::EngineEventKind;
use crate::store::Write;

/// Events that may wait for an actor before senders wait in turn. Acts in flight are bounded by
/// the task's size, so this is never full for long.
pub(super) const MAILBOX: usize = 32;
/// The first pause when state cannot be written, and the longest.
const WRITE_PAUSE: Duration = Duration::from_millis(250);
const WRITE_PAUSE_MAX: Duration = Duration::from_secs(5);
/// The pause before a container is looked at again that could not be looked at.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// How much of what a container said last is written down, and how long reading it may take.
const LAST_LINES: u32 = 20;
const LAST_BYTES: usize = 4096;
const LAST_PATIENCE: Duration = Duration::from_secs(2);

/// An event, and who wants to know when what follows from it is durable.
pub(super) struct Message {
    pub(super) event: Event,
    pub(super) persisted: Option<oneshot::Sender<()>>,
}

impl From<Event> for Message {
    fn from(event: Event) -> Self {
        Self { event, persisted: None }
    }
}

/// The actor of a task.
pub(super) struct Actor {
    pub(super) task: Task,
    pub(super) shared: Arc<Shared>,
    pub(super) mailbox: mpsc::Receiver<Message>,
    pub(super) sender: mpsc::Sender<Message>,
    pub(super) hints: Arc<Hints>,
    pub(super) verdict: watch::Receiver<Verdict>,
    pub(super) view: watch::Sender<Arc<Task>>,
    pub(super) pulse: Arc<Pulse>,
    pub(super) in_flight: BTreeMap<AttemptId, CancellationToken>,
    /// Whether the state holds observations that are not durable yet.
    pub(super) unsaved: bool,
    /// Whether it is on record that the task is to stop.
    pub(super) stop_is_kept: bool,
    /// Since the task's state was made, or read.
    pub(super) clock: clock::Watch,
}

enum Input {
    Message(Message),
    Hints(Vec<(ContainerName, EngineId, EngineEventKind)>),
    /// Somebody asks whether it is alive.
    Beat,
}

impl Actor {
    /// Runs until the task is forgotten or the agent stops. `first` are the acts of the step that
    /// was persisted before the actor began.
    pub(super) async fn run(mut self, first: Vec<Act>) {
        let token = self.shared.tracker.token().clone();
        if !self.start_all(first).await {
            return;
        }
        loop {
            // Dropping `next` loses nothing: each of its sources keeps what was not taken.
            let Some(input) = token.run_until_cancelled(self.next()).await else {
                return;
            };
            // Waits are as long as they are, whatever the clock is told meanwhile; each was begun on the monotonic one.
            if let Some(by) = self.clock.moved() {
                tracing::info!(task = %self.task.spec().arn, by_ms = by, "the host's clock was moved");
                self.task.clock_moved(by);
                self.unsaved = true;
            }
            let go_on = match input {
                Input::Beat => true,
                Input::Message(message) => self.take(message).await,
                Input::Hints(hints) => {
                    self.look_at(hints);
                    true
                }
            };
            if !go_on {
                return;
            }
            self.pulse.beat();
        }
    }

    async fn next(&mut self) -> Input {
        let deadline = self.task.next_deadline().map(|at| self.clock.until(at));
        let pause = async move {
            match deadline {
                Some(pause) => tokio::time::sleep(pause).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            // A received message is returned at once; recv is cancel-safe.
            Some(message) = self.mailbox.recv() => Input::Message(message),
            // `changed` marks the value as seen only when it completes.
            Ok(()) = self.verdict.changed() => {
                let event = match &*self.verdict.borrow_and_update() {
                    Verdict::Granted => Event::Granted,
                    Verdict::Waiting(missing) => Event::Waiting(missing.clone()),
                    Verdict::Never(missing) => Event::Never(missing.clone()),
                };
                Input::Message(event.into())
            }
            // `take` keeps hints until it returns them.
            hints = self.hints.take() => Input::Hints(hints),
            () = self.pulse.asked() => Input::Beat,
            () = pause => Input::Message(Event::Deadline.into()),
        }
    }

    /// Takes an event through the core, the store and into the world. False when all is over.
    async fn take(&mut self, message: Message) -> bool {
        if let Event::Done { attempt, .. } = &message.event {
            self.in_flight.remove(attempt);
        }
        let before = self.shared.journal.is_some().then(|| self.task.clone());
        let step = self.task.handle(self.clock.now(), message.event);
        if let Some(before) = before.filter(|_| step.changed) {
            self.note(&before);
        }
        // An observation from which nothing follows yet waits for the answers that are still out, and
        // so does one after which a task that is to stop only lets go of things: a crash loses it, and
        // restoring makes it again. So two answers at a time cost one commit.
        let more_comes = if step.is_silent() {
            !self.in_flight.is_empty()
        } else {
            self.stop_is_kept && step.only_releases()
        };
        let can_wait = more_comes && message.persisted.is_none();
        self.unsaved |= step.changed;
        if self.unsaved && !can_wait {
            let writes = writes_of(&self.task, step.report.clone());
            if !self.persist(writes).await {
                return false;
            }
            self.unsaved = false;
            self.stop_is_kept = self.task.is_stopping();
        }
        if step.changed {
            self.view.send_replace(Arc::new(self.task.clone()));
            if let Some(report) = &step.report {
                tell_log(&self.task, report);
            }
        }
        if let Some(persisted) = message.persisted {
            // Whoever asked may have gone away.
            let _ = persisted.send(());
        }
        self.start_all(step.persisted()).await
    }

    /// Writes down what happened, for people; with the last lines of containers that ended by themselves.
    fn note(&self, before: &Task) {
        let Some(journal) = &self.shared.journal else { return };
        journal.note(&self.task.spec().arn, narrate(before, &self.task, self.clock.now()));
        if before.is_stopping() {
            return;
        }
        for (old, new) in before.state().containers.iter().zip(&self.task.state().containers) {
            let ended = new.finished_at != old.finished_at || new.restarts > old.restarts;
            let (Some(id), true) = (new.id.clone(), ended && new.exit.is_some()) else { continue };
            let (shared, journal) = (Arc::clone(&self.shared), journal.clone());
            let (arn, name) = (self.task.spec().arn.clone(), new.name.clone());
            self.shared.tracker.spawn_droppable("last lines", async move {
                journal.note(&arn, last_lines(&shared, &name, &id).await);
            });
        }
    }

    /// Writes until it works: what is not durable is not acted upon. False when the agent stops.
    async fn persist(&self, writes: Vec<Write>) -> bool {
        let mut pause = WRITE_PAUSE;
        loop {
            match self.shared.store.commit(writes.clone()).await {
                Ok(()) => return true,
                Err(error) => {
                    tracing::error!(task = %self.task.spec().arn, %error, "the task stands still until its state can be written");
                    // It waits, and is alive.
                    self.pulse.beat();
                }
            }
            let token = self.shared.tracker.token();
            if token.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
                return false;
            }
            pause = (pause * 2).min(WRITE_PAUSE_MAX);
        }
    }

    async fn start_all(&mut self, acts: Vec<Act>) -> bool {
        for act in acts {
            match act {
                Act::Abandon { attempt } => {
                    if let Some(token) = self.in_flight.remove(&attempt) {
                        token.cancel();
                    }
                }
                Act::ReturnGrant => self.shared.admission.release(&self.task.spec().arn),
                Act::Forget => {
                    let task = self.task.spec().arn.clone();
                    self.shared.registry.remove(&task);
                    self.shared.path_ids.forget(&task);
                    // What came after it had ended.
                    self.shared.credentials.forget(&task);
                    inform::remove_files(&self.shared, &task).await;
                    self.persist(vec![Write::Forget(task)]).await;
                    return false;
                }
                act => self.start(act),
            }
        }
        true
    }

    /// Puts an act on a future of its own.
    fn start(&mut self, act: Act) {
        let Some(attempt) = attempt_of(&act) else {
            return;
        };
        let abandoned = self.shared.tracker.token().child_token();
        self.in_flight.insert(attempt, abandoned.clone());
        let (shared, spec, sender) =
            (Arc::clone(&self.shared), Arc::clone(self.task.spec()), self.sender.clone());
        self.shared.tracker.spawn("act", async move {
            // Dropped when it is abandoned, or when the agent stops: restoring asks the world what
            // became of it.
            let performing = perform::perform(&shared, &spec, act);
            if let Some(outcome) = abandoned.run_until_cancelled(performing).await {
                // An actor that has ended needs no answer.
                let _ = sender.send(Event::Done { attempt, outcome }.into()).await;
            }
        });
    }

    /// Asks the engine about containers to which something happened.
    fn look_at(&self, hints: Vec<(ContainerName, EngineId, EngineEventKind)>) {
        for (container, id, kind) in hints {
            if self.is_expected(&container, kind) {
                continue;
            }
            let (shared, spec, sender) =
                (Arc::clone(&self.shared), Arc::clone(self.task.spec()), self.sender.clone());
            let hints = Arc::clone(&self.hints);
            self.shared.tracker.spawn_droppable("look", async move {
                match perform::inspect(&shared, &spec, &id).await {
                    Outcome::Fact(fact) => {
                        let _ = sender.send(Event::Observed { container, fact }.into()).await;
                    }
                    // One call may fail while the events go on, and nothing would tell of it again.
                    // Several that wait become one hint.
                    other => {
                        tracing::debug!(%container, ?other, "could not look at a container");
                        tokio::time::sleep(LOOK_AGAIN).await;
                        hints.leave(container, id, kind);
                    }
                }
            });
        }
    }

    /// Whether an act in flight will tell about it anyway.
    fn is_expected(&self, container: &ContainerName, kind: EngineEventKind) -> bool {
        let Some(known) = self.task.state().containers.iter().find(|c| &c.name == container) else {
            return true;
        };
        let in_flight = known.attempt.map(|a| a.kind);
        match kind {
            EngineEventKind::Started => {
                known.status == ContainerStatus::Running || in_flight == Some(AttemptKind::Start)
            }
            EngineEventKind::Died { .. } => in_flight == Some(AttemptKind::Stop),
            EngineEventKind::Removed => in_flight == Some(AttemptKind::Remove) || known.is_stopped(),
            EngineEventKind::Health => false,
            // The death that may follow says whether the kernel was the cause.
            EngineEventKind::OutOfMemory => true,
        }
    }
}

/// The last that a container said.
async fn last_lines(shared: &Shared, name: &ContainerName, id: &EngineId) -> Vec<String> {
    let read = async {
        let parts: Vec<_> = shared.runtime.logs(id, Some(LAST_LINES), false).await.ok()?.collect().await;
        let said: Vec<u8> = parts.into_iter().flatten().flatten().take(LAST_BYTES).collect();
        Some(String::from_utf8_lossy(&said).into_owned())
    };
    let said = tokio::time::timeout(LAST_PATIENCE, read).await.ok().flatten().unwrap_or_default();
    said.lines().map(|line| format!("container {name} said: {line}")).collect()
}

/// The state and what is to be told of it, for one transaction.
pub(super) fn writes_of(task: &Task, report: Option<Report>) -> Vec<Write> {
    let arn = task.spec().arn.clone();
    let mut writes = vec![Write::State { task: arn.clone(), state: task.state().clone() }];
    writes.extend(report.map(|report| Write::Report { task: arn, report: Box::new(report) }));
    writes
}

fn tell_log(task: &Task, report: &Report) {
    let stop = report.stop.as_ref();
    tracing::info!(
        task = %task.spec().arn,
        status = report.status.as_str(),
        waiting_for = report.waiting_for,
        stop_code = stop.map_or("", |s| s.code.as_str()),
        reason = stop.map_or("", |s| &s.reason),
        "task"
    );
}

const fn attempt_of(act: &Act) -> Option<AttemptId> {
    match act {
        Act::Acquire { attempt, .. }
        | Act::Release { attempt, .. }
        | Act::Create { attempt, .. }
        | Act::Start { attempt, .. }
        | Act::Inspect { attempt, .. }
        | Act::Stop { attempt, .. }
        | Act::Remove { attempt, .. } => Some(*attempt),
        Act::Abandon { .. } | Act::ReturnGrant | Act::Forget => None,
    }
}
