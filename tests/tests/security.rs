//! Promise: what README's section "Security" says. Each row of its table has a test here that bears its name:
//! what there is to get at, who may, and what a task that was taken over gets of it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, bail, ensure};
use berth_agent::store::Store as _;
use berth_agent::store::redb::RedbStore;
use berth_proto::v1;
use berth_proto::v1::control_plane_client::ControlPlaneClient;
use berth_proto::v1::enrollment_client::EnrollmentClient;
use berth_tests::endpoint::Inside;
use berth_tests::expect::PATIENCE;
use berth_tests::program::{Program, binary};
use berth_tests::secured::{Secured, private_lines, with_data};
use berth_tests::strangers::{Neighbour, listens_at};
use berth_tests::{Cluster, Endpoint, demo, eventually, files, http, vpc};
use nix::sys::stat::{Mode, umask};
use serde_json::{Value, json};
use tokio::process::Command;
use tokio_stream::StreamExt as _;
use tonic::Code;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Identity};

const SECRET: &str = "hush-hush-tell-nobody";
const ROLE: &str = "arn:aws:iam::123456789012:role/web";

/// A task of one container that stays.
fn stays(family: &str, mode: &str, members: Value) -> Value {
    demo::task(family, mode, json!([demo::container_with("app", &["sleep", "3600"], members)]))
}

/// A task whose container has this host's programs, and what a definition may ask for.
fn shell(family: &str, mode: &str, members: &Value) -> Value {
    let folders = ["/usr", "/bin", "/lib", "/lib64"];
    let names = || folders.iter().filter(|folder| Path::new(folder).exists()).enumerate();
    let mounts = names().map(
        |(n, folder)| json!({ "sourceVolume": format!("v{n}"), "containerPath": folder, "readOnly": true }),
    );
    let mut definition = stays(family, mode, json!({ "mountPoints": mounts.collect::<Vec<_>>() }));
    let volumes =
        names().map(|(n, folder)| json!({ "name": format!("v{n}"), "host": { "sourcePath": folder } }));
    definition["volumes"] = volumes.collect();
    demo::merged(definition, members)
}

/// What a line of shell says in the task's container, with all that the container may.
async fn sh(cluster: &Cluster, task: &str, line: &str) -> Result<String> {
    let done = cluster
        .agent
        .command()?
        .args(["exec", task, "--", "/usr/bin/sh", "-c", &format!("{line} 2>&1")])
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    Ok(String::from_utf8_lossy(&done.await?.stdout).into_owned())
}

/// A cluster with everything that the agent serves and keeps: a subnet, the task's endpoint, a role.
struct Host {
    cluster: Cluster,
    endpoint: Endpoint,
    run: PathBuf,
    _folder: tempfile::TempDir,
}

impl Host {
    async fn start(more: &[(&str, &str)]) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let roles = folder.path().join("roles.json");
        let keys = json!({ "AccessKeyId": "AKIAWEB", "SecretAccessKey": SECRET, "SessionToken": "token" });
        std::fs::write(&roles, json!({ ROLE: keys }).to_string())?;
        std::fs::write(folder.path().join("db"), SECRET)?;
        let endpoint = Endpoint::new()?;
        let run = folder.path().join("run");
        let env = [
            ("BERTH_ENDPOINT_ADDRESS", endpoint.address()),
            ("BERTH_RUN_DIR", run.display().to_string()),
            ("BERTH_SECRETS", format!("directory:{}", folder.path().display())),
            ("ECS_ENABLE_CONTAINER_METADATA", "true".to_owned()),
            ("ECS_LOGFILE", folder.path().join("agent.log").display().to_string()),
        ];
        let env = env.iter().map(|(key, value)| (*key, value.as_str())).chain(more.iter().copied());
        let env: Vec<(&str, &str)> = env.chain([vpc::ENV[0]]).collect();
        let credentials = format!("file:{}", roles.display());
        let subnet = vpc::Vpc::new("veth");
        let plane = [("BERTH_CP_CREDENTIALS", credentials.as_str())];
        let cluster = Cluster::start_vpc_with(subnet.file(), &plane, &env).await?;
        Ok(Self { cluster, endpoint, run, _folder: folder })
    }

    /// Where the introspection API listens; the log is a file here.
    fn introspection(&self) -> Result<u16> {
        let listening = listens_at(self.cluster.agent.pid().context("no agent")?)?;
        let port = listening.iter().find_map(|at| at.strip_prefix("tcp 127.0.0.1:"));
        Ok(port.with_context(|| format!("{listening:?}"))?.parse()?)
    }

    /// A container that runs in that mode, and its task.
    async fn inside(&self, family: &str, mode: &str, members: &Value) -> Result<(String, Inside)> {
        let definition = demo::merged(stays(family, mode, json!({})), members);
        let task = match mode {
            "awsvpc" => vpc::run(&self.cluster, definition, &["sg-open"]).await?,
            _ => self.cluster.run(definition).await?,
        };
        let inside = Inside::of(&self.cluster, &task, "app").await?;
        Ok((task, inside))
    }

    async fn with_role(&self, family: &str, mode: &str) -> Result<(String, Inside)> {
        self.inside(family, mode, &json!({ "taskRoleArn": ROLE })).await
    }
}

