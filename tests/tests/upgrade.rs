//! Promise: another version of the agent takes over where the one before left off, with fifty tasks that do not notice,
//! and no event lost or told twice; an older one refuses state that it does not know, and harms nothing.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use berth_tests::cluster::container;
use berth_tests::expect::{PATIENCE, here};
use berth_tests::program::binary;
use berth_tests::{Cluster, demo, eventually};
use futures_util::future::try_join_all;
use redb::{Database, ReadableDatabase, TableDefinition};
use serde_json::{Value, json};

const TASKS: usize = 50;
/// Launches that are under way at once: the engine's own limit, and the limit of this host's patience.
const AT_ONCE: usize = 10;
/// The longest that the host may be without its agent.
const AWAY: Duration = Duration::from_secs(2);
const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");
const FORMAT: &str = "format";

fn sleeper(mode: &str) -> Value {
    let one = demo::container_with("one", &["sleep", "3600"], json!({ "memory": 16 }));
    demo::task(mode, mode, json!([one]))
}

/// The process of each task's container: the same as long as nothing hurt it.
async fn processes(cluster: &Cluster, tasks: &[String]) -> Result<BTreeMap<String, (String, i64)>> {
    let looks = tasks.iter().map(|task| async move {
        let found = cluster.engine.containers_of_task(task).await?;
        ensure!(found.len() == 1, "{task} has {} containers", found.len());
        let id = found[0].id.clone().context("no id")?;
        let state = cluster.engine.inspect(&id).await?.state.context("no state")?;
        ensure!(state.running == Some(true), "container {id} does not run");
        Ok((task.clone(), (id, state.pid.context("no process")?)))
    });
    Ok(try_join_all(looks).await?.into_iter().collect())
}

/// What is known of each task; of since when its host is connected, nothing.
async fn known(cluster: &Cluster, tasks: &[String]) -> Result<BTreeMap<String, Value>> {
    let asks = tasks.iter().map(|task| async move {
        let mut known = cluster.task(task).await?;
        known.as_object_mut().context("no object")?.remove("connectivityAt").context("no connectivityAt")?;
        anyhow::Ok((task.clone(), known))
    });
    Ok(try_join_all(asks).await?.into_iter().collect())
}

/// The same program in another place, as a package that is upgraded leaves it.
fn another_program(folder: &Path) -> Result<PathBuf> {
    let path = folder.join("berth-agent");
    std::fs::copy(binary("berth-agent")?, &path)?;
    Ok(path)
}

fn state(cluster: &Cluster) -> PathBuf {
    cluster.agent.data_dir().join("agent.redb")
}

/// The format that the state says it has.
fn format_of(path: &Path) -> Result<Option<u32>> {
    let database = Database::open(path)?;
    let meta = database.begin_read()?.open_table(META)?;
    let Some(value) = redb::ReadableTable::get(&meta, FORMAT)? else { return Ok(None) };
    let (_, json) = value.value().split_first().context("an empty record")?;
    Ok(Some(serde_json::from_slice(json)?))
}

/// Has the state say so.
fn say_format(path: &Path, format: Option<u32>) -> Result<()> {
    let database = Database::open(path)?;
    let transaction = database.begin_write()?;
    {
        let mut meta = transaction.open_table(META)?;
        match format {
            Some(format) => {
                // One byte says how the rest is written: as JSON.
                let value = [&[1], format.to_string().as_bytes()].concat();
                meta.insert(FORMAT, value.as_slice())?;
            }
            None => {
                meta.remove(FORMAT)?;
            }
        }
    }
    transaction.commit()?;
    Ok(())
}

/// Every file of the agent's with what is in it.
fn files(folder: &Path) -> Result<BTreeMap<PathBuf, Vec<u8>>> {
    let mut all = BTreeMap::new();
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            all.extend(files(&entry.path())?);
        } else if entry.file_type()?.is_file() {
            all.insert(entry.path(), std::fs::read(entry.path())?);
        }
    }
    Ok(all)
}

