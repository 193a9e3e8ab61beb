//! A host that offers no task an interface of its own. Tasks whose containers share processes or IPC still
//! have a container that holds what they share.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use berth_core::attachment::SecurityGroup;
use berth_core::ids::{EngineId, TaskArn};
use berth_core::spec::{NetworkMode, TaskSpec};
use futures_util::future::{BoxFuture, FutureExt};
use tokio::sync::mpsc;

use super::holder::{Held, Pool, task_of};
use super::{NetworkError, Offers, Survivor, TaskNetwork};
use crate::runtime::holder::Holders;
use crate::supervise::Tracker;

/// The holders of tasks that share processes or IPC, and nothing of networks.
pub struct SharedOnly {
    pool: Arc<Pool>,
    held: Mutex<BTreeMap<TaskArn, Held>>,
    lost: tokio::sync::Mutex<mpsc::Receiver<(TaskArn, EngineId)>>,
}

fn refused() -> NetworkError {
    NetworkError::Refused("network mode awsvpc is off on this instance (ECS_ENABLE_TASK_ENI)".to_owned())
}

impl SharedOnly {
    /// Holders of that engine; none is kept ready.
    #[must_use]
    pub fn new(engine: Arc<dyn Holders>, tracker: Tracker) -> Self {
        let (pool, lost) = Pool::new(engine, 0, tracker);
        Self { pool, held: Mutex::default(), lost: tokio::sync::Mutex::new(lost) }
    }

    fn held(&self) -> MutexGuard<'_, BTreeMap<TaskArn, Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn hold(&self, task: &Arc<TaskSpec>) -> Result<EngineId, NetworkError> {
        if task.network_mode == NetworkMode::Awsvpc {
            return Err(refused());
        }
        let known = self.held().get(&task.arn).cloned();
        if let Some(held) = known
            && let Some(held) = self.pool.running(&held.id).await?
        {
            return Ok(held.id);
        }
        let held = self.pool.take(task, "").await?;
        self.keep(task, held.clone());
        Ok(held.id)
    }

    fn keep(&self, task: &TaskSpec, held: Held) {
        self.pool.watch(task.arn.clone(), &held);
        self.held().insert(task.arn.clone(), held);
    }

    async fn let_go(&self, task: &TaskSpec) -> Result<(), NetworkError> {
        let known = self.held().get(&task.arn).cloned();
        if let Some(held) = known {
            self.pool.end(&held).await?;
        } else {
            let all = self.pool.all().await?;
            if let Some(holder) = all.iter().find(|holder| task_of(&holder.name) == Some(task.arn.id())) {
                self.pool.release(&holder.id).await?;
            }
        }
        self.held().remove(&task.arn);
        Ok(())
    }

    async fn take_over(&self, alive: &[Survivor]) -> Result<Vec<TaskArn>, NetworkError> {
        let holders = self.pool.all().await?;
        let mut lost = Vec::new();
        for (task, _) in alive {
            let holder = holders.iter().find(|h| h.running && task_of(&h.name) == Some(task.arn.id()));
            let held = match holder {
                Some(holder) => self.pool.running(&holder.id).await?,
                None => None,
            };
            match held {
                Some(held) => self.keep(task, held),
                None => lost.push(task.arn.clone()),
            }
        }
        let ids: BTreeSet<&str> = alive.iter().map(|(task, _)| task.arn.id()).collect();
        for holder in &holders {
            if !task_of(&holder.name).is_some_and(|id| ids.contains(id)) {
                self.pool.release(&holder.id).await?;
            }
        }
        Ok(lost)
    }
}

impl TaskNetwork for SharedOnly {
    fn prepare<'a>(&'a self, task: &'a Arc<TaskSpec>) -> BoxFuture<'a, Result<EngineId, NetworkError>> {
        self.hold(task).boxed()
    }

    fn attach<'a>(&'a self, _: &'a Arc<TaskSpec>) -> BoxFuture<'a, Result<(), NetworkError>> {
        async { Err(refused()) }.boxed()
    }

    fn started<'a>(&'a self, _: &'a Arc<TaskSpec>, _: &'a EngineId) -> BoxFuture<'a, ()> {
        async {}.boxed()
    }

    fn detach<'a>(&'a self, _: &'a Arc<TaskSpec>) -> BoxFuture<'a, Result<(), NetworkError>> {
        async { Ok(()) }.boxed()
    }

    fn dismiss<'a>(&'a self, task: &'a Arc<TaskSpec>) -> BoxFuture<'a, Result<(), NetworkError>> {
        self.let_go(task).boxed()
    }

    fn guard(&self, _: Vec<SecurityGroup>) -> BoxFuture<'_, ()> {
        async {}.boxed()
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

    fn endpoint_address(&self, _: &TaskArn) -> Option<Ipv4Addr> {
        None
    }

    fn offers(&self) -> Offers {
        Offers::default()
    }
}