/// Whether somebody there takes a connection from here.
async fn connects(from: &Inside, host: &str, port: u16) -> Result<bool> {
    let address = format!("{host}:{port}").parse()?;
    from.run(move || {
        Ok(std::net::TcpStream::connect_timeout(&address, std::time::Duration::from_secs(1)).is_ok())
    })
    .await
}

/// Addresses under which somebody beside it knows this host.
fn addresses() -> Result<Vec<String>> {
    let said = std::process::Command::new("hostname").arg("--all-ip-addresses").output()?;
    let said = String::from_utf8(said.stdout)?;
    Ok(said.split_whitespace().filter(|address| address.contains('.')).map(str::to_owned).collect())
}

/// What does not keep to the modes that its kind has; `*` stands for one part of a path.
fn astray(found: &[(String, u32)], kinds: &[(&str, u32)]) -> Vec<String> {
    let fits = |path: &str, pattern: &str| {
        let (path, pattern): (Vec<_>, Vec<_>) = (path.split('/').collect(), pattern.split('/').collect());
        let same = |(part, p): (&&str, &&str)| part == p || (*p == "*" && !part.is_empty());
        path.len() == pattern.len() && path.iter().zip(&pattern).all(same)
    };
    let usual = |path: &str| if path.ends_with('/') { 0o700 } else { 0o600 };
    let wanted = |path: &str| {
        kinds.iter().find(|(pattern, _)| fits(path, pattern)).map_or_else(|| usual(path), |(_, mode)| *mode)
    };
    let wrong = found.iter().filter(|(path, mode)| *mode != wanted(path));
    wrong.map(|(path, mode)| format!("{path} {mode:o}")).collect()
}

#[test]
fn each_row_of_the_table_has_a_test_and_each_test_a_row() -> Result<()> {
    let readme = std::fs::read_to_string(demo::checkout().join("README.md"))?;
    let (_, section) = readme.split_once("\n## Security\n").context("no section Security")?;
    let section = section.split("\n## ").next().unwrap_or(section);
    let rows = section.lines().filter_map(|line| line.strip_prefix("| ")?.split(" | ").next());
    let rows = rows.filter(|row| !row.starts_with("---") && *row != "what");
    let name = |row: &str| -> String {
        let kept = row.chars().filter(|c| c.is_alphanumeric() || *c == ' ');
        kept.map(|c| if c == ' ' { '_' } else { c.to_ascii_lowercase() }).collect()
    };
    let rows: BTreeSet<String> = rows.map(name).collect();
    let own = include_str!("security.rs");
    let tests = own.split("#[tokio::test]\n").skip(1).filter_map(|rest| rest.strip_prefix("async fn "));
    let tests: BTreeSet<String> =
        tests.filter_map(|rest| rest.split_once('(')).map(|(name, _)| name.to_owned()).collect();
    ensure!(rows.len() > 10, "{rows:?}");
    assert_eq!(rows, tests);
    Ok(())
}

// --- on the host ---

#[tokio::test]
async fn the_engines_socket() -> Result<()> {
    let host = Host::start(&[]).await?;
    let engine = std::env::var("DOCKER_HOST").unwrap_or_else(|_| "unix:///var/run/docker.sock".to_owned());
    let socket = engine.strip_prefix("unix://").context("no socket")?;
    for mode in ["bridge", "host", "none", "awsvpc"] {
        let (task, inside) = host.with_role(&format!("plain-{mode}"), mode).await?;
        ensure!(!Path::new(&format!("/proc/{}/root{socket}", inside.pid)).exists(), "{mode}: it is inside");
        let mounts = std::fs::read_to_string(format!("/proc/{}/mountinfo", inside.pid))?;
        ensure!(!mounts.contains("docker.sock"), "{mounts}");
        ensure!(!inside.environment.contains_key("DOCKER_HOST"), "{:?}", inside.environment.keys());
        let made = host.cluster.engine.inspect(&host.cluster.engine.id_of(&task, "app").await?).await?;
        let made = made.host_config.context("no configuration")?;
        ensure!(made.privileged != Some(true) && made.cap_add.unwrap_or_default().is_empty(), "{mode}");
        // Its metadata file is all that it has of the host's files.
        let own = host.cluster.agent.data_dir().join("metadata").display().to_string();
        let binds = made.binds.unwrap_or_default();
        ensure!(binds.iter().all(|bind| bind.starts_with(&own)), "{binds:?}");
    }
    Ok(())
}

