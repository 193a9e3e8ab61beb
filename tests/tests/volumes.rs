//! Promise: a volume may be of any driver that the engine has; one whose driver does not answer holds up its own
//! task alone, which says so, and leaves nothing behind.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use berth_tests::cluster::{container, text};
use berth_tests::expect::{PATIENCE, here};
use berth_tests::{Cluster, OwnEngine, VolumePlugin, demo, eventually};
use bollard::query_parameters::ListVolumesOptions;
use serde_json::{Value, json};

/// Stopped tasks are cleaned up at once.
const CLEAN_UP: (&str, &str) = ("ECS_ENGINE_TASK_CLEANUP_WAIT_DURATION", "1s");

/// The least that the agent takes for these, and longer than that for the end to be told.
const DEADLINES: [(&str, &str); 2] =
    [("ECS_CONTAINER_CREATE_TIMEOUT", "1m"), ("ECS_CONTAINER_START_TIMEOUT", "45s")];
const DEADLINE: Duration = Duration::from_secs(75);
/// What a task that has nothing to do with the plug-in may take.
const AT_ONCE: Duration = Duration::from_secs(5);

/// A task of one container that has a volume of its own at `/data`, as the configuration says.
fn with_volume(family: &str, command: &[&str], configuration: Value) -> Value {
    let mounts = json!({ "mountPoints": [{ "sourceVolume": "data", "containerPath": "/data" }] });
    let app = demo::container_with("app", command, mounts);
    let mut definition = demo::task(family, "none", json!([app]));
    definition["volumes"] = json!([{ "name": "data", "dockerVolumeConfiguration": configuration }]);
    definition
}

#[tokio::test]
async fn a_plug_ins_volumes_are_offered_mounted_and_removed_with_their_task_or_kept() -> Result<()> {
    let own = OwnEngine::start().await?;
    let plugin = VolumePlugin::start("berth-test-good")?;
    // Only the plug-in's socket tells of it: the engine has never used it.
    let cluster = Cluster::start_on(&own, &[CLEAN_UP]).await?;
    let instance = cluster.instance().await?;
    let attributes = instance["attributes"].as_array().context("attributes")?;
    let offered = format!("com.amazonaws.ecs.capability.docker-plugin.{}", plugin.name());
    ensure!(attributes.iter().any(|attribute| attribute["name"] == offered.as_str()), "{attributes:?}");

    let mut definition = with_volume(
        "plugged",
        &["sleep", "3600"],
        json!({ "driver": plugin.name(), "driverOpts": { "size": "1g" }, "labels": { "of": "test" } }),
    );
    let shared = format!("{}-shared", cluster.name);
    let configuration = json!({ "scope": "shared", "autoprovision": true, "driver": plugin.name() });
    definition["volumes"]
        .as_array_mut()
        .context("volumes")?
        .push(json!({ "name": shared, "dockerVolumeConfiguration": configuration }));
    let writer = demo::container_with(
        "writer",
        &["write", "/data/word", "written"],
        json!({
            "essential": false,
            "mountPoints": [{ "sourceVolume": "data", "containerPath": "/data" }, { "sourceVolume": shared, "containerPath": "/shared" }],
        }),
    );
    definition["containerDefinitions"].as_array_mut().context("containers")?.push(writer);
    let (task, _) = cluster.running(definition).await?;
    let volumes = plugin.volumes();
    let id = task.rsplit('/').next().unwrap_or_default();
    let (data, options) =
        volumes.iter().find(|(name, _)| name.contains("-data-") && name.contains(id)).context("no volume")?;
    assert_eq!(options.get("size").map(String::as_str), Some("1g"));
    ensure!(volumes.contains_key(&shared), "{volumes:?}");
    let file = plugin.folder(data).join("word");
    eventually(PATIENCE, "the file is in the plug-in's folder", || async {
        Ok((fs::read_to_string(&file)?.trim() == "written").then_some(()))
    })
    .await?;
    let listed = cluster.engine.docker().list_volumes(None::<ListVolumesOptions>).await?;
    let listed = listed.volumes.unwrap_or_default();
    let made = listed.iter().find(|volume| &volume.name == data).context("the engine has it not")?;
    assert_eq!(made.driver, plugin.name());
    assert_eq!(made.labels.get("of").map(String::as_str), Some("test"));

    cluster.stop(&task, None).await?;
    cluster.until(&task, "STOPPED", PATIENCE).await?;
    eventually(PATIENCE, "the task's own volume is gone", || async {
        Ok((!plugin.volumes().contains_key(data)).then_some(()))
    })
    .await?;
    assert_eq!(plugin.volumes().into_keys().collect::<Vec<_>>(), [shared]);
    let called = |method: &str| plugin.calls().iter().filter(|(called, _)| called == method).count();
    assert_eq!(called("Mount"), called("Unmount"), "{:?}", plugin.calls());
    Ok(())
}

