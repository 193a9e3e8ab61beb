//! The agent in a container, started as ECS's own is: the command, variables and mounts of its documentation
//! work as they stand, what they do not allow is told and not offered, and the agent takes itself neither for a
//! task nor for something to clean up.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::TcpListener;
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use berth_agent::runtime::docker::{Docker, DockerConfig};
use berth_agent::runtime::{EngineInfo, Runtime};
use berth_tests::cluster::{remove_cgroups, text};
use berth_tests::expect::PATIENCE;
use berth_tests::own_engine::OwnEngine;
use berth_tests::program::Program;
use berth_tests::{Ecs, Endpoint, Engine, demo, eventually, vpc};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::{Value, json};
use tokio::process::Command;

/// Where an agent in a container finds a control plane without being told.
const AT_HOME: &str = "127.0.0.1:8046";

async fn said(command: &mut Command) -> Result<String> {
    let done = command.stdin(Stdio::null()).kill_on_drop(true).output().await?;
    ensure!(done.status.success(), "{command:?}: {}", String::from_utf8_lossy(&done.stderr));
    Ok(String::from_utf8(done.stdout)?)
}

async fn docker(words: &[&str]) -> Result<String> {
    said(Command::new("docker").args(words)).await
}

/// The image, under a name that is this test's alone.
struct Image {
    name: String,
}

impl Image {
    async fn make() -> Result<Self> {
        let out = tempfile::tempdir()?;
        let image = Self { name: format!("berth-agent-test:{}", std::process::id()) };
        let target = berth_tests::program::folder()?;
        let mut script = Command::new(demo::checkout().join("packaging/image.sh"));
        script
            .env("BERTH_PROFILE", "dev")
            .env("BERTH_BUILT", "1")
            .env("BERTH_IMAGE", &image.name)
            .env("BERTH_OUT", out.path().join("out"))
            .env("BERTH_STAGE", out.path().join("stage"))
            .env("CARGO_TARGET_DIR", target.parent().context("the folder of all builds")?);
        said(&mut script).await?;
        Ok(image)
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        let removed = std::process::Command::new("docker").args(["rmi", "--force", &self.name]).output();
        if !removed.is_ok_and(|done| done.status.success()) {
            eprintln!("{} stays", self.name);
        }
    }
}

/// A control plane, and an agent in a container with folders of this test's in place of the host's.
struct Site {
    cluster: String,
    name: String,
    ecs: Ecs,
    engine: Engine,
    _program: Program,
    folders: tempfile::TempDir,
}

impl Site {
    /// Its name, and that of its cgroup where it has one.
    fn cluster(suffix: &str) -> String {
        format!("berth-test-{}-{suffix}", std::process::id())
    }

