//! How things happen in the world: acts have their effect and answer, hints arrive, time goes on.

use berth_core::ids::ContainerName;
use berth_core::spec::Condition;
use berth_core::task::{
    Act, ErrorClass, Event, Fact, Failure, FailureKind, Health, Outcome, ResourceKey, StopCause, StopCode,
    TaskStatus,
};
use berth_core::units::{Millis, Timestamp};

use super::host::{Life, Real};
use super::ops::{End, Fate, Op};
use super::{Flight, World};

impl World {
    pub(crate) fn apply(&mut self, op: &Op) {
        if self.forgotten {
            return;
        }
        match *op {
            Op::Effect(n) => self.effect(n),
            Op::Finish(n, end) => self.finish(n, end),
            Op::Repeat(n) => self.repeat(n),
            Op::Hint { which, twice, keep } => self.hint(which, twice, keep),
            Op::LoseHint(n) => {
                if let Some(at) = nth(n, self.hints.len()) {
                    self.hints.remove(at);
                }
            }
            Op::Resync => self.resync(),
            Op::Exit { which, code, oom } => self.exit(which, code, oom),
            Op::Health { which, good } => self.health(which, good),
            Op::Advance(ms) => self.host.now = self.host.now.after(Millis(u64::from(ms))),
            Op::Deadline => self.deadline(),
            Op::Stop => self.stop(),
            Op::HostGoes(ms) => {
                let cause = StopCause::new(StopCode::TerminationNotice, "the host goes");
                let by = self.host.now.after(Millis(u64::from(ms)));
                self.feed(Event::HostGoes { cause, by });
            }
            Op::Acknowledge => self.acknowledge(),
            Op::Crash { at, effects } => {
                self.crash = Some(at);
                self.crash_effects = effects;
            }
            Op::Restart { effects } => {
                self.crash_effects = effects;
                self.restart();
            }
            Op::Outage(away) => self.away = away,
            Op::MakeRoom => self.make_room(),
            Op::MeddleStart(n) => {
                if let Some(at) = self.pick(n, |r| matches!(r.life, Life::Created | Life::Exited)) {
                    self.host.meddle_start(at);
                    self.tell(at);
                }
            }
            Op::MeddleRemove(n) => {
                if let Some(at) = self.pick(n, |r| r.life != Life::Removed) {
                    self.host.meddle_remove(at);
                    self.tell(at);
                }
            }
            Op::Prune => self.host.images.clear(),
            Op::LoseNamespace => {
                if let Some(holder) = self.host.lose_namespace() {
                    self.feed(Event::NamespaceLost { holder });
                }
            }
        }
    }

    pub(crate) fn stop(&mut self) {
        self.feed(Event::Stop(StopCause::new(StopCode::UserInitiated, StopCause::BY_USER)));
    }

    pub(crate) fn acknowledge(&mut self) {
        if self.task.state().status == TaskStatus::Stopped {
            self.feed(Event::Acknowledged);
        }
    }

    fn pick(&self, n: u8, which: impl Fn(&Real) -> bool) -> Option<usize> {
        let fit: Vec<usize> = (0..self.host.lives.len()).filter(|at| which(&self.host.lives[*at])).collect();
        nth(n, fit.len()).map(|at| fit[at])
    }

    /// Something happened to that container: a hint of what is true now goes on its way.
    fn tell(&mut self, at: usize) {
        let real = &self.host.lives[at];
        let (name, fact) = (real.name.clone(), self.host.inspect(&real.id));
        self.hints.push((name, fact));
    }

    /// Does what an act asks for, and says how it went.
    pub(crate) fn perform(&mut self, act: &Act) -> Outcome {
        let needs_namespace = match act {
            Act::Acquire { resource, .. } => *resource == ResourceKey::Interface,
            Act::Create { .. } | Act::Start { .. } => true,
            _ => false,
        };
        if needs_namespace && self.host.namespace_lost {
            return Outcome::Failed(failure(FailureKind::Refused));
        }
        let outcome = match act {
            Act::Acquire { resource, .. } => Outcome::Acquired(self.host.acquire(resource)),
            Act::Release { resource, .. } => {
                self.host.release(resource);
                Outcome::Released
            }
            Act::Create { container, bindings, gpus, holder, .. } => {
                match self.host.create(container, bindings, gpus, holder.as_ref()) {
                    Some(id) => Outcome::Fact(self.host.inspect(&id)),
                    None => Outcome::Failed(failure(FailureKind::NoSuchImage)),
                }
            }
            Act::Start { id, .. } => match self.host.start(id) {
                Some(fact) => Outcome::Fact(fact),
                None => Outcome::Failed(failure(FailureKind::Refused)),
            },
            Act::Inspect { id, .. } => Outcome::Fact(self.host.inspect(id)),
            Act::Stop { id, .. } => Outcome::Fact(self.host.stop(id)),
            Act::Remove { container, id, .. } => {
                self.host.remove(container, id.as_ref());
                Outcome::Removed
            }
            Act::Abandon { .. } | Act::ReturnGrant | Act::Forget => panic!("{act:?} in flight"),
        };
        let (Act::Create { container, .. }
        | Act::Start { container, .. }
        | Act::Stop { container, .. }
        | Act::Remove { container, .. }) = act
        else {
            return outcome;
        };
        self.hints.push((container.clone(), self.host.fact_of(container)));
        outcome
    }

