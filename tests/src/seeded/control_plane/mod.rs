//! The other end of the session: the real service, over a control plane that is nothing but records, and can be
//! away, deaf, slow, forgetful or a liar. It holds the agent to what the protocol promises.
//!
//! | module | its one job |
//! | --- | --- |
//! | `line` | the service, and the way to it |
//! | `reunion` | a host that knew the one before it |
//! | `talk` | one conversation |

mod line;
mod reunion;
mod talk;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use berth_core::ids::TaskArn;
use berth_core::task::Fact;
use berth_proto::v1;
use tokio::sync::Notify;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

pub use self::line::Way;
use super::store::short;
use super::world::World;

/// What the line takes for a message.
const WIRE: Duration = Duration::from_millis(5);

/// How it behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// As it should.
    Fine,
    /// Nobody answers at its address.
    Away,
    /// It takes calls and says nothing.
    Deaf,
    /// It takes so long for everything.
    Slow(Duration),
    /// It says what is not true.
    Lying,
}

#[derive(Debug, Clone)]
struct Task {
    spec: v1::TaskSpec,
    stop: Option<v1::StopCause>,
    heard: v1::TaskStatus,
}

#[derive(Debug)]
struct State {
    manner: Manner,
    lines: Vec<CancellationToken>,
    sequence: u64,
    instances: u64,
    instance: Option<String>,
    epoch: String,
    told: u64,
    tasks: BTreeMap<String, Task>,
    /// The last state of every task, also of those that it has forgotten, with the outbox that told it.
    last: BTreeMap<String, (String, v1::TaskStateChange)>,
    /// Every state change by the outbox and its number in it.
    numbered: BTreeMap<(String, u64), v1::TaskStateChange>,
    version: u64,
    /// How often another took its place.
    life: u64,
    /// Whether the host knew another, and the tasks that it was asked about since.
    estranged: bool,
    asked: BTreeSet<String>,
}

/// A control plane. Cloning shares it.
#[derive(Clone)]
pub struct ControlPlane {
    world: Arc<World>,
    state: Arc<Mutex<State>>,
    changed: Arc<Notify>,
}

