//! Promise: an agent that dies, is stopped, or loses its state never loses or doubles a task.

use anyhow::{Result, ensure};
use berth_tests::cluster::{container, demo_answer, host_port};
use berth_tests::expect::PATIENCE;
use berth_tests::{Cluster, demo};
use serde_json::{Value, json};

fn server() -> Value {
    let one = demo::container_with("one", &[], json!({ "portMappings": [{ "containerPort": 8080 }] }));
    demo::task("restart", "bridge", json!([one]))
}

#[tokio::test]
async fn after_kill_9_running_tasks_are_adopted() -> Result<()> {
    let mut cluster = Cluster::start().await?;
    let instance = cluster.registered().await?;
    let (arn, task) = cluster.running(server()).await?;
    let before = cluster.process_of(&arn).await?;

    cluster.agent.kill().await?;
    cluster.disconnected().await?;
    ensure!(demo_answer(host_port(&task, "one", 8080, "tcp")?, "/").await?.starts_with("hello"));
    cluster.agent.start_again()?;

    assert_eq!(cluster.registered().await?, instance, "the same instance comes back");
    assert_eq!(cluster.process_of(&arn).await?, before);
    assert_eq!(cluster.task(&arn).await?["lastStatus"], "RUNNING");
    cluster.stop(&arn, None).await?;
    let stopped = cluster.until(&arn, "STOPPED", PATIENCE).await?;
    assert_eq!(container(&stopped, "one")?["exitCode"], 0);
    Ok(())
}

#[tokio::test]
async fn what_ended_while_the_agent_was_dead_is_told_afterwards() -> Result<()> {
    let mut cluster = Cluster::start().await?;
    let (arn, _) = cluster.running(server()).await?;
    let (id, _) = cluster.process_of(&arn).await?;
    cluster.agent.kill().await?;
    cluster.engine.kill(&id).await?;
    cluster.agent.start_again()?;
    let stopped = cluster.until(&arn, "STOPPED", PATIENCE).await?;
    assert_eq!(container(&stopped, "one")?["exitCode"], 137);
    assert_eq!(stopped["stopCode"], "EssentialContainerExited");
    Ok(())
}

#[tokio::test]
async fn a_stop_asked_while_the_agent_was_dead_is_carried_out() -> Result<()> {
    let mut cluster = Cluster::start().await?;
    let (arn, _) = cluster.running(server()).await?;
    cluster.agent.kill().await?;
    cluster.stop(&arn, Some("no longer wanted")).await?;
    cluster.agent.start_again()?;
    let stopped = cluster.until(&arn, "STOPPED", PATIENCE).await?;
    assert_eq!(stopped["stoppedReason"], "no longer wanted");
    Ok(())
}

#[tokio::test]
async fn lost_state_is_rebuilt_from_the_containers() -> Result<()> {
    let mut cluster = Cluster::start().await?;
    let instance = cluster.registered().await?;
    let (arn, _) = cluster.running(server()).await?;
    let before = cluster.process_of(&arn).await?;

    cluster.agent.kill().await?;
    cluster.disconnected().await?;
    cluster.agent.lose_state()?;
    cluster.agent.start_again()?;

    assert_eq!(cluster.registered().await?, instance, "the labels name the instance");
    assert_eq!(cluster.process_of(&arn).await?, before);
    assert_eq!(cluster.engine.containers_of(&cluster.name).await?.len(), 1, "nothing was started twice");
    cluster.stop(&arn, None).await?;
    cluster.until(&arn, "STOPPED", PATIENCE).await?;
    Ok(())
}

#[tokio::test]
async fn sigterm_ends_the_agent_and_no_task() -> Result<()> {
    let mut cluster = Cluster::start().await?;
    let (arn, task) = cluster.running(server()).await?;
    let before = cluster.process_of(&arn).await?;

    let status = cluster.agent.terminate().await?;
    assert_eq!(status.code(), Some(0));
    cluster.disconnected().await?;
    assert_eq!(cluster.process_of(&arn).await?, before);
    ensure!(demo_answer(host_port(&task, "one", 8080, "tcp")?, "/").await?.starts_with("hello"));

    cluster.agent.start_again()?;
    cluster.registered().await?;
    assert_eq!(cluster.process_of(&arn).await?, before);
    Ok(())
}

#[tokio::test]
async fn a_control_plane_that_dies_and_returns_finds_the_task_running() -> Result<()> {
    let mut cluster = Cluster::start().await?;
    let (arn, _) = cluster.running(server()).await?;
    let before = cluster.process_of(&arn).await?;
    cluster.control_plane.kill().await?;
    cluster.control_plane.start_again().await?;
    cluster.registered().await?;
    assert_eq!(cluster.task(&arn).await?["lastStatus"], "RUNNING");
    assert_eq!(cluster.process_of(&arn).await?, before);
    Ok(())
}

#[tokio::test]
async fn a_start_cut_short_by_kill_9_is_finished_once() -> Result<()> {
    let mut cluster = Cluster::start().await?;
    for _ in 0..5 {
        let arn = cluster.run(server()).await?;
        // Somewhere between the assignment and RUNNING; where, differs from round to round.
        cluster.agent.kill().await?;
        cluster.agent.start_again()?;
        cluster.until(&arn, "RUNNING", PATIENCE).await?;
        assert_eq!(cluster.engine.containers_of_task(&arn).await?.len(), 1);
        cluster.stop(&arn, None).await?;
        cluster.until(&arn, "STOPPED", PATIENCE).await?;
    }
    Ok(())
}
