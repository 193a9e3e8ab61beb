//! Promise: what is away or full for a while hurts nothing that runs; it is told, and made up for
//! afterwards.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use berth_tests::cluster::{container, text};
use berth_tests::expect::PATIENCE;
use berth_tests::program::Program;
use berth_tests::sim::{Impostor, Manner, Proxy, SmallDisk};
use berth_tests::{Cluster, demo, eventually};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

/// Long enough for the pauses between two attempts of the agent, which grow while nobody answers.
const BACK: Duration = Duration::from_secs(60);

fn sleeper(family: &str) -> Value {
    demo::task(family, "none", json!([demo::container("one", &["sleep", "3600"])]))
}

/// Waits until the agent has said that often what holds that text.
async fn says(cluster: &Cluster, what: &str, times: usize) -> Result<()> {
    eventually(PATIENCE, format!("the agent says {what:?} {times} times"), || async {
        Ok((cluster.agent.output().matches(what).count() >= times).then_some(()))
    })
    .await
}

/// How often the agent has said so until now.
fn said(cluster: &Cluster, what: &str) -> usize {
    cluster.agent.output().matches(what).count()
}

/// Waits until the agent is back at a control plane that was away for long.
async fn returned(cluster: &Cluster) -> Result<()> {
    eventually(BACK, "the agent is back", || async {
        Ok((cluster.instance().await?["agentConnected"] == true).then_some(()))
    })
    .await
}

const NOT_CONNECTED: &str = "not connected to the control plane; running tasks go on";

#[tokio::test]
async fn without_a_control_plane_tasks_run_and_what_happened_is_told_in_order() -> Result<()> {
    let mut cluster = Cluster::start().await?;
    let (kept, _) = cluster.running(sleeper("kept")).await?;
    let (first, _) = cluster.running(sleeper("first")).await?;
    let (second, _) = cluster.running(sleeper("second")).await?;
    let (unwanted, _) = cluster.running(sleeper("unwanted")).await?;
    let before = cluster.process_of(&kept).await?;

    cluster.control_plane.kill().await?;
    says(&cluster, NOT_CONNECTED, 1).await?;
    for task in [&first, &second] {
        let told = said(&cluster, "\"status\":\"STOPPED\"");
        cluster.engine.kill(&cluster.process_of(task).await?.0).await?;
        says(&cluster, "\"status\":\"STOPPED\"", told + 1).await?;
    }
    // Some attempts more; the next one comes when it may.
    says(&cluster, NOT_CONNECTED, 6).await?;
    cluster.agent.signal(Signal::SIGSTOP)?;
    cluster.control_plane.start_again().await?;
    cluster.stop(&unwanted, Some("no longer wanted")).await?;
    ensure!(cluster.instance().await?["agentConnected"] == false, "the stop was to come before the agent");
    cluster.agent.signal(Signal::SIGCONT)?;

    returned(&cluster).await?;
    let first = cluster.until(&first, "STOPPED", PATIENCE).await?;
    let second = cluster.until(&second, "STOPPED", PATIENCE).await?;
    let unwanted = cluster.until(&unwanted, "STOPPED", PATIENCE).await?;
    let at = |task: &Value| task["stoppedAt"].as_f64().context("stoppedAt");
    ensure!(at(&first)? <= at(&second)? && at(&second)? <= at(&unwanted)?, "{first} {second} {unwanted}");
    for task in [&first, &second] {
        assert_eq!(container(task, "one")?["exitCode"], 137);
        assert_eq!(task["stopCode"], "EssentialContainerExited");
    }
    assert_eq!(unwanted["stoppedReason"], "no longer wanted");
    ensure!(!cluster.control_plane.output().contains("state changes are missing"), "reports were lost");
    assert_eq!(cluster.process_of(&kept).await?, before);
    assert_eq!(cluster.task(&kept).await?["lastStatus"], "RUNNING");
    Ok(())
}

