//! Applies decisions to the store: launches, stops, drains and deregistrations.
//!
//! Whatever takes capacity from an instance, or takes an instance away, goes through one owner
//! (`owner`), one order after another: a placement that was decided can't be overtaken by another.
//! A stop only gives capacity back, and is made by compare-and-swap on the task alone; so is protection,
//! which takes none.

mod cleanup;
mod owner;
mod protection;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use berth_core::spec::TaskSpec;
use tokio::sync::{mpsc, oneshot};

pub use self::protection::{InvalidExpiry, Protection, Unprotectable, protectable};
use crate::agents::registry::Registry;
use crate::arn::Arns;
use crate::clock;
use crate::model::{Cluster, Instance, InstanceStatus, StopCause, Tags, Task, TaskStatus};
pub use crate::scheduler::placement::Failure;
use crate::scheduler::placement::{RequiredAttribute, Target};
use crate::store::{CommitError, Key, Record, Store, Txn};
use crate::supervise::Tracker;
use crate::vpc::CurrentVpc;

/// The cluster that always exists.
pub const DEFAULT_CLUSTER: &str = "default";

/// How many orders may wait for the owner.
const QUEUE: usize = 256;

/// What RunTask and StartTask ask for, checked and resolved.
#[derive(Debug, Clone)]
pub struct LaunchRequest {
    /// The cluster's name.
    pub cluster: String,
    /// The ARN of the task definition.
    pub task_definition: String,
    /// What each task is to run, overrides applied. Its ARN stands for none
    /// ([`Arns::placeholder_task`]); every task gets one of its own.
    pub spec: TaskSpec,
    /// Attributes that the instance must have.
    pub required: Vec<RequiredAttribute>,
    /// Where the tasks may go.
    pub target: Target,
    /// The group; `family:<family>` when `None`.
    pub group: Option<String>,
    /// Who starts the tasks.
    pub started_by: Option<String>,
    /// Whether programs may be started in its containers from afar.
    pub execute_command: bool,
    /// The overrides as they came, `{}` when none.
    pub overrides: serde_json::Value,
    /// Tags of the tasks.
    pub tags: Tags,
    /// Where the interfaces of `awsvpc` tasks come from, and what guards them.
    pub network: Option<NetworkRequest>,
    /// The caller's `clientToken` and a digest of its parameters.
    pub client_token: Option<(String, String)>,
}

/// The interfaces that tasks are to have: `awsvpcConfiguration`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NetworkRequest {
    /// Subnets, the first that has a free address is taken.
    pub subnets: Vec<String>,
    /// Security groups.
    pub security_groups: Vec<String>,
}

/// What became of a launch.
#[derive(Debug, Clone, Default)]
pub struct Launched {
    /// The tasks that were placed, durable already.
    pub tasks: Vec<Arc<Task>>,
    /// Why instances were not taken, when not all could be placed.
    pub failures: Vec<Failure>,
}

/// Why nothing was launched.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LaunchError {
    /// There is no such cluster.
    #[error("Cluster not found.")]
    ClusterNotFound,
    /// The cluster was deleted.
    #[error("The referenced cluster was inactive.")]
    ClusterInactive,
    /// The cluster has no ACTIVE instance at all.
    #[error("No Container Instances were found in your cluster.")]
    NoInstances,
    /// The same token came with other parameters before.
    #[error("the client token was used with other parameters before")]
    TokenReused {
        /// The tasks that were launched with it, by ARN.
        tasks: Vec<String>,
    },
    /// The specification does not hold for a task; a mistake of the control plane.
    #[error("the task can't be specified: {0}")]
    InvalidSpec(String),
    /// The store cannot write, or the control plane is shutting down.
    #[error("{0}")]
    Unavailable(String),
}

