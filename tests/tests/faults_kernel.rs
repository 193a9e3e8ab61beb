//! Delays and losses that tasks ask for need a kernel with netem: tests/scripts/vm.sh runs these on one.

use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use berth_tests::endpoint::Inside;
use berth_tests::expect::{PATIENCE, here};
use berth_tests::vpc::{self, Vpc, address};
use berth_tests::{Cluster, Endpoint, demo, eventually};
use serde_json::{Value, json};

/// Far more than a connection takes on an emulated processor.
const DELAY_MS: u64 = 1500;

/// How long a connection to there takes from inside; `None` for one that does not come about.
async fn takes(inside: &Inside, at: SocketAddr, patience: Duration) -> Result<Option<Duration>> {
    inside
        .run(move || {
            let began = Instant::now();
            Ok(TcpStream::connect_timeout(&at, patience).is_ok().then(|| began.elapsed()))
        })
        .await
}

async fn ask(inside: &Inside, what: &str, body: &Value) -> Result<(u16, Value)> {
    let base = inside.environment.get("ECS_AGENT_URI").context("ECS_AGENT_URI")?;
    let (status, answer) = inside.post(&format!("{base}/fault/v1/{what}"), &body.to_string()).await?;
    Ok((status, serde_json::from_str(&answer).with_context(|| answer.clone())?))
}

fn status(word: &str) -> (u16, Value) {
    (200, json!({ "Status": word }))
}

#[tokio::test]
async fn packets_come_late_or_never_until_that_is_stopped_or_the_task_ends() -> Result<()> {
    let endpoint = Endpoint::new()?;
    let own = endpoint.address();
    let env = [("BERTH_ENDPOINT_ADDRESS", own.as_str()), vpc::ENV[0]];
    let mut cluster = Cluster::start_vpc(Vpc::new("veth").file(), &env).await?;
    let before = vpc::traces(cluster.agent.data_dir())?;
    let one = vpc::task(
        "late",
        json!([
            demo::container("app", &["sleep", "3600"]),
            demo::container("web", &["serve", "--port", "8080"])
        ]),
    );
    let one = demo::merged(one, &json!({ "enableFaultInjection": true }));
    let (mut arns, mut insides, mut ats) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..2 {
        let arn = vpc::run(&cluster, one.clone(), &["sg-open"]).await?;
        insides.push(Inside::of(&cluster, &arn, "app").await?);
        ats.push(SocketAddr::new(address(&cluster.task(&arn).await?)?.parse()?, 8080));
        arns.push(arn);
    }
    let (inside, there) = (&insides[0], ats[1]);
    let patience = here(Duration::from_millis(4 * DELAY_MS));
    eventually(PATIENCE, "they reach each other", || async { takes(inside, there, patience).await }).await?;

    let late = json!({
        "DelayMilliseconds": DELAY_MS, "JitterMilliseconds": 0, "Sources": ["0.0.0.0/0"],
    });
    assert_eq!(ask(inside, "network-latency/start", &late).await?, status("running"));
    let took = takes(inside, there, patience).await?.context("it did not come about")?;
    ensure!(took >= Duration::from_millis(DELAY_MS), "{took:?}");
    let lossy = json!({ "LossPercent": 100, "Sources": [there.ip()] });
    for what in ["network-latency/start", "network-packet-loss/start"] {
        let body = if what.contains("loss") { &lossy } else { &late };
        let running = json!({ "Error": "There is already one network latency fault running" });
        assert_eq!(ask(inside, what, body).await?, (409, running));
    }
    assert_eq!(ask(inside, "network-packet-loss/status", &json!({})).await?, status("not-running"));
    assert_eq!(ask(inside, "network-packet-loss/stop", &json!({})).await?, status("stopped"));
    // The next agent finds it in the kernel.
    cluster.agent.kill().await?;
    cluster.disconnected().await?;
    cluster.agent.start_again()?;
    cluster.registered().await?;
    let found = eventually(PATIENCE, "the endpoint answers", || async {
        Ok(Some(ask(inside, "network-latency/status", &json!({})).await?))
    });
    assert_eq!(found.await?, status("running"));
    assert_eq!(ask(inside, "network-latency/stop", &json!({})).await?, status("stopped"));
    assert_eq!(ask(inside, "network-latency/status", &json!({})).await?, status("not-running"));
    let took = takes(inside, there, patience).await?.context("it did not come about")?;
    ensure!(took < Duration::from_millis(DELAY_MS), "{took:?}");

    // Who is spared is, of those who are meant.
    let spared = demo::merged(late, &json!({ "SourcesToFilter": [there.ip()] }));
    assert_eq!(ask(inside, "network-latency/start", &spared).await?, status("running"));
    let took = takes(inside, there, patience).await?.context("it did not come about")?;
    ensure!(took < Duration::from_millis(DELAY_MS), "{took:?}");
    assert_eq!(ask(inside, "network-latency/stop", &json!({})).await?, status("stopped"));

    assert_eq!(ask(inside, "network-packet-loss/start", &lossy).await?, status("running"));
    ensure!(takes(inside, there, Duration::from_secs(2)).await?.is_none(), "{there} was reached");
    assert_eq!(ask(inside, "network-packet-loss/status", &json!({})).await?, status("running"));

    for arn in &arns {
        cluster.stop(arn, None).await?;
    }
    for arn in &arns {
        cluster.until(arn, "STOPPED", PATIENCE).await?;
    }
    vpc::nothing_more_than(&before, &cluster).await
}

/// In host mode it is the host's own interface, which is whole again when the task ends.
#[tokio::test]
async fn the_hosts_interface_is_whole_again_after_the_task() -> Result<()> {
    let endpoint = Endpoint::new()?;
    let own = endpoint.address();
    let cluster = Cluster::start_with(&[("BERTH_ENDPOINT_ADDRESS", own.as_str())]).await?;
    let interface = berth_agent::host::default_interface().context("no default route")?;
    let disciplines = || -> Result<String> {
        let shown = std::process::Command::new("tc").args(["qdisc", "show", "dev", &interface]).output()?;
        Ok(String::from_utf8(shown.stdout)?)
    };
    let before = disciplines()?;
    let one = demo::task("late", "host", json!([demo::container("app", &["sleep", "3600"])]));
    let one = demo::merged(one, &json!({ "enableFaultInjection": true }));
    let (arn, _) = cluster.running(one).await?;
    let inside = Inside::of(&cluster, &arn, "app").await?;
    // An address for documentation: nobody's packets are lost.
    let lossy = json!({ "LossPercent": 50, "Sources": ["192.0.2.1"], "SourcesToFilter": ["192.0.2.2"] });
    assert_eq!(ask(&inside, "network-packet-loss/start", &lossy).await?, status("running"));
    ensure!(disciplines()?.contains("netem") && disciplines()?.contains("loss 50%"), "{}", disciplines()?);
    cluster.stop(&arn, None).await?;
    cluster.until(&arn, "STOPPED", PATIENCE).await?;
    eventually(PATIENCE, "the interface is whole", || async {
        let now = disciplines()?;
        ensure!(now == before, "{now}");
        Ok(Some(()))
    })
    .await
}
