//! Promise: whatever the container engine goes through (restarted with and without live-restore, killed, hung, changed,
//! without its containerd), and whatever somebody does to containers by hand, no task is lost or doubled, and what
//! became of each is told as it was. What a connection that is cut means is in `outages`.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use berth_tests::cluster::{container, text};
use berth_tests::expect::{PATIENCE, here};
use berth_tests::sim::Proxy;
use berth_tests::{Cluster, OwnEngine, demo, eventually};
use bollard::query_parameters::{RemoveImageOptionsBuilder, TagImageOptionsBuilder};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

/// Long enough for an engine that ends what others left behind before it answers.
const BACK: Duration = Duration::from_secs(60);
/// The time within which an engine that says nothing is said to: the pause between two questions and the patience
/// with an answer, and some more.
const NOTICED: Duration = Duration::from_secs(20);

const AWAY: &str = "the container engine is away; running containers are not touched";
const AGAIN: &str = "the container engine answers again";
const EXITED: &str = "Essential container in task exited";
const WITH_ENGINE: &str = "Essential container in task exited: the container engine was restarted, which ends containers without live-restore";

fn sleeper(family: &str) -> Value {
    demo::task(family, "none", json!([demo::container("one", &["sleep", "3600"])]))
}

/// The engine's id and the process of the task's container: the same as long as nothing hurt it.
async fn process_of(cluster: &Cluster, task: &str) -> Result<(String, i32)> {
    let what = "the engine tells of the container";
    // A connection of before may still be there, and is of no use.
    let (id, state) = eventually(PATIENCE, what, || async {
        let id = cluster.engine.id_of(task, "one").await?;
        let state = cluster.engine.inspect(&id).await?.state;
        Ok(Some((id, state.context("no state")?)))
    })
    .await?;
    ensure!(state.running == Some(true), "container {id} does not run");
    Ok((id, i32::try_from(state.pid.context("no process")?)?))
}

/// Waits until the agent has said that often what holds that text.
async fn says(cluster: &Cluster, what: &str, times: usize) -> Result<()> {
    eventually(BACK, format!("the agent says {what:?} {times} times"), || async {
        Ok((cluster.agent.output().matches(what).count() >= times).then_some(()))
    })
    .await
}

async fn stopped(cluster: &Cluster, task: &str) -> Result<Value> {
    cluster.until(task, "STOPPED", BACK).await
}

/// The task ended of itself, as the engine was none to be blamed.
fn by_itself(task: &Value, code: i32) -> Result<()> {
    ensure!(task["stopCode"] == "EssentialContainerExited" && task["stoppedReason"] == EXITED, "{task}");
    ensure!(container(task, "one")?["exitCode"] == code, "{task}");
    Ok(())
}

/// How often the control plane was told that tasks stopped, as the agent's log has it.
fn told_stopped(cluster: &Cluster) -> usize {
    cluster.agent.output().matches("\"status\":\"STOPPED\"").count()
}

/// Kills a process of this host, behind the engine's back.
fn kill_process(pid: i32) -> Result<()> {
    Ok(kill(Pid::from_raw(pid), Signal::SIGKILL)?)
}

/// A new task runs and stops: all goes on.
async fn goes_on(cluster: &Cluster) -> Result<()> {
    let task = cluster.run(sleeper("new")).await?;
    cluster.until(&task, "RUNNING", BACK).await?;
    assert_eq!(cluster.engine.containers_of_task(&task).await?.len(), 1);
    cluster.stop(&task, None).await?;
    let ended = stopped(cluster, &task).await?;
    assert_eq!(
        (&ended["stopCode"], &container(&ended, "one")?["exitCode"]),
        (&json!("UserInitiated"), &json!(0))
    );
    Ok(())
}

// --- stopped, killed and changed ---