/// Why an instance or a task was not changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    /// There is no such task or instance.
    #[error("there is no {0}")]
    NotFound(String),
    /// The instance was deregistered.
    #[error("The container instance is inactive.")]
    Inactive,
    /// Tasks run on the instance, and the deregistration was not forced.
    #[error("Found running tasks on the instance.")]
    TasksRunning,
    /// The store cannot write, or the control plane is shutting down.
    #[error("{0}")]
    Unavailable(String),
}

fn shutting_down() -> String {
    "the control plane is shutting down".to_owned()
}

/// Who wants an instance's status changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Author {
    /// Somebody at the API, whose word stands.
    Operator,
    /// Its own host, which only takes back what it said itself.
    Host,
}

/// What the owner is told to do, and where the answer goes.
enum Order {
    Launch(Box<LaunchRequest>, oneshot::Sender<Result<Launched, LaunchError>>),
    SetStatus(Key, InstanceStatus, Author, oneshot::Sender<Result<Arc<Instance>, ChangeError>>),
    Deregister(Key, bool, oneshot::Sender<Result<Arc<Instance>, ChangeError>>),
}

/// The handle that the API holds. Cloning yields another handle on the same.
#[derive(Clone)]
pub struct Controller {
    store: Arc<dyn Store>,
    registry: Registry,
    arns: Arns,
    orders: mpsc::Sender<Order>,
}

impl fmt::Debug for Controller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Controller({} orders wait)", QUEUE - self.orders.capacity())
    }
}

impl Controller {
    /// Starts the owner and the removal of tasks that have been STOPPED for `retention`.
    #[must_use]
    pub fn start(
        store: Arc<dyn Store>,
        registry: Registry,
        arns: Arns,
        vpc: CurrentVpc,
        retention: Duration,
        tracker: &Tracker,
    ) -> Self {
        let (orders, inbox) = mpsc::channel(QUEUE);
        let owner =
            owner::Owner { store: Arc::clone(&store), registry: registry.clone(), arns: arns.clone(), vpc };
        tracker.spawn("controller", owner.run(inbox, tracker.token().clone()));
        tracker.spawn("cleanup", cleanup::run(Arc::clone(&store), retention, tracker.token().clone()));
        Self { store, registry, arns, orders }
    }

    async fn order<T, E>(
        &self,
        make: impl FnOnce(oneshot::Sender<Result<T, E>>) -> Order,
        unavailable: fn(String) -> E,
    ) -> Result<T, E> {
        let (answer, answered) = oneshot::channel();
        self.orders.send(make(answer)).await.map_err(|_| unavailable(shutting_down()))?;
        answered.await.map_err(|_| unavailable(shutting_down()))?
    }

    /// Places and records tasks. They are durable when this returns, and on their way to the agents.
    ///
    /// # Errors
    /// [`LaunchError`] when nothing could be launched for a reason that is not an instance's.
    pub async fn launch(&self, request: LaunchRequest) -> Result<Launched, LaunchError> {
        self.order(|answer| Order::Launch(Box::new(request), answer), LaunchError::Unavailable).await
    }

    /// Lets an instance take tasks (`Active`), or none (`Draining`).
    ///
    /// # Errors
    /// [`ChangeError`] when it does not exist, was deregistered, or the store cannot write.
    pub async fn set_instance_status(
        &self,
        cluster: &str,
        id: &str,
        status: InstanceStatus,
    ) -> Result<Arc<Instance>, ChangeError> {
        let key = Key::Instance(cluster.to_owned(), id.to_owned());
        let order = |answer| Order::SetStatus(key, status, Author::Operator, answer);
        self.order(order, ChangeError::Unavailable).await
    }

    /// Drains an instance whose host is about to go, as an operator would; lets it take tasks again when it
    /// is not, provided that it drains for that reason.
    ///
    /// # Errors
    /// As [`set_instance_status`](Self::set_instance_status).
    pub async fn host_goes(
        &self,
        cluster: &str,
        id: &str,
        going: bool,
    ) -> Result<Arc<Instance>, ChangeError> {
        let key = Key::Instance(cluster.to_owned(), id.to_owned());
        let status = if going { InstanceStatus::Draining } else { InstanceStatus::Active };
        let order = |answer| Order::SetStatus(key, status, Author::Host, answer);
        self.order(order, ChangeError::Unavailable).await
    }

