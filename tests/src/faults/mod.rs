//! Somebody to stand before and after everything that the agent does to the world: what is behind a port is
//! wrapped, the rest the agent names itself (`berth_agent::effects`).
//!
//! | module | its one job |
//! | --- | --- |
//! | [`points`] | the names of all effects |
//! | `armed` | what happens where, for a real agent |
//! | `runtime`, `holders`, `network`, `cgroups`, `store` | one port each, wrapped |

mod armed;
mod cgroups;
mod holders;
mod network;
pub mod points;
mod runtime;
mod store;

use std::sync::Arc;

use berth_agent::cgroup::Cgroups;
use berth_agent::effects::Effects;
use berth_agent::network::TaskNetwork;
use berth_agent::runtime::Runtime;
use berth_agent::runtime::holder::Holders;
use berth_agent::store::Store;

pub use self::armed::{Armed, FOLDER, Fault, Trigger, is_senseless};

/// A port with somebody before and after each of its effects.
struct Watched<P: ?Sized> {
    inner: Arc<P>,
    effects: Effects,
}

/// The engine, watched.
#[must_use]
pub fn runtime(inner: Arc<dyn Runtime>, effects: Effects) -> Arc<dyn Runtime> {
    Arc::new(Watched { inner, effects })
}

/// What holds namespaces, watched.
#[must_use]
pub fn holders(inner: Arc<dyn Holders>, effects: Effects) -> Arc<dyn Holders> {
    Arc::new(Watched { inner, effects })
}

/// The networks of tasks, watched.
#[must_use]
pub fn network(inner: Arc<dyn TaskNetwork>, effects: Effects) -> Arc<dyn TaskNetwork> {
    Arc::new(Watched { inner, effects })
}

/// The cgroups of tasks, watched.
#[must_use]
pub fn cgroups(inner: Arc<dyn Cgroups>, effects: Effects) -> Arc<dyn Cgroups> {
    Arc::new(Watched { inner, effects })
}

/// The state, watched.
#[must_use]
pub fn store(inner: Arc<dyn Store>, effects: Effects) -> Arc<dyn Store> {
    Arc::new(Watched { inner, effects })
}
