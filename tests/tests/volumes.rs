//! Promise: a volume may be of any driver that the engine has; one whose driver does not answer holds up its own
//! task alone, which says so, and leaves nothing behind.

use std::fs;

use anyhow::{Context, Result, ensure};
use berth_tests::expect::PATIENCE;
use berth_tests::{Cluster, OwnEngine, VolumePlugin, demo, eventually};
use bollard::query_parameters::ListVolumesOptions;
use serde_json::{Value, json};

/// Stopped tasks are cleaned up at once.
const CLEAN_UP: (&str, &str) = ("ECS_ENGINE_TASK_CLEANUP_WAIT_DURATION", "1s");

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