#[tokio::test]
async fn the_state_directory() -> Result<()> {
    umask(Mode::empty());
    let host = Host::start(&[]).await?;
    let cluster = &host.cluster;
    let folder = cluster.agent.data_dir().to_owned();
    let (task, _) = host.with_role("keeps", "bridge").await?;
    let (_, _) = host.with_role("keeps-own", "awsvpc").await?;
    let option = json!({ "logDriver": "awsfirelens", "options": { "Name": "null" } });
    let router = demo::container_with(
        "log_router",
        &["sleep", "3600"],
        json!({ "firelensConfiguration": { "type": "fluentbit" } }),
    );
    let logs = json!([
        router,
        demo::container_with("app", &["sleep", "3600"], json!({ "logConfiguration": option }))
    ]);
    cluster.running(demo::task("logs", "bridge", logs)).await?;
    eventually(PATIENCE, "all of it is there", || async {
        let found = files::modes(&folder)?;
        let has = |end: &str| found.iter().any(|(path, _)| path.ends_with(end));
        let all =
            ["credentials.sealed", "agent.redb", ".jsonl", "ecs-container-metadata.json", "fluent.conf"];
        Ok(all.iter().all(|end| has(end)).then_some(()))
    })
    .await?;
    // What containers have in common with the host is theirs to read, whatever their user, behind a folder
    // that is not.
    let kinds = [
        ("metadata/*/*/", 0o755),
        ("metadata/*/*/*", 0o644),
        ("firelens/*/config/", 0o700),
        ("firelens/*/config/*", 0o644),
        ("netns/*", 0o444),
    ];
    let found = files::modes(&folder)?;
    assert_eq!(astray(&found, &kinds), [""; 0], "of {found:#?}");
    // None of it holds what the role's credentials are.
    assert_eq!(files::with(&folder, SECRET)?, [""; 0]);
    ensure!(cluster.task(&task).await?["lastStatus"] == "RUNNING");

    // One that is not there is made for its owner alone, one that others may read is made so, as the engine's for a
    // volume is; one that others may write to is none.
    let data = tempfile::tempdir()?;
    let (fresh, made) = (data.path().join("deep/state"), data.path().join("volume"));
    std::fs::create_dir(&made)?;
    std::fs::set_permissions(&made, std::fs::Permissions::from_mode(0o755))?;
    for folder in [&fresh, &made] {
        let mut env = cluster.agent.environment().clone();
        env.extend(
            [("ECS_DATADIR", folder), ("BERTH_RUN_DIR", &data.path().join("deep/run"))]
                .map(|(key, folder)| (key.to_owned(), folder.display().to_string())),
        );
        env.extend(
            [("BERTH_ENDPOINT_ADDRESS", "off"), ("ECS_ENABLE_TASK_ENI", "false")]
                .map(|(key, value)| (key.to_owned(), value.to_owned())),
        );
        env.remove("ECS_LOGFILE");
        let mut program = Program::start("berth-agent", &[], &env)?;
        eventually(PATIENCE, "it is made", || async { Ok(folder.join("agent.redb").exists().then_some(())) })
            .await?;
        program.kill().await?;
        assert_eq!(files::mode(folder)?, 0o700);
        assert_eq!(astray(&files::modes(folder)?, &[]), [""; 0]);
    }
    let open = data.path().join("open");
    std::fs::create_dir(&open)?;
    for (key, folder) in [("ECS_DATADIR", &open), ("BERTH_RUN_DIR", &open)] {
        let mut env = cluster.agent.environment().clone();
        env.insert("ECS_DATADIR".to_owned(), data.path().join("other").display().to_string());
        env.insert(key.to_owned(), folder.display().to_string());
        env.remove("ECS_LOGFILE");
        env.insert("ECS_ENABLE_TASK_ENI".to_owned(), "false".to_owned());
        let mut program = Program::start("berth-agent", &[], &env)?;
        let code = program.end(PATIENCE).await?.code();
        ensure!(code == Some(5), "{key}: {code:?} {}", program.output());
        let told = format!("{key}={}: others than its owner may write there", folder.display());
        ensure!(program.output().contains(&told), "{}", program.output());
    }
    Ok(())
}

#[tokio::test]
async fn the_run_directory() -> Result<()> {
    umask(Mode::empty());
    let host = Host::start(&[]).await?;
    host.with_role("sealed", "bridge").await?;
    assert_eq!(files::mode(&host.run)?, 0o700);
    let found = files::modes(&host.run)?;
    assert_eq!(astray(&found, &[]), [""; 0]);
    let kinds: BTreeSet<&str> = found.iter().filter_map(|(path, _)| path.rsplit('.').next()).collect();
    assert_eq!(kinds, ["key", "sock"].into());
    Ok(())
}

