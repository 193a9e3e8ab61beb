//! Promise: with hundreds of hosts and a thousand tasks nothing is lost, doubled or squeezed in,
//! whatever happens to sessions, agents and the control plane.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use berth_agent::runtime::RuntimeError;
use berth_agent::runtime::fake::Call;
use berth_agent::session::SessionStatus;
use berth_controlplane::store::View;
use berth_core::resources::Resources;
use berth_core::units::{CpuUnits, Mebibytes};
use berth_tests::Ecs;
use berth_tests::sim::fleet::{CLUSTER, fresh_token, run_input};
use berth_tests::sim::{Chance, Fleet, Orders, storm};
use futures_util::{StreamExt, TryStreamExt, stream};
use serde_json::{Value, json};

const HOSTS: usize = 200;
/// Longest that the whole scenario may take in a debug build.
const BOUND: Duration = Duration::from_secs(30);

fn total() -> Resources {
    // Never too few GPUs, and never more than a few for each task that wants one.
    Resources { cpu: CpuUnits(2048), memory: Mebibytes(2048), gpus: 8, ..Resources::default() }
}

/// Definitions of the fleet's tasks.
struct Definitions {
    /// One small container: nine fit a host beside the others.
    small: String,
    /// Two containers, one after the other, within bounds of the task.
    pair: String,
    /// The same, and the second has a GPU.
    gpu: String,
    /// Holds port 8080 of its host: one fits a host.
    port: String,
    /// Half of a host.
    big: String,
}

fn container(name: &str, members: Value) -> Value {
    berth_tests::demo::merged(json!({ "name": name, "image": "sim", "cpu": 64, "memory": 128 }), &members)
}

async fn definitions(fleet: &Fleet) -> Result<Definitions> {
    let depends = json!([{ "containerName": "first", "condition": "START" }]);
    let needs = json!([{ "type": "GPU", "value": "1" }]);
    let pair = |members: Value| {
        let second = berth_tests::demo::merged(json!({ "dependsOn": depends }), &members);
        json!([container("first", json!({})), container("second", second)])
    };
    let mapping = json!({ "portMappings": [{ "containerPort": 8080 }] });
    let of = |family: &str, mode: &str, containers: Value| json!({ "family": family, "networkMode": mode, "containerDefinitions": containers });
    let bounded = |task: Value| berth_tests::demo::merged(task, &json!({ "cpu": "256", "memory": "256" }));
    Ok(Definitions {
        small: fleet.register(of("small", "none", json!([container("one", json!({}))]))).await?,
        pair: fleet.register(bounded(of("pair", "bridge", pair(json!({}))))).await?,
        gpu: fleet
            .register(bounded(of("gpu", "bridge", pair(json!({ "resourceRequirements": needs })))))
            .await?,
        port: fleet.register(of("port", "host", json!([container("one", mapping)]))).await?,
        big: fleet.register(of("big", "none", json!([container("one", json!({ "memory": 1024 }))]))).await?,
    })
}

/// What the instances have in tasks that are not STOPPED, by ARN.
fn live(instances: &BTreeMap<String, Value>) -> BTreeMap<String, u64> {
    let count = |one: &Value| {
        one["runningTasksCount"].as_u64().unwrap_or(0) + one["pendingTasksCount"].as_u64().unwrap_or(0)
    };
    instances.iter().map(|(arn, one)| (arn.clone(), count(one))).collect()
}

/// Tasks of these that are on the instance.
async fn placed_on(fleet: &Fleet, tasks: &[String], instance: &str) -> Result<usize> {
    Ok(fleet.tasks(tasks).await?.values().filter(|task| task["containerInstanceArn"] == instance).count())
}

/// The whole of what was promised, as the API, the records and the engines have it.
async fn verify(fleet: &Fleet, orders: &Orders, silent: &BTreeSet<String>) -> Result<()> {
    fleet.check()?;
    let all = fleet.tasks(&[orders.of("RUNNING"), orders.of("STOPPED")].concat()).await?;
    let mut runs: BTreeMap<(String, String), String> = BTreeMap::new();
    for host in fleet.hosts.iter().filter(|host| !silent.contains(&host.name)) {
        runs.extend(host.running());
        let instance = host.instance()?;
        let id = instance.rsplit('/').next().context("an id")?;
        // Every state change that was written down is applied, none is skipped.
        let applied = |view: &dyn View| view.instance(CLUSTER, id).map(|found| found.value.outbox.sequence);
        let what = format!("all state changes of {} are applied", host.name);
        fleet.until(what, |view| applied(view) == Some(host.reports())).await?;
        for task in fleet.control_plane()?.state.store.view().tasks_on(&instance) {
            let arn = &task.value.arn;
            let left = host.cgroups.get(arn.rsplit('/').next().context("an id")?).is_some();
            ensure!(
                !left || orders.wanted(arn) == Some("RUNNING"),
                "a cgroup of {arn} is left on {}",
                host.name
            );
        }
    }
    for (arn, task) in &all {
        let wanted = orders.wanted(arn).context("a task that nobody asked for")?;
        assert_eq!(task["lastStatus"], wanted, "{task}");
        for container in task["containers"].as_array().into_iter().flatten() {
            let name = container["name"].as_str().unwrap_or_default().to_owned();
            // The container that runs is the one that the API names, and none runs that it calls stopped.
            let expected =
                (wanted == "RUNNING").then(|| container["runtimeId"].as_str().unwrap_or("?").to_owned());
            assert_eq!(runs.remove(&(arn.clone(), name)), expected, "{task}");
        }
    }
    ensure!(runs.is_empty(), "containers that nobody asked for: {runs:?}");
    Ok(())
}