    fn effect(&mut self, n: u8) {
        let Some(at) = nth(n, self.flights.len()) else {
            return;
        };
        if self.flights[at].answer.is_none() && !self.away {
            let flight = self.flights[at].clone();
            self.flights[at].answer = Some(self.perform_flight(&flight));
        }
    }

    /// Like [`perform`](Self::perform); a container that nobody wants any more is made and removed.
    fn perform_flight(&mut self, flight: &Flight) -> Outcome {
        match &flight.act {
            Act::Create { .. } if flight.abandoned => Outcome::Fact(Fact::Missing),
            act => self.perform(act),
        }
    }

    pub(crate) fn finish(&mut self, n: u8, end: End) {
        let Some(at) = nth(n, self.flights.len()) else {
            return;
        };
        let flight = self.flights.remove(at);
        let outcome = self.outcome(&flight, end);
        let release = matches!(flight.act, Act::Release { .. });
        if release && matches!(outcome, Outcome::Failed(_)) {
            self.failed_releases += 1;
        }
        self.host.now.0 += 1;
        let before = self.task.clone();
        self.answered.push((flight.attempt, outcome.clone()));
        let crashes = self.crash.is_some();
        self.feed(Event::Done { attempt: flight.attempt, outcome });
        let ignored = *before.state() == *self.task.state();
        // A pause that just ran out is nothing that the answer changed.
        let paused = before.next_deadline().is_some_and(|at| at <= self.host.now);
        self.check(!flight.abandoned || crashes || paused || ignored, || {
            let (was, is) = (before.state(), self.task.state());
            format!("{:?} was abandoned and changed {was:?}\nto {is:?}", flight.act)
        });
    }

    fn outcome(&mut self, flight: &Flight, end: End) -> Outcome {
        let on_host = matches!(&flight.act, Act::Acquire { resource, .. } | Act::Release { resource, .. }
            if !matches!(resource, ResourceKey::Image(_)));
        let end = match (end, &flight.act) {
            _ if self.away && !on_host => End::Away { effect: false },
            (End::PortTaken, Act::Start { .. }) | (End::NoSuchImage, Act::Create { .. }) => end,
            (End::PortTaken | End::NoSuchImage, _) => End::Works,
            _ => end,
        };
        let (kind, effect) = match end {
            End::Works => {
                return match &flight.answer {
                    Some(answer) => answer.clone(),
                    None => self.perform_flight(flight),
                };
            }
            End::Away { effect } => (FailureKind::EngineAway, effect),
            End::TimedOut { effect } => (FailureKind::TimedOut, effect),
            End::Refused => (FailureKind::Refused, false),
            End::PortTaken => (FailureKind::PortTaken, false),
            End::NoSuchImage => (FailureKind::NoSuchImage, false),
        };
        if flight.answer.is_some() && !matches!(end, End::Away { .. } | End::TimedOut { .. }) {
            // It worked, and cannot say that it did not.
            return flight.answer.clone().unwrap();
        }
        if effect && flight.answer.is_none() {
            self.perform_flight(flight);
        }
        if end == End::NoSuchImage {
            self.host.images.clear();
        }
        Outcome::Failed(failure(kind))
    }

    fn repeat(&mut self, n: u8) {
        let Some(at) = nth(n, self.answered.len()) else {
            return;
        };
        let (attempt, outcome) = self.answered[at].clone();
        let before = self.task.clone();
        let due = before.next_deadline().is_some_and(|at| at <= self.host.now);
        if due || self.crash.is_some() {
            return;
        }
        self.feed(Event::Done { attempt, outcome });
        let same = self.task == before;
        self.check(same, || "an old answer changed something".to_owned());
    }