/// A task whose volume is of that plug-in.
fn plugged(family: &str, plugin: &VolumePlugin) -> Value {
    with_volume(family, &["sleep", "3600"], json!({ "driver": plugin.name() }))
}

/// A task that needs no plug-in starts as if nothing were.
async fn another_starts(cluster: &Cluster) -> Result<String> {
    let began = Instant::now();
    let another = demo::task("another", "none", json!([demo::container("app", &["sleep", "3600"])]));
    let (task, _) = cluster.running(another).await?;
    println!("another task runs after {:?}", began.elapsed());
    ensure!(began.elapsed() < here(AT_ONCE), "{:?}", began.elapsed());
    Ok(task)
}

/// What the operator is told on the host that the task's container waits for.
async fn wait_of(cluster: &Cluster, task: &str) -> Result<String> {
    let began = Instant::now();
    let url = format!("http://{}/v1/tasks?taskarn={task}", cluster.agent.introspection()?);
    let (_, body) = berth_tests::http::get(&url).await?;
    ensure!(began.elapsed() < here(AT_ONCE), "the operator waited for {:?}", began.elapsed());
    let told: Value = serde_json::from_str(&body)?;
    text(&told["Containers"][0], "WaitingFor")
}

/// Neither a container of the task is left, nor a volume of the plug-in.
async fn nothing_is_left(cluster: &Cluster, task: &str, plugin: &VolumePlugin) -> Result<()> {
    eventually(PATIENCE, "nothing is left", || async {
        let containers = cluster.engine.containers_of_task(task).await?.len();
        let volumes = plugin.volumes();
        ensure!(containers == 0 && volumes.is_empty(), "{containers} containers, {volumes:?}");
        Ok(Some(()))
    })
    .await
}

#[tokio::test]
async fn a_plug_in_that_hangs_ends_its_task_at_the_deadline_by_name() -> Result<()> {
    let own = OwnEngine::start().await?;
    let (making, mounting) =
        (VolumePlugin::start("berth-test-making")?, VolumePlugin::start("berth-test-mounting")?);
    let cluster = Cluster::start_on(&own, &[CLEAN_UP, DEADLINES[0], DEADLINES[1]]).await?;
    let (no_making, no_mounting) = (making.hang("Create"), mounting.hang("Mount"));
    let began = Instant::now();
    let not_made = cluster.run(plugged("not-made", &making)).await?;
    let not_mounted = cluster.run(plugged("not-mounted", &mounting)).await?;
    making.called("Create").await?;
    mounting.called("Mount").await?;
    another_starts(&cluster).await?;
    for (task, step, plugin) in [(&not_made, "make", &making), (&not_mounted, "start", &mounting)] {
        let wait = wait_of(&cluster, task).await?;
        ensure!(
            wait.contains(step) && wait.contains(&format!("volume data of driver {}", plugin.name())),
            "{wait}"
        );
    }

    // One that is being started could run yet: it is told that this took too long, and what became of it is
    // waited for.
    let told = eventually(DEADLINE, "the deadline is told", || async {
        let task = cluster.task(&not_mounted).await?;
        let reason = text(container(&task, "app")?, "reason")?;
        ensure!(reason.starts_with("DockerTimeoutError"), "{reason}");
        Ok(Some(task))
    })
    .await?;
    println!("told that it was not started after {:?}", began.elapsed());
    ensure!(told["lastStatus"] != "STOPPED" && told["desiredStatus"] == "STOPPED", "{told}");
    let stopped = cluster.until(&not_made, "STOPPED", DEADLINE).await?;
    println!("stopped because it was not made after {:?}", began.elapsed());
    drop(no_mounting);
    let late = cluster.until(&not_mounted, "STOPPED", PATIENCE).await?;
    for (task, status, plugin) in [(&stopped, "CREATED", &making), (&late, "RUNNING", &mounting)] {
        let reason = text(container(task, "app")?, "reason")?;
        for part in ["DockerTimeoutError: ", status, "volume data", plugin.name()] {
            ensure!(reason.contains(part), "{part} in {reason}");
        }
        ensure!(text(task, "stoppedReason")?.contains(plugin.name()), "{task}");
        assert_eq!(task["stopCode"], "TaskFailedToStart", "{task}");
    }
    nothing_is_left(&cluster, &not_mounted, &mounting).await?;
    // The engine goes on with what nobody waits for: it is removed when it comes.
    drop(no_making);
    making.called("Remove").await?;
    nothing_is_left(&cluster, &not_made, &making).await
}