impl ControlPlane {
    /// One that knows of nothing.
    #[must_use]
    pub fn new(world: Arc<World>) -> Self {
        let state = State {
            manner: Manner::Fine,
            lines: Vec::new(),
            sequence: 0,
            instances: 0,
            instance: None,
            epoch: String::new(),
            told: 0,
            tasks: BTreeMap::new(),
            last: BTreeMap::new(),
            numbered: BTreeMap::new(),
            version: 0,
            life: 0,
            estranged: false,
            asked: BTreeSet::new(),
        };
        Self { world, state: Arc::new(Mutex::new(state)), changed: Arc::new(Notify::new()) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self) {
        self.state().version += 1;
        self.changed.notify_waiters();
    }

    fn version(&self) -> u64 {
        self.state().version
    }

    /// Waits for a change after that one.
    async fn newer(&self, seen: u64) -> u64 {
        loop {
            let changed = self.changed.notified();
            let version = self.version();
            if version > seen {
                return version;
            }
            changed.await;
        }
    }

    /// Asks for a task.
    pub fn run(&self, arn: &str, spec: v1::TaskSpec) {
        self.state().tasks.insert(arn.to_owned(), Task { spec, stop: None, heard: v1::TaskStatus::Pending });
        self.wake();
    }

    /// Asks for a task's end.
    pub fn stop(&self, arn: &str) {
        if let Some(task) = self.state().tasks.get_mut(arn) {
            task.stop.get_or_insert_with(|| v1::StopCause {
                code: "UserInitiated".to_owned(),
                reason: "Task stopped by user".to_owned(),
            });
        }
        self.wake();
    }

    /// Whether the task is on its record.
    #[must_use]
    pub fn knows(&self, arn: &str) -> bool {
        self.state().tasks.contains_key(arn)
    }

    /// What the agent told last of a task, in whatever life of the control plane.
    #[must_use]
    pub fn heard(&self, arn: &str) -> Option<v1::TaskStateChange> {
        self.state().last.get(arn).map(|(_, change)| change.clone())
    }

    /// The number of the last state change that it was told.
    #[must_use]
    pub fn told(&self) -> u64 {
        self.state().told
    }

    /// Behaves so from now on. Whoever waits for a deaf one is heard then, or has to find out that nobody will.
    pub fn behave(&self, manner: Manner) {
        self.state().manner = manner;
        self.wake();
        if manner == Manner::Away {
            self.cut();
        }
    }

    /// Cuts every line.
    pub fn cut(&self) {
        for line in self.state().lines.drain(..) {
            line.cancel();
        }
    }

    /// Another takes its place, which has its address and nothing else.
    pub fn forget_all(&self) {
        {
            let mut state = self.state();
            state.tasks.clear();
            (state.instance, state.epoch, state.told) = (None, String::new(), 0);
            state.sequence = 0;
            state.life += 1;
            (state.estranged, state.asked) = (false, BTreeSet::new());
        }
        self.cut();
        self.wake();
    }

    fn manner(&self) -> Manner {
        self.state().manner
    }

    fn next(&self, above: u64) -> u64 {
        let mut state = self.state();
        state.sequence = state.sequence.max(above) + 1;
        state.sequence
    }

    /// Waits until it is not deaf. False when it has lost meanwhile what it was asked.
    async fn listen(&self) -> bool {
        if self.manner() != Manner::Deaf {
            return true;
        }
        while self.manner() == Manner::Deaf {
            self.newer(self.version()).await;
        }
        !self.world.once_in(2)
    }

    async fn dawdle(&self) {
        if let Manner::Slow(longest) = self.manner() {
            sleep(self.world.span(longest)).await;
        } else {
            sleep(self.world.span(WIRE)).await;
        }
    }

    fn greeting(&self, last_manifest: u64) -> (v1::Manifest, v1::Payload) {
        let (sequence, next) = (self.next(last_manifest), self.next(0));
        let state = self.state();
        let live = || state.tasks.iter().filter(|(_, task)| task.heard != v1::TaskStatus::Stopped);
        let entry = |(arn, task): (&String, &Task)| v1::ManifestEntry {
            task_arn: arn.clone(),
            desired: desired(task).into(),
        };
        let tasks = live().map(entry).collect();
        let assignments = live().map(|(arn, task)| assignment(arn, task)).collect();
        let at = Some(state.point());
        (
            v1::Manifest { sequence, tasks, at: at.clone() },
            v1::Payload { sequence: next, tasks: assignments, at },
        )
    }

    /// Takes a state change up, once, and holds the agent to its order.
    fn apply(&self, epoch: &str, change: v1::TaskStateChange) -> u64 {
        let arn = change.task_arn.clone();
        let line = format!("{}:{}#{}", short(&arn), change.status().as_str_name(), change.sequence);
        self.world.note(format_args!("told {line}"));
        let mut state = self.state();
        let number = (epoch.to_owned(), change.sequence);
        let before = state.numbered.insert(number, change.clone());
        if before.as_ref().is_some_and(|before| *before != change) {
            self.world.wrong(format!("{line}: another change had that number: {before:?}, now {change:?}"));
        }
        if change.sequence <= state.told {
            return state.told;
        }
        if change.sequence != state.told + 1 && (state.told != 0 || before.is_none()) {
            let known = state.numbered.contains_key(&(epoch.to_owned(), change.sequence - 1));
            if state.told != 0 || !known {
                self.world
                    .wrong(format!("{line}: the one before it is missing, {} was the last", state.told));
            }
        }
        state.told = change.sequence;
        let risen = self.world.known().tasks.get(&arn).is_some_and(|asked| asked.risen);
        if let Some((same, last)) = state.last.get(&arn)
            && same == epoch
            && !risen
        {
            if last.status() == v1::TaskStatus::Stopped && before.is_none() {
                self.world.wrong(format!("{line}: it was STOPPED already"));
            }
            if i32::from(change.status()) < i32::from(last.status()) && before.is_none() {
                self.world.wrong(format!("{line}: it was {} already", last.status().as_str_name()));
            }
        }
        if let Some(task) = state.tasks.get_mut(&arn)
            && task.heard != v1::TaskStatus::Stopped
            && i32::from(change.status()) > i32::from(task.heard)
        {
            task.heard = change.status();
        }
        let stopped = change.status() == v1::TaskStatus::Stopped;
        state.last.insert(arn.clone(), (epoch.to_owned(), change));
        let told = state.told;
        drop(state);
        if stopped {
            self.check_gone(&arn);
        }
        told
    }

    /// STOPPED says that nothing of it runs.
    fn check_gone(&self, arn: &str) {
        let meddled = self.world.known().tasks.get(arn).is_some_and(|asked| asked.meddled);
        for (request, fact) in self.world.engine.containers() {
            if request.task.arn.as_str() == arn && matches!(fact, Fact::Running { .. }) && !meddled {
                let name = &request.spec().name;
                self.world.wrong(format!("{} is STOPPED, and {name} runs", short(arn)));
            }
        }
    }
}

const fn desired(task: &Task) -> v1::DesiredStatus {
    if task.stop.is_some() { v1::DesiredStatus::Stopped } else { v1::DesiredStatus::Running }
}

fn assignment(arn: &str, task: &Task) -> v1::Assignment {
    v1::Assignment {
        task_arn: arn.to_owned(),
        desired: desired(task).into(),
        stop: task.stop.clone(),
        last_heard: task.heard.into(),
        spec: Some(task.spec.clone()),
    }
}

/// The ARN of the task of that number.
#[must_use]
pub fn arn_of(number: u64) -> String {
    format!("arn:aws:ecs:eu-west-1:123456789012:task/story/{number:032x}")
}

/// The same as the agent has it; `None` for what is no ARN.
#[must_use]
pub fn task_of(arn: &str) -> Option<TaskArn> {
    TaskArn::new(arn).ok()
}
