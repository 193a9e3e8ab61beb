//! Promise: what a task definition says of a container holds in the kernel and the engine: linux
//! parameters, system controls, logs, volumes.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use berth_tests::cluster::{container, text};
use berth_tests::expect::PATIENCE;
use berth_tests::{Cluster, demo, eventually, vpc};
use serde_json::{Value, json};

/// A container that stays, with more members.
fn stays(name: &str, members: Value) -> Value {
    demo::container_with(name, &["sleep", "3600"], members)
}

/// The process of a container of the task.
async fn process(cluster: &Cluster, task: &str, name: &str) -> Result<i64> {
    let container = cluster.engine.inspect(&cluster.engine.id_of(task, name).await?).await?;
    container.state.and_then(|state| state.pid).context("it does not run")
}

/// A line of the kernel's about a process, without its name.
fn status(pid: i64, line: &str) -> Result<String> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let found = status.lines().find_map(|l| l.strip_prefix(line)).map(|rest| rest.trim().to_owned());
    found.with_context(|| format!("{line} in {status}"))
}

#[tokio::test]
async fn linux_parameters_hold_inside() -> Result<()> {
    const NET_ADMIN: u64 = 12;
    const MKNOD: u64 = 27;
    let cluster = Cluster::start().await?;
    let one = stays(
        "one",
        json!({
            "linuxParameters": {
                "capabilities": { "add": ["NET_ADMIN"], "drop": ["MKNOD"] },
                "devices": [{ "hostPath": "/dev/null", "containerPath": "/dev/nothing", "permissions": ["read"] }],
                "initProcessEnabled": true,
                "sharedMemorySize": 32,
                "tmpfs": [{ "containerPath": "/scratch", "size": 8, "mountOptions": ["noexec"] }],
            },
            "systemControls": [{ "namespace": "net.core.somaxconn", "value": "512" }],
            "dockerSecurityOptions": ["no-new-privileges"],
        }),
    );
    let task = cluster.run(demo::task("linux", "bridge", json!([one]))).await?;
    cluster.until(&task, "RUNNING", PATIENCE).await?;
    let pid = process(&cluster, &task, "one").await?;

    let capabilities = u64::from_str_radix(&status(pid, "CapBnd:")?, 16)?;
    ensure!(capabilities & 1 << NET_ADMIN != 0 && capabilities & 1 << MKNOD == 0, "{capabilities:x}");
    assert_eq!(status(pid, "NoNewPrivs:")?, "1");
    let mounts = fs::read_to_string(format!("/proc/{pid}/mounts"))?;
    let at = |path: &str| {
        let mut fields = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
        fields.find(|fields| fields[1] == path).with_context(|| format!("no {path} in {mounts}"))
    };
    ensure!(at("/scratch")?[3].contains("size=8192k") && at("/scratch")?[3].contains("noexec"), "{mounts}");
    ensure!(at("/dev/shm")?[3].contains("size=32768k"), "{mounts}");
    ensure!(fs::metadata(format!("/proc/{pid}/root/dev/nothing")).is_ok(), "no device");
    let init = fs::read_to_string(format!("/proc/{pid}/cmdline"))?;
    ensure!(init.contains("init"), "process 1 is {init:?}");
    let control = std::process::Command::new("nsenter")
        .args(["--target", &pid.to_string(), "--net", "cat", "/proc/sys/net/core/somaxconn"])
        .output()?;
    assert_eq!(String::from_utf8(control.stdout)?.trim(), "512");
    Ok(())
}

#[tokio::test]
async fn controls_of_a_tasks_own_network_are_set_there() -> Result<()> {
    let cluster = Cluster::start_vpc(vpc::Vpc::new("veth").file(), &vpc::ENV).await?;
    let controls = json!({ "systemControls": [{ "namespace": "net.core.somaxconn", "value": "256" }] });
    let task = vpc::run(&cluster, vpc::task("own", json!([stays("one", controls)])), &["sg-open"]).await?;
    cluster.until(&task, "RUNNING", PATIENCE).await?;
    let read = vpc::inside(&cluster, &task, "cat").arg("/proc/sys/net/core/somaxconn").output()?;
    assert_eq!(String::from_utf8(read.stdout)?.trim(), "256");
    Ok(())
}

