//! What may be put round the ports of an agent while it is built: nothing in one that ships, and in one of a
//! test's somebody who has it die, hang or fail wherever it touches the world.

use std::sync::Arc;

use crate::cgroup::Cgroups;
use crate::effects::Effects;
use crate::network::TaskNetwork;
use crate::runtime::Runtime;
use crate::runtime::holder::Holders;
use crate::store::Store;

/// Takes each port as it was built, and gives back what the agent is to use in its place.
pub trait Seams: Send + Sync {
    /// Who stands beside effects that are behind no port.
    fn effects(&self) -> Effects {
        Effects::default()
    }

    /// The container engine.
    fn runtime(&self, port: Arc<dyn Runtime>) -> Arc<dyn Runtime> {
        port
    }

    /// The containers that hold namespaces.
    fn holders(&self, port: Arc<dyn Holders>) -> Arc<dyn Holders> {
        port
    }

    /// The networks of tasks.
    fn network(&self, port: Arc<dyn TaskNetwork>) -> Arc<dyn TaskNetwork> {
        port
    }

    /// The cgroups of tasks.
    fn cgroups(&self, port: Arc<dyn Cgroups>) -> Arc<dyn Cgroups> {
        port
    }

    /// The state.
    fn store(&self, port: Arc<dyn Store>) -> Arc<dyn Store> {
        port
    }
}

/// Every port as it is.
#[derive(Debug, Clone, Copy, Default)]
pub struct Seamless;

impl Seams for Seamless {}
