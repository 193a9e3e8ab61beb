//! A control plane that sends what it is told and notes when the agent answers: it measures the
//! agent alone.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use berth_proto::v1;
use berth_proto::v1::agent_message::Message as In;
use berth_proto::v1::control_plane_message::Message as Out;
use berth_proto::v1::control_plane_server::{ControlPlane, ControlPlaneServer};
use futures_util::{Stream, StreamExt, stream};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status, Streaming};

use super::site::{COMMAND, MEMORY_MIB, new_id, task_arn};
use crate::demo;

/// What is known of the agent and its tasks.
#[derive(Debug, Default)]
pub struct Noted {
    /// When it registered last.
    pub registered: Option<Instant>,
    /// When it opened its session last.
    pub greeted: Option<Instant>,
    /// Payloads sent.
    pub sequence: u64,
    /// The last payload that it acknowledged, and when.
    pub acknowledged: Option<(u64, Instant)>,
    /// MiB of memory that it last said to be in use.
    pub memory_in_use: u32,
    /// Questions about the protection of tasks, which are not answered.
    pub protection_asked: u64,
    /// Its tasks.
    pub tasks: BTreeMap<String, Seen>,
    manifests: u64,
    session: Option<mpsc::UnboundedSender<v1::ControlPlaneMessage>>,
}

/// What is known of one task.
#[derive(Debug)]
pub struct Seen {
    /// When it was first told to be RUNNING.
    pub running: Option<Instant>,
    /// When its interface was first told to be attached.
    pub attached: Option<Instant>,
    /// When it was first told to be STOPPED.
    pub stopped: Option<Instant>,
    /// Why it stopped.
    pub reason: String,
    /// The engine's id of its container.
    pub container: String,
    assignment: v1::Assignment,
}

/// The control plane, on a port of loopback that the kernel chose.
#[derive(Debug)]
pub struct Scripted {
    /// Where agents connect.
    pub address: SocketAddr,
    cluster: String,
    noted: watch::Sender<Noted>,
    _server: JoinSet<()>,
}

/// A task of one container that sleeps. `cpu` bounds the whole task; 0 = not.
#[must_use]
pub fn task(cluster: &str, mode: &str, cpu: u32) -> v1::Assignment {
    let container = v1::ContainerSpec {
        name: "one".to_owned(),
        image: demo::IMAGE.to_owned(),
        essential: true,
        memory_mib: MEMORY_MIB,
        command: Some(v1::StringList { values: COMMAND.map(str::to_owned).to_vec() }),
        ..v1::ContainerSpec::default()
    };
    v1::Assignment {
        task_arn: task_arn(cluster, &new_id()),
        desired: v1::DesiredStatus::Running.into(),
        spec: Some(v1::TaskSpec {
            family: "bench".to_owned(),
            revision: 1,
            network_mode: mode.to_owned(),
            cpu,
            containers: vec![container],
            ..v1::TaskSpec::default()
        }),
        ..v1::Assignment::default()
    }
}

/// A task with an interface on a bridge of the agent's, of so many containers, each started after the
/// one before.
#[must_use]
pub fn awsvpc_task(cluster: &str, containers: usize) -> v1::Assignment {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let n = COUNT.fetch_add(1, Ordering::Relaxed) % 200 + 10;
    let mut task = task(cluster, "awsvpc", 0);
    if let Some(spec) = &mut task.spec {
        let first = spec.containers[0].clone();
        for at in 1..containers {
            let mut next = v1::ContainerSpec { name: format!("further{at}"), ..first.clone() };
            let before = spec.containers[at - 1].name.clone();
            next.depends_on = vec![v1::Dependency { container: before, condition: "START".to_owned() }];
            spec.containers.push(next);
        }
        spec.attachment = Some(v1::Attachment {
            id: new_id(),
            interface_id: "eni-0".to_owned(),
            subnet_id: "subnet-bench".to_owned(),
            provider: "veth".to_owned(),
            mac: format!("02:00:00:00:00:{n:02x}"),
            addresses: vec![format!("10.63.255.{n}/24")],
            gateways: vec!["10.63.255.1".to_owned()],
            hostname: format!("ip-10-63-255-{n}"),
            patience_ms: 10_000,
            ..v1::Attachment::default()
        });
    }
    task
}

