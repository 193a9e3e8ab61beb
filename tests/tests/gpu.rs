//! Promise: a GPU is one container's alone, from before it is made until its task is gone, whatever
//! becomes of the agent. The inventory is made up and the engine has no driver for it: what it was asked
//! for is in its own records, and it says so itself when the container is to start.

use std::os::unix::fs::PermissionsExt;

use anyhow::{Context, Result, ensure};
use berth_tests::cluster::container;
use berth_tests::expect::PATIENCE;
use berth_tests::{Agent, Cluster, demo, eventually};
use serde_json::{Value, json};
use tempfile::TempDir;

const ONE: &str = "GPU-11111111-0000-4000-8000-000000000001";
const TWO: &str = "GPU-22222222-0000-4000-8000-000000000002";

/// A host with these GPUs, by a file such as ECS's.
async fn cluster_with(gpus: &[&str]) -> Result<(Cluster, TempDir)> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("nvidia-gpu-info.json");
    std::fs::write(&path, json!({ "DriverVersion": "535.104.05", "GPUIDs": gpus }).to_string())?;
    let path = path.to_str().context("a strange name")?;
    let env = [("ECS_ENABLE_GPU_SUPPORT", "true"), ("BERTH_GPU_INVENTORY", path)];
    Ok((Cluster::start_with(&env).await?, folder))
}

/// A container with a GPU that is made at once and started when another has ended.
fn waiting() -> Value {
    let gpu = json!([{ "type": "GPU", "value": "1" }]);
    let after = json!([{ "containerName": "helper", "condition": "COMPLETE" }]);
    let helper = demo::container_with("helper", &["sleep", "3600"], json!({ "essential": false }));
    let app = demo::container_with("app", &[], json!({ "resourceRequirements": gpu, "dependsOn": after }));
    demo::task("gpu", "none", json!([helper, app]))
}

/// Runs a task of that definition; its ARN, once it is told which GPU it has and its containers are made.
async fn with_gpu(cluster: &Cluster, definition: &str, gpu: &str) -> Result<String> {
    let arn = cluster.run_definition(definition).await?;
    eventually(PATIENCE, format!("{arn} has {gpu}"), || async {
        let task = cluster.task(&arn).await?;
        ensure!(container(&task, "app")?["gpuIds"] == json!([gpu]), "{task}");
        ensure!(container(&task, "app")?["lastStatus"] == "PENDING", "{task}");
        cluster.engine.id_of(&arn, "app").await?;
        let helper = cluster.engine.inspect(&cluster.engine.id_of(&arn, "helper").await?).await?;
        Ok((helper.state.and_then(|state| state.running) == Some(true)).then_some(()))
    })
    .await?;
    asked_for(cluster, &arn, gpu).await?;
    Ok(arn)
}

/// The engine was asked for that device and no other, and the container sees no other.
async fn asked_for(cluster: &Cluster, arn: &str, gpu: &str) -> Result<String> {
    let id = cluster.engine.id_of(arn, "app").await?;
    let made = cluster.engine.inspect(&id).await?;
    let devices = made.host_config.and_then(|host| host.device_requests).unwrap_or_default();
    let device = devices.first().context("no device request")?;
    assert_eq!((devices.len(), device.driver.as_deref()), (1, Some("nvidia")));
    assert_eq!(device.device_ids.as_deref(), Some(&[gpu.to_owned()][..]));
    assert_eq!(device.capabilities.as_deref(), Some(&[vec!["gpu".to_owned()]][..]));
    let env = made.config.and_then(|config| config.env).unwrap_or_default();
    ensure!(env.contains(&format!("NVIDIA_VISIBLE_DEVICES={gpu}")), "{env:?}");
    Ok(id)
}

/// No more of that definition fits.
async fn is_full(cluster: &Cluster, definition: &str) -> Result<()> {
    let refused = cluster.run_definition(definition).await.err().context("it was placed")?;
    ensure!(refused.to_string().contains("RESOURCE:GPU"), "{refused}");
    Ok(())
}

/// The GPUs that an instance has, or has left.
fn gpus(instance: &Value, which: &str) -> Value {
    let resources = instance[which].as_array().cloned().unwrap_or_default();
    let gpus = resources.into_iter().find(|resource| resource["name"] == "GPU");
    gpus.map_or(Value::Null, |gpus| gpus["stringSetValue"].clone())
}

/// Kills the agent and starts it again, with its state or without.
async fn again(cluster: &mut Cluster, lost: bool) -> Result<()> {
    let instance = cluster.registered().await?;
    cluster.agent.kill().await?;
    cluster.disconnected().await?;
    if lost {
        cluster.agent.lose_state()?;
    }
    cluster.agent.start_again()?;
    assert_eq!(cluster.registered().await?, instance);
    Ok(())
}

