//! The networks of tasks, watched.

use std::net::Ipv4Addr;
use std::sync::Arc;

use berth_agent::network::{NetworkError, Offers, Survivor, TaskNetwork};
use berth_core::attachment::SecurityGroup;
use berth_core::ids::{EngineId, TaskArn};
use berth_core::spec::TaskSpec;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;

use super::Watched;
use super::points::NETWORK;

type Answer<'a, T> = BoxFuture<'a, Result<T, NetworkError>>;

impl Watched<dyn TaskNetwork> {
    fn call<'a, T: Send + 'a>(&'a self, effect: &'static str, call: Answer<'a, T>) -> Answer<'a, T> {
        self.effects.around(effect, NetworkError::Passing, call).boxed()
    }

    /// One that cannot fail: whoever has it fail only takes its time.
    fn tell<'a>(&'a self, effect: &'static str, call: BoxFuture<'a, ()>) -> BoxFuture<'a, ()> {
        let call = async {
            call.await;
            Ok::<(), String>(())
        };
        async move {
            let _ = self.effects.around(effect, |why| why, call).await;
        }
        .boxed()
    }
}

impl TaskNetwork for Watched<dyn TaskNetwork> {
    fn prepare<'a>(&'a self, task: &'a Arc<TaskSpec>) -> Answer<'a, EngineId> {
        self.call(NETWORK[0], self.inner.prepare(task))
    }

    fn attach<'a>(&'a self, task: &'a Arc<TaskSpec>) -> Answer<'a, ()> {
        self.call(NETWORK[1], self.inner.attach(task))
    }

    fn started<'a>(&'a self, task: &'a Arc<TaskSpec>, container: &'a EngineId) -> BoxFuture<'a, ()> {
        self.tell(NETWORK[2], self.inner.started(task, container))
    }

    fn detach<'a>(&'a self, task: &'a Arc<TaskSpec>) -> Answer<'a, ()> {
        self.call(NETWORK[3], self.inner.detach(task))
    }

    fn dismiss<'a>(&'a self, task: &'a Arc<TaskSpec>) -> Answer<'a, ()> {
        self.call(NETWORK[4], self.inner.dismiss(task))
    }

    fn guard(&self, groups: Vec<SecurityGroup>) -> BoxFuture<'_, ()> {
        self.tell(NETWORK[5], self.inner.guard(groups))
    }

    fn restore<'a>(&'a self, alive: &'a [Survivor]) -> Answer<'a, Vec<TaskArn>> {
        self.call(NETWORK[6], self.inner.restore(alive))
    }

    fn lost(&self) -> BoxFuture<'_, (TaskArn, EngineId)> {
        self.inner.lost()
    }

    fn endpoint_address(&self, task: &TaskArn) -> Option<Ipv4Addr> {
        self.inner.endpoint_address(task)
    }

    fn offers(&self) -> Offers {
        self.inner.offers()
    }
}
