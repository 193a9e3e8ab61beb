//! Promise: what a container says with the log driver `awsfirelens` gets to the log router of its task,
//! which starts first, stops last, and is told by the agent what ECS's agent tells one; secrets are in
//! no file; nothing of it is left behind.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use berth_tests::cluster::{container, text};
use berth_tests::endpoint::Inside;
use berth_tests::expect::PATIENCE;
use berth_tests::{Cluster, Endpoint, demo, eventually, files, python, vpc};
use serde_json::{Value, json};

const ROUTER: &str = include_str!("firelens/router.py");
const APP: &str = include_str!("firelens/app.py");
const SECRET: &str = "hunter2-tell-nobody";

/// A task of a log router, with those members, and an app that logs to it with that configuration.
fn routed(mode: &str, router: Value, log: Value) -> Result<Value> {
    let mut definition = python::task("routed", mode, "router", ROUTER)?;
    let python = definition["containerDefinitions"][0].take();
    let log = demo::merged(json!({ "logDriver": "awsfirelens" }), &log);
    let app = json!({ "name": "app", "command": ["-c", APP], "logConfiguration": log, "memory": 128 });
    let firelens = json!({ "firelensConfiguration": { "type": "fluentbit" } });
    // The order is not the one in which they start.
    definition["containerDefinitions"] =
        json!([demo::merged(python.clone(), &app), demo::merged(demo::merged(python, &firelens), &router)]);
    Ok(definition)
}

fn id(task: &str) -> &str {
    task.rsplit('/').next().unwrap_or(task)
}

/// What there is of log routers on the host.
fn folders(cluster: &Cluster) -> Result<Vec<PathBuf>> {
    let root = cluster.agent.data_dir().join("firelens");
    if !root.exists() {
        return Ok(Vec::new());
    }
    Ok(fs::read_dir(root)?.map(|entry| Ok(entry?.path())).collect::<std::io::Result<_>>()?)
}

/// What the router of a task has printed.
async fn told(cluster: &Cluster, task: &str) -> Result<Vec<Value>> {
    let said = cluster.engine.logs(&cluster.engine.id_of(task, "router").await?).await?;
    Ok(said.lines().filter_map(|line| serde_json::from_str(line).ok()).collect())
}

/// The message with that text, once it has arrived at the router.
async fn arrived(cluster: &Cluster, task: &str, text: &str) -> Result<Value> {
    eventually(PATIENCE, format!("{text:?} arrives"), || async {
        let all = told(cluster, task).await?;
        let found = all.iter().find(|message| message["record"]["log"] == text).cloned();
        found.map(Some).with_context(|| format!("{all:?}"))
    })
    .await
}

/// The file that the router has found.
async fn found(cluster: &Cluster, task: &str, path: &str) -> Result<Value> {
    eventually(PATIENCE, format!("the router finds {path}"), || async {
        let all = told(cluster, task).await?;
        Ok(all.into_iter().find(|told| told["path"] == path))
    })
    .await
}

#[tokio::test]
async fn what_a_container_says_arrives_and_its_last_words_too() -> Result<()> {
    let cluster = Cluster::start().await?;
    let options =
        json!({ "options": { "Name": "http", "Host": "logs.example", "include-pattern": "words" } });
    let (task, _) = cluster.running(routed("bridge", json!({}), options)?).await?;

    let first = arrived(&cluster, &task, "first words").await?;
    let tag = format!("app-firelens-{}", id(&task));
    assert_eq!((&first["tag"], &first["by"]), (&json!(tag), &json!("socket")));
    assert_eq!(first["record"]["source"], "stdout");
    ensure!(first["time"].as_array().is_some_and(|time| time.len() == 2), "to the nanosecond: {first}");
    assert_eq!(arrived(&cluster, &task, "some more").await?["record"]["source"], "stderr");
    assert_eq!(arrived(&cluster, &task, "by network").await?["by"], "network");

    let config = found(&cluster, &task, "/fluent-bit/etc/fluent-bit.conf").await?;
    assert_eq!(config["writable"], false);
    let config = text(&config, "text")?;
    for line in [
        "Listen 0.0.0.0".to_owned(),
        "Mem_Buf_Limit 128MB".to_owned(),
        "Match app-firelens*\n    Regex log words".to_owned(),
        format!("Record ecs_cluster {}", cluster.name),
        format!("Record ecs_task_arn {task}"),
        "Record ecs_task_definition routed:".to_owned(),
        "Name http\n    Match app-firelens*\n    Host logs.example".to_owned(),
    ] {
        ensure!(config.contains(&line), "{line} in {config}");
    }
    let [folder] = &folders(&cluster)?[..] else { anyhow::bail!("one folder: {:?}", folders(&cluster)?) };
    assert_eq!(fs::metadata(folder)?.mode() & 0o777, 0o700);

    let router = cluster.engine.id_of(&task, "router").await?;
    let at = cluster.engine.inspect(&router).await?.network_settings.and_then(|network| network.networks);
    let at = at.and_then(|networks| networks.into_values().find_map(|network| network.ip_address));
    let app = Inside::of(&cluster, &task, "app").await?;
    assert_eq!(app.environment.get("FLUENT_HOST"), at.as_ref());
    let said = cluster.agent.typed(&["logs", id(&task), "app"]).await?;
    ensure!(said.contains("first words"), "the operator reads it, too: {said}");

    cluster.stop(&task, None).await?;
    let stopped = cluster.until(&task, "STOPPED", PATIENCE).await?;
    let all = told(&cluster, &task).await?;
    let place =
        |which: &dyn Fn(&Value) -> bool| all.iter().position(which).with_context(|| format!("{all:?}"));
    let last = place(&|told| told["record"]["log"] == "last words")?;
    ensure!(last < place(&|told| told["stopping"] == true)?, "the router stops last: {all:?}");
    for name in ["app", "router"] {
        assert_eq!(container(&stopped, name)?["exitCode"], 0, "{stopped}");
    }
    assert_eq!(folders(&cluster)?, Vec::<PathBuf>::new());
    Ok(())
}

