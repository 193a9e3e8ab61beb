//! Promise: what is wrong is refused at the door with ECS's own words, and nothing breaks by it.

use anyhow::{Result, ensure};
use berth_tests::cluster::container;
use berth_tests::expect::PATIENCE;
use berth_tests::{Agent, Cluster, ControlPlane, EcsError, demo};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;

/// The refusal has that class, and that text somewhere in its message.
fn refused(answer: Result<Value, EcsError>, code: &str, part: &str) -> Result<()> {
    match answer {
        Err(EcsError::Refused { code: c, message, .. }) if c == code && message.contains(part) => Ok(()),
        other => anyhow::bail!("expected {code} with {part:?}, got {other:?}"),
    }
}

async fn refuses_definition(definition: Value, code: &str, part: &str) -> Result<()> {
    let control_plane = ControlPlane::start().await?;
    refused(control_plane.ecs().call("RegisterTaskDefinition", definition).await, code, part)
}

fn many(count: usize) -> Value {
    (0..count).map(|n| demo::container(&format!("c{n}"), &[])).collect()
}

// === requests ===

#[tokio::test]
async fn a_body_that_is_no_json() -> Result<()> {
    let control_plane = ControlPlane::start().await?;
    let ecs = control_plane.ecs();
    refused(ecs.call_raw("ListClusters", "{\"max").await, "SerializationException", "")?;
    refused(ecs.call_raw("ListClusters", vec![0xff, 0xfe]).await, "SerializationException", "")?;
    ecs.call("ListClusters", json!({})).await?;
    Ok(())
}

#[tokio::test]
async fn an_operation_that_is_not_known() -> Result<()> {
    let control_plane = ControlPlane::start().await?;
    refused(control_plane.ecs().call("MakeCoffee", json!({})).await, "UnknownOperationException", "")
}

#[tokio::test]
async fn a_member_of_the_wrong_type() -> Result<()> {
    let control_plane = ControlPlane::start().await?;
    let input = json!({ "taskDefinition": "any", "count": "two" });
    refused(control_plane.ecs().call("RunTask", input).await, "SerializationException", "")
}

#[tokio::test]
async fn a_body_that_is_too_large() -> Result<()> {
    let control_plane = ControlPlane::start().await?;
    let ecs = control_plane.ecs();
    let answer = ecs.call_raw("ListClusters", vec![b' '; 64 << 20]).await;
    ensure!(answer.is_err(), "64 MiB were taken");
    ecs.call("ListClusters", json!({})).await?;
    Ok(())
}

// === definitions ===

#[tokio::test]
async fn a_definition_without_containers() -> Result<()> {
    refuses_definition(
        demo::task("f", "bridge", json!([])),
        "ClientException",
        "Container list cannot be empty.",
    )
    .await
}

#[tokio::test]
async fn a_definition_without_any_memory() -> Result<()> {
    let one = json!({ "name": "one", "image": demo::IMAGE });
    let part = "At least one of 'memory' or 'memoryReservation' must be specified.";
    refuses_definition(demo::task("f", "bridge", json!([one])), "ClientException", part).await
}

#[tokio::test]
async fn a_definition_over_64_kib() -> Result<()> {
    let big = json!({ "environment": [{ "name": "BIG", "value": "x".repeat(70 << 10) }] });
    let one = demo::container_with("one", &[], big);
    refuses_definition(demo::task("f", "bridge", json!([one])), "ClientException", "").await
}

#[tokio::test]
async fn eleven_containers() -> Result<()> {
    refuses_definition(demo::task("f", "bridge", many(11)), "ClientException", "Too many containers.").await
}

#[tokio::test]
async fn two_containers_of_one_name() -> Result<()> {
    let twice = json!([demo::container("one", &[]), demo::container("one", &[])]);
    refuses_definition(demo::task("f", "bridge", twice), "ClientException", "unique").await
}

#[tokio::test]
async fn host_mode_with_a_host_port_that_differs() -> Result<()> {
    let ports = json!({ "portMappings": [{ "containerPort": 8080, "hostPort": 9090 }] });
    let one = demo::container_with("one", &[], ports);
    let part = "the host ports and container ports in port mappings must match";
    refuses_definition(demo::task("f", "host", json!([one])), "ClientException", part).await
}

#[tokio::test]
async fn none_mode_with_a_port() -> Result<()> {
    let one = demo::container_with("one", &[], json!({ "portMappings": [{ "containerPort": 8080 }] }));
    refuses_definition(demo::task("f", "none", json!([one])), "ClientException", "").await
}

#[tokio::test]
async fn no_essential_container() -> Result<()> {
    let one = demo::container_with("one", &[], json!({ "essential": false }));
    let part = "Task definition doesn't have any essential container.";
    refuses_definition(demo::task("f", "bridge", json!([one])), "ClientException", part).await
}

// === tasks ===

#[tokio::test]
async fn a_task_of_a_definition_that_is_not_there() -> Result<()> {
    let cluster = Cluster::start().await?;
    let input = json!({ "cluster": cluster.name, "taskDefinition": "nothing" });
    refused(cluster.ecs.call("RunTask", input).await, "ClientException", "")
}

