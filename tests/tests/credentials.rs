//! Promise: the containers of a task with a role get credentials of it, from the first moment to the last,
//! and nobody else does.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use berth_tests::cluster::{container, text};
use berth_tests::endpoint::Inside;
use berth_tests::expect::PATIENCE;
use berth_tests::{Cluster, Endpoint, demo, eventually, files, python, vpc};
use serde_json::{Value, json};

const ROLE: &str = "arn:aws:iam::123456789012:role/web";
const SECRET: &str = "hush-hush-hush";

/// A cluster with a subnet, whose control plane has credentials from there.
async fn cluster(credentials: &str, endpoint: &Endpoint, run: &Path) -> Result<Cluster> {
    let (address, run) = (endpoint.address(), run.display().to_string());
    let env = [("BERTH_ENDPOINT_ADDRESS", address.as_str()), ("BERTH_RUN_DIR", &run), vpc::ENV[0]];
    Cluster::start_vpc_with(vpc::Vpc::new("veth").file(), &[("BERTH_CP_CREDENTIALS", credentials)], &env)
        .await
}

/// A file of one role.
fn roles(folder: &Path) -> Result<String> {
    let path = folder.join("roles.json");
    let keys = json!({ "AccessKeyId": "AKIAWEB", "SecretAccessKey": SECRET, "SessionToken": "token" });
    fs::write(&path, json!({ ROLE: keys }).to_string())?;
    Ok(format!("file:{}", path.display()))
}

fn with_role(mut definition: Value) -> Value {
    definition["taskRoleArn"] = json!(ROLE);
    definition
}

fn stays(family: &str, mode: &str) -> Value {
    with_role(demo::task(family, mode, json!([demo::container("app", &["sleep", "3600"])])))
}

/// What a container gets that asks for its credentials.
async fn ask(inside: &Inside) -> Result<(u16, Value)> {
    let path = inside
        .environment
        .get("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI")
        .context("no credentials are offered")?;
    let base = inside.uri()?.split("/v4/").next().unwrap_or_default();
    let (status, body) = inside.get(&format!("{base}{path}")).await?;
    Ok((status, serde_json::from_str(&body)?))
}

#[tokio::test]
async fn the_aws_sdk_finds_them_in_every_mode_with_a_network() -> Result<()> {
    const SCRIPT: &str = "import boto3, json\n\
        c = boto3.Session().get_credentials().get_frozen_credentials()\n\
        print(json.dumps([c.access_key, c.secret_key, c.token]))\n";
    let folder = tempfile::tempdir()?;
    let endpoint = Endpoint::well_known()?;
    let cluster = cluster(&roles(folder.path())?, &endpoint, &folder.path().join("run")).await?;
    for mode in ["bridge", "host", "awsvpc"] {
        let definition = with_role(python::task(&format!("sdk-{mode}"), mode, "sdk", SCRIPT)?);
        let task = match mode {
            "awsvpc" => vpc::run(&cluster, definition, &["sg-open"]).await?,
            _ => cluster.run(definition).await?,
        };
        let stopped = cluster.until(&task, "STOPPED", PATIENCE).await?;
        let said = cluster.engine.logs(&cluster.engine.id_of(&task, "sdk").await?).await?;
        ensure!(container(&stopped, "sdk")?["exitCode"] == 0, "{mode}: {said} {stopped}");
        assert_eq!(
            serde_json::from_str::<Value>(said.trim())?,
            json!(["AKIAWEB", SECRET, "token"]),
            "{mode}"
        );
    }
    ensure!(cluster.agent.output().contains("credentials handed out"), "no line for the audit");
    ensure!(!cluster.agent.output().contains(SECRET), "they are in the log");
    ensure!(!cluster.control_plane.output().contains(SECRET), "they are in the control plane's log");
    Ok(())
}

#[tokio::test]
async fn they_are_there_at_once_after_a_restart_without_the_control_plane() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let endpoint = Endpoint::new()?;
    let mut cluster = cluster(&roles(folder.path())?, &endpoint, &folder.path().join("run")).await?;
    let task = cluster.run(stays("restart", "bridge")).await?;
    let inside = Inside::of(&cluster, &task, "app").await?;
    let (status, answer) = ask(&inside).await?;
    assert_eq!((status, &answer["AccessKeyId"], &answer["RoleArn"]), (200, &json!("AKIAWEB"), &json!(ROLE)));
    let data = cluster.agent.data_dir().to_owned();
    eventually(PATIENCE, "they are sealed", || async {
        Ok(data.join("credentials.sealed").is_file().then_some(()))
    })
    .await?;

    cluster.control_plane.kill().await?;
    cluster.agent.kill().await?;
    cluster.agent.start_again()?;
    eventually(PATIENCE, "they are handed out", || async {
        Ok((ask(&inside).await.ok().map(|(status, _)| status) == Some(200)).then_some(()))
    })
    .await?;
    assert_eq!(ask(&inside).await?.1["SecretAccessKey"], SECRET);
    assert_eq!(files::with(&data, SECRET)?, [""; 0], "they are written in clear");
    Ok(())
}

