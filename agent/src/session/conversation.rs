//! One conversation: payloads in, the outbox and heartbeats out, in one loop that owns the stream.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::time::Duration;

use berth_core::ids::{ContainerInstanceArn, TaskArn};
use berth_core::task::{StopCause, StopCode, TaskStatus};
use berth_core::units::Timestamp;
use berth_proto::v1;
use berth_proto::v1::agent_message::Message as Out;
use berth_proto::v1::control_plane_client::ControlPlaneClient;
use berth_proto::v1::control_plane_message::Message as In;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};
use tokio_stream::wrappers::ReceiverStream;

use super::Line;
use super::account::{account, last_seen, newer, records_point};
use super::admit::{self, Admitted};
use super::attachment::security_group;
use super::convert;
use super::{Failed, Session, SessionStatus, answered, called};
use crate::credentials::RoleCredentials;
use crate::random;
use crate::store::Write;

/// State changes that may be on their way without an acknowledgement.
const WINDOW: u64 = 32;
/// Messages that may wait for the stream: the window, and a few of every other kind.
const QUEUE: usize = 64;
const HEARTBEAT: Duration = Duration::from_secs(10);
/// Changes of what is in use are told at most this often.
const HEARTBEAT_PAUSE: Duration = Duration::from_millis(200);
/// Longest silence of the control plane, which answers every heartbeat.
const SILENCE: Duration = Duration::from_secs(35);
/// Longest time that taking in a payload may last: state that cannot be written ends the
/// conversation, and the control plane sends the payload again.
const ACCEPT: Duration = Duration::from_secs(20);

struct Conversation<'a> {
    session: &'a Session,
    client: ControlPlaneClient<Line>,
    out: mpsc::Sender<v1::AgentMessage>,
    sent: u64,
    told: watch::Sender<u64>,
    heartbeats: u64,
    /// The last question about tasks that are missing from a manifest, and which these are.
    asked: Option<(String, BTreeSet<String>)>,
}

/// Converses until something fails.
pub(super) async fn converse(
    session: &Session,
    client: &mut ControlPlaneClient<Line>,
    instance: &ContainerInstanceArn,
) -> Result<Infallible, Failed> {
    let (out, outbound) = mpsc::channel(QUEUE);
    let identity = session.identity.lock().await.clone();
    let hello = v1::Hello {
        container_instance_arn: instance.to_string(),
        last_seen: last_seen(&identity, &session.engine),
        host_key: identity.host_key,
        outbox_epoch: identity.outbox_epoch,
        last_manifest_sequence: identity.manifest_sequence,
    };
    let mut conversation = Conversation {
        session,
        client: client.clone(),
        out,
        sent: 0,
        told: watch::Sender::new(0),
        heartbeats: 0,
        asked: None,
    };
    conversation.say(Out::Hello(hello)).await?;
    let mut departure = session.engine.departure();
    let notice = convert::host_notice(departure.borrow_and_update().as_ref());
    conversation.say(Out::HostNotice(notice)).await?;
    let call = client.session(ReceiverStream::new(outbound));
    let reply = answered("session", call).await?.map_err(|s| called("session", s))?;
    let mut inbound = reply.into_inner();

    // What holds is told anew with every session.
    session.draining.send_replace(false);
    session.status.send_replace(SessionStatus::Connected);
    tracing::info!(container_instance = %instance, "connected to the control plane");

    let _carried = session.inquiries.carried();
    let confirmations = confirm(session, conversation.told.subscribe());
    tokio::pin!(confirmations);
    let mut newest = session.store.outbox().newest();
    let mut usage = session.engine.usage();
    let mut healthy = session.engine.healthy();
    let mut beat = interval(HEARTBEAT);
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut silence = Instant::now() + SILENCE;
    let mut beat_not_before = Instant::now();
    let mut changed = false;

    conversation.send_outbox().await?;
    loop {
        tokio::select! {
            biased;
            // Dropping `message` between messages loses nothing: what was read stays in the stream.
            message = inbound.message() => {
                silence = Instant::now() + SILENCE;
                match message.map_err(|s| called("session", s))? {
                    Some(v1::ControlPlaneMessage { message: Some(message) }) => conversation.take(message).await?,
                    Some(_) => tracing::warn!("a message of the control plane that this version does not know"),
                    None => return Err(Failed::Protocol("the control plane ended the session".to_owned())),
                }
                conversation.send_outbox().await?;
            }
            // The value of a watch stays until it is marked as seen.
            Ok(()) = newest.changed() => {
                newest.mark_unchanged();
                conversation.send_outbox().await?;
            }
            failed = &mut confirmations => return Err(failed),
            // `next` marks a question as taken when it returns it.
            (id, question) = session.inquiries.next() => {
                conversation.say(Out::TaskProtectionRequest(convert::question(id, &question))).await?;
            }
            Ok(()) = departure.changed() => {
                let notice = convert::host_notice(departure.borrow_and_update().as_ref());
                conversation.say(Out::HostNotice(notice)).await?;
            }
            Ok(()) = usage.changed() => changed = true,
            Ok(()) = healthy.changed() => changed = true,
            // Timers are re-armed from state, not from the future that is dropped.
            () = sleep_until(beat_not_before), if changed => {
                changed = false;
                beat_not_before = Instant::now() + HEARTBEAT_PAUSE;
                conversation.heartbeat().await?;
            }
            _ = beat.tick() => {
                conversation.heartbeat().await?;
                session.renew_if_due(client).await?;
            }
            () = sleep_until(silence) => {
                return Err(Failed::Protocol(format!("the control plane has been silent for {} s", SILENCE.as_secs())));
            }
        }
    }
}

