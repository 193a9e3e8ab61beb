//! Which agents are connected, and what they last said of their hosts. In memory alone: after a
//! restart every agent connects again.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use berth_core::resources::Resources;
use berth_core::units::Timestamp;
use berth_proto::v1;
use tokio::sync::{Mutex as AsyncMutex, Notify, mpsc, watch};

use crate::clock;

/// What operators may ask of one agent before it has heard of it.
const ASKS: usize = 16;

/// The sessions of all agents. Cloning yields another handle on the same.
#[derive(Clone)]
pub struct Registry(Arc<Inner>);

struct Inner {
    sessions: Mutex<HashMap<String, Entry>>,
    /// Counts sessions that began or ended.
    changes: watch::Sender<u64>,
    /// The last number that a payload or manifest was given.
    sequence: AtomicU64,
    /// The last number that a session was given.
    session: AtomicU64,
}

struct Entry {
    session: u64,
    close: watch::Sender<Option<Closing>>,
    wake: Arc<Notify>,
    asks: mpsc::Sender<v1::AttachRequest>,
    heartbeat: Option<Heartbeat>,
    seen_at: Timestamp,
    connected_at: Timestamp,
}

/// Who waits on a host, and for what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    /// The task's ARN.
    pub task: String,
    /// The container by its name; `None` where the task waits as a whole.
    pub container: Option<String>,
    /// What for, in the agent's words.
    pub on: String,
}

/// What an agent said of its host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heartbeat {
    /// Granted to tasks that are not yet gone.
    pub in_use: Resources,
    /// What is left; ports are those not to be had.
    pub remaining: Resources,
    /// Whether the container engine answers.
    pub engine_healthy: bool,
    /// Tasks and containers that wait.
    pub waiting: Vec<Waiting>,
    /// When it was said.
    pub at: Timestamp,
}

/// Why the control plane ends a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Closing {
    pub(super) reason: String,
    pub(super) inactive: bool,
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Registry({} connected)", self.lock().len())
    }
}

impl Default for Registry {
    fn default() -> Self {
        Self::new()
    }
}