#[tokio::test]
async fn a_task_in_a_cluster_that_is_not_there() -> Result<()> {
    let cluster = Cluster::start().await?;
    let definition = cluster.register(demo::task("f", "none", many(1))).await?;
    let input = json!({ "cluster": "nowhere", "taskDefinition": definition });
    refused(cluster.ecs.call("RunTask", input).await, "ClusterNotFoundException", "Cluster not found.")
}

#[tokio::test]
async fn a_task_that_is_too_large_for_the_host() -> Result<()> {
    let cluster = Cluster::start().await?;
    let large = demo::merged(demo::task("f", "none", many(1)), &json!({ "memory": "100000000" }));
    let definition = cluster.register(large).await?;
    let input = json!({ "cluster": cluster.name, "taskDefinition": definition });
    let answer = cluster.ecs.call("RunTask", input).await?;
    assert_eq!(answer["tasks"], json!([]));
    assert_eq!(answer["failures"][0]["reason"], "RESOURCE:MEMORY");
    Ok(())
}

#[tokio::test]
async fn an_image_that_does_not_exist() -> Result<()> {
    let cluster = Cluster::start().await?;
    // A registry that refuses at once: nothing listens on that port of the loopback address.
    let missing = json!({ "image": "127.0.0.1:9/no/such-image:1" });
    let one = demo::container_with("one", &[], missing);
    let (_, task) = cluster.stopped(demo::task("f", "none", json!([one]))).await?;
    assert_eq!(task["stopCode"], "TaskFailedToStart");
    let reason = container(&task, "one")?["reason"].as_str().unwrap_or_default();
    ensure!(reason.starts_with("CannotPullContainerError"), "{reason:?}");
    ensure!(task["stoppedReason"].as_str().is_some_and(|r| r.contains("CannotPullContainerError")), "{task}");
    Ok(())
}

#[tokio::test]
async fn a_program_that_is_not_in_the_image() -> Result<()> {
    let cluster = Cluster::start().await?;
    let one = demo::container_with("one", &[], json!({ "entryPoint": ["/no/such/program"] }));
    let (_, task) = cluster.stopped(demo::task("f", "none", json!([one]))).await?;
    assert_eq!(task["stopCode"], "TaskFailedToStart");
    let reason = container(&task, "one")?["reason"].as_str().unwrap_or_default();
    ensure!(reason.starts_with("CannotStartContainerError"), "{reason:?}");
    Ok(())
}

#[tokio::test]
async fn a_port_that_somebody_else_has() -> Result<()> {
    let cluster = Cluster::start().await?;
    let other = TcpListener::bind(("0.0.0.0", 0)).await?;
    let port = other.local_addr()?.port();
    let ports = json!({ "portMappings": [{ "containerPort": 8080, "hostPort": port }] });
    let one = demo::container_with("one", &[], ports);
    let (_, task) = cluster.stopped(demo::task("f", "bridge", json!([one]))).await?;
    assert_eq!(task["stopCode"], "TaskFailedToStart");
    let reason = container(&task, "one")?["reason"].as_str().unwrap_or_default();
    ensure!(reason.contains(&port.to_string()), "the reason does not name port {port}: {reason:?}");
    Ok(())
}

// === the agent's own door ===

#[tokio::test]
async fn a_control_plane_that_is_away_is_waited_for() -> Result<()> {
    let mut cluster = Cluster::start().await?;
    let (arn, _) = cluster.running(demo::task("f", "none", many(1))).await?;
    cluster.agent.kill().await?;
    cluster.control_plane.kill().await?;
    cluster.agent.start_again()?;
    cluster.control_plane.start_again().await?;
    cluster.registered().await?;
    assert_eq!(cluster.until(&arn, "RUNNING", PATIENCE).await?["lastStatus"], "RUNNING");
    Ok(())
}

#[tokio::test]
async fn a_control_plane_that_talks_garbage_does_not_end_the_agent() -> Result<()> {
    let garbage = TcpListener::bind(("127.0.0.1", 0)).await?;
    let mut agent = Agent::start("berth-test-garbage", garbage.local_addr()?, &[])?;
    // Three connections, so it came back after two disappointments.
    for _ in 0..3 {
        let accepted = tokio::time::timeout(PATIENCE, garbage.accept()).await;
        let (mut stream, _) =
            accepted.map_err(|_| anyhow::anyhow!("the agent gave up:\n{}", agent.output()))??;
        stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n\x00\xff this is no gRPC").await?;
    }
    assert_eq!(agent.terminate().await?.code(), Some(0));
    Ok(())
}

#[tokio::test]
async fn an_agent_with_wrong_values_names_all_of_them() -> Result<()> {
    let control_plane = ControlPlane::start().await?;
    let wrong = [("ECS_RESERVED_MEMORY", "plenty"), ("ECS_IMAGE_PULL_BEHAVIOR", "sometimes")];
    let mut agent = Agent::start("default", control_plane.agents, &wrong)?;
    let status = agent.end().await?;
    ensure!(!status.success(), "it started:\n{}", agent.output());
    let said = agent.output();
    for (name, value) in wrong {
        ensure!(said.contains(name) && said.contains(value), "{name}={value} is not named:\n{said}");
    }
    Ok(())
}
