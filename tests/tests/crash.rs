//! Promise: whenever agent and control plane are killed, every task ends up as it was asked for,
//! once, and nothing is left over. `BERTH_CRASH_SEED` repeats a run.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use berth_tests::cluster::text;
use berth_tests::engine::{CONTAINER_NAME, TASK_ARN};
use berth_tests::expect::PATIENCE;
use berth_tests::sim::{Chance, Orders};
use berth_tests::{Cluster, demo, eventually};
use bollard::models::ContainerInspectResponse;
use serde_json::{Value, json};

const ROUNDS: u64 = 30;
/// Launches of each round. Each is one of four kinds.
const LAUNCHES: usize = 3;
/// The agent is killed within this time after the calls were made: a launch takes less.
const KILLED_WITHIN: Duration = Duration::from_millis(700);
/// Stopped containers are kept this long, the least that is accepted.
const KEPT: &str = "1s";

/// Definitions that are launched, with the names of their containers.
struct Kinds(Vec<(String, &'static [&'static str])>);

async fn kinds(cluster: &Cluster) -> Result<Kinds> {
    let small = |name: &str, command: &[&str], members: Value| {
        demo::container_with(name, command, demo::merged(json!({ "memory": 16 }), &members))
    };
    let dynamic = json!({ "portMappings": [{ "containerPort": 8080 }, { "containerPort": 8081 }] });
    let after = json!({ "dependsOn": [{ "containerName": "front", "condition": "START" }] });
    let two = json!([small("front", &[], dynamic), small("back", &["sleep", "3600"], after)]);
    let one = |command: &[&str]| json!([small("one", command, json!({}))]);
    // The least that is accepted: what stops still counts while the next ones are placed.
    let bounds = json!({ "cpu": "128", "memory": "64" });
    let definitions: [(Value, &'static [&'static str]); 4] = [
        (demo::merged(demo::task("bridged", "bridge", two), &bounds), &["front", "back"]),
        (demo::task("hosted", "host", one(&["sleep", "3600"])), &["one"]),
        (demo::merged(demo::task("alone", "none", one(&["sleep", "3600"])), &bounds), &["one"]),
        // Ends by itself, in the midst of whatever goes on.
        (demo::task("brief", "none", one(&["exit", "7", "--after", "300"])), &["one"]),
    ];
    let mut kinds = Vec::new();
    for (definition, containers) in definitions {
        kinds.push((cluster.register(definition).await?, containers));
    }
    Ok(Kinds(kinds))
}

/// A task that was acknowledged.
struct Launched {
    containers: &'static [&'static str],
    brief: bool,
}

/// What a round does beside killing the agent.
#[derive(Debug, Clone, Copy)]
struct Blows {
    /// The control plane is killed too.
    control_plane: bool,
    /// The agent's data is lost.
    data: bool,
    /// After the calls were made.
    after: Duration,
    /// The agent is killed a second time, so long after it was started again.
    again: Option<Duration>,
}

#[tokio::test]
async fn thirty_rounds_of_kill_9_lose_nothing_and_leave_nothing() -> Result<()> {
    let mut chance = Chance::from_env("BERTH_CRASH_SEED")?;
    let mut cluster = Cluster::start_with(&[("ECS_ENGINE_TASK_CLEANUP_WAIT_DURATION", KEPT)]).await?;
    let kinds = kinds(&cluster).await?;
    let (mut orders, mut launched) = (Orders::default(), BTreeMap::new());
    let began = Instant::now();
    for round in 0..ROUNDS {
        let blows = Blows {
            control_plane: round % 3 == 2,
            data: round % 8 == 7,
            after: chance.span(KILLED_WITHIN),
            again: chance.once_in(3).then(|| chance.span(KILLED_WITHIN / 2)),
        };
        let start = Instant::now();
        let done = async {
            ask(&cluster, &kinds, &mut chance, &mut orders, &mut launched).await?;
            strike(&mut cluster, blows).await?;
            settled(&cluster, &orders, &launched).await
        };
        let done = done.await;
        done.with_context(|| format!("round {round}, {blows:?}"))?;
        println!("round {round:>2}: {blows:?}, settled after {:.2} s", start.elapsed().as_secs_f64());
    }
    println!("{} tasks in {:.1} s", orders.len(), began.elapsed().as_secs_f64());
    Ok(())
}

/// Launches some, and asks for the end of about half of what runs.
async fn ask(
    cluster: &Cluster,
    kinds: &Kinds,
    chance: &mut Chance,
    orders: &mut Orders,
    launched: &mut BTreeMap<String, Launched>,
) -> Result<()> {
    for task in orders.of("RUNNING") {
        if chance.once_in(2) {
            cluster.stop(&task, Some("no longer wanted")).await?;
            orders.stopped(&task);
        }
    }
    for _ in 0..LAUNCHES {
        let (definition, containers) = chance.pick(&kinds.0).context("no kinds")?;
        let task = cluster.run_definition(definition).await?;
        let brief = definition.contains("/brief:");
        orders.ran([task.clone()]);
        if brief {
            orders.stopped(&task);
        } else if chance.once_in(6) {
            // Stopped before it can have come far.
            cluster.stop(&task, None).await?;
            orders.stopped(&task);
        }
        launched.insert(task, Launched { containers, brief });
    }
    Ok(())
}

