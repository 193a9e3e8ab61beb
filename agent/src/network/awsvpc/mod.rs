//! The networks of `awsvpc` tasks on a Linux host: brings together holders, namespaces, interfaces
//! and guards. One thing at a time for each task.

mod down;
mod recover;
mod remains;
mod up;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use berth_core::attachment::SecurityGroup;
use berth_core::ids::{EngineId, TaskArn};
use berth_core::spec::{NetworkMode, TaskSpec};
use futures_util::future::{BoxFuture, FutureExt};
use tokio::sync::mpsc;

use self::remains::Remains;
use crate::network::guard;
use crate::network::holder::{Held, Pool};
use crate::network::netlink::Netlink;
use crate::network::netns::{Namespace, Pins, set_hostname};
use crate::network::plan::{self, Site};
use crate::network::{NetworkError, Offers, Survivor, TaskNetwork};
use crate::runtime::holder::Holders;
use crate::supervise::Tracker;

/// The addresses of tasks on their links to the endpoint: 169.254.172.0/22, but for the first and
/// the last (ECS's ecs-bridge has the same).
const ENDPOINT_NETWORK: u32 = u32::from_be_bytes([169, 254, 172, 0]);
const ENDPOINT_ADDRESSES: u32 = 1024;

/// How tasks are connected here.
#[derive(Debug, Clone)]
pub struct AwsvpcConfig {
    /// The agent's data folder, which names what is the agent's on this host.
    pub data_dir: std::path::PathBuf,
    /// Where the agent itself has it: namespaces are pinned there. Elsewhere only for an agent in a container.
    pub pins: std::path::PathBuf,
    /// The interface that children are made of.
    pub parent: String,
    /// How many holders are kept ready.
    pub pool: usize,
    /// The port of the task's endpoint, where there is one.
    pub endpoint_port: Option<u16>,
    /// What is offered.
    pub offers: Offers,
}

/// What is known of a task's network.
#[derive(Debug)]
struct Known {
    task: Arc<TaskSpec>,
    held: Option<Held>,
    endpoint: Ipv4Addr,
    groups: Vec<SecurityGroup>,
    turn: Arc<tokio::sync::Mutex<()>>,
}

type Tasks = Arc<Mutex<BTreeMap<TaskArn, Known>>>;

fn lock(tasks: &Tasks) -> MutexGuard<'_, BTreeMap<TaskArn, Known>> {
    tasks.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The networks of tasks in namespaces of the agent's.
pub struct Awsvpc {
    config: AwsvpcConfig,
    pool: Arc<Pool>,
    pins: Pins,
    home: Namespace,
    host: Netlink,
    tracker: Tracker,
    tasks: Tasks,
    remains: Remains,
    /// Where tasks are handed in that are gone.
    gone: mpsc::Sender<Arc<TaskSpec>>,
    lost: tokio::sync::Mutex<mpsc::Receiver<(TaskArn, EngineId)>>,
}

/// A failure of the kernel's while something was done for a task.
fn kernel(what: &str) -> impl Fn(io::Error) -> NetworkError + '_ {
    move |error| match error.raw_os_error() {
        Some(code) if code == nix::errno::Errno::EOPNOTSUPP as i32 => NetworkError::Refused(format!(
            "{what}: this kernel has no such kind of link; use another provider for the subnet"
        )),
        _ => NetworkError::Passing(format!("{what}: {error}")),
    }
}

impl Awsvpc {
    /// The networks of tasks, none of which is known yet.
    ///
    /// # Errors
    /// When the agent may not speak with the kernel about networks.
    pub fn new(config: AwsvpcConfig, engine: Arc<dyn Holders>, tracker: Tracker) -> io::Result<Self> {
        let (pool, lost) = Pool::new(engine, config.pool, tracker.clone());
        let (pins, host, tasks) = (Pins::new(&config.pins), Netlink::here(&tracker)?, Tasks::default());
        let remains = Remains {
            agent: config.data_dir.display().to_string().into(),
            host: host.clone(),
            pins: pins.clone(),
            tasks: Arc::clone(&tasks),
            bridges: Arc::default(),
            tracker: tracker.clone(),
        };
        Ok(Self {
            pins,
            home: Namespace::of_process(std::process::id())?,
            host,
            pool,
            config,
            tracker,
            tasks,
            gone: remains.clear_soon(),
            remains,
            lost: tokio::sync::Mutex::new(lost),
        })
    }