#[tokio::test]
async fn network_processes_and_logs_are_as_the_definition_has_them() -> Result<()> {
    let cluster = Cluster::start().await?;
    let alone = stays(
        "alone",
        json!({
            "disableNetworking": true,
            "logConfiguration": { "logDriver": "json-file", "options": { "max-size": "1m", "max-file": "2" } },
        }),
    );
    let mut definition = demo::task("modes", "bridge", json!([alone]));
    definition["pidMode"] = json!("host");
    definition["ipcMode"] = json!("none");
    let task = cluster.run(definition).await?;
    cluster.until(&task, "RUNNING", PATIENCE).await?;
    let pid = process(&cluster, &task, "alone").await?;
    let own = |kind: &str| fs::read_link(format!("/proc/{pid}/ns/{kind}"));
    let ours = |kind: &str| fs::read_link(format!("/proc/self/ns/{kind}"));
    ensure!(own("pid")? == ours("pid")? && own("ipc")? != ours("ipc")?, "namespaces");
    let links = fs::read_to_string(format!("/proc/{pid}/net/dev"))?;
    assert_eq!(links.lines().filter(|line| line.contains(':')).count(), 1, "{links}");
    let made = cluster.engine.inspect(&cluster.engine.id_of(&task, "alone").await?).await?;
    let log = made.host_config.and_then(|host| host.log_config).context("no log")?;
    let options = log.config.unwrap_or_default();
    assert_eq!((log.typ.as_deref(), options["max-size"].as_str()), (Some("json-file"), "1m"));
    // What nobody asked otherwise drops lines rather than hold the container up, as on ECS.
    assert_eq!((options["mode"].as_str(), options["max-buffer-size"].as_str()), ("non-blocking", "10m"));
    Ok(())
}

/// Where a container has a volume on this host.
async fn place(cluster: &Cluster, task: &str, name: &str, path: &str) -> Result<PathBuf> {
    let made = cluster.engine.inspect(&cluster.engine.id_of(task, name).await?).await?;
    let mounts = made.mounts.unwrap_or_default();
    let found = mounts.into_iter().find(|mount| mount.destination.as_deref() == Some(path));
    Ok(found.and_then(|mount| mount.source).with_context(|| format!("{name} has nothing at {path}"))?.into())
}

#[tokio::test]
async fn containers_share_volumes_and_the_tasks_own_goes_with_it() -> Result<()> {
    let cluster = Cluster::start_with(&[("ECS_ENGINE_TASK_CLEANUP_WAIT_DURATION", "1s")]).await?;
    let host = tempfile::tempdir()?;
    let writer = demo::container_with(
        "writer",
        &["write", "/data/word", "written"],
        json!({
            "essential": false,
            "mountPoints": [
                { "sourceVolume": "own", "containerPath": "/data" },
                { "sourceVolume": "host", "containerPath": "/host", "readOnly": true },
            ],
        }),
    );
    let reader = stays(
        "reader",
        json!({
            "volumesFrom": [{ "sourceContainer": "writer", "readOnly": true }],
            "dependsOn": [{ "containerName": "writer", "condition": "SUCCESS" }],
        }),
    );
    let mut definition = demo::task("volumes", "bridge", json!([writer, reader]));
    definition["volumes"] = json!([
        { "name": "own" },
        { "name": "host", "host": { "sourcePath": host.path().join("made") } },
    ]);
    let task = cluster.run(definition).await?;
    cluster.until(&task, "RUNNING", PATIENCE).await?;
    let pid = process(&cluster, &task, "reader").await?;
    assert_eq!(fs::read_to_string(format!("/proc/{pid}/root/data/word"))?.trim(), "written");
    let mounts = fs::read_to_string(format!("/proc/{pid}/mounts"))?;
    for path in ["/data", "/host"] {
        let mount = mounts.lines().find(|line| line.split(' ').nth(1) == Some(path)).context("no mount")?;
        ensure!(mount.split(' ').nth(3).is_some_and(|options| options.starts_with("ro")), "{mount}");
    }
    ensure!(host.path().join("made").is_dir(), "the host's folder was not made");

    let data = place(&cluster, &task, "reader", "/data").await?;
    ensure!(data.is_dir(), "{}", data.display());
    cluster.stop(&task, None).await?;
    cluster.until(&task, "STOPPED", PATIENCE).await?;
    eventually(PATIENCE, "the task's volume is gone", || async { Ok((!data.exists()).then_some(())) })
        .await?;
    ensure!(host.path().join("made").is_dir(), "the host's folder went with the task");
    Ok(())
}

