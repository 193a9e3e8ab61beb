//! Decides what is to be done now for a task that is to stop: containers in reverse order, then
//! resources, then the grant, and what is left once its time is over.

use super::attempt::AttemptKind;
use super::container::{ContainerInput, ContainerStatus};
use super::graph::may_stop;
use super::resource::{ResourceInput, ResourceKey, ResourceStatus};
use super::step::Act;
use super::{Admission, Task, TaskStatus};
use crate::units::Timestamp;

impl Task {
    pub(super) fn plan_down(&mut self, now: Timestamp, acts: &mut Vec<Act>) {
        for index in 0..self.state.resources.len() {
            match &self.state.resources[index].key {
                key if !key.needs_release() => self.let_go(index, acts),
                ResourceKey::Interface
                | ResourceKey::Environment
                | ResourceKey::LogRouter
                | ResourceKey::Credentials => {
                    self.stop_waiting(index, acts);
                }
                _ => {}
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
        if self.state.containers.iter().all(|c| c.is_stopped() && !c.revived) {
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
            acts.push(Act::Abandon { attempt: attempt.id });
        }
        resource.retry_at = None;
        resource.apply(ResourceInput::Drop);
        resource.apply(ResourceInput::Succeeded);
    }

    /// Gives up what is being acquired and may be long in coming; it is released as if it had come.
    fn stop_waiting(&mut self, index: usize, acts: &mut Vec<Act>) {
        let resource = &mut self.state.resources[index];
        if resource.status == ResourceStatus::Acquiring
            && let Some(attempt) = resource.attempt.take()
        {
            acts.push(Act::Abandon { attempt: attempt.id });
            resource.apply(ResourceInput::Restart);
        }
    }

    fn plan_container_down(&mut self, index: usize, now: Timestamp, acts: &mut Vec<Act>) {
        self.hurry(index, acts);
        let container = &self.state.containers[index];
        if container.revived {
            self.stop_container(index, now, acts);
            return;
        }
        if let Some(attempt) = container.attempt {
            if attempt.kind != AttemptKind::Create {
                return; // Every attempt ends: what became of it decides.
            }
            // What was only made runs nowhere, and whoever makes it may be long about it. They remove it
            // again; if they cannot, it is removed by its name in the end.
            self.state.containers[index].attempt = None;
            acts.push(Act::Abandon { attempt: attempt.id });
        }
        let container = &self.state.containers[index];
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

    pub(super) fn stop_container(&mut self, index: usize, now: Timestamp, acts: &mut Vec<Act>) {
        let container = &self.state.containers[index];
        let Some(id) = container.id.clone() else {
            return;
        };
        if !container.is_free() {
            return;
        }
        let grace = self.grace(index, now);
        let attempt = self.next_attempt();
        let container = &mut self.state.containers[index];
        container.begin(attempt, AttemptKind::Stop, now);
        acts.push(Act::Stop {
            attempt,
            container: container.name.clone(),
            id,
            grace,
            failed_before: container.outlasted,
        });
    }

    fn release_all(&mut self, now: Timestamp, acts: &mut Vec<Act>) {
        // What rests on another goes first.
        let indices = 0..self.state.resources.len();
        let (upper, lower): (Vec<_>, Vec<_>) =
            indices.partition(|index| self.state.resources[*index].key.rests_on().is_some());
        for index in upper.into_iter().chain(lower) {
            if self.is_rested_on(index) {
                continue;
            }
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
                acts.push(Act::Release { attempt, resource: resource.key.clone() });
            }
        }
        let released = self.state.resources.iter().all(|r| r.status == ResourceStatus::Gone);
        if released && self.state.status != TaskStatus::Stopped {
            self.state.status = TaskStatus::Stopped;
            self.state.stopped_at = Some(now);
            self.state.admission = Admission::Returned;
            if self.state.started_at.is_none() {
                // A task that ended before all of it was seen running at one time did run.
                let starts: Option<Vec<_>> = self.state.containers.iter().map(|c| c.started_at).collect();
                self.state.started_at = starts.and_then(|starts| starts.into_iter().max());
            }
            acts.push(Act::ReturnGrant);
        }
    }

    /// Whether another resource that rests on this one is still to be released.
    fn is_rested_on(&self, index: usize) -> bool {
        let key = &self.state.resources[index].key;
        let above = |r: &super::Resource| r.key.rests_on().as_ref() == Some(key);
        self.state.resources.iter().any(|r| above(r) && r.status != ResourceStatus::Gone)
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