impl Scripted {
    /// Begins to listen for the one agent of that cluster.
    ///
    /// # Errors
    /// When there is no port.
    pub async fn start(cluster: &str) -> Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = listener.local_addr()?;
        let noted = watch::Sender::new(Noted::default());
        let service = Service { noted: noted.clone(), cluster: cluster.to_owned() };
        let server = tonic::transport::Server::builder()
            .add_service(ControlPlaneServer::new(service))
            .serve_with_incoming(TcpIncoming::from(listener).with_nodelay(Some(true)));
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            if let Err(why) = server.await {
                eprintln!("the scripted control plane ended: {why}");
            }
        });
        Ok(Self { address, cluster: cluster.to_owned(), noted, _server: tasks })
    }

    /// The cluster that its tasks belong to.
    #[must_use]
    pub fn cluster(&self) -> &str {
        &self.cluster
    }

    /// Has the agent run tasks: their ARNs, and the moment of sending.
    ///
    /// # Errors
    /// When no agent is connected.
    pub fn run(&self, tasks: Vec<v1::Assignment>) -> Result<(Vec<String>, Instant)> {
        let arns: Vec<String> = tasks.iter().map(|task| task.task_arn.clone()).collect();
        self.noted.send_modify(|noted| {
            for assignment in &tasks {
                noted.tasks.insert(assignment.task_arn.clone(), Seen::new(assignment.clone()));
            }
        });
        Ok((arns, self.send(tasks)?))
    }

    /// Has the agent stop tasks: the moment of sending.
    ///
    /// # Errors
    /// When no agent is connected.
    pub fn stop(&self, arns: &[String]) -> Result<Instant> {
        let cause =
            v1::StopCause { code: "UserInitiated".to_owned(), reason: "Task stopped by user".to_owned() };
        let assignments = arns.iter().map(|arn| v1::Assignment {
            task_arn: arn.clone(),
            desired: v1::DesiredStatus::Stopped.into(),
            stop: Some(cause.clone()),
            last_heard: v1::TaskStatus::Running.into(),
            spec: None,
        });
        self.send(assignments.collect())
    }

    fn send(&self, tasks: Vec<v1::Assignment>) -> Result<Instant> {
        let mut sent = false;
        let mut moment = Instant::now();
        self.noted.send_modify(|noted| {
            noted.sequence += 1;
            let payload = v1::Payload { sequence: noted.sequence, tasks, at: None };
            moment = Instant::now();
            sent = noted.session.as_ref().is_some_and(|s| s.send(message(Out::Payload(payload))).is_ok());
        });
        if sent { Ok(moment) } else { bail!("no agent is connected") }
    }

    /// Says something to the agent; whether there was a session to say it in.
    pub fn say(&self, message: v1::ControlPlaneMessage) -> bool {
        let noted = self.noted.borrow();
        noted.session.as_ref().is_some_and(|session| session.send(message).is_ok())
    }

    /// Ends the session; the agent comes back by itself.
    pub fn close(&self) {
        let close = v1::Close { reason: "enough".to_owned(), instance_inactive: false };
        self.noted.send_modify(|noted| {
            noted.greeted = None;
            if let Some(session) = noted.session.take() {
                // It may have ended by itself.
                let _ = session.send(message(Out::Close(close)));
            }
        });
    }

    /// Forgets what was noted of the agent itself, before it is started again.
    pub fn forget_agent(&self) {
        self.noted.send_modify(|noted| {
            (noted.registered, noted.greeted, noted.acknowledged, noted.session) = (None, None, None, None);
        });
    }

    /// Waits until `what` can be said of what was noted.
    ///
    /// # Errors
    /// When the time is over.
    pub async fn noted<T>(&self, within: Duration, what: impl Fn(&Noted) -> Option<T>) -> Result<T> {
        let mut noted = self.noted.subscribe();
        let found = tokio::time::timeout(within, noted.wait_for(|noted| what(noted).is_some())).await;
        match found {
            Ok(Ok(noted)) => Ok(what(&noted).ok_or_else(|| anyhow::anyhow!("it was there a moment ago"))?),
            Ok(Err(why)) => Err(why.into()),
            Err(_) => {
                let noted = self.noted.borrow();
                let open: Vec<_> = noted.tasks.iter().filter(|(_, seen)| seen.running.is_none()).collect();
                bail!("the agent did not say what was awaited within {within:?}; not RUNNING: {open:?}")
            }
        }
    }

    /// Waits until all of the tasks are RUNNING; when the last became so.
    ///
    /// # Errors
    /// When one stops instead, or the time is over.
    pub async fn running(&self, arns: &[String], within: Duration) -> Result<Instant> {
        let of = |noted: &Noted| {
            let seen = || arns.iter().map(|arn| noted.tasks.get(arn));
            if let Some(failed) = seen().flatten().find(|s| s.running.is_none() && s.stopped.is_some()) {
                return Some(Err(failed.reason.clone()));
            }
            seen()
                .map(|s| s?.running)
                .collect::<Option<Vec<_>>>()
                .and_then(|all| all.into_iter().max())
                .map(Ok)
        };
        match self.noted(within, of).await? {
            Ok(last) => Ok(last),
            Err(reason) => bail!("a task stopped instead of running: {reason}"),
        }
    }

    /// Waits until the interface of a task is attached; when it became so.
    ///
    /// # Errors
    /// When the time is over.
    pub async fn attached(&self, arn: &str, within: Duration) -> Result<Instant> {
        self.noted(within, |noted| noted.tasks.get(arn)?.attached).await
    }

    /// Waits until all of the tasks are STOPPED; when the last became so.
    ///
    /// # Errors
    /// When the time is over.
    pub async fn stopped(&self, arns: &[String], within: Duration) -> Result<Instant> {
        let of = |noted: &Noted| {
            let all: Option<Vec<_>> = arns.iter().map(|arn| noted.tasks.get(arn)?.stopped).collect();
            all?.into_iter().max()
        };
        self.noted(within, of).await
    }

    /// The engine's ids of the tasks' containers.
    #[must_use]
    pub fn containers(&self, arns: &[String]) -> Vec<String> {
        let noted = self.noted.borrow();
        arns.iter().filter_map(|arn| Some(noted.tasks.get(arn)?.container.clone())).collect()
    }
}