#[tokio::test]
async fn minutes_without_a_control_plane_keep_nobody_from_restarts_and_health_checks() -> Result<()> {
    const AWAY: Duration = Duration::from_secs(135);
    let mut cluster = Cluster::start().await?;
    // Twice over its period before the control plane is back.
    let policy = json!({ "enabled": true, "restartAttemptPeriod": 60 });
    let ends = demo::container_with("one", &["sleep", "61"], json!({ "restartPolicy": policy }));
    let ends = cluster.run(demo::task("ends", "none", json!([ends]))).await?;
    // Found to be ill a while after it was left alone.
    let check = json!({ "command": ["CMD", "/berth-demo", "healthy", "--file", "/none"], "interval": 10, "retries": 5 });
    let falls_ill = demo::container_with("one", &["sleep", "3600"], json!({ "healthCheck": check }));
    let falls_ill = cluster.run(demo::task("ill", "bridge", json!([falls_ill]))).await?;
    for task in [&ends, &falls_ill] {
        cluster.until(task, "RUNNING", PATIENCE).await?;
    }
    let (id, _) = cluster.process_of(&falls_ill).await?;
    cluster.control_plane.kill().await?;
    says(&cluster, NOT_CONNECTED, 1).await?;
    let back = tokio::time::Instant::now() + AWAY;
    let health = eventually(AWAY, "the engine finds it ill", || async {
        let state = cluster.engine.inspect(&id).await?.state.context("no state")?;
        let status = state.health.and_then(|health| health.status).map(|status| status.to_string());
        Ok(status.filter(|status| status == "unhealthy"))
    });
    assert_eq!(health.await?, "unhealthy");
    tokio::time::sleep_until(back).await;
    cluster.control_plane.start_again().await?;
    returned(&cluster).await?;
    let told = eventually(PATIENCE, "what happened is told", || async {
        let (ends, ill) = (cluster.task(&ends).await?, cluster.task(&falls_ill).await?);
        let reason = text(container(&ends, "one")?, "reason")?;
        ensure!(reason.starts_with("restarted 2 times"), "{reason}");
        Ok((ill["healthStatus"] == "UNHEALTHY").then_some([ends, ill]))
    })
    .await?;
    for task in &told {
        assert_eq!(task["lastStatus"], "RUNNING", "{task}");
    }
    ensure!(!cluster.control_plane.output().contains("state changes are missing"), "reports were lost");
    Ok(())
}

/// An impostor sits at the control plane's port until it was asked some times; then the real one is
/// back, and finds the agent and its task as they were.
async fn survives(manner: impl FnOnce(&str) -> Manner, often: u64, log: &str) -> Result<()> {
    let mut cluster = Cluster::start().await?;
    let instance = cluster.registered().await?;
    let (arn, _) = cluster.running(sleeper("kept")).await?;
    let before = cluster.process_of(&arn).await?;
    let logged = said(&cluster, log);

    cluster.control_plane.kill().await?;
    let impostor = Impostor::start(cluster.control_plane.agents, manner(&instance)).await?;
    tokio::time::timeout(PATIENCE, impostor.asked(often)).await.context("the agent does not come back")??;
    says(&cluster, log, logged + 1).await?;
    assert_eq!(cluster.process_of(&arn).await?, before, "nothing running is hurt");
    impostor.stop().await;

    cluster.control_plane.start_again().await?;
    returned(&cluster).await?;
    assert_eq!(cluster.registered().await?, instance);
    assert_eq!(cluster.process_of(&arn).await?, before);
    cluster.running(sleeper("new")).await?;
    cluster.stop(&arn, None).await?;
    let stopped = cluster.until(&arn, "STOPPED", PATIENCE).await?;
    assert_eq!(stopped["stopCode"], "UserInitiated");
    Ok(())
}

#[tokio::test]
async fn nonsense_from_the_control_planes_port_is_survived() -> Result<()> {
    survives(|_| Manner::Nonsense, 3, NOT_CONNECTED).await
}

#[tokio::test]
async fn errors_from_the_control_planes_port_are_survived() -> Result<()> {
    survives(|_| Manner::Errors, 5, "who are you?").await
}

#[tokio::test]
async fn lies_from_the_control_planes_port_empty_no_host() -> Result<()> {
    survives(|instance| Manner::Lies(instance.to_owned()), 2, "missing from the manifest; asking").await
}

/// A cluster whose agent reaches the engine through a socket that can be cut.
async fn behind_a_proxy() -> Result<(Proxy, Cluster)> {
    let proxy = Proxy::start()?;
    let cluster = Cluster::start_with(&[("DOCKER_HOST", &proxy.docker_host())]).await?;
    Ok((proxy, cluster))
}

const ENGINE_AWAY: &str = "the container engine is away; running containers are not touched";

