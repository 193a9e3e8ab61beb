//! A host whose tasks share nothing and have no interfaces: for simulations, which have no kernel.

use std::net::Ipv4Addr;
use std::sync::Arc;

use berth_core::attachment::SecurityGroup;
use berth_core::ids::{EngineId, TaskArn};
use berth_core::spec::TaskSpec;
use futures_util::future::{BoxFuture, FutureExt};

use super::{NetworkError, Offers, Survivor, TaskNetwork};

/// Refuses every namespace; what was made by an agent that offered them is not its business.
#[derive(Debug, Clone, Copy, Default)]
pub struct Off;

fn refused() -> NetworkError {
    NetworkError::Refused("network mode awsvpc is off on this instance (ECS_ENABLE_TASK_ENI)".to_owned())
}

impl TaskNetwork for Off {
    fn prepare<'a>(&'a self, _: &'a Arc<TaskSpec>) -> BoxFuture<'a, Result<EngineId, NetworkError>> {
        async { Err(refused()) }.boxed()
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

    fn dismiss<'a>(&'a self, _: &'a Arc<TaskSpec>) -> BoxFuture<'a, Result<(), NetworkError>> {
        async { Ok(()) }.boxed()
    }

    fn guard(&self, _: Vec<SecurityGroup>) -> BoxFuture<'_, ()> {
        async {}.boxed()
    }

    fn restore<'a>(&'a self, _: &'a [Survivor]) -> BoxFuture<'a, Result<Vec<TaskArn>, NetworkError>> {
        async { Ok(Vec::new()) }.boxed()
    }

    fn lost(&self) -> BoxFuture<'_, (TaskArn, EngineId)> {
        std::future::pending().boxed()
    }

    fn endpoint_address(&self, _: &TaskArn) -> Option<Ipv4Addr> {
        None
    }

    fn offers(&self) -> Offers {
        Offers::default()
    }
}