#[tokio::test]
async fn a_shared_volume_outlives_its_task_and_must_be_there_unless_it_is_made() -> Result<()> {
    let cluster = Cluster::start_with(&[("ECS_ENGINE_TASK_CLEANUP_WAIT_DURATION", "1s")]).await?;
    let name = format!("{}-shared", cluster.name);
    let definition = |made: bool| {
        let mounts = json!({ "mountPoints": [{ "sourceVolume": name, "containerPath": "/data" }] });
        let mut definition = demo::task("shared", "bridge", json!([stays("one", mounts)]));
        let configuration = json!({ "scope": "shared", "autoprovision": made, "driver": "local", "labels": { "of": "test" } });
        definition["volumes"] = json!([{ "name": name, "dockerVolumeConfiguration": configuration }]);
        definition
    };
    let (_, refused) = cluster.stopped(definition(false)).await?;
    let reason = text(container(&refused, "one")?, "reason")?;
    ensure!(reason.contains(&name) && reason.contains("autoprovision"), "{reason}");

    let task = cluster.run(definition(true)).await?;
    cluster.until(&task, "RUNNING", PATIENCE).await?;
    let data = place(&cluster, &task, "one", "/data").await?;
    let id = cluster.engine.id_of(&task, "one").await?;
    cluster.stop(&task, None).await?;
    cluster.until(&task, "STOPPED", PATIENCE).await?;
    eventually(PATIENCE, "the container is gone", || async {
        Ok(cluster.engine.inspect(&id).await.is_err().then_some(()))
    })
    .await?;
    ensure!(data.is_dir(), "the shared volume went with the task");
    cluster.engine.remove_volume(&name).await
}

#[tokio::test]
async fn containers_of_a_task_share_processes_and_ipc_where_it_says_so() -> Result<()> {
    let mut cluster = Cluster::start_vpc(vpc::Vpc::new("veth").file(), &vpc::ENV).await?;
    let both = || json!([stays("one", json!({})), stays("two", json!({}))]);
    for mode in ["bridge", "none", "awsvpc"] {
        let mut definition = demo::task(&format!("shared-{mode}"), mode, both());
        definition["pidMode"] = json!("task");
        definition["ipcMode"] = json!("task");
        let task = match mode {
            "awsvpc" => vpc::run(&cluster, definition, &["sg-open"]).await?,
            _ => cluster.run(definition).await?,
        };
        cluster.until(&task, "RUNNING", PATIENCE).await?;
        let (one, two) = (process(&cluster, &task, "one").await?, process(&cluster, &task, "two").await?);
        let space = |pid: &str, kind: &str| fs::read_link(format!("/proc/{pid}/ns/{kind}"));
        for kind in ["pid", "ipc"] {
            let shared = space(&one.to_string(), kind)?;
            ensure!(shared == space(&two.to_string(), kind)?, "{mode}: {kind} is not shared");
            ensure!(shared != space("self", kind)?, "{mode}: {kind} is the host's");
        }
        // They are taken over by the next agent, and end with the task.
        cluster.agent.kill().await?;
        cluster.agent.start_again()?;
        cluster.stop(&task, None).await?;
        let stopped = cluster.until(&task, "STOPPED", PATIENCE).await?;
        assert_eq!(stopped["stopCode"], "UserInitiated", "{stopped}");
        let holder = format!("-pause-{}", task.rsplit('/').next().unwrap_or_default());
        eventually(PATIENCE, "what holds them is gone", || async {
            Ok(cluster.engine.named(&holder).await.is_err().then_some(()))
        })
        .await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_task_whose_shared_processes_lose_their_first_ends() -> Result<()> {
    let cluster = Cluster::start().await?;
    let mut definition = demo::task("first", "none", json!([stays("one", json!({}))]));
    definition["pidMode"] = json!("task");
    let (task, _) = cluster.running(definition).await?;
    let id = task.rsplit('/').next().unwrap_or_default();
    let holder = format!("-pause-{id}");
    cluster.engine.kill(&cluster.engine.named(&holder).await?).await?;
    let stopped = cluster.until(&task, "STOPPED", PATIENCE).await?;
    ensure!(text(&stopped, "stoppedReason")?.starts_with("Essential container in task exited"), "{stopped}");
    Ok(())
}
