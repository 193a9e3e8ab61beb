//! Promise: on a host where everything goes wrong (a disk that is full, read-only or damaged, no file descriptors,
//! no processes, a clock that jumps, tasks that eat all they get), what runs goes on, it is told what is wrong, and
//! what was missed is made up for.

use std::collections::BTreeSet;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use berth_tests::cluster::container;
use berth_tests::expect::{PATIENCE, here};
use berth_tests::sim::{Crowd, SmallDisk, WrongClock};
use berth_tests::{Cluster, KeepAlive, demo, eventually};
use serde_json::{Value, json};

/// Long enough for the pauses between two attempts, which grow.
const BACK: Duration = Duration::from_secs(60);

fn sleeper(family: &str) -> Value {
    demo::task(family, "none", json!([demo::container("one", &["sleep", "3600"])]))
}

async fn says(cluster: &Cluster, what: &str) -> Result<()> {
    eventually(PATIENCE, format!("the agent says {what:?}"), || async {
        Ok(cluster.agent.output().contains(what).then_some(()))
    })
    .await
}

// --- the state's disk ---

#[tokio::test]
async fn a_disk_that_turns_read_only_hurts_nothing_and_is_made_up_for() -> Result<()> {
    let disk = SmallDisk::mount(16)?;
    let folder = disk.path().to_str().context("a strange path")?.to_owned();
    let run = tempfile::tempdir()?;
    let run = run.path().display().to_string();
    let mut cluster = Cluster::start_with(&[("ECS_DATADIR", &folder), ("BERTH_RUN_DIR", &run)]).await?;
    let (kept, _) = cluster.running(sleeper("kept")).await?;
    let (dies, _) = cluster.running(sleeper("dies")).await?;
    let before = cluster.process_of(&kept).await?;

    // Who has it open for writing keeps it writable: the agent is started on it, as after a reboot into trouble.
    cluster.agent.terminate().await?;
    disk.read_only(true)?;
    cluster.engine.kill(&cluster.process_of(&dies).await?.0).await?;
    cluster.agent.start_again()?;
    let status = cluster.agent.end().await?;
    assert_eq!(status.code(), Some(1), "another time it may work: {}", cluster.agent.output());
    let output = cluster.agent.output();
    ensure!(output.contains(&folder) && output.contains("Read-only file system"), "{output}");
    assert_eq!(cluster.process_of(&kept).await?, before);

    disk.read_only(false)?;
    cluster.agent.start_again()?;
    cluster.registered().await?;
    let died = cluster.until(&dies, "STOPPED", BACK).await?;
    assert_eq!(container(&died, "one")?["exitCode"], 137);
    assert_eq!(cluster.process_of(&kept).await?, before);
    cluster.running(sleeper("new")).await?;
    Ok(())
}

/// The agent ends, its state is damaged so, and it starts again: the host keeps its task and its name, nothing is
/// there twice, and it is told where the damaged file is.
async fn damaged(damage: impl Fn(&std::fs::File) -> Result<()>) -> Result<()> {
    let mut cluster = Cluster::start().await?;
    let instance = cluster.registered().await?;
    let (kept, _) = cluster.running(sleeper("kept")).await?;
    let (dies, _) = cluster.running(sleeper("dies")).await?;
    let before = cluster.process_of(&kept).await?;
    cluster.agent.kill().await?;
    let path = cluster.agent.data_dir().join("agent.redb");
    damage(&std::fs::File::options().read(true).write(true).open(&path)?)?;
    cluster.engine.kill(&cluster.process_of(&dies).await?.0).await?;

    cluster.agent.start_again()?;
    says(&cluster, "connected to the control plane").await?;
    says(&cluster, "is damaged").await?;
    let aside = cluster.agent.data_dir().join("agent.redb.damaged");
    ensure!(cluster.agent.output().contains(&aside.display().to_string()), "{}", cluster.agent.output());
    ensure!(aside.is_file(), "the damaged file is gone");
    assert_eq!(cluster.registered().await?, instance, "the labels name the instance");
    assert_eq!(cluster.process_of(&kept).await?, before);
    cluster.until(&dies, "STOPPED", PATIENCE).await?;
    assert_eq!(cluster.task(&kept).await?["lastStatus"], "RUNNING");
    assert_eq!(cluster.engine.containers_of_task(&kept).await?.len(), 1);
    // The next start finds nothing wrong.
    cluster.agent.terminate().await?;
    cluster.agent.start_again()?;
    says(&cluster, "connected to the control plane").await?;
    ensure!(!cluster.agent.output().contains("is damaged"), "{}", cluster.agent.output());
    cluster.stop(&kept, None).await?;
    cluster.until(&kept, "STOPPED", PATIENCE).await?;
    Ok(())
}

