//! Tells what changed about a task, for people: each wait with its reason, each step with how long it took,
//! each end with its cause.

use std::sync::Arc;

use berth_core::resources::describe;
use berth_core::task::{
    Admission, Attempt, Container, ContainerStatus, Health, Resource, ResourceKey, ResourceStatus, Settings,
    Task,
};
use berth_core::units::{Millis, Timestamp};

/// What is to be told of a task that has just come.
pub(super) fn arrival(task: &Task, now: Timestamp) -> Vec<String> {
    let spec = task.spec();
    let came = format!(
        "came from the control plane: {}:{}, network mode {}",
        spec.family,
        spec.revision,
        spec.network_mode.as_str()
    );
    let before = Task::new(Arc::clone(spec), Settings::default(), now);
    let waits = task.container_waits(now).into_iter().filter(|_| !task.is_stopping());
    let waits = waits.map(|(name, on)| format!("container {name} waits for {on}"));
    let mut told = vec![came];
    told.extend(narrate(&before, task, now));
    told.extend(waits.filter(|wait| wait.contains(" to become ")));
    told
}

/// What happened between two states of a task.
pub(super) fn narrate(before: &Task, after: &Task, now: Timestamp) -> Vec<String> {
    let mut told = Vec::new();
    let (was, is) = (before.state(), after.state());
    if was.admission != is.admission {
        match &is.admission {
            Admission::Waiting(missing) if missing.is_empty() => {}
            Admission::Waiting(missing) => told.push(format!("waits for {}", describe(missing))),
            Admission::Granted => told.push("has its share of the host".to_owned()),
            Admission::Returned => {}
        }
    }
    if let (None, Some(stop)) = (&was.stop, &is.stop) {
        told.push(format!("is to stop: {} ({})", stop.reason, stop.code.as_str()));
    }
    for (old, new) in was.resources.iter().zip(&is.resources) {
        told.extend(resource(old, new, now));
    }
    for (old, new) in was.containers.iter().zip(&is.containers) {
        container(old, new, now, &mut told);
    }
    let waits = after.container_waits(now);
    let waited = before.container_waits(now);
    for (name, on) in waits.iter().filter(|wait| !waited.iter().any(|known| known == *wait)) {
        told.push(format!("container {name} waits for {on}"));
    }
    if before.waiting_for() != after.waiting_for() && matches!(is.admission, Admission::Granted) {
        let on = after.waiting_for();
        if !on.is_empty() {
            told.push(format!("waits for {on}"));
        }
    }
    if is.admission == Admission::Returned && was.admission == Admission::Granted {
        told.push("has given its share of the host back".to_owned());
    }
    if was.status != is.status {
        told.push(format!("is {}", is.status.as_str()));
    }
    told
}

fn took(attempt: Option<&Attempt>, now: Timestamp) -> String {
    attempt.map_or_else(String::new, |attempt| {
        format!(" after {}", Millis(now.0.saturating_sub(attempt.since.0)))
    })
}

fn thing(key: &ResourceKey) -> String {
    match key {
        ResourceKey::Cgroup => "its cgroup".to_owned(),
        ResourceKey::CpuBound => "its CPU bound".to_owned(),
        ResourceKey::Ports(container) => format!("the host ports of container {container}"),
        ResourceKey::Gpus(container) => format!("the GPUs of container {container}"),
        ResourceKey::Image(image) => format!("image {image}"),
        ResourceKey::Environment => "its secrets and environment files".to_owned(),
        ResourceKey::LogRouter => "the folder of its log router".to_owned(),
        ResourceKey::Credentials => "the credentials of its role".to_owned(),
        ResourceKey::Namespace => "its network namespace".to_owned(),
        ResourceKey::Interface => "its network interface".to_owned(),
        ResourceKey::Faults => "the means to break its network".to_owned(),
    }
}

fn resource(old: &Resource, new: &Resource, now: Timestamp) -> Option<String> {
    use ResourceStatus as S;
    let thing = thing(&new.key);
    let took = took(old.attempt.as_ref(), now);
    match (old.status, new.status) {
        (S::None, S::Acquiring) => Some(format!("wants {thing}")),
        (S::Acquiring, S::Ready) => {
            let bytes = new.yielded.pulled_bytes;
            let came = if bytes > 0 { format!(", {} KiB came", bytes.div_ceil(1024)) } else { String::new() };
            let gpus: Vec<&str> = new.yielded.gpus.iter().map(berth_core::ids::GpuId::as_str).collect();
            let which = if gpus.is_empty() { String::new() } else { format!(": {}", gpus.join(", ")) };
            Some(format!("has {thing}{took}{came}{which}"))
        }
        (S::Acquiring, S::None) if new.tries > old.tries => {
            let why = new.trouble.as_ref().map_or_else(String::new, |why| format!(": {why}"));
            Some(format!("did not get {thing}{took}{why}; try {}", new.tries))
        }
        (S::Releasing, S::Gone) if old.attempt.is_some() => Some(format!("has given back {thing}{took}")),
        (S::Releasing, S::Ready) => Some(format!("could not give back {thing}{took}; try {}", new.tries)),
        _ => None,
    }
}

fn container(old: &Container, new: &Container, now: Timestamp, told: &mut Vec<String>) {
    let name = &new.name;
    if new.restarts > old.restarts {
        let code = new.exit.as_ref().map_or(0, |exit| exit.code);
        told.push(format!(
            "container {name} ended with exit code {code} and is started again (restart {})",
            new.restarts
        ));
    } else if old.status != new.status {
        let took = took(old.attempt.as_ref(), now);
        match new.status {
            ContainerStatus::Pending => told.push(format!("container {name} is to be made anew")),
            ContainerStatus::Created => told.push(format!("container {name} is made{took}")),
            ContainerStatus::Running => told.push(format!("container {name} runs{took}")),
            ContainerStatus::Stopped => told.push(end(new)),
        }
    }
    if let Some(failure) = new.failure.as_ref().filter(|failure| old.failure.as_ref() != Some(*failure)) {
        told.push(format!("container {name}: {failure}"));
    }
    if old.health != new.health {
        match new.health {
            Some(Health::Healthy) => told.push(format!("container {name} is healthy")),
            Some(Health::Unhealthy) => told.push(format!("container {name} is unhealthy")),
            Some(Health::Unknown) | None => {}
        }
    }
}

fn end(container: &Container) -> String {
    let name = &container.name;
    let Some(exit) = &container.exit else { return format!("container {name} never ran") };
    let ran = exit.started_at.zip(exit.finished_at);
    let ran =
        ran.map_or_else(String::new, |(from, to)| format!(" after {}", Millis(to.0.saturating_sub(from.0))));
    let cause = match (exit.oom_killed, exit.with_engine) {
        (true, _) => ", killed for want of memory",
        (_, true) => ", with the container engine, which was restarted",
        _ => "",
    };
    let policy = container.not_restarted.as_ref().map_or_else(String::new, |why| format!("; {why}"));
    format!("container {name} ended with exit code {}{ran}{cause}{policy}", exit.code)
}
