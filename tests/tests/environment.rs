//! Promise: what is kept elsewhere for a container is there when it starts, whoever keeps it, and
//! nowhere else; what is not to be had says so. A container that ends is started again by its policy.

use std::collections::BTreeMap;
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Result, ensure};
use berth_tests::cluster::{container, text};
use berth_tests::endpoint::Inside;
use berth_tests::expect::PATIENCE;
use berth_tests::{Cluster, Server, demo, eventually, files};
use serde_json::{Value, json};

const SECRET: &str = "hunter2-tell-nobody";

/// A task of one container that stays, with more members.
fn stays(family: &str, members: Value) -> Value {
    demo::task(family, "bridge", json!([demo::container_with("app", &["sleep", "3600"], members)]))
}

/// The environment of the task's container, from the kernel.
async fn environment(cluster: &Cluster, task: &str) -> Result<BTreeMap<String, String>> {
    Ok(Inside::of(cluster, task, "app").await?.environment)
}

#[tokio::test]
async fn a_secret_is_in_the_environment_and_nowhere_else() -> Result<()> {
    let kept = tempfile::tempdir()?;
    fs::create_dir(kept.path().join("prod"))?;
    fs::write(kept.path().join("prod/db"), json!({ "user": "app", "password": SECRET }).to_string())?;
    fs::write(kept.path().join("tag"), "tagged\n")?;
    let source = format!("directory:{}", kept.path().display());
    let cluster = Cluster::start_with(&[("BERTH_SECRETS", &source)]).await?;
    let definition = stays(
        "secrets",
        json!({
            "environment": [{ "name": "PLAIN", "value": "1" }],
            "secrets": [
                { "name": "PASSWORD", "valueFrom": "arn:aws:secretsmanager:us-east-1:123456789012:secret:prod/db-AbC1dE:password::" },
                { "name": "WHOLE", "valueFrom": "/prod/db" },
                { "name": "TAG", "valueFrom": "arn:aws:ssm:us-east-1:123456789012:parameter/tag" },
            ],
            "logConfiguration": { "logDriver": "json-file", "secretOptions": [{ "name": "tag", "valueFrom": "tag" }] },
        }),
    );
    let task = cluster.run(definition).await?;
    let found = environment(&cluster, &task).await?;
    assert_eq!(
        (found["PASSWORD"].as_str(), found["TAG"].as_str(), found["PLAIN"].as_str()),
        (SECRET, "tagged", "1")
    );
    ensure!(found["WHOLE"].contains(SECRET), "the whole secret");

    let made = cluster.engine.inspect(&cluster.engine.id_of(&task, "app").await?).await?;
    let log =
        made.host_config.and_then(|host| host.log_config).and_then(|log| log.config).unwrap_or_default();
    assert_eq!(log.get("tag").map(String::as_str), Some("tagged"));
    let labels = format!("{:?}", made.config.and_then(|config| config.labels));
    ensure!(!labels.contains(SECRET), "it is in a label");
    ensure!(!cluster.agent.output().contains(SECRET), "it is in the log");
    assert_eq!(files::with(cluster.agent.data_dir(), SECRET)?, Vec::<String>::new());
    ensure!(!cluster.task(&task).await?.to_string().contains(SECRET), "it is in describe-tasks");
    let described =
        cluster.ecs.call("DescribeTaskDefinition", json!({ "taskDefinition": "secrets" })).await?;
    ensure!(!described.to_string().contains(SECRET), "it is in the definition");
    Ok(())
}

#[tokio::test]
async fn a_secret_that_is_absent_stops_the_task_and_is_named() -> Result<()> {
    let kept = tempfile::tempdir()?;
    let source = format!("directory:{}", kept.path().display());
    let cluster = Cluster::start_with(&[("BERTH_SECRETS", &source)]).await?;
    let secrets = json!({ "secrets": [{ "name": "PASSWORD", "valueFrom": "/prod/db" }] });
    let (task, stopped) = cluster.stopped(stays("absent", secrets)).await?;
    let reason = text(&stopped, "stoppedReason")?;
    for part in
        ["ResourceInitializationError: unable to pull secrets", "container app", "PASSWORD", "/prod/db"]
    {
        ensure!(reason.contains(part), "{part} in {reason}");
    }
    assert_eq!(stopped["stopCode"], "TaskFailedToStart");
    assert_eq!(cluster.engine.containers_of_task(&task).await?.len(), 0);
    Ok(())
}

