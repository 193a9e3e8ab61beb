//! Holders: containers of the agent's own that do nothing but hold namespaces open. They
//! belong to no task definition, and are never listed among the containers of tasks.

use std::time::Duration;

use berth_core::ids::EngineId;
use futures_util::future::BoxFuture;

use super::RuntimeError;

/// A holder as the engine knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// The engine's id.
    pub id: EngineId,
    /// Its name.
    pub name: String,
    /// Whether its process runs.
    pub running: bool,
}

/// What is asked of the engine about holders.
pub trait Holders: Send + Sync + 'static {
    /// Makes sure that the engine has an image, from an archive as `docker save` writes it.
    fn have_image<'a>(
        &'a self,
        reference: &'a str,
        archive: &'a (dyn Fn() -> Vec<u8> + Send + Sync),
    ) -> BoxFuture<'a, Result<(), RuntimeError>>;
    /// Makes and starts a holder without a network of the engine's, whose IPC others may join where that is
    /// wanted. One of that name which runs already is it.
    fn hold<'a>(
        &'a self,
        name: &'a str,
        image: &'a str,
        hostname: &'a str,
        shares_ipc: bool,
    ) -> BoxFuture<'a, Result<EngineId, RuntimeError>>;
    /// Gives a holder another name.
    fn rename<'a>(&'a self, id: &'a EngineId, name: &'a str) -> BoxFuture<'a, Result<(), RuntimeError>>;
    /// The process of a container that runs.
    fn pid<'a>(&'a self, id: &'a EngineId) -> BoxFuture<'a, Result<Option<u32>, RuntimeError>>;
    /// All holders of this agent.
    fn holders(&self) -> BoxFuture<'_, Result<Vec<Holder>, RuntimeError>>;
    /// Waits until for so long nothing was asked of the engine: a time for what can wait.
    fn quiet(&self, pause: Duration) -> BoxFuture<'_, ()>;
    /// Ends and removes a holder; one that is not there is removed already.
    fn release<'a>(&'a self, id: &'a EngineId) -> BoxFuture<'a, Result<(), RuntimeError>>;
}
