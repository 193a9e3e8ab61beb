//! Promise: an operator who is elsewhere gets into a container of a task that allows it, and reads what
//! containers say, through the control plane; nobody without a key does, and it is written down.

use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use berth_tests::expect::PATIENCE;
use berth_tests::{Aws, Cluster, ControlPlane, eventually, python};
use serde_json::json;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::Command;

const SCRIPT: &str = "import time\nprint('first', flush=True)\nprint('second', flush=True)\ntime.sleep(3600)";

/// A task whose container has a shell.
async fn shell(cluster: &Cluster, allowed: bool) -> Result<String> {
    let definition = cluster.register(python::task("shell", "none", "app", SCRIPT)?).await?;
    let request =
        json!({ "cluster": cluster.name, "taskDefinition": definition, "enableExecuteCommand": allowed });
    let answer = cluster.ecs.call("RunTask", request).await?;
    let task = answer["tasks"][0]["taskArn"].as_str().with_context(|| answer.to_string())?.to_owned();
    cluster.until(&task, "RUNNING", PATIENCE).await?;
    Ok(task)
}

/// The operator's command line.
fn berth(control_plane: &ControlPlane, key: &str) -> Result<Command> {
    let mut command = Command::new(berth_tests::program::binary("berth")?);
    command
        .env("AWS_ENDPOINT_URL_ECS", format!("http://{}", control_plane.api))
        .env("AWS_ACCESS_KEY_ID", key)
        .env("AWS_SECRET_ACCESS_KEY", "secret")
        .env("AWS_DEFAULT_REGION", "us-east-1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    Ok(command)
}

/// What it says, with that input: exit code, standard output and error.
async fn run(control_plane: &ControlPlane, arguments: &[&str], input: &str) -> Result<(i32, String, String)> {
    let mut child = berth(control_plane, "operator")?.args(arguments).spawn()?;
    let mut stdin = child.stdin.take().context("no input")?;
    stdin.write_all(input.as_bytes()).await?;
    drop(stdin);
    let done = tokio::time::timeout(PATIENCE, child.wait_with_output()).await??;
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Ok((done.status.code().context("it was killed")?, text(done.stdout), text(done.stderr)))
}

#[tokio::test]
async fn a_program_runs_in_a_container_from_afar() -> Result<()> {
    let cluster = Cluster::start().await?;
    let task = shell(&cluster, true).await?;
    let control_plane = &cluster.control_plane;
    let script = "echo 'a  b'; echo err >&2; exit 7";
    let told = run(control_plane, &["exec", &task, "--", "/usr/bin/sh", "-c", script], "").await?;
    assert_eq!(told, (7, "a  b\n".to_owned(), "err\n".to_owned()));
    let told = run(control_plane, &["exec", "-i", &task, "--", "/usr/bin/cat"], "what was typed\n").await?;
    assert_eq!(told, (0, "what was typed\n".to_owned(), String::new()));
    // Much of it, through all the wires between.
    let much = run(control_plane, &["exec", &task, "--", "/usr/bin/seq", "200000"], "").await?;
    ensure!(much.0 == 0 && much.1.lines().count() == 200_000, "{} {}", much.0, much.2);
    let (code, _, why) = run(control_plane, &["exec", &task, "--", "/no/such/program"], "").await?;
    ensure!(code != 0, "{why}");
    let (code, _, why) = run(control_plane, &["exec", "-c", "db", &task, "--", "true"], "").await?;
    ensure!(code == 1 && why.contains("container should be one of [app]"), "{code} {why}");
    for (log, who) in [(cluster.agent.output(), "agent"), (control_plane.output(), "control plane")] {
        ensure!(
            log.contains("/usr/bin/sh") && log.contains("operator"),
            "nothing is written down by the {who}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn a_terminal_from_afar_has_its_size() -> Result<()> {
    let cluster = Cluster::start().await?;
    let task = shell(&cluster, true).await?;
    let program = berth_tests::program::binary("berth")?;
    let line = format!(
        "stty columns 101 rows 37; {} exec -i {task} -- /usr/bin/sh -c 'test -t 0 && until [ \"$(stty size)\" = \"37 101\" ]; do sleep 0.05; done; stty size'",
        program.display()
    );
    let done = Command::new("script")
        .args(["--quiet", "--return", "--command", &line, "/dev/null"])
        .env("AWS_ENDPOINT_URL_ECS", format!("http://{}", cluster.control_plane.api))
        .env("AWS_ACCESS_KEY_ID", "operator")
        .env("AWS_SECRET_ACCESS_KEY", "secret")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let done = tokio::time::timeout(PATIENCE, done).await??;
    let said = String::from_utf8_lossy(&done.stdout).into_owned();
    ensure!(done.status.success() && said.contains("37 101"), "{} {said:?}", done.status);
    Ok(())
}

#[tokio::test]
async fn logs_are_read_from_afar() -> Result<()> {
    let cluster = Cluster::start().await?;
    let task = shell(&cluster, false).await?;
    eventually(PATIENCE, "it has said its lines", || async {
        let told = run(&cluster.control_plane, &["logs", &task], "").await?;
        Ok((told == (0, "first\nsecond\n".to_owned(), String::new())).then_some(()))
    })
    .await?;
    let (code, last, _) = run(&cluster.control_plane, &["logs", "--tail", "1", &task], "").await?;
    assert_eq!((code, last.as_str()), (0, "second\n"));
    // Followed until the container ends.
    let mut child = berth(&cluster.control_plane, "operator")?.args(["logs", "--follow", &task]).spawn()?;
    let mut lines = BufReader::new(child.stdout.take().context("no output")?).lines();
    assert_eq!(lines.next_line().await?.as_deref(), Some("first"));
    cluster.engine.kill(&cluster.engine.id_of(&task, "app").await?).await?;
    let ended = tokio::time::timeout(PATIENCE, child.wait()).await??;
    ensure!(ended.success(), "{ended}");
    Ok(())
}

#[tokio::test]
async fn a_task_that_does_not_allow_it_is_left_alone() -> Result<()> {
    let cluster = Cluster::start().await?;
    let task = shell(&cluster, false).await?;
    let (code, _, why) = run(&cluster.control_plane, &["exec", &task, "--", "true"], "").await?;
    ensure!(code == 1 && why.contains("execute command was not enabled"), "{code} {why}");
    // ECS's own client sees what it knows.
    let aws = Aws::new(cluster.control_plane.api)?;
    let asked = ["--cluster", &cluster.name, "--task", &task, "--interactive", "--command", "sh"];
    let told = aws.output(&[&["execute-command"][..], &asked].concat()).await?;
    let why = String::from_utf8_lossy(&told.stderr).into_owned();
    ensure!(why.contains("InvalidParameterException") || why.contains("SessionManagerPlugin"), "{why}");
    Ok(())
}

#[tokio::test]
async fn a_host_that_lets_nobody_in_gets_no_task_that_wants_it() -> Result<()> {
    let cluster = Cluster::start_with(&[("BERTH_REMOTE_EXEC", "false")]).await?;
    let definition = cluster.register(python::task("closed", "none", "app", SCRIPT)?).await?;
    let request =
        json!({ "cluster": cluster.name, "taskDefinition": definition, "enableExecuteCommand": true });
    let answer = cluster.ecs.call("RunTask", request).await?;
    ensure!(answer["tasks"] == json!([]) && answer["failures"][0]["reason"] == "ATTRIBUTE", "{answer}");
    Ok(())
}

#[tokio::test]
async fn nobody_without_a_key_is_let_in() -> Result<()> {
    let control_plane = ControlPlane::start_with(None, &[("BERTH_CP_ACCESS_KEY", "operator:secret")]).await?;
    let ask = async |key: &str| -> Result<String> {
        let done = berth(&control_plane, key)?.args(["exec", "0", "--", "true"]).output().await?;
        ensure!(!done.status.success(), "it was let in");
        Ok(String::from_utf8_lossy(&done.stderr).into_owned())
    };
    let stranger = ask("stranger").await?;
    ensure!(stranger.contains("UnrecognizedClientException"), "{stranger}");
    let known = ask("operator").await?;
    ensure!(!known.contains("Unrecognized") && !known.contains("Signature"), "{known}");
    // An address that somebody guesses is worth nothing.
    let url = format!("http://{}/berth/v1/streams/{}", control_plane.api, "0".repeat(36));
    let (status, body) = berth_tests::http::get(&url).await?;
    ensure!(status.as_u16() == 426, "{status} {body}");
    Ok(())
}

#[tokio::test]
async fn a_host_that_is_away_says_so_at_once() -> Result<()> {
    let mut cluster = Cluster::start().await?;
    let task = shell(&cluster, true).await?;
    cluster.agent.kill().await?;
    let away = async || {
        let (code, _, why) = run(&cluster.control_plane, &["exec", &task, "--", "true"], "").await?;
        Ok((code == 1 && why.contains("TargetNotConnectedException")).then_some(()))
    };
    eventually(PATIENCE, "it is told that the agent is away", away).await?;
    cluster.agent.start_again()?;
    eventually(PATIENCE, "it works again", || async {
        let told = run(&cluster.control_plane, &["exec", &task, "--", "/usr/bin/true"], "").await?;
        Ok((told.0 == 0).then_some(()))
    })
    .await
}