/// Kills at the moment that chance has chosen, and starts again.
async fn strike(cluster: &mut Cluster, blows: Blows) -> Result<()> {
    // Not a wait for anything: the moment is what the test is about.
    tokio::time::sleep(blows.after).await;
    cluster.agent.kill().await?;
    if blows.control_plane {
        cluster.control_plane.kill().await?;
    }
    if blows.data {
        cluster.agent.lose_state()?;
    }
    if blows.control_plane {
        cluster.control_plane.start_again().await?;
    }
    cluster.agent.start_again()?;
    if let Some(pause) = blows.again {
        tokio::time::sleep(pause).await;
        cluster.agent.kill().await?;
        cluster.agent.start_again()?;
    }
    Ok(())
}

/// Waits until everything is as it was asked for, with the control plane and in the engine.
async fn settled(cluster: &Cluster, orders: &Orders, launched: &BTreeMap<String, Launched>) -> Result<()> {
    cluster.registered().await?;
    eventually(PATIENCE, "tasks, containers and cgroups are as they were asked for", || async {
        told(cluster, orders, launched).await?;
        present(cluster, orders, launched).await?;
        cgroups(cluster, orders)?;
        Ok(Some(()))
    })
    .await
}

/// What the control plane was told: the states, and for each container what it came to.
async fn told(cluster: &Cluster, orders: &Orders, launched: &BTreeMap<String, Launched>) -> Result<()> {
    for (arn, launched) in launched {
        let task = cluster.task(arn).await?;
        let wanted = orders.wanted(arn).context("nobody asked for it")?;
        ensure!(task["lastStatus"] == wanted, "{arn} is to be {wanted}: {task}");
        let containers = task["containers"].as_array().cloned().unwrap_or_default();
        ensure!(containers.len() == launched.containers.len(), "{task}");
        ensure!(containers.iter().all(|c| c["lastStatus"] == wanted), "{task}");
        if launched.brief {
            ensure!(
                task["stopCode"] == "EssentialContainerExited" && containers[0]["exitCode"] == 7,
                "{task}"
            );
        } else if wanted == "STOPPED" {
            ensure!(task["stopCode"] == "UserInitiated", "{task}");
            // Never started, or ended at SIGTERM as the program does.
            ensure!(containers.iter().all(|c| c["exitCode"].is_null() || c["exitCode"] == 0), "{task}");
        }
    }
    Ok(())
}

/// What the engine has: one running container for each that is to run, and no other.
async fn present(cluster: &Cluster, orders: &Orders, launched: &BTreeMap<String, Launched>) -> Result<()> {
    let mut found: BTreeMap<(String, String), String> = BTreeMap::new();
    for container in cluster.engine.containers_of(&cluster.name).await? {
        let label =
            |key: &str| container.labels.as_ref().and_then(|l| l.get(key)).cloned().unwrap_or_default();
        let (key, id) = ((label(TASK_ARN), label(CONTAINER_NAME)), container.id.clone().unwrap_or_default());
        if let Some(other) = found.insert(key.clone(), id.clone()) {
            bail!("{key:?} is there twice: {id} and {other}");
        }
    }
    for arn in orders.of("RUNNING") {
        let task = cluster.task(&arn).await?;
        for name in launched.get(&arn).context("nobody asked for it")?.containers {
            let id = found
                .remove(&(arn.clone(), (*name).to_owned()))
                .with_context(|| format!("{arn} has no {name}"))?;
            let inspected = cluster.engine.inspect(&id).await?;
            let state = inspected.state.clone().context("no state")?;
            ensure!(state.running == Some(true), "{name} of {arn} does not run: {state:?}");
            agrees(&task, name, &id, &inspected)?;
        }
    }
    ensure!(found.is_empty(), "containers are left over: {found:?}");
    Ok(())
}

/// DescribeTasks names the very container, and the ports that it really has.
fn agrees(task: &Value, name: &str, id: &str, inspected: &ContainerInspectResponse) -> Result<()> {
    let container = berth_tests::cluster::container(task, name)?;
    ensure!(text(container, "runtimeId")? == id, "{name} is {id}: {container}");
    let told: BTreeSet<String> = container["networkBindings"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|b| format!("{}/tcp {}", b["containerPort"], b["hostPort"]))
        .collect();
    let ports = inspected.network_settings.as_ref().and_then(|n| n.ports.clone()).unwrap_or_default();
    let bound: BTreeSet<String> = ports
        .iter()
        .flat_map(|(port, hosts)| {
            hosts.iter().flatten().map(move |b| (port, b.host_port.clone().unwrap_or_default()))
        })
        .map(|(port, host)| format!("{port} {host}"))
        .collect();
    ensure!(told == bound, "ports of {name}: told {told:?}, bound {bound:?}");
    Ok(())
}

/// Below the agent's cgroup there is one for each task that is to run, in every hierarchy.
fn cgroups(cluster: &Cluster, orders: &Orders) -> Result<()> {
    let running: BTreeSet<String> =
        orders.of("RUNNING").iter().filter_map(|arn| Some(arn.rsplit('/').next()?.to_owned())).collect();
    for controller in ["memory", "cpu"] {
        let there = folders(&cluster.agent.cgroup(controller))?;
        ensure!(there == running, "cgroups of {controller}: {there:?}, running: {running:?}");
    }
    Ok(())
}

fn folders(path: &Path) -> Result<BTreeSet<String>> {
    let entries = match std::fs::read_dir(path) {
        Ok(entries) => entries,
        Err(why) if why.kind() == std::io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
        Err(why) => return Err(why).with_context(|| format!("{}", path.display())),
    };
    let mut names = BTreeSet::new();
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            names.insert(entry.file_name().to_string_lossy().into_owned());
        }
    }
    Ok(names)
}
