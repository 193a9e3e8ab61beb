//! Promise: an operator on the host gets into a container that runs: input, output, exit code, terminal;
//! nobody else does, and it is written down.

use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use berth_tests::expect::PATIENCE;
use berth_tests::{Cluster, python};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

/// A task whose container has a shell, and the command line that reaches it.
async fn cluster() -> Result<(Cluster, String)> {
    let cluster = Cluster::start().await?;
    let definition = python::task("shell", "none", "app", "import time; time.sleep(3600)")?;
    let task = cluster.run(definition).await?;
    cluster.until(&task, "RUNNING", PATIENCE).await?;
    Ok((cluster, task))
}

/// What a program in the container says, with that input: exit code, standard output and error.
async fn exec(cluster: &Cluster, arguments: &[&str], input: &str) -> Result<(i32, String, String)> {
    let mut child = cluster
        .agent
        .command()?
        .arg("exec")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let mut stdin = child.stdin.take().context("no input")?;
    stdin.write_all(input.as_bytes()).await?;
    drop(stdin);
    let done = tokio::time::timeout(PATIENCE, child.wait_with_output()).await??;
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Ok((done.status.code().context("it was killed")?, text(done.stdout), text(done.stderr)))
}

#[tokio::test]
async fn a_program_runs_in_the_container_with_input_output_and_exit_code() -> Result<()> {
    let (cluster, task) = cluster().await?;
    let shell = "echo out; echo err >&2; exit 7";
    let told = exec(&cluster, &[&task, "--", "/usr/bin/sh", "-c", shell], "").await?;
    assert_eq!(told, (7, "out\n".to_owned(), "err\n".to_owned()));
    let told = exec(&cluster, &["-i", &task, "--", "/usr/bin/cat"], "what was typed\n").await?;
    assert_eq!(told, (0, "what was typed\n".to_owned(), String::new()));
    // Much of it, and in the container's own namespaces.
    let (code, out, _) =
        exec(&cluster, &[&task, "--", "/usr/bin/sh", "-c", "seq 200000; ls /proc/1/cwd"], "").await?;
    ensure!(code == 0 && out.lines().count() > 200_000, "{code}, {} lines", out.lines().count());

    let (code, _, why) = exec(&cluster, &[&task, "--", "/no/such/program"], "").await?;
    ensure!(code != 0, "{why}");
    let (code, _, why) = exec(&cluster, &["-c", "db", &task, "--", "/usr/bin/cat"], "").await?;
    ensure!(code == 1 && why.contains("which container of the task? app"), "{code} {why}");
    let log = cluster.agent.output();
    ensure!(
        log.contains("a program was started in a container") && log.contains("uid 0"),
        "no line for the audit"
    );
    Ok(())
}

#[tokio::test]
async fn a_terminal_is_passed_on_with_its_size() -> Result<()> {
    let (cluster, task) = cluster().await?;
    let program = berth_tests::program::binary("berth-agent")?;
    // `script` gives it a terminal of its own.
    let line = format!(
        "stty columns 101 rows 37; {} exec -i {task} -- /usr/bin/sh -c 'test -t 0 && until [ \"$(stty size)\" = \"37 101\" ]; do sleep 0.05; done; stty size'",
        program.display()
    );
    let done = Command::new("script")
        .args(["--quiet", "--return", "--command", &line, "/dev/null"])
        .envs(cluster.agent.environment())
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let done = tokio::time::timeout(PATIENCE, done).await??;
    let said = String::from_utf8_lossy(&done.stdout).into_owned();
    ensure!(done.status.success() && said.contains("37 101"), "{} {said:?}", done.status);
    Ok(())
}

#[tokio::test]
async fn nobody_but_root_is_let_in() -> Result<()> {
    let (cluster, task) = cluster().await?;
    let socket = std::fs::read_dir(cluster.agent.data_dir().join("run"))?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|kind| kind == "sock"))
        .context("no socket")?;
    // Even somebody who got hold of the socket: a root without the right to be anybody's.
    let open = socket.with_extension("link");
    std::fs::set_permissions(&socket, std::os::unix::fs::PermissionsExt::from_mode(0o666))?;
    for folder in [cluster.agent.data_dir(), &cluster.agent.data_dir().join("run")] {
        std::fs::set_permissions(folder, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    }
    std::fs::hard_link(&socket, &open)?;
    let asked = Command::new("setpriv")
        .args(["--reuid", "65534", "--clear-groups", "curl", "--silent", "--max-time", "5", "--unix-socket"])
        .arg(&open)
        .args(["--write-out", "%{http_code}", "http://agent/v1/status"])
        .output()
        .await?;
    let said = String::from_utf8_lossy(&asked.stdout).into_owned();
    ensure!(said.contains("only root may ask") && said.ends_with("403"), "{said}");
    ensure!(cluster.agent.typed(&["logs", &task]).await.is_ok(), "root was not let in");
    Ok(())
}
