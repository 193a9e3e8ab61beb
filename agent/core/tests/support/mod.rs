//! A small deterministic world round one task: it does what the engine and its shell do, and
//! checks at every step what must hold of any step.
//!
//! `host` is the truth, `ops` is what can happen and `acting` how, `specs` makes tasks, `direct`
//! drives one by hand. The shell keeps what was
//! persisted as text, performs acts with an outcome of the test's choosing, and passes on what
//! happens to containers as hints that may come late, twice, out of order or never.

pub(crate) mod acting;
pub(crate) mod direct;
pub(crate) mod host;
pub(crate) mod ops;
pub(crate) mod specs;

use std::sync::Arc;

use berth_core::ids::{AttemptId, ContainerName, TaskArn};
use berth_core::ledger::{Ledger, Verdict};
use berth_core::resources::Resources;
use berth_core::spec::TaskSpec;
use berth_core::task::{
    Acquired, Act, Event, Fact, Outcome, Report, ResourceKey, ResourceStatus, Settings, Task, TaskState,
    TaskStatus,
};
use berth_core::units::{CpuUnits, Mebibytes};

use host::{Host, Life, is_running};

/// An act that was begun and has not answered.
#[derive(Debug, Clone)]
pub(crate) struct Flight {
    pub(crate) attempt: AttemptId,
    pub(crate) act: Act,
    /// Nobody waits for its answer.
    pub(crate) abandoned: bool,
    /// It has had its effect; this is what it will answer.
    pub(crate) answer: Option<Outcome>,
}

/// When the agent dies, while it handles the next event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Crash {
    /// The step is lost.
    BeforePersist,
    /// The step is kept; so many of its acts begin.
    AfterActs(u8),
}

/// The shell round one task, and everything that it talks to.
pub(crate) struct World {
    pub(crate) spec: Arc<TaskSpec>,
    pub(crate) settings: Settings,
    pub(crate) task: Task,
    /// The state as it was kept last.
    pub(crate) kept: TaskState,
    pub(crate) host: Host,
    pub(crate) ledger: Ledger,
    /// Whether another task takes up the host.
    pub(crate) crowded: bool,
    pub(crate) flights: Vec<Flight>,
    pub(crate) hints: Vec<(ContainerName, Fact)>,
    pub(crate) answered: Vec<(AttemptId, Outcome)>,
    pub(crate) reports: Vec<Report>,
    pub(crate) grants_returned: u32,
    pub(crate) forgotten: bool,
    /// Whether the engine does not answer.
    pub(crate) away: bool,
    pub(crate) crash: Option<Crash>,
    /// Which of the acts in flight take effect when the agent dies.
    pub(crate) crash_effects: u16,
    /// How often releasing has failed: a resource may be left behind after many.
    pub(crate) failed_releases: u32,
    /// Containers whose exit code this run decides, with their life to be.
    pub(crate) fates: Vec<ops::Fate>,
    pub(crate) steps: usize,
    log: Vec<Event>,
}

impl World {
    pub(crate) fn new(spec: Arc<TaskSpec>, crowded: bool) -> Self {
        let settings = Settings::default();
        let host = Host::new(Arc::clone(&spec));
        let task = Task::new(Arc::clone(&spec), settings, host.now);
        let kept = task.state().clone();
        let mut world = Self {
            spec,
            settings,
            task,
            kept,
            host,
            ledger: Ledger::new(Resources::default()),
            crowded,
            flights: Vec::new(),
            hints: Vec::new(),
            answered: Vec::new(),
            reports: Vec::new(),
            grants_returned: 0,
            forgotten: false,
            away: false,
            crash: None,
            crash_effects: 0,
            failed_releases: 0,
            fates: Vec::new(),
            steps: 0,
            log: Vec::new(),
        };
        world.open_ledger();
        world.ask_ledger();
        world
    }

    pub(crate) fn other() -> TaskArn {
        specs::arn(99)
    }

    /// The ledger lives in memory: it is made anew from the tasks that hold a grant.
    fn open_ledger(&mut self) {
        let need = self.spec.need();
        let total = Resources {
            cpu: CpuUnits(need.cpu.0 + 100),
            memory: Mebibytes(need.memory.0 + 100),
            enis: need.enis,
            gpus: need.gpus,
            ..Resources::default()
        };
        self.ledger = Ledger::new(total.clone());
        if self.crowded {
            self.ledger.adopt(&Self::other(), &total);
        }
        if self.task.holds_grant() {
            self.ledger.adopt(&self.spec.arn, &need);
        }
    }

    fn ask_ledger(&mut self) {
        let waits = self.task.state().status == TaskStatus::Pending && !self.task.is_stopping();
        if self.task.holds_grant() || !waits {
            return;
        }
        let event = match self.ledger.request(&self.spec.arn, &self.spec.need()) {
            Verdict::Granted => Event::Granted,
            Verdict::Waiting(missing) => Event::Waiting(missing),
            Verdict::Never(missing) => Event::Never(missing),
        };
        self.feed(event);
    }

