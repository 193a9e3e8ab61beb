//! Promise: the network modes connect containers as ECS says they do.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use berth_tests::cluster::{container, demo_answer, host_port};
use berth_tests::expect::PATIENCE;
use berth_tests::{Cluster, demo, eventually};
use serde_json::{Value, json};
use tokio::net::{TcpListener, UdpSocket};

/// A server on 8080 with these port mappings.
fn bridge(mappings: Value) -> Value {
    let one = demo::container_with("one", &[], json!({ "portMappings": mappings }));
    demo::task("net", "bridge", json!([one]))
}

/// A TCP port that is free right now.
async fn free_port() -> Result<u16> {
    Ok(TcpListener::bind(("0.0.0.0", 0)).await?.local_addr()?.port())
}

#[tokio::test]
async fn bridge_maps_a_static_port() -> Result<()> {
    let cluster = Cluster::start().await?;
    let port = free_port().await?;
    let mappings = json!([{ "containerPort": 8080, "hostPort": port }]);
    let (_, task) = cluster.running(bridge(mappings)).await?;
    assert_eq!(host_port(&task, "one", 8080, "tcp")?, port);
    ensure!(demo_answer(port, "/").await?.starts_with("hello"));
    Ok(())
}

#[tokio::test]
async fn bridge_chooses_a_dynamic_port_for_each_of_two_tasks() -> Result<()> {
    let cluster = Cluster::start().await?;
    let mappings = json!([{ "containerPort": 8080, "hostPort": 0 }]);
    let (_, first) = cluster.running(bridge(mappings.clone())).await?;
    let (_, second) = cluster.running(bridge(mappings)).await?;
    let ports = (host_port(&first, "one", 8080, "tcp")?, host_port(&second, "one", 8080, "tcp")?);
    ensure!(ports.0 != ports.1, "both tasks have {}", ports.0);
    for port in [ports.0, ports.1] {
        ensure!(demo_answer(port, "/").await?.starts_with("hello"));
    }
    Ok(())
}

#[tokio::test]
async fn bridge_maps_udp() -> Result<()> {
    let cluster = Cluster::start().await?;
    let mapping = json!({ "portMappings": [{ "containerPort": 5353, "hostPort": 0, "protocol": "udp" }] });
    let one = demo::container_with("one", &["listen-udp", "5353"], mapping);
    let (_, task) = cluster.running(demo::task("udp", "bridge", json!([one]))).await?;
    let port = host_port(&task, "one", 5353, "udp")?;
    let socket = UdpSocket::bind(("127.0.0.1", 0)).await?;
    socket.connect(("127.0.0.1", port)).await?;
    let echo = eventually(PATIENCE, "a datagram comes back", || async {
        socket.send(b"ahoy").await?;
        let mut buffer = [0; 16];
        let length = tokio::time::timeout(Duration::from_millis(200), socket.recv(&mut buffer)).await??;
        Ok(Some(buffer[..length].to_vec()))
    })
    .await?;
    assert_eq!(echo, b"ahoy");
    Ok(())
}

#[tokio::test]
async fn bridge_maps_a_range() -> Result<()> {
    let cluster = Cluster::start().await?;
    let (_, task) = cluster.running(bridge(json!([{ "containerPortRange": "8078-8081" }]))).await?;
    let bindings = &container(&task, "one")?["networkBindings"][0];
    assert_eq!(bindings["containerPortRange"], "8078-8081");
    let range = bindings["hostPortRange"].as_str().with_context(|| format!("no hostPortRange: {task}"))?;
    let (first, last) = range.split_once('-').context("a range has two ends")?;
    let (first, last): (u16, u16) = (first.parse()?, last.parse()?);
    assert_eq!(last - first, 3);
    // 8080 is the third of the range.
    ensure!(demo_answer(first + 2, "/").await?.starts_with("hello"));
    Ok(())
}

#[tokio::test]
async fn bridge_links_reach_the_other_container_by_name() -> Result<()> {
    let cluster = Cluster::start().await?;
    let server = demo::container("server", &[]);
    let client = demo::container_with(
        "client",
        &["connect", "backend", "8080", "--for", "10000"],
        json!({ "links": ["server:backend"] }),
    );
    let (_, task) = cluster.stopped(demo::task("links", "bridge", json!([server, client]))).await?;
    assert_eq!(container(&task, "client")?["exitCode"], 0);
    Ok(())
}

#[tokio::test]
async fn host_mode_is_the_hosts_own_stack() -> Result<()> {
    let cluster = Cluster::start().await?;
    let port = free_port().await?;
    let one = demo::container_with(
        "one",
        &["serve", "--port", &port.to_string()],
        json!({ "portMappings": [{ "containerPort": port }] }),
    );
    let (_, task) = cluster.running(demo::task("hosted", "host", json!([one]))).await?;
    let answer = demo_answer(port, "/").await?;
    let hostname = std::fs::read_to_string("/proc/sys/kernel/hostname")?;
    ensure!(answer.contains(hostname.trim()), "{answer:?} is not of host {hostname}");
    assert_eq!(host_port(&task, "one", port, "tcp")?, port);
    Ok(())
}

#[tokio::test]
async fn none_mode_reaches_nothing_but_itself() -> Result<()> {
    let cluster = Cluster::start().await?;
    let port = cluster.control_plane.api.port().to_string();
    // Not the host, by any way: there is no route.
    let outside = demo::container("outside", &["connect", "172.17.0.1", &port]);
    let (arn, task) = cluster.stopped(demo::task("alone", "none", json!([outside]))).await?;
    assert_eq!(container(&task, "outside")?["exitCode"], 1);
    let said = cluster.engine.logs(&cluster.engine.id_of(&arn, "outside").await?).await?;
    ensure!(said.contains("unreachable"), "{said:?}");
    assert_eq!(container(&task, "outside")?["networkBindings"], json!([]));
    Ok(())
}