#[tokio::test]
async fn secret_options_reach_the_router_and_are_in_no_file() -> Result<()> {
    let kept = tempfile::tempdir()?;
    fs::create_dir_all(kept.path().join("bucket"))?;
    fs::write(kept.path().join("token"), SECRET)?;
    fs::write(kept.path().join("bucket/own.conf"), "<match app-firelens**>\n</match>\n")?;
    let secrets = format!("directory:{}", kept.path().display());
    let store = format!("file://{}", kept.path().display());
    let cluster = Cluster::start_with(&[("BERTH_SECRETS", &secrets), ("BERTH_OBJECT_STORE", &store)]).await?;
    let router = json!({
        "user": "1000:1000",
        "firelensConfiguration": { "type": "fluentd", "options": {
            "enable-ecs-log-metadata": "false",
            "config-file-type": "s3", "config-file-value": "arn:aws:s3:::bucket/own.conf",
        } },
    });
    let log = json!({
        "options": { "@type": "http", "log-driver-buffer-limit": "4096" },
        "secretOptions": [{ "name": "token", "valueFrom": "token" }],
    });
    let (task, _) = cluster.running(routed("host", router, log)?).await?;
    arrived(&cluster, &task, "first words").await?;

    let config = text(&found(&cluster, &task, "/fluentd/etc/fluent.conf").await?, "text")?;
    ensure!(config.contains("token \"#{ENV['token_0']}\"") && !config.contains("ecs_cluster"), "{config}");
    ensure!(!config.contains("24224"), "nobody else on the host is to reach it: {config}");
    ensure!(config.contains("@include /fluentd/etc/external.conf"), "{config}");
    let own = text(&found(&cluster, &task, "/fluentd/etc/external.conf").await?, "text")?;
    ensure!(own.contains("<match app-firelens**>"), "{own}");

    let router = Inside::of(&cluster, &task, "router").await?;
    assert_eq!(router.environment.get("token_0").map(String::as_str), Some(SECRET));
    assert_eq!(router.environment.get("FLUENT_UID").map(String::as_str), Some("0"));
    let app = cluster.engine.inspect(&cluster.engine.id_of(&task, "app").await?).await?;
    ensure!(!format!("{app:?}").contains(SECRET), "the app's container has it");
    let log = app.host_config.and_then(|host| host.log_config).context("no log driver")?;
    let options = log.config.unwrap_or_default();
    assert_eq!(log.typ.as_deref(), Some("fluentd"));
    assert_eq!(options.get("fluentd-buffer-limit").map(String::as_str), Some("4096"));
    assert_eq!(files::with(cluster.agent.data_dir(), SECRET)?, Vec::<String>::new());
    ensure!(!cluster.agent.output().contains(SECRET), "it is in the log");
    let made = cluster.engine.inspect(&cluster.engine.id_of(&task, "router").await?).await?;
    ensure!(!format!("{:?}", made.config.and_then(|config| config.labels)).contains(SECRET), "in a label");

    cluster.stop(&task, None).await?;
    cluster.until(&task, "STOPPED", PATIENCE).await?;
    assert_eq!(folders(&cluster)?, Vec::<PathBuf>::new());
    Ok(())
}

