//! Tasks with an interface of their own, on a bridge of the agent's: launch, a further container, the
//! agent's own work, and the way down.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use berth_tests::bench::{Row, Samples, scripted};
use berth_tests::{Engine, eventually, vpc};

use crate::launch::raw_life;
use crate::{Bench, PATIENCE, Pair};

/// Between a launch and a stop: what a launch leaves to be done is done, the next holder included.
const SETTLE: Duration = Duration::from_millis(400);

/// What the agent says of its own work for a task.
const CONFIGURED: &str = "interface configured";
const CROWD: usize = 30;

#[derive(Default)]
struct Series {
    one: Samples,
    two: Samples,
    stop: Samples,
    bridge: Samples,
    host: Samples,
    host_stop: Samples,
}

pub(crate) async fn launch(bench: &mut Bench) -> Result<()> {
    let env = [("ECS_ENABLE_TASK_ENI", "true"), ("ECS_LOGLEVEL", "debug")];
    let pair = bench.pair("awsvpc", &env).await?;
    let mut series = Series::default();
    for round in 0..=bench.rounds(20, 5) {
        let (bridge, _) = raw_life(bench, "bridge").await?;
        let (host, host_stop) = raw_life(bench, "host").await?;
        let (one, stop) = life(bench, &pair, 1).await?;
        let (two, _) = life(bench, &pair, 2).await?;
        // The first round fills the caches and the pool.
        if round > 0 {
            series.bridge.push(bridge);
            series.host.push(host);
            series.host_stop.push(host_stop);
            series.one.push(one);
            series.two.push(two);
            series.stop.push(stop);
        }
    }
    let work = configured(&pair, 0);
    let alone = pair.agent.logged(CONFIGURED, "took_us").len();
    let mut ended = 2 * bench.rounds(20, 5);
    while ended < bench.rounds(1000, 100) {
        crowd(bench, &pair).await?;
        ended += CROWD;
    }
    let crowded = configured(&pair, alone);
    let arrival = arrivals(bench, &pair).await?;
    let data_dir = pair.agent.data_dir();
    let left = remains(&data_dir).await?;
    bench.end(pair).await?;
    Engine::connect().await?.remove_holders_of(&data_dir).await?;
    vpc::remove_traces(&data_dir)?;

    let launch = series.one.median() / series.bridge.median();
    bench.report.add(
        Row::new("launch, awsvpc")
            .goal("<= 0.6 x raw on the bridge")
            .value(
                format!("{launch:.2}: {:.1} ms, raw {:.1}", series.one.median(), series.bridge.median()),
                launch <= 0.6,
            )
            .samples("agent_ms", &series.one)
            .samples("raw_bridge_ms", &series.bridge),
    );
    let further = series.two.less(&series.one);
    let ratio = further.median() / series.host.median();
    bench.report.add(
        Row::new("a further container")
            .goal("<= 1.1 x raw on the host's network")
            .value(
                format!("{ratio:.2}: {:.1} ms, raw {:.1}", further.median(), series.host.median()),
                ratio <= 1.1,
            )
            .samples("further_ms", &further)
            .samples("raw_host_ms", &series.host),
    );
    bench.report.add(
        Row::new("network configured by the agent")
            .goal("<= 10 ms")
            .value(format!("{:.1} (p95 {:.1}) ms", work.median(), work.p95()), work.median() <= 10.0)
            .samples("work_ms", &work),
    );
    bench.report.add(
        Row::new(format!("the same, {CROWD} at once"))
            .goal("p95 <= 25 ms")
            .value(
                format!("p95 {:.1}, median {:.1} ms", crowded.p95(), crowded.median()),
                crowded.p95() <= 25.0,
            )
            .samples("work_ms", &crowded),
    );
    let down = series.stop.less(&series.host_stop);
    bench.report.add(
        Row::new("tear-down beyond a host task's")
            .goal("<= 10 ms")
            .value(format!("{:+.1} ms", down.median()), down.median() <= 10.0)
            .samples("stop_ms", &series.stop)
            .samples("raw_host_stop_ms", &series.host_stop),
    );
    bench.report.add(
        Row::new("a NIC is plugged in: ATTACHED")
            .goal("<= 50 ms")
            .value(format!("{:.1} (p95 {:.1}) ms", arrival.median(), arrival.p95()), arrival.p95() <= 50.0)
            .samples("arrival_ms", &arrival),
    );
    bench.report.add(
        Row::new(format!("links, namespaces, mounts left of {ended} tasks"))
            .goal("0")
            .value(left.to_string(), left == 0),
    );
    Ok(())
}

