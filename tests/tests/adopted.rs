//! Promise: a control plane that is replaced by an empty one, or put back to an older state, ends no task. What runs
//! runs on, is on record again, and can be stopped.

use std::fs;

use anyhow::{Result, ensure};
use berth_tests::cluster::{demo_answer, host_port};
use berth_tests::expect::PATIENCE;
use berth_tests::{Cluster, demo, eventually};
use serde_json::{Value, json};

/// A server with a port, and one that says how it is.
fn server(family: &str) -> Value {
    let web = demo::container_with("one", &[], json!({ "portMappings": [{ "containerPort": 8080 }] }));
    demo::task(family, "bridge", json!([web]))
}

fn checked(family: &str) -> Value {
    let check = json!({ "command": ["CMD", "/berth-demo", "healthy"], "interval": 5, "startPeriod": 1 });
    let one = demo::container_with("one", &["sleep", "3600"], json!({ "healthCheck": check }));
    demo::task(family, "bridge", json!([one]))
}

async fn healthy(cluster: &Cluster, task: &str) -> Result<()> {
    eventually(PATIENCE, format!("{task} is HEALTHY"), || async {
        Ok((cluster.task(task).await?["healthStatus"] == "HEALTHY").then_some(()))
    })
    .await
}

/// The records are replaced by none while the control plane is away; the cluster is made anew.
async fn replace(cluster: &mut Cluster) -> Result<()> {
    cluster.control_plane.terminate().await?;
    fs::remove_file(cluster.control_plane.records())?;
    cluster.control_plane.start_again().await
}

async fn make_cluster(cluster: &Cluster) -> Result<()> {
    cluster.ecs.call("CreateCluster", json!({ "clusterName": cluster.name })).await?;
    Ok(())
}

/// Waits until the task is on record again, and RUNNING; what DescribeTasks says of it.
async fn adopted(cluster: &Cluster, task: &str) -> Result<Value> {
    cluster.until(task, "RUNNING", PATIENCE).await
}

async fn ends_when_told(cluster: &Cluster, task: &str) -> Result<()> {
    let (id, _) = cluster.process_of(task).await?;
    cluster.stop(task, Some("enough")).await?;
    let stopped = cluster.until(task, "STOPPED", PATIENCE).await?;
    ensure!(stopped["stoppedReason"] == "enough" && stopped["containers"][0]["exitCode"] == 0, "{stopped}");
    let running = cluster.engine.inspect(&id).await?.state.and_then(|state| state.running);
    ensure!(running == Some(false), "its container is {running:?}");
    Ok(())
}

#[tokio::test]
async fn records_that_are_replaced_by_none_end_no_task() -> Result<()> {
    let mut cluster = Cluster::start().await?;
    let (web, before) = cluster.running(server("web")).await?;
    let (db, _) = cluster.running(checked("db")).await?;
    healthy(&cluster, &db).await?;
    let processes = [cluster.process_of(&web).await?, cluster.process_of(&db).await?];
    let port = host_port(&before, "one", 8080, "tcp")?;

    replace(&mut cluster).await?;
    // The cluster is not there either. The agent says so, goes on, and comes back once it is.
    eventually(PATIENCE, "the agent tells why it is not connected", || async {
        let told = cluster.agent.typed(&["status"]).await?;
        Ok(told.contains("Cluster not found").then_some(()))
    })
    .await?;
    ensure!(!cluster.agent.has_ended()?, "it looks after its tasks: {}", cluster.agent.output());
    make_cluster(&cluster).await?;
    cluster.registered().await?;

    let after = adopted(&cluster, &web).await?;
    assert_eq!(host_port(&after, "one", 8080, "tcp")?, port);
    for (member, value) in [("startedBy", "adopted"), ("desiredStatus", "RUNNING")] {
        assert_eq!(after[member], value);
    }
    for member in ["taskDefinitionArn", "containerInstanceArn", "group", "cpu", "memory", "startedAt"] {
        assert_eq!(after[member], before[member], "{member}");
    }
    assert_eq!(after["containers"][0]["containerArn"], before["containers"][0]["containerArn"]);
    assert_eq!(after["containers"][0]["runtimeId"], before["containers"][0]["runtimeId"]);
    adopted(&cluster, &db).await?;
    healthy(&cluster, &db).await?;
    let listed = cluster.ecs.call("ListTasks", json!({ "cluster": cluster.name })).await?;
    assert_eq!(listed["taskArns"].as_array().map(Vec::len), Some(2), "{listed}");
    let instance = cluster.instance().await?;
    assert_eq!(instance["runningTasksCount"], 2, "{instance}");
    let remaining = |of: &str| {
        let all = instance[of].as_array().cloned().unwrap_or_default();
        all.into_iter().find(|one| one["name"] == "MEMORY").and_then(|one| one["integerValue"].as_i64())
    };
    let taken = remaining("registeredResources").zip(remaining("remainingResources")).map(|(a, b)| a - b);
    assert_eq!(taken, Some(128), "they count where new ones are placed: {instance}");
    assert_eq!([cluster.process_of(&web).await?, cluster.process_of(&db).await?], processes);
    ensure!(demo_answer(port, "/").await?.starts_with("hello"));
    let told = cluster.control_plane.output();
    ensure!(told.contains("took up what an estranged host runs"), "{told}");

    // Their records are as good as any: they outlast the control plane, and the agent.
    cluster.control_plane.kill().await?;
    cluster.control_plane.start_again().await?;
    cluster.registered().await?;
    cluster.agent.kill().await?;
    cluster.disconnected().await?;
    cluster.agent.start_again()?;
    cluster.registered().await?;
    assert_eq!([cluster.process_of(&web).await?, cluster.process_of(&db).await?], processes);
    ends_when_told(&cluster, &web).await?;
    ends_when_told(&cluster, &db).await
}