impl Seen {
    const fn new(assignment: v1::Assignment) -> Self {
        Self {
            running: None,
            attached: None,
            stopped: None,
            reason: String::new(),
            container: String::new(),
            assignment,
        }
    }
}

struct Service {
    noted: watch::Sender<Noted>,
    cluster: String,
}

type Answers = Pin<Box<dyn Stream<Item = Result<v1::ControlPlaneMessage, Status>> + Send>>;

#[tonic::async_trait]
impl ControlPlane for Service {
    type AttachStream = Pin<Box<dyn Stream<Item = Result<v1::Frame, Status>> + Send>>;

    async fn attach(&self, _: Request<Streaming<v1::Frame>>) -> Result<Response<Self::AttachStream>, Status> {
        Err(Status::not_found("nobody asked for it"))
    }

    type SessionStream = Answers;

    async fn register(
        &self,
        request: Request<v1::RegisterRequest>,
    ) -> Result<Response<v1::RegisterResponse>, Status> {
        self.noted.send_modify(|noted| noted.registered = Some(Instant::now()));
        // One instance for each cluster: its id is made of the host's key.
        let request = request.into_inner();
        let digits = request.host_key.chars().filter(char::is_ascii_hexdigit);
        let id: String = digits.chain(std::iter::repeat('0')).take(32).collect();
        let instance = format!("arn:aws:ecs:us-east-1:123456789012:container-instance/{}/{id}", self.cluster);
        Ok(Response::new(v1::RegisterResponse {
            container_instance_arn: instance,
            attributes: request.attributes,
        }))
    }

    async fn renew(&self, _: Request<v1::RenewRequest>) -> Result<Response<v1::CertificateResponse>, Status> {
        Err(Status::unimplemented("there are no certificates here"))
    }