#[tokio::test]
async fn the_log() -> Result<()> {
    umask(Mode::empty());
    let secrets = json!({ "secrets": [{ "name": "PASSWORD", "valueFrom": "db" }] });
    let host = Host::start(&[("ECS_LOGLEVEL", "trace")]).await?;
    let (_, inside) = host.with_role("logged", "bridge").await?;
    let base = inside.uri()?.split("/v4/").next().unwrap_or_default().to_owned();
    let own = inside.environment["AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"].clone();
    assert_eq!(inside.get(&format!("{base}{own}")).await?.0, 200);
    let (_, with_secret) = host
        .inside(
            "secret",
            "bridge",
            &json!({ "containerDefinitions": [demo::container_with("app", &["sleep", "3600"], secrets)] }),
        )
        .await?;
    assert_eq!(with_secret.environment["PASSWORD"], SECRET);
    let log = PathBuf::from(&host.cluster.agent.environment()["ECS_LOGFILE"]);
    assert_eq!(files::mode(&log)?, 0o640);
    let text = std::fs::read_to_string(&log)?;
    ensure!(text.contains("credentials handed out"), "who gets credentials is in it");
    let name = own.rsplit('/').next().unwrap_or_default();
    let uri = inside.uri()?.rsplit('/').next().unwrap_or_default();
    for (what, secret) in [("a secret", SECRET), ("a name of credentials", name), ("a name of metadata", uri)]
    {
        let line = text.lines().find(|line| line.contains(secret));
        ensure!(line.is_none(), "{what} is in the log: {line:?}");
    }
    Ok(())
}

#[tokio::test]
async fn what_the_agent_listens_at() -> Result<()> {
    let host = Host::start(&[]).await?;
    host.with_role("listening", "awsvpc").await?;
    let pid = host.cluster.agent.pid().context("no agent")?;
    let found = listens_at(pid)?;
    let kinds: Vec<&str> = found
        .iter()
        .map(|at| match at.as_str() {
            at if *at == format!("tcp {}", host.endpoint.address()) => "the task's endpoint",
            at if at.starts_with("tcp 127.0.0.1:") => "the introspection port",
            at if at.starts_with(&format!("unix {}/", host.run.display())) => "the operator's socket",
            other => other,
        })
        .collect();
    assert_eq!(kinds, ["the introspection port", "the task's endpoint", "the operator's socket"]);
    Ok(())
}

#[tokio::test]
async fn the_operators_socket() -> Result<()> {
    let host = Host::start(&[]).await?;
    let (task, _) = host.with_role("asked", "bridge").await?;
    let mut sockets = std::fs::read_dir(&host.run)?.flatten().map(|entry| entry.path());
    let socket = sockets.find(|path| path.extension().is_some_and(|kind| kind == "sock")).context("none")?;
    assert_eq!(files::mode(&socket)?, 0o600);
    // Somebody to whom everything was opened is told no by the agent itself.
    for path in [&host.run, &socket] {
        std::fs::set_permissions(path, PermissionsExt::from_mode(0o777))?;
    }
    let folder = host.run.parent().context("a folder")?;
    std::fs::set_permissions(folder, PermissionsExt::from_mode(0o755))?;
    for (user, status) in [("65534", "403"), ("0", "200")] {
        let asked = Command::new("setpriv")
            .args(["--reuid", user, "--clear-groups", "curl", "--silent", "--max-time", "5"])
            .args(["--output", "/dev/null", "--write-out", "%{http_code}", "--unix-socket"])
            .arg(&socket)
            .arg("http://agent/v1/tasks")
            .output()
            .await?;
        assert_eq!(String::from_utf8_lossy(&asked.stdout), status, "user {user}");
    }
    ensure!(host.cluster.agent.typed(&["logs", &task]).await.is_ok(), "root was not let in");
    Ok(())
}