#[tokio::test]
async fn the_only_gpu_is_one_tasks_alone_and_free_again_when_the_engine_refuses_it() -> Result<()> {
    let (mut cluster, _folder) = cluster_with(&[ONE]).await?;
    let instance = cluster.instance().await?;
    assert_eq!(gpus(&instance, "registeredResources"), json!([ONE]));
    assert_eq!(gpus(&instance, "remainingResources"), json!([ONE]));
    for offered in [
        json!({ "name": "berth.capability.gpu" }),
        json!({ "name": "ecs.capability.nvidia-driver-version.535.104.05" }),
        json!({ "name": "ecs.capability.gpu-driver-version", "value": "535.104.05" }),
    ] {
        let attributes = instance["attributes"].as_array().context("no attributes")?;
        ensure!(attributes.contains(&offered), "{offered} is not in {attributes:?}");
    }
    let definition = cluster.register(waiting()).await?;
    let first = with_gpu(&cluster, &definition, ONE).await?;
    is_full(&cluster, &definition).await?;
    assert_eq!(gpus(&cluster.instance().await?, "remainingResources"), json!([]));

    // The agent that comes back knows whose it is.
    let made = asked_for(&cluster, &first, ONE).await?;
    again(&mut cluster, false).await?;
    is_full(&cluster, &definition).await?;
    assert_eq!(asked_for(&cluster, &first, ONE).await?, made, "the same container");

    cluster.engine.kill(&cluster.engine.id_of(&first, "helper").await?).await?;
    let stopped = cluster.until(&first, "STOPPED", PATIENCE).await?;
    let app = container(&stopped, "app")?;
    let reason = app["reason"].as_str().unwrap_or_default();
    ensure!(reason.starts_with("CannotStartContainerError: "), "{stopped}");
    ensure!(reason.contains("could not select device driver"), "{stopped}");
    assert_eq!((&stopped["stopCode"], &app["gpuIds"]), (&json!("TaskFailedToStart"), &json!([ONE])));
    assert_eq!(gpus(&cluster.instance().await?, "remainingResources"), json!([ONE]));

    // It is the next one's; and a task that is kept because it stopped holds nothing after a restart.
    let second = with_gpu(&cluster, &definition, ONE).await?;
    cluster.stop(&second, None).await?;
    cluster.until(&second, "STOPPED", PATIENCE).await?;
    again(&mut cluster, false).await?;
    with_gpu(&cluster, &definition, ONE).await?;
    Ok(())
}

#[tokio::test]
async fn an_agent_that_comes_back_gives_nobody_a_gpu_that_is_taken() -> Result<()> {
    let (mut cluster, _folder) = cluster_with(&[ONE, TWO]).await?;
    let definition = cluster.register(waiting()).await?;
    let first = with_gpu(&cluster, &definition, ONE).await?;
    // With its state gone, the labels of the container say which it has.
    again(&mut cluster, true).await?;
    let second = with_gpu(&cluster, &definition, TWO).await?;
    again(&mut cluster, false).await?;
    is_full(&cluster, &definition).await?;
    asked_for(&cluster, &first, ONE).await?;
    cluster.stop(&first, None).await?;
    cluster.until(&first, "STOPPED", PATIENCE).await?;
    with_gpu(&cluster, &definition, ONE).await?;
    asked_for(&cluster, &second, TWO).await?;
    let told = cluster.agent.typed(&["explain", &second]).await?;
    ensure!(told.contains("has the GPUs of container app after "), "{told}");
    ensure!(told.contains(TWO), "{told}");
    Ok(())
}

#[tokio::test]
async fn without_an_inventory_the_drivers_program_is_asked() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let missing = folder.path().join("missing.json");
    let missing = missing.to_str().context("a strange name")?;
    let path = format!("{}:{}", folder.path().display(), std::env::var("PATH")?);
    let env = [("ECS_ENABLE_GPU_SUPPORT", "true"), ("BERTH_GPU_INVENTORY", missing), ("PATH", &path)];
    let program = folder.path().join("nvidia-smi");
    std::fs::write(&program, "#!/bin/sh\necho NVIDIA-SMI has failed because the driver is asleep\nexit 9\n")?;
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755))?;
    let mut cluster = Cluster::start_with(&env).await?;
    // It cannot tell: one line says why, and no task that wants one comes here.
    let output = cluster.agent.output();
    let lines: Vec<&str> = output.lines().filter(|line| line.contains("no GPU was found")).collect();
    ensure!(lines.len() == 1 && lines[0].contains("the driver is asleep"), "{output}");
    assert_eq!(gpus(&cluster.instance().await?, "registeredResources"), Value::Null);
    let definition = cluster.register(waiting()).await?;
    is_full(&cluster, &definition).await?;

    std::fs::write(&program, format!("#!/bin/sh\necho '{TWO}, 470.57.02'\n"))?;
    again(&mut cluster, false).await?;
    assert_eq!(gpus(&cluster.instance().await?, "registeredResources"), json!([TWO]));
    with_gpu(&cluster, &definition, TWO).await?;
    Ok(())
}

#[tokio::test]
async fn an_inventory_that_makes_no_sense_stops_the_start_with_its_name() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("gpus.json");
    std::fs::write(&path, json!({ "GPUIDs": [ONE, ONE] }).to_string())?;
    let path = path.to_str().context("a strange name")?;
    let env = [("ECS_ENABLE_GPU_SUPPORT", "true"), ("BERTH_GPU_INVENTORY", path)];
    let mut agent = Agent::start("nowhere", "127.0.0.1:1".parse()?, &env)?;
    let status = agent.end().await?;
    let output = agent.output();
    assert_eq!(status.code(), Some(5), "{output}");
    ensure!(output.contains(&format!("BERTH_GPU_INVENTORY={path}")) && output.contains("twice"), "{output}");
    let checked = agent.command()?.arg("check-config").output().await?;
    let said = String::from_utf8_lossy(&checked.stderr);
    ensure!(!checked.status.success() && said.contains(path), "{said}");
    Ok(())
}
