//! Performs acts: one act, one call with a deadline, one outcome. Decides nothing.

use std::future::Future;
use std::sync::Arc;

use berth_core::ids::{ContainerName, EngineId};
use berth_core::spec::{TaskSpec, VolumeSource};
use berth_core::task::{Acquired, Act, ErrorClass, Fact, Failure, FailureKind, Outcome, ResourceKey};
use berth_core::units::Millis;

use super::keepsake::{engine_name, volume_name};
use super::{Shared, inform, making, post_mortem, suspects};
use crate::cgroup::Bounds;
use crate::credentials::CredentialsError;
use crate::effects;
use crate::environment::EnvironmentError;
use crate::fault::FaultError;
use crate::firelens::FirelensError;
use crate::image::ImageError;
use crate::network::NetworkError;
use crate::runtime::RuntimeError;

/// Longest time for calls that do not wait for anything of the user's.
const QUICK: Millis = Millis::from_secs(30);
/// Longest time to fetch what is kept elsewhere for a task.
const ENVIRONMENT: Millis = Millis::from_secs(120);
/// What the engine may need beyond a container's grace to stop it.
const STOP_SLACK: Millis = Millis::from_secs(30);
/// Longest time to remove a container.
const REMOVE: Millis = Millis::from_secs(300);

/// How long the engine may take.
#[derive(Debug, Clone, Copy)]
pub struct Timeouts {
    /// To make a container.
    pub create: Millis,
    /// To start one.
    pub start: Millis,
}

/// Performs an act that has an attempt.
pub(super) async fn perform(shared: &Shared, spec: &Arc<TaskSpec>, act: Act) -> Outcome {
    match act {
        Act::Acquire { resource, .. } => {
            let effect = effects::acquiring(&resource);
            watched(shared, effect, "CREATED", acquire(shared, spec, resource)).await
        }
        Act::Release { resource, .. } => {
            let effect = effects::releasing(&resource);
            watched(shared, effect, "STOPPED", release(shared, spec, &resource)).await
        }
        Act::Create { container, bindings, gpus, cgroup_parent, holder, .. } => {
            let place = making::Place { bindings, gpus, cgroup_parent, holder };
            making::create(shared, spec, &container, place).await
        }
        Act::Start { container, id, .. } => start(shared, spec, &container, &id).await,
        Act::Inspect { id, .. } => inspect(shared, spec, &id).await,
        Act::Stop { id, grace, failed_before, .. } => stop(shared, spec, &id, grace, failed_before).await,
        Act::Remove { container, id, .. } => remove(shared, spec, &container, id).await,
        // These have no attempt and never come here.
        Act::Abandon { .. } | Act::ReturnGrant | Act::Forget => Outcome::Released,
    }
}

/// Performs what is behind no port, past whoever stands beside it.
async fn watched(
    shared: &Shared,
    effect: Option<&'static str>,
    to: &str,
    act: impl Future<Output = Outcome>,
) -> Outcome {
    let Some(effect) = effect else { return act.await };
    let act = async {
        match act.await {
            Outcome::Failed(failure) => Err(failure),
            done => Ok(done),
        }
    };
    let failed =
        |detail| Failure { kind: FailureKind::TimedOut, class: ErrorClass::ResourceInitialization, detail };
    let limit = Millis(ENVIRONMENT.0.saturating_add(QUICK.0));
    within(limit, to, shared.effects.around(effect, failed, act)).await.unwrap_or_else(Outcome::Failed)
}

pub(super) async fn within<T>(
    limit: Millis,
    to: &str,
    call: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    tokio::time::timeout(limit.as_duration(), call)
        .await
        .unwrap_or_else(|_| Err(Failure::timed_out(to, limit)))
}

pub(super) fn failure(class: ErrorClass, error: RuntimeError) -> Failure {
    let kind = match &error {
        RuntimeError::Unavailable(_) => FailureKind::EngineAway,
        RuntimeError::PortTaken(_) => FailureKind::PortTaken,
        RuntimeError::NoSuchImage(_) => FailureKind::NoSuchImage,
        RuntimeError::NoSuchContainer(_) | RuntimeError::StartedBefore(_) | RuntimeError::Refused(_) => {
            FailureKind::Refused
        }
    };
    Failure { kind, class, detail: error.to_string() }
}

pub(super) fn into_outcome<T>(result: Result<T, Failure>, ok: impl FnOnce(T) -> Outcome) -> Outcome {
    result.map_or_else(Outcome::Failed, ok)
}

