//! A launch as users see it: RunTask of the real control plane, until DescribeTasks says RUNNING.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use berth_tests::bench::process::BenchControlPlane;
use berth_tests::bench::site::{COMMAND, MEMORY_MIB};
use berth_tests::bench::{BenchAgent, Row, Samples};
use berth_tests::{Ecs, demo, eventually};
use serde_json::{Value, json};

use crate::{Bench, PATIENCE};

/// Between two questions; no event tells a user.
const PAUSE: Duration = Duration::from_millis(2);

pub(crate) async fn launch(bench: &mut Bench) -> Result<()> {
    let cluster = bench.site.cluster("api");
    let control_plane = BenchControlPlane::start().await?;
    let ecs = Ecs::new(control_plane.api);
    ecs.call("CreateCluster", json!({ "clusterName": cluster })).await?;
    let mut agent = BenchAgent::start(&cluster, control_plane.agents, &[])?;
    let input = json!({ "cluster": cluster });
    let connected = eventually(PATIENCE, "the agent is connected", || async {
        let answer = ecs.call("DescribeClusters", json!({ "clusters": [input["cluster"]] })).await?;
        let registered = answer["clusters"][0]["registeredContainerInstancesCount"] == 1;
        Ok(registered.then_some(()))
    });
    agent.while_alive(connected).await?;
    let definition = json!({
        "family": cluster, "networkMode": "host", "containerDefinitions": [{
            "name": "one", "image": demo::IMAGE, "essential": true, "memory": MEMORY_MIB, "command": COMMAND,
        }],
    });
    ecs.call("RegisterTaskDefinition", definition).await?;

    let raw = &bench.site.raw;
    let (mut floor, mut took) = (Samples::default(), Samples::default());
    for round in 0..=bench.rounds(20, 5) {
        let (ids, launched) = raw.launch(&[bench.site.body("host", &bench.site.place())], 1).await?;
        raw.remove_all(&ids).await?;
        let began = Instant::now();
        let run = eventually(PATIENCE, "RunTask places the task", || async {
            let answer =
                ecs.call("RunTask", json!({ "cluster": cluster, "taskDefinition": cluster })).await?;
            Ok(answer["tasks"][0]["taskArn"].as_str().map(str::to_owned))
        });
        let arn = run.await?;
        until(&ecs, &cluster, &arn, "RUNNING").await?;
        let elapsed = began.elapsed();
        ecs.call("StopTask", json!({ "cluster": cluster, "task": arn })).await?;
        until(&ecs, &cluster, &arn, "STOPPED").await?;
        if round > 0 {
            floor.push(launched);
            took.push(elapsed);
        }
    }
    agent.kill().await?;
    bench.site.clear(&cluster).await?;
    let added = took.less(&floor);
    bench.report.add(
        Row::new("RunTask -> RUNNING, host")
            .plain(format!("{:+.1} (p95 {:.1}) ms, floor {:.1}", added.median(), added.p95(), floor.median()))
            .samples("floor_ms", &floor)
            .samples("api_ms", &took)
            .samples("added_ms", &added),
    );
    Ok(())
}

async fn until(ecs: &Ecs, cluster: &str, arn: &str, status: &str) -> Result<()> {
    let began = Instant::now();
    loop {
        let answer = ecs.call("DescribeTasks", json!({ "cluster": cluster, "tasks": [arn] })).await?;
        let task: &Value = &answer["tasks"][0];
        if task["lastStatus"] == status {
            return Ok(());
        }
        if task["lastStatus"] == "STOPPED" || began.elapsed() > PATIENCE {
            bail!("{arn} was to be {status}: {task}");
        }
        tokio::time::sleep(PAUSE).await;
    }
}