#[tokio::test]
async fn the_introspection_port() -> Result<()> {
    let mut checked = Command::new(binary("berth-agent")?);
    checked.arg("check-config").env_clear().env("ECS_BACKEND_HOST", "http://127.0.0.1:1");
    let said = String::from_utf8(checked.output().await?.stdout)?;
    ensure!(said.contains("BERTH_INTROSPECTION_ADDRESS=127.0.0.1:51678"), "{said}");

    let host = Host::start(&[]).await?;
    let port = host.introspection()?;
    let plain = json!({ "containerDefinitions": [demo::container_with("app", &["sleep", "3600"], json!({
        "environment": [{ "name": "PLAIN", "value": "of-the-task-alone" }],
        "secrets": [{ "name": "PASSWORD", "valueFrom": "db" }],
    }))], "taskRoleArn": ROLE });
    let (_, bridge) = host.inside("bridge", "bridge", &plain).await?;
    let (_, own) = host.inside("own", "awsvpc", &plain).await?;
    let neighbour = Neighbour::start()?;
    let mut known = addresses()?;
    known.extend(["127.0.0.1".to_owned(), "169.254.170.2".to_owned(), neighbour.host.clone()]);
    for (who, from) in [("bridge", &bridge), ("awsvpc", &own), ("a neighbour", &neighbour.inside())] {
        for address in &known {
            ensure!(!connects(from, address, port).await?, "{who} reaches {address}:{port}");
        }
    }
    // A task on the host's network is on the host, and what it reads there is no secret.
    let (_, on_host) = host.inside("on-host", "host", &plain).await?;
    for path in ["/v1/metadata", "/v1/tasks", "/v1/health", "/metrics", "/license", "/"] {
        let (status, body) = on_host.get(&format!("http://127.0.0.1:{port}{path}")).await?;
        assert_eq!(status, 200, "{path}: {body}");
        for inside in [&bridge, &own, &on_host] {
            let name = inside.uri()?.rsplit('/').next().unwrap_or_default();
            for secret in [SECRET, "of-the-task-alone", name] {
                ensure!(!body.contains(secret), "{path} tells {secret}");
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn the_agents_process() -> Result<()> {
    let host = Host::start(&[("BERTH_VAULT_TOKEN", SECRET)]).await?;
    let pid = host.cluster.agent.pid().context("no agent")?;
    let definition = shell("sees", "host", &json!({ "pidMode": "host" }));
    let (task, inside) = {
        let task = host.cluster.run(definition).await?;
        let inside = Inside::of(&host.cluster, &task, "app").await?;
        (task, inside)
    };
    ensure!(sh(&host.cluster, &task, &format!("cat /proc/{pid}/comm")).await?.contains("berth-agent"));
    for file in ["environ", "mem", "maps", "fd/0", "root/etc/hostname", "cwd/"] {
        let said = sh(&host.cluster, &task, &format!("cat /proc/{pid}/{file}")).await?;
        ensure!(said.contains("Permission denied") && !said.contains(SECRET), "{file}: {said}");
    }
    // What the agent was told is not passed on.
    let told = host.cluster.agent.environment();
    let passed = inside.environment.keys().filter(|key| told.contains_key(*key)).collect::<Vec<_>>();
    ensure!(passed.is_empty(), "{passed:?}");
    ensure!(inside.environment.values().all(|value| !value.contains(SECRET)), "the vault's token");
    Ok(())
}

// --- from inside a task ---

#[tokio::test]
async fn the_tasks_endpoint() -> Result<()> {
    let host = Host::start(&[]).await?;
    let neighbour = Neighbour::start()?;
    let (mine_task, mine) = host.with_role("mine", "bridge").await?;
    let (_, other) = host.with_role("other", "bridge").await?;
    let (_, own) = host.with_role("own", "awsvpc").await?;
    let (_, on_host) = host.with_role("on-host", "host").await?;
    let outside = neighbour.inside();
    let all = [("mine", &mine), ("other", &other), ("awsvpc", &own), ("host", &on_host)];
    for (victim, of) in all {
        for (caller, from) in all.into_iter().chain([("a neighbour", &outside)]) {
            let (status, body) = from.get(&format!("{}/task", of.uri()?)).await?;
            let expected = if victim == caller { 200 } else { 404 };
            ensure!(status == expected, "{caller} asks about {victim}: {status} {body}");
        }
    }
    // Version 2 goes by the address alone, and knows no stranger's.
    let base = mine.uri()?.split("/v4/").next().unwrap_or_default().to_owned();
    for (caller, from) in [("bridge", &mine), ("host", &on_host), ("a neighbour", &outside)] {
        assert_eq!(from.get(&format!("{base}/v2/metadata")).await?.0, 404, "{caller}");
    }
    ensure!(other.get(&format!("{}/task", mine.uri()?)).await?.0 == 404, "before");
    // A neighbour who says that it is a task: the answers go to the task.
    let address = own.json("").await?["Networks"][0]["IPv4Addresses"][0].as_str().map(str::to_owned);
    let as_task = vec![address.context("no address")?, "169.254.170.2".to_owned()];
    for address in as_task {
        let words = ["--target", &outside.pid.to_string(), "--net", "--", "ip", "address", "add"];
        let done = Command::new("nsenter")
            .args(words)
            .args([&format!("{address}/32"), "dev", "lo"])
            .status()
            .await?;
        ensure!(done.success(), "the neighbour cannot call itself {address}");
        let asked = Command::new("nsenter")
            .args([
                "--target",
                &outside.pid.to_string(),
                "--net",
                "--",
                "curl",
                "--silent",
                "--max-time",
                "2",
            ])
            .args(["--interface", &address, &format!("{}/task", own.uri()?)])
            .output()
            .await?;
        let said = String::from_utf8_lossy(&asked.stdout).into_owned();
        ensure!(!said.contains("TaskARN"), "as {address}: {said}");
    }
    // A name ends with its task.
    let uri = mine.uri()?.to_owned();
    ensure!(other.get(&format!("{uri}/task")).await?.0 == 404, "after");
    host.cluster.stop(&mine_task, None).await?;
    host.cluster.until(&mine_task, "STOPPED", PATIENCE).await?;
    assert_eq!(other.get(&format!("{uri}/task")).await?.0, 404);
    Ok(())
}

#[tokio::test]
async fn role_credentials() -> Result<()> {
    let host = Host::start(&[]).await?;
    let neighbour = Neighbour::start()?;
    let (_, mine) = host.with_role("mine", "bridge").await?;
    let (_, other) = host.with_role("other", "bridge").await?;
    let (_, own) = host.with_role("own", "awsvpc").await?;
    let (_, on_host) = host.with_role("on-host", "host").await?;
    let outside = neighbour.inside();
    let base = mine.uri()?.split("/v4/").next().unwrap_or_default().to_owned();
    let all = [("mine", &mine), ("other", &other), ("awsvpc", &own), ("host", &on_host)];
    for (victim, of) in all {
        let url = format!("{base}{}", of.environment["AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"]);
        for (caller, from) in all.into_iter().chain([("a neighbour", &outside)]) {
            let (status, body) = from.get(&url).await?;
            let expected = if victim == caller { 200 } else { 400 };
            ensure!(status == expected, "{caller} asks for those of {victim}: {status} {body}");
            ensure!(body.contains(SECRET) == (victim == caller), "{caller} of {victim}: {body}");
        }
    }
    // On the disk they are sealed, and what opens them is elsewhere.
    let data = host.cluster.agent.data_dir();
    eventually(PATIENCE, "they are sealed", || async {
        Ok(data.join("credentials.sealed").is_file().then_some(()))
    })
    .await?;
    assert_eq!(files::with(data, SECRET)?, [""; 0]);
    assert_eq!(files::with(data, "AKIAWEB")?, [""; 0]);
    Ok(())
}

#[tokio::test]
async fn task_protection() -> Result<()> {
    let host = Host::start(&[]).await?;
    let neighbour = Neighbour::start()?;
    let (_, mine) = host.with_role("mine", "bridge").await?;
    let (_, other) = host.with_role("other", "awsvpc").await?;
    let url = format!("{}/task-protection/v1/state", mine.environment["ECS_AGENT_URI"]);
    for from in [&other, &neighbour.inside()] {
        assert_eq!(from.put(&url, r#"{"ProtectionEnabled":true}"#).await?.0, 404);
        assert_eq!(from.get(&url).await?.0, 404);
    }
    Ok(())
}

#[tokio::test]
async fn secrets_of_tasks() -> Result<()> {
    let host = Host::start(&[]).await?;
    let members = json!({ "secrets": [{ "name": "PASSWORD", "valueFrom": "db" }] });
    let members =
        json!({ "containerDefinitions": [demo::container_with("app", &["sleep", "3600"], members)] });
    let (task, with) = host.inside("with", "bridge", &members).await?;
    let (_, without) = host.inside("without", "host", &json!({})).await?;
    assert_eq!(with.environment["PASSWORD"], SECRET);
    ensure!(without.environment.values().all(|value| !value.contains(SECRET)), "another task has it");
    let cluster = &host.cluster;
    assert_eq!(files::with(cluster.agent.data_dir(), SECRET)?, [""; 0]);
    let mut told = cluster.agent.typed(&["explain", &task]).await?;
    told.push_str(&with.json("/task").await?.to_string());
    told.push_str(&cluster.task(&task).await?.to_string());
    let made = cluster.engine.inspect(&cluster.engine.id_of(&task, "app").await?).await?;
    told.push_str(&format!("{:?}", made.config.and_then(|config| config.labels)));
    ensure!(!told.contains(SECRET), "it is told");
    Ok(())
}

#[tokio::test]
async fn the_hosts_ports() -> Result<()> {
    let host = Host::start(&[]).await?;
    let everywhere = TcpListener::bind("0.0.0.0:0")?;
    let port = everywhere.local_addr()?.port();
    let at: u16 = host.endpoint.address().rsplit(':').next().unwrap_or_default().parse()?;
    let cluster = &host.cluster;
    // The way to the agent leads to nothing else on the host.
    for groups in [&[][..], &["sg-open"]] {
        let task = vpc::run(cluster, stays("own", "awsvpc", json!({})), groups).await?;
        let own = Inside::of(cluster, &task, "app").await?;
        ensure!(connects(&own, "169.254.170.2", at).await?, "{groups:?}: the endpoint itself");
        ensure!(!connects(&own, "169.254.170.2", port).await?, "{groups:?}: port {port} of the host");
    }
    // Nor does a bridge: what listens on loopback alone is the host's own.
    let (_, bridge) = host.inside("bridge", "bridge", &json!({})).await?;
    let local = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let mut known = addresses()?;
    known.push("127.0.0.1".to_owned());
    for address in known {
        ensure!(!connects(&bridge, &address, local).await?, "{address}:{local}");
    }
    Ok(())
}

// --- between hosts and the control plane ---

#[tokio::test]
async fn the_join_token() -> Result<()> {
    let secured = Secured::start("1h").await?;
    let cluster = secured.joined().await?;
    // Only its hash is kept, and only where it was made.
    assert_eq!(files::with(secured.data_dir(), &secured.token)?, [""; 0]);
    assert_eq!(files::with(cluster.agent.data_dir(), &secured.token)?, [""; 0]);
    for log in [cluster.agent.output(), secured.output()] {
        ensure!(!log.contains(&secured.token), "the token is in a log");
    }
    // One that has ended opens nothing.
    let args = with_data(&["token", "--lifetime", "1s"], secured.data_dir());
    let mut made = Program::start("berth-controlplane", &args, &BTreeMap::new())?;
    made.end(PATIENCE).await?;
    let output = made.output();
    let token = output.lines().find_map(|line| line.strip_prefix("token=")).context("no token")?;
    eventually(PATIENCE, "the token has ended", || async {
        let status = enroll(&secured, token).await.err().context("it holds")?;
        ensure!(status.code() == Code::Unauthenticated, "{status}");
        Ok(Some(()))
    })
    .await?;
    for wrong in ["", "berth-", &secured.token[..secured.token.len() - 1]] {
        let status = enroll(&secured, wrong).await.err().context("it was let in")?;
        assert_eq!(status.code(), Code::Unauthenticated, "{wrong:?}: {status}");
    }
    Ok(())
}

async fn channel(secured: &Secured) -> Result<Channel> {
    let ca = std::fs::read_to_string(secured.data_dir().join("ca.pem"))?;
    let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(ca)).domain_name("localhost");
    Ok(Channel::from_shared(secured.host())?.tls_config(tls)?.connect().await?)
}

/// Asks for a certificate with a request that is none: the token is looked at first.
async fn enroll(secured: &Secured, token: &str) -> Result<(), tonic::Status> {
    let channel = channel(secured).await.map_err(|error| tonic::Status::unknown(error.to_string()))?;
    let request =
        v1::EnrollRequest { join_token: token.to_owned(), csr_pem: "none".to_owned(), ..Default::default() };
    EnrollmentClient::new(channel).enroll(request).await.map(drop)
}

#[tokio::test]
async fn the_hosts_key() -> Result<()> {
    umask(Mode::empty());
    let secured = Secured::start("1h").await?;
    let mut cluster = secured.joined().await?;
    let tls = cluster.agent.data_dir().join("tls");
    assert_eq!((files::mode(&tls)?, files::mode(&tls.join("host.pem"))?), (0o700, 0o600));
    let pem = std::fs::read_to_string(tls.join("host.pem"))?;
    let lines = private_lines(&pem);
    ensure!(!lines.is_empty(), "host.pem holds no key");
    for line in lines {
        // It was made here and never leaves.
        assert_eq!(files::with(secured.data_dir(), line)?, [""; 0]);
        ensure!(!cluster.agent.output().contains(line) && !secured.output().contains(line), "in a log");
    }

    // Its certificate is for its own instance: another host that has enrolled gets at it by no name, not even
    // while the host is away.
    let (arn, (task, _)) =
        (cluster.registered().await?, cluster.running(stays("kept", "none", json!({}))).await?);
    let mut second = secured.joined().await?;
    for agent in [&mut second.agent, &mut cluster.agent] {
        agent.terminate().await?;
    }
    cluster.disconnected().await?;
    let own_key = host_key(cluster.agent.data_dir()).await?;
    let mut client = ControlPlaneClient::new(channel_of(&secured, second.agent.data_dir()).await?);
    let claim = |host_key: &str, previous: &str| v1::RegisterRequest {
        cluster: cluster.name.clone(),
        host_key: host_key.to_owned(),
        previous_instance_arn: previous.to_owned(),
        total: Some(v1::Resources { cpu: 1024, memory_mib: 1024, ..Default::default() }),
        protocol_version: berth_proto::PROTOCOL_VERSION,
        ..Default::default()
    };
    let hello = |host_key: &str| v1::Hello {
        container_instance_arn: arn.clone(),
        host_key: host_key.to_owned(),
        outbox_epoch: "another".to_owned(),
        last_manifest_sequence: 0,
        last_seen: None,
    };
    for key in ["another", &own_key] {
        let claimed = client.register(claim(key, &arn)).await.err();
        let refused = claimed.with_context(|| format!("{key} was given the instance"))?;
        assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
        let told = [arn.as_str(), "aws ecs deregister-container-instance"];
        ensure!(told.iter().all(|text| refused.message().contains(text)), "{refused}");
        let first = v1::AgentMessage { message: Some(v1::agent_message::Message::Hello(hello(key))) };
        let stream = tokio_stream::iter([first]).chain(tokio_stream::pending());
        let mut answers = client.session(stream).await?.into_inner();
        let refused = answers.message().await.err().with_context(|| format!("{key} was greeted"))?;
        assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
    }
    let known = secured.output();
    ensure!(known.contains("claims an instance that is not its own"), "{known}");
    // What is not claimed it may have; and the host comes back to what is its own.
    cluster.agent.start_again()?;
    assert_eq!(cluster.registered().await?, arn);
    assert_eq!(cluster.task(&task).await?["lastStatus"], "RUNNING");
    let other = client.register(claim("another", "")).await?.into_inner().container_instance_arn;
    ensure!(other != arn, "{other}");
    Ok(())
}

/// The key that an agent which has ended keeps.
async fn host_key(data_dir: &Path) -> Result<String> {
    let data_dir = data_dir.to_owned();
    let store = tokio::task::spawn_blocking(move || RedbStore::open(&data_dir)).await??;
    Ok(store.load().await?.identity.context("no identity")?.host_key)
}

/// A way to the control plane with the certificate that a host has.
async fn channel_of(secured: &Secured, data_dir: &Path) -> Result<Channel> {
    let own = std::fs::read_to_string(data_dir.join("tls/host.pem"))?;
    let ca = std::fs::read_to_string(secured.data_dir().join("ca.pem"))?;
    let tls = ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(ca))
        .identity(Identity::from_pem(&own, &own))
        .domain_name("localhost");
    Ok(Channel::from_shared(secured.host())?.tls_config(tls)?.connect().await?)
}

#[tokio::test]
async fn the_agents_port() -> Result<()> {
    let secured = Secured::start("1h").await?;
    // Without a certificate there is enrolment, and nothing else.
    let mut client = ControlPlaneClient::new(channel(&secured).await?);
    let refused = [
        client.register(v1::RegisterRequest::default()).await.map(drop),
        client.renew(v1::RenewRequest::default()).await.map(drop),
        client.session(tokio_stream::iter([v1::AgentMessage::default()])).await.map(drop),
        client.attach(tokio_stream::iter([v1::Frame::default()])).await.map(drop),
    ];
    for answer in refused {
        let status = answer.err().context("a stranger was let in")?;
        assert_eq!(status.code(), Code::Unauthenticated, "{status}");
    }
    // In plaintext there is not even that.
    let plain = Channel::from_shared(format!("http://{}", secured.agents))?;
    let answer = match plain.connect().await {
        Ok(channel) => {
            let client = EnrollmentClient::new(channel);
            { client }.enroll(v1::EnrollRequest::default()).await.err().map(|status| status.code())
        }
        Err(_) => Some(Code::Unavailable),
    };
    ensure!(answer.is_some_and(|code| code != Code::Unauthenticated), "{answer:?}");
    // One without TLS is this machine's alone.
    let cluster = Cluster::start().await?;
    let neighbour = Neighbour::start()?;
    let port = cluster.control_plane.agents.port();
    for address in ["127.0.0.1", &neighbour.host] {
        ensure!(!connects(&neighbour.inside(), address, port).await?, "{address}:{port}");
    }
    Ok(())
}

#[tokio::test]
async fn the_apis_port() -> Result<()> {
    let data = tempfile::tempdir()?;
    let any = "127.0.0.1:0";
    let args = ["serve", "--listen", any, "--agent-listen", any, "--access-key", "AKONE:its-secret"];
    let mut program = Program::start("berth-controlplane", &with_data(&args, data.path()), &BTreeMap::new())?;
    let line = program.line("listening ", PATIENCE).await?;
    let api = line.split_whitespace().find_map(|word| word.strip_prefix("api=")).context("no address")?;
    // A signature of nobody's, as the tests' client has it, and none at all.
    let refused = berth_tests::Ecs::new(api.parse()?).call("ListClusters", json!({})).await;
    let refused = refused.err().context("it was let in")?;
    ensure!(
        ["UnrecognizedClientException", "InvalidSignatureException", "IncompleteSignatureException"]
            .contains(&refused.code()),
        "{refused}"
    );
    ensure!(!program.output().contains("its-secret"), "the key is in the log");
    // What deletes everything is there for developers alone.
    let cluster = Cluster::start().await?;
    let reset = Command::new("curl")
        .args(["--silent", "--request", "POST", "--output", "/dev/null", "--write-out", "%{http_code}"])
        .arg(format!("http://{}/dev/reset", cluster.control_plane.api))
        .output()
        .await?;
    assert_eq!(String::from_utf8_lossy(&reset.stdout), "404");
    // Without a key it is this machine's alone.
    let neighbour = Neighbour::start()?;
    let port = cluster.control_plane.api.port();
    for address in ["127.0.0.1", &neighbour.host] {
        ensure!(!connects(&neighbour.inside(), address, port).await?, "{address}:{port}");
    }
    let task = cluster.run(stays("bridge", "bridge", json!({}))).await?;
    let bridge = Inside::of(&cluster, &task, "app").await?;
    for address in addresses()? {
        ensure!(!connects(&bridge, &address, port).await?, "{address}:{port}");
    }
    let (status, _) = http::get(&format!("http://{}/", cluster.control_plane.api)).await?;
    if status.is_success() {
        bail!("a GET is no operation");
    }
    Ok(())
}

#[tokio::test]
async fn the_control_planes_data() -> Result<()> {
    umask(Mode::empty());
    let data = tempfile::tempdir()?;
    let folder = data.path().join("deep/plane");
    let any = "127.0.0.1:0";
    let args = ["serve", "--agent-tls=on", "--listen", any, "--agent-listen", any];
    let mut program = Program::start("berth-controlplane", &with_data(&args, &folder), &BTreeMap::new())?;
    program.line("listening ", PATIENCE).await?;
    let mut token = Program::start("berth-controlplane", &with_data(&["token"], &folder), &BTreeMap::new())?;
    token.end(PATIENCE).await?;
    assert_eq!(files::mode(&folder)?, 0o700);
    let found = files::modes(&folder)?;
    assert_eq!(astray(&found, &[]), [""; 0]);
    ensure!(found.iter().any(|(path, _)| path == "join-tokens.json"), "{found:?}");
    let pid = program.pid().context("no control plane")?;
    let listening = listens_at(pid)?;
    ensure!(
        listening.len() == 2 && listening.iter().all(|at| at.starts_with("tcp 127.0.0.1:")),
        "{listening:?}"
    );
    Ok(())
}
