//! Promise: with ECS_ENABLE_CONTAINER_METADATA a container finds in a file what it is, in every network
//! mode, and finds it right after it or the agent was started again; nothing is left of the file
//! afterwards.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use berth_proto::v1;
use berth_tests::bench::{Scripted, scripted};
use berth_tests::cluster::container;
use berth_tests::endpoint::Inside;
use berth_tests::expect::PATIENCE;
use berth_tests::{Cluster, demo, eventually, python, vpc};
use serde_json::{Value, json};

const VARIABLE: &str = "ECS_CONTAINER_METADATA_FILE";
const NAME: &str = "ecs-container-metadata.json";
const ON: (&str, &str) = ("ECS_ENABLE_CONTAINER_METADATA", "true");

fn stays(name: &str, members: Value) -> Value {
    demo::container_with(name, &["sleep", "3600"], members)
}

/// The file of a process as it sees it, once it is READY.
async fn ready(inside: &Inside) -> Result<Value> {
    let path = inside.environment.get(VARIABLE).with_context(|| format!("{:?}", inside.environment))?;
    let path = format!("/proc/{}/root{path}", inside.pid);
    eventually(PATIENCE, "the file is READY", || async {
        let told: Value = serde_json::from_str(&fs::read_to_string(&path)?)?;
        Ok((told["MetadataFileStatus"] == "READY").then_some(told))
    })
    .await
}

fn folder(cluster: &Cluster) -> PathBuf {
    cluster.agent.data_dir().join("metadata")
}

/// Whose files the agent has.
fn kept(cluster: &Cluster) -> Result<Vec<String>> {
    let entries = fs::read_dir(folder(cluster)).with_context(|| folder(cluster).display().to_string())?;
    entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
}

#[tokio::test]
async fn a_program_reads_what_its_container_is() -> Result<()> {
    // As any user, at once after the start, and without a way to change it.
    const SCRIPT: &str = "import json, os, time\n\
        path = os.environ['ECS_CONTAINER_METADATA_FILE']\n\
        while True:\n\
        \x20   told = json.load(open(path))\n\
        \x20   if told['MetadataFileStatus'] == 'READY': break\n\
        \x20   assert told['MetadataFileStatus'] == 'INITIAL', told\n\
        \x20   time.sleep(0.01)\n\
        try: open(path, 'a'); told['changed'] = True\n\
        except OSError as error: told['error'] = type(error).__name__\n\
        told['all'] = os.listdir(os.path.dirname(path))\n\
        print(json.dumps(told))\n";
    let cluster = Cluster::start_with(&[ON]).await?;
    let mut definition = python::task("reader", "none", "app", SCRIPT)?;
    definition["containerDefinitions"][0]["user"] = json!("65534");
    definition["containerDefinitions"][0]["readonlyRootFilesystem"] = json!(true);
    let (arn, task) = cluster.stopped(definition).await?;
    let id = cluster.engine.id_of(&arn, "app").await?;
    let said = cluster.engine.logs(&id).await?;
    ensure!(container(&task, "app")?["exitCode"] == 0, "{said} {task}");
    let told: Value = serde_json::from_str(said.trim())?;
    assert_eq!((&told["TaskARN"], &told["ContainerID"]), (&json!(arn), &json!(id)));
    ensure!(told["changed"].is_null() && told["error"].is_string(), "{told}");
    assert_eq!(told["all"], json!([NAME]));
    assert_eq!(told["Networks"], json!([{ "NetworkMode": "none", "IPv4Addresses": [] }]));
    Ok(())
}

