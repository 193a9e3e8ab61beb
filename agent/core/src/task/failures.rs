//! Takes the failure of an act into the state: try again, do without, or give up. Decides nothing
//! else.

use super::attempt::{AttemptKind, pause};
use super::container::{ContainerInput, ContainerStatus};
use super::reason::{Failure, FailureKind, StopCause, StopCode};
use super::resource::{ResourceInput, ResourceKey, ResourceStatus};
use super::{Task, TaskStatus};
use crate::spec::ContainerSpec;
use crate::units::Timestamp;

/// How often a resource is tried before the task fails for it, or goes without releasing it.
const MAX_RESOURCE_TRIES: u32 = 5;
/// How often other ports are chosen for a container before it fails.
const MAX_PORT_TRIES: u32 = 5;
/// How often an image that vanished between pull and create is pulled again.
const MAX_IMAGE_TRIES: u32 = 3;

impl Task {
    pub(super) fn resource_failed(&mut self, index: usize, failure: Failure, now: Timestamp) {
        let resource = &mut self.state.resources[index];
        let was = resource.status;
        resource.tries = resource.tries.saturating_add(1);
        resource.retry_at = Some(now.after(pause(resource.tries)));
        if was == ResourceStatus::Releasing {
            if resource.tries < MAX_RESOURCE_TRIES || failure.kind == FailureKind::EngineAway {
                resource.apply(ResourceInput::Failed);
            } else {
                tracing::warn!(task = %self.spec.arn, resource = ?resource.key, %failure, "left behind a resource that cannot be released");
                resource.apply(ResourceInput::Succeeded);
            }
            return;
        }
        resource.apply(ResourceInput::Failed);
        resource.trouble = Some(failure.detail.clone());
        let key = resource.key.clone();
        let final_try = resource.tries >= MAX_RESOURCE_TRIES;
        match (&key, failure.kind) {
            (_, FailureKind::EngineAway) => {
                // Nothing is wrong with the task: it waits, and says for what.
                match &key {
                    ResourceKey::Image(image) => self.note_with_engine(|c| &c.image == image, &failure),
                    ResourceKey::Namespace => self.note_with_engine(|_| true, &failure),
                    _ => {}
                }
            }
            (ResourceKey::Image(image), _) => {
                let image = image.clone();
                self.image_failed(&image, &failure, now);
            }
            (_, FailureKind::Refused) => self.fail_task(&failure),
            _ if final_try => self.fail_task(&failure),
            _ => {}
        }
    }

    fn note_with_engine(&mut self, needs_it: impl Fn(&ContainerSpec) -> bool, failure: &Failure) {
        for (spec, container) in self.spec.containers.iter().zip(&mut self.state.containers) {
            if needs_it(spec) && container.status == ContainerStatus::Pending {
                container.failure = Some(failure.clone());
            }
        }
    }

    /// An image that cannot be had stops the containers to be made from it. One that is being made
    /// may have found it: what becomes of that decides.
    fn image_failed(&mut self, image: &str, failure: &Failure, now: Timestamp) {
        for index in 0..self.state.containers.len() {
            let container = &self.state.containers[index];
            if self.spec.containers[index].image == image
                && container.status == ContainerStatus::Pending
                && container.attempt.is_none()
            {
                self.fail_container(index, failure.clone(), now);
            }
        }
        // Nobody needs it now; a container that has to be made anew may, and asks again.
        if let Some(resource) =
            self.state.resources.iter_mut().find(|r| matches!(&r.key, ResourceKey::Image(i) if i == image))
        {
            resource.retry_at = None;
        }
    }

    /// A resource of the whole task cannot be had.
    fn fail_task(&mut self, failure: &Failure) {
        self.stop(StopCause::new(StopCode::TaskFailedToStart, failure.to_string()));
    }

    /// A container that does not run cannot be had.
    pub(super) fn fail_container(&mut self, index: usize, failure: Failure, now: Timestamp) {
        let container = &mut self.state.containers[index];
        container.failure = Some(failure);
        container.apply(ContainerInput::GaveUp, now);
    }

    pub(super) fn container_failed(
        &mut self,
        index: usize,
        kind: AttemptKind,
        failure: Failure,
        now: Timestamp,
    ) {
        let chosen_ports = self.has_chosen_ports(index);
        let container = &mut self.state.containers[index];
        if kind == AttemptKind::Start && container.status > ContainerStatus::Created {
            return; // It was seen to run since: only the answer got lost.
        }
        container.tries = container.tries.saturating_add(1);
        container.retry_at = Some(now.after(pause(container.tries)));
        let tries = container.tries;
        if kind == AttemptKind::Stop && failure.kind != FailureKind::EngineAway {
            // An engine that was away may never have passed the signal on: that was no grace.
            container.outlasted = container.outlasted.saturating_add(1);
        }
        match (kind, failure.kind) {
            (AttemptKind::Create, FailureKind::EngineAway) => container.failure = Some(failure),
            (AttemptKind::Create, FailureKind::NoSuchImage) if container.renewed < MAX_IMAGE_TRIES => {
                container.renewed += 1;
                let image = &self.spec.containers[index].image;
                if let Some(resource) = self
                    .state
                    .resources
                    .iter_mut()
                    .find(|r| matches!(&r.key, ResourceKey::Image(i) if i == image))
                {
                    resource.apply(ResourceInput::Lost);
                }
            }
            (AttemptKind::Start, FailureKind::EngineAway) => {
                container.unsure = true;
                container.failure = Some(failure);
            }
            (AttemptKind::Start, FailureKind::PortTaken)
                if container.renewed < MAX_PORT_TRIES && chosen_ports =>
            {
                container.renewed += 1;
                self.choose_other_ports(index);
            }
            (AttemptKind::Start, FailureKind::TimedOut) => {
                // It could be running: it is looked at, and stopped if it is.
                container.unsure = true;
                container.failure = Some(failure.clone());
                self.stop_for(index, &failure);
            }
            (AttemptKind::Create | AttemptKind::Start, _) => {
                self.fail_container(index, failure, now);
            }
            (
                AttemptKind::Inspect
                | AttemptKind::Stop
                | AttemptKind::Remove
                | AttemptKind::Acquire
                | AttemptKind::Release,
                _,
            ) => {
                tracing::warn!(task = %self.spec.arn, container = %self.state.containers[index].name, ?kind, tries, %failure, "will be tried again");
            }
        }
    }

    /// A failure of a container that may be running: the whole task goes if the container matters.
    fn stop_for(&mut self, index: usize, failure: &Failure) {
        if self.spec.containers[index].essential {
            let code = match self.state.status {
                TaskStatus::Pending => StopCode::TaskFailedToStart,
                TaskStatus::Running | TaskStatus::Stopped => StopCode::EssentialContainerExited,
            };
            let reason = failure.of(&self.state.containers[index].name);
            self.stop(StopCause::new(code, reason));
        }
    }

    fn has_chosen_ports(&self, index: usize) -> bool {
        self.resource(&ResourceKey::Ports(self.state.containers[index].name.clone())).is_some()
    }

    fn choose_other_ports(&mut self, index: usize) {
        let key = ResourceKey::Ports(self.state.containers[index].name.clone());
        self.state.containers[index].discard = true;
        self.state.containers[index].retry_at = None;
        if let Some(resource) = self.state.resources.iter_mut().find(|r| r.key == key) {
            resource.apply(ResourceInput::Lost);
        }
    }
}
