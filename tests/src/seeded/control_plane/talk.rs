//! One conversation, from the agent's greeting to the end of the line.

use std::collections::BTreeMap;
use std::time::Duration;

use berth_proto::v1;
use berth_proto::v1::agent_message::Message as FromAgent;
use berth_proto::v1::control_plane_message::Message as ToAgent;
use tokio::sync::mpsc;
use tokio::time::sleep;
use tonic::{Status, Streaming};

use super::line::{LineEnd, lost};
use super::{Manner, assignment};
use crate::seeded::store::short;
use crate::seeded::world::Wish;

/// How long a broken line looks like a whole one.
const KEEPALIVE: Duration = Duration::from_secs(30);

pub(super) struct Conversation {
    pub(super) end: LineEnd,
    pub(super) outgoing: mpsc::Sender<Result<v1::ControlPlaneMessage, Status>>,
    /// Whether it began as one with a liar: it stays one until it is over.
    pub(super) with_liar: bool,
}

/// Why a conversation is over.
struct Over;

impl From<Status> for Over {
    fn from(_: Status) -> Self {
        Self
    }
}

impl Conversation {
    pub(super) async fn hold(self, inbound: Streaming<v1::AgentMessage>) {
        let cut = self.end.cut.clone();
        let over = cut.run_until_cancelled(self.converse(inbound)).await;
        let world = &self.end.control_plane.world;
        world.note(format_args!("session over{}", if over.is_none() { ", cut" } else { "" }));
        if over.is_none() && world.once_in(2) {
            // A line that is cut looks whole for a while, or breaks at once.
            sleep(world.span(KEEPALIVE)).await;
            drop(self.outgoing.try_send(Err(lost())));
        }
    }

    fn is_lie(&self) -> bool {
        self.with_liar || self.end.control_plane.manner() == Manner::Lying
    }

    async fn say(&self, message: ToAgent) -> Result<(), Over> {
        let message = v1::ControlPlaneMessage { message: Some(message) };
        self.outgoing.send(Ok(message)).await.map_err(|_| Over)
    }

    async fn converse(&self, mut inbound: Streaming<v1::AgentMessage>) -> Result<(), Over> {
        let plane = &self.end.control_plane;
        let Some(FromAgent::Hello(hello)) = inbound.message().await?.and_then(|m| m.message) else {
            plane.world.wrong("the first message is no greeting".to_owned());
            return Err(Over);
        };
        plane.world.note(format_args!("hello, last manifest {}", hello.last_manifest_sequence));
        {
            let mut state = plane.state();
            if state.epoch != hello.outbox_epoch {
                (state.epoch, state.told) = (hello.outbox_epoch.clone(), 0);
            }
            state.meet(&hello);
        }
        let mut noted = 0;
        if self.is_lie() {
            self.lie(hello.last_manifest_sequence).await?;
        } else {
            let (manifest, payload) = plane.greeting(hello.last_manifest_sequence);
            noted = manifest.sequence;
            self.say(ToAgent::Manifest(manifest)).await?;
            self.say(ToAgent::Payload(payload)).await?;
            let groups = vec![v1::SecurityGroup { id: "sg-open".to_owned(), version: 1, rules: Vec::new() }];
            self.say(ToAgent::SecurityGroups(v1::SecurityGroups { groups })).await?;
        }
        if plane.world.once_in(4) {
            // One that came late, and says of nothing that it runs here.
            let sequence = hello.last_manifest_sequence;
            self.say(ToAgent::Manifest(v1::Manifest { sequence, ..Default::default() })).await?;
        }
        let mut sent = self.sent();
        self.credentials(&sent).await?;
        let mut seen = plane.version();
        loop {
            tokio::select! {
                biased;
                version = plane.newer(seen) => {
                    seen = version;
                    plane.dawdle().await;
                    if !self.is_lie() {
                        self.sync(&mut sent).await?;
                    }
                }
                message = inbound.message() => {
                    if !plane.listen().await {
                        std::future::pending::<()>().await;
                    }
                    plane.dawdle().await;
                    let Some(message) = message?.and_then(|m| m.message) else { return Err(Over) };
                    self.take(&hello.outbox_epoch, noted, message).await?;
                }
            }
        }
    }

    /// The tasks that the agent has been told of, and whether their end was among it.
    fn sent(&self) -> BTreeMap<String, bool> {
        let state = self.end.control_plane.state();
        state.tasks.iter().map(|(arn, task)| (arn.clone(), task.stop.is_some())).collect()
    }

    async fn sync(&self, sent: &mut BTreeMap<String, bool>) -> Result<(), Over> {
        let plane = &self.end.control_plane;
        let tasks: Vec<v1::Assignment> = {
            let state = plane.state();
            let live = state.tasks.iter().filter(|(_, task)| task.heard != v1::TaskStatus::Stopped);
            live.filter(|(arn, task)| sent.get(*arn).is_none_or(|stop| !stop && task.stop.is_some()))
                .map(|(arn, task)| assignment(arn, task))
                .collect()
        };
        *sent = self.sent();
        if tasks.is_empty() {
            return Ok(());
        }
        let sequence = plane.next(0);
        self.credentials(&tasks.iter().map(|task| (task.task_arn.clone(), false)).collect()).await?;
        let at = Some(plane.state().point());
        self.say(ToAgent::Payload(v1::Payload { sequence, tasks, at })).await
    }

