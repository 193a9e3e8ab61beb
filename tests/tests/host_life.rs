//! Promise: a service manager knows how the agent is; a host that goes takes its tasks down in order, in the
//! time that there is, and says so; an agent that is stopped takes none.

use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, ensure};
use berth_tests::cluster::container;
use berth_tests::expect::PATIENCE;
use berth_tests::{Cluster, Logind, Manager, Server, demo, eventually};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

/// A task whose parts heed SIGTERM: `app` stops before `db`.
fn pair() -> Value {
    let db = demo::container("db", &["serve"]);
    let app = demo::container_with(
        "app",
        &["serve"],
        json!({ "dependsOn": [{ "containerName": "db", "condition": "START" }] }),
    );
    demo::task("pair", "none", json!([db, app]))
}

fn stubborn(stop_timeout: u32) -> Value {
    let one = demo::container_with("one", &["ignore-term"], json!({ "stopTimeout": stop_timeout }));
    demo::task("stubborn", "none", json!([one]))
}

/// The containers say their first line once their signal handling is set.
async fn heeding(cluster: &Cluster, task: &str, containers: &[&str]) -> Result<()> {
    for name in containers {
        let id = cluster.engine.id_of(task, name).await?;
        eventually(PATIENCE, format!("{name} says something"), || async {
            Ok((!cluster.engine.logs(&id).await?.is_empty()).then_some(()))
        })
        .await?;
    }
    Ok(())
}

async fn status(cluster: &Cluster, wanted: &str) -> Result<()> {
    eventually(PATIENCE, format!("the instance is {wanted}"), || async {
        Ok((cluster.instance().await?["status"] == wanted).then_some(()))
    })
    .await
}

/// When the engine saw a container of the task end.
async fn ended(cluster: &Cluster, task: &str, name: &str) -> Result<String> {
    let id = cluster.engine.id_of(task, name).await?;
    let state = cluster.engine.inspect(&id).await?.state.context("no state")?;
    state.finished_at.context("it has not ended")
}