#[tokio::test]
async fn they_are_renewed_before_they_end() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let program = folder.path().join("assume");
    let script = format!(
        "#!/bin/sh\necho x >>{0}\nn=$(wc -l <{0})\nuntil=$(date -u -d '+6 seconds' +%Y-%m-%dT%H:%M:%SZ)\n\
         printf '{{\"Version\": 1, \"AccessKeyId\": \"AKIA%s\", \"SecretAccessKey\": \"s\", \"Expiration\": \"%s\"}}' \"$n\" \"$until\"\n",
        folder.path().join("count").display()
    );
    fs::write(&program, script)?;
    fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let endpoint = Endpoint::new()?;
    let cluster =
        cluster(&format!("command:{}", program.display()), &endpoint, &folder.path().join("run")).await?;
    let task = cluster.run(stays("renewed", "bridge")).await?;
    let inside = Inside::of(&cluster, &task, "app").await?;
    let number = |answer: &Value| -> Result<u32> {
        let key = answer["AccessKeyId"].as_str().and_then(|key| key.strip_prefix("AKIA"));
        Ok(key.with_context(|| answer.to_string())?.parse()?)
    };
    let first = number(&ask(&inside).await?.1)?;
    let (status, answer) = eventually(PATIENCE, "they are renewed twice", || async {
        let (status, answer) = ask(&inside).await?;
        Ok((status != 200 || number(&answer)? >= first + 2).then_some((status, answer)))
    })
    .await?;
    ensure!(status == 200, "there were none for a while: {answer}");
    Ok(())
}

#[tokio::test]
async fn a_role_that_cannot_be_assumed_stops_the_task_and_says_why() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let endpoint = Endpoint::new()?;
    let cluster = cluster(&roles(folder.path())?, &endpoint, &folder.path().join("run")).await?;
    let mut definition = stays("unknown", "bridge");
    definition["taskRoleArn"] = json!("arn:aws:iam::123456789012:role/nobody");
    let (_, stopped) = cluster.stopped(definition).await?;
    let reason = text(&stopped, "stoppedReason")?;
    ensure!(
        reason.starts_with("ResourceInitializationError: ") && reason.contains("role/nobody"),
        "{reason}"
    );
    Ok(())
}

#[tokio::test]
async fn nobody_else_gets_them() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let endpoint = Endpoint::new()?;
    let cluster = cluster(&roles(folder.path())?, &endpoint, &folder.path().join("run")).await?;
    let mine = cluster.run(stays("mine", "bridge")).await?;
    let mine = Inside::of(&cluster, &mine, "app").await?;
    let other = cluster.run(stays("other", "bridge")).await?;
    let other = Inside::of(&cluster, &other, "app").await?;
    let path = &mine.environment["AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"];
    ensure!(path != &other.environment["AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"], "two tasks share a name");
    let base = mine.uri()?.split("/v4/").next().unwrap_or_default();
    let (status, body) = other.get(&format!("{base}{path}")).await?;
    assert_eq!(status, 400, "{body}");
    ensure!(body.contains("InvalidIdInRequest") && !body.contains(SECRET), "{body}");
    assert_eq!(mine.get(&format!("{base}/v2/credentials")).await?.0, 400);
    // From the host itself, which no bridge task is.
    let host = cluster.run(stays("on-host", "host")).await?;
    let host = Inside::of(&cluster, &host, "app").await?;
    assert_eq!(host.get(&format!("{base}{path}")).await?.0, 400);

    // Neither a task without a role nor one without a network is offered any.
    for (family, mode, role) in [("no-role", "bridge", false), ("no-network", "none", true)] {
        let mut definition = stays(family, mode);
        if !role {
            definition.as_object_mut().context("a definition")?.remove("taskRoleArn");
        }
        let task = cluster.run(definition).await?;
        let inside = Inside::of(&cluster, &task, "app").await?;
        ensure!(!inside.environment.contains_key("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"), "{family}");
    }
    Ok(())
}