    /// The other task goes.
    pub(crate) fn make_room(&mut self) {
        self.crowded = false;
        for granted in self.ledger.release(&Self::other()) {
            assert_eq!(granted, self.spec.arn);
            self.feed(Event::Granted);
        }
    }

    /// Says what happened and what holds, when something does not.
    pub(crate) fn check(&self, holds: bool, what: impl FnOnce() -> String) {
        if !holds {
            let from = self.log.len().saturating_sub(25);
            let log: Vec<_> = self.log[from..].iter().map(|e| format!("{e:?}")).collect();
            let told = format!("{}\nafter:\n  {}", what(), log.join("\n  "));
            // Without the panic hook: shrinking a failure fails many times.
            std::panic::resume_unwind(Box::new(told));
        }
    }

    /// Handles an event as the shell does: decide, persist, then act.
    pub(crate) fn feed(&mut self, event: Event) {
        if self.forgotten {
            return;
        }
        self.steps += 1;
        self.log.push(event.clone());
        let now = self.host.now;
        let before = self.task.state().clone();
        let told = matches!(
            event,
            Event::Stop(_) | Event::HostGoes { .. } | Event::Acknowledged | Event::Restored(_)
        );
        let mut twin = self.task.clone();
        let step = self.task.handle(now, event.clone());
        let same = twin.handle(now, event);
        self.check(step == same && twin == self.task, || "equal state and event, unequal step".to_owned());
        self.check(step.changed == (&before != self.task.state()), || "`changed` is wrong".to_owned());
        let crash = self.crash.take();
        if crash == Some(Crash::BeforePersist) {
            return self.restart();
        }
        // What a crash may lose, the shell keeps with what comes next.
        let more_comes = if step.is_silent() {
            !self.flights.is_empty()
        } else {
            self.kept.stop.is_some() && step.only_releases()
        };
        if told || !more_comes {
            self.kept = self.task.state().clone();
        }
        if let Some(report) = &step.report {
            self.check_report(report);
            self.reports.push(report.clone());
        }
        let acts = step.persisted();
        self.check_state();
        let begun = match crash {
            Some(Crash::AfterActs(count)) => acts.len().min(usize::from(count)),
            _ => acts.len(),
        };
        for act in acts.into_iter().take(begun) {
            self.begin(act);
        }
        if crash.is_some() {
            self.restart();
        }
        let violations = self.host.violations.clone();
        self.check(violations.is_empty(), || violations.join("; "));
    }

    /// The agent dies and comes back: what it knows is what was kept and what a listing says.
    pub(crate) fn restart(&mut self) {
        self.go_down();
        let text = serde_json::to_string(&self.kept).unwrap();
        let state: TaskState = serde_json::from_str(&text).unwrap();
        self.check(state == self.kept, || "what is read back is not what was kept".to_owned());
        // No answer outlives the agent; those from before what was kept are a check of the core's.
        self.answered.retain(|(attempt, _)| *attempt < state.next_attempt);
        self.task = Task::restored(Arc::clone(&self.spec), self.settings, state);
        self.come_up();
    }

    /// The agent dies and its records are lost: it finds what its containers' labels say.
    pub(crate) fn lose_state(&mut self) {
        self.go_down();
        let alive = self.host.lives.iter().filter(|r| r.life != Life::Removed);
        let gpus = alive.clone().map(|r| (r.name.clone(), r.gpus.clone())).collect();
        let bindings: Vec<_> = alive.flat_map(|r| r.bindings.clone()).collect();
        let chosen: Vec<_> = bindings.into_iter().filter(|b| b.host_ports.first() >= 32768).collect();
        self.task = Task::adopted(Arc::clone(&self.spec), self.settings, &chosen, &gpus, self.host.now);
        self.reports.clear();
        self.answered.clear();
        self.come_up();
    }

    fn go_down(&mut self) {
        self.crash = None;
        for (at, flight) in std::mem::take(&mut self.flights).into_iter().enumerate() {
            if self.crash_effects & (1 << (at % 16)) != 0 && flight.answer.is_none() {
                match &flight.act {
                    Act::Create { container, .. } if flight.abandoned => self.host.come_late(container),
                    act => {
                        self.perform(act);
                    }
                }
            }
        }
        self.hints.clear();
        self.host.environment = false;
    }

    fn come_up(&mut self) {
        self.away = false;
        self.open_ledger();
        self.feed(Event::Restored(self.host.list()));
        let namespace = self.task.resource(&ResourceKey::Namespace).cloned();
        if let Some(holder) = namespace.and_then(|n| n.yielded.holder).filter(|_| self.host.namespace_lost) {
            self.feed(Event::NamespaceLost { holder });
        }
        self.ask_ledger();
    }

