//! One conversation with one agent, from its Hello to the end of the stream.

mod reunion;
mod telling;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use berth_core::attachment::Rule;
use berth_proto::v1;
use berth_proto::v1::agent_message::Message as FromAgent;
use berth_proto::v1::control_plane_message::Message as ToAgent;
use futures_util::StreamExt;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};

use super::Shared;
use super::adopt::{Reunion, estrangement};
use super::apply::{Stale, apply, find};
use super::convert;
use super::credentials::Keeper;
use super::identity;
use super::protection;
use super::registry::{Closing, Connection};
use crate::arn;
use crate::clock;
use crate::controller::ChangeError;
use crate::model::{Instance, InstanceStatus, OutboxCursor};
use crate::store::{CommitError, Key, Record, Txn, Versioned, View};
use crate::tls::HostId;

/// How often an agent is heard when nothing happens, unless configured.
pub const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(10);
/// How many of them may be missing before the session counts as dead.
const MISSED_HEARTBEATS: u32 = 3;
/// How long an agent may take to read what it is sent.
const SEND_TIMEOUT: Duration = Duration::from_secs(10);
/// Most messages that are taken up together.
const TOGETHER: usize = 256;

/// What the response stream carries.
pub(super) type Outgoing = mpsc::Sender<Result<v1::ControlPlaneMessage, Status>>;

/// How a session ends.
enum End {
    /// The agent has gone, or does not read any more.
    Gone,
    /// The control plane ends it.
    Close(Closing),
    /// Something is wrong with what the agent says, or with the store.
    Refuse(Status),
}

impl From<Status> for End {
    fn from(status: Status) -> Self {
        Self::Refuse(status)
    }
}

/// Runs a session to its end, and tells the agent why it ended.
pub(super) async fn run(
    shared: Arc<Shared>,
    host: Option<HostId>,
    incoming: Streaming<v1::AgentMessage>,
    outgoing: Outgoing,
    stop: CancellationToken,
) {
    let end = tokio::select! {
        end = converse(&shared, host, incoming, &outgoing) => end,
        () = stop.cancelled() => {
            End::Close(Closing { reason: "the control plane is shutting down".to_owned(), inactive: false })
        }
    };
    let last = match end {
        End::Gone => return,
        End::Close(Closing { reason, inactive }) => {
            Ok(message(ToAgent::Close(v1::Close { reason, instance_inactive: inactive })))
        }
        End::Refuse(status) => Err(status),
    };
    // An agent that does not read its last message learns from the end of the stream.
    let _ = outgoing.send_timeout(last, SEND_TIMEOUT).await;
}

fn message(message: ToAgent) -> v1::ControlPlaneMessage {
    v1::ControlPlaneMessage { message: Some(message) }
}

async fn converse(
    shared: &Shared,
    host: Option<HostId>,
    mut incoming: Streaming<v1::AgentMessage>,
    outgoing: &Outgoing,
) -> End {
    let patience = shared.heartbeat_interval * MISSED_HEARTBEATS;
    let hello = match timeout(patience, incoming.message()).await {
        Ok(Ok(Some(v1::AgentMessage { message: Some(FromAgent::Hello(hello)) }))) => hello,
        Ok(Ok(Some(_))) => return End::Refuse(Status::invalid_argument("the first message is to be Hello")),
        Ok(Ok(None) | Err(_)) => return End::Gone,
        Err(_) => return End::Refuse(Status::deadline_exceeded("no Hello came")),
    };
    match Session::open(shared, host.as_ref(), outgoing, hello).await {
        Ok(mut session) => match session.run(incoming, patience).await {
            Err(end) => end,
            Ok(()) => End::Gone,
        },
        Err(end) => end,
    }
}

struct Session<'a> {
    shared: &'a Shared,
    outgoing: &'a Outgoing,
    connection: Connection,
    arn: String,
    cluster: String,
    id: String,
    epoch: String,
    /// The tasks that the agent was sent in this session, and whether their stop was among it.
    sent: HashMap<String, bool>,
    /// The rules of security groups as the agent has them.
    guarded: HashMap<String, Vec<Rule>>,
    draining: bool,
    /// The number of the manifest that it began with.
    manifest: u64,
    /// What is open with a host that knew other records than these.
    reunion: Option<Reunion>,
}