#[tokio::test]
async fn with_live_restore_tasks_run_through_restarts_kills_and_changes_of_the_engine() -> Result<()> {
    const LIVE: &str = "--live-restore";
    let mut own = OwnEngine::start_with(&[LIVE]).await?;
    let cluster = Cluster::start_on(&own, &[]).await?;
    let (kept, _) = cluster.running(sleeper("kept")).await?;
    let before = process_of(&cluster, &kept).await?;

    // Stopped and started, each time with something changed, as an upgrade would; one task ends meanwhile.
    let changes =
        [&[LIVE][..], &[LIVE, "--default-ulimit", "nofile=1234:1234"], &[LIVE, "--log-level", "debug"]];
    for (round, options) in changes.into_iter().enumerate() {
        let (dies, _) = cluster.running(sleeper("dies")).await?;
        let (_, pid) = process_of(&cluster, &dies).await?;
        if round == 2 {
            own.kill().await?;
        } else {
            own.terminate().await?;
        }
        says(&cluster, AWAY, round + 1).await?;
        kill_process(pid)?;
        assert_eq!(cluster.task(&kept).await?["lastStatus"], "RUNNING");
        own.start_again(options)?;
        says(&cluster, AGAIN, round + 1).await?;
        by_itself(&stopped(&cluster, &dies).await?, 137)?;
        assert_eq!(process_of(&cluster, &kept).await?, before, "round {round}");
        assert_eq!(told_stopped(&cluster), round + 1, "{}", cluster.agent.output());
    }

    // Without its containerd tasks run on, and new ones wait rather than fail.
    own.kill_containerd().await?;
    let late = cluster.run(sleeper("late")).await?;
    eventually(PATIENCE, "the new task says what it waits for", || async {
        let task = cluster.task(&late).await?;
        ensure!(task["lastStatus"] == "PENDING", "{task}");
        let reason = text(container(&task, "one")?, "reason")?;
        Ok(reason.contains("the container engine, which does not answer").then_some(()))
    })
    .await?;
    own.start_again(&[LIVE])?;
    cluster.until(&late, "RUNNING", BACK).await?;
    assert_eq!(cluster.engine.containers_of_task(&late).await?.len(), 1);
    assert_eq!(process_of(&cluster, &kept).await?, before);

    // Both at once.
    own.kill().await?;
    own.kill_containerd().await?;
    says(&cluster, AWAY, changes.len() + 1).await?;
    own.start_again(&[LIVE])?;
    says(&cluster, AGAIN, changes.len() + 1).await?;
    assert_eq!(process_of(&cluster, &kept).await?, before);
    for task in [&kept, &late] {
        assert_eq!(cluster.task(task).await?["lastStatus"], "RUNNING");
    }
    assert_eq!(told_stopped(&cluster), changes.len());
    kill_process(before.1)?;
    by_itself(&stopped(&cluster, &kept).await?, 137)?;
    goes_on(&cluster).await
}

