//! The store: read, transactional compare-and-swap, watch. One trait, whoever keeps the bytes.
//!
//! Every record carries the revision of its last change. A writer reads, decides, and commits
//! under the condition that what it read is unchanged; on [`CommitError::Conflict`] it reads again.
//! What was committed is durable before the commit returns.

pub mod embedded;
pub mod history;
mod index;
pub mod memory;

use std::fmt;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};

use crate::model::{Cluster, Instance, Task, TaskDefinition};

pub use history::{History, Point};

/// How many commits a watcher may lag behind before it has to read a fresh view.
const WATCH_BACKLOG: usize = 4096;

/// Counts commits; every record remembers the one that changed it last.
pub type Revision = u64;

/// Names a record.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Key {
    /// A cluster, by name.
    Cluster(String),
    /// A task definition, by family and revision.
    TaskDefinition(String, u32),
    /// The last revision number that a family has given out.
    Family(String),
    /// A container instance, by cluster name and id.
    Instance(String, String),
    /// A task, by cluster name and id.
    Task(String, String),
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cluster(name) => write!(f, "cluster/{name}"),
            Self::TaskDefinition(family, revision) => {
                write!(f, "task-definition/{family}:{revision}")
            }
            Self::Family(family) => write!(f, "family/{family}"),
            Self::Instance(cluster, id) => write!(f, "container-instance/{cluster}/{id}"),
            Self::Task(cluster, id) => write!(f, "task/{cluster}/{id}"),
        }
    }
}

/// A record of any kind. Cloning is cheap.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", content = "record")]
pub enum Record {
    /// A cluster.
    Cluster(Arc<Cluster>),
    /// A task definition.
    TaskDefinition(Arc<TaskDefinition>),
    /// The last revision number of a family.
    Family(u32),
    /// A container instance.
    Instance(Arc<Instance>),
    /// A task.
    Task(Arc<Task>),
}

/// A record and the revision of its last change.
#[derive(Debug, Clone)]
pub struct Versioned<T> {
    /// The record.
    pub value: T,
    /// When it changed last.
    pub revision: Revision,
}

/// A change that is made wholly or not at all.
#[derive(Debug, Clone, Default)]
pub struct Txn {
    /// Conditions: the record's revision must be this, `None` for a record that must not exist.
    pub compares: Vec<(Key, Option<Revision>)>,
    /// Records to write.
    pub puts: Vec<(Key, Record)>,
    /// Records to delete.
    pub deletes: Vec<Key>,
}

/// Why a transaction was not made.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// A condition did not hold: read again and decide anew.
    #[error("{0} was changed by somebody else")]
    Conflict(Key),
    /// The store cannot write; nothing was changed.
    #[error("the store cannot write: {0}")]
    Unavailable(String),
}

/// An immutable view of everything as of one revision.
pub trait View: Send + Sync {
    /// The revision that the view shows.
    fn revision(&self) -> Revision;
    /// A cluster by name, inactive ones included.
    fn cluster(&self, name: &str) -> Option<Versioned<Arc<Cluster>>>;
    /// All clusters by name.
    fn clusters(&self) -> Vec<Arc<Cluster>>;
    /// A task definition.
    fn task_definition(&self, family: &str, revision: u32) -> Option<Versioned<Arc<TaskDefinition>>>;
    /// All revisions of one family in order, or of all families (by family, then revision).
    fn task_definitions(&self, family: Option<&str>) -> Vec<Arc<TaskDefinition>>;
    /// The last revision number that a family has given out, with the revision of that record.
    fn family(&self, family: &str) -> Option<Versioned<u32>>;
    /// An instance by cluster name and id.
    fn instance(&self, cluster: &str, id: &str) -> Option<Versioned<Arc<Instance>>>;
    /// The instances of one cluster or of all, inactive ones included.
    fn instances(&self, cluster: Option<&str>) -> Vec<Versioned<Arc<Instance>>>;
    /// A task by cluster name and id.
    fn task(&self, cluster: &str, id: &str) -> Option<Versioned<Arc<Task>>>;
    /// The tasks of one cluster or of all, stopped ones included.
    fn tasks(&self, cluster: Option<&str>) -> Vec<Versioned<Arc<Task>>>;
    /// The tasks placed on one instance, by its ARN, stopped ones included.
    fn tasks_on(&self, instance: &str) -> Vec<Versioned<Arc<Task>>>;
}

/// Where records are kept.
pub trait Store: Send + Sync + 'static {
    /// Everything as it is now.
    fn view(&self) -> Arc<dyn View>;
    /// The lives of these records.
    fn history(&self) -> &History;
    /// Makes a transaction; durable when it returns `Ok`.
    fn commit(&self, txn: Txn) -> BoxFuture<'_, Result<Revision, CommitError>>;
    /// Tells of every commit, in order. A receiver that lags is told so and reads a fresh view.
    fn watch(&self) -> tokio::sync::broadcast::Receiver<Arc<Commit>>;
    /// Deletes everything (development only).
    fn reset(&self) -> BoxFuture<'_, Result<Revision, CommitError>>;
}

/// What a commit changed.
#[derive(Debug, Clone)]
pub struct Commit {
    /// Its revision.
    pub revision: Revision,
    /// The keys that were written or deleted.
    pub keys: Vec<Key>,
}

#[cfg(test)]
mod tests;
