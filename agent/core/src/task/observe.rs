//! Takes an event into the state: what is known afterwards. Decides nothing.

use super::attempt::{AttemptKind, pause};
use super::container::{Container, ContainerInput, ContainerStatus};
use super::event::{Acquired, Event, Exit, Fact, Outcome};
use super::reason::{ErrorClass, Failure, FailureKind, StopCause, StopCode};
use super::resource::{Resource, ResourceInput, ResourceKey, ResourceStatus};
use super::restart::{self, Verdict};
use super::{Admission, Task, TaskStatus};
use crate::ids::{AttemptId, ContainerName, EngineId};
use crate::resources::describe;
use crate::spec::NetworkMode;
use crate::units::Timestamp;

impl Task {
    pub(super) fn observe(&mut self, now: Timestamp, event: Event) {
        match event {
            Event::Stop(cause) => self.stop(cause),
            Event::HostGoes { cause, by } => self.host_goes(cause, by),
            Event::Granted => {
                if matches!(self.state.admission, Admission::Waiting(_)) {
                    self.state.admission = Admission::Granted;
                }
            }
            Event::Waiting(missing) => {
                if matches!(self.state.admission, Admission::Waiting(_)) {
                    self.state.admission = Admission::Waiting(missing);
                }
            }
            Event::Never(missing) => {
                if matches!(self.state.admission, Admission::Waiting(_)) {
                    self.stop(StopCause::new(
                        StopCode::TaskFailedToStart,
                        format!("ResourceInitializationError: this container instance can never hold the task: {}", describe(&missing)),
                    ));
                    self.state.admission = Admission::Waiting(missing);
                }
            }
            Event::Observed { container, fact } => {
                if let Some(index) = self.index(&container) {
                    self.hear(index, fact, now);
                }
            }
            Event::Done { attempt, outcome } => self.take_outcome(attempt, outcome, now),
            Event::Restored(facts) => self.restore(&facts, now),
            Event::Rebooted(facts) => {
                self.restore(&facts, now);
                self.note_reboot();
            }
            Event::Acknowledged => {
                if self.state.status == TaskStatus::Stopped {
                    self.state.acknowledged = true;
                }
            }
            Event::NamespaceLost { holder } => self.lose_namespace(&holder),
            Event::Deadline => {}
        }
        self.end_pauses(now);
    }

    /// Containers cannot change to another namespace: without theirs the task is at its end, unless
    /// none was made yet.
    fn lose_namespace(&mut self, holder: &EngineId) {
        let ours = |r: &&mut Resource| {
            r.key == ResourceKey::Namespace && r.is_ready() && r.yielded.holder.as_ref() == Some(holder)
        };
        if let Some(resource) = self.state.resources.iter_mut().find(ours) {
            resource.apply(ResourceInput::Lost);
            let held = match self.spec.network_mode {
                NetworkMode::Awsvpc => "network",
                _ => "namespaces",
            };
            self.stop(StopCause::new(
                StopCode::EssentialContainerExited,
                format!(
                    "{}: the container that holds the task's {held} has ended",
                    StopCause::ESSENTIAL_EXITED
                ),
            ));
        }
    }

    /// The first cause stands.
    pub(super) fn stop(&mut self, cause: StopCause) {
        if self.state.stop.is_none() {
            self.state.stop = Some(cause);
        }
    }

    fn index(&self, name: &ContainerName) -> Option<usize> {
        self.state.containers.iter().position(|c| &c.name == name)
    }

    fn end_pauses(&mut self, now: Timestamp) {
        let containers = self.state.containers.iter_mut().map(|c| &mut c.retry_at);
        let resources = self.state.resources.iter_mut().map(|r| &mut r.retry_at);
        for pause in containers.chain(resources) {
            if pause.is_some_and(|at| at <= now) {
                *pause = None;
            }
        }
    }

    /// Takes an event of the engine. It is a hint: it may be late, come more than once, and be
    /// about an earlier life of the container.
    fn hear(&mut self, index: usize, fact: Fact, now: Timestamp) {
        let container = &mut self.state.containers[index];
        if container.id.is_none() && !(container.is_stopped() && container.touched) {
            return; // The answer to its creation, or a listing, says first which life is ours.
        }
        match fact {
            // It was made, as is known. Whether a start has worked since then, that does not say.
            Fact::Created { .. } => {}
            Fact::Missing => {
                // It names no life: we may be removing this one ourselves, and else it is asked for.
                container.unsure |= !container.discard && !container.is_stopped();
            }
            // The end that is known already: it may run again since.
            Fact::Exited { exit, .. } if container.exit.as_ref().is_some_and(|known| known.is(&exit)) => {}
            fact => self.take_fact(index, fact, now),
        }
    }

