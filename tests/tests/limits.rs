//! Promise: what a task may use is enforced by the kernel, as read from inside its containers and
//! from the task's own cgroup.

use anyhow::{Result, ensure};
use berth_tests::cluster::{container, demo_json, host_port};
use berth_tests::expect::{PATIENCE, slowness};
use berth_tests::{Cluster, demo};
use serde_json::{Value, json};

const MIB: i64 = 1 << 20;

/// A definition of one server with these members, and these of the task.
fn server(members: Value, task: &Value) -> Value {
    let ports = json!({ "portMappings": [{ "containerPort": 8080 }] });
    let one = demo::container_with("one", &[], demo::merged(ports, &members));
    demo::merged(demo::task("limits", "bridge", json!([one])), task)
}

async fn limits_inside(cluster: &Cluster, definition: Value) -> Result<(String, Value)> {
    let (arn, task) = cluster.running(definition).await?;
    let limits = demo_json(host_port(&task, "one", 8080, "tcp")?, "/limits").await?;
    Ok((arn, limits))
}

#[tokio::test]
async fn container_limits_are_read_back_inside() -> Result<()> {
    let cluster = Cluster::start().await?;
    let members = json!({ "cpu": 512, "memory": 96, "memoryReservation": 48 });
    let (_, limits) = limits_inside(&cluster, server(members, &json!({}))).await?;
    assert_eq!(limits["memoryLimitBytes"], 96 * MIB);
    assert_eq!(limits["memorySoftLimitBytes"], 48 * MIB);
    // Relative: shares, and no quota of its own.
    if limits["cgroupVersion"] == 1 {
        assert_eq!(limits["cpuShares"], 512);
    } else {
        assert_eq!(limits["cpuWeight"], 20);
    }
    assert_eq!(limits["cpuQuotaUs"], Value::Null);
    Ok(())
}

#[tokio::test]
async fn a_container_without_cpu_gets_the_least_shares() -> Result<()> {
    let cluster = Cluster::start().await?;
    let (_, limits) = limits_inside(&cluster, server(json!({}), &json!({}))).await?;
    if limits["cgroupVersion"] == 1 {
        assert_eq!(limits["cpuShares"], 2);
    } else {
        assert_eq!(limits["cpuWeight"], 1);
    }
    Ok(())
}

#[tokio::test]
async fn task_limits_bound_all_containers() -> Result<()> {
    let cluster = Cluster::start().await?;
    // No hard limit of its own: only the task's stands above it.
    let members = json!({ "memory": null, "memoryReservation": 64 });
    let definition = server(members, &json!({ "cpu": "512", "memory": "256" }));
    let (arn, limits) = limits_inside(&cluster, without_nulls(definition)).await?;
    if limits["cgroupVersion"] == 1 {
        assert_eq!(limits["memoryNarrowestBytes"], 256 * MIB);
        assert_eq!(cluster.task_cgroup("memory", &arn, "memory.limit_in_bytes")?, 256 * MIB);
        let quota = cluster.task_cgroup("cpu", &arn, "cpu.cfs_quota_us")?;
        let period = cluster.task_cgroup("cpu", &arn, "cpu.cfs_period_us")?;
        assert_eq!(quota * 2, period, "512 CPU units are half a CPU");
    } else {
        assert_eq!(cluster.task_cgroup("", &arn, "memory.max")?, 256 * MIB);
        assert_eq!(cluster.task_cgroup("", &arn, "cpu.max")?, 50_000, "of 100 ms");
    }
    Ok(())
}

/// `container_with` sets members; a null takes one away.
fn without_nulls(mut definition: Value) -> Value {
    for container in definition["containerDefinitions"].as_array_mut().into_iter().flatten() {
        if let Some(members) = container.as_object_mut() {
            members.retain(|_, value| !value.is_null());
        }
    }
    definition
}

#[tokio::test]
async fn a_task_gets_no_more_cpu_than_its_own() -> Result<()> {
    let cluster = Cluster::start().await?;
    // The bound comes into force when the container has started.
    let after = slowness().to_string();
    let one = demo::container("one", &["burn-cpu", "2", "--after", &after]);
    let definition = demo::merged(demo::task("burn", "none", json!([one])), &json!({ "cpu": "256" }));
    let (arn, _) = cluster.stopped(definition).await?;
    let said = cluster.engine.logs(&cluster.engine.id_of(&arn, "one").await?).await?;
    let had: i64 = number_after(&said, "cpu_ms=").unwrap_or_default();
    // A quarter of a CPU for two seconds is 500 ms; one period more at either end.
    ensure!((1..=700).contains(&had), "{had} ms of CPU in two seconds with a quarter of a CPU: {said:?}");
    Ok(())
}

fn number_after(text: &str, key: &str) -> Option<i64> {
    text.split_once(key)?.1.split_whitespace().next()?.parse().ok()
}

#[tokio::test]
async fn a_container_beyond_its_memory_is_killed_and_the_reason_says_so() -> Result<()> {
    let cluster = Cluster::start().await?;
    let one = demo::container_with("one", &["eat-memory", "128"], json!({ "memory": 32 }));
    let (_, task) = cluster.stopped(demo::task("eater", "none", json!([one]))).await?;
    let one = container(&task, "one")?;
    assert_eq!(one["exitCode"], 137);
    let reason = one["reason"].as_str().unwrap_or_default();
    ensure!(reason.starts_with("OutOfMemoryError: Container killed due to memory usage"), "{reason:?}");
    ensure!(reason.contains("(limit 32 MiB, peak of the task 3"), "no limit or no peak: {reason:?}");
    assert_eq!(task["stopCode"], "EssentialContainerExited");
    Ok(())
}

#[tokio::test]
async fn the_tasks_cgroup_is_gone_when_the_task_is_stopped() -> Result<()> {
    let cluster = Cluster::start().await?;
    let definition = server(json!({}), &json!({ "cpu": "256", "memory": "128" }));
    let (arn, _) = cluster.running(definition).await?;
    let id = arn.rsplit('/').next().unwrap_or_default();
    let folder = cluster.agent.task_cgroup("memory", id);
    ensure!(folder.is_dir(), "{} is not there while the task runs", folder.display());
    cluster.stop(&arn, None).await?;
    cluster.until(&arn, "STOPPED", PATIENCE).await?;
    ensure!(!folder.exists(), "{} outlived its task", folder.display());
    Ok(())
}
