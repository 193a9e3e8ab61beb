//! Promise: a container whose surroundings are broken says which part of them, and harms nobody: servers of its
//! log, of its volume, and a health check that never ends.

use std::net::TcpListener;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use berth_tests::cluster::{container, text};
use berth_tests::expect::{PATIENCE, here};
use berth_tests::{Cluster, demo, eventually};
use serde_json::{Value, json};

/// A port of this host where nobody listens.
fn closed_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

fn stays(name: &str, members: Value) -> Value {
    demo::container_with(name, &["sleep", "3600"], members)
}

#[tokio::test]
async fn a_log_driver_without_its_server_is_named() -> Result<()> {
    let drivers = r#"["json-file","none","fluentd","syslog","gelf"]"#;
    let cluster = Cluster::start_with(&[("ECS_AVAILABLE_LOGGING_DRIVERS", drivers)]).await?;
    let port = closed_port()?;
    for (driver, option, address) in [
        ("fluentd", "fluentd-address", format!("127.0.0.1:{port}")),
        ("syslog", "syslog-address", format!("tcp://127.0.0.1:{port}")),
        ("gelf", "gelf-address", format!("tcp://127.0.0.1:{port}")),
    ] {
        let log = json!({ "logConfiguration": { "logDriver": driver, "options": { option: address } } });
        let app = stays("app", log);
        let beside = demo::container_with("beside", &["sleep", "3600"], json!({ "essential": false }));
        let (_, task) = cluster.stopped(demo::task(driver, "none", json!([app, beside]))).await?;
        let reason = text(container(&task, "app")?, "reason")?;
        println!("{driver}: {reason}");
        ensure!(reason.starts_with("CannotStartContainerError: "), "{reason}");
        let driver = format!("log driver {driver}");
        for part in [driver.as_str(), &port.to_string(), "connection refused"] {
            ensure!(reason.contains(part), "{part} in {reason}");
        }
        assert_eq!(task["stopCode"], "TaskFailedToStart");
        let reason = text(&task, "stoppedReason")?;
        ensure!(reason.contains(&driver) && reason.contains("container app"), "{reason}");
    }
    Ok(())
}

#[tokio::test]
async fn a_volume_of_a_server_that_is_not_there_is_named() -> Result<()> {
    let cluster = Cluster::start_with(&[("ECS_ENGINE_TASK_CLEANUP_WAIT_DURATION", "1s")]).await?;
    let mounts = json!({ "mountPoints": [{ "sourceVolume": "data", "containerPath": "/data" }] });
    let mut definition = demo::task("nfs", "none", json!([stays("app", mounts)]));
    // Few and short tries, where this kernel can do it at all.
    let options =
        json!({ "type": "nfs", "o": "addr=127.0.0.1,nfsvers=4,soft,timeo=10,retrans=1", "device": ":/x" });
    let configuration = json!({ "driver": "local", "driverOpts": options });
    definition["volumes"] = json!([{ "name": "data", "dockerVolumeConfiguration": configuration }]);
    let (_, task) = cluster.stopped(definition).await?;
    let reason = text(container(&task, "app")?, "reason")?;
    println!("nfs: {reason}");
    let class = ["CannotStartContainerError: ", "CannotCreateContainerError: "];
    ensure!(class.iter().any(|class| reason.starts_with(class)), "{reason}");
    for part in ["mount", "addr=127.0.0.1", "volume data of driver local"] {
        ensure!(reason.contains(part), "{part} in {reason}");
    }
    assert_eq!(task["stopCode"], "TaskFailedToStart");
    ensure!(text(&task, "stoppedReason")?.contains("container app"), "{task}");
    Ok(())
}

/// A health check that never returns, and is given up after two seconds.
fn endless(retries: u32) -> Value {
    let command = json!(["CMD", "/berth-demo", "sleep", "3600"]);
    json!({ "healthCheck": { "command": command, "interval": 5, "timeout": 2, "retries": retries } })
}

#[tokio::test]
async fn a_health_check_that_never_returns_makes_unhealthy_and_holds_up_nothing() -> Result<()> {
    // Twice the interval and the timeout, and some more.
    const CHECKED: Duration = Duration::from_secs(40);
    let cluster = Cluster::start().await?;
    let web = stays("web", json!({ "dependsOn": [{ "containerName": "db", "condition": "HEALTHY" }] }));
    let definition = demo::task("endless", "none", json!([stays("db", endless(2)), web]));
    let waiting = cluster.run(definition).await?;
    // Its own health is told also where nobody waits for it.
    let alone = demo::task("alone", "none", json!([stays("db", endless(1))]));
    let (alone, _) = cluster.running(alone).await?;

    let wait = "container db to become HEALTHY, which is UNHEALTHY";
    eventually(CHECKED, "it is unhealthy, and the other says that it waits for it", || async {
        let task = cluster.task(&waiting).await?;
        let (db, web) = (container(&task, "db")?, container(&task, "web")?);
        ensure!(db["healthStatus"] == "UNHEALTHY" && web["reason"] == wait, "{task}");
        ensure!(task["lastStatus"] == "PENDING" && web["lastStatus"] == "PENDING", "{task}");
        Ok(Some(()))
    })
    .await?;
    eventually(CHECKED, "one that runs is unhealthy", || async {
        let task = cluster.task(&alone).await?;
        Ok((task["healthStatus"] == "UNHEALTHY" && task["lastStatus"] == "RUNNING").then_some(()))
    })
    .await?;
    let explained = cluster.agent.typed(&["explain", &waiting]).await?;
    ensure!(explained.contains("container db is unhealthy"), "{explained}");

    let began = Instant::now();
    for task in [&waiting, &alone] {
        cluster.stop(task, None).await?;
    }
    for task in [&waiting, &alone] {
        let stopped = cluster.until(task, "STOPPED", PATIENCE).await?;
        assert_eq!(stopped["stopCode"], "UserInitiated", "{stopped}");
    }
    println!("both are stopped after {:?}", began.elapsed());
    ensure!(began.elapsed() < here(Duration::from_secs(10)), "{:?}", began.elapsed());
    Ok(())
}

#[tokio::test]
async fn a_container_that_does_not_become_healthy_in_time_ends_its_task_with_the_reason() -> Result<()> {
    let cluster = Cluster::start().await?;
    let mut db = stays("db", endless(1));
    db["startTimeout"] = json!(4);
    let web = stays("web", json!({ "dependsOn": [{ "containerName": "db", "condition": "HEALTHY" }] }));
    let (_, task) = cluster.stopped(demo::task("late", "none", json!([db, web]))).await?;
    let reason = text(container(&task, "web")?, "reason")?;
    ensure!(reason.contains("container db did not become HEALTHY within 4"), "{reason}");
    assert_eq!(task["stopCode"], "TaskFailedToStart", "{task}");
    Ok(())
}