    fn take_fact(&mut self, index: usize, fact: Fact, now: Timestamp) {
        let container = &mut self.state.containers[index];
        let id = match &fact {
            Fact::Created { id }
            | Fact::Running { id, .. }
            | Fact::Exited { id, .. }
            | Fact::Silent { id } => Some(id),
            Fact::Missing => None,
        };
        if let (Some(id), Some(known)) = (id, &container.id)
            && id != known
        {
            return; // Another life of the container, removed since.
        }
        container.unsure = false;
        match fact {
            Fact::Created { id } => {
                if container.apply(ContainerInput::SeenCreated, now) {
                    container.id = Some(id);
                }
                // It came after it was removed.
                container.removed = false;
            }
            Fact::Silent { id } => {
                if container.apply(ContainerInput::SeenCreated, now) {
                    container.id = Some(id);
                }
                container.unsure = !container.is_stopped();
            }
            Fact::Running { id, started_at, health } => {
                if container.apply(ContainerInput::SeenRunning, now) {
                    container.id = Some(id);
                    (container.started_at, container.clock_moved_ms) = (Some(started_at), 0);
                    container.began_no_later(now);
                    // That it came too late stays said where the task is stopped for it.
                    let stops = self.state.stop.is_some();
                    container.failure.take_if(|failure| !(stops && failure.kind == FailureKind::TimedOut));
                } else if container.is_stopped() && container.started_at != Some(started_at) {
                    // Not a late look at the life that ended: somebody started it again.
                    container.revived = true;
                    container.id.get_or_insert(id);
                }
                if container.status == ContainerStatus::Running {
                    container.health = health.or(container.health);
                }
            }
            Fact::Exited { id, exit } => {
                container.revived = false;
                if container.is_known_end(&exit) {
                    return; // The end after which it is to be started again.
                }
                let policy = self.spec.containers[index].restart_policy.as_ref();
                let verdict = policy
                    .filter(|_| self.state.stop.is_none())
                    .map(|policy| restart::judge(policy, container, &exit, now));
                if let Some(Verdict::Again { after, in_a_row }) = verdict
                    && container.apply(ContainerInput::ToRestart, now)
                {
                    container.restart(id, exit, now.after(after), in_a_row);
                    return;
                }
                if let Some(Verdict::Over(why)) = verdict {
                    container.not_restarted = why;
                }
                if container.apply(ContainerInput::SeenExited, now) {
                    container.id = Some(id);
                    container.started_at = exit.started_at.or(container.started_at);
                    container.finished_at = exit.finished_at.or(Some(now));
                    container.failure.take_if(|failure| failure.kind == FailureKind::EngineAway);
                    container.exit = Some(exit);
                }
            }
            Fact::Missing => {
                container.revived = false;
                if container.apply(ContainerInput::SeenMissing, now) {
                    container.removed = true;
                    container.failure.take_if(|failure| failure.kind == FailureKind::EngineAway);
                    container.failure.get_or_insert_with(|| {
                        Failure::refused(
                            ErrorClass::ContainerVanished,
                            "No container matching saved ID found",
                        )
                    });
                }
            }
        }
    }

    fn take_outcome(&mut self, attempt: AttemptId, outcome: Outcome, now: Timestamp) {
        let is_it = |a: &Option<super::Attempt>| a.is_some_and(|a| a.id == attempt);
        if let Some(index) = self.state.resources.iter().position(|r| is_it(&r.attempt)) {
            self.state.resources[index].attempt = None;
            self.take_resource_outcome(index, outcome, now);
        } else if let Some(index) = self.state.containers.iter().position(|c| is_it(&c.attempt)) {
            let Some(ended) = self.state.containers[index].attempt.take() else {
                return;
            };
            self.take_container_outcome(index, ended.kind, outcome, now);
            if ended.kind == AttemptKind::Start {
                self.state.containers[index].began_no_earlier(ended.since);
            }
        }
        // Otherwise the attempt was given up, or belongs to an earlier life of the agent.
    }

