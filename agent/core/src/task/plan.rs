//! Decides what is to be done now, from the state alone; puts every attempt that it orders into
//! the state first.

use super::attempt::AttemptKind;
use super::container::{ContainerInput, ContainerStatus};
use super::graph::{Gate, may_stop, start_gate};
use super::reason::{ErrorClass, Failure, StopCause, StopCode};
use super::resource::{ResourceInput, ResourceKey, ResourceStatus};
use super::step::Act;
use super::{Admission, Container, Task, TaskStatus};
use crate::ids::AttemptId;
use crate::units::Timestamp;

impl Task {
    pub(super) fn plan(&mut self, now: Timestamp) -> Vec<Act> {
        let mut acts = Vec::new();
        if self.is_going_up() {
            // First what follows from what was seen: an end that ends the task begins nothing.
            self.fail_the_hopeless(now);
            self.judge(now);
        }
        if self.is_going_up() {
            self.plan_up(now, &mut acts);
        }
        if self.state.stop.is_some() {
            self.plan_down(now, &mut acts);
        }
        acts
    }

    fn is_going_up(&self) -> bool {
        self.state.stop.is_none() && self.state.admission == Admission::Granted
    }

    fn next_attempt(&mut self) -> AttemptId {
        let id = self.state.next_attempt;
        self.state.next_attempt = AttemptId(id.0.saturating_add(1));
        id
    }

    // === on the way up ===

    fn plan_up(&mut self, now: Timestamp, acts: &mut Vec<Act>) {
        for index in 0..self.state.resources.len() {
            if self.is_needed_now(index, now) {
                self.acquire(index, now, acts);
            }
        }
        for index in 0..self.state.containers.len() {
            self.plan_container_up(index, now, acts);
        }
    }

    /// Containers that can never start fail, and others with them: until nothing moves.
    fn fail_the_hopeless(&mut self, now: Timestamp) {
        loop {
            let before = self.statuses();
            for index in 0..self.state.containers.len() {
                let container = &self.state.containers[index];
                let waits = container.status < ContainerStatus::Running && !container.unsure;
                if waits
                    && container.is_free()
                    && let Gate::Never(why) =
                        start_gate(&self.spec, &self.state.containers, index, now)
                {
                    let failure = Failure::refused(ErrorClass::TaskDependency, why);
                    self.fail_container(index, failure, now);
                }
            }
            if self.statuses() == before {
                return;
            }
        }
    }

    fn statuses(&self) -> Vec<ContainerStatus> {
        self.state.containers.iter().map(|c| c.status).collect()
    }

    fn note_execution_end(&mut self, now: Timestamp) {
        if self.state.execution_stopped_at.is_none()
            && let Some(index) = self.ended_essential()
        {
            self.state.execution_stopped_at =
                self.state.containers[index].finished_at.or(Some(now));
        }
    }

    fn is_needed_now(&self, index: usize, now: Timestamp) -> bool {
        let resource = &self.state.resources[index];
        if resource.status != ResourceStatus::None || !resource.is_free() {
            return false;
        }
        match &resource.key {
            // Once nothing is starting: the quota would slow the engine's own start-up work.
            ResourceKey::CpuBound => self.may_be_bounded(now),
            // Acquired anew only after the container that had the old ones is out of the way.
            ResourceKey::Ports(name) => self
                .state
                .containers
                .iter()
                .any(|c| &c.name == name && c.status == ContainerStatus::Pending),
            ResourceKey::Image(image) => {
                let made_from_it = |(spec, c): (&crate::spec::ContainerSpec, &Container)| {
                    &spec.image == image && c.status == ContainerStatus::Pending
                };
                self.spec
                    .containers
                    .iter()
                    .zip(&self.state.containers)
                    .any(made_from_it)
            }
            ResourceKey::Cgroup => true,
        }
    }

    fn may_be_bounded(&self, now: Timestamp) -> bool {
        let containers = &self.state.containers;
        containers
            .iter()
            .any(|c| c.status == ContainerStatus::Running)
            && containers.iter().enumerate().all(|(i, c)| {
                c.status >= ContainerStatus::Running
                    || matches!(
                        start_gate(&self.spec, containers, i, now),
                        Gate::Waiting { .. }
                    )
            })
    }

    fn acquire(&mut self, index: usize, now: Timestamp, acts: &mut Vec<Act>) {
        let attempt = self.next_attempt();
        let resource = &mut self.state.resources[index];
        resource.apply(ResourceInput::Need);
        resource.begin(attempt, AttemptKind::Acquire, now);
        if matches!(resource.key, ResourceKey::Image(_)) {
            self.state.pull_started_at.get_or_insert(now);
        }
        acts.push(Act::Acquire {
            attempt,
            resource: resource.key.clone(),
        });
    }

