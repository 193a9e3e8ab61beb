//! A control plane with one agent on this host, and the removal of all they made.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use hyper::StatusCode;
use serde_json::{Value, json};

use crate::expect::PATIENCE;
use crate::{Agent, Aws, ControlPlane, Ecs, Engine, OwnEngine, demo, eventually, http, vpc};

/// Every cluster of tests has a name that begins so; the process id of the test follows, by which
/// tests/scripts/sweep.sh knows what a killed test left behind.
const PREFIX: &str = "berth-test";

/// A cluster of its own name. Containers and cgroups of its tasks are removed with it, also when
/// the test fails.
#[derive(Debug)]
pub struct Cluster {
    /// The name of the cluster, and of the agent's cgroup root.
    pub name: String,
    /// The one agent.
    pub agent: Agent,
    /// The control plane.
    pub control_plane: ControlPlane,
    /// A client of the API.
    pub ecs: Ecs,
    /// The engine that the agent uses.
    pub engine: Engine,
    _leftovers: Leftovers,
}

impl Cluster {
    /// Starts a control plane and an agent, and waits until the agent is connected.
    ///
    /// # Errors
    /// When any of it fails.
    pub async fn start() -> Result<Self> {
        Self::start_with(&[]).await
    }

    /// Like [`start`](Self::start), with more environment for the agent.
    ///
    /// # Errors
    /// When any of it fails.
    pub async fn start_with(env: &[(&str, &str)]) -> Result<Self> {
        let cluster = Self::start_unregistered(env).await?;
        cluster.registered().await?;
        Ok(cluster)
    }

    /// Like [`start_with`](Self::start_with), without waiting for the agent.
    ///
    /// # Errors
    /// When any of it fails.
    pub async fn start_unregistered(env: &[(&str, &str)]) -> Result<Self> {
        Self::start_parts(None, None, &[], env).await
    }

    /// Like [`start_with`](Self::start_with), on an engine of the test's own.
    ///
    /// # Errors
    /// When any of it fails.
    pub async fn start_on(own: &OwnEngine, env: &[(&str, &str)]) -> Result<Self> {
        let cluster = Self::start_parts(Some(own.host()), None, &[], env).await?;
        cluster.registered().await?;
        Ok(cluster)
    }

    /// Like [`start_with`](Self::start_with), with subnets and security groups.
    ///
    /// # Errors
    /// When any of it fails.
    pub async fn start_vpc(vpc: &Value, env: &[(&str, &str)]) -> Result<Self> {
        Self::start_vpc_with(vpc, &[], env).await
    }

    /// Like [`start_vpc`](Self::start_vpc), with more environment for the control plane.
    ///
    /// # Errors
    /// When any of it fails.
    pub async fn start_vpc_with(
        vpc: &Value,
        control_plane: &[(&str, &str)],
        env: &[(&str, &str)],
    ) -> Result<Self> {
        let cluster = Self::start_parts(None, Some(vpc), control_plane, env).await?;
        cluster.registered().await?;
        Ok(cluster)
    }

    async fn start_parts(
        host: Option<String>,
        vpc: Option<&Value>,
        control_plane: &[(&str, &str)],
        env: &[(&str, &str)],
    ) -> Result<Self> {
        demo::image().await?;
        let engine = connect(host.as_deref()).await?;
        let host_of_engine = host.as_deref().map(|host| ("DOCKER_HOST", host));
        let env: Vec<_> = host_of_engine.into_iter().chain(env.iter().copied()).collect();
        let name = unique_name();
        let control_plane = ControlPlane::start_with(vpc, control_plane).await?;
        let ecs = control_plane.ecs();
        ecs.call("CreateCluster", json!({ "clusterName": name })).await?;
        let agent = Agent::start(&name, control_plane.agents, &env)?;
        let leftovers = Leftovers { host, cluster: name.clone(), data_dir: agent.data_dir().to_owned() };
        Ok(Self { name, agent, control_plane, ecs, engine, _leftovers: leftovers })
    }

