//! Many simulated hosts on one control plane in this process, driven through its JSON API.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::net::SocketAddr;

use anyhow::{Context, Result, bail, ensure};
use berth_agent::session::SessionStatus;
use berth_controlplane::agents::listener::AgentAddress;
use berth_controlplane::daemon::{Config, Daemon, Running};
use berth_controlplane::model::Task;
use berth_controlplane::store::{Key, View};
use berth_core::resources::Resources;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::broadcast::error::{RecvError, TryRecvError};

use super::{Host, Orders};
use crate::cluster::text;
use crate::{Ecs, expect::PATIENCE};

/// The cluster of all hosts.
pub const CLUSTER: &str = "fleet";
/// Calls of the API under way at once.
const CALLS: usize = 64;
/// Most tasks or instances in one call that describes them.
const DESCRIBED: usize = 100;

/// Hosts and their control plane. All of it ends with the value.
pub struct Fleet {
    /// The hosts.
    pub hosts: Vec<Host>,
    /// A client of the API.
    pub ecs: Ecs,
    control_plane: Option<Running>,
    config: Config,
    _data: TempDir,
}

impl Fleet {
    /// Starts a control plane and that many hosts, each with that to hold, and waits until all are
    /// registered and connected.
    ///
    /// # Errors
    /// When any of it fails.
    pub async fn start(hosts: usize, total: &Resources) -> Result<Self> {
        // In memory where there is such a place: the store syncs every commit, and a crash of the
        // machine is not what is simulated.
        let mut folder = tempfile::Builder::new();
        folder.prefix("berth-fleet-");
        let data = folder.tempdir_in("/dev/shm").or_else(|_| folder.tempdir())?;
        let mut config = Config::local(data.path());
        let control_plane = Daemon::start(config.clone()).await?;
        let agents = match &control_plane.agent_addr {
            AgentAddress::Tcp(address) => *address,
            AgentAddress::Unix(path) => bail!("agents connect to {}", path.display()),
        };
        // It comes back at the same ports.
        (config.listen, config.agent_listen) = (control_plane.api_addr, AgentAddress::Tcp(agents));
        let ecs = Ecs::new(control_plane.api_addr);
        ecs.call("CreateCluster", json!({ "clusterName": CLUSTER })).await?;
        let mut fleet =
            Self { hosts: Vec::new(), ecs, control_plane: Some(control_plane), config, _data: data };
        fleet.hosts = switch_on(hosts, agents, total).await?;
        fleet.connected(0..hosts).await?;
        Ok(fleet)
    }

    /// The control plane's present life.
    ///
    /// # Errors
    /// When it is down.
    pub fn control_plane(&self) -> Result<&Running> {
        self.control_plane.as_ref().context("the control plane is down")
    }

    /// Stops the control plane; its store stays.
    ///
    /// # Errors
    /// When it does not stop.
    pub async fn control_plane_down(&mut self) -> Result<()> {
        self.control_plane.take().context("the control plane is down already")?.stop().await
    }