    fn plan_container_up(&mut self, index: usize, now: Timestamp, acts: &mut Vec<Act>) {
        let container = &self.state.containers[index];
        if container.revived {
            self.stop_container(index, now, acts);
            return;
        }
        if container.is_stopped() || !container.is_free() {
            return;
        }
        if container.unsure {
            self.inspect(index, now, acts);
            return;
        }
        if container.status == ContainerStatus::Running {
            return;
        }
        let gate = start_gate(&self.spec, &self.state.containers, index, now);
        match container.status {
            ContainerStatus::Pending if self.can_be_created(index) => self.create(index, now, acts),
            ContainerStatus::Created if container.discard => self.remove(index, now, acts),
            ContainerStatus::Created if gate == Gate::Open => self.start(index, now, acts),
            _ => {}
        }
    }

    fn can_be_created(&self, index: usize) -> bool {
        let (name, image) = (
            &self.state.containers[index].name,
            &self.spec.containers[index].image,
        );
        self.state
            .resources
            .iter()
            .all(|resource| match &resource.key {
                ResourceKey::Cgroup => resource.is_ready(),
                ResourceKey::Ports(of) => of != name || resource.is_ready(),
                ResourceKey::Image(of) => of != image || resource.is_ready(),
                ResourceKey::CpuBound => true,
            })
    }

    fn create(&mut self, index: usize, now: Timestamp, acts: &mut Vec<Act>) {
        let attempt = self.next_attempt();
        self.state.containers[index].begin(attempt, AttemptKind::Create, now);
        let container = self.state.containers[index].name.clone();
        let bindings = self.bindings(&container);
        let cgroup_parent = self
            .resource(&ResourceKey::Cgroup)
            .and_then(|r| r.yielded.cgroup_parent.clone());
        acts.push(Act::Create {
            attempt,
            container,
            bindings,
            cgroup_parent,
        });
    }

    fn start(&mut self, index: usize, now: Timestamp, acts: &mut Vec<Act>) {
        let Some(id) = self.state.containers[index].id.clone() else {
            return;
        };
        let attempt = self.next_attempt();
        self.state.containers[index].begin(attempt, AttemptKind::Start, now);
        acts.push(Act::Start {
            attempt,
            container: self.state.containers[index].name.clone(),
            id,
        });
    }

    fn inspect(&mut self, index: usize, now: Timestamp, acts: &mut Vec<Act>) {
        let Some(id) = self.state.containers[index].id.clone() else {
            return;
        };
        let attempt = self.next_attempt();
        self.state.containers[index].begin(attempt, AttemptKind::Inspect, now);
        acts.push(Act::Inspect {
            attempt,
            container: self.state.containers[index].name.clone(),
            id,
        });
    }

    fn remove(&mut self, index: usize, now: Timestamp, acts: &mut Vec<Act>) {
        let attempt = self.next_attempt();
        let container = &mut self.state.containers[index];
        container.begin(attempt, AttemptKind::Remove, now);
        acts.push(Act::Remove {
            attempt,
            container: container.name.clone(),
            id: container.id.clone(),
        });
    }

    /// What follows for the whole task: it runs, or it has to stop.
    fn judge(&mut self, now: Timestamp) {
        self.note_execution_end(now);
        if let Some(index) = self.ended_essential() {
            let container = &self.state.containers[index];
            let never_ran = container.started_at.is_none();
            let cause = match &container.failure {
                Some(failure) if never_ran && self.state.status == TaskStatus::Pending => {
                    StopCause::new(StopCode::TaskFailedToStart, failure.to_string())
                }
                _ => StopCause::new(
                    StopCode::EssentialContainerExited,
                    StopCause::ESSENTIAL_EXITED,
                ),
            };
            self.stop(cause);
            return;
        }
        let containers = &self.state.containers;
        let all_up = containers
            .iter()
            .all(|c| c.status >= ContainerStatus::Running);
        let bounded = self
            .resource(&ResourceKey::CpuBound)
            .is_none_or(super::Resource::is_ready);
        if self.state.status == TaskStatus::Pending && all_up && bounded {
            self.state.status = TaskStatus::Running;
            self.state.started_at = self
                .state
                .containers
                .iter()
                .filter_map(|c| c.started_at)
                .max()
                .or(Some(now));
        }
    }

    fn ended_essential(&self) -> Option<usize> {
        let ended = |(spec, c): &(&crate::spec::ContainerSpec, &Container)| {
            spec.essential && c.is_stopped()
        };
        self.spec
            .containers
            .iter()
            .zip(&self.state.containers)
            .position(|pair| ended(&pair))
    }

    // === on the way down ===

    fn plan_down(&mut self, now: Timestamp, acts: &mut Vec<Act>) {
        for index in 0..self.state.resources.len() {
            if !self.state.resources[index].key.needs_release() {
                self.let_go(index, acts);
            }
        }
        // A container that stops may open the way for another: again until nothing moves.
        loop {
            let before = self.statuses();
            for index in 0..self.state.containers.len() {
                self.plan_container_down(index, now, acts);
            }
            if self.statuses() == before {
                break;
            }
        }
        self.note_execution_end(now);
        if self
            .state
            .containers
            .iter()
            .all(|c| c.is_stopped() && !c.revived)
        {
            self.release_all(now, acts);
        }
        if self.state.status == TaskStatus::Stopped {
            self.clean_up(now, acts);
        }
    }