#[tokio::test]
async fn without_live_restore_tasks_end_with_the_engine_and_say_that_it_was_the_engine() -> Result<()> {
    let mut own = OwnEngine::start().await?;
    let cluster = Cluster::start_on(&own, &[]).await?;
    for (round, by) in ["SIGTERM", "SIGKILL"].into_iter().enumerate() {
        let (heeds, _) = cluster.running(sleeper("heeds")).await?;
        let slow = demo::container_with("one", &["ignore-term"], json!({ "stopTimeout": 2 }));
        let (ignores, _) = cluster.running(demo::task("ignores", "none", json!([slow]))).await?;
        // It may fail: then the others go on.
        let aside = demo::container_with("aside", &["sleep", "3600"], json!({ "essential": false }));
        let two = json!([demo::container("one", &["sleep", "3600"]), aside]);
        let (pair, _) = cluster.running(demo::task("pair", "none", two)).await?;
        let (alone, _) = cluster.running(sleeper("alone")).await?;
        let (_, pid) = process_of(&cluster, &alone).await?;
        kill_process(pid)?;
        by_itself(&stopped(&cluster, &alone).await?, 137)?;

        let told = told_stopped(&cluster);
        if by == "SIGTERM" {
            own.terminate().await?;
        } else {
            own.kill().await?;
        }
        says(&cluster, AWAY, round + 1).await?;
        assert_eq!(told_stopped(&cluster), told, "nobody can know yet");
        own.start_again(&[])?;
        let mut ends = Vec::new();
        for (task, code) in [(&heeds, 0), (&pair, 0), (&ignores, 137)] {
            let ended = stopped(&cluster, task).await?;
            assert_eq!(ended["stopCode"], "EssentialContainerExited", "{ended}");
            assert_eq!(text(&ended, "stoppedReason")?, WITH_ENGINE, "{by}");
            let one = container(&ended, "one")?;
            assert_eq!(
                text(one, "reason")?,
                "it ended with the container engine, which was restarted",
                "{by}"
            );
            assert_eq!(one["exitCode"], code, "{by}: {ended}");
            ends.push(ended["executionStoppedAt"].as_f64().context("executionStoppedAt")?);
        }
        ensure!(
            ends[0] <= ends[2] && ends[1] <= ends[2],
            "what ended last is told to have ended last: {ends:?}"
        );
        assert_eq!(told_stopped(&cluster), told + 3, "each once: {}", cluster.agent.output());
        let explained = cluster.agent.typed(&["explain", &heeds]).await?;
        ensure!(explained.contains("with the container engine, which was restarted"), "{explained}");
        goes_on(&cluster).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_restart_policy_holds_for_containers_that_end_with_the_engine() -> Result<()> {
    // The shortest that is accepted.
    const PERIOD: Duration = Duration::from_secs(60);
    let mut own = OwnEngine::start().await?;
    let cluster = Cluster::start_on(&own, &[]).await?;
    let policy = |more: Value| {
        let mut policy = json!({ "enabled": true, "restartAttemptPeriod": PERIOD.as_secs() });
        policy = demo::merged(policy, &more);
        let one = demo::container_with("one", &["sleep", "3600"], json!({ "restartPolicy": policy }));
        demo::task("policy", "none", json!([one]))
    };
    let (again, _) = cluster.running(policy(json!({}))).await?;
    let (ignored, _) = cluster.running(policy(json!({ "ignoredExitCodes": [0] }))).await?;
    let before = process_of(&cluster, &again).await?;
    let began = Instant::now();
    eventually(PERIOD * 2, "both ran for the period", || async {
        Ok((began.elapsed() > PERIOD + Duration::from_secs(1)).then_some(()))
    })
    .await?;
    let (early, _) = cluster.running(policy(json!({}))).await?;

    own.terminate().await?;
    own.start_again(&[])?;
    for task in [&ignored, &early] {
        assert_eq!(text(&stopped(&cluster, task).await?, "stoppedReason")?, WITH_ENGINE);
    }
    let reason = eventually(BACK, "it is started again", || async {
        let task = cluster.task(&again).await?;
        ensure!(task["lastStatus"] == "RUNNING", "{task}");
        text(container(&task, "one")?, "reason").map(Some)
    })
    .await?;
    assert_eq!(reason, "restarted once, last after exit code 0 (the container engine was restarted)");
    let after =
        eventually(BACK, "it runs", || async { process_of(&cluster, &again).await.map(Some) }).await?;
    ensure!(after.0 == before.0 && after.1 != before.1, "{before:?} {after:?}");
    Ok(())
}

// --- hung ---

#[tokio::test]
async fn an_engine_that_accepts_and_never_answers_is_told_of_and_waited_for() -> Result<()> {
    let own = OwnEngine::start().await?;
    let mut cluster = Cluster::start_on(&own, &[]).await?;
    let (kept, _) = cluster.running(sleeper("kept")).await?;
    let (dies, _) = cluster.running(sleeper("dies")).await?;
    let (unwanted, _) = cluster.running(sleeper("unwanted")).await?;
    let (before, (_, pid)) = (process_of(&cluster, &kept).await?, process_of(&cluster, &dies).await?);
    ensure!(cluster.agent.typed(&["status"]).await?.contains("answers"), "it is well");

    own.signal(Signal::SIGSTOP)?;
    let began = Instant::now();
    let amid = cluster.run(sleeper("amid")).await?;
    eventually(NOTICED, "the agent's status says that the engine does not answer", || async {
        Ok(cluster.agent.typed(&["status"]).await?.contains("does not answer").then_some(()))
    })
    .await?;
    println!("noticed after {:.1?}", began.elapsed());
    ensure!(began.elapsed() < here(NOTICED), "{:?}", began.elapsed());
    let late = cluster.run(sleeper("late")).await?;
    cluster.stop(&unwanted, None).await?;
    for task in [&amid, &late] {
        let reason = eventually(PATIENCE, "the task says what it waits for", || async {
            let task = cluster.task(task).await?;
            ensure!(task["lastStatus"] == "PENDING", "{task}");
            text(container(&task, "one")?, "reason").map(Some)
        })
        .await?;
        ensure!(reason.contains("the container engine, which does not answer"), "{reason}");
    }
    kill_process(pid)?;
    // An agent that comes meanwhile waits like one that was there before.
    cluster.agent.kill().await?;
    cluster.agent.start_again()?;
    says(&cluster, "waiting for the container engine", 1).await?;

    own.signal(Signal::SIGCONT)?;
    for task in [&amid, &late] {
        let running = cluster.until(task, "RUNNING", BACK).await?;
        ensure!(container(&running, "one")?.get("reason").is_none_or(Value::is_null), "{running}");
        assert_eq!(cluster.engine.containers_of_task(task).await?.len(), 1, "{task}");
    }
    by_itself(&stopped(&cluster, &dies).await?, 137)?;
    assert_eq!(stopped(&cluster, &unwanted).await?["stopCode"], "UserInitiated");
    assert_eq!(process_of(&cluster, &kept).await?, before);

    // Again, with an agent that stays: what ended meanwhile did not end with the engine, which is the same.
    let (_, pid) = process_of(&cluster, &late).await?;
    own.signal(Signal::SIGSTOP)?;
    says(&cluster, AWAY, 1).await?;
    kill_process(pid)?;
    own.signal(Signal::SIGCONT)?;
    by_itself(&stopped(&cluster, &late).await?, 137)?;
    assert_eq!(process_of(&cluster, &kept).await?, before);
    goes_on(&cluster).await
}

// --- events lost ---

/// Makes so many events that the engine forgets those before.
async fn flood(cluster: &Cluster) -> Result<()> {
    /// More than an engine keeps.
    const EVENTS: usize = 300;
    let docker = cluster.engine.docker();
    for _ in 0..EVENTS / 2 {
        let options = TagImageOptionsBuilder::new().repo("berth-flood").tag(&cluster.name).build();
        docker.tag_image(demo::IMAGE, Some(options)).await?;
        let name = format!("berth-flood:{}", cluster.name);
        docker.remove_image(&name, Some(RemoveImageOptionsBuilder::new().build()), None).await?;
    }
    Ok(())
}

#[tokio::test]
async fn events_that_the_engine_has_forgotten_are_made_up_for() -> Result<()> {
    let own = OwnEngine::start().await?;
    let mut proxy = Proxy::start_to(&own.host())?;
    let mut cluster = Cluster::start_on(&own, &[("DOCKER_HOST", &proxy.docker_host())]).await?;
    let (kept, _) = cluster.running(sleeper("kept")).await?;
    let before = process_of(&cluster, &kept).await?;
    for agent_is_there in [true, false] {
        let (dies, _) = cluster.running(sleeper("dies")).await?;
        let (vanishes, _) = cluster.running(sleeper("vanishes")).await?;
        let (dead, gone) = (process_of(&cluster, &dies).await?, process_of(&cluster, &vanishes).await?);
        if agent_is_there {
            proxy.cut().await?;
            says(&cluster, AWAY, 1).await?;
        } else {
            cluster.agent.kill().await?;
        }
        kill_process(dead.1)?;
        own.typed(&["rm", "--force", &gone.0])?;
        flood(&cluster).await?;
        if agent_is_there {
            proxy.mend()?;
        } else {
            cluster.agent.start_again()?;
        }
        let ended = stopped(&cluster, &dies).await?;
        assert_eq!(container(&ended, "one")?["exitCode"], 137, "{ended}");
        stopped(&cluster, &vanishes).await?;
        assert_eq!(process_of(&cluster, &kept).await?, before);
        assert_eq!(cluster.task(&kept).await?["lastStatus"], "RUNNING");
    }
    Ok(())
}

// --- by hand ---

#[tokio::test]
async fn what_is_done_to_a_container_by_hand_is_told_as_it_was_and_nothing_is_done_twice() -> Result<()> {
    let own = OwnEngine::start().await?;
    let mut cluster = Cluster::start_on(&own, &[]).await?;

    let (ended, _) = cluster.running(sleeper("stopped")).await?;
    own.typed(&["stop", &process_of(&cluster, &ended).await?.0])?;
    by_itself(&stopped(&cluster, &ended).await?, 0)?;

    let (removed, _) = cluster.running(sleeper("removed")).await?;
    own.typed(&["rm", "--force", &process_of(&cluster, &removed).await?.0])?;
    let told = stopped(&cluster, &removed).await?;
    assert_eq!(told["stopCode"], "EssentialContainerExited", "{told}");
    let one = container(&told, "one")?;
    let vanished =
        one["reason"].as_str().is_some_and(|reason| reason.starts_with("ContainerVanishedError: "));
    ensure!(one["exitCode"] == 137 || vanished, "{told}");
    ensure!(cluster.engine.containers_of_task(&removed).await?.is_empty(), "it was made again");

    // By another name it is the same, also for an agent that has to find it.
    let (renamed, _) = cluster.running(sleeper("renamed")).await?;
    let before = process_of(&cluster, &renamed).await?;
    own.typed(&["rename", &before.0, "by-hand"])?;
    for lost in [false, true] {
        cluster.agent.kill().await?;
        if lost {
            cluster.agent.lose_state()?;
        }
        cluster.disconnected().await?;
        cluster.agent.start_again()?;
        cluster.registered().await?;
        assert_eq!(process_of(&cluster, &renamed).await?, before);
        assert_eq!(cluster.task(&renamed).await?["lastStatus"], "RUNNING");
    }
    cluster.stop(&renamed, None).await?;
    let told = stopped(&cluster, &renamed).await?;
    assert_eq!(
        (&told["stopCode"], &container(&told, "one")?["exitCode"]),
        (&json!("UserInitiated"), &json!(0))
    );

    // Paused is running: until it is stopped, which works, however it is done.
    let (paused, _) = cluster.running(sleeper("paused")).await?;
    let before = process_of(&cluster, &paused).await?;
    own.typed(&["pause", &before.0])?;
    cluster.agent.kill().await?;
    cluster.disconnected().await?;
    cluster.agent.start_again()?;
    cluster.registered().await?;
    assert_eq!(cluster.task(&paused).await?["lastStatus"], "RUNNING");
    own.typed(&["unpause", &before.0])?;
    assert_eq!(process_of(&cluster, &paused).await?, before);
    own.typed(&["pause", &before.0])?;
    cluster.stop(&paused, None).await?;
    assert_eq!(stopped(&cluster, &paused).await?["stopCode"], "UserInitiated");

    // What somebody starts that has ended is ended again: its task is over.
    let (revived, _) = cluster.running(sleeper("revived")).await?;
    let (id, pid) = process_of(&cluster, &revived).await?;
    kill_process(pid)?;
    by_itself(&stopped(&cluster, &revived).await?, 137)?;
    own.typed(&["start", &id])?;
    eventually(PATIENCE, "it ends again", || async {
        let state = own.typed(&["inspect", "--format", "{{.State.Running}}", &id])?;
        Ok((state == "false").then_some(()))
    })
    .await?;
    by_itself(&cluster.task(&revived).await?, 137)?;

    // Somebody else's containers are nobody's.
    own.typed(&["run", "--detach", "--name", "stranger", "--network", "none", demo::IMAGE, "sleep", "3600"])?;
    goes_on(&cluster).await?;
    let names: BTreeSet<String> =
        own.typed(&["ps", "--format", "{{.Names}}"])?.lines().map(str::to_owned).collect();
    assert_eq!(names, BTreeSet::from(["stranger".to_owned()]));
    own.typed(&["rm", "--force", "stranger"])?;
    Ok(())
}
