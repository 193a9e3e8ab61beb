//! Promise: on the host, one command says how the agent is, what its tasks wait for, what happened to each,
//! and what a container has said.

use anyhow::{Result, ensure};
use berth_tests::cluster::container;
use berth_tests::expect::PATIENCE;
use berth_tests::{Cluster, demo, eventually};
use serde_json::json;

/// Checks that the lines come in that order, others between them.
fn in_order(text: &str, parts: &[&str]) -> Result<()> {
    let mut rest = text;
    for part in parts {
        let (_, after) =
            rest.split_once(part).ok_or_else(|| anyhow::anyhow!("{part:?} is not next in:\n{text}"))?;
        rest = after;
    }
    Ok(())
}

/// What is told of a task, once it has that part.
async fn explained(cluster: &Cluster, task: &str, part: &str) -> Result<String> {
    eventually(PATIENCE, format!("{part:?} is told"), || async {
        let text = cluster.agent.typed(&["explain", task]).await?;
        ensure!(text.contains(part), "{text}");
        Ok(Some(text))
    })
    .await
}

#[tokio::test]
async fn the_life_of_a_task_is_told_in_order() -> Result<()> {
    let cluster = Cluster::start().await?;
    let mut definition = demo::task("life", "bridge", json!([demo::container("app", &["sleep", "3600"])]));
    definition["cpu"] = json!("256");
    let task = cluster.run(definition).await?;
    cluster.until(&task, "RUNNING", PATIENCE).await?;
    cluster.stop(&task, Some("seen enough")).await?;
    cluster.until(&task, "STOPPED", PATIENCE).await?;
    let text = explained(&cluster, &task, "is STOPPED").await?;
    in_order(
        &text,
        &[
            "came from the control plane: life:1, network mode bridge",
            "has its share of the host",
            "wants its cgroup",
            "container app is made after ",
            "container app runs after ",
            "has its CPU bound after ",
            "is RUNNING",
            "is to stop: seen enough (UserInitiated)",
            "container app ended with exit code ",
            "has given back its cgroup after ",
            "is STOPPED",
        ],
    )?;
    // By the beginning of its id, and after a restart of the agent.
    let id = task.rsplit('/').next().unwrap_or_default();
    assert_eq!(cluster.agent.typed(&["explain", &id[..8]]).await?, text);
    let unknown = cluster.agent.typed(&["explain", "ffffffff"]).await.unwrap_err().to_string();
    ensure!(unknown.contains("nothing is known here of a task ffffffff"), "{unknown}");
    Ok(())
}

#[tokio::test]
async fn the_cause_of_an_end_is_told_with_the_last_lines() -> Result<()> {
    let cluster = Cluster::start().await?;
    let missing = demo::container_with("app", &[], json!({ "image": "127.0.0.1:1/nowhere:1" }));
    let cases = [
        (json!([missing]), "CannotPullContainerError", "the registry cannot be reached"),
        (
            json!([demo::container("app", &["no-such-command"])]),
            "container app ended with exit code 2",
            "container app said: ",
        ),
    ];
    for (containers, ending, cause) in cases {
        let (task, _) = cluster.stopped(demo::task("ends", "none", containers)).await?;
        let text = explained(&cluster, &task, cause).await?;
        ensure!(text.contains(ending), "{ending:?} is not in:\n{text}");
    }
    Ok(())
}

#[tokio::test]
async fn a_wait_is_told_with_its_reason() -> Result<()> {
    let cluster = Cluster::start().await?;
    let check = json!({ "command": ["CMD", "/berth-demo", "no-such-command"], "interval": 5, "retries": 10 });
    let db = demo::container_with("db", &["sleep", "3600"], json!({ "healthCheck": check }));
    let after = json!({ "dependsOn": [{ "containerName": "db", "condition": "HEALTHY" }] });
    let app = demo::container_with("app", &["sleep", "3600"], after);
    let task = cluster.run(demo::task("waits", "none", json!([db, app]))).await?;
    let text = explained(&cluster, &task, "container db runs").await?;
    in_order(&text, &["container app waits for container db to become HEALTHY", "container db runs after "])?;
    // The task's own account of it is there before the list's.
    eventually(PATIENCE, "the list says it as well", || async {
        let tasks = cluster.agent.typed(&["tasks"]).await?;
        let told = ["PENDING", "waits:1", "db", "RUNNING", "app", "waits for container db to become HEALTHY"];
        in_order(&tasks, &told).map(Some)
    })
    .await?;
    // With the container, and not with the one that runs.
    eventually(PATIENCE, "whoever asks the control plane hears of it", || async {
        let told = cluster.task(&task).await?;
        let reason = |name: &str| Ok::<_, anyhow::Error>(container(&told, name)?["reason"].clone());
        Ok((reason("app")? == "container db to become HEALTHY" && reason("db")?.is_null()).then_some(()))
    })
    .await?;
    let status = |session: &'static str| {
        let cluster = &cluster;
        async move {
            let status = cluster.agent.typed(&["status"]).await?;
            let told = ["cluster", &cluster.name, session, "engine     answers", "tasks      1"];
            in_order(&status, &told).map(Some)
        }
    };
    status("session    connected\n").await?;
    let instance = cluster.instance().await?["containerInstanceArn"].take();
    let drain = json!({ "cluster": cluster.name, "containerInstances": [instance], "status": "DRAINING" });
    cluster.ecs.call("UpdateContainerInstancesState", drain).await?;
    eventually(PATIENCE, "the host says that it is drained", || async {
        status("session    connected, draining\n").await
    })
    .await
}

#[tokio::test]
async fn what_a_container_says_is_read_and_followed_to_its_end() -> Result<()> {
    let cluster = Cluster::start().await?;
    let (task, _) =
        cluster.running(demo::task("says", "bridge", json!([demo::container("web", &[])]))).await?;
    let said = eventually(PATIENCE, "it said something", || async {
        let said = cluster.agent.typed(&["logs", &task]).await?;
        Ok((!said.is_empty()).then_some(said))
    })
    .await?;
    assert_eq!(said, cluster.engine.logs(&cluster.engine.id_of(&task, "web").await?).await?);
    assert_eq!(cluster.agent.typed(&["logs", &task, "web", "--tail", "1"]).await?.lines().count(), 1);
    let unknown = cluster.agent.typed(&["logs", &task, "db"]).await.unwrap_err().to_string();
    ensure!(unknown.contains("there is no container db; which container of the task? web"), "{unknown}");
    let follow = ["logs", &task, "--follow"];
    let followed = cluster.agent.typed(&follow);
    let ended = async {
        cluster.stop(&task, None).await?;
        cluster.until(&task, "STOPPED", PATIENCE).await
    };
    let (followed, ended) = tokio::join!(followed, ended);
    ended?;
    ensure!(followed?.starts_with(&said), "what was said before is missing");
    Ok(())
}
