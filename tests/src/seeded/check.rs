//! What must be true of a world: at any time, once it has come to rest, and when nothing is wanted any more.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use berth_agent::store::Store as _;
use berth_core::resources::Resources;
use berth_core::task::Fact;
use berth_core::units::Protocol;
use berth_proto::v1::TaskStatus;
use tokio::time::timeout;

use super::control_plane::ControlPlane;
use super::life::{Life, total};
use super::store::short;
use super::world::{Asked, Wish, World};

/// Longest until everything in the engine has come by.
const PULSE: Duration = Duration::from_secs(5);

/// What holds at any time, whatever is wrong with anything.
///
/// # Errors
/// What does not.
pub fn always(world: &World) -> Result<()> {
    if let Some(wrong) = &world.known().wrong {
        bail!("{wrong}");
    }
    let mut there = BTreeSet::new();
    let mut gpus = BTreeMap::new();
    let mut ports: BTreeMap<(Protocol, u16), String> = BTreeMap::new();
    let mut needs = BTreeMap::new();
    for (request, fact) in world.engine.containers() {
        let (task, name) = (request.task.arn.clone(), request.spec().name.clone());
        ensure!(there.insert((task.clone(), name.clone())), "{name} of {} is there twice", short(task.id()));
        if !matches!(fact, Fact::Running { .. }) || meddled(world, task.as_str()) {
            continue;
        }
        for gpu in &request.gpus {
            let other = gpus.insert(gpu.clone(), task.clone());
            ensure!(other.is_none(), "{gpu} is given to {} and {other:?}", short(task.id()));
        }
        for binding in &request.bindings {
            for port in binding.host_ports.ports() {
                let other = ports.insert((binding.protocol, port), request.name.clone());
                ensure!(other.is_none(), "port {port} is that of {} and {other:?}", request.name);
            }
        }
        needs.insert(task, request.task.need());
    }
    let mut in_use = Resources::default();
    for (task, need) in needs {
        let missing = total().shortfalls(&in_use, &need);
        ensure!(missing.is_empty(), "more runs than fits: with {}, {missing:?}", short(task.id()));
        in_use.add(&need);
    }
    starts(world)
}

fn meddled(world: &World, arn: &str) -> bool {
    world.known().tasks.get(arn).is_some_and(|asked| asked.meddled)
}

/// Nothing is started twice that is not to be started again.
fn starts(world: &World) -> Result<()> {
    let starts = world.engine.starts();
    let known = world.known();
    let once = known.tasks.iter().filter(|(_, asked)| !asked.may_start_again);
    for (arn, _) in once {
        let id = arn.rsplit('/').next().unwrap_or_default();
        for (name, times) in starts.iter().filter(|(name, _)| name.ends_with(id)) {
            ensure!(*times <= 1, "{name} was started {times} times");
        }
    }
    Ok(())
}

/// What holds once all faults are over and everything has had its time.
///
/// # Errors
/// What does not hold yet.
pub async fn at_rest(world: &World, control_plane: &ControlPlane, life: &Life) -> Result<()> {
    always(world)?;
    let Some(engine) = life.engine() else { bail!("no agent runs") };
    let waiting: BTreeSet<String> =
        engine.usage().borrow().waiting.iter().map(|(task, _)| task.to_string()).collect();
    let turns = timeout(PULSE, engine.pulse()).await;
    ensure!(turns.is_ok(), "something in the engine does not turn");
    let told = world.disk().outbox().after(0, 1).is_empty();
    ensure!(told, "there is something left to tell");
    let tasks = world.known().tasks.clone();
    let excused = world.known().excuses_failures;
    for (arn, asked) in &tasks {
        let heard = control_plane.heard(arn);
        let status = heard.as_ref().map_or(TaskStatus::Unspecified, |change| change.status());
        let why = heard.as_ref().and_then(|change| change.stop.clone()).unwrap_or_default();
        let task = short(arn);
        let gone = status == TaskStatus::Stopped || asked.wish == Wish::Nothing;
        ensure!(gone || control_plane.knows(arn), "{task} is not on record");
        match (asked.wish, status) {
            (Wish::Stop, TaskStatus::Stopped) | (Wish::Run, TaskStatus::Running) => {}
            (Wish::Run, TaskStatus::Stopped) => {
                let failed = (excused || asked.may_fail) && why.code == "TaskFailedToStart";
                ensure!(asked.may_end || failed, "{task} was lost: {} {}", why.code, why.reason);
            }
            (Wish::Run, TaskStatus::Pending) if waiting.contains(arn) => {}
            // Of what it does not know a control plane may hear, and need not.
            (Wish::Nothing, _) => {}
            (wish, status) => bail!("{task} is {}, and wanted: {wish:?}", status.as_str_name()),
        }
        agrees(world, arn, asked, status)?;
    }
    leftovers(world, engine_tasks(life)).await
}