    fn hint(&mut self, which: u8, twice: bool, keep: bool) {
        let Some(at) = nth(which, self.hints.len()) else {
            return;
        };
        let (container, fact) = if keep { self.hints[at].clone() } else { self.hints.remove(at) };
        let crashes = self.crash.is_some();
        self.observe(&container, &fact);
        if twice && !crashes {
            let once = self.task.clone();
            self.observe(&container, &fact);
            let same = self.task == once;
            self.check(same, || "hearing it twice changed something".to_owned());
        }
    }

    fn observe(&mut self, container: &ContainerName, fact: &Fact) {
        self.feed(Event::Observed { container: container.clone(), fact: fact.clone() });
    }

    /// Everything is listed and inspected, and passed on.
    pub(crate) fn resync(&mut self) {
        if self.away {
            return;
        }
        let names: Vec<_> = self.spec.containers.iter().map(|c| c.name.clone()).collect();
        for name in names {
            let fact = self.host.fact_of(&name);
            self.observe(&name, &fact);
        }
    }

    fn exit(&mut self, which: u8, code: i32, oom: bool) {
        if let Some(at) = self.pick(which, |r| r.life == Life::Running) {
            self.host.end(at, code, oom);
            self.tell(at);
        }
    }

    fn health(&mut self, which: u8, good: bool) {
        let health = if good { Health::Healthy } else { Health::Unhealthy };
        if let Some(at) = self.pick(which, |r| r.life == Life::Running && r.health.is_some()) {
            self.host.set_health(at, health);
            self.tell(at);
        }
    }

    fn deadline(&mut self) {
        let Some(at) = self.task.next_deadline() else {
            return;
        };
        self.host.now = self.host.now.max(at);
        let crashes = self.crash.is_some();
        let acts = self.flights.len();
        self.feed(Event::Deadline);
        let next = self.task.next_deadline();
        let later = next.is_none_or(|next| next > self.host.now);
        let acted = self.flights.len() != acts || self.forgotten;
        self.check(later || acted || crashes, || {
            format!("the deadline {at:?} comes again at once: {next:?}")
        });
    }

    /// Everything works and everybody is patient, until nothing happens any more.
    pub(crate) fn settle(&mut self) {
        self.settle_with(|_| 0);
    }

    /// The same, the acts answering in an order of the caller's choosing.
    pub(crate) fn settle_with(&mut self, mut order: impl FnMut(usize) -> u8) {
        self.away = false;
        self.make_room();
        self.resync();
        let bound = self.steps + 1_500;
        while !self.forgotten {
            let steps = self.steps;
            self.check(steps < bound, || "it does not come to rest".to_owned());
            if !self.one_step(&mut order) {
                return;
            }
        }
    }

    /// The next thing that happens of itself; whether there was any.
    pub(crate) fn one_step(&mut self, mut order: impl FnMut(usize) -> u8) -> bool {
        let which = order(self.steps);
        if !self.flights.is_empty() {
            self.finish(which, End::Works);
        } else if !self.hints.is_empty() {
            self.hint(which, false, false);
        } else if self.fate_comes() {
            return true;
        } else if self.task.next_deadline().is_some() {
            self.deadline();
        } else {
            return false;
        }
        true
    }

    /// A container that is waited for does what it was made for.
    fn fate_comes(&mut self) -> bool {
        for (at, spec) in self.spec.clone().containers.iter().enumerate() {
            let fate = self.fates.get(at).copied().unwrap_or(Fate { code: 0, healthy: true });
            let Some(real) = self.host.existing(&spec.name) else {
                continue;
            };
            if self.host.lives[real].life != Life::Running {
                continue;
            }
            if self.host.lives[real].health == Some(Health::Unknown) {
                let health = if fate.healthy { Health::Healthy } else { Health::Unhealthy };
                self.host.set_health(real, health);
                self.tell(real);
                return true;
            }
            if !self.task.is_stopping() && self.may_end(&spec.name) {
                self.host.end(real, fate.code, false);
                self.tell(real);
                return true;
            }
        }
        false
    }

    /// Whether others wait for the end of that container.
    fn may_end(&self, name: &ContainerName) -> bool {
        let mut waits = self.spec.containers.iter().flat_map(|c| &c.depends_on);
        waits.any(|d| &d.container == name && matches!(d.condition, Condition::Complete | Condition::Success))
    }

    pub(crate) fn now(&self) -> Timestamp {
        self.host.now
    }
}

fn failure(kind: FailureKind) -> Failure {
    Failure { kind, class: ErrorClass::DockerTimeout, detail: format!("{kind:?}") }
}

fn nth(n: u8, of: usize) -> Option<usize> {
    (of > 0).then(|| usize::from(n) % of)
}