async fn acquire(shared: &Shared, spec: &Arc<TaskSpec>, resource: ResourceKey) -> Outcome {
    match resource {
        ResourceKey::Cgroup => {
            let make = async {
                shared.cgroups.create(&spec.arn, bounds(shared, spec)).await.map_err(|e| cgroup_failure(&e))
            };
            into_outcome(within(QUICK, "CREATED", make).await, |parent| {
                Outcome::Acquired(Acquired::Cgroup { parent })
            })
        }
        ResourceKey::CpuBound => {
            let cpu = spec.cpu.unwrap_or_default();
            let bound = async { shared.cgroups.bound(&spec.arn, cpu).await.map_err(|e| cgroup_failure(&e)) };
            into_outcome(within(QUICK, "RUNNING", bound).await, |()| Outcome::Acquired(Acquired::Plain))
        }
        ResourceKey::Image(image) => match shared.images.ensure(&image, login_of(spec, &image)).await {
            Ok(had) => {
                Outcome::Acquired(Acquired::Image { digest: had.facts.digest, pulled_bytes: had.pulled })
            }
            Err(error) => {
                let kind = match error {
                    ImageError::EngineAway(_) => FailureKind::EngineAway,
                    ImageError::CannotPull(_) => FailureKind::Refused,
                };
                Outcome::Failed(Failure {
                    kind,
                    class: ErrorClass::CannotPullContainer,
                    detail: error.to_string(),
                })
            }
        },
        ResourceKey::Ports(container) => {
            let mappings = spec.container(&container).map_or(&[][..], |c| &c.ports);
            match shared.ports.choose(&spec.arn, &container, mappings) {
                Ok(ports) => Outcome::Acquired(Acquired::Ports(ports)),
                Err(error) => Outcome::Failed(Failure {
                    kind: FailureKind::TimedOut, // Others may give ports back soon.
                    class: ErrorClass::ResourceInitialization,
                    detail: error.to_string(),
                }),
            }
        }
        ResourceKey::Gpus(container) => {
            let wanted = spec.container(&container).map_or(0, |c| c.gpus);
            match shared.gpus.choose(&spec.arn, &container, wanted) {
                Ok(gpus) => Outcome::Acquired(Acquired::Gpus(gpus)),
                Err(error) => Outcome::Failed(Failure {
                    kind: FailureKind::TimedOut, // Others may give theirs back soon.
                    class: ErrorClass::ResourceInitialization,
                    detail: error.to_string(),
                }),
            }
        }
        ResourceKey::Environment => {
            let fetch = async { shared.environments.fetch(spec).await.map_err(environment_failure) };
            into_outcome(within(ENVIRONMENT, "CREATED", fetch).await, |()| Outcome::Acquired(Acquired::Plain))
        }
        ResourceKey::LogRouter => {
            let make = async { shared.log_routers.prepare(spec).await.map_err(router_failure) };
            into_outcome(within(ENVIRONMENT, "CREATED", make).await, |()| Outcome::Acquired(Acquired::Plain))
        }
        ResourceKey::Credentials => {
            let wait = async { shared.credentials.wait(&spec.arn).await.map_err(credentials_failure) };
            into_outcome(within(ENVIRONMENT, "CREATED", wait).await, |()| Outcome::Acquired(Acquired::Plain))
        }
        ResourceKey::Faults => {
            shared.faults.open(spec);
            Outcome::Acquired(Acquired::Plain)
        }
        ResourceKey::Namespace => {
            let make = async { shared.network.prepare(spec).await.map_err(network_failure) };
            into_outcome(within(shared.timeouts.create, "CREATED", make).await, |holder| {
                Outcome::Acquired(Acquired::Namespace { holder })
            })
        }
        ResourceKey::Interface => {
            let patience = spec.attachment.as_ref().map_or(Millis(0), |attachment| attachment.patience);
            let limit = Millis(patience.0.saturating_add(QUICK.0));
            let attach = async { shared.network.attach(spec).await.map_err(network_failure) };
            into_outcome(within(limit, "ATTACHED", attach).await, |()| Outcome::Acquired(Acquired::Plain))
        }
    }
}

/// Where the task keeps the login of an image's registry.
fn login_of<'a>(spec: &'a TaskSpec, image: &str) -> Option<&'a str> {
    let mut of_image = spec.containers.iter().filter(|container| container.image == image);
    of_image.find_map(|container| container.repository_credentials.as_deref())
}