    /// Takes an instance out of its cluster and ends its session for good. With `force` its tasks
    /// are recorded as STOPPED. Deregistering twice is no error.
    ///
    /// # Errors
    /// [`ChangeError::TasksRunning`] without `force` while tasks are on it; otherwise as above.
    pub async fn deregister_instance(
        &self,
        cluster: &str,
        id: &str,
        force: bool,
    ) -> Result<Arc<Instance>, ChangeError> {
        let key = Key::Instance(cluster.to_owned(), id.to_owned());
        self.order(|answer| Order::Deregister(key, force, answer), ChangeError::Unavailable).await
    }

    /// Asks for a task to be stopped. One that is stopping or STOPPED already stays as it is.
    ///
    /// # Errors
    /// [`ChangeError`] when it does not exist or the store cannot write.
    pub async fn stop_task(
        &self,
        cluster: &str,
        id: &str,
        cause: StopCause,
    ) -> Result<Arc<Task>, ChangeError> {
        let key = Key::Task(cluster.to_owned(), id.to_owned());
        loop {
            let found = self.store.view().task(cluster, id);
            let found = found.ok_or_else(|| ChangeError::NotFound(key.to_string()))?;
            if found.value.stop_requested.is_some() || found.value.observed.status == TaskStatus::Stopped {
                return Ok(found.value);
            }
            let mut task = Task::clone(&found.value);
            task.stop_requested = Some(cause.clone());
            task.stopping_at = task.stopping_at.or_else(|| Some(clock::now()));
            task.version += 1;
            let task = Arc::new(task);
            let txn = Txn {
                compares: vec![(key.clone(), Some(found.revision))],
                puts: vec![(key.clone(), Record::Task(Arc::clone(&task)))],
                deletes: Vec::new(),
            };
            match self.store.commit(txn).await {
                Ok(_) => return Ok(task),
                Err(CommitError::Conflict(_)) => {}
                Err(CommitError::Unavailable(why)) => return Err(ChangeError::Unavailable(why)),
            }
        }
    }

    /// Makes the cluster `default` unless there is one, deleted or not.
    ///
    /// # Errors
    /// [`ChangeError::Unavailable`] when the store cannot write.
    pub async fn ensure_default_cluster(&self) -> Result<(), ChangeError> {
        let key = Key::Cluster(DEFAULT_CLUSTER.to_owned());
        let cluster = Cluster {
            arn: self.arns.cluster(DEFAULT_CLUSTER),
            name: DEFAULT_CLUSTER.to_owned(),
            active: true,
            settings: [("containerInsights".to_owned(), "disabled".to_owned())].into(),
            tags: Tags::new(),
            created_at: clock::now(),
        };
        let txn = Txn {
            compares: vec![(key.clone(), None)],
            puts: vec![(key, Record::Cluster(Arc::new(cluster)))],
            deletes: Vec::new(),
        };
        match self.store.commit(txn).await {
            Ok(_) | Err(CommitError::Conflict(_)) => Ok(()),
            Err(CommitError::Unavailable(why)) => Err(ChangeError::Unavailable(why)),
        }
    }

    /// Deletes everything but the cluster `default`, and ends every session (development only).
    ///
    /// # Errors
    /// [`ChangeError::Unavailable`] when the store cannot write.
    pub async fn reset(&self) -> Result<(), ChangeError> {
        self.store.reset().await.map_err(|error| ChangeError::Unavailable(error.to_string()))?;
        for arn in self.registry.instances_connected() {
            self.registry.disconnect(&arn, "the control plane was reset", true);
        }
        self.ensure_default_cluster().await
    }
}
