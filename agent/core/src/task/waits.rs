//! What a task and its containers wait for, for people. Decides nothing.

use super::attempt::AttemptKind;
use super::container::ContainerStatus;
use super::event::Health;
use super::graph::{Gate, start_gate};
use super::reason::{Failure, FailureKind};
use super::resource::{ResourceKey, ResourceStatus};
use super::{Admission, Container, Task, restart};
use crate::attachment::Provider;
use crate::ids::ContainerName;
use crate::resources::describe;
use crate::units::Timestamp;

impl Task {
    /// What it waits for that somebody else has to bring about: resources of the host, the engine, or a
    /// container that is not well. Empty when it waits for nothing of the kind.
    #[must_use]
    pub fn waiting_for(&self) -> String {
        if let Admission::Waiting(missing) = &self.state.admission
            && !missing.is_empty()
        {
            return describe(missing);
        }
        if let Some(attachment) = &self.spec.attachment
            && attachment.provider == Provider::HotPlug
            && self.resource(&ResourceKey::Interface).is_some_and(|r| r.status == ResourceStatus::Acquiring)
        {
            return format!("a network interface with the address {} to be plugged in", attachment.mac);
        }
        let elsewhere = [&ResourceKey::Environment, &ResourceKey::LogRouter, &ResourceKey::Credentials];
        let trouble = elsewhere.into_iter().filter_map(|key| self.resource(key)?.trouble.as_ref()).next();
        if let Some(trouble) = trouble.filter(|_| !self.is_stopping()) {
            return trouble.clone();
        }
        let away =
            |failure: &Option<Failure>| matches!(failure, Some(f) if f.kind == FailureKind::EngineAway);
        if self.state.containers.iter().any(|c| !c.is_stopped() && away(&c.failure)) {
            return "the container engine, which does not answer".to_owned();
        }
        let late =
            |c: &&Container| c.unsure && matches!(&c.failure, Some(f) if f.kind == FailureKind::TimedOut);
        if let Some(container) = self.state.containers.iter().find(late) {
            return format!(
                "the container engine, which does not say what became of container {}",
                container.name
            );
        }
        self.waits_for_the_unhealthy().unwrap_or_default()
    }

    /// The first container that fails its health check while another waits for it.
    fn waits_for_the_unhealthy(&self) -> Option<String> {
        if self.is_stopping() || !self.state.containers.iter().any(is_unhealthy) {
            return None;
        }
        let unhealthy =
            |name: &ContainerName| self.state.containers.iter().any(|c| &c.name == name && is_unhealthy(c));
        (0..self.state.containers.len()).find_map(|index| {
            let needs = &self.spec.containers[index].depends_on;
            let waits = self.state.containers[index].status < ContainerStatus::Running
                && needs.iter().any(|needed| unhealthy(&needed.container));
            // Asked as of the beginning of time: what it waits for does not change with time.
            match start_gate(&self.spec, &self.state.containers, index, Timestamp(0)) {
                Gate::Waiting { on, .. } if waits => Some(on),
                _ => None,
            }
        })
    }

    /// What each container that does not run yet waits for, for people.
    #[must_use]
    pub fn container_waits(&self, now: Timestamp) -> Vec<(ContainerName, String)> {
        let all = self.state.containers.iter().enumerate();
        all.filter(|(_, container)| container.status < ContainerStatus::Running)
            .filter_map(|(index, container)| Some((container.name.clone(), self.container_wait(index, now)?)))
            .collect()
    }

    fn container_wait(&self, index: usize, now: Timestamp) -> Option<String> {
        let (spec, container) = (&self.spec.containers[index], &self.state.containers[index]);
        // The engine's own part takes a moment; what others have to do for it may take longer.
        let (step, needs) = match container.attempt.map(|attempt| attempt.kind) {
            Some(AttemptKind::Create) => ("make", self.spec.outside_volumes(spec).join(", ")),
            Some(AttemptKind::Start) => ("start", self.spec.outside_needs(spec)),
            _ => ("", String::new()),
        };
        if !needs.is_empty() {
            return Some(format!("the container engine to {step} it, with {needs}"));
        }
        if let Gate::Waiting { on, .. } = start_gate(&self.spec, &self.state.containers, index, now) {
            return Some(on);
        }
        if let Some(wait) = restart::wait(container, now) {
            return Some(wait);
        }
        let pulling = self.state.resources.iter().any(|r| {
            r.status == ResourceStatus::Acquiring
                && matches!(&r.key, ResourceKey::Image(image) if image == &spec.image)
        });
        pulling.then(|| format!("image {}", spec.image))
    }
}

fn is_unhealthy(container: &Container) -> bool {
    container.status == ContainerStatus::Running && container.health == Some(Health::Unhealthy)
}