    async fn credentials(&self, of: &BTreeMap<String, bool>) -> Result<(), Over> {
        let roles: Vec<(String, String)> = {
            let state = self.end.control_plane.state();
            let known =
                of.keys().filter_map(|arn| Some((arn.clone(), state.tasks.get(arn)?.spec.task_role.clone())));
            known.filter(|(_, role)| !role.is_empty()).collect()
        };
        for (task_arn, role_arn) in roles {
            let credentials = v1::RoleCredentials {
                task_arn,
                role_arn,
                access_key_id: "id".to_owned(),
                secret_access_key: "key".to_owned(),
                expires_at_ms: self.end.control_plane.world.now().0 + 24 * 3_600_000,
                ..v1::RoleCredentials::default()
            };
            self.say(ToAgent::RoleCredentials(credentials)).await?;
        }
        Ok(())
    }

    /// Says that nothing runs here, that something runs here that nobody can read, and that it has heard what
    /// was never said; answers what was never asked.
    async fn lie(&self, last_manifest: u64) -> Result<(), Over> {
        let plane = &self.end.control_plane;
        let all: Vec<String> = plane.state().last.keys().cloned().collect();
        let sequence = plane.next(last_manifest);
        self.say(ToAgent::Manifest(v1::Manifest { sequence, ..Default::default() })).await?;
        let nobody = v1::Assignment {
            task_arn: format!(
                "arn:aws:ecs:eu-west-1:123456789012:task/story/{:032x}",
                0xffff_0000 + sequence
            ),
            desired: v1::DesiredStatus::Running.into(),
            spec: Some(v1::TaskSpec { network_mode: "carrier-pigeon".to_owned(), ..v1::TaskSpec::default() }),
            ..v1::Assignment::default()
        };
        let tasks = vec![v1::Assignment::default(), nobody];
        self.say(ToAgent::Payload(v1::Payload { sequence: 1, tasks, at: None })).await?;
        self.say(ToAgent::StateChangeAck(v1::StateChangeAck { sequence: u64::MAX, at: None })).await?;
        let unasked = v1::StopVerificationAck { message_id: "unasked".to_owned(), task_arns: all };
        self.say(ToAgent::StopVerificationAck(unasked)).await
    }

    async fn take(&self, epoch: &str, manifest: u64, message: FromAgent) -> Result<(), Over> {
        let plane = &self.end.control_plane;
        match message {
            FromAgent::TaskStateChange(change) => {
                if self.is_lie() {
                    return Ok(());
                }
                let sequence = plane.apply(epoch, change);
                let at = Some(plane.state().point());
                self.say(ToAgent::StateChangeAck(v1::StateChangeAck { sequence, at })).await
            }
            FromAgent::Heartbeat(beat) => {
                self.say(ToAgent::HeartbeatAck(v1::HeartbeatAck { sequence: beat.sequence })).await
            }
            FromAgent::StopVerification(question) if !self.is_lie() => {
                let unknown = plane.state().unknown(&question.task_arns);
                if !unknown.is_empty() {
                    self.say(ToAgent::TaskInquiry(v1::TaskInquiry { task_arns: unknown })).await?;
                }
                let task_arns = question.task_arns.into_iter().filter(|arn| self.is_to_stop(arn)).collect();
                let message_id = question.message_id;
                self.say(ToAgent::StopVerificationAck(v1::StopVerificationAck { message_id, task_arns }))
                    .await
            }
            FromAgent::TaskAccount(account) if !self.is_lie() => {
                plane.adopt(&account);
                Ok(())
            }
            FromAgent::ManifestAck(ack) => {
                plane.noted(ack.sequence == manifest);
                Ok(())
            }
            FromAgent::PayloadAck(_) => {
                plane.world.note(format_args!("payload acknowledged"));
                Ok(())
            }
            FromAgent::Hello(_) => {
                plane.world.wrong("a second greeting".to_owned());
                Err(Over)
            }
            _ => Ok(()),
        }
    }

    /// As the real one has it: what it does not know is to stop, unless the host knew another.
    fn is_to_stop(&self, arn: &str) -> bool {
        let plane = &self.end.control_plane;
        let to_stop = {
            let state = plane.state();
            state
                .tasks
                .get(arn)
                .map_or(!state.estranged, |task| task.stop.is_some() || task.heard == v1::TaskStatus::Stopped)
        };
        if to_stop
            && let Some(asked) = plane.world.known().tasks.get_mut(arn)
            && asked.wish == Wish::Run
        {
            asked.wish = Wish::Nothing;
        }
        plane.world.note(format_args!("asked about {}: stop {to_stop}", short(arn)));
        to_stop
    }
}