#[tokio::test]
async fn no_host_without_secrets_gets_a_task_that_needs_one() -> Result<()> {
    let cluster = Cluster::start().await?;
    let secrets = json!({ "secrets": [{ "name": "PASSWORD", "valueFrom": "/prod/db" }] });
    cluster.register(stays("nowhere", secrets)).await?;
    let input = json!({ "cluster": cluster.name, "taskDefinition": "nowhere" });
    let answer = cluster.ecs.call("RunTask", input).await?;
    assert_eq!(answer["failures"][0]["reason"], "ATTRIBUTE", "{answer}");
    Ok(())
}

#[tokio::test]
async fn a_program_keeps_secrets() -> Result<()> {
    let kept = tempfile::tempdir()?;
    let program = kept.path().join("get");
    fs::write(&program, "#!/bin/sh\nprintf '{\"Version\": 1, \"SecretString\": \"of %s\"}' \"$1\"\n")?;
    fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let source = format!("command:{}", program.display());
    let cluster = Cluster::start_with(&[("BERTH_SECRETS", &source)]).await?;
    let secrets = json!({ "secrets": [{ "name": "PASSWORD", "valueFrom": "/prod/db" }] });
    let task = cluster.run(stays("program", secrets)).await?;
    assert_eq!(environment(&cluster, &task).await?["PASSWORD"], "of /prod/db");
    Ok(())
}

/// A vault whose door opens when the test says so.
async fn vault(open: Arc<AtomicBool>) -> Result<Server> {
    Server::start(move |asked| {
        if !open.load(Ordering::SeqCst) {
            return (503, json!({ "errors": ["Vault is sealed"] }).to_string());
        }
        if asked.header("x-vault-token") != "s.token" {
            return (403, json!({ "errors": ["permission denied"] }).to_string());
        }
        match asked.path.as_str() {
            "/v1/kv/data/prod/db" => (
                200,
                json!({ "data": { "data": { "password": SECRET }, "metadata": { "version": 2 } } })
                    .to_string(),
            ),
            _ => (404, json!({ "errors": [] }).to_string()),
        }
    })
    .await
}

#[tokio::test]
async fn a_vault_that_is_sealed_for_a_while_is_waited_for() -> Result<()> {
    let open = Arc::new(AtomicBool::new(false));
    let vault = vault(Arc::clone(&open)).await?;
    let source = format!("vault:{}", vault.url("/kv"));
    let env = [("BERTH_SECRETS", source.as_str()), ("BERTH_VAULT_TOKEN", "s.token")];
    let mut cluster = Cluster::start_with(&env).await?;
    let named = "arn:aws:secretsmanager:us-east-1:123456789012:secret:prod/db-AbC1dE:password::";
    let secrets = json!({ "secrets": [{ "name": "PASSWORD", "valueFrom": named }] });
    let task = cluster.run(stays("vault", secrets)).await?;
    eventually(PATIENCE, "the task says what it waits for", || async {
        let task = cluster.task(&task).await?;
        let reason = container(&task, "app")?["reason"].as_str().unwrap_or_default();
        Ok((reason.contains("Vault is sealed") && reason.contains("PASSWORD")).then_some(()))
    })
    .await?;
    // What was fetched is in memory alone: a restart in the middle fetches it anew.
    cluster.agent.kill().await?;
    open.store(true, Ordering::SeqCst);
    cluster.agent.start_again()?;
    assert_eq!(environment(&cluster, &task).await?["PASSWORD"], SECRET);
    ensure!(!cluster.agent.output().contains("s.token"), "the token is in the log");

    let unknown = json!({ "secrets": [{ "name": "OTHER", "valueFrom": "/prod/other" }] });
    let (_, stopped) = cluster.stopped(stays("unknown", unknown)).await?;
    ensure!(text(&stopped, "stoppedReason")?.contains("there is no such secret"), "{stopped}");
    Ok(())
}

