//! Simulated agents, for development: they attach to registered instances over the real session
//! and run tasks instantly.

mod dial;
mod host;
mod session;

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio_util::sync::CancellationToken;

pub use dial::Dial;
use host::Host;

use crate::arn;
use crate::model::{Instance, InstanceStatus};
use crate::store::{CommitError, Key, Record, Store, Txn};
use crate::supervise::Tracker;

/// The handle on all simulated agents. Cloning yields another handle on the same.
#[derive(Clone)]
pub struct Simulated(Arc<Inner>);

struct Inner {
    store: Arc<dyn Store>,
    dial: Dial,
    tracker: Tracker,
    hosts: Mutex<HashMap<String, Entry>>,
}

/// One simulated host. What it runs outlives its sessions.
#[derive(Clone)]
struct Entry {
    host: Arc<Mutex<Host>>,
    session: CancellationToken,
}

/// Why an agent could not be simulated.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SimulatedError {
    /// There is no such instance.
    #[error("there is no container instance {0}")]
    NotFound(String),
    /// The session did not come about.
    #[error("the simulated agent of {instance} could not connect: {why}")]
    NotConnected {
        /// The instance.
        instance: String,
        /// What was answered.
        why: String,
    },
}

impl fmt::Debug for Simulated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Simulated({} hosts)", self.lock().len())
    }
}

impl Simulated {
    /// Agents that will dial the listener of this control plane.
    #[must_use]
    pub fn new(store: Arc<dyn Store>, dial: Dial, tracker: &Tracker) -> Self {
        Self(Arc::new(Inner { store, dial, tracker: tracker.clone(), hosts: Mutex::default() }))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Entry>> {
        self.0.hosts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Attaches a simulated agent to a registered instance, and returns when it is connected.
    /// Attaching again replaces the session.
    ///
    /// # Errors
    /// [`SimulatedError`] when there is no such instance, or no session comes about.
    pub async fn attach(&self, cluster: &str, instance_arn: &str) -> Result<(), SimulatedError> {
        let instance = self.claim(cluster, instance_arn).await?;
        let session = self.0.tracker.token().child_token();
        let host = {
            let mut hosts = self.lock();
            let entry = hosts.entry(instance_arn.to_owned()).or_insert_with(|| Entry {
                host: Arc::new(Mutex::new(Host::new(&instance))),
                session: session.clone(),
            });
            entry.session = session.clone();
            Arc::clone(&entry.host)
        };
        let refused = |why: String| SimulatedError::NotConnected { instance: instance_arn.to_owned(), why };
        let opened = session::open(&self.0.dial, host).await.map_err(refused)?;
        self.0.tracker.spawn("simulated-agent", async move {
            tokio::select! {
                () = session.cancelled() => {}
                () = opened.run() => {}
            }
        });
        Ok(())
    }

    /// Ends the session of a simulated agent; what it runs is remembered. Whether there was one.
    pub async fn detach(&self, instance_arn: &str) -> bool {
        let entry = self.lock().get(instance_arn).cloned();
        match entry {
            Some(entry) if !entry.session.is_cancelled() => {
                entry.session.cancel();
                true
            }
            _ => false,
        }
    }

    /// The instance, with a host key: one that came through the JSON API has none yet.
    async fn claim(&self, cluster: &str, instance_arn: &str) -> Result<Arc<Instance>, SimulatedError> {
        let missing = || SimulatedError::NotFound(instance_arn.to_owned());
        let id = arn::id_of(instance_arn);
        loop {
            let found = self.0.store.view().instance(cluster, id).ok_or_else(missing)?;
            if found.value.arn != instance_arn || found.value.status == InstanceStatus::Inactive {
                return Err(missing());
            }
            if !found.value.host_key.is_empty() {
                return Ok(found.value);
            }
            let mut instance = Instance::clone(&found.value);
            instance.host_key = format!("simulated-{}", arn::new_id());
            let instance = Arc::new(instance);
            let key = Key::Instance(cluster.to_owned(), id.to_owned());
            let txn = Txn {
                compares: vec![(key.clone(), Some(found.revision))],
                puts: vec![(key, Record::Instance(Arc::clone(&instance)))],
                deletes: Vec::new(),
            };
            match self.0.store.commit(txn).await {
                Ok(_) => return Ok(instance),
                Err(CommitError::Conflict(_)) => {}
                Err(CommitError::Unavailable(why)) => {
                    return Err(SimulatedError::NotConnected { instance: instance_arn.to_owned(), why });
                }
            }
        }
    }
}