#[tokio::test]
async fn a_state_file_that_was_cut_short_is_begun_anew() -> Result<()> {
    // Before what it holds: the file is longer than that, and the rest of it nobody would miss.
    damaged(|file| Ok(file.set_len(8 * 1024)?)).await
}

#[tokio::test]
async fn a_state_file_that_is_empty_is_begun_anew() -> Result<()> {
    damaged(|file| Ok(file.set_len(0)?)).await
}

#[tokio::test]
async fn a_state_file_full_of_noise_is_begun_anew() -> Result<()> {
    damaged(|file| {
        let mut noise = vec![0; usize::try_from(file.metadata()?.len())?];
        std::fs::File::open("/dev/urandom")?.read_exact(&mut noise)?;
        Ok(file.write_all_at(&noise, 0)?)
    })
    .await
}

#[tokio::test]
async fn a_state_file_whose_records_turned_is_begun_anew() -> Result<()> {
    damaged(|mut file| {
        // One letter of each record: what the database's own pages say stays as it was.
        let mut all = Vec::new();
        file.read_to_end(&mut all)?;
        let at = (0..all.len()).filter(|at| all[*at..].starts_with(b"arn:aws:ecs")).collect::<Vec<_>>();
        ensure!(!at.is_empty(), "no record");
        for place in at {
            file.seek(SeekFrom::Start(u64::try_from(place)? + 5))?;
            file.write_all(b"X")?;
        }
        Ok(())
    })
    .await
}

// --- what the kernel gives ---

/// The most files that the agent may have open, from now on.
fn most_files(cluster: &Cluster, most: usize) -> Result<()> {
    let pid = cluster.agent.pid().context("no agent")?.to_string();
    let done = Command::new("prlimit").args(["--pid", &pid, &format!("--nofile={most}:")]).output()?;
    ensure!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    Ok(())
}

#[tokio::test]
async fn without_file_descriptors_it_waits_until_there_are_some() -> Result<()> {
    let cluster = Cluster::start().await?;
    let (kept, _) = cluster.running(sleeper("kept")).await?;
    let (dies, _) = cluster.running(sleeper("dies")).await?;
    let before = cluster.process_of(&kept).await?;
    let url = format!("http://{}/v1/health", cluster.agent.introspection()?);

    // Not one more than it has, and some of those it will close and not get again.
    most_files(&cluster, 3)?;
    let late = cluster.run(sleeper("late")).await?;
    cluster.engine.kill(&cluster.process_of(&dies).await?.0).await?;
    // It is asked all the time meanwhile.
    let asked = Instant::now();
    while asked.elapsed() < Duration::from_secs(5) {
        let asking = tokio::time::timeout(Duration::from_millis(200), berth_tests::http::get(&url));
        drop(asking.await);
    }
    assert_eq!(cluster.process_of(&kept).await?, before);
    ensure!(cluster.agent.pid().is_some(), "the agent ended: {}", cluster.agent.output());

    most_files(&cluster, 4096)?;
    let died = eventually(BACK, "the death is told", || async {
        let task = cluster.task(&dies).await?;
        Ok((task["lastStatus"] == "STOPPED").then_some(task))
    });
    assert_eq!(container(&died.await?, "one")?["exitCode"], 137);
    eventually(BACK, "introspection answers", || async {
        Ok(berth_tests::http::get(&url).await?.0.is_success().then_some(()))
    })
    .await?;
    // The one that came in between ran late, or says why it could not.
    let late = eventually(BACK, "the late one is settled", || async {
        let task = cluster.task(&late).await?;
        Ok(["RUNNING", "STOPPED"].contains(&task["lastStatus"].as_str().unwrap_or_default()).then_some(task))
    })
    .await?;
    ensure!(late["lastStatus"] == "RUNNING", "it was given up: {late}");
    assert_eq!(cluster.process_of(&kept).await?, before);
    cluster.running(sleeper("new")).await?;
    Ok(())
}

