//! What operators ask of agents: a request goes out over the agent's session, and the agent answers with a
//! stream of its own. Whoever asks waits here for that stream.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use berth_proto::v1;
use berth_proto::v1::attach_request::What;
use tokio::sync::{mpsc, oneshot};
use tonic::{Status, Streaming};

use super::registry::Registry;

/// How long an agent may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// The agent's stream, as the control plane has it.
pub struct AgentSide {
    /// What the agent says.
    pub incoming: Streaming<v1::Frame>,
    /// What it is told.
    pub outgoing: mpsc::Sender<Result<v1::Frame, Status>>,
}

/// Why an agent does not answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unreachable {
    /// It is not connected, or is asked for too much.
    #[error("the agent of the task's container instance is not connected")]
    NotConnected,
    /// It said nothing.
    #[error("the agent of the task's container instance does not answer")]
    Silent,
}

type Waiting = HashMap<String, oneshot::Sender<AgentSide>>;

/// The streams that are waited for. Cloning yields another handle on the same.
#[derive(Clone)]
pub struct Streams {
    registry: Registry,
    waiting: Arc<Mutex<Waiting>>,
}

impl fmt::Debug for Streams {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Streams({} waited for)", self.lock().len())
    }
}

impl Streams {
    /// Of the agents that are connected there.
    #[must_use]
    pub fn new(registry: Registry) -> Self {
        Self { registry, waiting: Arc::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the agent of an instance is there to be asked.
    #[must_use]
    pub fn reaches(&self, instance_arn: &str) -> bool {
        self.registry.is_connected(instance_arn)
    }

    /// Asks the agent of an instance, and waits for its stream.
    ///
    /// # Errors
    /// [`Unreachable`].
    pub async fn open(
        &self,
        instance_arn: &str,
        (task_arn, container): (String, String),
        what: What,
        who: String,
    ) -> Result<AgentSide, Unreachable> {
        let id = uuid::Uuid::new_v4().to_string();
        let (answer, answered) = oneshot::channel();
        self.lock().insert(id.clone(), answer);
        // Whoever asks may go away: nobody is waited for then.
        let _entry = Entry { streams: self, id: &id };
        let request = v1::AttachRequest { attach_id: id.clone(), task_arn, container, what: Some(what), who };
        if !self.registry.ask(instance_arn, request) {
            return Err(Unreachable::NotConnected);
        }
        match tokio::time::timeout(PATIENCE, answered).await {
            Ok(Ok(side)) => Ok(side),
            _ => Err(Unreachable::Silent),
        }
    }

    /// Hands an agent's stream to whoever waits for it.
    ///
    /// # Errors
    /// `NOT_FOUND` when nobody does.
    pub(super) fn arrive(&self, id: &str, side: AgentSide) -> Result<(), Status> {
        let nobody = || Status::not_found("nobody waits for this stream");
        let waiting = self.lock().remove(id).ok_or_else(nobody)?;
        waiting.send(side).map_err(|_| nobody())
    }
}

struct Entry<'a> {
    streams: &'a Streams,
    id: &'a str,
}

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        self.streams.lock().remove(self.id);
    }
}