    /// Waits until the instance is connected; its ARN.
    ///
    /// # Errors
    /// When the agent does not connect.
    pub async fn registered(&self) -> Result<String> {
        let what = format!("an instance of cluster {} is connected", self.name);
        eventually(PATIENCE, what, || async {
            let instance = self.instance().await?;
            let connected = instance["agentConnected"] == true;
            connected.then(|| text(&instance, "containerInstanceArn")).transpose()
        })
        .await
    }

    /// Waits until the control plane has noticed that the agent is away. Before that, one that is started again
    /// cannot be told from the one that ended.
    ///
    /// # Errors
    /// When it stays connected.
    pub async fn disconnected(&self) -> Result<()> {
        eventually(PATIENCE, "the instance is disconnected", || async {
            Ok((self.instance().await?["agentConnected"] == false).then_some(()))
        })
        .await
    }

    /// The one container instance as DescribeContainerInstances has it.
    ///
    /// # Errors
    /// When there is none.
    pub async fn instance(&self) -> Result<Value> {
        let cluster = &self.name;
        let listed = self.ecs.call("ListContainerInstances", json!({ "cluster": cluster })).await?;
        let arns = listed["containerInstanceArns"].clone();
        if arns.as_array().is_none_or(Vec::is_empty) {
            bail!("no instance is registered");
        }
        let input = json!({ "cluster": cluster, "containerInstances": arns });
        let mut answer = self.ecs.call("DescribeContainerInstances", input).await?;
        Ok(answer["containerInstances"][0].take())
    }

    /// Registers a task definition; its ARN.
    ///
    /// # Errors
    /// When it is refused.
    pub async fn register(&self, definition: Value) -> Result<String> {
        let answer = self.ecs.call("RegisterTaskDefinition", definition).await?;
        text(&answer["taskDefinition"], "taskDefinitionArn")
    }

    /// Registers the definition and runs one task of it; the ARN of the task.
    ///
    /// # Errors
    /// When it is refused or cannot be placed.
    pub async fn run(&self, definition: Value) -> Result<String> {
        let definition = self.register(definition).await?;
        self.run_definition(&definition).await
    }

    /// Runs one task of a definition that is registered; the ARN of the task.
    ///
    /// # Errors
    /// When it is refused or cannot be placed.
    pub async fn run_definition(&self, definition: &str) -> Result<String> {
        self.run_with(definition, json!({})).await
    }

    /// Like [`run_definition`](Self::run_definition), with more members of the request.
    ///
    /// # Errors
    /// When it is refused or cannot be placed.
    pub async fn run_with(&self, definition: &str, members: Value) -> Result<String> {
        let input = json!({ "cluster": self.name, "taskDefinition": definition });
        let input = demo::merged(input, &members);
        let answer = self.ecs.call("RunTask", input).await?;
        if answer["failures"].as_array().is_some_and(|failures| !failures.is_empty()) {
            bail!("RunTask: {}", answer["failures"]);
        }
        text(&answer["tasks"][0], "taskArn")
    }

    /// Runs a task and waits until it is RUNNING; its ARN and what DescribeTasks says of it.
    ///
    /// # Errors
    /// When it stops instead, or does neither.
    pub async fn running(&self, definition: Value) -> Result<(String, Value)> {
        let arn = self.run(definition).await?;
        let task = self.until(&arn, "RUNNING", PATIENCE).await?;
        Ok((arn, task))
    }

    /// Runs a task and waits until it is STOPPED; its ARN and what DescribeTasks says of it.
    ///
    /// # Errors
    /// When it does not stop.
    pub async fn stopped(&self, definition: Value) -> Result<(String, Value)> {
        let arn = self.run(definition).await?;
        let task = self.until(&arn, "STOPPED", PATIENCE).await?;
        Ok((arn, task))
    }

