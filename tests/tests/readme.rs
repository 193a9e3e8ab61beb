//! What README tells people to type works: its commands, run as they stand there, but for the
//! addresses and the name of the cluster, which are those of the test.

use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use berth_tests::{Cluster, demo};
use tokio::process::Command;

/// The `sh` blocks below the heading of that name, up to the next of the same level.
fn blocks(readme: &str, heading: &str) -> Result<String> {
    let (_, section) =
        readme.split_once(&format!("\n## {heading}\n")).with_context(|| format!("no section {heading}"))?;
    let section = section.split("\n## ").next().unwrap_or(section);
    let blocks: Vec<&str> =
        section.split("```sh\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
    ensure!(!blocks.is_empty(), "section {heading} has no commands");
    Ok(blocks.concat())
}

fn readme() -> Result<String> {
    Ok(std::fs::read_to_string(demo::checkout().join("README.md"))?)
}

/// Runs lines as a person would type them; what they print.
async fn typed(lines: &str, data: &std::path::Path) -> Result<String> {
    let programs = berth_tests::program::folder()?;
    let path =
        format!("{}:{}:/usr/bin:/bin", programs.display(), demo::checkout().join(".venv/bin").display());
    let shell = Command::new("bash")
        .args(["-euo", "pipefail", "-c", lines])
        .env_clear()
        .env("PATH", path)
        .env("AWS_EC2_METADATA_DISABLED", "true")
        .env("AWS_PAGER", "")
        .env("BERTH_CP_DATA_DIR", data)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await?;
    let said = String::from_utf8_lossy(&shell.stdout).into_owned();
    ensure!(shell.status.success(), "{lines}\n{said}\n{}", String::from_utf8_lossy(&shell.stderr));
    Ok(said)
}

#[tokio::test]
async fn a_task_is_run_and_a_host_is_drained_as_told() -> Result<()> {
    let cluster = Cluster::start().await?;
    let api = format!("http://{}", cluster.control_plane.api);
    let introspection = cluster.agent.introspection()?;
    let data = cluster.agent.data_dir().display().to_string();
    let lines = format!("{}{}", blocks(&readme()?, "Operate")?, blocks(&readme()?, "Debug")?)
        .replace("http://127.0.0.1:8045", &api)
        .replace("127.0.0.1:51678", &introspection)
        .replace("berth-agent ", &format!("ECS_DATADIR={data} BERTH_RUN_DIR={data}/run berth-agent "));
    // README's cluster is the default one.
    let operations = [
        "run-task",
        "wait tasks-running",
        "wait tasks-stopped",
        "describe-tasks",
        "stop-task",
        "list-container-instances",
        "update-container-instances-state",
    ];
    let lines = operations.iter().fold(lines, |lines, operation| {
        let (told, typed) =
            (format!("aws ecs {operation} "), format!("aws ecs {operation} --cluster {} ", cluster.name));
        lines.replace(&told, &typed)
    });
    let data = tempfile::tempdir()?;
    let said = typed(&lines, data.path()).await?;
    for expected in ["\"hostPort\"", "DRAINING", "\"Tasks\"", "\"ContainerInstanceArn\"", "\"Healthy\":true"]
    {
        ensure!(said.contains(expected), "{expected} is missing in: {said}");
    }
    Ok(())
}

#[tokio::test]
async fn the_configuration_is_listed_as_told() -> Result<()> {
    let data = tempfile::tempdir()?;
    let lines = blocks(&readme()?, "Configure")?;
    let said = typed(&format!("export ECS_BACKEND_HOST=http://127.0.0.1:1\n{lines}"), data.path()).await?;
    for variable in said.lines().filter_map(|line| line.split_once('=')).map(|(name, _)| name) {
        if variable.starts_with("ECS_") || variable.starts_with("BERTH_") {
            ensure!(
                readme()?.contains(&format!("`{variable}`")) || variable == "BERTH_CONFIG_FILE",
                "README does not tell of {variable}"
            );
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_control_plane_for_other_hosts_starts_as_told() -> Result<()> {
    let data = tempfile::tempdir()?;
    let lines = blocks(&readme()?, "Install")?;
    let line = |beginning: &str| {
        let found = lines.lines().find(|line| line.starts_with(beginning)).map(str::to_owned);
        found.with_context(|| format!("Install does not say {beginning}"))
    };
    let serve = line("berth-controlplane serve")?
        .replace("10.0.0.5:8045", "127.0.0.1:0")
        .replace("10.0.0.5:8046", "127.0.0.1:0 --agent-tls=on");
    let said =
        typed(&format!("coproc {serve}; head -n 1 <&${{COPROC[0]}}; kill $COPROC_PID"), data.path()).await?;
    ensure!(said.starts_with("listening api="), "{said}");
    let said = typed(&line("berth-controlplane token")?, data.path()).await?;
    ensure!(said.contains("token=") && said.contains("ca=sha256:"), "{said}");
    Ok(())
}