    /// `more` goes between the documented options and the image; `@data` in it is this site's folder for the state,
    /// which is the agent's under that name where `more` says so.
    async fn start(image: &Image, suffix: &str, more: &[&str]) -> Result<Self> {
        demo::image().await?;
        let folders =
            tempfile::Builder::new().prefix(&format!("berth-agent-{}-", std::process::id())).tempdir()?;
        // Somebody's own control plane may be there.
        let taken = TcpListener::bind(AT_HOME).is_err();
        let words = ["serve", "--listen", "127.0.0.1:0", "--agent-listen"];
        let mut args: Vec<OsString> = words.map(OsString::from).to_vec();
        args.push(if taken { "127.0.0.1:0" } else { AT_HOME }.into());
        args.extend(["--data-dir".into(), folders.path().join("controlplane").into()]);
        let subnets = folders.path().join("vpc.json");
        std::fs::write(&subnets, vpc::Vpc::new("veth").file().to_string())?;
        args.extend(["--vpc".into(), subnets.into()]);
        let mut program = Program::start("berth-controlplane", &args, &BTreeMap::new())?;
        let line = program.line("listening ", PATIENCE).await?;
        let value = |key: &str| {
            let found = line.split_whitespace().find_map(|word| word.strip_prefix(key));
            found.map(str::to_owned).with_context(|| format!("{key} in {line:?}"))
        };
        let ecs = Ecs::new(value("api=")?.parse()?);
        let cluster = Self::cluster(suffix);
        ecs.call("CreateCluster", json!({ "clusterName": cluster })).await?;

        let (data, log) = (folders.path().join("data"), folders.path().join("log"));
        let more: Vec<String> =
            more.iter().map(|word| word.replace("@data", &data.display().to_string())).collect();
        if more.iter().any(|word| word.ends_with(":shared")) {
            share(&data)?;
        }
        let elsewhere = format!("--env=ECS_BACKEND_HOST=http://{}", value("agents=")?);
        let name = format!("berth-test-{}-agent-{suffix}", std::process::id());
        let site = Self { cluster, name, ecs, engine: Engine::connect().await?, _program: program, folders };
        let mut words = vec![
            "run".to_owned(),
            format!("--name={}", site.name),
            "--detach=true".to_owned(),
            "--restart=on-failure:10".to_owned(),
            "--volume=/var/run/docker.sock:/var/run/docker.sock".to_owned(),
            format!("--volume={}:/log", log.display()),
            "--net=host".to_owned(),
            "--env=ECS_LOGFILE=/log/ecs-agent.log".to_owned(),
            "--env=ECS_LOGLEVEL=info".to_owned(),
            format!("--env=ECS_CLUSTER={}", site.cluster),
            "--env=ECS_ENABLE_TASK_IAM_ROLE=true".to_owned(),
            "--env=ECS_ENABLE_TASK_IAM_ROLE_NETWORK_HOST=true".to_owned(),
        ];
        if !more.iter().any(|word| word.contains("ECS_DATADIR")) {
            words
                .extend([format!("--volume={}:/data", data.display()), "--env=ECS_DATADIR=/data".to_owned()]);
        }
        words.extend(more);
        if taken {
            words.push(elsewhere);
        }
        words.push(image.name.clone());
        docker(&words.iter().map(String::as_str).collect::<Vec<_>>()).await?;
        Ok(site)
    }

    /// The instance as DescribeContainerInstances has it, once it is connected.
    async fn connected(&self) -> Result<Value> {
        let connected = eventually(PATIENCE, "the agent in the container is connected", || async {
            let cluster = &self.cluster;
            let listed = self.ecs.call("ListContainerInstances", json!({ "cluster": cluster })).await?;
            let arns = &listed["containerInstanceArns"];
            if arns.as_array().is_none_or(Vec::is_empty) {
                return Ok(None);
            }
            let input = json!({ "cluster": cluster, "containerInstances": arns });
            let mut answer = self.ecs.call("DescribeContainerInstances", input).await?;
            let instance = answer["containerInstances"][0].take();
            Ok((instance["agentConnected"] == true).then_some(instance))
        });
        match connected.await {
            Ok(instance) => Ok(instance),
            Err(why) => Err(why.context(self.log()? + &docker(&["logs", &self.name]).await?)),
        }
    }

    /// Waits until the agent has connected anew after that many lines of its log.
    async fn connected_again(&self, times: usize) -> Result<Value> {
        eventually(PATIENCE, "the agent has started again", || async {
            Ok((self.log()?.matches("the agent runs in a container").count() >= times).then_some(()))
        })
        .await?;
        self.connected().await
    }

    fn log(&self) -> Result<String> {
        Ok(std::fs::read_to_string(self.folders.path().join("log/ecs-agent.log"))?)
    }

    async fn task(&self, arn: &str) -> Result<Value> {
        let input = json!({ "cluster": self.cluster, "tasks": [arn] });
        Ok(self.ecs.call("DescribeTasks", input).await?["tasks"][0].take())
    }

    async fn until(&self, arn: &str, status: &str) -> Result<Value> {
        eventually(PATIENCE, format!("{arn} is {status}"), || async {
            let task = self.task(arn).await?;
            ensure!(task["lastStatus"] == status, "{task}");
            Ok(Some(task))
        })
        .await
    }

    async fn running(&self, definition: Value) -> Result<String> {
        self.running_with(definition, json!({})).await
    }

    /// `more` are members of RunTask.
    async fn running_with(&self, definition: Value, more: Value) -> Result<String> {
        let registered = self.ecs.call("RegisterTaskDefinition", definition).await?;
        let definition = text(&registered["taskDefinition"], "taskDefinitionArn")?;
        let input = json!({ "cluster": self.cluster, "taskDefinition": definition });
        let input = demo::merged(input, &more);
        let run = self.ecs.call("RunTask", input).await?;
        let arn = text(&run["tasks"][0], "taskArn").with_context(|| run.to_string())?;
        self.until(&arn, "RUNNING").await?;
        Ok(arn)
    }