    fn tasks(&self) -> MutexGuard<'_, BTreeMap<TaskArn, Known>> {
        lock(&self.tasks)
    }

    /// Takes note of a task; its turn, and its address on the link to the endpoint.
    fn know(&self, task: &Arc<TaskSpec>) -> Result<(Arc<tokio::sync::Mutex<()>>, Ipv4Addr), NetworkError> {
        let mut tasks = self.tasks();
        if let Some(known) = tasks.get(&task.arn) {
            return Ok((Arc::clone(&known.turn), known.endpoint));
        }
        let taken: BTreeSet<Ipv4Addr> = tasks.values().map(|known| known.endpoint).collect();
        // Agents that share a host begin at different places.
        let first = plan::spread(&self.config.data_dir.display().to_string());
        let usable = ENDPOINT_ADDRESSES - 3;
        let mut free = (0..usable).map(|n| Ipv4Addr::from(ENDPOINT_NETWORK + 2 + (first + n) % usable));
        let endpoint = free.find(|address| !taken.contains(address)).ok_or_else(|| {
            NetworkError::Passing("every address of 169.254.172.0/22 is in use by a task".to_owned())
        })?;
        let groups = task.attachment.as_ref().map(|a| a.security_groups.clone()).unwrap_or_default();
        let known = Known { task: Arc::clone(task), held: None, endpoint, groups, turn: Arc::default() };
        let turn = Arc::clone(&known.turn);
        tasks.insert(task.arn.clone(), known);
        Ok((turn, endpoint))
    }

    fn bridge_name(&self, subnet_id: &str) -> String {
        plan::bridge_name(&self.config.data_dir.display().to_string(), subnet_id)
    }

    fn held(&self, task: &TaskArn) -> Option<Held> {
        self.tasks().get(task).and_then(|known| known.held.clone())
    }

    fn site(&self, endpoint: Ipv4Addr) -> Site {
        Site {
            agent: self.config.data_dir.display().to_string(),
            parent: self.config.parent.clone(),
            endpoint_address: endpoint,
            endpoint_port: self.config.endpoint_port,
            blocks_instance_metadata: self.config.offers.blocks_instance_metadata,
        }
    }

    async fn hold(&self, task: &Arc<TaskSpec>) -> Result<EngineId, NetworkError> {
        let (turn, _) = self.know(task)?;
        let _turn = turn.lock().await;
        if let Some(held) = self.held(&task.arn)
            && let Some(held) = self.pool.running(&held.id).await?
        {
            return Ok(held.id);
        }
        let hostname = task.attachment.as_ref().map(|a| a.hostname.clone()).unwrap_or_default();
        let held = self.pool.take(task, &hostname).await?;
        self.adopt(task, &held)?;
        Ok(held.id)
    }

    fn adopt(&self, task: &Arc<TaskSpec>, held: &Held) -> Result<(), NetworkError> {
        self.pins.pin(task.arn.id(), held.pid).map_err(kernel("pinning the task's namespace"))?;
        self.pool.watch(task.arn.clone(), held);
        if let Some(known) = self.tasks().get_mut(&task.arn) {
            known.held = Some(held.clone());
        }
        Ok(())
    }

    /// A name that does not come is no reason to fail a task that runs.
    async fn name(&self, task: &TaskSpec, container: &EngineId) {
        let Some(hostname) = task.attachment.as_ref().map(|a| a.hostname.clone()).filter(|h| !h.is_empty())
        else {
            return;
        };
        let named = match self.pool.running(container).await {
            Ok(Some(process)) => set_hostname(process.pid, hostname).await,
            // It has ended already.
            Ok(None) => Ok(()),
            Err(error) => Err(io::Error::other(error)),
        };
        if let Err(error) = named {
            tracing::warn!(task = %task.arn, %container, %error, "the container has not got the task's host name");
        }
    }

    async fn guard_anew(&self, groups: Vec<SecurityGroup>) {
        let changed: Vec<(Arc<TaskSpec>, Vec<SecurityGroup>)> = {
            let mut tasks = self.tasks();
            let mut changed = Vec::new();
            for known in tasks.values_mut() {
                let before = known.groups.clone();
                for own in &mut known.groups {
                    let newer = groups.iter().find(|group| group.id == own.id && group.version > own.version);
                    if let Some(newer) = newer {
                        *own = newer.clone();
                    }
                }
                if known.groups != before {
                    changed.push((Arc::clone(&known.task), known.groups.clone()));
                }
            }
            changed
        };
        for (task, groups) in changed {
            let Some(attachment) = &task.attachment else { continue };
            let Ok(namespace) = Namespace::pinned(&self.pins.path(task.arn.id())) else { continue };
            match guard::apply(&namespace, guard::table(attachment, &groups, self.config.endpoint_port)).await
            {
                Ok(()) => tracing::info!(task = %task.arn, "security groups changed"),
                Err(error) => {
                    tracing::error!(task = %task.arn, %error, "the changed security groups are not in force");
                }
            }
        }
    }
}

impl TaskNetwork for Awsvpc {
    fn prepare<'a>(&'a self, task: &'a Arc<TaskSpec>) -> BoxFuture<'a, Result<EngineId, NetworkError>> {
        self.hold(task).boxed()
    }

    fn attach<'a>(&'a self, task: &'a Arc<TaskSpec>) -> BoxFuture<'a, Result<(), NetworkError>> {
        self.connect(task).boxed()
    }

    fn started<'a>(&'a self, task: &'a Arc<TaskSpec>, container: &'a EngineId) -> BoxFuture<'a, ()> {
        self.name(task, container).boxed()
    }

    fn detach<'a>(&'a self, task: &'a Arc<TaskSpec>) -> BoxFuture<'a, Result<(), NetworkError>> {
        self.disconnect(task).boxed()
    }

    fn dismiss<'a>(&'a self, task: &'a Arc<TaskSpec>) -> BoxFuture<'a, Result<(), NetworkError>> {
        self.let_go(task).boxed()
    }

    fn guard(&self, groups: Vec<SecurityGroup>) -> BoxFuture<'_, ()> {
        self.guard_anew(groups).boxed()
    }

    fn restore<'a>(&'a self, alive: &'a [Survivor]) -> BoxFuture<'a, Result<Vec<TaskArn>, NetworkError>> {
        self.take_over(alive).boxed()
    }

    fn lost(&self) -> BoxFuture<'_, (TaskArn, EngineId)> {
        async move {
            match self.lost.lock().await.recv().await {
                Some(lost) => lost,
                None => std::future::pending().await,
            }
        }
        .boxed()
    }

    fn endpoint_address(&self, task: &TaskArn) -> Option<Ipv4Addr> {
        let tasks = self.tasks();
        let connected = |known: &&Known| known.task.network_mode == NetworkMode::Awsvpc;
        tasks.get(task).filter(connected).map(|known| known.endpoint)
    }

    fn offers(&self) -> Offers {
        self.config.offers.clone()
    }
}
