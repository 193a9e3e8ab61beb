//! The agent's side of one session of a simulated host.

use std::sync::{Arc, Mutex, PoisonError};

use berth_proto::v1;
use berth_proto::v1::agent_message::Message as FromAgent;
use berth_proto::v1::control_plane_client::ControlPlaneClient;
use berth_proto::v1::control_plane_message::Message as ToAgent;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::dial::Dial;
use super::host::Host;
use crate::agents::HEARTBEAT_INTERVAL;
use crate::clock;

/// How many messages may wait to be sent.
const OUTGOING: usize = 256;

/// A session that the control plane has taken in.
pub(super) struct Open {
    host: Arc<Mutex<Host>>,
    outgoing: mpsc::Sender<v1::AgentMessage>,
    incoming: Streaming<v1::ControlPlaneMessage>,
    heartbeats: u64,
}

/// Connects and greets; returns when the first payload was taken up.
pub(super) async fn open(dial: &Dial, host: Arc<Mutex<Host>>) -> Result<Open, String> {
    let host_key = host.lock().unwrap_or_else(PoisonError::into_inner).host_key.clone();
    let channel = dial.connect(&host_key).await?;
    let (outgoing, stream) = mpsc::channel(OUTGOING);
    let mut client = ControlPlaneClient::new(channel).max_decoding_message_size(usize::MAX);
    let answered = client.session(ReceiverStream::new(stream)).await;
    let incoming = answered.map_err(|status| status.message().to_owned())?.into_inner();
    let mut session = Open { host, outgoing, incoming, heartbeats: 0 };
    let (hello, unacknowledged) = session.with_host(|host| {
        let hello = v1::Hello {
            container_instance_arn: host.arn.clone(),
            host_key: host.host_key.clone(),
            outbox_epoch: host.epoch.clone(),
            last_manifest_sequence: host.last_manifest,
            last_seen: None,
        };
        (hello, host.unacknowledged())
    });
    session.send(FromAgent::Hello(hello)).await?;
    for change in unacknowledged {
        session.send(FromAgent::TaskStateChange(change)).await?;
    }
    while !session.take_one().await? {}
    session.beat().await?;
    Ok(session)
}

impl Open {
    /// Runs until the control plane ends the session.
    pub(super) async fn run(mut self) {
        let mut beats = tokio::time::interval(HEARTBEAT_INTERVAL);
        loop {
            let done = tokio::select! {
                taken = self.take_one() => taken.map(|_| ()),
                _ = beats.tick() => self.beat().await,
            };
            if let Err(why) = done {
                tracing::info!(why, "a simulated agent's session ended");
                return;
            }
        }
    }

    fn with_host<T>(&self, act: impl FnOnce(&mut Host) -> T) -> T {
        act(&mut self.host.lock().unwrap_or_else(PoisonError::into_inner))
    }

    async fn send(&self, message: FromAgent) -> Result<(), String> {
        let message = v1::AgentMessage { message: Some(message) };
        self.outgoing.send(message).await.map_err(|_| "the stream is closed".to_owned())
    }

    async fn beat(&mut self) -> Result<(), String> {
        self.heartbeats += 1;
        let heartbeat = self.with_host(|host| host.heartbeat(self.heartbeats));
        self.send(FromAgent::Heartbeat(heartbeat)).await
    }

    /// Takes up one message; whether it was a payload.
    async fn take_one(&mut self) -> Result<bool, String> {
        let received = match self.incoming.message().await {
            Ok(Some(received)) => received,
            Ok(None) => return Err("the control plane ended the stream".to_owned()),
            Err(status) => return Err(status.message().to_owned()),
        };
        match received.message {
            Some(ToAgent::Payload(payload)) => {
                let now = clock::now();
                let changes: Vec<_> = self.with_host(|host| {
                    payload.tasks.into_iter().flat_map(|task| host.assign(task, now)).collect()
                });
                self.send(FromAgent::PayloadAck(v1::PayloadAck { sequence: payload.sequence })).await?;
                for change in changes {
                    self.send(FromAgent::TaskStateChange(change)).await?;
                }
                self.beat().await?;
                return Ok(true);
            }
            Some(ToAgent::Manifest(manifest)) => {
                self.with_host(|host| host.last_manifest = manifest.sequence);
                self.send(FromAgent::ManifestAck(v1::ManifestAck { sequence: manifest.sequence })).await?;
            }
            Some(ToAgent::StateChangeAck(ack)) => self.with_host(|host| host.acknowledged(ack.sequence)),
            Some(ToAgent::Close(close)) => return Err(close.reason),
            Some(
                ToAgent::Drain(_)
                | ToAgent::StopVerificationAck(_)
                | ToAgent::HeartbeatAck(_)
                | ToAgent::SecurityGroups(_)
                | ToAgent::RoleCredentials(_)
                | ToAgent::TaskProtectionReply(_)
                // There are no containers to reach into: whoever asks is told that nobody answers.
                | ToAgent::AttachRequest(_)
                // It ends with the records that it knows.
                | ToAgent::TaskInquiry(_),
            )
            | None => {}
        }
        Ok(false)
    }
}