#[tokio::test]
async fn environment_files_come_from_the_host_and_the_web_under_what_the_definition_says() -> Result<()> {
    let files = tempfile::tempdir()?;
    fs::create_dir(files.path().join("bucket"))?;
    fs::write(files.path().join("bucket/base.env"), "# base\nA=base\nB=base\nC=base\n")?;
    fs::write(files.path().join("first.env"), "B=first\nC=first\n")?;
    fs::write(files.path().join("more.env"), "D=more\n")?;
    let tries = AtomicU32::new(0);
    let web = Server::start(move |asked| match asked.path.as_str() {
        // Away at first.
        "/web.env" if tries.fetch_add(1, Ordering::SeqCst) == 0 => (502, String::new()),
        "/web.env" => (200, "E=web\nA=web\n".to_owned()),
        _ => (404, String::new()),
    })
    .await?;
    let store = format!("file://{}", files.path().display());
    let cluster = Cluster::start_with(&[("BERTH_OBJECT_STORE", &store)]).await?;
    let file = |location: String| json!({ "type": "s3", "value": location });
    let definition = stays(
        "files",
        json!({
            "environment": [{ "name": "C", "value": "definition" }],
            "environmentFiles": [
                file(format!("{store}/first.env")), file("arn:aws:s3:::bucket/base.env".to_owned()), file(web.url("/web.env")),
            ],
        }),
    );
    let definition = cluster.register(definition).await?;
    let more = json!({ "overrides": { "containerOverrides": [
        { "name": "app", "environmentFiles": [file(format!("{store}/more.env"))] }
    ] } });
    let task = cluster.run_with(&definition, more).await?;
    let found = environment(&cluster, &task).await?;
    let values: Vec<&str> = ["A", "B", "C", "D", "E"].iter().map(|name| found[*name].as_str()).collect();
    assert_eq!(values, ["base", "first", "definition", "more", "web"]);
    Ok(())
}

#[tokio::test]
async fn an_environment_file_that_is_not_there_or_too_large_is_named() -> Result<()> {
    let files = tempfile::tempdir()?;
    let large = files.path().join("large.env");
    fs::write(&large, "A=1\n".repeat(10 * (1 << 20) / 4))?;
    let web = Server::start(|_| (404, String::new())).await?;
    let cluster = Cluster::start().await?;
    for (location, why) in [
        (format!("file://{}", large.display()), "more than 1024 KiB"),
        ("file:///nowhere/at/all.env".to_owned(), "No such file"),
        (web.url("/gone.env"), "404"),
        ("arn:aws:s3:::bucket/app.env".to_owned(), "BERTH_OBJECT_STORE"),
    ] {
        let files = json!({ "environmentFiles": [{ "type": "s3", "value": location }] });
        let (_, stopped) = cluster.stopped(stays("file", files)).await?;
        let reason = text(&stopped, "stoppedReason")?;
        ensure!(reason.contains(why) && reason.contains(&location), "{why} in {reason}");
    }
    Ok(())
}

#[tokio::test]
async fn a_container_that_ran_for_its_period_is_started_again_and_one_that_did_not_is_not() -> Result<()> {
    const LEAST_PERIOD: Duration = Duration::from_secs(60);
    let cluster = Cluster::start().await?;
    let policy = json!({ "restartPolicy": { "enabled": true, "restartAttemptPeriod": 60 } });
    let early = cluster.run(stays("early", policy.clone())).await?;
    let late = cluster.run(stays("late", policy)).await?;
    for task in [&early, &late] {
        cluster.until(task, "RUNNING", PATIENCE).await?;
    }
    cluster.engine.kill(&cluster.engine.id_of(&early, "app").await?).await?;
    let stopped = cluster.until(&early, "STOPPED", PATIENCE).await?;
    let reason = text(container(&stopped, "app")?, "reason")?;
    ensure!(reason.contains("restartAttemptPeriod"), "{reason}");

    // The policy's least period, by the clock: there is no event to wait for.
    tokio::time::sleep(LEAST_PERIOD).await;
    let id = cluster.engine.id_of(&late, "app").await?;
    cluster.engine.kill(&id).await?;
    eventually(PATIENCE, "it was started again", || async {
        let task = cluster.task(&late).await?;
        let told = container(&task, "app")?;
        let again = told["reason"].as_str().is_some_and(|reason| reason.contains("restarted once"));
        let runs = cluster.engine.inspect(&id).await?.state.and_then(|state| state.running) == Some(true);
        Ok((again && runs && task["lastStatus"] == "RUNNING").then_some(()))
    })
    .await?;
    Ok(())
}