impl<'a> Session<'a> {
    async fn open(
        shared: &'a Shared,
        host: Option<&HostId>,
        outgoing: &'a Outgoing,
        hello: v1::Hello,
    ) -> Result<Self, End> {
        let arn = hello.container_instance_arn.clone();
        let (cluster, id) = arn::scoped_of(&arn).unwrap_or_default();
        let (cluster, id) = (cluster.to_owned(), id.to_owned());
        let found = shared.store.view().instance(&cluster, &id).filter(|instance| instance.value.arn == arn);
        let Some(found) = found else {
            return Err(Status::not_found(format!("there is no container instance {arn}")).into());
        };
        if found.value.host_key.is_empty() || found.value.host_key != hello.host_key {
            return Err(Status::permission_denied(format!("{arn} belongs to another host")).into());
        }
        if let Some(host) = host.filter(|host| !identity::is_of(&found.value, host)) {
            return Err(Status::permission_denied(identity::refusal(&found.value, host)).into());
        }
        if hello.outbox_epoch.is_empty() {
            return Err(Status::invalid_argument("outbox_epoch: is empty").into());
        }
        if found.value.status == InstanceStatus::Inactive {
            return Err(inactive());
        }
        let (now, history) = (shared.store.view().revision(), shared.store.history());
        let reunion = estrangement(history, now, &found.value, &hello).map(Reunion::begin);
        let connection = shared.registry.connect(&arn);
        tracing::info!(instance = arn, "an agent connected");
        let mut session = Self {
            shared,
            outgoing,
            connection,
            arn,
            cluster,
            id,
            epoch: hello.outbox_epoch,
            sent: HashMap::new(),
            guarded: HashMap::new(),
            draining: false,
            manifest: 0,
            reunion,
        };
        session.settle_in().await?;
        session.greet(hello.last_manifest_sequence).await?;
        Ok(session)
    }

    fn instance(&self, view: &dyn View) -> Result<Versioned<Arc<Instance>>, End> {
        let gone =
            || Status::not_found(format!("there is no container instance {} any more", self.arn)).into();
        view.instance(&self.cluster, &self.id).ok_or_else(gone)
    }

    /// Takes note of the agent's outbox, and of whether its host is estranged. A new life of the outbox is
    /// numbered from the beginning, and shuts out an older session of the same instance.
    async fn settle_in(&self) -> Result<(), End> {
        loop {
            let found = self.instance(&*self.shared.store.view())?;
            let mut instance = Instance::clone(&found.value);
            instance.estranged = self.reunion.is_some();
            if instance.outbox.epoch != self.epoch {
                instance.outbox = OutboxCursor { epoch: self.epoch.clone(), sequence: 0 };
            }
            if instance == *found.value {
                return Ok(());
            }
            let key = Key::Instance(self.cluster.clone(), self.id.clone());
            let txn = Txn {
                compares: vec![(key.clone(), Some(found.revision))],
                puts: vec![(key, Record::Instance(Arc::new(instance)))],
                deletes: Vec::new(),
            };
            if self.commit(txn).await? {
                return Ok(());
            }
        }
    }

    /// Whether the transaction was made; `false` when what it rests on has changed.
    async fn commit(&self, txn: Txn) -> Result<bool, End> {
        if !self.connection.is_current() {
            return Err(End::Close(self.connection.closed().await));
        }
        match self.shared.store.commit(txn).await {
            Ok(_) => Ok(true),
            Err(CommitError::Conflict(_)) => Ok(false),
            Err(CommitError::Unavailable(why)) => Err(Status::unavailable(why).into()),
        }
    }

    async fn send(&self, what: ToAgent) -> Result<(), End> {
        self.outgoing.send_timeout(Ok(message(what)), SEND_TIMEOUT).await.map_err(|_| End::Gone)
    }

    async fn run(&mut self, incoming: Streaming<v1::AgentMessage>, patience: Duration) -> Result<(), End> {
        let mut incoming = incoming.ready_chunks(TOGETHER);
        let mut dead = Instant::now() + patience;
        let mut keeper = Keeper::new(self.shared.credentials.clone());
        keeper.sync(self.live(&*self.shared.store.view()).iter().map(|task| &**task));
        loop {
            tokio::select! {
                closing = self.connection.closed() => return Err(End::Close(closing)),
                chunk = incoming.next() => {
                    let Some(chunk) = chunk else { return Ok(()) };
                    dead = Instant::now() + patience;
                    self.take(chunk).await?;
                }
                () = self.connection.woken() => self.sync(&mut keeper).await?,
                request = self.connection.asked() => self.send(ToAgent::AttachRequest(request)).await?,
                credentials = keeper.next() => self.send(ToAgent::RoleCredentials(credentials)).await?,
                () = sleep_until(dead) => {
                    let reason = format!("nothing was heard of the agent for {patience:?}");
                    return Err(End::Close(Closing { reason, inactive: false }));
                }
            }
        }
    }

