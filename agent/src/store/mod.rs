//! Crash-safe state: what the agent knows of its tasks, and what it has yet to tell.
//!
//! A commit is durable when it returns. Reports are numbered by the store in the order in which
//! they are committed, so that a report and the state that it tells of are one transaction.

mod damage;
mod format;
pub mod memory;
pub mod outbox;
pub mod redb;

use std::sync::Arc;

use berth_core::ids::TaskArn;
use berth_core::spec::TaskSpec;
use berth_core::task::{Report, TaskState};
use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};

pub use outbox::{Outbox, OutboxEntry};

/// What went wrong with the state.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// Another process has the file open.
    #[error(
        "{path} is in use by another agent; stop it first, or give this one a data directory of its own (ECS_DATADIR)"
    )]
    InUse {
        /// The file.
        path: String,
    },
    /// The file cannot be read or written.
    #[error("cannot {what} the agent's state in {path}: {detail}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// The file.
        path: String,
        /// What the system said.
        detail: String,
    },
    /// The file is not what was written.
    #[error("the agent's state in {path} is damaged: {detail}")]
    Damaged {
        /// The file.
        path: String,
        /// What is wrong with it.
        detail: String,
    },
    /// The file was written by an agent that came after this one.
    #[error(
        "the agent's state in {path} is of format {found}, and this version knows none above {known}: a newer version \
         wrote it. Nothing was changed, and tasks run on. Install that version again; or, to begin with what the \
         containers' labels tell, move the file away"
    )]
    Newer {
        /// The file.
        path: String,
        /// Its format.
        found: u32,
        /// The newest that is known here.
        known: u32,
    },
    /// A record cannot be understood.
    #[error("the agent's state in {path} has a record that cannot be read ({key}): {detail}")]
    Corrupt {
        /// The file.
        path: String,
        /// The record.
        key: String,
        /// What is wrong with it.
        detail: String,
    },
}

/// One change. A commit makes all of its changes or none.
#[derive(Debug, Clone)]
pub enum Write {
    /// A task that is new.
    NewTask {
        /// Its specification, with its ARN.
        spec: Arc<TaskSpec>,
        /// Its state.
        state: TaskState,
    },
    /// A task that changed.
    State {
        /// The task.
        task: TaskArn,
        /// Its state.
        state: TaskState,
    },
    /// A task of which nothing is left.
    Forget(TaskArn),
    /// Something to tell the control plane.
    Report {
        /// The task.
        task: TaskArn,
        /// What to tell.
        report: Box<Report>,
    },
    /// The control plane has every report up to this number. Not worth a sync of its own: a crash
    /// may lose it, and then they are told, and confirmed, once more.
    Told(u64),
    /// Who the agent is.
    Identity(Identity),
    /// The same, with what it has seen of the control plane's records. Not worth a sync of its own: it is
    /// durable with the tasks that are committed after it.
    Seen(Identity),
}

/// A moment in the history of a control plane's records.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordsPoint {
    /// The life of the records.
    pub life: String,
    /// Rises with every change of them.
    pub revision: u64,
}

/// Who the agent is, across restarts.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The host's own key.
    pub host_key: String,
    /// The cluster that it joined.
    pub cluster: String,
    /// The instance that it is.
    #[serde(default)]
    pub instance: Option<berth_core::ids::ContainerInstanceArn>,
    /// This life of the outbox.
    pub outbox_epoch: String,
    /// What the names follow from by which containers ask about themselves.
    #[serde(default)]
    pub endpoint_key: String,
    /// The newest manifest seen.
    #[serde(default)]
    pub manifest_sequence: u64,
    /// The newest of the control plane's records that it has seen; absent before the first, and from those that do
    /// not tell.
    #[serde(default)]
    pub last_seen: Option<RecordsPoint>,
    /// The kernel's name for the host's life in which the agent last ran; empty where it was not known.
    #[serde(default)]
    pub boot: String,
    /// Whether what was on the host when this state began has been taken up: from then on every task is known
    /// before it makes anything.
    #[serde(default)]
    pub settled: bool,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity")
            .field("cluster", &self.cluster)
            .field("instance", &self.instance)
            .field("manifest_sequence", &self.manifest_sequence)
            .finish_non_exhaustive()
    }
}

/// Everything that was persisted.
#[derive(Debug, Default)]
pub struct Saved {
    /// Who the agent is; absent on the first start.
    pub identity: Option<Identity>,
    /// Its tasks.
    pub tasks: Vec<(Arc<TaskSpec>, TaskState)>,
    /// Whether the host was started again since. Not persisted: whoever starts the agent finds out.
    pub rebooted: bool,
}

/// Where state is kept.
pub trait Store: Send + Sync + 'static {
    /// Everything that was persisted. Called once, at the start.
    fn load(&self) -> BoxFuture<'_, Result<Saved, StoreError>>;
    /// Makes all changes durable, or none; [`Write::Told`] and [`Write::Seen`] alone, soon.
    fn commit(&self, writes: Vec<Write>) -> BoxFuture<'_, Result<(), StoreError>>;
    /// What is yet to be told.
    fn outbox(&self) -> &Outbox;
}