#[tokio::test]
async fn it_has_ids_ports_and_addresses() -> Result<()> {
    let cluster = Cluster::start_vpc(vpc::Vpc::new("veth").file(), &[ON, vpc::ENV[0]]).await?;
    let port = std::net::TcpListener::bind("0.0.0.0:0")?.local_addr()?.port();
    for (mode, inner) in [("bridge", 8080), ("host", port)] {
        let members = json!({
            "portMappings": [{ "containerPort": inner }],
            "environment": [{ "name": "PASSWORD", "value": "hush" }],
        });
        let (arn, task) = cluster.running(demo::task("told", mode, json!([stays("web", members)]))).await?;
        let inside = Inside::of(&cluster, &arn, "web").await?;
        let told = ready(&inside).await?;
        let id = cluster.engine.id_of(&arn, "web").await?;
        let made = cluster.engine.inspect(&id).await?;
        let bound = &container(&task, "web")?["networkBindings"][0];
        let bind_ip = if mode == "bridge" { "0.0.0.0" } else { "" };
        for (member, expected) in [
            ("Cluster", json!(cluster.name)),
            ("ContainerInstanceARN", task["containerInstanceArn"].clone()),
            ("TaskARN", json!(arn)),
            ("TaskDefinitionFamily", json!("told")),
            ("TaskDefinitionRevision", json!(if mode == "bridge" { "1" } else { "2" })),
            ("ContainerID", json!(id)),
            ("ContainerName", json!("web")),
            ("DockerContainerName", json!(made.name)),
            ("ImageID", json!(made.image)),
            ("ImageName", json!(demo::IMAGE)),
            (
                "PortMappings",
                json!([{
                    "ContainerPort": inner, "HostPort": bound["hostPort"], "BindIp": bind_ip,
                    "Protocol": "tcp",
                }]),
            ),
        ] {
            assert_eq!(told[member], expected, "{member} in {mode} mode");
        }
        ensure!(bound["hostPort"].is_u64(), "{task}");
        let network = &told["Networks"][0];
        assert_eq!(network["NetworkMode"], mode);
        let address = network["IPv4Addresses"][0].as_str();
        ensure!(
            address.is_some_and(|a| a.parse::<std::net::Ipv4Addr>().is_ok()) == (mode == "bridge"),
            "{told}"
        );
        for at in ["CreatedAt", "StartedAt"] {
            ensure!(told[at].as_str().is_some_and(|at| at.ends_with('Z')), "{at} in {told}");
        }
        ensure!(!told.to_string().contains("hush"), "{told}");
        cluster.stop(&arn, None).await?;
    }

    let own = vpc::run(&cluster, vpc::task("own", json!([stays("web", json!({}))])), &["sg-open"]).await?;
    let told = ready(&Inside::of(&cluster, &own, "web").await?).await?;
    let address = vpc::address(&cluster.task(&own).await?)?;
    let network = &told["Networks"][0];
    assert_eq!((&network["NetworkMode"], &network["IPv4Addresses"]), (&json!("awsvpc"), &json!([address])));
    ensure!(told["PortMappings"].is_null(), "{told}");
    Ok(())
}

/// Waits until the container is another process than that one.
async fn after(cluster: &Cluster, arn: &str, before: &Inside) -> Result<Inside> {
    eventually(PATIENCE, "the container was started again", || async {
        let now = Inside::now(&cluster.engine, arn, "one").await?;
        Ok((now.pid != before.pid).then_some(now))
    })
    .await
}