/// Makes acknowledgements durable beside the conversation, several at a time when they come fast.
async fn confirm(session: &Session, mut told: watch::Receiver<u64>) -> Failed {
    loop {
        if told.changed().await.is_err() {
            return Failed::Protocol("the session has ended".to_owned());
        }
        let up_to = *told.borrow_and_update();
        let stopped = session.store.outbox().stopped_up_to(up_to);
        session.engine.acknowledged(&stopped).await;
        if let Err(error) = session.store.commit(vec![Write::Told(up_to)]).await {
            return error.into();
        }
    }
}

/// The credentials of a message, or why there are none.
fn role_credentials(message: v1::RoleCredentials) -> Result<RoleCredentials, String> {
    if !message.problem.is_empty() {
        return Err(message.problem);
    }
    Ok(RoleCredentials {
        role_arn: message.role_arn,
        access_key_id: message.access_key_id,
        secret_access_key: message.secret_access_key,
        session_token: message.session_token,
        expires_at: Timestamp(message.expires_at_ms),
    })
}

impl Conversation<'_> {
    async fn say(&self, message: Out) -> Result<(), Failed> {
        let ended = |_| Failed::Protocol("the session has ended".to_owned());
        self.out.send(v1::AgentMessage { message: Some(message) }).await.map_err(ended)
    }

    async fn heartbeat(&mut self) -> Result<(), Failed> {
        self.heartbeats += 1;
        let usage = self.session.engine.usage().borrow().clone();
        let healthy = *self.session.engine.healthy().borrow();
        let waits = self.session.engine.waits_of_containers();
        self.say(Out::Heartbeat(convert::heartbeat(self.heartbeats, &usage, healthy, waits))).await
    }

    /// Sends what the window has room for, in order.
    async fn send_outbox(&mut self) -> Result<(), Failed> {
        let acknowledged = *self.told.borrow();
        self.sent = self.sent.max(acknowledged);
        let room = (acknowledged + WINDOW).saturating_sub(self.sent);
        let entries = self.session.store.outbox().after(self.sent, usize::try_from(room).unwrap_or(0));
        for entry in entries {
            self.sent = entry.sequence;
            self.say(Out::TaskStateChange(convert::state_change(&entry))).await?;
        }
        Ok(())
    }

    async fn take(&mut self, message: In) -> Result<(), Failed> {
        match message {
            In::Payload(payload) => self.take_payload(payload).await,
            In::Manifest(manifest) => self.take_manifest(manifest).await,
            In::StopVerificationAck(ack) => {
                let reason = "The task is not in the manifest of its container instance";
                // Nothing is stopped on an answer to what was not asked.
                let asked = self.asked.take_if(|(id, _)| *id == ack.message_id);
                let asked = asked.map(|(_, tasks)| tasks).unwrap_or_default();
                let tasks = ack.task_arns.iter().filter(|arn| asked.contains(*arn));
                for task in tasks.filter_map(|arn| TaskArn::new(arn).ok()) {
                    self.session
                        .engine
                        .stop(&task, StopCause::new(StopCode::ServiceSchedulerInitiated, reason))
                        .await;
                }
                Ok(())
            }
            In::StateChangeAck(ack) => {
                // It may have heard more than was told in this session: from one before it, or from a life whose
                // last acknowledgements never became durable. More than there is it has not.
                let newest = self.sent.max(*self.session.store.outbox().newest().borrow());
                self.told.send_if_modified(|told| {
                    let newer = ack.sequence > *told && ack.sequence <= newest;
                    *told = if newer { ack.sequence } else { *told };
                    newer
                });
                self.note(ack.at).await;
                Ok(())
            }
            In::Drain(drain) => {
                let text =
                    if drain.draining { "is drained: it takes no new tasks" } else { "takes tasks again" };
                tracing::info!("this container instance {text}");
                self.session.draining.send_replace(drain.draining);
                Ok(())
            }
            In::SecurityGroups(groups) => {
                let checked = groups.groups.into_iter().map(security_group);
                let groups = checked
                    .filter_map(|group| {
                        group.map_err(|error| tracing::error!(%error, "a security group was left out")).ok()
                    })
                    .collect();
                self.session.engine.guard(groups).await;
                Ok(())
            }
            In::RoleCredentials(message) => {
                match TaskArn::new(&message.task_arn) {
                    Ok(task) => self.session.engine.take_credentials(task, role_credentials(message)),
                    Err(error) => tracing::error!(%error, "credentials of nobody"),
                }
                Ok(())
            }
            In::AttachRequest(request) => {
                self.session.attaching.begin(self.client.clone(), request);
                Ok(())
            }
            In::TaskProtectionReply(reply) => {
                self.session.inquiries.answer(reply.request_id, convert::answer(reply.outcome));
                Ok(())
            }
            In::TaskInquiry(inquiry) => {
                tracing::warn!(
                    tasks = inquiry.task_arns.len(),
                    "the control plane's records and the agent's own do not go together: it is told what runs here, \
                     and that runs on"
                );
                for task in BTreeSet::from_iter(inquiry.task_arns) {
                    self.say(Out::TaskAccount(account(&self.session.engine, task))).await?;
                }
                Ok(())
            }
            In::HeartbeatAck(_) => Ok(()),
            In::Close(close) if close.instance_inactive => Err(Failed::Deregistered(close.reason)),
            In::Close(close) => {
                Err(Failed::Protocol(format!("the control plane closed the session: {}", close.reason)))
            }
        }
    }

    /// Keeps how far the records are seen that hold what was told. Without it, records that are put back to before
    /// that look as those that are known.
    async fn note(&self, at: Option<v1::RecordsPoint>) {
        let identity = self.session.identity.lock().await.clone();
        let Some(seen) = newer(&identity, at) else { return };
        if let Err(error) = self.session.keep_seen(seen).await {
            tracing::debug!(%error, "how far the control plane's records are seen is not kept");
        }
    }

    async fn take_payload(&self, payload: v1::Payload) -> Result<(), Failed> {
        let identity = self.session.identity.lock().await.clone();
        let seen = newer(&identity, payload.at).filter(|_| !payload.tasks.is_empty());
        let mut assignments = Vec::with_capacity(payload.tasks.len());
        for message in payload.tasks {
            match admit::assignment(message) {
                Admitted::Assignment(assignment) => assignments.push(assignment),
                Admitted::Refused(task, reason) => self.session.engine.refuse(task, reason).await?,
                Admitted::Unreadable(reason) => {
                    tracing::error!(reason, "the control plane sent something that names no task");
                }
            }
        }
        // It goes to the store first: who has the tasks has seen the records that they are in.
        let seen = async {
            match seen {
                Some(identity) => self.session.keep_seen(identity).await,
                None => Ok(()),
            }
        };
        let accept = async { tokio::try_join!(biased; seen, self.session.engine.accept(assignments)) };
        let late =
            |_| Failed::Protocol(format!("a payload could not be persisted within {} s", ACCEPT.as_secs()));
        tokio::time::timeout(ACCEPT, accept).await.map_err(late)??;
        self.say(Out::PayloadAck(v1::PayloadAck { sequence: payload.sequence })).await
    }

    /// Tasks that run here and are not in the manifest are asked about before anything is done.
    async fn take_manifest(&mut self, manifest: v1::Manifest) -> Result<(), Failed> {
        let mut identity = self.session.identity.lock().await.clone();
        if manifest.sequence <= identity.manifest_sequence {
            return Ok(());
        }
        identity.manifest_sequence = manifest.sequence;
        identity.last_seen = manifest.at.map(records_point).or(identity.last_seen);
        self.session.keep(identity).await?;
        let listed: BTreeSet<&str> = manifest.tasks.iter().map(|entry| entry.task_arn.as_str()).collect();
        let missing: Vec<String> = self
            .session
            .engine
            .tasks()
            .iter()
            .filter(|task| task.state().status != TaskStatus::Stopped && !task.is_stopping())
            .map(|task| task.spec().arn.to_string())
            .filter(|arn| !listed.contains(arn.as_str()))
            .collect();
        if !missing.is_empty() {
            tracing::warn!(
                tasks = missing.len(),
                "tasks that run here are missing from the manifest; asking"
            );
            let question = v1::StopVerification {
                message_id: random::name().to_string(),
                manifest_sequence: manifest.sequence,
                task_arns: missing,
            };
            self.asked = Some((question.message_id.clone(), question.task_arns.iter().cloned().collect()));
            self.say(Out::StopVerification(question)).await?;
        }
        self.say(Out::ManifestAck(v1::ManifestAck { sequence: manifest.sequence })).await
    }
}