    async fn own_id(&self) -> Result<String> {
        Ok(docker(&["inspect", "--format={{.Id}}", &self.name]).await?.trim().to_owned())
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        let (cluster, name) = (self.cluster.clone(), self.name.clone());
        let data = self.folders.path().join("data");
        let folder = data.clone();
        // The agent first: what it runs is removed for good then.
        let removed = std::process::Command::new("docker").args(["rm", "--force", &name]).output();
        if !removed.is_ok_and(|done| done.status.success()) {
            eprintln!("container {name} stays");
        }
        let removal = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let engine = Engine::connect().await?;
                engine.remove_containers_of(&cluster).await?;
                engine.remove_holders_of(&folder).await
            })
        });
        if !matches!(removal.join(), Ok(Ok(()))) {
            eprintln!("containers of {} stay", self.cluster);
        }
        remove_cgroups(&self.cluster);
        // With what is mounted below; it was a mount where it was shared.
        let _ = umount2(&data, MntFlags::MNT_DETACH);
        if let Err(why) = vpc::remove_traces(&data) {
            eprintln!("{} stays: {why:#}", data.display());
        }
    }
}

/// What is mounted below that folder reaches whoever has the folder, as below any on a host with systemd.
fn share(folder: &Path) -> Result<()> {
    let nothing = None::<&str>;
    std::fs::create_dir_all(folder)?;
    mount(Some(folder), folder, nothing, MsFlags::MS_BIND, nothing)?;
    mount(nothing, folder, nothing, MsFlags::MS_SHARED, nothing)?;
    Ok(())
}

fn offers(instance: &Value) -> Vec<String> {
    let all = instance["attributes"].as_array().into_iter().flatten();
    all.filter_map(|attribute| attribute["name"].as_str().map(str::to_owned)).collect()
}

fn demo_task(family: &str, members: Value) -> Value {
    demo::task(family, "bridge", json!([demo::container_with("main", &[], members)]))
}

async fn it_works_as_ecs_documents_it(image: &Image) -> Result<()> {
    let site = Site::start(image, "plain", &[]).await?;
    let instance = site.connected().await?;

    let offered = offers(&instance);
    for absent in [
        "ecs.capability.task-cpu-mem-limit",
        "ecs.capability.task-eni",
        "com.amazonaws.ecs.capability.task-iam-role",
        "com.amazonaws.ecs.capability.task-iam-role-network-host",
    ] {
        ensure!(!offered.iter().any(|name| name == absent), "{absent} cannot work here: {offered:?}");
    }
    let log = site.log()?;
    for (what, flag) in [
        ("tasks have no limits as a whole", "--volume=/sys/fs/cgroup:/sys/fs/cgroup"),
        ("awsvpc is not offered", "--env=ECS_ENABLE_TASK_ENI=true"),
        ("tasks cannot ask about themselves", "--cap-add=NET_ADMIN"),
        ("credentials of tasks are not kept", "--volume=/run/berth:/run/berth"),
        ("images are not cleaned up because the disk fills", ":ro"),
    ] {
        let lines: Vec<&str> = log.lines().filter(|line| line.contains(what)).collect();
        ensure!(matches!(lines[..], [line] if line.contains(flag)), "{what}, {flag}: {lines:?} in {log}");
    }
    ensure!(!log.contains("ERROR"), "{log}");

    let port = json!({ "portMappings": [{ "containerPort": 8080 }] });
    let task = site.running(demo_task("in-a-container", port)).await?;
    let container = site.engine.id_of(&task, "main").await?;
    let own = site.own_id().await?;
    let described = site.task(&task).await?;
    ensure!(described["containers"].as_array().is_some_and(|all| all.len() == 1), "{described}");

    // Started again by hand, and by the engine after a crash.
    docker(&["restart", &site.name]).await?;
    let again = site.connected_again(2).await?;
    ensure!(again["containerInstanceArn"] == instance["containerInstanceArn"], "another instance: {again}");
    let pid = docker(&["inspect", "--format={{.State.Pid}}", &site.name]).await?;
    said(Command::new("kill").args(["-9", pid.trim()])).await?;
    site.connected_again(3).await?;
    ensure!(site.engine.id_of(&task, "main").await? == container, "the task's container is another");
    ensure!(site.task(&task).await?["lastStatus"] == "RUNNING");

    let input = json!({ "cluster": site.cluster, "task": task });
    site.ecs.call("StopTask", input).await?;
    site.until(&task, "STOPPED").await?;
    ensure!(site.own_id().await? == own, "the agent's container is another");
    let running = docker(&["inspect", "--format={{.State.Running}}", &site.name]).await?;
    ensure!(running.trim() == "true", "the agent has stopped itself");
    let status = docker(&["exec", &site.name, "berth-agent", "status"]).await?;
    ensure!(status.contains(&site.cluster), "{status}");
    Ok(())
}