/// Milliseconds of the agent's own work, for all tasks but the first so many.
fn configured(pair: &Pair, but: usize) -> Samples {
    pair.agent.logged(CONFIGURED, "took_us").into_iter().skip(but).map(|us| us / 1000.0).collect()
}

/// Many tasks at once, run and stopped.
async fn crowd(bench: &Bench, pair: &Pair) -> Result<()> {
    let plane = &pair.control_plane;
    let tasks = (0..CROWD).map(|_| scripted::awsvpc_task(plane.cluster(), 1)).collect();
    let (arns, _) = plane.run(tasks)?;
    plane.running(&arns, PATIENCE).await?;
    plane.stop(&arns)?;
    plane.stopped(&arns, PATIENCE).await?;
    bench.site.clear(plane.cluster()).await?;
    // The kernel takes their namespaces apart.
    tokio::time::sleep(SETTLE).await;
    Ok(())
}

/// From the moment that a link with the announced address is on the host.
async fn arrivals(bench: &Bench, pair: &Pair) -> Result<Samples> {
    let plane = &pair.control_plane;
    let mut samples = Samples::default();
    for round in 0..bench.rounds(20, 5) {
        let mut task = scripted::awsvpc_task(plane.cluster(), 1);
        let attachment = task.spec.as_mut().and_then(|spec| spec.attachment.as_mut());
        let attachment = attachment.context("the task has no attachment")?;
        attachment.provider = "hot-plug".to_owned();
        let mac = attachment.mac.clone();
        let (arns, _) = plane.run(vec![task])?;
        // It waits by then.
        tokio::time::sleep(SETTLE).await;
        let (near, far) = (format!("bn{round}"), format!("bf{round}"));
        vpc::ip(&["link", "add", &far, "type", "veth", "peer", "name", &near, "address", &mac])?;
        let there = Instant::now();
        let attached = plane.attached(&arns[0], PATIENCE).await?;
        samples.push(attached.saturating_duration_since(there));
        plane.running(&arns, PATIENCE).await?;
        plane.stop(&arns)?;
        plane.stopped(&arns, PATIENCE).await?;
        vpc::ip(&["link", "delete", &far])?;
        bench.site.clear(plane.cluster()).await?;
    }
    Ok(samples)
}

/// How much is left once the kernel has had its time.
async fn remains(data_dir: &Path) -> Result<usize> {
    let cleared = eventually(Duration::from_secs(10), "nothing is left", || async {
        Ok(vpc::traces(data_dir)?.is_empty().then_some(()))
    });
    // What is left is the figure.
    let _ = cleared.await;
    Ok(vpc::traces(data_dir)?.len())
}

/// Launch and stop of a task with so many containers, one after the other.
async fn life(bench: &Bench, pair: &Pair, containers: usize) -> Result<(Duration, Duration)> {
    let plane = &pair.control_plane;
    let (arns, sent) = plane.run(vec![scripted::awsvpc_task(plane.cluster(), containers)])?;
    let launched = plane.running(&arns, PATIENCE).await?.duration_since(sent);
    tokio::time::sleep(SETTLE).await;
    let sent = plane.stop(&arns)?;
    let stopped = plane.stopped(&arns, PATIENCE).await?.duration_since(sent);
    bench.site.clear(plane.cluster()).await?;
    Ok((launched, stopped))
}