#[tokio::test]
async fn records_that_are_put_back_end_no_task_that_is_newer() -> Result<()> {
    let mut cluster = Cluster::start().await?;
    let (old, _) = cluster.running(server("old")).await?;
    let (ended, _) = cluster.running(server("ended")).await?;
    let records = cluster.control_plane.records();
    let copy = records.with_extension("copy");

    // A copy of the same life of the control plane, and of the one before: the file is the same to the last byte.
    cluster.control_plane.kill().await?;
    fs::copy(&records, &copy)?;
    cluster.control_plane.start_again().await?;
    cluster.registered().await?;
    let (new, _) = cluster.running(server("new")).await?;
    ends_when_told(&cluster, &ended).await?;
    let processes = [cluster.process_of(&old).await?, cluster.process_of(&new).await?];

    cluster.control_plane.kill().await?;
    fs::copy(&copy, &records)?;
    cluster.control_plane.start_again().await?;
    cluster.registered().await?;
    assert_eq!(adopted(&cluster, &new).await?["startedBy"], "adopted");
    adopted(&cluster, &old).await?;
    // What was told once already is told again where the records are older.
    cluster.until(&ended, "STOPPED", PATIENCE).await?;
    assert_eq!([cluster.process_of(&old).await?, cluster.process_of(&new).await?], processes);

    // A copy that was taken while the control plane ran, between two tasks of one session.
    fs::copy(&records, &copy)?;
    let (newest, _) = cluster.running(server("newest")).await?;
    let before = cluster.process_of(&newest).await?;
    cluster.control_plane.kill().await?;
    fs::copy(&copy, &records)?;
    cluster.control_plane.start_again().await?;
    cluster.registered().await?;
    adopted(&cluster, &newest).await?;
    assert_eq!(cluster.process_of(&newest).await?, before);
    for task in [&old, &new, &newest] {
        ends_when_told(&cluster, task).await?;
    }
    Ok(())
}

#[tokio::test]
async fn an_end_that_is_newer_than_the_records_is_told_again() -> Result<()> {
    let mut cluster = Cluster::start().await?;
    let (ended, _) = cluster.running(server("ended")).await?;
    let records = cluster.control_plane.records();
    let copy = records.with_extension("copy");
    // Nothing but this end and its order comes after the copy.
    fs::copy(&records, &copy)?;
    ends_when_told(&cluster, &ended).await?;
    cluster.control_plane.kill().await?;
    fs::copy(&copy, &records)?;
    cluster.control_plane.start_again().await?;
    cluster.registered().await?;
    let task = cluster.until(&ended, "STOPPED", PATIENCE).await?;
    assert_eq!(task["containers"][0]["exitCode"], 0, "{task}");
    assert_eq!(cluster.engine.containers_of_task(&ended).await?.len(), 1, "it was begun anew");
    Ok(())
}

#[tokio::test]
async fn an_agent_that_dies_in_between_ends_no_task_either() -> Result<()> {
    let mut cluster = Cluster::start().await?;
    let (arn, _) = cluster.running(server("web")).await?;
    let before = cluster.process_of(&arn).await?;
    for lost in [false, true] {
        cluster.agent.kill().await?;
        if lost {
            // It has nothing but what its containers carry, and its control plane has nothing at all.
            cluster.agent.lose_state()?;
        }
        replace(&mut cluster).await?;
        make_cluster(&cluster).await?;
        cluster.agent.start_again()?;
        cluster.registered().await?;
        adopted(&cluster, &arn).await?;
        assert_eq!(cluster.process_of(&arn).await?, before, "lost: {lost}");
    }
    ends_when_told(&cluster, &arn).await
}
