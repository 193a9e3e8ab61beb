//! What the agent costs while nothing happens: memory, CPU, and what it makes the engine use.

use std::time::{Duration, Instant};

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

/// The agent's CPU for one look at `/metrics` with a hundred containers, as part of a core at one look in 10 s.
pub(crate) async fn metrics(bench: &mut Bench) -> Result<()> {
    const CONTAINERS: usize = 100;
    const INTERVAL: Duration = Duration::from_secs(10);
    let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let address = format!("127.0.0.1:{port}");
    let pair = bench.pair("metrics", &[("BERTH_INTROSPECTION_ADDRESS", &address)]).await?;
    // Half with networks of their own, whose figures come from there.
    launch_in(&pair, CONTAINERS / 2, "bridge").await?;
    launch_in(&pair, CONTAINERS / 2, "host").await?;
    tokio::time::sleep(SETTLE).await;
    let url = format!("http://{address}/metrics");
    let (mut part, mut took) = (Samples::default(), Samples::default());
    // The first look asks the engine what containers are; what follows asks the kernel alone.
    let looks = u32::try_from(bench.rounds(10, 4))?;
    for _ in 0..bench.rounds(5, 2) {
        let (pid, before) = (pair.agent.pid()?, cpu_seconds(pair.agent.pid()?));
        for _ in 0..looks {
            let began = Instant::now();
            let (status, text) = berth_tests::http::get(&url).await?;
            took.push_value(began.elapsed().as_secs_f64() * 1000.0);
            let told = text.lines().filter(|line| line.starts_with("berth_container_processes{")).count();
            ensure!(status.is_success() && told == CONTAINERS, "{status}: {told} containers");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        let used = cpu_seconds(pid).zip(before).map(|(now, then)| now - then);
        ensure!(used.is_some(), "the agent has ended: {}", pair.agent.last_words());
        part.push_value(percent(used.unwrap_or_default() / f64::from(looks), INTERVAL));
    }
    bench.end(pair).await?;
    bench.report.add(
        Row::new(format!("/metrics each 10 s, {CONTAINERS} containers"))
            .goal("<= 1 % of a core")
            .value(
                format!("{:.2} %, an answer in {:.0} ms", part.median(), took.median()),
                part.median() <= 1.0,
            )
            .samples("percent", &part)
            .samples("ms", &took),
    );
    Ok(())
}

fn percent(seconds: f64, of: Duration) -> f64 {
    100.0 * seconds / of.as_secs_f64()
}

/// The ids of the containers.
async fn launch(pair: &Pair, tasks: usize) -> Result<Vec<String>> {
    launch_in(pair, tasks, "host").await
}

async fn launch_in(pair: &Pair, tasks: usize, mode: &str) -> Result<Vec<String>> {
    if tasks == 0 {
        return Ok(Vec::new());
    }
    let plane = &pair.control_plane;
    let tasks = (0..tasks).map(|_| scripted::task(plane.cluster(), mode, 0)).collect();
    let (arns, _) = plane.run(tasks)?;
    plane.running(&arns, PATIENCE).await?;
    Ok(plane.containers(&arns))
}
