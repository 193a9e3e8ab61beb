//! A task driven by hand: every act is seen, and answered as the test says.

use std::sync::Arc;

use berth_core::ids::{AttemptId, EngineId, GpuId};
use berth_core::spec::{TaskFields, TaskSpec};
use berth_core::task::{
    Acquired, Act, Container, ContainerStatus, ErrorClass, Event, Exit, Fact, Failure, FailureKind, Health,
    Outcome, PortBinding, Report, ResourceKey, Settings, StopCause, StopCode, Task,
};
use berth_core::units::{Millis, PortRange, Protocol, Timestamp};

use super::specs::name;

/// The time at which every run begins.
pub(crate) const START: Timestamp = Timestamp(1_000_000);

/// A task, its clock, and what it reported.
pub(crate) struct Direct {
    pub(crate) task: Task,
    pub(crate) now: Timestamp,
    pub(crate) reports: Vec<Report>,
    made: u32,
    ports: u16,
}

impl Direct {
    /// A task that has just come.
    pub(crate) fn new(fields: TaskFields) -> Self {
        let spec = Arc::new(TaskSpec::try_from(fields).unwrap());
        Self::of(Task::new(spec, Settings::default(), START))
    }

    pub(crate) fn of(task: Task) -> Self {
        Self { task, now: START, reports: Vec::new(), made: 0, ports: 32768 }
    }

    /// A task that was granted and came up as far as acts that work bring it.
    pub(crate) fn up(fields: TaskFields) -> Self {
        let mut run = Self::new(fields);
        let acts = run.say(Event::Granted);
        run.all_work(acts);
        run
    }

    /// Tells the task, keeps its report, and yields its acts.
    pub(crate) fn say(&mut self, event: Event) -> Vec<Act> {
        let step = self.task.handle(self.now, event);
        self.reports.extend(step.report.clone());
        step.persisted()
    }

    pub(crate) fn done(&mut self, attempt: AttemptId, outcome: Outcome) -> Vec<Act> {
        self.say(Event::Done { attempt, outcome })
    }

    pub(crate) fn see(&mut self, container: &str, fact: Fact) -> Vec<Act> {
        let container = name(container);
        self.say(Event::Observed { container, fact })
    }

    pub(crate) fn fails(&mut self, act: &Act, kind: FailureKind) -> Vec<Act> {
        self.done(attempt(act), Outcome::Failed(failure(kind)))
    }

    pub(crate) fn stop(&mut self) -> Vec<Act> {
        self.say(Event::Stop(StopCause::new(StopCode::UserInitiated, StopCause::BY_USER)))
    }

    pub(crate) fn later(&mut self, span: Millis) {
        self.now = self.now.after(span);
    }

    /// Goes to the next deadline, and says that it came.
    pub(crate) fn deadline(&mut self) -> Vec<Act> {
        self.now = self.task.next_deadline().unwrap().max(self.now);
        self.say(Event::Deadline)
    }

    /// The act works.
    pub(crate) fn works(&mut self, act: &Act) -> Vec<Act> {
        let outcome = match act {
            Act::Acquire { resource, .. } => Outcome::Acquired(self.acquired(resource)),
            Act::Release { .. } => Outcome::Released,
            Act::Create { container, .. } => {
                self.made += 1;
                let id = id(&format!("{container}-{}", self.made));
                Outcome::Fact(Fact::Created { id })
            }
            Act::Start { id, .. } => Outcome::Fact(running(id.as_str(), self.now)),
            Act::Stop { id, .. } => Outcome::Fact(exited(id.as_str(), 143)),
            Act::Remove { .. } => Outcome::Removed,
            other => panic!("{other:?} has no one way to work"),
        };
        self.done(attempt(act), outcome)
    }

    fn acquired(&mut self, resource: &ResourceKey) -> Acquired {
        match resource {
            ResourceKey::Cgroup => Acquired::Cgroup { parent: Some("/berth/1".to_owned()) },
            ResourceKey::CpuBound
            | ResourceKey::Environment
            | ResourceKey::LogRouter
            | ResourceKey::Credentials
            | ResourceKey::Interface
            | ResourceKey::Faults => Acquired::Plain,
            ResourceKey::Namespace => Acquired::Namespace { holder: id("holder") },
            ResourceKey::Image(image) => {
                Acquired::Image { digest: Some(format!("sha256:{image}")), pulled_bytes: 0 }
            }
            ResourceKey::Gpus(of) => {
                let count = self.task.spec().container(of).unwrap().gpus;
                Acquired::Gpus((0..count).map(|n| gpu(of.as_str(), n)).collect())
            }
            ResourceKey::Ports(container) => {
                self.ports += 1;
                Acquired::Ports(vec![PortBinding {
                    container: container.clone(),
                    container_ports: PortRange::single(80).unwrap(),
                    host_ports: PortRange::single(self.ports).unwrap(),
                    protocol: Protocol::Tcp,
                }])
            }
        }
    }

    /// All of them work, and all that follow from them; yields every act on the way.
    pub(crate) fn all_work(&mut self, mut acts: Vec<Act>) -> Vec<Act> {
        let mut at = 0;
        while at < acts.len() {
            assert!(at < 200, "it does not end: {acts:?}");
            let act = acts[at].clone();
            if !matches!(act, Act::Abandon { .. } | Act::ReturnGrant | Act::Forget) {
                acts.extend(self.works(&act));
            }
            at += 1;
        }
        acts
    }

