//! The network of tasks. `bridge`, `host` and `none` are the engine's, but for the host ports, which
//! the agent chooses. `awsvpc` is the agent's own: [`TaskNetwork`] is what the engine asks of it.

mod arrival;
pub mod awsvpc;
pub mod describe;
mod fabric;
pub mod fake;
pub mod guard;
mod holder;
mod inside;
pub mod instance_types;
pub mod netlink;
pub mod netns;
pub mod off;
pub mod pause;
pub mod plan;
pub mod ports;
pub mod probe;
pub mod shared;
mod words;

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::sync::Arc;

use berth_core::attachment::SecurityGroup;
use berth_core::ids::{EngineId, TaskArn};
use berth_core::spec::TaskSpec;
use futures_util::future::BoxFuture;

/// What the host offers to tasks that want an interface of their own.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Offers {
    /// The providers that work on this kernel, by their names.
    pub providers: BTreeSet<&'static str>,
    /// How many such tasks the host can carry.
    pub interfaces: u32,
    /// Whether the instance metadata service is hidden from these tasks.
    pub blocks_instance_metadata: bool,
}

/// Why a network could not be had or taken down. The text is for users.
#[derive(Debug, Clone, thiserror::Error)]
pub enum NetworkError {
    /// The container engine does not answer: nothing is wrong with the task.
    #[error("the container engine does not answer: {0}")]
    EngineAway(String),
    /// Worth another try.
    #[error("{0}")]
    Passing(String),
    /// Trying again changes nothing.
    #[error("{0}")]
    Refused(String),
}

/// A task that was found after a start, with the container that holds its namespace as far as is
/// known.
pub type Survivor = (Arc<TaskSpec>, Option<EngineId>);

/// The networks of tasks in `awsvpc` mode, and what else the containers of a task share. A namespace is held
/// open by a container of the agent's, which the task's own containers join.
pub trait TaskNetwork: Send + Sync + 'static {
    /// A namespace for the task: the container that holds it. Asked again, the same one.
    ///
    /// # Errors
    /// [`NetworkError`].
    fn prepare<'a>(&'a self, task: &'a Arc<TaskSpec>) -> BoxFuture<'a, Result<EngineId, NetworkError>>;
    /// Brings the task's interface into its namespace: waits for it where somebody else plugs it in,
    /// configures it, and guards it by the task's security groups. Asked again, changes nothing.
    ///
    /// # Errors
    /// [`NetworkError`]; [`NetworkError::Refused`] when the interface did not come in time.
    fn attach<'a>(&'a self, task: &'a Arc<TaskSpec>) -> BoxFuture<'a, Result<(), NetworkError>>;
    /// A container of the task was started: it gets the task's host name. The engine gives it that of
    /// the holder, which may have been made before the task was known.
    fn started<'a>(&'a self, task: &'a Arc<TaskSpec>, container: &'a EngineId) -> BoxFuture<'a, ()>;
    /// Takes the interface away and gives it back where it came from. What is not there is away
    /// already.
    ///
    /// # Errors
    /// [`NetworkError`].
    fn detach<'a>(&'a self, task: &'a Arc<TaskSpec>) -> BoxFuture<'a, Result<(), NetworkError>>;
    /// Removes the namespace and its holder; returns when both are really gone. What is not there is
    /// gone already.
    ///
    /// # Errors
    /// [`NetworkError`].
    fn dismiss<'a>(&'a self, task: &'a Arc<TaskSpec>) -> BoxFuture<'a, Result<(), NetworkError>>;
    /// Puts new rules of security groups in force for every task that has them. Connections that are
    /// established go on. Older versions than the ones in force are left out.
    fn guard(&self, groups: Vec<SecurityGroup>) -> BoxFuture<'_, ()>;
    /// After a start: takes over what belongs to these tasks and removes everything else that was
    /// this agent's. The tasks whose namespace or holder is gone.
    ///
    /// # Errors
    /// [`NetworkError`].
    fn restore<'a>(&'a self, alive: &'a [Survivor]) -> BoxFuture<'a, Result<Vec<TaskArn>, NetworkError>>;
    /// Waits for the end of a holder that was not asked for, and tells whose namespace it was.
    fn lost(&self) -> BoxFuture<'_, (TaskArn, EngineId)>;
    /// The address by which a task asks about itself; `None` for one that is not connected.
    fn endpoint_address(&self, task: &TaskArn) -> Option<Ipv4Addr>;
    /// What the host offers.
    fn offers(&self) -> Offers;
}
