//! Launch and stop through Berth against the engine's own floor, in the same minute on the same host.
//!
//! Rounds alternate between the two, and what counts is the difference within a round: the
//! milliseconds themselves move with the load of the host. `BERTH_BENCH_ROUNDS` sets how many (20).

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use berth_tests::engine::Floor;
use berth_tests::expect::PATIENCE;
use berth_tests::{Cluster, demo};
use serde_json::json;

/// One round: the floor, and launch and stop through Berth.
struct Round {
    floor: Floor,
    launch: Duration,
    stop: Duration,
}

#[tokio::main]
async fn main() -> Result<()> {
    let rounds = match std::env::var("BERTH_BENCH_ROUNDS") {
        Ok(text) => text.parse().with_context(|| format!("BERTH_BENCH_ROUNDS={text} is no number"))?,
        Err(_) => 20,
    };
    let cluster = Cluster::start().await?;
    println!("medians of {rounds} rounds in ms; \"added\" is the median of the differences within a round");
    println!("{:<8} {:>22} {:>31}", "", "launch", "stop");
    println!(
        "{:<8} {:>7} {:>7} {:>7} {:>14} {:>7} {:>7}",
        "", "floor", "Berth", "added", "floor", "Berth", "added"
    );
    for mode in ["host", "none", "bridge"] {
        let definition = cluster
            .register(demo::task(mode, mode, json!([demo::container("one", &["sleep", "3600"])])))
            .await?;
        // The first of each is not counted: caches of the engine and of the kernel.
        round(&cluster, mode, &definition).await?;
        let mut all = Vec::with_capacity(rounds);
        for _ in 0..rounds {
            all.push(round(&cluster, mode, &definition).await?);
        }
        let ms = |of: &dyn Fn(&Round) -> f64| median(all.iter().map(of).collect());
        let floor = |r: &Round| millis(r.floor.create + r.floor.start);
        println!(
            "{mode:<8} {:>7.1} {:>7.1} {:>7.1} {:>14.1} {:>7.1} {:>7.1}",
            ms(&floor),
            ms(&|r| millis(r.launch)),
            ms(&|r| millis(r.launch) - floor(r)),
            ms(&|r| millis(r.floor.stop)),
            ms(&|r| millis(r.stop)),
            ms(&|r| millis(r.stop) - millis(r.floor.stop)),
        );
    }
    Ok(())
}

async fn round(cluster: &Cluster, mode: &str, definition: &str) -> Result<Round> {
    let floor = cluster.engine.floor(mode).await?;
    let began = Instant::now();
    let arn = cluster.run_definition(definition).await?;
    cluster.until(&arn, "RUNNING", PATIENCE).await?;
    let launch = began.elapsed();
    let began = Instant::now();
    cluster.stop(&arn, None).await?;
    cluster.until(&arn, "STOPPED", PATIENCE).await?;
    Ok(Round { floor, launch, stop: began.elapsed() })
}

fn millis(span: Duration) -> f64 {
    span.as_secs_f64() * 1000.0
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
