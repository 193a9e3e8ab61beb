//! Decides what is to be done now, from the state alone, and how a task comes up; puts every
//! attempt that it orders into the state first.

use super::attempt::AttemptKind;
use super::container::ContainerStatus;
use super::graph::{Gate, start_gate};
use super::reason::{ErrorClass, Failure, StopCause, StopCode};
use super::resource::{ResourceInput, ResourceKey, ResourceStatus};
use super::step::Act;
use super::{Admission, Container, Task, TaskStatus};
use crate::ids::{AttemptId, ContainerName};
use crate::spec::NetworkMode;
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

    pub(super) fn next_attempt(&mut self) -> AttemptId {
        let id = self.state.next_attempt;
        self.state.next_attempt = AttemptId(id.0.saturating_add(1));
        id
    }

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
                    && let Gate::Never(why) = start_gate(&self.spec, &self.state.containers, index, now)
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

    pub(super) fn statuses(&self) -> Vec<ContainerStatus> {
        self.state.containers.iter().map(|c| c.status).collect()
    }

    pub(super) fn note_execution_end(&mut self, now: Timestamp) {
        if self.state.execution_stopped_at.is_none()
            && let Some(index) = self.ended_essential()
        {
            self.state.execution_stopped_at = self.state.containers[index].finished_at.or(Some(now));
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
            ResourceKey::Ports(name) | ResourceKey::Gpus(name) => {
                self.state.containers.iter().any(|c| &c.name == name && c.status == ContainerStatus::Pending)
            }
            ResourceKey::Image(image) => {
                let made_from_it = |(spec, c): (&crate::spec::ContainerSpec, &Container)| {
                    // One that is being made has found it, or will say that it has not.
                    &spec.image == image && c.status == ContainerStatus::Pending && c.attempt.is_none()
                };
                self.spec.containers.iter().zip(&self.state.containers).any(made_from_it)
            }
            ResourceKey::Environment => {
                let waits_for_it = |(spec, c): (&crate::spec::ContainerSpec, &Container)| {
                    self.spec.has_values_elsewhere(spec)
                        && c.status == ContainerStatus::Pending
                        && c.attempt.is_none()
                };
                self.spec.containers.iter().zip(&self.state.containers).any(waits_for_it)
            }
            ResourceKey::LogRouter => {
                let waits_for_it = |(spec, c): (&crate::spec::ContainerSpec, &Container)| {
                    spec.firelens.is_some() && c.status == ContainerStatus::Pending && c.attempt.is_none()
                };
                self.spec.containers.iter().zip(&self.state.containers).any(waits_for_it)
            }
            ResourceKey::Credentials => {
                self.state.containers.iter().any(|c| c.status == ContainerStatus::Pending)
            }
            ResourceKey::Cgroup | ResourceKey::Namespace | ResourceKey::Interface | ResourceKey::Faults => {
                resource.key.rests_on().is_none_or(|key| self.is_there(&key))
            }
        }
    }

    fn may_be_bounded(&self, now: Timestamp) -> bool {
        let containers = &self.state.containers;
        containers.iter().any(|c| c.status == ContainerStatus::Running)
            && containers.iter().enumerate().all(|(i, c)| {
                c.seen_status() >= ContainerStatus::Running
                    || matches!(start_gate(&self.spec, containers, i, now), Gate::Waiting { .. })
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
        acts.push(Act::Acquire { attempt, resource: resource.key.clone() });
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
            ContainerStatus::Created if gate == Gate::Open && self.is_connected() => {
                self.start(index, now, acts);
            }
            _ => {}
        }
    }

    fn can_be_created(&self, index: usize) -> bool {
        let (name, image) = (&self.state.containers[index].name, &self.spec.containers[index].image);
        let ran = |name: &ContainerName| {
            self.state.containers.iter().any(|c| &c.name == name && c.status >= ContainerStatus::Running)
        };
        let exists =
            |name: &ContainerName| self.state.containers.iter().any(|c| &c.name == name && c.id.is_some());
        let spec = &self.spec.containers[index];
        // The engine makes a link to a running container alone; of one that has ended it says so.
        spec.links.iter().all(|link| ran(&link.container))
            && spec.volumes_from.iter().all(|from| exists(&from.container))
            && self.may_find_router(index)
            && self.state.resources.iter().all(|resource| match &resource.key {
                ResourceKey::Cgroup => resource.is_ready(),
                ResourceKey::Ports(of) | ResourceKey::Gpus(of) => of != name || resource.is_ready(),
                ResourceKey::Image(of) => of != image || resource.is_ready(),
                ResourceKey::Environment => !self.spec.has_values_elsewhere(spec) || resource.is_ready(),
                ResourceKey::LogRouter => spec.firelens.is_none() || resource.is_ready(),
                ResourceKey::Namespace | ResourceKey::Credentials => resource.is_ready(),
                // The interface may come while containers are made.
                ResourceKey::CpuBound | ResourceKey::Interface | ResourceKey::Faults => true,
            })
    }

    /// On the bridge a container that logs to the router is told its address, which a router has once it
    /// was started.
    fn may_find_router(&self, index: usize) -> bool {
        let spec = &self.spec.containers[index];
        let mut all = self.spec.containers.iter().zip(&self.state.containers);
        self.spec.network_mode != NetworkMode::Bridge
            || !spec.logs_to_router()
            || all.all(|(other, c)| other.firelens.is_none() || other.name == spec.name || c.was_started())
    }

    fn is_there(&self, key: &ResourceKey) -> bool {
        self.resource(key).is_some_and(super::Resource::is_ready)
    }

    /// Whether the network is as its containers expect it.
    fn is_connected(&self) -> bool {
        self.resource(&ResourceKey::Interface).is_none_or(super::Resource::is_ready)
    }

    fn create(&mut self, index: usize, now: Timestamp, acts: &mut Vec<Act>) {
        let attempt = self.next_attempt();
        self.state.containers[index].begin(attempt, AttemptKind::Create, now);
        let container = self.state.containers[index].name.clone();
        let bindings = self.bindings(&container);
        let gpus = self.gpus(&container).to_vec();
        let cgroup_parent = self.resource(&ResourceKey::Cgroup).and_then(|r| r.yielded.cgroup_parent.clone());
        let holder = self.resource(&ResourceKey::Namespace).and_then(|r| r.yielded.holder.clone());
        acts.push(Act::Create { attempt, container, bindings, gpus, cgroup_parent, holder });
    }

    fn start(&mut self, index: usize, now: Timestamp, acts: &mut Vec<Act>) {
        let Some(id) = self.state.containers[index].id.clone() else {
            return;
        };
        let attempt = self.next_attempt();
        self.state.containers[index].begin(attempt, AttemptKind::Start, now);
        acts.push(Act::Start { attempt, container: self.state.containers[index].name.clone(), id });
    }

    pub(super) fn inspect(&mut self, index: usize, now: Timestamp, acts: &mut Vec<Act>) {
        let Some(id) = self.state.containers[index].id.clone() else {
            return;
        };
        let attempt = self.next_attempt();
        self.state.containers[index].begin(attempt, AttemptKind::Inspect, now);
        acts.push(Act::Inspect { attempt, container: self.state.containers[index].name.clone(), id });
    }

    pub(super) fn remove(&mut self, index: usize, now: Timestamp, acts: &mut Vec<Act>) {
        let attempt = self.next_attempt();
        let container = &mut self.state.containers[index];
        container.begin(attempt, AttemptKind::Remove, now);
        acts.push(Act::Remove { attempt, container: container.name.clone(), id: container.id.clone() });
    }

    /// What follows for the whole task: it runs, or it has to stop.
    fn judge(&mut self, now: Timestamp) {
        self.note_execution_end(now);
        if let Some(index) = self.ended_essential() {
            let container = &self.state.containers[index];
            let never_ran = container.started_at.is_none();
            let cause = match &container.failure {
                Some(failure) if never_ran && self.state.status == TaskStatus::Pending => {
                    StopCause::new(StopCode::TaskFailedToStart, failure.of(&container.name))
                }
                _ => {
                    let along = container.exit.as_ref().is_some_and(|exit| exit.with_engine);
                    let reason = if along { StopCause::WITH_ENGINE } else { StopCause::ESSENTIAL_EXITED };
                    StopCause::new(StopCode::EssentialContainerExited, reason)
                }
            };
            self.stop(cause);
            return;
        }
        let containers = &self.state.containers;
        // One that is about to be started again has run.
        let all_up = containers.iter().all(|c| c.seen_status() >= ContainerStatus::Running);
        let bounded = self.resource(&ResourceKey::CpuBound).is_none_or(super::Resource::is_ready);
        if self.state.status == TaskStatus::Pending && all_up && bounded {
            self.state.status = TaskStatus::Running;
            self.state.started_at =
                self.state.containers.iter().filter_map(|c| c.started_at).max().or(Some(now));
        }
    }

    pub(super) fn ended_essential(&self) -> Option<usize> {
        let ended = |(spec, c): &(&crate::spec::ContainerSpec, &Container)| spec.essential && c.is_stopped();
        self.spec.containers.iter().zip(&self.state.containers).position(|pair| ended(&pair))
    }
}