/// The tasks that the agent has, and whether each is STOPPED.
fn engine_tasks(life: &Life) -> BTreeMap<String, bool> {
    let Some(engine) = life.engine() else { return BTreeMap::new() };
    let stopped = berth_core::task::TaskStatus::Stopped;
    engine.tasks().iter().map(|task| (task.spec().arn.to_string(), task.state().status == stopped)).collect()
}

/// What runs is what the control plane was told.
fn agrees(world: &World, arn: &str, asked: &Asked, status: TaskStatus) -> Result<()> {
    let containers = world.engine.containers();
    let own = containers.iter().filter(|(request, _)| request.task.arn.as_str() == arn);
    let running: BTreeSet<&str> = own
        .clone()
        .filter(|(_, fact)| matches!(fact, Fact::Running { .. }))
        .map(|(request, _)| request.spec().name.as_str())
        .collect();
    let task = short(arn);
    match status {
        TaskStatus::Stopped | TaskStatus::Unspecified => {
            ensure!(running.is_empty(), "{task} is {}, and {running:?} run", status.as_str_name());
        }
        TaskStatus::Running => {
            let Some((request, _)) = own.clone().next() else {
                bail!("{task} is RUNNING, and has no container")
            };
            for container in request.task.containers.iter().filter(|c| c.essential) {
                let again = asked.may_start_again && container.restart_policy.is_some();
                let runs = running.contains(container.name.as_str());
                ensure!(runs || again, "{task} is RUNNING, and {} does not run", container.name);
            }
        }
        TaskStatus::Pending => {}
    }
    Ok(())
}

/// Nothing is there of a task that is not.
async fn leftovers(world: &World, tasks: BTreeMap<String, bool>) -> Result<()> {
    for (request, _) in world.engine.containers() {
        ensure!(tasks.contains_key(request.task.arn.as_str()), "container {} is nobody's", request.name);
    }
    for (task, namespace) in world.network.namespaces() {
        let alive = tasks.get(task.as_str()) == Some(&false);
        ensure!(alive, "{} has {namespace:?}", short(task.id()));
    }
    for id in berth_agent::cgroup::Cgroups::list(&world.cgroups).await? {
        let alive = tasks.iter().any(|(arn, stopped)| arn.ends_with(&id) && !stopped);
        ensure!(alive, "{} has a cgroup", short(&id));
    }
    Ok(())
}

/// What holds when nothing is wanted any more and everything has had its time.
///
/// # Errors
/// What does not hold yet.
pub async fn at_the_end(world: &World, control_plane: &ControlPlane, life: &Life) -> Result<()> {
    at_rest(world, control_plane, life).await?;
    let containers: Vec<String> =
        world.engine.containers().into_iter().map(|(request, _)| request.name).collect();
    ensure!(containers.is_empty(), "containers are left: {containers:?}");
    ensure!(world.network.namespaces().is_empty(), "namespaces are left");
    let saved = world.disk().load().await?;
    ensure!(saved.tasks.is_empty(), "{} tasks are on record", saved.tasks.len());
    let Some(engine) = life.engine() else { bail!("no agent runs") };
    let usage = engine.usage().borrow().clone();
    ensure!(usage.in_use == Resources::default() && usage.waiting.is_empty(), "granted still: {usage:?}");
    Ok(())
}