#[tokio::test]
async fn fifty_tasks_do_not_notice_that_another_version_takes_over() -> Result<()> {
    let mut cluster = Cluster::start().await?;
    let instance = cluster.registered().await?;
    let definitions = [cluster.register(sleeper("none")).await?, cluster.register(sleeper("bridge")).await?];
    let mut tasks = Vec::new();
    while tasks.len() < TASKS {
        let asked = (0..AT_ONCE).map(|n| cluster.run_definition(&definitions[n % 2]));
        let some = try_join_all(asked).await?;
        try_join_all(some.iter().map(|task| cluster.until(task, "RUNNING", PATIENCE * 2))).await?;
        tasks.extend(some);
    }
    let folder = tempfile::tempdir()?;
    let program = another_program(folder.path())?;
    let dies = tasks.pop().context("no task")?;
    let doomed = processes(&cluster, std::slice::from_ref(&dies)).await?[&dies].0.clone();
    let (before, told) = (processes(&cluster, &tasks).await?, known(&cluster, &tasks).await?);

    let began = Instant::now();
    let status = cluster.agent.terminate().await?;
    let ended = began.elapsed();
    ensure!(status.success(), "{status}");
    ensure!(!cluster.agent.output().contains("\"status\":\"STOPPED\""), "{}", cluster.agent.output());
    cluster.engine.kill(&doomed).await?;
    let killed = began.elapsed();
    cluster.agent.start_as(&program)?;
    let within = |what: &'static str| {
        let cluster = &cluster;
        eventually(PATIENCE, format!("the agent says {what:?}"), move || async move {
            Ok(cluster.agent.output().contains(what).then(|| began.elapsed()))
        })
    };
    let reconciled = within("\"restored\"").await?;
    let connected = within("\"connected to the control plane\"").await?;
    let away = connected - (killed - ended);
    println!(
        "{TASKS} tasks: ended after {ended:.2?}; from the start, reconciled after {:.2?} and connected after {:.2?}; \
         away {away:.2?} in all",
        reconciled - killed,
        connected - killed,
    );
    ensure!(away < here(AWAY), "away for {away:?}");

    let end = cluster.until(&dies, "STOPPED", PATIENCE).await?;
    assert_eq!(
        (&end["stopCode"], &container(&end, "one")?["exitCode"]),
        (&json!("EssentialContainerExited"), &json!(137))
    );
    assert_eq!(cluster.registered().await?, instance, "the same instance comes back");
    // Once all of it has come: what was told in vain would have been told by now.
    let mark = cluster.run_definition(&definitions[0]).await?;
    cluster.until(&mark, "RUNNING", PATIENCE).await?;
    assert_eq!(
        cluster.agent.output().matches("\"status\":\"STOPPED\"").count(),
        1,
        "{}",
        cluster.agent.output()
    );
    assert_eq!(processes(&cluster, &tasks).await?, before, "a container was started again");
    let now = known(&cluster, &tasks).await?;
    for (task, then) in &told {
        // Its version counts what was told of it.
        assert_eq!(&now[task], then, "it was told of again");
    }
    ensure!(!cluster.control_plane.output().contains("state changes are missing"), "reports were lost");
    Ok(())
}

#[tokio::test]
async fn state_of_a_newer_version_is_refused_and_left_as_it_is_and_an_older_one_is_taken_up() -> Result<()> {
    let mut cluster = Cluster::start().await?;
    let (kept, _) = cluster.running(sleeper("none")).await?;
    let (dies, _) = cluster.running(sleeper("bridge")).await?;
    let of_kept = std::slice::from_ref(&kept);
    let before = processes(&cluster, of_kept).await?;
    let doomed = processes(&cluster, std::slice::from_ref(&dies)).await?[&dies].0.clone();
    for killed in [false, true] {
        if killed {
            cluster.agent.kill().await?;
        } else {
            ensure!(cluster.agent.terminate().await?.success());
        }
        let format = format_of(&state(&cluster))?.context("the state has no format")?;
        say_format(&state(&cluster), Some(format + 1))?;
        let there = files(cluster.agent.data_dir())?;

        cluster.agent.start_again()?;
        assert_eq!(cluster.agent.end().await?.code(), Some(5), "{}", cluster.agent.output());
        let output = cluster.agent.output();
        for part in [&format!("of format {}", format + 1), "Install that version again", "move the file away"]
        {
            ensure!(output.contains(part), "{part} in {output}");
        }
        ensure!(files(cluster.agent.data_dir())? == there, "something was changed");
        assert_eq!(processes(&cluster, of_kept).await?, before);

        // The newer version is back, or one that knows no number yet is followed by this one.
        say_format(&state(&cluster), if killed { None } else { Some(format) })?;
        if killed {
            cluster.engine.kill(&doomed).await?;
        }
        cluster.agent.start_again()?;
        eventually(PATIENCE, "the agent is back", || async {
            Ok(cluster.agent.output().contains("connected to the control plane").then_some(()))
        })
        .await?;
        assert_eq!(processes(&cluster, of_kept).await?, before);
        assert_eq!(cluster.task(&kept).await?["lastStatus"], "RUNNING");
    }
    let end = cluster.until(&dies, "STOPPED", PATIENCE).await?;
    assert_eq!(container(&end, "one")?["exitCode"], 137);
    ensure!(cluster.agent.output().contains("has the present format"), "{}", cluster.agent.output());
    ensure!(cluster.agent.terminate().await?.success());
    ensure!(format_of(&state(&cluster))?.is_some(), "it has no format yet");
    Ok(())
}