fn environment_failure(error: EnvironmentError) -> Failure {
    let kind = match &error {
        EnvironmentError::Away(_) => FailureKind::TimedOut,
        EnvironmentError::Refused(_) => FailureKind::Refused,
    };
    let detail = format!("unable to pull secrets or environment files: {error}");
    Failure { kind, class: ErrorClass::ResourceInitialization, detail }
}

fn router_failure(error: FirelensError) -> Failure {
    let kind = match &error {
        FirelensError::Passing(_) => FailureKind::TimedOut,
        FirelensError::Refused(_) => FailureKind::Refused,
    };
    let detail = format!("unable to make the folder of the log router: {error}");
    Failure { kind, class: ErrorClass::ResourceInitialization, detail }
}

fn credentials_failure(error: CredentialsError) -> Failure {
    let kind = match &error {
        CredentialsError::Late => FailureKind::TimedOut,
        CredentialsError::Refused(_) => FailureKind::Refused,
    };
    Failure { kind, class: ErrorClass::ResourceInitialization, detail: error.to_string() }
}

fn fault_failure(error: FaultError) -> Failure {
    let detail = format!("unable to undo what the task did to its network: {error}");
    Failure { kind: FailureKind::TimedOut, class: ErrorClass::ResourceInitialization, detail }
}

fn network_failure(error: NetworkError) -> Failure {
    let kind = match &error {
        NetworkError::EngineAway(_) => FailureKind::EngineAway,
        NetworkError::Passing(_) => FailureKind::TimedOut,
        NetworkError::Refused(_) => FailureKind::Refused,
    };
    Failure { kind, class: ErrorClass::ResourceInitialization, detail: error.to_string() }
}

fn bounds(shared: &Shared, spec: &TaskSpec) -> Bounds {
    let shares = spec.containers.iter().fold(0_u64, |sum, c| sum + u64::from(c.cpu.0.max(2)));
    Bounds { cpu: spec.cpu, cpu_shares: shares.min(262_144), memory: spec.memory, pids: shared.pids_limit }
}

fn cgroup_failure(error: &crate::cgroup::CgroupError) -> Failure {
    tracing::warn!(error = error as &dyn std::error::Error, "a task's cgroup");
    let kind = match error.source.raw_os_error().map(nix::errno::Errno::from_raw) {
        // The agent has no file descriptors left: nothing is wrong with the task.
        Some(nix::errno::Errno::EMFILE | nix::errno::Errno::ENFILE) => FailureKind::EngineAway,
        // Worth another try: the kernel answers EBUSY while something ends.
        _ => FailureKind::TimedOut,
    };
    Failure {
        kind,
        class: ErrorClass::Cgroup,
        detail: format!("Agent could not create task's platform resources: {error}"),
    }
}

async fn release(shared: &Shared, spec: &Arc<TaskSpec>, resource: &ResourceKey) -> Outcome {
    match resource {
        ResourceKey::Cgroup => {
            let remove = async { shared.cgroups.remove(&spec.arn).await.map_err(|e| cgroup_failure(&e)) };
            into_outcome(within(QUICK, "STOPPED", remove).await, |()| Outcome::Released)
        }
        ResourceKey::Ports(container) => {
            shared.ports.give_back(&spec.arn, container);
            Outcome::Released
        }
        ResourceKey::Gpus(container) => {
            shared.gpus.give_back(&spec.arn, container);
            Outcome::Released
        }
        ResourceKey::Environment => {
            shared.environments.forget(&spec.arn);
            Outcome::Released
        }
        ResourceKey::LogRouter => {
            let dismiss = async { shared.log_routers.dismiss(&spec.arn).await.map_err(router_failure) };
            into_outcome(within(QUICK, "STOPPED", dismiss).await, |()| Outcome::Released)
        }
        ResourceKey::Credentials => {
            shared.credentials.forget(&spec.arn);
            Outcome::Released
        }
        ResourceKey::Faults => {
            let undo = async { shared.faults.close(spec).await.map_err(fault_failure) };
            into_outcome(within(QUICK, "STOPPED", undo).await, |()| Outcome::Released)
        }
        ResourceKey::Namespace => {
            let dismiss = async { shared.network.dismiss(spec).await.map_err(network_failure) };
            into_outcome(within(QUICK, "DETACHED", dismiss).await, |()| Outcome::Released)
        }
        ResourceKey::Interface => {
            let detach = async { shared.network.detach(spec).await.map_err(network_failure) };
            into_outcome(within(QUICK, "DETACHED", detach).await, |()| Outcome::Released)
        }
        ResourceKey::CpuBound | ResourceKey::Image(_) => Outcome::Released,
    }
}

