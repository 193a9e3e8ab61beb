//! The agent's own life: from its start to its registration, and back after `kill -9`.

use std::collections::BTreeSet;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use berth_tests::bench::site::MEMORY_MIB;
use berth_tests::bench::{BenchAgent, Row, Samples, Scripted, scripted};

use crate::{Bench, PATIENCE, Pair, with_p95};

const TASKS: usize = 50;
const DEAD: usize = 5;

pub(crate) async fn start(bench: &mut Bench) -> Result<()> {
    let (mut registered, mut connected) = (Samples::default(), Samples::default());
    for round in 0..=bench.rounds(20, 10) {
        let cluster = bench.site.cluster("start");
        let plane = Scripted::start(&cluster).await?;
        let mut agent = BenchAgent::start(&cluster, plane.address, &[])?;
        let both = plane.noted(PATIENCE, |noted| noted.registered.zip(noted.greeted));
        let (at_registration, at_hello) = agent.while_alive(both).await?;
        if round > 0 {
            registered.push(at_registration.duration_since(agent.began));
            connected.push(at_hello.duration_since(agent.began));
        }
        agent.kill().await?;
    }
    bench.report.add(
        Row::new("process start -> registered")
            .goal("<= 50 ms")
            .value(
                format!("{} ms, session after {:.1}", with_p95(&registered), connected.median()),
                registered.median() <= 50.0,
            )
            .rival("155 ms")
            .samples("registered_ms", &registered)
            .samples("connected_ms", &connected),
    );
    Ok(())
}

pub(crate) async fn recovery(bench: &mut Bench) -> Result<()> {
    // Ended tasks are cleaned up soon, so that every round begins with as many.
    let mut pair = bench.pair("recovery", &[("ECS_ENGINE_TASK_CLEANUP_WAIT_DURATION", "1s")]).await?;
    let mut alive = launch(&pair, TASKS).await?;
    let mut took = Samples::default();
    for _ in 0..bench.rounds(20, 3) {
        pair.agent.kill().await?;
        let dead: Vec<String> = alive.drain(..DEAD).collect();
        let containers = pair.control_plane.containers(&dead);
        for container in &containers {
            bench.site.raw.kill(container).await?;
        }
        pair.control_plane.forget_agent();
        pair.agent.start_again()?;
        let began = pair.agent.began;
        let reconciled = reconciled(&pair, &dead).await.with_context(|| pair.agent.last_words())?;
        took.push(reconciled.duration_since(began));
        verify(&pair, &alive).await?;
        for container in &containers {
            bench.site.raw.gone(container).await?;
        }
        alive.extend(launch(&pair, DEAD).await?);
    }
    bench.end(pair).await?;
    bench.report.add(
        Row::new(format!("kill -9 with {TASKS} -> reconciled"))
            .goal("<= 200 ms")
            .value(format!("{} ms", with_p95(&took)), took.median() <= 200.0)
            .rival("1920 ms")
            .samples("reconciled_ms", &took),
    );
    Ok(())
}

async fn launch(pair: &Pair, tasks: usize) -> Result<Vec<String>> {
    let plane = &pair.control_plane;
    let tasks = (0..tasks).map(|_| scripted::task(plane.cluster(), "host", 0)).collect();
    let (arns, _) = plane.run(tasks)?;
    plane.running(&arns, PATIENCE).await?;
    Ok(arns)
}

/// When the agent was connected, had taken note of all tasks that are to run, and had told the end of
/// those that died.
async fn reconciled(pair: &Pair, dead: &[String]) -> Result<Instant> {
    let noted = pair.control_plane.noted(PATIENCE, |noted| {
        let greeted = noted.greeted?;
        let (sequence, acknowledged) = noted.acknowledged?;
        let told: Option<Vec<Instant>> = dead.iter().map(|arn| noted.tasks.get(arn)?.stopped).collect();
        let last = told?.into_iter().max()?;
        (sequence == noted.sequence).then(|| greeted.max(acknowledged).max(last))
    });
    noted.await
}

/// The agent did not lose a task on the way: none of the others is told to be STOPPED, and all of them
/// hold what they were granted.
async fn verify(pair: &Pair, alive: &[String]) -> Result<()> {
    let expected = u32::try_from(alive.len())? * MEMORY_MIB;
    let alive: BTreeSet<&str> = alive.iter().map(String::as_str).collect();
    let held = pair.control_plane.noted(PATIENCE, |noted| (noted.memory_in_use == expected).then_some(()));
    held.await.context("the agent does not hold the grants of all tasks that run")?;
    let lost = pair.control_plane.noted(PATIENCE, |noted| {
        Some(
            noted
                .tasks
                .iter()
                .filter(|(arn, seen)| alive.contains(arn.as_str()) && seen.stopped.is_some())
                .count(),
        )
    });
    ensure!(lost.await? == 0, "the agent told the end of a task that runs");
    Ok(())
}
