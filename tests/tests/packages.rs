//! The packages on a host with systemd: installed, upgraded while a task runs, removed and purged.
//! tests/scripts/packages.sh makes the host and the packages, and runs this.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use berth_tests::{demo, eventually};
use serde_json::{Value, json};
use tokio::process::Command;

const PATIENCE: Duration = Duration::from_secs(60);
const CONFIGURATION: &str = "/etc/berth/agent.config";
/// What an operator writes there.
const OPERATORS: &str = "ECS_BACKEND_HOST=http://127.0.0.1:8046\nECS_IMAGE_PULL_BEHAVIOR=prefer-cached\n";

fn variable(name: &str) -> Result<OsString> {
    std::env::var_os(name).with_context(|| format!("{name} is set by tests/scripts/packages.sh"))
}

/// What a shell on the host says.
async fn on_host(script: &str) -> Result<String> {
    let mut command = Command::new(variable("BERTH_HOSTS")?);
    command.args(["exec", "1", "sh", "-ec", script]).stdin(Stdio::null()).kill_on_drop(true);
    let done = command.output().await?;
    let said = String::from_utf8_lossy(&done.stdout).into_owned();
    ensure!(done.status.success(), "{script}\n{said}{}", String::from_utf8_lossy(&done.stderr));
    Ok(said)
}

/// What the API of the control plane on the host answers.
async fn api(operation: &str, input: Value) -> Result<Value> {
    let request = format!(
        "curl -sS --max-time 10 -H 'Content-Type: application/x-amz-json-1.1' \
         -H 'X-Amz-Target: AmazonEC2ContainerServiceV20141113.{operation}' \
         -d '{input}' http://127.0.0.1:8045/"
    );
    let answer: Value = serde_json::from_str(&on_host(&request).await?)?;
    ensure!(answer.get("__type").is_none(), "{operation}: {answer}");
    Ok(answer)
}

/// The one instance, once its agent is connected.
async fn connected() -> Result<String> {
    eventually(PATIENCE, "the agent of the package is connected", || async {
        let arns = api("ListContainerInstances", json!({})).await?["containerInstanceArns"].take();
        let described = api("DescribeContainerInstances", json!({ "containerInstances": arns })).await?;
        let instance = &described["containerInstances"][0];
        let arn = instance["containerInstanceArn"].as_str().map(str::to_owned);
        Ok(arn.filter(|_| instance["agentConnected"] == true))
    })
    .await
}

async fn task_is_running(task: &str) -> Result<()> {
    eventually(PATIENCE, "the task is RUNNING", || async {
        let described = api("DescribeTasks", json!({ "tasks": [task] })).await?;
        let status = &described["tasks"][0]["lastStatus"];
        ensure!(status == "RUNNING", "{described}");
        Ok(Some(()))
    })
    .await
}

async fn run_task() -> Result<String> {
    let containers = json!([demo::container("main", &["sleep", "3600"])]);
    api("RegisterTaskDefinition", demo::task("packaged", "bridge", containers)).await?;
    let run = api("RunTask", json!({ "taskDefinition": "packaged" })).await?;
    let task = run["tasks"][0]["taskArn"].as_str().with_context(|| run.to_string())?.to_owned();
    task_is_running(&task).await?;
    Ok(task)
}

async fn containers() -> Result<String> {
    let listed = on_host("docker ps --no-trunc --quiet --filter label=com.amazonaws.ecs.task-arn").await?;
    Ok(listed.trim().to_owned())
}

/// What systemd says of a unit: its state, whether it starts with the host, and the id of its run.
async fn unit(name: &str) -> Result<(String, String, String)> {
    let show = format!("systemctl show --property=ActiveState,UnitFileState,InvocationID {name}.service");
    let told = on_host(&show).await?;
    let value = |key: &str| {
        let line = told.lines().find_map(|line| line.strip_prefix(key));
        line.unwrap_or_default().trim_start_matches('=').to_owned()
    };
    Ok((value("ActiveState"), value("UnitFileState"), value("InvocationID")))
}

/// The folder on the host with the packages of that revision.
async fn bring(from: &str, revision: &str) -> Result<String> {
    let mut command = Command::new(variable("BERTH_HOSTS")?);
    let root = command.args(["root", "1"]).output().await?;
    let root = PathBuf::from(String::from_utf8(root.stdout)?.trim());
    let to = Path::new("/var/tmp").join(format!("{from}-{}", revision.replace('/', "-")));
    let there = root.join(to.strip_prefix("/")?);
    std::fs::create_dir_all(&there)?;
    let packages = PathBuf::from(variable("BERTH_PACKAGES")?).join(revision);
    for entry in std::fs::read_dir(packages)? {
        let path = entry?.path();
        if path.extension().is_some_and(|kind| kind == from) {
            std::fs::copy(&path, there.join(path.file_name().context("a file's name")?))?;
        }
    }
    Ok(to.display().to_string())
}

const APT: &str = "export DEBIAN_FRONTEND=noninteractive; apt-get -q -y --no-install-recommends";

