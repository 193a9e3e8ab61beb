//! One container at a time: launch, stop, and launch with a bound on the CPU.

use std::time::Duration;

use anyhow::Result;
use berth_tests::bench::{Row, Samples, scripted};

use crate::{Bench, PATIENCE, Pair};

/// Mode, what the ECS agent adds to a launch, and its ratio of stops.
const MODES: [(&str, &str, &str); 3] = [
    ("host", "+96 ms (floor 84)", "1.46"),
    ("bridge", "+88 ms (floor 186)", "1.18"),
    ("none", "+83 ms (floor 157)", "1.40"),
];

/// Between a launch and a stop, as between those of users: what a launch leaves to be done is done.
const SETTLE: Duration = Duration::from_millis(50);

/// What one container took to launch and to stop, round by round.
#[derive(Default)]
struct Series {
    launch: Samples,
    stop: Samples,
}

pub(crate) async fn launch_and_stop(bench: &mut Bench) -> Result<()> {
    let pair = bench.pair("launch", &[]).await?;
    let mut all: [(Series, Series); 3] = Default::default();
    for round in 0..=bench.rounds(30, 8) {
        for ((mode, ..), (floor, agent)) in MODES.iter().zip(&mut all) {
            let (raw, ours) = if round % 2 == 0 {
                let raw = raw_life(bench, mode).await?;
                (raw, agent_life(bench, &pair, mode, 0).await?)
            } else {
                let ours = agent_life(bench, &pair, mode, 0).await?;
                (raw_life(bench, mode).await?, ours)
            };
            // The first round fills the caches of engine and kernel.
            if round > 0 {
                floor.launch.push(raw.0);
                floor.stop.push(raw.1);
                agent.launch.push(ours.0);
                agent.stop.push(ours.1);
            }
        }
    }
    bench.end(pair).await?;
    for ((mode, rival, _), (floor, agent)) in MODES.iter().zip(&all) {
        // The median of the pairs, but not their 95th percentile: that is the engine's own scatter,
        // which a pair has twice. The slow end of ours is held against the slow end of the floor.
        let added = agent.launch.less(&floor.launch);
        let at_p95 = agent.launch.p95() - floor.launch.p95();
        let value =
            format!("{:+.1} (p95 {at_p95:+.1}) ms, floor {:.1}", added.median(), floor.launch.median());
        bench.report.add(
            Row::new(format!("launch, {mode}"))
                .goal("<= +10 ms, p95 <= +25")
                .value(value, added.median() <= 10.0 && at_p95 <= 25.0)
                .rival(*rival)
                .samples("floor_ms", &floor.launch)
                .samples("agent_ms", &agent.launch)
                .samples("added_ms", &added),
        );
    }
    for ((mode, _, rival), (floor, agent)) in MODES.iter().zip(&all) {
        let ratio = agent.stop.over(&floor.stop).median();
        let value = format!("{ratio:.2}: {:.1} ms, floor {:.1}", agent.stop.median(), floor.stop.median());
        bench.report.add(
            Row::new(format!("stop, {mode}"))
                .goal("<= 1.05")
                .value(value, ratio <= 1.05)
                .rival(*rival)
                .samples("floor_ms", &floor.stop)
                .samples("agent_ms", &agent.stop),
        );
    }
    Ok(())
}

pub(crate) async fn quota(bench: &mut Bench) -> Result<()> {
    let pair = bench.pair("quota", &[]).await?;
    let (mut without, mut with) = (Samples::default(), Samples::default());
    for round in 0..=bench.rounds(20, 5) {
        let first = agent_life(bench, &pair, "host", if round % 2 == 0 { 0 } else { 32 }).await?.0;
        let second = agent_life(bench, &pair, "host", if round % 2 == 0 { 32 } else { 0 }).await?.0;
        let (free, bound) = if round % 2 == 0 { (first, second) } else { (second, first) };
        if round > 0 {
            without.push(free);
            with.push(bound);
        }
    }
    bench.end(pair).await?;
    let ratio = with.over(&without).median();
    let value = format!("{ratio:.2}: {:.1} ms, without {:.1}", with.median(), without.median());
    bench.report.add(
        Row::new("launch with 1/32 vCPU")
            .goal("<= 1.15 x without")
            .value(value, ratio <= 1.15)
            .rival("1000 to 1500 ms")
            .samples("with_ms", &with)
            .samples("without_ms", &without),
    );
    Ok(())
}

/// Launch and stop of a container with nothing between.
pub(crate) async fn raw_life(bench: &Bench, mode: &str) -> Result<(Duration, Duration)> {
    let raw = &bench.site.raw;
    let body = bench.site.body(mode, &bench.site.place());
    let (ids, launched) = raw.launch(&[body], 1).await?;
    tokio::time::sleep(SETTLE).await;
    let stopped = raw.end(&ids, 1).await?;
    raw.remove_all(&ids).await?;
    Ok((launched, stopped))
}

/// The same through the agent.
async fn agent_life(bench: &Bench, pair: &Pair, mode: &str, cpu: u32) -> Result<(Duration, Duration)> {
    let plane = &pair.control_plane;
    let (arns, sent) = plane.run(vec![scripted::task(plane.cluster(), mode, cpu)])?;
    let launched = plane.running(&arns, PATIENCE).await?.duration_since(sent);
    tokio::time::sleep(SETTLE).await;
    let sent = plane.stop(&arns)?;
    let stopped = plane.stopped(&arns, PATIENCE).await?.duration_since(sent);
    bench.site.raw.remove_all(&plane.containers(&arns)).await?;
    Ok((launched, stopped))
}