#[tokio::test]
async fn without_another_thread_it_goes_on_with_those_that_it_has() -> Result<()> {
    // Longer than a thread is kept that has nothing to do.
    const LASTS: Duration = Duration::from_secs(12);
    // Files are written on threads of their own.
    let cluster = Cluster::start_with(&[("ECS_ENABLE_CONTAINER_METADATA", "true")]).await?;
    let (kept, _) = cluster.running(sleeper("kept")).await?;
    let (dies, _) = cluster.running(sleeper("dies")).await?;
    let before = cluster.process_of(&kept).await?;
    let crowd = Crowd::around(cluster.agent.pid().context("no agent")?, &format!("{}-agent", cluster.name))?;
    crowd.fill()?;
    tokio::time::sleep(LASTS).await;

    cluster.engine.kill(&cluster.process_of(&dies).await?.0).await?;
    let died = cluster.until(&dies, "STOPPED", PATIENCE).await?;
    assert_eq!(container(&died, "one")?["exitCode"], 137);
    let late = cluster.run(sleeper("late")).await?;
    cluster.until(&late, "RUNNING", PATIENCE).await?;
    cluster.stop(&late, None).await?;
    cluster.until(&late, "STOPPED", PATIENCE).await?;
    crowd.leave()?;
    assert_eq!(cluster.process_of(&kept).await?, before);
    ensure!(!cluster.agent.output().contains("panicked"), "{}", cluster.agent.output());
    cluster.running(sleeper("new")).await?;
    Ok(())
}

// --- the clock ---

const DAY: i64 = 24 * 3600;

/// The tasks of which the agent said that they are RUNNING.
fn told_running(cluster: &Cluster) -> BTreeSet<String> {
    let output = cluster.agent.output();
    let lines = output.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines
        .filter(|line| line["status"] == "RUNNING")
        .filter_map(|line| Some(line["task"].as_str()?.to_owned()))
        .collect()
}

#[tokio::test]
async fn a_clock_that_jumps_ends_no_wait_early_or_late_and_doubles_nothing() -> Result<()> {
    let clock = WrongClock::new()?;
    let environment = clock.environment();
    let mut env: Vec<(&str, &str)> = environment.iter().map(|(key, value)| (*key, value.as_str())).collect();
    // How long what has stopped is kept.
    env.push(("ECS_ENGINE_TASK_CLEANUP_WAIT_DURATION", "20s"));
    let cluster = Cluster::start_with(&env).await?;
    for by in [DAY, -DAY] {
        let (kept, _) = cluster.running(sleeper("kept")).await?;
        let before = cluster.process_of(&kept).await?;
        // One waits for another to be healthy, which it never is, for as long as it may.
        let sick = demo::container_with(
            "sick",
            &["sleep", "3600"],
            json!({ "startTimeout": 12, "healthCheck": { "command": ["CMD", "/berth-demo", "healthy", "--file", "/none"], "interval": 5, "startPeriod": 300 } }),
        );
        let waits = demo::container_with(
            "waits",
            &["sleep", "3600"],
            json!({ "dependsOn": [{ "containerName": "sick", "condition": "HEALTHY" }] }),
        );
        let asked = Instant::now();
        let waiting = cluster.run(demo::task("waiting", "none", json!([sick, waits]))).await?;
        let brief = Instant::now();
        let (stopped, _) = cluster
            .stopped(demo::task("brief", "none", json!([demo::container("one", &["exit", "0"])])))
            .await?;
        eventually(PATIENCE, "the first of two runs", || async {
            let made = cluster.engine.inspect(&cluster.engine.id_of(&waiting, "sick").await?).await?;
            Ok(made.state.and_then(|state| state.running).unwrap_or_default().then_some(()))
        })
        .await?;
        let began = Instant::now();
        let mut told = told_running(&cluster);

        clock.put(by)?;
        // Something happens, so that everybody looks at the clock.
        let (other, _) = cluster.running(sleeper("other")).await?;
        cluster.stop(&other, None).await?;
        cluster.until(&other, "STOPPED", PATIENCE).await?;
        let over = eventually(BACK, "the wait is over", || async {
            let task = cluster.task(&waiting).await?;
            Ok((task["lastStatus"] == "STOPPED").then_some(task))
        })
        .await?;
        let (most, least) = (asked.elapsed(), began.elapsed());
        ensure!(over.to_string().contains("did not become HEALTHY within"), "{by}: {over}");
        ensure!(most >= Duration::from_secs(12), "{by}: it waited {most:?} at most");
        ensure!(least < here(Duration::from_secs(25)), "{by}: it waited {least:?} at least");
        eventually(BACK, "what has stopped is removed", || async {
            Ok(cluster.engine.containers_of_task(&stopped).await?.is_empty().then_some(()))
        })
        .await?;
        let kept_for = brief.elapsed();
        ensure!(kept_for >= Duration::from_secs(20), "{by}: it was kept for {kept_for:?} at most");

        assert_eq!(cluster.process_of(&kept).await?, before);
        assert_eq!(cluster.task(&kept).await?["lastStatus"], "RUNNING");
        ensure!(cluster.instance().await?["agentConnected"] == true, "{by}: it is away");
        told.insert(other);
        assert_eq!(told_running(&cluster), told, "{by}: only the new one was told to be RUNNING");
        ensure!(cluster.agent.output().contains("the host's clock was moved"), "{by}: nobody noticed");
        cluster.stop(&kept, None).await?;
        clock.put(0)?;
    }
    Ok(())
}