    /// Lets go of what needs no releasing, whatever is in flight for it.
    fn let_go(&mut self, index: usize, acts: &mut Vec<Act>) {
        let resource = &mut self.state.resources[index];
        if let Some(attempt) = resource.attempt.take() {
            acts.push(Act::Abandon {
                attempt: attempt.id,
            });
        }
        resource.retry_at = None;
        resource.apply(ResourceInput::Drop);
        resource.apply(ResourceInput::Succeeded);
    }

    fn plan_container_down(&mut self, index: usize, now: Timestamp, acts: &mut Vec<Act>) {
        let container = &self.state.containers[index];
        if container.revived {
            self.stop_container(index, now, acts);
            return;
        }
        if container.attempt.is_some() {
            return; // Every attempt ends: what became of it decides.
        }
        match container.status {
            ContainerStatus::Stopped => {}
            ContainerStatus::Created | ContainerStatus::Running if container.unsure => {
                if container.is_free() {
                    self.inspect(index, now, acts);
                }
            }
            ContainerStatus::Pending | ContainerStatus::Created => {
                self.state.containers[index].apply(ContainerInput::GaveUp, now);
            }
            ContainerStatus::Running => {
                if may_stop(&self.spec, &self.state.containers, index) {
                    self.stop_container(index, now, acts);
                }
            }
        }
    }

    fn stop_container(&mut self, index: usize, now: Timestamp, acts: &mut Vec<Act>) {
        let container = &self.state.containers[index];
        let Some(id) = container.id.clone() else {
            return;
        };
        if !container.is_free() {
            return;
        }
        let attempt = self.next_attempt();
        let container = &mut self.state.containers[index];
        container.begin(attempt, AttemptKind::Stop, now);
        let grace = self.spec.containers[index]
            .stop_timeout
            .unwrap_or(self.settings.stop_timeout);
        acts.push(Act::Stop {
            attempt,
            container: container.name.clone(),
            id,
            grace,
            failed_before: container.tries,
        });
    }

    fn release_all(&mut self, now: Timestamp, acts: &mut Vec<Act>) {
        for index in 0..self.state.resources.len() {
            let resource = &mut self.state.resources[index];
            if resource.status == ResourceStatus::None && resource.touched {
                // An attempt that failed, or was cut short by a restart, may have had its effect,
                // and what proved useless is still held.
                resource.apply(ResourceInput::Need);
                resource.apply(ResourceInput::Succeeded);
                resource.retry_at = None;
                resource.tries = 0;
            }
            if resource.status == ResourceStatus::None {
                resource.apply(ResourceInput::Drop);
            } else if resource.status == ResourceStatus::Ready && resource.is_free() {
                resource.apply(ResourceInput::Drop);
                let attempt = self.next_attempt();
                let resource = &mut self.state.resources[index];
                resource.begin(attempt, AttemptKind::Release, now);
                acts.push(Act::Release {
                    attempt,
                    resource: resource.key.clone(),
                });
            }
        }
        let released = self
            .state
            .resources
            .iter()
            .all(|r| r.status == ResourceStatus::Gone);
        if released && self.state.status != TaskStatus::Stopped {
            self.state.status = TaskStatus::Stopped;
            self.state.stopped_at = Some(now);
            self.state.admission = Admission::Returned;
            if self.state.started_at.is_none() {
                // A task that ended before all of it was seen running at one time did run.
                let starts: Option<Vec<_>> =
                    self.state.containers.iter().map(|c| c.started_at).collect();
                self.state.started_at = starts.and_then(|starts| starts.into_iter().max());
            }
            acts.push(Act::ReturnGrant);
        }
    }

    /// Removes what is left of a stopped task once its time is over.
    fn clean_up(&mut self, now: Timestamp, acts: &mut Vec<Act>) {
        if self.state.forgotten || self.cleanup_at().is_none_or(|at| at > now) {
            return;
        }
        // Essential ones last: should the records be lost now, the task is rebuilt from what is
        // left, and only the end of an essential container says that it is over.
        for essential in [false, true] {
            for index in 0..self.state.containers.len() {
                let container = &mut self.state.containers[index];
                if self.spec.containers[index].essential != essential {
                    continue;
                }
                if !container.touched && container.id.is_none() {
                    container.removed = true;
                } else if !container.removed && container.is_free() {
                    self.remove(index, now, acts);
                }
            }
            let mut pairs = self.spec.containers.iter().zip(&self.state.containers);
            if pairs.any(|(spec, c)| spec.essential == essential && !c.removed) {
                break;
            }
        }
        if self.state.containers.iter().all(|c| c.removed) {
            self.state.forgotten = true;
            acts.push(Act::Forget);
        }
    }
}