async fn start(shared: &Shared, spec: &Arc<TaskSpec>, container: &ContainerName, id: &EngineId) -> Outcome {
    shared.ports.hand_over(&spec.arn, container);
    let call = async {
        match shared.runtime.start(id).await {
            Ok(()) => {}
            Err(RuntimeError::NoSuchContainer(_)) => return Ok(Fact::Missing),
            Err(e) => return Err(failure(ErrorClass::CannotStartContainer, e)),
        }
        let named = async {
            if spec.attachment.is_some() {
                shared.network.started(spec, id).await;
            }
        };
        let (inspected, ()) = tokio::join!(shared.runtime.inspect(id), named);
        let fact = inspected.map_err(|e| Failure {
            // It was started: whatever keeps us from looking, look again.
            kind: FailureKind::EngineAway,
            class: ErrorClass::CannotInspectContainer,
            detail: e.to_string(),
        })?;
        Ok(post_mortem::complete(shared, spec, fact).await)
    };
    let started = within(shared.timeouts.start, "RUNNING", call).await;
    into_outcome(started.map_err(|failure| suspects::named(failure, spec, container)), Outcome::Fact)
}

pub(super) async fn inspect(shared: &Shared, spec: &TaskSpec, id: &EngineId) -> Outcome {
    let call = async {
        let inspected = shared.runtime.inspect(id).await;
        let fact = inspected.map_err(|e| failure(ErrorClass::CannotInspectContainer, e))?;
        Ok(post_mortem::complete(shared, spec, fact).await)
    };
    into_outcome(within(QUICK, "known", call).await, Outcome::Fact)
}

async fn stop(shared: &Shared, spec: &TaskSpec, id: &EngineId, grace: Millis, failed_before: u32) -> Outcome {
    let refused = |e| failure(ErrorClass::CannotStopContainer, e);
    let call = async {
        if failed_before == 0 {
            if let Some(exit) = shared.runtime.stop(id, grace).await.map_err(refused)? {
                return Ok(Fact::Exited { id: id.clone(), exit });
            }
        } else {
            shared.runtime.kill(id).await.map_err(refused)?;
        }
        shared.runtime.inspect(id).await.map_err(refused)
    };
    let limit = if failed_before == 0 { Millis(grace.0.saturating_add(STOP_SLACK.0)) } else { QUICK };
    let outcome = into_outcome(within(limit, "STOPPED", call).await, Outcome::Fact);
    if failed_before > 1
        && spec.containers.len() == 1
        && !matches!(outcome, Outcome::Fact(Fact::Exited { .. } | Fact::Missing))
    {
        // The engine cannot; the kernel can. Only where the cgroup holds nobody else.
        if let Err(error) = shared.cgroups.kill(&spec.arn).await {
            tracing::warn!(error = &error as &dyn std::error::Error, "a container that does not stop");
        }
    }
    outcome
}

async fn remove(
    shared: &Shared,
    spec: &TaskSpec,
    container: &ContainerName,
    id: Option<EngineId>,
) -> Outcome {
    // A container whose creation was never confirmed goes by its name.
    let Some(id) = id.or_else(|| EngineId::new(engine_name(spec, container)).ok()) else {
        return Outcome::Removed;
    };
    let call = async {
        match shared.runtime.remove(&id).await {
            Err(RuntimeError::Refused(why)) => {
                // Somebody has started it since: it is nobody's to run any more.
                tracing::warn!(task = %spec.arn, %container, why, "a container that is to go is killed first");
                shared.runtime.kill(&id).await?;
                shared.runtime.remove(&id).await?;
            }
            removed => removed?,
        }
        inform::remove_file(shared, &spec.arn, container).await;
        // The last container that had one of the task's own volumes takes it along.
        for volume in own_volumes(spec) {
            shared.runtime.remove_volume(&volume).await?;
        }
        Ok(())
    };
    let call = async { call.await.map_err(|e| failure(ErrorClass::CannotStopContainer, e)) };
    into_outcome(within(REMOVE, "REMOVED", call).await, |()| Outcome::Removed)
}

/// The engine's names for the volumes that are the task's alone. Whoever has their mount points from another
/// has them too.
pub(super) fn own_volumes(spec: &TaskSpec) -> impl Iterator<Item = String> {
    let own = spec.volumes.iter().filter(|volume| matches!(volume.source, VolumeSource::Task(_)));
    own.filter_map(|volume| volume_name(spec, volume))
}