// --- tasks that eat all they get ---

#[tokio::test]
async fn a_fork_bomb_and_a_memory_hog_leave_the_agent_as_it_is() -> Result<()> {
    const LASTS: Duration = Duration::from_secs(10);
    const SLOWEST: Duration = Duration::from_millis(500);
    let cluster = Cluster::start_with(&[("ECS_TASK_PIDS_LIMIT", "64")]).await?;
    let (kept, _) = cluster.running(sleeper("kept")).await?;
    let before = cluster.process_of(&kept).await?;
    let folders = ["/usr", "/bin", "/lib", "/lib64"];
    let names: Vec<(String, &str)> = folders
        .iter()
        .filter(|folder| std::path::Path::new(folder).exists())
        .enumerate()
        .map(|(n, folder)| (format!("v{n}"), *folder))
        .collect();
    let mounts: Vec<Value> = names
        .iter()
        .map(|(name, to)| json!({ "sourceVolume": name, "containerPath": to, "readOnly": true }))
        .collect();
    let bomb = demo::container_with(
        "bomb",
        // bash, which tries again for a while when it cannot fork, and then stays in another shape.
        &["-c", "trap 'exec sleep 3600' EXIT; while :; do sleep 3600 & done"],
        json!({ "entryPoint": ["/usr/bin/bash"], "mountPoints": mounts, "stopTimeout": 2 }),
    );
    let mut bomb = demo::task("bomb", "none", json!([bomb]));
    bomb["cpu"] = json!("512");
    bomb["memory"] = json!("128");
    bomb["volumes"] =
        names.iter().map(|(name, from)| json!({ "name": name, "host": { "sourcePath": from } })).collect();
    let (bomb, _) = cluster.running(bomb).await?;
    let policy = json!({ "restartPolicy": { "enabled": true, "restartAttemptPeriod": 60 }, "memory": 32 });
    let mut hogs = Vec::new();
    for n in 0..3 {
        let hog = demo::container_with("hog", &["eat-memory", "512"], policy.clone());
        hogs.push(cluster.run(demo::task(&format!("hog-{n}"), "none", json!([hog]))).await?);
    }

    let address = cluster.agent.introspection()?;
    let mut took = Vec::new();
    let began = Instant::now();
    let mut most = 0;
    while began.elapsed() < LASTS {
        let asked = Instant::now();
        let to = address.clone();
        let answer = tokio::task::spawn_blocking(move || {
            let mut wire = KeepAlive::connect(&to)?;
            wire.ask("/v1/tasks", 1)?;
            wire.answer()
        });
        assert_eq!(answer.await??.0, 200);
        took.push(asked.elapsed());
        most = most.max(cluster.task_cgroup("pids", &bomb, "pids.current")?);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    took.sort();
    let slow = took[took.len() * 99 / 100];
    println!("{} answers, p99 {slow:?}, {most} processes", took.len());
    ensure!(slow < here(SLOWEST), "p99 {slow:?}");
    ensure!((32..=64).contains(&most), "{most} processes");
    for hog in &hogs {
        let stopped = cluster.until(hog, "STOPPED", PATIENCE).await?;
        let reason = container(&stopped, "hog")?["reason"].as_str().unwrap_or_default().to_owned();
        ensure!(reason.contains("OutOfMemoryError"), "{stopped}");
    }
    assert_eq!(cluster.process_of(&kept).await?, before);
    // It ends when it is told to, all of it.
    assert_eq!(cluster.task(&bomb).await?["lastStatus"], "RUNNING");
    cluster.stop(&bomb, None).await?;
    assert_eq!(cluster.until(&bomb, "STOPPED", BACK).await?["stopCode"], "UserInitiated");
    ensure!(cluster.instance().await?["agentConnected"] == true, "the agent was lost meanwhile");
    Ok(())
}