    async fn take(&mut self, chunk: Vec<Result<v1::AgentMessage, Status>>) -> Result<(), End> {
        let mut changes = Vec::new();
        let mut ended = false;
        self.connection.seen(None);
        for received in chunk {
            // One error, and then nothing for ever: the stream is over either way.
            let Ok(received) = received else {
                ended = true;
                break;
            };
            match received.message {
                Some(FromAgent::TaskStateChange(change)) => changes.push(change),
                Some(FromAgent::Heartbeat(heartbeat)) => {
                    match convert::heartbeat(&heartbeat, clock::now()) {
                        Ok(heard) => self.connection.seen(Some(heard)),
                        Err(problem) => {
                            return Err(Status::invalid_argument(format!("heartbeat: {problem}")).into());
                        }
                    }
                    self.send(ToAgent::HeartbeatAck(v1::HeartbeatAck { sequence: heartbeat.sequence }))
                        .await?;
                }
                Some(FromAgent::StopVerification(question)) => {
                    self.apply(std::mem::take(&mut changes)).await?;
                    self.verify(question).await?;
                }
                Some(FromAgent::TaskProtectionRequest(request)) => {
                    let reply = protection::answer(self.shared, &self.arn, request).await;
                    self.send(ToAgent::TaskProtectionReply(reply)).await?;
                }
                Some(FromAgent::HostNotice(notice)) => self.host_notice(notice).await?,
                Some(FromAgent::TaskAccount(account)) => {
                    self.apply(std::mem::take(&mut changes)).await?;
                    self.hear(account).await?;
                }
                Some(FromAgent::PayloadAck(ack)) => {
                    tracing::trace!(instance = self.arn, ack.sequence, "payload acknowledged");
                }
                Some(FromAgent::ManifestAck(ack)) => {
                    tracing::trace!(instance = self.arn, ack.sequence, "manifest noted");
                    if let Some(reunion) = self.reunion.as_mut().filter(|_| ack.sequence == self.manifest) {
                        reunion.noted = true;
                        self.reunite().await?;
                    }
                }
                Some(FromAgent::Hello(_)) => return Err(Status::invalid_argument("a second Hello").into()),
                // A message of a later version.
                None => {}
            }
        }
        self.apply(changes).await?;
        if ended { Err(End::Gone) } else { Ok(()) }
    }

    /// Applies state changes in one transaction and acknowledges them once it is durable.
    async fn apply(&mut self, changes: Vec<v1::TaskStateChange>) -> Result<(), End> {
        if changes.is_empty() {
            return Ok(());
        }
        loop {
            let view = self.shared.store.view();
            let instance = self.instance(&*view)?;
            if let Some(reunion) = &mut self.reunion {
                let strange = |task: &str| find(&*view, &instance.value, task).is_none();
                changes.iter().filter(|change| strange(&change.task_arn)).for_each(|c| reunion.keep(c));
            }
            let applied = match apply(&*view, &instance, &self.epoch, &changes, clock::now()) {
                Ok(applied) => applied,
                Err(Stale) => {
                    let reason = "another life of the agent's outbox began".to_owned();
                    return Err(End::Close(Closing { reason, inactive: false }));
                }
            };
            let durable = match applied.txn {
                Some(txn) => self.commit(txn).await?,
                None => true,
            };
            if durable {
                let at = self.point(&*self.shared.store.view());
                let ack = v1::StateChangeAck { sequence: applied.ack, at };
                return self.send(ToAgent::StateChangeAck(ack)).await;
            }
        }
    }

    /// The host goes, or stays after all.
    async fn host_notice(&self, notice: v1::HostNotice) -> Result<(), End> {
        if notice.going {
            tracing::warn!(instance = self.arn, reason = notice.reason, "the host is about to go: drained");
        }
        match self.shared.controller.host_goes(&self.cluster, &self.id, notice.going).await {
            // One that was deregistered is told so by another way.
            Ok(_) | Err(ChangeError::NotFound(_) | ChangeError::Inactive | ChangeError::TasksRunning) => {
                Ok(())
            }
            Err(ChangeError::Unavailable(why)) => Err(Status::unavailable(why).into()),
        }
    }
}

impl Drop for Session<'_> {
    fn drop(&mut self) {
        tracing::info!(instance = self.arn, "a session ended");
    }
}

fn inactive() -> End {
    End::Close(Closing { reason: "the container instance was deregistered".to_owned(), inactive: true })
}