/// With what the agent asks for, tasks have limits; what the engine has to find on the host is the host's path.
async fn what_it_asks_for_is_enough(image: &Image) -> Result<()> {
    let more = [
        "--cap-add=NET_ADMIN",
        "--cap-add=SYS_ADMIN",
        "--pid=host",
        "--volume=/sys/fs/cgroup:/sys/fs/cgroup",
        "--volume=/run/dbus:/run/dbus",
        "--env=ECS_ENABLE_CONTAINER_METADATA=true",
        "--env=BERTH_ENDPOINT_ADDRESS=off",
    ];
    let suffix = "whole";
    let root = format!("--env=BERTH_CGROUP_ROOT={}", Site::cluster(suffix));
    let more: Vec<&str> = more.into_iter().chain([root.as_str()]).collect();
    let site = Site::start(image, suffix, &more).await?;
    let offered = offers(&site.connected().await?);
    ensure!(offered.iter().any(|name| name == "ecs.capability.task-cpu-mem-limit"), "{}", site.log()?);

    let mut definition = demo_task("limited", json!({}));
    definition["memory"] = "128".into();
    let task = site.running(definition).await?;
    let id = site.engine.id_of(&task, "main").await?;
    let inspected = site.engine.inspect(&id).await?;
    let environment = inspected.config.and_then(|config| config.env).unwrap_or_default();
    ensure!(
        environment.iter().any(|variable| variable.starts_with("ECS_CONTAINER_METADATA_FILE=")),
        "{environment:?}"
    );
    let mounts = inspected.mounts.unwrap_or_default();
    let source =
        mounts.iter().find_map(|mount| mount.source.clone()).context("the metadata file's folder")?;
    ensure!(Path::new(&source).starts_with(site.folders.path()), "{source} is no folder of the host's");
    let file = Path::new(&source).join("ecs-container-metadata.json");
    eventually(PATIENCE, "the metadata file is READY", || async {
        Ok(std::fs::read_to_string(&file)?.contains("READY").then_some(()))
    })
    .await?;
    let stop = json!({ "cluster": site.cluster, "task": task });
    site.ecs.call("StopTask", stop).await?;
    site.until(&task, "STOPPED").await.map(drop)
}

/// With what the agent says that `awsvpc` needs, tasks have interfaces.
async fn what_it_says_that_interfaces_need_is_enough(image: &Image) -> Result<()> {
    let at_home = ["--env=ECS_DATADIR=@data", "--env=BERTH_ENDPOINT_ADDRESS=off"];
    let asks = Site::start(image, "asks", &[&at_home[..], &["--volume=@data:@data"]].concat()).await?;
    asks.connected().await?;
    let log = asks.log()?;
    let line =
        log.lines().find(|line| line.contains("awsvpc is not offered")).with_context(|| log.clone())?;
    let (_, flags) = line.split_once("to have that, add ").with_context(|| line.to_owned())?;
    let flags = flags.replace(&asks.folders.path().join("data").display().to_string(), "@data");
    drop(asks);

    let flags: Vec<&str> = flags.split_whitespace().collect();
    ensure!(flags.contains(&"--volume=@data:@data:shared"), "{flags:?}");
    let site = Site::start(image, "adds", &[&at_home[..], &flags].concat()).await?;
    let offered = offers(&site.connected().await?);
    ensure!(offered.iter().any(|name| name == "ecs.capability.task-eni"), "{offered:?}");
    let definition = vpc::task("interface", json!([demo::container("main", &["sleep", "3600"])]));
    let task = site.running_with(definition, vpc::network(&["sg-open"])).await?;
    let stop = json!({ "cluster": site.cluster, "task": task });
    site.ecs.call("StopTask", stop).await?;
    site.until(&task, "STOPPED").await.map(drop)
}