#[tokio::test]
async fn debian() -> Result<()> {
    let (first, second) = (bring("deb", "1").await?, bring("deb", "2").await?);
    on_host(&format!("{APT} install {first}/*.deb")).await?;

    // The control plane works as it is; the agent waits until it is told where that is.
    let (active, enabled, _) = unit("berth-controlplane").await?;
    ensure!(
        (active.as_str(), enabled.as_str()) == ("active", "enabled"),
        "control plane: {active}, {enabled}"
    );
    let (active, enabled, _) = unit("berth-agent").await?;
    ensure!((active.as_str(), enabled.as_str()) == ("inactive", "enabled"), "agent: {active}, {enabled}");
    let owners = "stat --format=%U:%a /var/lib/berth-controlplane /etc/berth/*.config";
    let owned = on_host(owners).await?;
    ensure!(owned == "berth-controlplane:700\nroot:600\nroot:600\n", "{owned}");
    // A host may leave the pages themselves out.
    on_host("dpkg --listfiles berth-agent | grep -q man5/berth-agent.config.5").await?;
    on_host("berth --version && berth-agent --version && berth-controlplane --version").await?;

    on_host(&format!("printf '{OPERATORS}' >>{CONFIGURATION}; systemctl start berth-agent")).await?;
    api("CreateCluster", json!({})).await?;
    let instance = connected().await?;
    let task = run_task().await?;
    let running = containers().await?;
    ensure!(running.lines().count() == 1, "{running:?}");
    let before = unit("berth-agent").await?.2;

    // The operator's configuration stays, the program is another, containers do not notice.
    on_host(&format!("{APT} -o Dpkg::Options::=--force-confold install {second}/*.deb")).await?;
    let (active, _, after) = unit("berth-agent").await?;
    ensure!(active == "active" && after != before, "the agent was not started again: {active}");
    ensure!(
        on_host(&format!("cat {CONFIGURATION}")).await?.contains("prefer-cached"),
        "the configuration is gone"
    );
    ensure!(connected().await? == instance, "another instance");
    task_is_running(&task).await?;
    ensure!(containers().await? == running, "the task's container is another");

    on_host(&format!("{APT} remove berth-agent")).await?;
    ensure!(containers().await? == running, "removal has touched the task's container");
    on_host(&format!("test -s /var/lib/berth/agent.redb && test -s {CONFIGURATION}")).await?;
    // The configuration that was left names a control plane: it starts by itself.
    on_host(&format!("{APT} install {second}/berth-agent_*.deb")).await?;
    ensure!(connected().await? == instance, "another instance after the removal");
    task_is_running(&task).await?;

    on_host(&format!("{APT} purge berth-agent berth-controlplane berth")).await?;
    let left = "ls -d /var/lib/berth /var/log/berth /run/berth /etc/berth /var/lib/berth-controlplane 2>/dev/null || true";
    let left = on_host(left).await?;
    ensure!(left.is_empty(), "purge has left {left}");
    ensure!(containers().await? == running, "purge has touched the task's container");
    on_host(&format!("docker rm --force {running}")).await.map(drop)
}

/// What dnf does on the host, with the packages of these folders and nothing else.
async fn dnf(words: &str, folders: &[&str]) -> Result<String> {
    let repositories: String = folders
        .iter()
        .map(|folder| {
            let id = folder.rsplit('/').next().unwrap_or_default();
            format!("createrepo_c -q {folder}; printf '[{id}]\\nname={id}\\nbaseurl=file://{folder}\\ngpgcheck=0\\n' >/etc/yum.repos.d/{id}.repo; ")
        })
        .collect();
    on_host(&format!(
        "mkdir -p /etc/yum.repos.d; rm -f /etc/yum.repos.d/*; {repositories} \
         dnf --quiet --assumeyes --releasever=2023 {words}"
    ))
    .await
}

#[tokio::test]
async fn red_hat() -> Result<()> {
    let (first, second) = (bring("rpm", "1").await?, bring("rpm", "2").await?);
    let stub = bring("rpm", "stub/noarch").await?;
    dnf("install berth-agent berth-controlplane berth", &[&first, &stub]).await?;
    let (active, enabled, _) = unit("berth-agent").await?;
    ensure!(active == "inactive", "the agent was started: {active}, {enabled}");
    let owned = on_host(
        "systemctl start berth-controlplane; stat --format=%U:%a /var/lib/berth-controlplane /etc/berth/*.config",
    );
    let owned = owned.await?;
    ensure!(owned == "berth-controlplane:700\nroot:600\nroot:600\n", "{owned}");
    on_host(&format!("printf '{OPERATORS}' >>{CONFIGURATION}; systemctl enable --now berth-agent")).await?;
    api("CreateCluster", json!({})).await?;
    let instance = connected().await?;
    let task = run_task().await?;
    let running = containers().await?;
    let before = unit("berth-agent").await?.2;

    dnf("upgrade", &[&second, &stub]).await?;
    let (active, _, after) = unit("berth-agent").await?;
    ensure!(active == "active" && after != before, "the agent was not started again: {active}");
    ensure!(on_host("rpm -q berth-agent").await?.contains("-2."), "it was not upgraded");
    ensure!(
        on_host(&format!("cat {CONFIGURATION}")).await?.contains("prefer-cached"),
        "the configuration is gone"
    );
    ensure!(connected().await? == instance, "another instance");
    task_is_running(&task).await?;
    ensure!(containers().await? == running, "the task's container is another");
    // All as packaged but for the configuration.
    let changed = on_host("rpm -V berth-agent berth-controlplane berth || true").await?;
    let changed: Vec<&str> = changed.lines().filter(|line| line.contains('/')).collect();
    ensure!(matches!(changed[..], [line] if line.ends_with(CONFIGURATION)), "{changed:?}");

    dnf("remove berth-agent berth-controlplane berth", &[&second, &stub]).await?;
    ensure!(containers().await? == running, "removal has touched the task's container");
    on_host(&format!("test -d /var/lib/berth && test -s {CONFIGURATION}.rpmsave")).await?;
    ensure!(unit("berth-agent").await?.0 == "inactive", "the agent runs on");
    on_host(&format!("docker rm --force {running}; rpm --erase --nodeps stub 2>/dev/null || true; rm -rf /var/lib/berth* /etc/berth"))
        .await
        .map(drop)
}