impl Registry {
    /// Nobody is connected.
    #[must_use]
    pub fn new() -> Self {
        Self(Arc::new(Inner {
            sessions: Mutex::default(),
            changes: watch::Sender::new(0),
            // Numbers are to rise across restarts too, and nothing sends thousands a second for long.
            sequence: AtomicU64::new(clock::now().0),
            session: AtomicU64::new(0),
        }))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Entry>> {
        self.0.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the agent of an instance is connected.
    #[must_use]
    pub fn is_connected(&self, instance_arn: &str) -> bool {
        self.lock().contains_key(instance_arn)
    }

    /// What the agent of a connected instance last said of its host.
    #[must_use]
    pub fn heartbeat(&self, instance_arn: &str) -> Option<Heartbeat> {
        self.lock().get(instance_arn)?.heartbeat.clone()
    }

    /// When the agent of a connected instance was last heard.
    #[must_use]
    pub fn last_seen(&self, instance_arn: &str) -> Option<Timestamp> {
        self.lock().get(instance_arn).map(|entry| entry.seen_at)
    }

    /// When the session of a connected instance began.
    #[must_use]
    pub fn connected_at(&self, instance_arn: &str) -> Option<Timestamp> {
        self.lock().get(instance_arn).map(|entry| entry.connected_at)
    }

    /// The ARNs of all connected instances.
    #[must_use]
    pub fn instances_connected(&self) -> BTreeSet<String> {
        self.lock().keys().cloned().collect()
    }

    /// Ends the session of an instance; `inactive` tells the agent not to come back under this
    /// identity. Whether there was a session.
    pub fn disconnect(&self, instance_arn: &str, reason: &str, inactive: bool) -> bool {
        let removed = self.lock().remove(instance_arn);
        let Some(entry) = removed else { return false };
        entry.close.send_replace(Some(Closing { reason: reason.to_owned(), inactive }));
        self.changed();
        true
    }

    /// Asks the agent of an instance for something in the name of an operator. Whether it is connected, and
    /// has not been asked for too much already.
    pub(super) fn ask(&self, instance_arn: &str, request: v1::AttachRequest) -> bool {
        self.lock().get(instance_arn).is_some_and(|entry| entry.asks.try_send(request).is_ok())
    }

    /// Changes whenever a session begins or ends.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.0.changes.subscribe()
    }

    fn changed(&self) {
        self.0.changes.send_modify(|count| *count += 1);
    }

    /// The next number of a payload or manifest; more than `above`.
    pub(super) fn next_sequence(&self, above: u64) -> u64 {
        let raise = |last: u64| Some(last.max(above).saturating_add(1));
        let before = self.0.sequence.fetch_update(Ordering::SeqCst, Ordering::SeqCst, raise);
        before.unwrap_or_default().max(above).saturating_add(1)
    }

    /// Takes in a session; an older one of the same instance is closed.
    pub(super) fn connect(&self, instance_arn: &str) -> Connection {
        let session = self.0.session.fetch_add(1, Ordering::SeqCst) + 1;
        let (close, closed) = watch::channel(None);
        let wake = Arc::new(Notify::new());
        let (asks, asked) = mpsc::channel(ASKS);
        let now = clock::now();
        let entry = Entry {
            session,
            close,
            wake: Arc::clone(&wake),
            asks,
            heartbeat: None,
            seen_at: now,
            connected_at: now,
        };
        let older = self.lock().insert(instance_arn.to_owned(), entry);
        if let Some(older) = older {
            let reason = "another session of the same instance began".to_owned();
            older.close.send_replace(Some(Closing { reason, inactive: false }));
        }
        self.changed();
        Connection {
            registry: self.clone(),
            instance: instance_arn.to_owned(),
            session,
            closed,
            wake,
            asked: AsyncMutex::new(asked),
        }
    }

    /// Wakes the session of an instance: something of its tasks or of itself changed.
    pub(super) fn wake(&self, instance_arn: &str) {
        if let Some(entry) = self.lock().get(instance_arn) {
            entry.wake.notify_one();
        }
    }

    /// Wakes every session.
    pub(super) fn wake_all(&self) {
        for entry in self.lock().values() {
            entry.wake.notify_one();
        }
    }
}

/// A session's place in the registry; leaving it when dropped.
pub(super) struct Connection {
    registry: Registry,
    instance: String,
    session: u64,
    closed: watch::Receiver<Option<Closing>>,
    wake: Arc<Notify>,
    asked: AsyncMutex<mpsc::Receiver<v1::AttachRequest>>,
}

impl Connection {
    /// Something was heard of the agent.
    pub(super) fn seen(&self, heartbeat: Option<Heartbeat>) {
        let mut sessions = self.registry.lock();
        if let Some(entry) = sessions.get_mut(&self.instance).filter(|entry| entry.session == self.session) {
            entry.seen_at = clock::now();
            if heartbeat.is_some() {
                entry.heartbeat = heartbeat;
            }
        }
    }

    /// Whether no newer session has taken its place.
    pub(super) fn is_current(&self) -> bool {
        self.closed.borrow().is_none()
    }

    /// Waits until the control plane wants the session to end.
    pub(super) async fn closed(&self) -> Closing {
        let mut closed = self.closed.clone();
        let gone = Closing { reason: "the session was removed".to_owned(), inactive: false };
        match closed.wait_for(Option::is_some).await {
            Ok(closing) => closing.clone().unwrap_or(gone),
            Err(_) => gone,
        }
    }

    /// Waits until an operator asks for something of the instance's agent.
    pub(super) async fn asked(&self) -> v1::AttachRequest {
        match self.asked.lock().await.recv().await {
            Some(request) => request,
            // A newer session has taken its place, which ends this one.
            None => std::future::pending().await,
        }
    }

    /// Waits until something may have changed for the instance.
    pub(super) async fn woken(&self) {
        self.wake.notified().await;
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let mut sessions = self.registry.lock();
        if sessions.get(&self.instance).is_some_and(|entry| entry.session == self.session) {
            sessions.remove(&self.instance);
            drop(sessions);
            self.registry.changed();
        }
    }
}