/// Where others' things are cleaned up, an agent that is stopped is not, nor is its image.
async fn it_is_nothing_to_clean_up(image: &Image) -> Result<()> {
    let host = std::env::var("DOCKER_HOST").unwrap_or_else(|_| "unix:///var/run/docker.sock".to_owned());
    let runtime = Docker::new(DockerConfig { host, ..DockerConfig::default() })?;
    let EngineInfo { .. } = runtime.info().await?;
    let made =
        |image: String| async move { anyhow::Ok(docker(&["create", &image]).await?.trim().to_owned()) };
    let (agent, other) = (made(image.name.clone()).await?, made(demo::IMAGE.to_owned()).await?);
    let strangers = runtime.strangers().await;
    docker(&["rm", &agent, &other]).await?;
    let strangers: Vec<String> = strangers?.into_iter().map(|(id, _)| id.to_string()).collect();
    ensure!(strangers.contains(&other), "{strangers:?}");
    ensure!(!strangers.contains(&agent), "an agent's container counts as somebody's");
    let images = runtime.images().await?;
    let of_agent = |name: &str| images.iter().find(|image| image.name == name).map(|image| image.of_agent);
    ensure!(of_agent(&image.name) == Some(true), "{images:?}");
    ensure!(of_agent(demo::IMAGE) == Some(false), "{images:?}");
    Ok(())
}

/// An engine that ends takes the agent along, and brings it back also under the documented restart policy; one that
/// an operator stops stays so.
async fn an_engine_that_is_restarted_brings_it_back(image: &Image) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let archive = folder.path().join("image.tar").display().to_string();
    docker(&["save", "--output", &archive, &image.name]).await?;
    let mut own = OwnEngine::start().await?;
    own.typed(&["load", "--input", &archive])?;
    let socket = own.host();
    let socket = format!("--volume={}:/var/run/docker.sock", socket.trim_start_matches("unix://"));
    let data = format!("--volume={}:/data", folder.path().join("data").display());
    let documented = ["run", "--name=agent", "--detach=true", "--restart=on-failure:10", "--net=host"];
    let more = [
        socket.as_str(),
        data.as_str(),
        "--env=ECS_DATADIR=/data",
        "--env=ECS_LOGFILE=/data/log",
        &image.name,
    ];
    own.typed(&[&documented[..], &more].concat())?;
    let log = folder.path().join("data/log");
    let lives = async |times: usize| {
        eventually(PATIENCE, "the agent lives", || async {
            let told = std::fs::read_to_string(&log)?;
            Ok((told.matches("the agent runs in a container").count() == times).then_some(()))
        })
        .await
    };
    lives(1).await?;
    own.terminate().await?;
    own.start_again(&[])?;
    own.answers().await?;
    lives(2).await?;
    own.typed(&["stop", "agent"])?;
    let state = own.typed(&["inspect", "--format={{.State.Status}} {{.State.ExitCode}}", "agent"])?;
    assert_eq!(state, "exited 143");
    own.typed(&["rm", "agent"]).map(drop)
}

/// One after the other: they share the image, and the port at which an agent finds a control plane.
#[tokio::test]
async fn the_agent_runs_in_a_container() -> Result<()> {
    let image = Image::make().await?;
    it_is_nothing_to_clean_up(&image).await.context("clean-up")?;
    // It may not add the address of the task's endpoint, and is not to find it.
    let nobody = Endpoint::of_nobody()?;
    it_works_as_ecs_documents_it(&image).await.context("as documented")?;
    drop(nobody);
    what_it_asks_for_is_enough(&image).await.context("with more")?;
    what_it_says_that_interfaces_need_is_enough(&image).await.context("with interfaces")?;
    // From there on this thread has another view of the host.
    an_engine_that_is_restarted_brings_it_back(&image).await.context("with its engine")
}