#[tokio::test]
async fn a_task_whose_plug_in_hangs_stops_when_told_to() -> Result<()> {
    let own = OwnEngine::start().await?;
    let plugin = VolumePlugin::start("berth-test-hanging")?;
    let cluster = Cluster::start_on(&own, &[CLEAN_UP]).await?;
    {
        let _hanging = plugin.hang("Create");
        let task = cluster.run(plugged("not-made", &plugin)).await?;
        plugin.called("Create").await?;
        let began = Instant::now();
        cluster.stop(&task, None).await?;
        let stopped = cluster.until(&task, "STOPPED", PATIENCE).await?;
        println!("stopped after {:?} though its volume is not made", began.elapsed());
        ensure!(began.elapsed() < here(AT_ONCE), "{:?}", began.elapsed());
        assert_eq!(stopped["stopCode"], "UserInitiated", "{stopped}");
    }
    let volume = plugin.called("Remove").await?;
    ensure!(volume.contains("not-made"), "{volume}");

    let hanging = plugin.hang("Mount");
    let task = cluster.run(plugged("not-mounted", &plugin)).await?;
    plugin.called("Mount").await?;
    cluster.stop(&task, None).await?;
    another_starts(&cluster).await?;
    // It may run at any moment: it is not gone before that is known.
    let stopping = cluster.task(&task).await?;
    ensure!(stopping["lastStatus"] != "STOPPED" && stopping["desiredStatus"] == "STOPPED", "{stopping}");
    drop(hanging);
    let stopped = cluster.until(&task, "STOPPED", PATIENCE).await?;
    assert_eq!(stopped["stopCode"], "UserInitiated", "{stopped}");
    nothing_is_left(&cluster, &task, &plugin).await
}

#[tokio::test]
async fn an_agent_that_starts_again_does_not_wait_for_a_plug_in() -> Result<()> {
    let own = OwnEngine::start().await?;
    let plugin = VolumePlugin::start("berth-test-away")?;
    let mut cluster = Cluster::start_on(&own, &[CLEAN_UP]).await?;
    let another = another_starts(&cluster).await?;
    let hanging = plugin.hang("Mount");
    let task = cluster.run(plugged("not-mounted", &plugin)).await?;
    plugin.called("Mount").await?;
    cluster.agent.kill().await?;
    let began = Instant::now();
    cluster.agent.start_again()?;
    cluster.stop(&another, None).await?;
    cluster.until(&another, "STOPPED", PATIENCE).await?;
    println!("another task is stopped by the new agent after {:?}", began.elapsed());
    ensure!(began.elapsed() < here(2 * AT_ONCE), "{:?}", began.elapsed());
    another_starts(&cluster).await?;
    assert_eq!(cluster.task(&task).await?["lastStatus"], "PENDING");
    drop(hanging);
    cluster.until(&task, "RUNNING", PATIENCE).await?;
    cluster.stop(&task, None).await?;
    cluster.until(&task, "STOPPED", PATIENCE).await?;
    nothing_is_left(&cluster, &task, &plugin).await
}