fn rfc3339(from_now: Duration) -> Result<String> {
    let at = (SystemTime::now() + from_now).duration_since(SystemTime::UNIX_EPOCH)?.as_secs();
    let output = std::process::Command::new("date")
        .args(["--utc", "+%FT%TZ", "--date", &format!("@{at}")])
        .output()?;
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

#[tokio::test]
async fn the_manager_hears_that_the_agent_is_ready_what_it_does_and_that_it_lives() -> Result<()> {
    let manager = Manager::start()?;
    let address = manager.address();
    let env = [("NOTIFY_SOCKET", address.as_str()), ("WATCHDOG_USEC", "4000000")];
    let mut cluster = Cluster::start_with(&env).await?;
    let ready = manager.hears("READY=1", 0, PATIENCE).await?;
    ensure!(ready.contains("STATUS=connected to the control plane as "), "{ready}");
    let (arn, _) = cluster.running(pair()).await?;
    manager.hears("; 1 task", 0, PATIENCE).await?;
    manager.hears("WATCHDOG=1", 0, PATIENCE).await?;

    // An agent that hangs says nothing; one that goes on does.
    cluster.agent.signal(Signal::SIGSTOP)?;
    tokio::time::sleep(Duration::from_millis(200)).await;
    let before = manager.heard().len();
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert_eq!(manager.heard().len(), before, "{:?}", manager.heard());
    cluster.agent.signal(Signal::SIGCONT)?;
    manager.hears("WATCHDOG=1", before, PATIENCE).await?;

    cluster.control_plane.kill().await?;
    manager.hears("STATUS=without the control plane, tasks run on; 1 task", before, PATIENCE).await?;
    assert_eq!(cluster.agent.terminate().await?.code(), Some(0));
    manager.hears("STOPPING=1\nSTATUS=stopping; containers run on", before, PATIENCE).await?;
    ensure!(!manager.heard().iter().any(|text| text.contains("EXTEND")), "{:?}", manager.heard());
    assert_eq!(cluster.engine.containers_of_task(&arn).await?.len(), 2);
    Ok(())
}

#[tokio::test]
async fn a_start_without_the_control_plane_is_a_start() -> Result<()> {
    let manager = Manager::start()?;
    let address = manager.address();
    let mut cluster = Cluster::start_with(&[("NOTIFY_SOCKET", &address)]).await?;
    let (arn, _) = cluster.running(pair()).await?;
    assert_eq!(cluster.agent.terminate().await?.code(), Some(0));
    cluster.control_plane.kill().await?;
    let before = manager.heard().len();
    cluster.agent.start_again()?;
    let ready = manager.hears("READY=1", before, PATIENCE).await?;
    ensure!(ready.contains("STATUS=without the control plane, tasks run on; 1 task"), "{ready}");
    assert_eq!(cluster.engine.containers_of_task(&arn).await?.len(), 2);
    Ok(())
}

#[tokio::test]
async fn an_engine_that_is_away_does_not_fail_the_start() -> Result<()> {
    let manager = Manager::start()?;
    let address = manager.address();
    let began = Instant::now();
    let env = [("NOTIFY_SOCKET", address.as_str()), ("DOCKER_HOST", "unix:///nonexistent/docker.sock")];
    let mut cluster = Cluster::start_unregistered(&env).await?;
    manager.hears("STATUS=waiting for the container engine", 0, PATIENCE).await?;
    let ready = manager.hears("READY=1", 0, PATIENCE).await?;
    assert_eq!(ready, "READY=1\nSTATUS=waiting for the container engine");
    ensure!(began.elapsed() > Duration::from_secs(10), "after {:?} already", began.elapsed());
    assert_eq!(cluster.agent.terminate().await?.code(), Some(0));
    Ok(())
}

#[tokio::test]
async fn a_shutdown_waits_while_tasks_stop_in_order() -> Result<()> {
    let logind = Logind::start(Duration::from_secs(60)).await?;
    let mut cluster = Cluster::start_with(&[("DBUS_SYSTEM_BUS_ADDRESS", logind.address())]).await?;
    logind.until_held(1).await?;
    let lock = logind.held().remove(0);
    ensure!(lock.starts_with("shutdown Berth delay: "), "{lock}");
    let (arn, _) = cluster.running(pair()).await?;
    heeding(&cluster, &arn, &["db", "app"]).await?;

    logind.shuts_down(true).await?;
    let stopped = cluster.until(&arn, "STOPPED", PATIENCE).await?;
    assert_eq!(stopped["stopCode"], "TerminationNotice");
    let reason = stopped["stoppedReason"].as_str().unwrap_or_default();
    ensure!(reason.starts_with("Host ") && reason.ends_with(" is shutting down"), "{reason}");
    for name in ["db", "app"] {
        assert_eq!(container(&stopped, name)?["exitCode"], 0, "{stopped}");
    }
    ensure!(ended(&cluster, &arn, "app").await? < ended(&cluster, &arn, "db").await?, "out of order");
    // The control plane knows; the shutdown may go on.
    logind.until_held(0).await?;
    assert_eq!(cluster.instance().await?["status"], "DRAINING");

    // What comes now does not start.
    let definition = cluster.register(pair()).await?;
    let instance = cluster.registered().await?;
    let input = json!({
        "cluster": cluster.name, "taskDefinition": definition, "containerInstances": [instance],
    });
    let started = cluster.ecs.call("StartTask", input).await?;
    if let Some(late) = started["tasks"][0]["taskArn"].as_str() {
        let late = cluster.until(late, "STOPPED", PATIENCE).await?;
        assert_eq!(late["stopCode"], "TerminationNotice");
        ensure!(late["startedAt"].is_null(), "{late}");
    }

    // systemd then stops the agent, which has nothing left to do.
    logind.is("stopping");
    assert_eq!(cluster.agent.terminate().await?.code(), Some(0));

    // The host is back: it takes tasks again, and what was stopped stays so.
    logind.is("running");
    cluster.agent.start_again()?;
    status(&cluster, "ACTIVE").await?;
    assert_eq!(cluster.task(&arn).await?["lastStatus"], "STOPPED");
    let (again, _) = cluster.running(pair()).await?;
    assert_eq!(cluster.task(&again).await?["lastStatus"], "RUNNING");
    Ok(())
}

#[tokio::test]
async fn a_shutdown_that_is_called_off_leaves_a_host_that_takes_tasks() -> Result<()> {
    let logind = Logind::start(Duration::from_secs(60)).await?;
    let cluster = Cluster::start_with(&[("DBUS_SYSTEM_BUS_ADDRESS", logind.address())]).await?;
    logind.until_held(1).await?;
    logind.shuts_down(true).await?;
    logind.until_held(0).await?;
    status(&cluster, "DRAINING").await?;
    logind.shuts_down(false).await?;
    status(&cluster, "ACTIVE").await?;
    logind.until_held(1).await?;
    cluster.running(pair()).await?;
    Ok(())
}

#[tokio::test]
async fn tasks_that_do_not_heed_are_killed_within_the_time_that_logind_gives() -> Result<()> {
    let logind = Logind::start(Duration::from_secs(6)).await?;
    let cluster = Cluster::start_with(&[("DBUS_SYSTEM_BUS_ADDRESS", logind.address())]).await?;
    logind.until_held(1).await?;
    let (arn, _) = cluster.running(stubborn(60)).await?;
    heeding(&cluster, &arn, &["one"]).await?;
    let began = Instant::now();
    logind.shuts_down(true).await?;
    let stopped = cluster.until(&arn, "STOPPED", PATIENCE).await?;
    ensure!(began.elapsed() < Duration::from_secs(12), "after {:?}", began.elapsed());
    assert_eq!(container(&stopped, "one")?["exitCode"], 137);
    assert_eq!(stopped["stopCode"], "TerminationNotice");
    logind.until_held(0).await
}

#[tokio::test]
async fn without_logind_tasks_stop_when_systemd_stops_the_agent_of_a_host_that_goes_down() -> Result<()> {
    let manager = Manager::start()?;
    let logind = Logind::start(Duration::from_secs(1)).await?;
    let address = manager.address();
    let env = [("NOTIFY_SOCKET", address.as_str()), ("DBUS_SYSTEM_BUS_ADDRESS", logind.address())];
    let mut cluster = Cluster::start_with(&env).await?;
    let (arn, _) = cluster.running(pair()).await?;
    heeding(&cluster, &arn, &["db", "app"]).await?;

    // An upgrade looks the same to the agent, but for what systemd says of the host.
    assert_eq!(cluster.agent.terminate().await?.code(), Some(0));
    cluster.disconnected().await?;
    cluster.agent.start_again()?;
    cluster.registered().await?;
    assert_eq!(cluster.task(&arn).await?["lastStatus"], "RUNNING");
    let before = manager.heard().len();

    logind.is("stopping");
    assert_eq!(cluster.agent.terminate().await?.code(), Some(0));
    manager.hears("STOPPING=1\nSTATUS=the host goes down: 1 task to be stopped", before, PATIENCE).await?;
    manager.hears("EXTEND_TIMEOUT_USEC=", before, PATIENCE).await?;
    let stopped = cluster.task(&arn).await?;
    assert_eq!(
        (&stopped["lastStatus"], &stopped["stopCode"]),
        (&json!("STOPPED"), &json!("TerminationNotice"))
    );
    for name in ["db", "app"] {
        assert_eq!(container(&stopped, name)?["exitCode"], 0, "{stopped}");
    }
    Ok(())
}

#[tokio::test]
async fn a_file_that_appears_drains_the_host_and_one_with_a_time_empties_it() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("notice");
    let name = path.to_str().context("a strange name")?;
    let mut cluster = Cluster::start_with(&[("BERTH_TERMINATION_NOTICE_FILE", name)]).await?;
    let (arn, _) = cluster.running(stubborn(2)).await?;
    heeding(&cluster, &arn, &["one"]).await?;

    std::fs::write(&path, "")?;
    status(&cluster, "DRAINING").await?;
    // It stands over a restart of the agent, and nobody is told otherwise in between.
    cluster.agent.terminate().await?;
    cluster.agent.start_again()?;
    cluster.registered().await?;
    assert_eq!(cluster.instance().await?["status"], "DRAINING");
    assert_eq!(cluster.task(&arn).await?["lastStatus"], "RUNNING", "without a time it runs on");
    std::fs::remove_file(&path)?;
    status(&cluster, "ACTIVE").await?;

    // So long before it as the task may take, and a little longer, it is stopped.
    let began = Instant::now();
    std::fs::write(&path, rfc3339(Duration::from_secs(18))?)?;
    status(&cluster, "DRAINING").await?;
    let stopped = cluster.until(&arn, "STOPPED", PATIENCE).await?;
    let took = began.elapsed();
    ensure!((Duration::from_secs(4)..Duration::from_secs(18)).contains(&took), "after {took:?}");
    assert_eq!(stopped["stopCode"], "TerminationNotice");
    let reason = stopped["stoppedReason"].as_str().unwrap_or_default();
    ensure!(reason.contains(" is to be terminated at 20"), "{reason}");
    Ok(())
}