    async fn session(
        &self,
        request: Request<Streaming<v1::AgentMessage>>,
    ) -> Result<Response<Answers>, Status> {
        let (session, messages) = mpsc::unbounded_channel();
        let noted = self.noted.clone();
        let told = request.into_inner().flat_map(move |heard| {
            let at = Instant::now();
            let answers = heard.map_or_else(|_| Vec::new(), |heard| take(&noted, at, heard, &session));
            stream::iter(answers)
        });
        let answers = stream::select(told, UnboundedReceiverStream::new(messages).map(Ok));
        Ok(Response::new(Box::pin(answers)))
    }
}

fn message(message: Out) -> v1::ControlPlaneMessage {
    v1::ControlPlaneMessage { message: Some(message) }
}

/// Takes note of what the agent said; what is to be answered.
fn take(
    noted: &watch::Sender<Noted>,
    at: Instant,
    heard: v1::AgentMessage,
    session: &mpsc::UnboundedSender<v1::ControlPlaneMessage>,
) -> Vec<Result<v1::ControlPlaneMessage, Status>> {
    let mut answers = Vec::new();
    noted.send_modify(|noted| match heard.message {
        Some(In::Hello(_)) => {
            noted.greeted = Some(at);
            noted.session = Some(session.clone());
            answers = noted.greeting();
        }
        Some(In::PayloadAck(ack)) => noted.acknowledged = Some((ack.sequence, at)),
        Some(In::TaskStateChange(change)) => {
            answers.push(Out::StateChangeAck(v1::StateChangeAck { sequence: change.sequence, at: None }));
            noted.change(change, at);
        }
        Some(In::Heartbeat(heartbeat)) => {
            noted.memory_in_use = heartbeat.in_use.map_or(0, |resources| resources.memory_mib);
            answers.push(Out::HeartbeatAck(v1::HeartbeatAck { sequence: heartbeat.sequence }));
        }
        Some(In::StopVerification(question)) => {
            // Nothing that runs is unknown here.
            let ack = v1::StopVerificationAck { message_id: question.message_id, task_arns: Vec::new() };
            answers.push(Out::StopVerificationAck(ack));
        }
        // Whoever asks waits in vain.
        Some(In::TaskProtectionRequest(_)) => noted.protection_asked += 1,
        Some(In::ManifestAck(_) | In::HostNotice(_) | In::TaskAccount(_)) | None => {}
    });
    answers.into_iter().map(|answer| Ok(message(answer))).collect()
}

impl Noted {
    /// What follows a Hello: the manifest, and a payload of everything that is to run.
    fn greeting(&mut self) -> Vec<Out> {
        self.manifests += 1;
        self.sequence += 1;
        let alive = || self.tasks.values().filter(|seen| seen.stopped.is_none());
        let manifest = v1::Manifest {
            sequence: self.manifests,
            tasks: alive()
                .map(|seen| v1::ManifestEntry {
                    task_arn: seen.assignment.task_arn.clone(),
                    desired: v1::DesiredStatus::Running.into(),
                })
                .collect(),
            at: None,
        };
        let last_heard = |seen: &Seen| match seen.running {
            Some(_) => v1::TaskStatus::Running,
            None => v1::TaskStatus::Pending,
        };
        let tasks = alive()
            .map(|seen| v1::Assignment { last_heard: last_heard(seen).into(), ..seen.assignment.clone() })
            .collect();
        vec![Out::Manifest(manifest), Out::Payload(v1::Payload { sequence: self.sequence, tasks, at: None })]
    }

    fn change(&mut self, change: v1::TaskStateChange, at: Instant) {
        let (status, attachment) = (change.status(), change.attachment());
        let Some(seen) = self.tasks.get_mut(&change.task_arn) else { return };
        if let Some(container) = change.containers.into_iter().next() {
            seen.container = container.runtime_id;
        }
        if attachment == v1::AttachmentStatus::Attached {
            seen.attached = seen.attached.or(Some(at));
        }
        match status {
            v1::TaskStatus::Running => seen.running = seen.running.or(Some(at)),
            v1::TaskStatus::Stopped => {
                seen.stopped = seen.stopped.or(Some(at));
                seen.reason = change.stop.map(|stop| stop.reason).unwrap_or_default();
            }
            v1::TaskStatus::Pending | v1::TaskStatus::Unspecified => {}
        }
    }
}
