//! What the agent adds to the engine: every figure beside its goal and its floor, measured in turns
//! in one run on one engine.
//!
//! `BERTH_BENCH=quick` takes fewer measurements, `BERTH_BENCH_ONLY=launch,idle` some rows alone. A
//! goal that is missed is shown and is no failure; a measurement that breaks is.

mod api;
mod awsvpc;
mod burst;
mod idle;
mod launch;
mod life;

use std::time::Duration;

use anyhow::{Context, Result, bail};
use berth_tests::bench::{BenchAgent, Report, Samples, Scripted, Site};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::{JoinSet, LocalSet};

/// How long anything may take before the measurement is broken.
const PATIENCE: Duration = Duration::from_secs(60);
/// The figures, in the order in which they are taken.
const FIGURES: [&str; 10] =
    ["launch", "quota", "awsvpc", "api", "start", "recovery", "memory", "idle", "metrics", "burst"];

/// What all figures need.
struct Bench {
    site: Site,
    quick: bool,
    report: Report,
}

/// One agent with the control plane that drives it.
struct Pair {
    control_plane: Scripted,
    agent: BenchAgent,
}

impl Bench {
    /// So many measurements, or fewer when it is to be quick.
    const fn rounds(&self, full: usize, quick: usize) -> usize {
        if self.quick { quick } else { full }
    }

    /// An agent that is connected.
    async fn pair(&self, what: &str, env: &[(&str, &str)]) -> Result<Pair> {
        let cluster = self.site.cluster(what);
        let control_plane = Scripted::start(&cluster).await?;
        let agent = BenchAgent::start(&cluster, control_plane.address, env)?;
        let mut pair = Pair { control_plane, agent };
        pair.connected().await?;
        Ok(pair)
    }

    /// Ends an agent and removes all that it made.
    async fn end(&self, mut pair: Pair) -> Result<()> {
        pair.agent.kill().await?;
        self.site.clear(pair.control_plane.cluster()).await
    }
}

impl Pair {
    async fn connected(&mut self) -> Result<()> {
        let connected = self.control_plane.noted(PATIENCE, |noted| noted.greeted);
        self.agent.while_alive(connected).await.map(drop)
    }
}

/// "12.3 (p95 14.5)".
fn with_p95(samples: &Samples) -> String {
    format!("{:.1} (p95 {:.1})", samples.median(), samples.p95())
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> Result<()> {
    let quick = match std::env::var("BERTH_BENCH").as_deref() {
        Ok("quick") => true,
        Ok("full" | "") | Err(_) => false,
        Ok(other) => bail!("BERTH_BENCH={other}: quick or full is expected"),
    };
    let only = std::env::var("BERTH_BENCH_ONLY").unwrap_or_default();
    let chosen: Vec<String> = only.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect();
    if let Some(unknown) = chosen.iter().find(|name| !FIGURES.contains(&name.as_str())) {
        bail!("BERTH_BENCH_ONLY: {unknown:?} is none of {}", FIGURES.join(","));
    }
    let site = Site::new()?;
    let bench = Bench { site: site.clone(), quick, report: Report::default() };

    // On a task of its own, so that the removal below comes also after a panic.
    let local = LocalSet::new();
    let mut work = JoinSet::new();
    work.spawn_local_on(measure(bench, chosen), &local);
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let ended = tokio::select! {
        ended = local.run_until(work.join_next()) => {
            ended.context("nothing was measured")?.context("the benchmark panicked").flatten()
        }
        _ = interrupt.recv() => Err(anyhow::anyhow!("interrupted")),
        _ = terminate.recv() => Err(anyhow::anyhow!("terminated")),
    };
    local.run_until(work.shutdown()).await;
    site.clear_all().await?;
    ended
}

async fn measure(mut bench: Bench, chosen: Vec<String>) -> Result<()> {
    berth_tests::demo::image().await?;
    Report::head();
    for figure in FIGURES {
        if !chosen.is_empty() && !chosen.iter().any(|name| name == figure) {
            continue;
        }
        let measured = match figure {
            "launch" => launch::launch_and_stop(&mut bench).await,
            "quota" => launch::quota(&mut bench).await,
            "awsvpc" => awsvpc::launch(&mut bench).await,
            "api" => api::launch(&mut bench).await,
            "start" => life::start(&mut bench).await,
            "recovery" => life::recovery(&mut bench).await,
            "memory" => idle::memory(&mut bench).await,
            "idle" => idle::cpu(&mut bench).await,
            "metrics" => idle::metrics(&mut bench).await,
            _ => burst::run_and_stop(&mut bench).await,
        };
        measured.with_context(|| format!("measuring {figure}"))?;
    }
    bench.report.finish()
}