/// Tells how long each step took.
struct Steps(Instant);

impl Steps {
    fn done(&mut self, what: &str) {
        println!("{:>7.2} s  {what}", self.0.elapsed().as_secs_f64());
        self.0 = Instant::now();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_hosts_lose_nothing_and_double_nothing() -> Result<()> {
    let began = Instant::now();
    let mut steps = Steps(began);
    let mut fleet = Fleet::start(HOSTS, &total()).await?;
    steps.done("200 agents registered and connected");
    let mut orders = Orders::default();
    let nobody = BTreeSet::new();
    let definitions = definitions(&fleet).await?;

    launch_a_thousand(&fleet, &definitions, &mut orders).await?;
    verify(&fleet, &orders, &nobody).await?;
    let started: usize = fleet.hosts.iter().map(|host| host.runtime.calls(Call::Start)).sum();
    let made: usize = fleet.hosts.iter().map(|host| host.runtime.containers().len()).sum();
    assert_eq!(started, made, "every container was started once");
    steps.done("1100 tasks run, spread over all hosts");

    fill(&fleet, &definitions, &mut orders).await?;
    verify(&fleet, &orders, &nobody).await?;
    steps.done("the fleet is full, and not over");

    let running = orders.of("RUNNING");
    let half: Vec<String> = running.iter().step_by(2).cloned().collect();
    fleet.stop(&half).await?;
    half.iter().for_each(|task| orders.stopped(task));
    fleet.settled(&orders).await?;
    verify(&fleet, &orders, &nobody).await?;
    steps.done("half of them stopped");

    cut_fifty_lines(&mut fleet, &mut orders).await?;
    verify(&fleet, &orders, &nobody).await?;
    steps.done("50 sessions cut and taken up again");

    restart_in_mid_flight(&mut fleet, &definitions, &mut orders).await?;
    verify(&fleet, &orders, &nobody).await?;
    steps.done("control plane and 20 agents restarted in mid-flight");

    drain(&fleet, &definitions, &mut orders).await?;
    verify(&fleet, &orders, &nobody).await?;
    steps.done("an instance drained");

    let silent = deregister(&fleet, &definitions, &mut orders).await?;
    verify(&fleet, &orders, &silent).await?;
    steps.done("an instance deregistered by force");

    fleet.stop_all().await?;
    let took = began.elapsed();
    println!("{:>7.2} s  in all, {} tasks", took.as_secs_f64(), orders.len());
    ensure!(took < BOUND, "it took {took:?}, longer than {BOUND:?}");
    Ok(())
}

async fn launch_a_thousand(fleet: &Fleet, definitions: &Definitions, orders: &mut Orders) -> Result<()> {
    let (ports, pairs, small) = tokio::try_join!(
        fleet.run(&definitions.port, 100),
        fleet.run(&definitions.pair, 400),
        fleet.run(&definitions.small, 600),
    )?;
    let on: BTreeSet<String> =
        fleet.tasks(&ports).await?.values().map(|task| task["containerInstanceArn"].to_string()).collect();
    assert_eq!(on.len(), 100, "one port, one task on a host");
    orders.ran([ports, pairs, small].concat());
    fleet.settled(orders).await?;
    let hosts: Vec<usize> = (0..HOSTS).collect();
    let live = live(&fleet.instances(&hosts).await?);
    assert_eq!(live.values().sum::<u64>(), 1100);
    let (least, most) = (live.values().min().copied(), live.values().max().copied());
    // 1100 over 200: five or six each. A port that is taken makes one more or less.
    ensure!(least >= Some(4) && most <= Some(7), "not spread: {least:?} to {most:?} on a host");
    Ok(())
}

/// Asks until the control plane says that nothing more fits: and no host has room then.
async fn fill(fleet: &Fleet, definitions: &Definitions, orders: &mut Orders) -> Result<()> {
    let mut refused = false;
    for _ in 0..HOSTS {
        let (placed, failures) = fleet.try_run(&definitions.big, 10, &fresh_token()).await?;
        orders.ran(placed);
        if !failures.is_empty() {
            let memory = |failure: &Value| failure["reason"] == "RESOURCE:MEMORY";
            ensure!(failures.iter().all(memory), "{failures:?}");
            refused = true;
            break;
        }
    }
    ensure!(refused, "more than every host was filled");
    fleet.settled(orders).await?;
    for host in &fleet.hosts {
        let usage = host.engine().usage().borrow().clone();
        let left = usage.total.remaining(&usage.in_use);
        ensure!(left.memory.0 < 1024 && usage.waiting.is_empty(), "{}: {usage:?}", host.name);
    }
    Ok(())
}

async fn cut_fifty_lines(fleet: &mut Fleet, orders: &mut Orders) -> Result<()> {
    let busy = (0..HOSTS).filter(|host| !fleet.hosts[*host].running().is_empty());
    let cut: Vec<usize> = busy.take(50).collect();
    let before = live(&fleet.instances(&cut).await?);
    cut.iter().for_each(|host| fleet.hosts[*host].hang_up());
    fleet.registry_says("50 are away", |connected| connected.len() == HOSTS - 50).await?;
    let away = fleet.instances(&cut).await?;
    ensure!(away.values().all(|one| one["agentConnected"] == false), "agentConnected of those that are away");
    assert_eq!(live(&away), before, "tasks are kept");

    // While nobody talks: stops are asked for on some hosts, containers end by themselves on others.
    for (n, host) in cut.iter().enumerate() {
        let running = fleet.hosts[*host].running();
        let ((task, _), id) = running.first_key_value().context("a host without tasks")?;
        if n % 2 == 0 {
            fleet.stop(std::slice::from_ref(task)).await?;
        } else {
            fleet.hosts[*host].runtime.exit(&id.parse()?, 3);
        }
        orders.stopped(task);
    }
    cut.iter().for_each(|host| fleet.hosts[*host].dial());
    fleet.connected(cut).await?;
    fleet.settled(orders).await
}

/// RunTask and StopTask are under way while the control plane and some agents go away and return.
async fn restart_in_mid_flight(
    fleet: &mut Fleet,
    definitions: &Definitions,
    orders: &mut Orders,
) -> Result<()> {
    let tokens: Vec<String> = (0..30).map(|_| fresh_token()).collect();
    let stops: Vec<String> = orders.of("RUNNING").into_iter().step_by(4).collect();
    let mut chance = Chance::from_env("BERTH_SIMULATION_SEED")?;
    let crashed: BTreeSet<usize> =
        (0..20).filter_map(|_| usize::try_from(chance.below(HOSTS as u64)).ok()).collect();

    // It goes dark once some of the tasks are recorded and while calls are still made.
    let runs = tokens.iter().map(|token| run_input(&definitions.gpu, 10, token)).collect();
    let ends = stops.iter().map(|task| json!({ "cluster": CLUSTER, "task": task })).collect();
    let (asked, enough) = (orders.len(), orders.len() + 40);
    let (ran, ended, down) = tokio::join!(
        fire(fleet.ecs.clone(), "RunTask", runs),
        fire(fleet.ecs.clone(), "StopTask", ends),
        async {
            fleet.until("some are recorded", |view| view.tasks(Some(CLUSTER)).len() >= enough).await?;
            fleet.control_plane_down().await
        }
    );
    down?;
    println!("           answered before: {ran} of 30 RunTask, {ended} of {} StopTask", stops.len());
    ensure!(fleet.try_run(&definitions.small, 1, &fresh_token()).await.is_err(), "nobody should answer");
    for host in crashed {
        fleet.hosts[host].crash().await?;
    }
    fleet.control_plane_up().await?;
    fleet.registry_says("half are back", |connected| connected.len() >= HOSTS / 2).await?;
    // Who does not know whether a call counted repeats it, with the same token.
    let calls = tokens.iter().map(|token| fleet.try_run(&definitions.gpu, 10, token));
    let placed: Vec<_> = stream::iter(calls).buffer_unordered(8).try_collect().await?;
    for (arns, failures) in placed {
        ensure!(failures.is_empty(), "{failures:?}");
        orders.ran(arns);
    }
    assert_eq!(orders.len(), asked + 300, "300 tasks, whichever life of the control plane recorded them");
    fleet.stop(&stops).await?;
    stops.iter().for_each(|task| orders.stopped(task));
    fleet.connected(0..HOSTS).await?;
    fleet.settled(orders).await
}

/// Makes calls that may meet nobody; how many were answered.
async fn fire(ecs: Ecs, operation: &str, inputs: Vec<Value>) -> usize {
    let calls = inputs.into_iter().map(|input| ecs.call(operation, input));
    let answers: Vec<_> = stream::iter(calls).buffer_unordered(8).collect().await;
    answers.iter().filter(|answer| answer.is_ok()).count()
}

async fn drain(fleet: &Fleet, definitions: &Definitions, orders: &mut Orders) -> Result<()> {
    let instance = fleet.hosts[7].instance()?;
    let input = json!({ "cluster": CLUSTER, "containerInstances": [instance], "status": "DRAINING" });
    fleet.ecs.call("UpdateContainerInstancesState", input).await?;
    let before = live(&fleet.instances(&[7]).await?);
    let placed = fleet.run(&definitions.small, HOSTS).await?;
    assert_eq!(placed_on(fleet, &placed, &instance).await?, 0, "nothing new lands where it drains");
    orders.ran(placed);
    fleet.settled(orders).await?;
    assert_eq!(live(&fleet.instances(&[7]).await?), before, "what ran there runs on");
    Ok(())
}

/// The name of the host that is nobody's any more.
async fn deregister(
    fleet: &Fleet,
    definitions: &Definitions,
    orders: &mut Orders,
) -> Result<BTreeSet<String>> {
    let mut busy = fleet.hosts.iter().filter(|host| !host.running().is_empty());
    let host = busy.next().context("a host with tasks")?;
    let instance = host.instance()?;
    let mine: BTreeSet<String> = host.running().into_keys().map(|(task, _)| task).collect();
    let input = |force: bool| json!({ "cluster": CLUSTER, "containerInstance": instance, "force": force });
    let refused = fleet.ecs.call("DeregisterContainerInstance", input(false)).await;
    ensure!(refused.is_err(), "tasks run there");
    fleet.ecs.call("DeregisterContainerInstance", input(true)).await?;
    mine.iter().for_each(|task| orders.stopped(task));
    let mut status = host.status();
    tokio::time::timeout(Duration::from_secs(10), status.wait_for(|s| *s == SessionStatus::Deregistered))
        .await
        .context("the agent was not told")??;
    let placed = fleet.run(&definitions.small, 50).await?;
    assert_eq!(placed_on(fleet, &placed, &instance).await?, 0, "nothing new lands there");
    orders.ran(placed);
    fleet.settled(orders).await?;
    Ok(BTreeSet::from([host.name.clone()]))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storm_of_faults_ends_as_it_was_asked_for() -> Result<()> {
    let mut chance = Chance::from_env("BERTH_STORM_SEED")?;
    let mut fleet = Fleet::start(20, &total()).await?;
    let definitions = definitions(&fleet).await?;
    let mut orders = Orders::default();
    for round in 0..12 {
        for definition in [&definitions.small, &definitions.pair] {
            // Hosts that cannot be reached take nothing; there are others.
            let (placed, _) = fleet.try_run(definition, 10, &fresh_token()).await?;
            orders.ran(placed);
        }
        let mut unwanted = orders.of("RUNNING");
        unwanted.retain(|_| chance.once_in(3));
        fleet.stop(&unwanted).await?;
        unwanted.iter().for_each(|task| orders.stopped(task));
        for _ in 0..15 {
            storm::strike(&mut fleet, &mut chance, &mut orders).await?;
            // Some come together, some in between what the agents do.
            tokio::time::sleep(chance.span(Duration::from_millis(10))).await;
        }
        storm::calm(&mut fleet);
        fleet.connected(0..20).await?;
        fleet.settled(&orders).await.with_context(|| format!("round {round}"))?;
        verify(&fleet, &orders, &BTreeSet::new()).await.with_context(|| format!("round {round}"))?;
    }
    println!("{} tasks", orders.len());
    fleet.stop_all().await
}

#[tokio::test]
async fn a_death_is_seen_though_the_first_look_at_it_failed() -> Result<()> {
    let fleet = Fleet::start(1, &total()).await?;
    let definitions = definitions(&fleet).await?;
    let mut orders = Orders::default();
    orders.ran(fleet.run(&definitions.small, 1).await?);
    fleet.settled(&orders).await?;
    let host = &fleet.hosts[0];
    let ((task, _), id) = host.running().pop_first().context("nothing runs")?;
    // The engine's events go on: no gap will have everything looked at again.
    host.runtime.fail_next(Call::Inspect, RuntimeError::Unavailable("one call of many".to_owned()));
    host.runtime.exit(&id.parse()?, 1);
    orders.stopped(&task);
    fleet.settled(&orders).await?;
    fleet.stop_all().await
}