#[tokio::test]
async fn it_is_right_after_restarts_of_container_and_agent() -> Result<()> {
    // A control plane that lets a container be started again however short it ran.
    let mut cluster = Cluster::start_with(&[ON]).await?;
    let plane = Scripted::start(&cluster.name).await?;
    cluster.agent.terminate().await?;
    cluster.agent.lose_state()?;
    cluster.agent.set("ECS_BACKEND_HOST", &format!("http://{}", plane.address));
    cluster.agent.start_again()?;
    plane.noted(PATIENCE, |noted| noted.greeted).await?;
    let mut task = scripted::task(plane.cluster(), "bridge", 0);
    for container in task.spec.iter_mut().flat_map(|spec| &mut spec.containers) {
        container.restart_policy = Some(v1::RestartPolicy::default());
    }
    let (arns, _) = plane.run(vec![task])?;
    plane.running(&arns, PATIENCE).await?;
    let arn = &arns[0];
    let mut inside = Inside::now(&cluster.engine, arn, "one").await?;
    let mut told = ready(&inside).await?;

    for agent_lives in [true, false] {
        let id = cluster.engine.id_of(arn, "one").await?;
        if !agent_lives {
            cluster.agent.kill().await?;
        }
        cluster.engine.kill(&id).await?;
        if !agent_lives {
            cluster.agent.start_again()?;
        }
        inside = after(&cluster, arn, &inside).await?;
        let before = told["StartedAt"].clone();
        told = eventually(PATIENCE, "the file tells of the next life", || async {
            let told = ready(&inside).await?;
            Ok((told["StartedAt"] != before).then_some(told))
        })
        .await?;
        assert_eq!(told["ContainerID"], id, "agent lives: {agent_lives}");
    }

    // An agent that starts corrects what is wrong, and nothing else.
    let file = folder(&cluster).join(arn.rsplit('/').next().unwrap_or_default()).join("one").join(NAME);
    for spoil in [false, true] {
        cluster.agent.kill().await?;
        let before = fs::metadata(&file)?.modified()?;
        if spoil {
            fs::write(&file, r#"{"MetadataFileStatus": "INITIAL"}"#)?;
        }
        plane.forget_agent();
        cluster.agent.start_again()?;
        plane.noted(PATIENCE, |noted| noted.greeted).await?;
        assert_eq!(ready(&inside).await?, told, "spoilt: {spoil}");
        ensure!(spoil || fs::metadata(&file)?.modified()? == before, "it was written for nothing");
    }
    Ok(())
}

#[tokio::test]
async fn there_is_none_unless_wanted_and_nothing_is_left() -> Result<()> {
    let mut cluster = Cluster::start_with(&[("ECS_ENGINE_TASK_CLEANUP_WAIT_DURATION", "1s")]).await?;
    let definition = cluster.register(demo::task("left", "bridge", json!([stays("app", json!({}))]))).await?;
    let without = cluster.run_definition(&definition).await?;
    let inside = Inside::of(&cluster, &without, "app").await?;
    ensure!(!inside.environment.contains_key(VARIABLE), "{:?}", inside.environment);
    ensure!(!folder(&cluster).exists(), "a folder for nothing");

    cluster.agent.terminate().await?;
    cluster.disconnected().await?;
    let strange = folder(&cluster).join("ffffffffffffffffffffffffffffffff/app");
    fs::create_dir_all(&strange)?;
    fs::write(strange.join(NAME), "{}")?;
    cluster.agent.set(ON.0, ON.1);
    cluster.agent.start_again()?;
    cluster.registered().await?;
    eventually(PATIENCE, "what belongs to no task is swept", || async {
        Ok(kept(&cluster)?.is_empty().then_some(()))
    })
    .await?;

    let with = cluster.run_definition(&definition).await?;
    let inside = Inside::of(&cluster, &with, "app").await?;
    ready(&inside).await?;
    assert_eq!(kept(&cluster)?, [with.rsplit('/').next().unwrap_or_default()]);
    // Also where none are made any more.
    cluster.agent.terminate().await?;
    cluster.agent.set(ON.0, "false");
    cluster.agent.start_again()?;
    cluster.registered().await?;
    ready(&inside).await?;
    for arn in [&without, &with] {
        cluster.stop(arn, None).await?;
        cluster.until(arn, "STOPPED", PATIENCE).await?;
    }
    eventually(PATIENCE, "it goes with its container", || async {
        let containers = cluster.engine.containers_of_task(&with).await?;
        Ok((kept(&cluster)?.is_empty() && containers.is_empty()).then_some(()))
    })
    .await
}
