//! Fifty at once: until all run, until all have stopped; against the best that the raw engine does
//! at any concurrency.

use std::time::Duration;

use anyhow::{Context, Result};
use berth_tests::bench::usage::cpu_seconds;
use berth_tests::bench::{Row, Samples, scripted};
use serde_json::Value;

use crate::{Bench, PATIENCE};

const TASKS: usize = 50;
/// Between the launches and the stops: what a launch leaves to be done is done.
const SETTLE: Duration = Duration::from_millis(300);
/// How many at a time are tried of the raw engine.
const AT_ONCE: [usize; 4] = [4, 8, 16, 50];
/// Mode, the ECS agent's ratios of run and stop.
const MODES: [(&str, &str, &str); 2] = [("host", "1.31", "1.26"), ("bridge", "1.11", "1.24")];

/// What bursts of one kind took.
#[derive(Default)]
struct Series {
    run: Samples,
    stop: Samples,
    /// CPU milliseconds of the agent itself, until all ran.
    cpu: Samples,
}

pub(crate) async fn run_and_stop(bench: &mut Bench) -> Result<()> {
    for (mode, run, stop) in MODES {
        let mut floors: Vec<(usize, Series)> = AT_ONCE.map(|n| (n, Series::default())).into();
        let mut agent = Series::default();
        // All concurrencies at first; then those that were best, in turns with the agent.
        let (wide, narrow) = if bench.quick { (1, 1) } else { (2, 4) };
        for round in 0..wide + narrow {
            let best = (round >= wide).then(|| (best(&floors, |s| &s.run), best(&floors, |s| &s.stop)));
            for (at_once, series) in &mut floors {
                if best.is_none_or(|(run, stop)| *at_once == run || *at_once == stop) {
                    let (ran, stopped) = raw_burst(bench, mode, *at_once).await?;
                    series.run.push(ran);
                    series.stop.push(stopped);
                }
            }
            agent_burst(bench, mode, &mut agent).await?;
        }
        report(bench, &format!("{TASKS} at once, {mode}: RUNNING"), run, &floors, &agent, |s| &s.run);
        report(bench, &format!("{TASKS} at once, {mode}: STOPPED"), stop, &floors, &agent, |s| &s.stop);
    }
    Ok(())
}

/// The concurrency with the least median.
fn best(floors: &[(usize, Series)], of: impl Fn(&Series) -> &Samples) -> usize {
    let least = floors.iter().min_by(|a, b| of(&a.1).median().total_cmp(&of(&b.1).median()));
    least.map_or(AT_ONCE[0], |(at_once, _)| *at_once)
}

fn report(
    bench: &mut Bench,
    name: &str,
    rival: &str,
    floors: &[(usize, Series)],
    agent: &Series,
    of: impl Fn(&Series) -> &Samples,
) {
    let best = best(floors, &of);
    let floor = floors.iter().find(|(n, _)| *n == best).map_or(f64::NAN, |(_, s)| of(s).median());
    let ratio = of(agent).median() / floor;
    let value = format!("{ratio:.2}: {:.0} ms, raw by {best} {floor:.0}", of(agent).median());
    let mut row = Row::new(name)
        .goal("<= 1.05 x the best raw")
        .value(value, ratio <= 1.05)
        .rival(rival)
        .samples("agent_ms", of(agent))
        .samples("agent_cpu_until_running_ms", &agent.cpu);
    for (at_once, series) in floors {
        row = row.samples(&format!("raw_{at_once}_ms"), of(series));
    }
    bench.report.add(row);
}

async fn raw_burst(bench: &Bench, mode: &str, at_once: usize) -> Result<(Duration, Duration)> {
    let site = &bench.site;
    let bodies: Vec<Value> = (0..TASKS).map(|_| site.body(mode, &site.place())).collect();
    let (ids, ran) = site.raw.launch(&bodies, at_once).await?;
    tokio::time::sleep(SETTLE).await;
    let stopped = site.raw.end(&ids, at_once).await?;
    site.raw.remove_all(&ids).await?;
    Ok((ran, stopped))
}

async fn agent_burst(bench: &Bench, mode: &str, series: &mut Series) -> Result<()> {
    let pair = bench.pair("burst", &[]).await?;
    let plane = &pair.control_plane;
    let tasks = (0..TASKS).map(|_| scripted::task(plane.cluster(), mode, 0)).collect();
    let (arns, sent) = plane.run(tasks)?;
    let running = plane.running(&arns, PATIENCE).await;
    series.run.push(running.with_context(|| pair.agent.last_words())?.duration_since(sent));
    series.cpu.push_value(cpu_seconds(pair.agent.pid()?).map_or(f64::NAN, |seconds| seconds * 1000.0));
    tokio::time::sleep(SETTLE).await;
    let sent = plane.stop(&arns)?;
    series.stop.push(plane.stopped(&arns, PATIENCE).await?.duration_since(sent));
    bench.end(pair).await
}