    /// What DescribeTasks says of a task.
    ///
    /// # Errors
    /// When it is not known.
    pub async fn task(&self, arn: &str) -> Result<Value> {
        let input = json!({ "cluster": self.name, "tasks": [arn] });
        let mut answer = self.ecs.call("DescribeTasks", input).await?;
        match answer["tasks"].get_mut(0).map(Value::take) {
            Some(task) => Ok(task),
            None => bail!("{arn} is not known: {}", answer["failures"]),
        }
    }

    /// The engine's id and the process of the task's container `one`: the same as long as nothing hurt it.
    ///
    /// # Errors
    /// When it does not run.
    pub async fn process_of(&self, task: &str) -> Result<(String, i64)> {
        let id = self.engine.id_of(task, "one").await?;
        let state = self.engine.inspect(&id).await?.state.context("no state")?;
        ensure!(state.running == Some(true), "container {id} does not run");
        Ok((id, state.pid.context("no process")?))
    }

    /// Waits until the task has that last status; what DescribeTasks says of it then.
    ///
    /// # Errors
    /// When it stops instead, or the time is over.
    pub async fn until(&self, arn: &str, status: &str, within: Duration) -> Result<Value> {
        let found = eventually(within, format!("{arn} is {status}"), || async {
            let task = self.task(arn).await?;
            let now = text(&task, "lastStatus")?;
            if now == status || now == "STOPPED" {
                return Ok(Some(task));
            }
            bail!("it is {now}: {task}")
        })
        .await?;
        if found["lastStatus"] != status {
            bail!("{arn} was to be {status} and stopped: {}: {found}", found["stoppedReason"]);
        }
        Ok(found)
    }

    /// Asks for the end of a task.
    ///
    /// # Errors
    /// When it is refused.
    pub async fn stop(&self, arn: &str, reason: Option<&str>) -> Result<Value> {
        let mut input = json!({ "cluster": self.name, "task": arn });
        if let Some(reason) = reason {
            input["reason"] = reason.into();
        }
        Ok(self.ecs.call("StopTask", input).await?)
    }

    /// The AWS command line for this cluster's control plane.
    ///
    /// # Errors
    /// When it is not installed.
    pub fn aws(&self) -> Result<Aws> {
        Aws::new(self.control_plane.api)
    }

    /// The first number in a file of the task's own cgroup, read on the host. `controller` names the
    /// hierarchy of cgroup v1.
    ///
    /// # Errors
    /// When there is no such file.
    pub fn task_cgroup(&self, controller: &str, task_arn: &str, file: &str) -> Result<i64> {
        let id = task_arn.rsplit('/').next().unwrap_or(task_arn);
        let path = self.agent.task_cgroup(controller, id).join(file);
        let text = std::fs::read_to_string(&path).with_context(|| format!("{}", path.display()))?;
        text.split_whitespace()
            .next()
            .unwrap_or_default()
            .parse()
            .with_context(|| format!("{}: {text:?}", path.display()))
    }
}

/// The engine of the test's own, or that of all.
async fn connect(host: Option<&str>) -> Result<Engine> {
    match host {
        Some(host) => Engine::at(host).await,
        None => Engine::connect().await,
    }
}

/// A name that no other test has, with the process in it.
fn unique_name() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let tail = uuid::Uuid::new_v4().simple().to_string();
    format!("{PREFIX}-{}-{count}-{}", std::process::id(), &tail[..6])
}

/// The text in that member.
///
/// # Errors
/// When there is none.
pub fn text(value: &Value, key: &str) -> Result<String> {
    value[key].as_str().map(str::to_owned).with_context(|| format!("{key} is missing in {value}"))
}

/// The container of that name in what DescribeTasks says.
///
/// # Errors
/// When there is none.
pub fn container<'a>(task: &'a Value, name: &str) -> Result<&'a Value> {
    let all = task["containers"].as_array().map_or(&[][..], Vec::as_slice);
    all.iter().find(|c| c["name"] == name).with_context(|| format!("no container {name} in {task}"))
}