#[tokio::test]
async fn ec2s_notice_drains_the_host_and_stops_its_tasks_in_time() -> Result<()> {
    let stands = std::sync::Arc::new(std::sync::Mutex::new(None::<String>));
    let said = std::sync::Arc::clone(&stands);
    let metadata = Server::start(move |asked| match asked.path.as_str() {
        "/latest/api/token" if asked.header("X-aws-ec2-metadata-token-ttl-seconds") == "21600" => {
            (200, "a-token".to_owned())
        }
        "/latest/meta-data/spot/instance-action" if asked.header("X-aws-ec2-metadata-token") == "a-token" => {
            let action = said.lock().ok().and_then(|said| said.clone());
            action.map_or((404, String::new()), |action| (200, action))
        }
        _ => (401, String::new()),
    })
    .await?;
    let base = metadata.url("");
    let env =
        [("ECS_ENABLE_SPOT_INSTANCE_DRAINING", "true"), ("AWS_EC2_METADATA_SERVICE_ENDPOINT", base.as_str())];
    let cluster = Cluster::start_with(&env).await?;
    let (arn, _) = cluster.running(pair()).await?;
    heeding(&cluster, &arn, &["db", "app"]).await?;
    let at = rfc3339(Duration::from_secs(40))?;
    *stands.lock().map_err(|_| anyhow::anyhow!("poisoned"))? =
        Some(json!({ "action": "terminate", "time": at }).to_string());
    status(&cluster, "DRAINING").await?;
    let stopped = cluster.until(&arn, "STOPPED", PATIENCE).await?;
    assert_eq!(stopped["stopCode"], "SpotInterruption");
    for name in ["db", "app"] {
        assert_eq!(container(&stopped, name)?["exitCode"], 0, "{stopped}");
    }
    let asked = metadata.asked();
    let tokens = asked.iter().filter(|asked| asked.path == "/latest/api/token").count();
    assert_eq!(tokens, 1, "one token serves for hours");
    ensure!(asked.len() > 2, "it is asked again and again");
    Ok(())
}