    /// All that is done, step by step, until the container runs, in words.
    pub(crate) fn until_runs(&mut self, container: &str, mut acts: Vec<Act>) -> Vec<String> {
        let mut seen = Vec::new();
        while self.container(container).status != ContainerStatus::Running {
            seen.extend(words(&acts));
            assert!(!acts.is_empty(), "it stands still after {seen:?}");
            acts = acts.iter().flat_map(|act| self.works(act)).collect();
        }
        seen
    }

    pub(crate) fn container(&self, text: &str) -> &Container {
        let all = &self.task.state().containers;
        all.iter().find(|c| c.name.as_str() == text).unwrap()
    }

    /// The last report.
    pub(crate) fn told(&self) -> &Report {
        self.reports.last().unwrap()
    }
}

/// Up to where the only container is being started.
pub(crate) fn starting(fields: TaskFields) -> (Direct, Act) {
    let mut run = Direct::new(fields);
    let mut acts = run.say(Event::Granted);
    while let Some(act) = acts.pop() {
        if matches!(act, Act::Start { .. }) {
            return (run, act);
        }
        acts.extend(run.works(&act));
    }
    panic!("nothing was started")
}

/// Whether these words come in that order.
pub(crate) fn in_order(seen: &[String], wanted: &[&str]) -> bool {
    let mut seen = seen.iter();
    wanted.iter().all(|word| seen.any(|seen| seen == word))
}

/// Ends whatever pauses, until something is done.
pub(crate) fn next_acts(run: &mut Direct, acts: Vec<Act>) -> Vec<Act> {
    let mut acts = acts;
    for _ in 0..50 {
        if !acts.is_empty() || run.task.next_deadline().is_none() {
            return acts;
        }
        acts = run.deadline();
    }
    panic!("the deadline comes again and again")
}

/// The GPU that a container of a task driven by hand is given, counted from 0.
pub(crate) fn gpu(container: &str, n: u32) -> GpuId {
    GpuId::new(format!("GPU-{container}-{n}")).unwrap()
}

pub(crate) fn id(text: &str) -> EngineId {
    EngineId::new(text).unwrap()
}

pub(crate) fn failure(kind: FailureKind) -> Failure {
    Failure { kind, class: ErrorClass::CannotStartContainer, detail: format!("{kind:?}") }
}

pub(crate) fn created(text: &str) -> Fact {
    Fact::Created { id: id(text) }
}

pub(crate) fn running(text: &str, started_at: Timestamp) -> Fact {
    Fact::Running { id: id(text), started_at, health: None }
}

pub(crate) fn with_health(text: &str, health: Health) -> Fact {
    Fact::Running { id: id(text), started_at: START, health: Some(health) }
}

/// It ran from [`START`] on, and ended.
pub(crate) fn exited(text: &str, code: i32) -> Fact {
    Fact::Exited {
        id: id(text),
        exit: Exit {
            code,
            oom_killed: false,
            task_memory_peak: None,
            with_engine: false,
            error: None,
            started_at: Some(START),
            finished_at: Some(START.after(Millis(1))),
        },
    }
}

/// The attempt of an act.
pub(crate) fn attempt(act: &Act) -> AttemptId {
    match act {
        Act::Acquire { attempt, .. }
        | Act::Release { attempt, .. }
        | Act::Create { attempt, .. }
        | Act::Start { attempt, .. }
        | Act::Inspect { attempt, .. }
        | Act::Stop { attempt, .. }
        | Act::Remove { attempt, .. }
        | Act::Abandon { attempt } => *attempt,
        Act::ReturnGrant | Act::Forget => panic!("{act:?} is no attempt"),
    }
}

/// An act in a few words: `create app`, `release Cgroup`.
pub(crate) fn word(act: &Act) -> String {
    let of = |resource: &ResourceKey| match resource {
        ResourceKey::Cgroup => "cgroup".to_owned(),
        ResourceKey::CpuBound => "cpu bound".to_owned(),
        ResourceKey::Environment => "environment".to_owned(),
        ResourceKey::LogRouter => "log router".to_owned(),
        ResourceKey::Credentials => "credentials".to_owned(),
        ResourceKey::Namespace => "namespace".to_owned(),
        ResourceKey::Interface => "interface".to_owned(),
        ResourceKey::Faults => "faults".to_owned(),
        ResourceKey::Ports(of) => format!("ports of {of}"),
        ResourceKey::Gpus(of) => format!("gpus of {of}"),
        ResourceKey::Image(image) => format!("image {image}"),
    };
    match act {
        Act::Acquire { resource, .. } => format!("acquire {}", of(resource)),
        Act::Release { resource, .. } => format!("release {}", of(resource)),
        Act::Create { container, .. } => format!("create {container}"),
        Act::Start { container, .. } => format!("start {container}"),
        Act::Inspect { container, .. } => format!("inspect {container}"),
        Act::Stop { container, .. } => format!("stop {container}"),
        Act::Remove { container, .. } => format!("remove {container}"),
        Act::Abandon { attempt } => format!("abandon {attempt}"),
        Act::ReturnGrant => "return the grant".to_owned(),
        Act::Forget => "forget".to_owned(),
    }
}

pub(crate) fn words(acts: &[Act]) -> Vec<String> {
    acts.iter().map(word).collect()
}