/// The host port that a container port of the task is bound to.
///
/// # Errors
/// When it is not bound.
pub fn host_port(task: &Value, name: &str, container_port: u16, protocol: &str) -> Result<u16> {
    let bindings = container(task, name)?["networkBindings"].as_array().cloned().unwrap_or_default();
    bindings
        .iter()
        .find(|b| b["containerPort"] == container_port && b["protocol"] == protocol)
        .and_then(|b| b["hostPort"].as_u64())
        .and_then(|port| u16::try_from(port).ok())
        .with_context(|| format!("{protocol} {container_port} of {name} is not bound: {task}"))
}

/// What the demo server on that port of the host answers. RUNNING says that the process was
/// started, not that it listens yet, hence the patience.
///
/// # Errors
/// When it does not answer with 200.
pub async fn demo_answer(port: u16, path: &str) -> Result<String> {
    let url = format!("http://127.0.0.1:{port}{path}");
    eventually(PATIENCE, format!("{url} answers"), || async {
        let (status, body) = http::get(&url).await?;
        if status != StatusCode::OK {
            bail!("{status}: {body}");
        }
        Ok(Some(body))
    })
    .await
}

/// [`demo_answer`] read as JSON.
///
/// # Errors
/// When it does not answer with JSON.
pub async fn demo_json(port: u16, path: &str) -> Result<Value> {
    Ok(serde_json::from_str(&demo_answer(port, path).await?)?)
}

/// What a cluster leaves behind, removed on drop. The last field of its owner, so that the
/// programs are dead by then.
#[derive(Debug)]
struct Leftovers {
    host: Option<String>,
    cluster: String,
    data_dir: PathBuf,
}

impl Drop for Leftovers {
    fn drop(&mut self) {
        let (host, cluster, data_dir) = (self.host.clone(), self.cluster.clone(), self.data_dir.clone());
        // A thread with a runtime of its own: the test's is in the middle of something, or gone.
        let removal = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let engine = connect(host.as_deref()).await?;
                engine.remove_containers_of(&cluster).await?;
                engine.remove_volumes_of(&cluster).await?;
                engine.remove_holders_of(&data_dir).await
            })?;
            vpc::remove_traces(&data_dir)?;
            remove_slices(&cluster);
            remove_cgroups(&cluster);
            anyhow::Ok(())
        });
        match removal.join() {
            Ok(Ok(())) => {}
            Ok(Err(why)) => eprintln!("cluster {} was not removed whole: {why:#}", self.cluster),
            Err(_) => eprintln!("removing cluster {} panicked", self.cluster),
        }
    }
}

/// Has systemd stop the slices that the agent had made, where it goes by systemd.
fn remove_slices(root: &str) {
    if Path::new("/run/systemd/system").is_dir() {
        let slice = format!("{root}tasks.slice");
        if let Err(why) = std::process::Command::new("systemctl").args(["stop", &slice]).status() {
            eprintln!("{slice} stays: {why}");
        }
    }
}

/// Removes an agent's cgroup root and all below it from every hierarchy. Processes are gone by
/// now; a cgroup that still has one stays, and the sweep before the next run gets it.
pub fn remove_cgroups(root: &str) {
    let base = Path::new("/sys/fs/cgroup");
    let hierarchies = std::fs::read_dir(base).into_iter().flatten().flatten().map(|entry| entry.path());
    for hierarchy in hierarchies.chain([base.to_owned()]) {
        remove_cgroup(&hierarchy.join(root));
    }
}

fn remove_cgroup(folder: &Path) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_cgroup(&entry.path());
        }
    }
    // Best effort on the way out of a test, see above.
    if let Err(why) = std::fs::remove_dir(folder) {
        eprintln!("{} stays: {why}", folder.display());
    }
}