    /// Starts it again on the same store and ports.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn control_plane_up(&mut self) -> Result<()> {
        self.control_plane = Some(Daemon::start(self.config.clone()).await?);
        Ok(())
    }

    /// Waits until the agents of these hosts are connected, as both ends see it.
    ///
    /// # Errors
    /// When one is not in time.
    pub async fn connected(&self, hosts: impl IntoIterator<Item = usize>) -> Result<()> {
        for host in hosts {
            let host = &self.hosts[host];
            let mut status = host.status();
            let connected = status.wait_for(|status| *status == SessionStatus::Connected);
            let within = tokio::time::timeout(PATIENCE, connected).await;
            within.with_context(|| format!("{} is not connected within {PATIENCE:?}", host.name))??;
            let arn = host.instance()?;
            self.registry_says(&format!("{arn} is connected"), |all| all.contains(&arn)).await?;
        }
        Ok(())
    }

    /// Waits until that holds of the instances that are connected.
    ///
    /// # Errors
    /// When it does not in time.
    pub async fn registry_says(&self, what: &str, holds: impl Fn(&BTreeSet<String>) -> bool) -> Result<()> {
        let registry = &self.control_plane()?.state.registry;
        let mut changes = registry.changes();
        let wait = changes.wait_for(|_| holds(&registry.instances_connected()));
        tokio::time::timeout(PATIENCE, wait).await.with_context(|| format!("{what}: not in time"))??;
        Ok(())
    }

    /// Waits until that holds of the control plane's records; asked again with every commit.
    ///
    /// # Errors
    /// When it does not in time.
    pub async fn until(&self, what: impl Display, holds: impl Fn(&dyn View) -> bool) -> Result<()> {
        let store = &self.control_plane()?.state.store;
        let mut commits = store.watch();
        let wait = async {
            while !holds(&*store.view()) {
                if let Err(RecvError::Closed) = commits.recv().await {
                    bail!("the store was closed");
                }
                // One look for all that have come meanwhile.
                while !matches!(commits.try_recv(), Err(TryRecvError::Empty | TryRecvError::Closed)) {}
            }
            Ok(())
        };
        match tokio::time::timeout(PATIENCE, wait).await {
            Ok(done) => done,
            Err(_) => bail!("{what}: not within {PATIENCE:?}; {}", self.statuses()?),
        }
    }

    /// Waits until every task is in the state that was asked for, and nothing else is there.
    ///
    /// # Errors
    /// When that does not come about.
    pub async fn settled(&self, orders: &Orders) -> Result<()> {
        let store = &self.control_plane()?.state.store;
        let mut commits = store.watch();
        let as_wanted = |task: &Task| orders.wanted(&task.arn) == Some(task.observed.status.as_str());
        let unsettled = || {
            let tasks = store.view().tasks(Some(CLUSTER)).into_iter();
            let open = tasks.filter(|task| !as_wanted(&task.value));
            open.filter_map(|task| Some(task.value.arn.rsplit('/').next()?.to_owned()))
                .collect::<BTreeSet<_>>()
        };
        let wait = async {
            let mut open = unsettled();
            while !open.is_empty() {
                let keys = match commits.recv().await {
                    Ok(commit) => commit.keys.clone(),
                    Err(RecvError::Lagged(_)) => {
                        open = unsettled();
                        continue;
                    }
                    Err(RecvError::Closed) => bail!("the store was closed"),
                };
                let view = store.view();
                for (key, id) in keys.iter().filter_map(|key| Some((key, task_id(key)?))) {
                    match view.task(CLUSTER, id) {
                        Some(task) if as_wanted(&task.value) => drop(open.remove(id)),
                        Some(_) => drop(open.insert(id.to_owned())),
                        None => bail!("{key} is gone"),
                    }
                }
            }
            let known = store.view().tasks(Some(CLUSTER)).len();
            ensure!(known == orders.len(), "{} tasks were asked for and {known} are there", orders.len());
            Ok(())
        };
        match tokio::time::timeout(PATIENCE, wait).await {
            Ok(done) => done,
            Err(_) => bail!("not settled within {PATIENCE:?}; {}", self.statuses()?),
        }
    }

    fn statuses(&self) -> Result<String> {
        let mut count: BTreeMap<_, usize> = BTreeMap::new();
        for task in self.control_plane()?.state.store.view().tasks(Some(CLUSTER)) {
            *count.entry((task.value.observed.status, task.value.stop_requested.is_some())).or_default() += 1;
        }
        Ok(format!("tasks by status and whether a stop was asked for: {count:?}"))
    }

    /// Registers a task definition; its ARN.
    ///
    /// # Errors
    /// When it is refused.
    pub async fn register(&self, definition: Value) -> Result<String> {
        let answer = self.ecs.call("RegisterTaskDefinition", definition).await?;
        text(&answer["taskDefinition"], "taskDefinitionArn")
    }

    /// One RunTask for up to ten tasks: the ARNs of those that were placed, and the failures.
    ///
    /// # Errors
    /// When it is refused, or nobody answers.
    pub async fn try_run(
        &self,
        definition: &str,
        count: usize,
        token: &str,
    ) -> Result<(Vec<String>, Vec<Value>)> {
        let answer = self.ecs.call("RunTask", run_input(definition, count, token)).await?;
        let list = |key: &str| answer[key].as_array().cloned().unwrap_or_default();
        let arns = list("tasks").iter().map(|task| text(task, "taskArn")).collect::<Result<_>>()?;
        Ok((arns, list("failures")))
    }

    /// Runs `count` tasks of a definition, in calls for ten; their ARNs. All of them must be placed.
    ///
    /// # Errors
    /// When one is not.
    pub async fn run(&self, definition: &str, count: usize) -> Result<Vec<String>> {
        let calls = (0..count).step_by(10).map(|from| async move {
            let (arns, failures) = self.try_run(definition, (count - from).min(10), &fresh_token()).await?;
            ensure!(failures.is_empty(), "RunTask of {definition}: {failures:?}");
            anyhow::Ok(arns)
        });
        let placed: Vec<Vec<String>> = stream::iter(calls).buffer_unordered(CALLS).try_collect().await?;
        Ok(placed.concat())
    }

    /// Asks for the end of these tasks.
    ///
    /// # Errors
    /// When one is refused.
    pub async fn stop(&self, tasks: &[String]) -> Result<()> {
        let calls =
            tasks.iter().map(|task| self.ecs.call("StopTask", json!({ "cluster": CLUSTER, "task": task })));
        stream::iter(calls).buffer_unordered(CALLS).try_collect::<Vec<_>>().await?;
        Ok(())
    }

    /// What DescribeTasks says of these tasks, by ARN.
    ///
    /// # Errors
    /// When one is not known.
    pub async fn tasks(&self, tasks: &[String]) -> Result<BTreeMap<String, Value>> {
        self.described("DescribeTasks", "tasks", "taskArn", tasks).await
    }

    /// What DescribeContainerInstances says of these hosts, by ARN.
    ///
    /// # Errors
    /// When one is not known.
    pub async fn instances(&self, hosts: &[usize]) -> Result<BTreeMap<String, Value>> {
        let arns = hosts.iter().map(|host| self.hosts[*host].instance()).collect::<Result<Vec<_>>>()?;
        self.described("DescribeContainerInstances", "containerInstances", "containerInstanceArn", &arns)
            .await
    }

    async fn described(
        &self,
        operation: &str,
        list: &str,
        key: &str,
        arns: &[String],
    ) -> Result<BTreeMap<String, Value>> {
        let mut all = BTreeMap::new();
        for some in arns.chunks(DESCRIBED) {
            let answer = self.ecs.call(operation, json!({ "cluster": CLUSTER, list: some })).await?;
            for one in answer[list].as_array().into_iter().flatten() {
                all.insert(text(one, key)?, one.clone());
            }
        }
        ensure!(all.len() == arns.len(), "{operation} knows {} of {}", all.len(), arns.len());
        Ok(all)
    }

    /// Looks at every engine itself: nothing is over capacity, nothing is there twice.
    ///
    /// # Errors
    /// What is wrong.
    pub fn check(&self) -> Result<()> {
        self.hosts.iter().try_for_each(Host::check)
    }

    /// Stops every agent and the control plane.
    ///
    /// # Errors
    /// When one does not end.
    pub async fn stop_all(self) -> Result<()> {
        let ended = futures_util::future::join_all(self.hosts.into_iter().map(Host::stop)).await;
        ensure!(ended.iter().all(|ended| *ended), "an agent did not end");
        match self.control_plane {
            Some(running) => running.stop().await,
            None => Ok(()),
        }
    }
}

/// The input of RunTask for up to ten tasks; the same token with the same input runs nothing twice.
#[must_use]
pub fn run_input(definition: &str, count: usize, token: &str) -> Value {
    json!({ "cluster": CLUSTER, "taskDefinition": definition, "count": count, "clientToken": token })
}

/// A `clientToken` that nobody used.
#[must_use]
pub fn fresh_token() -> String {
    uuid::Uuid::new_v4().to_string()
}

fn task_id(key: &Key) -> Option<&str> {
    match key {
        Key::Task(cluster, id) if cluster == CLUSTER => Some(id),
        _ => None,
    }
}

async fn switch_on(hosts: usize, agents: SocketAddr, total: &Resources) -> Result<Vec<Host>> {
    let agents = format!("http://{agents}");
    let starts = (0..hosts).map(|n| {
        let (name, agents) = (format!("host-{n}"), agents.as_str());
        async move { Host::start(&name, CLUSTER, agents, total.clone()).await }
    });
    stream::iter(starts).buffered(CALLS).try_collect().await
}