#[tokio::test]
async fn a_launch_waits_for_the_engine_and_says_so() -> Result<()> {
    let (mut proxy, cluster) = behind_a_proxy().await?;
    proxy.cut().await?;
    says(&cluster, ENGINE_AWAY, 1).await?;
    let arn = cluster.run(sleeper("late")).await?;
    let reason = eventually(PATIENCE, "the task says what it waits for", || async {
        let task = cluster.task(&arn).await?;
        ensure!(task["lastStatus"] == "PENDING", "{task}");
        text(container(&task, "one")?, "reason").map(Some)
    })
    .await?;
    ensure!(reason.contains("the container engine, which does not answer"), "{reason}");
    proxy.mend()?;
    let task = cluster.until(&arn, "RUNNING", PATIENCE).await?;
    ensure!(container(&task, "one")?.get("reason").is_none_or(Value::is_null), "it waits no more: {task}");
    Ok(())
}

#[tokio::test]
async fn an_engine_lost_amid_launches_and_found_again_finishes_each_once() -> Result<()> {
    let (mut proxy, cluster) = behind_a_proxy().await?;
    for round in 0..4_u64 {
        let mut tasks = Vec::new();
        for n in 0..3 {
            tasks.push(cluster.run(sleeper(&format!("amid-{n}"))).await?);
        }
        // A different step of the launch each time; which one is not the point.
        tokio::time::sleep(Duration::from_millis(round * 60)).await;
        proxy.cut().await?;
        says(&cluster, ENGINE_AWAY, usize::try_from(round)? + 1).await?;
        proxy.mend()?;
        for task in &tasks {
            cluster.until(task, "RUNNING", PATIENCE).await?;
            assert_eq!(cluster.engine.containers_of_task(task).await?.len(), 1, "{task}");
            cluster.stop(task, None).await?;
        }
        for task in &tasks {
            let stopped = cluster.until(task, "STOPPED", PATIENCE).await?;
            assert_eq!(stopped["stopCode"], "UserInitiated", "{stopped}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn what_runs_is_not_hurt_by_an_engine_that_is_away_and_deaths_are_seen_afterwards() -> Result<()> {
    let (mut proxy, cluster) = behind_a_proxy().await?;
    let (kept, _) = cluster.running(sleeper("kept")).await?;
    let (dies, _) = cluster.running(sleeper("dies")).await?;
    let (vanishes, _) = cluster.running(sleeper("vanishes")).await?;
    let before = cluster.process_of(&kept).await?;
    proxy.cut().await?;
    says(&cluster, ENGINE_AWAY, 1).await?;
    cluster.engine.kill(&cluster.process_of(&dies).await?.0).await?;
    cluster.engine.remove(&cluster.process_of(&vanishes).await?.0).await?;
    assert_eq!(cluster.task(&dies).await?["lastStatus"], "RUNNING", "nobody can know yet");
    proxy.mend()?;
    let died = cluster.until(&dies, "STOPPED", PATIENCE).await?;
    assert_eq!(container(&died, "one")?["exitCode"], 137);
    cluster.until(&vanishes, "STOPPED", PATIENCE).await?;
    assert_eq!(cluster.process_of(&kept).await?, before);
    assert_eq!(cluster.task(&kept).await?["lastStatus"], "RUNNING");
    Ok(())
}

#[tokio::test]
async fn a_stop_goes_on_when_the_engine_is_back() -> Result<()> {
    let (mut proxy, cluster) = behind_a_proxy().await?;
    let stubborn = demo::container_with("one", &["ignore-term"], json!({ "stopTimeout": 3 }));
    let (amid, _) = cluster.running(demo::task("amid", "none", json!([stubborn]))).await?;
    let (asked_later, _) = cluster.running(sleeper("later")).await?;
    cluster.stop(&amid, None).await?;
    // The engine has been told, and waits for the container's three seconds.
    says(&cluster, "\"stop_code\":\"UserInitiated\"", 1).await?;
    proxy.cut().await?;
    says(&cluster, ENGINE_AWAY, 1).await?;
    cluster.stop(&asked_later, None).await?;
    ensure!(cluster.task(&asked_later).await?["lastStatus"] != "STOPPED", "its process runs");
    proxy.mend()?;
    let stopped = cluster.until(&amid, "STOPPED", PATIENCE).await?;
    assert_eq!(container(&stopped, "one")?["exitCode"], 137);
    let stopped = cluster.until(&asked_later, "STOPPED", PATIENCE).await?;
    assert_eq!(container(&stopped, "one")?["exitCode"], 0);
    Ok(())
}

#[tokio::test]
async fn a_full_disk_hurts_nothing_that_runs_and_new_work_waits() -> Result<()> {
    let disk = SmallDisk::mount(3)?;
    let folder = disk.path().to_str().context("a strange path")?.to_owned();
    let cluster = Cluster::start_with(&[("ECS_DATADIR", &folder)]).await?;
    let (kept, _) = cluster.running(sleeper("kept")).await?;
    let (dies, _) = cluster.running(sleeper("dies")).await?;
    let before = cluster.process_of(&kept).await?;

    disk.fill()?;
    // Each brings more than there can be room left for among the pages of the file.
    let bulk = json!({ "environment": [{ "name": "BULK", "value": "x".repeat(24 * 1024) }] });
    let bulky = cluster.register(demo::task(
        "bulky",
        "none",
        json!([demo::container_with("one", &["sleep", "3600"], bulk)]),
    ));
    let bulky = bulky.await?;
    let mut waiting = Vec::new();
    let error = "cannot write the agent's state";
    while said(&cluster, error) + said(&cluster, "No space left") == 0 {
        ensure!(waiting.len() < 100, "the disk is not full");
        let arn = cluster.run_definition(&bulky).await?;
        // Until it is refused room, it runs; then it says so.
        eventually(PATIENCE, "it runs, or there is no room", || async {
            let full = said(&cluster, "No space left") > 0;
            Ok((full || cluster.task(&arn).await?["lastStatus"] == "RUNNING").then_some(()))
        })
        .await?;
        waiting.push(arn);
    }
    ensure!(cluster.agent.output().contains(&folder), "the error names the file: {}", cluster.agent.output());
    let last = waiting.last().context("nothing was asked")?;
    ensure!(cluster.task(last).await?["lastStatus"] == "PENDING", "what cannot be written is not begun");
    assert_eq!(cluster.engine.containers_of_task(last).await?.len(), 0);
    cluster.engine.kill(&cluster.process_of(&dies).await?.0).await?;
    assert_eq!(cluster.process_of(&kept).await?, before);

    disk.free()?;
    let died = eventually(BACK, "the death is told", || async {
        let task = cluster.task(&dies).await?;
        Ok((task["lastStatus"] == "STOPPED").then_some(task))
    });
    assert_eq!(container(&died.await?, "one")?["exitCode"], 137);
    for arn in &waiting {
        cluster.until(arn, "RUNNING", BACK).await?;
        assert_eq!(cluster.engine.containers_of_task(arn).await?.len(), 1);
    }
    assert_eq!(cluster.process_of(&kept).await?, before);
    Ok(())
}

/// Another agent as the cluster's own would be, but for these variables; what it says until it ends.
async fn another(cluster: &Cluster, env: &[(&str, &str)]) -> Result<(Option<i32>, String)> {
    let data = cluster.agent.data_dir().to_str().context("a strange path")?;
    let backend = format!("http://{}", cluster.control_plane.agents);
    let own = [
        ("ECS_CLUSTER", cluster.name.as_str()),
        ("ECS_BACKEND_HOST", &backend),
        ("ECS_DATADIR", data),
        ("BERTH_CGROUP_ROOT", &cluster.name),
        ("BERTH_RUN_DIR", data),
        ("BERTH_ENDPOINT_ADDRESS", "off"),
        ("BERTH_INTROSPECTION_ADDRESS", "off"),
    ];
    let env: BTreeMap<String, String> =
        own.iter().chain(env).map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    let mut program = Program::start("berth-agent", &[] as &[OsString], &env)?;
    let status = program.end(PATIENCE).await?;
    Ok((status.code(), program.output()))
}

#[tokio::test]
async fn a_second_agent_on_the_same_data_is_refused() -> Result<()> {
    let cluster = Cluster::start().await?;
    let (arn, _) = cluster.running(sleeper("kept")).await?;
    let before = cluster.process_of(&arn).await?;
    let (code, output) = another(&cluster, &[]).await?;
    assert_eq!(code, Some(5), "{output}");
    ensure!(output.contains("is in use by another agent; stop it first"), "{output}");
    ensure!(output.contains("ECS_DATADIR"), "it says what to do: {output}");
    assert_eq!(cluster.process_of(&arn).await?, before);
    ensure!(cluster.instance().await?["agentConnected"] == true, "the first one goes on");
    Ok(())
}

#[tokio::test]
async fn data_of_another_cluster_ends_the_agent_with_code_5() -> Result<()> {
    let mut cluster = Cluster::start().await?;
    cluster.agent.terminate().await?;
    let (code, output) = another(&cluster, &[("ECS_CLUSTER", "elsewhere")]).await?;
    assert_eq!(code, Some(5), "{output}");
    let told = format!("this host belongs to cluster {}, but ECS_CLUSTER=elsewhere", cluster.name);
    if !output.contains(&told) {
        bail!("it does not say {told:?}: {output}");
    }
    Ok(())
}
