//! Promise: a task ends as asked, in the time it was given, and says why.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use berth_tests::cluster::container;
use berth_tests::expect::{PATIENCE, here};
use berth_tests::{Cluster, demo, eventually};
use serde_json::{Value, json};

fn one(command: &[&str], members: Value) -> Value {
    demo::task("stop", "none", json!([demo::container_with("one", command, members)]))
}

/// The demo program says its first line once its signal handling is set.
async fn said(cluster: &Cluster, task: &str, beginning: &str) -> Result<()> {
    let id = cluster.engine.id_of(task, "one").await?;
    eventually(PATIENCE, format!("the container says {beginning:?}"), || async {
        Ok(cluster.engine.logs(&id).await?.contains(beginning).then_some(()))
    })
    .await
}

#[tokio::test]
async fn sigterm_is_enough_for_a_program_that_heeds_it() -> Result<()> {
    let cluster = Cluster::start().await?;
    let (arn, _) = cluster.running(one(&["serve"], json!({}))).await?;
    said(&cluster, &arn, "berth-demo serves").await?;
    let began = Instant::now();
    let answer = cluster.stop(&arn, None).await?;
    assert_eq!(answer["task"]["desiredStatus"], "STOPPED");
    let task = cluster.until(&arn, "STOPPED", PATIENCE).await?;
    ensure!(began.elapsed() < here(Duration::from_secs(5)), "it took {:?}", began.elapsed());
    assert_eq!(container(&task, "one")?["exitCode"], 0);
    assert_eq!(task["stopCode"], "UserInitiated");
    assert_eq!(task["stoppedReason"], "Task stopped by user");
    Ok(())
}

#[tokio::test]
async fn sigkill_comes_after_the_stop_timeout() -> Result<()> {
    let cluster = Cluster::start().await?;
    let (arn, _) = cluster.running(one(&["ignore-term"], json!({ "stopTimeout": 2 }))).await?;
    said(&cluster, &arn, "ignoring SIGTERM").await?;
    let began = Instant::now();
    cluster.stop(&arn, None).await?;
    let task = cluster.until(&arn, "STOPPED", PATIENCE).await?;
    let took = began.elapsed();
    ensure!(took >= Duration::from_secs(2), "killed after {took:?} already");
    ensure!(took < here(Duration::from_secs(10)), "killed after {took:?} only");
    assert_eq!(container(&task, "one")?["exitCode"], 137);
    Ok(())
}

#[tokio::test]
async fn a_second_stop_of_the_same_task_changes_nothing() -> Result<()> {
    let cluster = Cluster::start().await?;
    let (arn, _) = cluster.running(one(&["serve"], json!({}))).await?;
    cluster.stop(&arn, Some("first")).await?;
    cluster.stop(&arn, Some("second")).await?;
    let task = cluster.until(&arn, "STOPPED", PATIENCE).await?;
    assert_eq!(task["stoppedReason"], "first");
    cluster.stop(&arn, Some("third")).await?;
    assert_eq!(cluster.task(&arn).await?["stoppedReason"], "first");
    Ok(())
}

#[tokio::test]
async fn an_essential_container_takes_the_task_with_it() -> Result<()> {
    let cluster = Cluster::start().await?;
    // Late enough for the other to be up and heed what it is told.
    let ends = demo::container_with(
        "ends",
        &["exit", "7", "--after", "2000"],
        json!({ "dependsOn": [{ "containerName": "stays", "condition": "START" }] }),
    );
    let containers = json!([ends, demo::container("stays", &[])]);
    let (_, task) = cluster.stopped(demo::task("essential", "none", containers)).await?;
    assert_eq!(task["stopCode"], "EssentialContainerExited");
    assert_eq!(task["stoppedReason"], "Essential container in task exited");
    assert_eq!(container(&task, "ends")?["exitCode"], 7);
    assert_eq!(container(&task, "stays")?["exitCode"], 0);
    Ok(())
}

#[tokio::test]
async fn a_container_that_is_not_essential_may_end() -> Result<()> {
    let cluster = Cluster::start().await?;
    let ends = demo::container_with("ends", &["exit", "3"], json!({ "essential": false }));
    let containers = json!([ends, demo::container("stays", &[])]);
    let (arn, _) = cluster.running(demo::task("sidecar", "none", containers)).await?;
    let task = eventually(PATIENCE, "the end of the sidecar is told", || async {
        let task = cluster.task(&arn).await?;
        Ok((container(&task, "ends")?["lastStatus"] == "STOPPED").then_some(task))
    })
    .await?;
    assert_eq!(container(&task, "ends")?["exitCode"], 3);
    assert_eq!(task["lastStatus"], "RUNNING");
    Ok(())
}

#[tokio::test]
async fn one_task_that_ignores_sigterm_delays_no_other() -> Result<()> {
    let cluster = Cluster::start().await?;
    let (slow, _) = cluster.running(one(&["ignore-term"], json!({ "stopTimeout": 20 }))).await?;
    let (quick, _) = cluster.running(one(&["serve"], json!({}))).await?;
    said(&cluster, &slow, "ignoring SIGTERM").await?;
    said(&cluster, &quick, "berth-demo serves").await?;
    cluster.stop(&slow, None).await?;
    cluster.stop(&quick, None).await?;
    cluster.until(&quick, "STOPPED", Duration::from_secs(5)).await?;
    let (next, _) = cluster.running(one(&["serve"], json!({}))).await?;
    assert_ne!(cluster.task(&slow).await?["lastStatus"], "STOPPED", "the slow one is still in its time");
    cluster.stop(&next, None).await?;
    Ok(())
}
