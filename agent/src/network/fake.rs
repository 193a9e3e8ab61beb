//! Networks of tasks in memory: each has a namespace, the holder of it, and an interface. They outlive the
//! agent, as those of a host do.

use std::collections::{BTreeMap, VecDeque};
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use berth_core::attachment::SecurityGroup;
use berth_core::ids::{EngineId, TaskArn};
use berth_core::spec::TaskSpec;
use futures_util::future::{self, BoxFuture, FutureExt};
use tokio::sync::Notify;

use super::{NetworkError, Offers, Survivor, TaskNetwork};

/// The namespace of a task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FakeNamespace {
    /// Who holds it.
    pub holder: EngineId,
    /// Whether the holder runs.
    pub runs: bool,
    /// Whether the task's interface is in it.
    pub attached: bool,
}

#[derive(Debug, Default)]
struct State {
    made: u64,
    namespaces: BTreeMap<TaskArn, FakeNamespace>,
    lost: VecDeque<(TaskArn, EngineId)>,
}

/// Networks in memory; clones share them.
#[derive(Debug, Clone, Default)]
pub struct FakeNetwork {
    state: Arc<Mutex<State>>,
    news: Arc<Notify>,
}

impl FakeNetwork {
    /// No networks.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// All namespaces, by their tasks.
    #[must_use]
    pub fn namespaces(&self) -> BTreeMap<TaskArn, FakeNamespace> {
        self.state().namespaces.clone()
    }

    /// The holder of a task's namespace ends by itself.
    pub fn end_holder(&self, task: &TaskArn) {
        let mut state = self.state();
        let Some(namespace) = state.namespaces.get_mut(task).filter(|namespace| namespace.runs) else {
            return;
        };
        (namespace.runs, namespace.attached) = (false, false);
        let holder = namespace.holder.clone();
        state.lost.push_back((task.clone(), holder));
        drop(state);
        self.news.notify_one();
    }

    /// The agent's life ends: nobody hears any more what it was told.
    pub fn forget_news(&self) {
        self.state().lost.clear();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A test that panicked elsewhere leaves plain data behind: still good to read.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn make(&self, task: &TaskArn) -> Result<EngineId, NetworkError> {
        let mut state = self.state();
        if let Some(namespace) = state.namespaces.get(task).filter(|namespace| namespace.runs) {
            return Ok(namespace.holder.clone());
        }
        state.made += 1;
        // Ids of containers begin with zeros here, those of holders do not.
        let holder = EngineId::new(format!("{:f>64x}", state.made))
            .map_err(|error| NetworkError::Refused(error.to_string()))?;
        let namespace = FakeNamespace { holder: holder.clone(), runs: true, attached: false };
        state.namespaces.insert(task.clone(), namespace);
        Ok(holder)
    }

    fn set_attached(&self, task: &TaskArn, attached: bool) -> Result<(), NetworkError> {
        match self.state().namespaces.get_mut(task).filter(|namespace| namespace.runs || !attached) {
            Some(namespace) => {
                namespace.attached = attached;
                Ok(())
            }
            None if attached => Err(NetworkError::Passing("there is no namespace".to_owned())),
            None => Ok(()),
        }
    }

    fn take_over(&self, alive: &[Survivor]) -> Vec<TaskArn> {
        let mut state = self.state();
        let known = |task: &TaskArn| alive.iter().any(|(spec, _)| &spec.arn == task);
        state.namespaces.retain(|task, _| known(task));
        let runs = |task: &TaskArn| state.namespaces.get(task).is_some_and(|namespace| namespace.runs);
        alive.iter().map(|(spec, _)| spec.arn.clone()).filter(|task| !runs(task)).collect()
    }
}

impl TaskNetwork for FakeNetwork {
    fn prepare<'a>(&'a self, task: &'a Arc<TaskSpec>) -> BoxFuture<'a, Result<EngineId, NetworkError>> {
        async { self.make(&task.arn) }.boxed()
    }

    fn attach<'a>(&'a self, task: &'a Arc<TaskSpec>) -> BoxFuture<'a, Result<(), NetworkError>> {
        async { self.set_attached(&task.arn, true) }.boxed()
    }

    fn started<'a>(&'a self, _: &'a Arc<TaskSpec>, _: &'a EngineId) -> BoxFuture<'a, ()> {
        future::ready(()).boxed()
    }

    fn detach<'a>(&'a self, task: &'a Arc<TaskSpec>) -> BoxFuture<'a, Result<(), NetworkError>> {
        async { self.set_attached(&task.arn, false) }.boxed()
    }

    fn dismiss<'a>(&'a self, task: &'a Arc<TaskSpec>) -> BoxFuture<'a, Result<(), NetworkError>> {
        async {
            self.state().namespaces.remove(&task.arn);
            Ok(())
        }
        .boxed()
    }

    fn guard(&self, _: Vec<SecurityGroup>) -> BoxFuture<'_, ()> {
        future::ready(()).boxed()
    }

    fn restore<'a>(&'a self, alive: &'a [Survivor]) -> BoxFuture<'a, Result<Vec<TaskArn>, NetworkError>> {
        async { Ok(self.take_over(alive)) }.boxed()
    }

    fn lost(&self) -> BoxFuture<'_, (TaskArn, EngineId)> {
        async {
            loop {
                let next = self.state().lost.pop_front();
                match next {
                    Some(lost) => return lost,
                    None => self.news.notified().await,
                }
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
