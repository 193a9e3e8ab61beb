//! Tasks with an interface of their own, on a bridge of the agent's: launch, a further container, the
//! agent's own work, and the way down.

use std::time::Duration;

use anyhow::Result;
use berth_tests::bench::{Row, Samples, scripted};
use berth_tests::{Engine, vpc};

use crate::launch::raw_life;
use crate::{Bench, PATIENCE, Pair};

/// Between a launch and a stop: what a launch leaves to be done is done, the next holder included.
const SETTLE: Duration = Duration::from_millis(400);

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
    let work: Samples = pair.agent.logged("took_us").into_iter().map(|us| us / 1000.0).collect();
    let data_dir = pair.agent.data_dir();
    bench.end(pair).await?;
    Engine::connect().await?.remove_holders_of(&data_dir).await?;
    let left = vpc::traces(&data_dir)?.len();
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
    let down = series.stop.less(&series.host_stop);
    bench.report.add(
        Row::new("tear-down beyond a host task's")
            .goal("<= 10 ms, nothing left")
            .value(format!("{:+.1} ms, {left} left", down.median()), down.median() <= 10.0 && left == 0)
            .samples("stop_ms", &series.stop)
            .samples("raw_host_stop_ms", &series.host_stop),
    );
    Ok(())
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