#[tokio::test]
async fn the_containers_of_an_awsvpc_task_find_their_router_on_localhost() -> Result<()> {
    let endpoint = Endpoint::new()?;
    let address = endpoint.address();
    let env = [("BERTH_ENDPOINT_ADDRESS", address.as_str()), vpc::ENV[0]];
    let cluster = Cluster::start_vpc(vpc::Vpc::new("veth").file(), &env).await?;
    let definition = routed("awsvpc", json!({}), json!({ "options": { "Name": "http" } }))?;
    let task = vpc::run(&cluster, definition, &["sg-open"]).await?;
    let app = Inside::of(&cluster, &task, "app").await?;
    assert_eq!(app.environment.get("FLUENT_HOST").map(String::as_str), Some("127.0.0.1"));
    assert_eq!(arrived(&cluster, &task, "first words").await?["by"], "socket");
    assert_eq!(arrived(&cluster, &task, "by network").await?["by"], "network");
    let about = app.json("").await?;
    assert_eq!(
        (&about["LogDriver"], &about["LogOptions"]),
        (&json!("awsfirelens"), &json!({ "Name": "http" }))
    );
    Ok(())
}

#[tokio::test]
async fn a_router_that_dies_stops_its_task() -> Result<()> {
    let cluster = Cluster::start().await?;
    let router = json!({ "command": ["-c", ROUTER, "--dies"] });
    let mut definition = routed("bridge", router, json!({}))?;
    // The first process of a container is deaf to SIGTERM until it says otherwise, and the router may be quicker.
    definition["containerDefinitions"][0]["stopTimeout"] = json!(2);
    let (task, stopped) = cluster.stopped(definition).await?;
    assert_eq!(stopped["stopCode"], "EssentialContainerExited", "{stopped}");
    assert_eq!(container(&stopped, "router")?["exitCode"], 3, "{stopped}");
    assert_eq!(container(&stopped, "app")?["lastStatus"], "STOPPED");
    ensure!(!told(&cluster, &task).await?.is_empty(), "it ran");
    assert_eq!(folders(&cluster)?, Vec::<PathBuf>::new());
    Ok(())
}

#[tokio::test]
async fn what_no_router_can_be_is_refused_at_registration() -> Result<()> {
    let cluster = Cluster::start().await?;
    let to_router = json!({ "logConfiguration": { "logDriver": "awsfirelens" } });
    let alone = demo::task("alone", "bridge", json!([demo::container_with("app", &[], to_router)]));
    let refused = cluster.register(alone).await.err().context("was accepted")?;
    let words = "a firelens configuration object must be configured in one of the containers";
    ensure!(format!("{refused:#}").contains(words), "{refused:#}");
    let unknown = routed("bridge", json!({ "firelensConfiguration": { "type": "logstash" } }), json!({}))?;
    let refused = cluster.register(unknown).await.err().context("was accepted")?;
    ensure!(format!("{refused:#}").contains("[fluentd, fluentbit]"), "{refused:#}");

    // A host that knows no objects is given no router that needs one.
    let own = json!({ "config-file-type": "s3", "config-file-value": "arn:aws:s3:::bucket/own.conf" });
    let needs = json!({ "firelensConfiguration": { "type": "fluentbit", "options": own } });
    let definition = cluster.register(routed("bridge", needs, json!({}))?).await?;
    let input = json!({ "cluster": cluster.name, "taskDefinition": definition });
    let answer = cluster.ecs.call("RunTask", input).await?;
    assert_eq!(answer["failures"][0]["reason"], "ATTRIBUTE", "{answer}");
    Ok(())
}

#[tokio::test]
async fn an_agent_that_was_killed_clears_up_what_is_nobodys_and_nothing_else() -> Result<()> {
    let mut cluster = Cluster::start().await?;
    let (task, _) = cluster.running(routed("bridge", json!({}), json!({}))?).await?;
    arrived(&cluster, &task, "first words").await?;
    let folder = cluster.agent.data_dir().join("firelens").join(id(&task));
    let nobodys = folder.with_file_name("f".repeat(32));
    fs::create_dir_all(nobodys.join("socket"))?;

    cluster.agent.kill().await?;
    cluster.disconnected().await?;
    cluster.agent.start_again()?;
    cluster.registered().await?;
    eventually(PATIENCE, "what is nobody's is gone", || async { Ok((!nobodys.exists()).then_some(())) })
        .await?;
    ensure!(folder.join("socket/fluent.sock").exists(), "the task has lost its router");

    // Its records are lost while it is away: the containers' labels tell the task.
    cluster.agent.kill().await?;
    for entry in fs::read_dir(cluster.agent.data_dir())? {
        let path = entry?.path();
        if path.is_file() {
            fs::remove_file(path)?;
        }
    }
    cluster.agent.start_again()?;
    cluster.registered().await?;
    cluster.stop(&task, None).await?;
    cluster.until(&task, "STOPPED", PATIENCE).await?;
    ensure!(told(&cluster, &task).await?.iter().any(|told| told["record"]["log"] == "last words"));
    assert_eq!(folders(&cluster)?, Vec::<PathBuf>::new());
    Ok(())
}