    fn take_resource_outcome(&mut self, index: usize, outcome: Outcome, now: Timestamp) {
        let resource = &mut self.state.resources[index];
        match outcome {
            Outcome::Acquired(acquired) => {
                resource.apply(ResourceInput::Succeeded);
                resource.tries = 0;
                resource.trouble = None;
                match acquired {
                    Acquired::Plain => {}
                    Acquired::Cgroup { parent } => resource.yielded.cgroup_parent = parent,
                    Acquired::Ports(ports) => resource.yielded.ports = ports,
                    Acquired::Gpus(gpus) => resource.yielded.gpus = gpus,
                    Acquired::Image { digest, pulled_bytes } => {
                        resource.yielded.digest = digest;
                        resource.yielded.pulled_bytes = pulled_bytes;
                    }
                    Acquired::Namespace { holder } => resource.yielded.holder = Some(holder),
                }
                let image = match &resource.key {
                    ResourceKey::Image(image) => Some(image),
                    ResourceKey::Namespace => None,
                    _ => return,
                };
                if image.is_some() {
                    self.state.pull_stopped_at = Some(now);
                }
                // The engine answers again.
                for (spec, c) in self.spec.containers.iter().zip(&mut self.state.containers) {
                    if image.is_none_or(|image| &spec.image == image) {
                        c.failure.take_if(|f| f.kind == FailureKind::EngineAway);
                    }
                }
            }
            Outcome::Failed(failure) => self.resource_failed(index, failure, now),
            _ => {
                resource.apply(ResourceInput::Succeeded);
                resource.tries = 0;
            }
        }
    }

    fn take_container_outcome(&mut self, index: usize, kind: AttemptKind, outcome: Outcome, now: Timestamp) {
        match outcome {
            Outcome::Fact(fact) => {
                let container = &mut self.state.containers[index];
                if kind == AttemptKind::Stop && !matches!(fact, Fact::Exited { .. } | Fact::Missing) {
                    // It was told to stop and is still there.
                    container.tries = container.tries.saturating_add(1);
                    container.outlasted = container.outlasted.saturating_add(1);
                    container.retry_at = Some(now.after(pause(container.tries)));
                }
                // Whatever it says, the engine answers.
                container
                    .failure
                    .take_if(|f| kind == AttemptKind::Create || f.kind == FailureKind::EngineAway);
                self.take_fact(index, fact, now);
            }
            Outcome::Removed => {
                let container = &mut self.state.containers[index];
                if container.is_stopped() {
                    container.removed = true;
                } else {
                    container.apply(ContainerInput::Discarded, now);
                }
            }
            Outcome::Failed(failure) => self.container_failed(index, kind, failure, now),
            Outcome::Acquired(_) | Outcome::Released => {}
        }
    }

    fn restore(&mut self, facts: &[(ContainerName, Fact)], now: Timestamp) {
        self.begin_no_later(now);
        // Whoever was to forget it may have died before: it is told again.
        self.state.forgotten = false;
        for resource in &mut self.state.resources {
            if resource.attempt.take().is_some() {
                resource.apply(ResourceInput::Restart);
            }
            if matches!(resource.key, ResourceKey::Environment | ResourceKey::Credentials) {
                resource.apply(ResourceInput::Lost);
            }
            resource.retry_at = None;
        }
        for index in 0..self.state.containers.len() {
            let name = self.state.containers[index].name.clone();
            let container: &mut Container = &mut self.state.containers[index];
            container.attempt = None;
            container.retry_at = None;
            let fact = facts.iter().find(|(n, _)| *n == name).map_or(Fact::Missing, |(_, fact)| fact.clone());
            if fact == Fact::Missing && container.discard {
                container.apply(ContainerInput::Discarded, now);
                continue;
            }
            let fact = match fact {
                Fact::Created { id } if container.status == ContainerStatus::Running => {
                    Fact::Exited { id, exit: Exit::forgotten(container.started_at) }
                }
                fact => fact,
            };
            // An earlier life, which is forgotten, made it with what others may have been given since.
            let is_forgotten = container.status == ContainerStatus::Pending && self.lacks_its_own(&name);
            self.take_fact(index, fact, now);
            let container = &mut self.state.containers[index];
            container.discard |= is_forgotten && container.status == ContainerStatus::Created;
        }
    }

    /// Whether something is yet to be chosen that is to be this container's alone, and that it is made with.
    fn lacks_its_own(&self, name: &ContainerName) -> bool {
        self.state.resources.iter().any(|resource| {
            resource.status == ResourceStatus::None
                && matches!(&resource.key, ResourceKey::Ports(of) | ResourceKey::Gpus(of) if of == name)
        })
    }
}
