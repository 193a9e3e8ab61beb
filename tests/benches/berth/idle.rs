//! What the agent costs while nothing happens: memory, CPU, and what it makes the engine use.

use std::time::Duration;

use anyhow::{Result, ensure};
use berth_tests::bench::usage::{EngineProcesses, cpu_seconds, resident_mib};
use berth_tests::bench::{Row, Samples, scripted};

use crate::{Bench, PATIENCE, Pair};

/// How many tasks run, and how much memory the agent may and the ECS agent does use then.
const MEMORY: [(usize, f64, &str); 3] = [(0, 15.0, "43 MiB"), (50, 18.0, "61 MiB"), (100, 20.0, "72 MiB")];
const TASKS: usize = 50;
/// Until what a launch leaves to be done is done.
const SETTLE: Duration = Duration::from_secs(2);

pub(crate) async fn memory(bench: &mut Bench) -> Result<()> {
    let mut found: [Samples; 3] = Default::default();
    for _ in 0..bench.rounds(3, 1) {
        let pair = bench.pair("memory", &[]).await?;
        let mut running = 0;
        for ((tasks, ..), samples) in MEMORY.iter().zip(&mut found) {
            launch(&pair, tasks - running).await?;
            running = *tasks;
            tokio::time::sleep(SETTLE).await;
            samples.push_value(resident_mib(pair.agent.pid()?)?);
        }
        bench.end(pair).await?;
    }
    for ((tasks, most, rival), samples) in MEMORY.iter().zip(&found) {
        bench.report.add(
            Row::new(format!("resident memory, {tasks} tasks"))
                .goal(format!("<= {most:.0} MiB"))
                .value(format!("{:.1} MiB", samples.median()), samples.median() <= *most)
                .rival(*rival)
                .samples("mib", samples),
        );
    }
    Ok(())
}

/// The same containers with the agent and without, in turns.
pub(crate) async fn cpu(bench: &mut Bench) -> Result<()> {
    let mut pair = bench.pair("idle", &[]).await?;
    let containers = launch(&pair, TASKS).await?;
    let processes = EngineProcesses::new(bench.site.raw.daemon().await?, containers);
    let span = Duration::from_secs(if bench.quick { 10 } else { 20 });
    let (mut own, mut with, mut without) = (Samples::default(), Samples::default(), Samples::default());
    for _ in 0..bench.rounds(3, 1) {
        tokio::time::sleep(SETTLE).await;
        let pid = pair.agent.pid()?;
        let (engine, agent) = (processes.cpu(), cpu_seconds(pid));
        tokio::time::sleep(span).await;
        let both = cpu_seconds(pid).zip(agent);
        ensure!(both.is_some(), "the agent has ended: {}", pair.agent.last_words());
        let agent = both.map_or(0.0, |(now, then)| now - then);
        own.push_value(percent(agent, span));
        with.push_value(percent(agent + processes.cpu().since(&engine), span));

        pair.agent.kill().await?;
        tokio::time::sleep(SETTLE).await;
        let engine = processes.cpu();
        tokio::time::sleep(span).await;
        without.push_value(percent(processes.cpu().since(&engine), span));
        pair.control_plane.forget_agent();
        pair.agent.start_again()?;
        pair.connected().await?;
    }
    bench.end(pair).await?;
    let mean = |samples: &Samples| samples.values().iter().sum::<f64>() / samples.values().len() as f64;
    let (own_mean, with_mean, floor) = (mean(&own), mean(&with), mean(&without));
    bench.report.add(
        Row::new(format!("idle CPU, {TASKS} tasks: agent"))
            .goal("<= 0.1 % of a core")
            .value(format!("{own_mean:.2} %"), own_mean <= 0.1)
            .rival("0.76 %")
            .samples("percent", &own),
    );
    bench.report.add(
        Row::new(format!("idle CPU, {TASKS} tasks: + engine"))
            .goal("<= engine alone + 0.3 %")
            .value(format!("{with_mean:.2} %, engine alone {floor:.2}"), with_mean <= floor + 0.3)
            .rival("13.4 %, alone 1.4")
            .samples("with_percent", &with)
            .samples("without_percent", &without),
    );
    Ok(())
}

fn percent(seconds: f64, of: Duration) -> f64 {
    100.0 * seconds / of.as_secs_f64()
}

/// The ids of the containers.
async fn launch(pair: &Pair, tasks: usize) -> Result<Vec<String>> {
    if tasks == 0 {
        return Ok(Vec::new());
    }
    let plane = &pair.control_plane;
    let tasks = (0..tasks).map(|_| scripted::task(plane.cluster(), "host", 0)).collect();
    let (arns, _) = plane.run(tasks)?;
    plane.running(&arns, PATIENCE).await?;
    Ok(plane.containers(&arns))
}