    fn begin(&mut self, act: Act) {
        let stopping = self.task.is_stopping();
        let up = matches!(act, Act::Acquire { .. } | Act::Create { .. } | Act::Start { .. });
        self.check(!(stopping && up), || format!("{act:?} of a task that is to stop"));
        match act {
            Act::Abandon { attempt } => {
                for flight in &mut self.flights {
                    flight.abandoned |= flight.attempt == attempt;
                    // Whoever has made a container that nobody wants removes it.
                    if let (true, Act::Create { container, .. }, Some(_)) =
                        (flight.attempt == attempt, &flight.act, &flight.answer)
                    {
                        self.host.remove(container, None);
                    }
                    // One thing at a time is done to a network or a folder: what was given up there is over.
                    let node = ops::node(&flight.act).1;
                    let one_by_one = [Ok(ResourceKey::Interface), Ok(ResourceKey::LogRouter)];
                    if flight.abandoned && one_by_one.contains(&node) {
                        flight.answer.get_or_insert(Outcome::Acquired(Acquired::Plain));
                    }
                }
            }
            Act::ReturnGrant => {
                self.grants_returned += 1;
                self.check(self.grants_returned == 1, || "the grant was returned twice".to_owned());
                let served = self.ledger.release(&self.spec.arn);
                self.check(served.is_empty(), || format!("{served:?} granted"));
            }
            Act::Forget => {
                self.forgotten = true;
                let left = self.host.remains();
                let excused = self.failed_releases >= 5;
                self.check(left.is_empty() || excused, || format!("left: {left:?}"));
                let acknowledged = self.task.state().acknowledged;
                self.check(acknowledged, || "forgotten unasked".to_owned());
            }
            act => {
                let (attempt, node) = ops::node(&act);
                let twice = self
                    .flights
                    .iter()
                    .any(|f| !f.abandoned && (ops::node(&f.act).1 == node || f.attempt == attempt));
                self.check(!twice, || format!("{act:?} while another is in flight"));
                self.flights.push(Flight { attempt, act, abandoned: false, answer: None });
            }
        }
    }

    /// What must hold of the state after every step.
    fn check_state(&self) {
        let state = self.task.state();
        let ids = state.containers.iter().filter_map(|c| c.attempt);
        let ids = ids.chain(state.resources.iter().filter_map(|r| r.attempt));
        let mut ids: Vec<_> = ids.map(|a| a.id).collect();
        let count = ids.len();
        ids.sort();
        ids.dedup();
        self.check(ids.len() == count, || "one attempt at two things".to_owned());
        let known = ids.iter().all(|id| *id < state.next_attempt);
        self.check(known, || "an attempt from the future".to_owned());
        // For people: must be had in every state.
        let _ = (self.task.waiting_for(), self.task.container_waits(self.host.now));
    }

    fn check_report(&self, report: &Report) {
        if let Some(last) = self.reports.last() {
            self.check(last.status <= report.status, || {
                format!("{:?} reported after {:?}", report.status, last.status)
            });
            self.check(last.stop.is_none() || last.stop == report.stop, || {
                "the first cause did not stand".to_owned()
            });
            for (was, is) in last.containers.iter().zip(&report.containers) {
                self.check(was.status <= is.status, || {
                    format!("{}: {:?} after {:?}", is.name, is.status, was.status)
                });
            }
        }
        let spec = &self.spec;
        if report.status == TaskStatus::Running {
            // One that is to stop may have let go of it when somebody else starts its container again.
            let bounded = spec.cpu.is_none() || self.host.bounded || report.stop.is_some();
            self.check(bounded, || "RUNNING without its CPU bound".to_owned());
        }
        if report.status == TaskStatus::Stopped {
            self.check_stopped(report);
        }
    }

    /// STOPPED is the truth: no process, no resource, every exit code.
    fn check_stopped(&self, report: &Report) {
        self.check(report.stop.is_some(), || "STOPPED without a cause".to_owned());
        let running = self.host.lives.iter().find(|r| is_running(r));
        self.check(running.is_none(), || format!("STOPPED while there is {running:?}"));
        let held = self.host.cgroup || !self.host.ports.is_empty() || !self.host.gpus.is_empty();
        self.check(!held || self.failed_releases >= 5, || {
            format!("STOPPED while it holds {:?}", self.host.remains())
        });
        let gone = |r: &berth_core::task::Resource| r.status == ResourceStatus::Gone;
        let all_gone = self.task.state().resources.iter().all(gone);
        self.check(all_gone, || "STOPPED before all was released".to_owned());
        for real in self.host.lives.iter().filter(|r| !r.meddled) {
            let told = report.containers.iter().find(|c| c.name == real.name);
            let code = real.exit.as_ref().map(|exit| exit.code);
            let told_code = told.and_then(|c| c.exit_code);
            self.check(code.is_none() || told_code == code, || {
                format!("{} ended with {code:?}, told {told_code:?}", real.name)
            });
        }
    }
}
