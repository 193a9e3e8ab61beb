//! Who waits for whom: when a container may start, and when it may stop.

use super::container::{Container, ContainerStatus};
use super::event::Health;
use crate::spec::{Condition, ContainerSpec, Dependency, TaskSpec};
use crate::units::Timestamp;

/// Whether a container may start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Gate {
    /// Now.
    Open,
    /// Not yet: what is waited for, and until when at most.
    Waiting {
        /// For people.
        on: String,
        /// When the wait ends in failure.
        until: Option<Timestamp>,
    },
    /// Never: why.
    Never(String),
}

/// Whether the container at `index` may start.
pub(super) fn start_gate(spec: &TaskSpec, containers: &[Container], index: usize, now: Timestamp) -> Gate {
    let mut gate = Gate::Open;
    if containers[index].restarts > 0 {
        return gate; // What it depends on was there when it first started.
    }
    for dependency in &spec.containers[index].depends_on {
        let Some(at) = spec.containers.iter().position(|c| c.name == dependency.container) else {
            continue; // The specification was checked: every dependency names a container.
        };
        match one_gate(&spec.containers[at], &containers[at], dependency, now) {
            Gate::Open => {}
            Gate::Never(why) => return Gate::Never(why),
            Gate::Waiting { on, until } => {
                // The first wait is told; the earliest end of all counts.
                gate = match gate {
                    Gate::Waiting { on: first, until: earlier } => {
                        Gate::Waiting { on: first, until: earlier.into_iter().chain(until).min() }
                    }
                    _ => Gate::Waiting { on, until },
                };
            }
        }
    }
    gate
}

fn one_gate(spec: &ContainerSpec, container: &Container, dependency: &Dependency, now: Timestamp) -> Gate {
    use ContainerStatus as S;
    let exit_code = container.exit.as_ref().map(|exit| exit.code);
    let fulfilled = match (dependency.condition, container.status) {
        (Condition::Start, S::Running) => true,
        // It ended, and is about to be started again.
        (Condition::Start, S::Created) => container.restarts > 0,
        // One that could not be had was never started, and did not run to its end.
        (Condition::Start, S::Stopped) => container.started_at.is_some(),
        (Condition::Complete, S::Stopped) => exit_code.is_some(),
        (Condition::Success, S::Stopped) => exit_code == Some(0),
        (Condition::Healthy, S::Running) => container.health == Some(Health::Healthy),
        _ => false,
    };
    if fulfilled {
        return Gate::Open;
    }
    let wanted = condition_name(dependency.condition);
    let name = &dependency.container;
    if container.status == S::Stopped {
        let how = exit_code
            .map_or_else(|| "could not be started".to_owned(), |code| format!("exited with code {code}"));
        return Gate::Never(format!("container {name} was to become {wanted} and {how}"));
    }
    let until = match dependency.condition {
        Condition::Start => None,
        _ => first_start(container).zip(spec.start_timeout).map(|(at, span)| at.after(span)),
    };
    if until.is_some_and(|until| until <= now) {
        let waited = spec.start_timeout.unwrap_or_default();
        return Gate::Never(format!("container {name} did not become {wanted} within {waited}"));
    }
    let is_ill = dependency.condition == Condition::Healthy && container.health == Some(Health::Unhealthy);
    let so_far = if is_ill { ", which is UNHEALTHY" } else { "" };
    Gate::Waiting { on: format!("container {name} to become {wanted}{so_far}"), until }
}

/// When it began to become what others wait for: that its restart policy has it begin again gives nobody more
/// patience.
fn first_start(container: &Container) -> Option<Timestamp> {
    if container.restarts > 0 { container.created_at } else { container.runs_since() }
}

const fn condition_name(condition: Condition) -> &'static str {
    match condition {
        Condition::Start => "STARTED",
        Condition::Complete => "COMPLETE",
        Condition::Success => "SUCCESS",
        Condition::Healthy => "HEALTHY",
    }
}

/// Whether the container at `index` may stop: everything that depends on it has.
pub(super) fn may_stop(spec: &TaskSpec, containers: &[Container], index: usize) -> bool {
    let name = &spec.containers[index].name;
    spec.containers
        .iter()
        .zip(containers)
        .filter(|(other, _)| other.depends_on.iter().any(|d| &d.container == name))
        .all(|(_, container)| container.is_stopped())
}
