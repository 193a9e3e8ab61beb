//! A small agent for tests, and what tests wait for.

use std::collections::BTreeMap;
use std::future::Future;
use std::time::Duration;

use berth_controlplane::arn;
use berth_controlplane::controller::LaunchRequest;
use berth_controlplane::daemon::{Config, Daemon, Running};
use berth_controlplane::model::{Task, TaskStatus};
use berth_controlplane::scheduler::placement::Target;
use berth_controlplane::store::View;
use berth_core::ids::{ContainerName, Family};
use berth_core::spec::{ContainerSpec, NetworkMode, PortMapping, TaskFields, TaskSpec};
use berth_core::units::{CpuUnits, Mebibytes, PortRange, Protocol};
use berth_proto::v1;
use berth_proto::v1::agent_message::Message as FromAgent;
use berth_proto::v1::control_plane_client::ControlPlaneClient;
use berth_proto::v1::control_plane_message::Message as ToAgent;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Status, Streaming};

/// Long enough for a busy machine; nothing waits for it in vain but a failing test.
const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("timed out: {what}"))
}

pub(crate) struct Site {
    pub(crate) directory: tempfile::TempDir,
    pub(crate) running: Running,
}

/// A control plane of its own, on loopback.
pub(crate) async fn site() -> Site {
    site_with(|_| {}).await
}

pub(crate) async fn site_with(change: impl FnOnce(&mut Config)) -> Site {
    let directory = tempfile::tempdir().unwrap();
    let mut config = Config::local(directory.path());
    change(&mut config);
    Site { running: Daemon::start(config).await.unwrap(), directory }
}

impl Site {
    /// Stops it and starts another on the same data.
    pub(crate) async fn restarted(self) -> Self {
        self.running.stop().await.unwrap();
        let config = Config::local(self.directory.path());
        Self { running: Daemon::start(config).await.unwrap(), directory: self.directory }
    }

    pub(crate) async fn channel(&self) -> Channel {
        let uri = format!("http://{}", self.running.agent_addr);
        Endpoint::from_shared(uri).unwrap().connect().await.unwrap()
    }

    pub(crate) async fn client(&self) -> ControlPlaneClient<Channel> {
        ControlPlaneClient::new(self.channel().await)
    }

    /// Registers a host with 4 CPUs and 4 GiB.
    pub(crate) async fn register(&self, host_key: &str) -> String {
        self.client()
            .await
            .register(registration(host_key))
            .await
            .unwrap()
            .into_inner()
            .container_instance_arn
    }

    /// Registers and connects, past the greeting.
    pub(crate) async fn agent(&self, host_key: &str) -> Agent {
        let arn = self.register(host_key).await;
        let mut agent = self.connect(&arn, host_key, "epoch-1").await;
        agent.greeting().await;
        agent
    }

    pub(crate) async fn connect(&self, arn: &str, host_key: &str, epoch: &str) -> Agent {
        Agent::connect(self.client().await, arn, host_key, epoch).await
    }

    /// Waits until the store shows something.
    pub(crate) async fn until<T>(&self, what: &str, find: impl Fn(&dyn View) -> Option<T>) -> T {
        let mut commits = self.running.state.store.watch();
        within(what, async {
            loop {
                if let Some(found) = find(&*self.running.state.store.view()) {
                    return found;
                }
                // A watcher that lags looks again, which is all that is asked of it.
                let _ = commits.recv().await;
            }
        })
        .await
    }

    pub(crate) fn task(&self, arn: &str) -> Option<Task> {
        let view = self.running.state.store.view();
        view.task("default", arn::id_of(arn)).map(|task| Task::clone(&task.value))
    }

    pub(crate) async fn until_status(&self, arn: &str, status: TaskStatus) -> Task {
        let find = |view: &dyn View| {
            view.task("default", arn::id_of(arn)).filter(|t| t.value.observed.status == status)
        };
        Task::clone(&self.until(&format!("{arn} to be {status:?}"), find).await.value)
    }

    pub(crate) async fn until_connected(&self, instance: &str, connected: bool) {
        let registry = &self.running.state.registry;
        let mut changes = registry.changes();
        within(
            "the connection to be known",
            changes.wait_for(|_| registry.is_connected(instance) == connected),
        )
        .await
        .unwrap();
    }

    /// Launches copies of [`request`] anywhere.
    pub(crate) async fn launch(&self, count: u32) -> Vec<String> {
        let launched = self.running.state.controller.launch(request(self, count)).await.unwrap();
        launched.tasks.iter().map(|task| task.arn.clone()).collect()
    }
}

pub(crate) fn registration(host_key: &str) -> v1::RegisterRequest {
    let attribute =
        |name: &str, value: &str| v1::Attribute { name: name.to_owned(), value: value.to_owned() };
    v1::RegisterRequest {
        cluster: "default".to_owned(),
        host_key: host_key.to_owned(),
        previous_instance_arn: String::new(),
        total: Some(v1::Resources { cpu: 4096, memory_mib: 4096, tcp_ports: vec![22], ..Default::default() }),
        attributes: vec![attribute("ecs.os-type", "linux"), attribute("ecs.capability.task-eni", "")],
        versions: Some(v1::Versions { agent: "0.1.0".to_owned(), ..Default::default() }),
        protocol_version: berth_proto::PROTOCOL_VERSION,
        hostname: format!("{host_key}.example"),
        gpu_ids: Vec::new(),
    }
}

/// One container of 64 CPU units and 32 MiB with a dynamic port.
pub(crate) fn spec(site: &Site) -> TaskSpec {
    let mut container = ContainerSpec::minimal(ContainerName::new("web").unwrap(), "nginx", Mebibytes(32));
    container.cpu = CpuUnits(64);
    container.ports =
        vec![PortMapping { container: PortRange::single(80).unwrap(), host: None, protocol: Protocol::Tcp }];
    let fields = TaskFields {
        arn: site.running.state.arns.placeholder_task("default").unwrap(),
        family: Family::new("web").unwrap(),
        revision: 1,
        network_mode: NetworkMode::Bridge,
        cpu: None,
        memory: None,
        containers: vec![container],
        attachment: None,
        pid_mode: None,
        ipc_mode: None,
        volumes: Vec::new(),
        task_role: None,
        fault_injection: false,
    };
    TaskSpec::try_from(fields).unwrap()
}

pub(crate) fn request(site: &Site, count: u32) -> LaunchRequest {
    LaunchRequest {
        cluster: "default".to_owned(),
        task_definition: site.running.state.arns.task_definition("web", 1),
        spec: spec(site),
        required: Vec::new(),
        target: Target::Anywhere { count, constraints: Vec::new(), strategies: Vec::new() },
        group: None,
        execute_command: false,
        started_by: None,
        overrides: serde_json::json!({}),
        tags: BTreeMap::new(),
        network: None,
        client_token: None,
    }
}

/// One session as an agent holds it.
pub(crate) struct Agent {
    pub(crate) arn: String,
    outgoing: mpsc::Sender<v1::AgentMessage>,
    incoming: Streaming<v1::ControlPlaneMessage>,
}

impl Agent {
    pub(crate) async fn connect(
        client: ControlPlaneClient<Channel>,
        arn: &str,
        host_key: &str,
        epoch: &str,
    ) -> Self {
        let hello = v1::Hello {
            container_instance_arn: arn.to_owned(),
            host_key: host_key.to_owned(),
            outbox_epoch: epoch.to_owned(),
            last_manifest_sequence: 0,
            last_seen: None,
        };
        Self::greet(client, hello).await
    }

    /// Opens a session with that greeting.
    pub(crate) async fn greet(mut client: ControlPlaneClient<Channel>, hello: v1::Hello) -> Self {
        let (outgoing, stream) = mpsc::channel(1024);
        let answered = within("the session", client.session(ReceiverStream::new(stream))).await.unwrap();
        let arn = hello.container_instance_arn.clone();
        let agent = Self { arn, outgoing, incoming: answered.into_inner() };
        agent.send(FromAgent::Hello(hello)).await;
        agent
    }

    pub(crate) async fn send(&self, message: FromAgent) {
        self.outgoing.send(v1::AgentMessage { message: Some(message) }).await.unwrap();
    }

    /// The next message; `None` at the end of the stream.
    pub(crate) async fn next(&mut self) -> Result<Option<ToAgent>, Status> {
        let received = within("a message", self.incoming.message()).await?;
        Ok(received.and_then(|received| received.message))
    }

    /// The next message for which `pick` has an answer; others are passed over.
    pub(crate) async fn find<T>(&mut self, pick: impl Fn(ToAgent) -> Option<T>) -> T {
        loop {
            let message = self.next().await.unwrap().expect("the stream ended");
            if let Some(found) = pick(message) {
                return found;
            }
        }
    }

    pub(crate) async fn payload(&mut self) -> v1::Payload {
        self.find(|message| if let ToAgent::Payload(payload) = message { Some(payload) } else { None }).await
    }

    /// Manifest and payload of a new session.
    pub(crate) async fn greeting(&mut self) -> (v1::Manifest, v1::Payload) {
        let Ok(Some(ToAgent::Manifest(manifest))) = self.next().await else {
            panic!("no manifest came first")
        };
        let Ok(Some(ToAgent::Payload(payload))) = self.next().await else { panic!("no payload came second") };
        (manifest, payload)
    }

    pub(crate) async fn acknowledged(&mut self) -> u64 {
        self.find(
            |message| if let ToAgent::StateChangeAck(ack) = message { Some(ack.sequence) } else { None },
        )
        .await
    }

    pub(crate) async fn closed(&mut self) -> v1::Close {
        self.find(|message| if let ToAgent::Close(close) = message { Some(close) } else { None }).await
    }

    pub(crate) async fn report(&self, sequence: u64, task: &str, status: v1::TaskStatus) {
        self.send(FromAgent::TaskStateChange(change(sequence, task, status))).await;
    }
}

pub(crate) fn change(sequence: u64, task: &str, status: v1::TaskStatus) -> v1::TaskStateChange {
    let container = match status {
        v1::TaskStatus::Running => v1::ContainerStatus::Running,
        v1::TaskStatus::Stopped => v1::ContainerStatus::Stopped,
        _ => v1::ContainerStatus::Pending,
    };
    let stop = v1::StopCause {
        code: "EssentialContainerExited".to_owned(),
        reason: "Essential container in task exited".to_owned(),
    };
    v1::TaskStateChange {
        sequence,
        task_arn: task.to_owned(),
        status: status.into(),
        stop: (status == v1::TaskStatus::Stopped).then_some(stop),
        containers: vec![v1::ContainerState {
            name: "web".to_owned(),
            status: container.into(),
            runtime_id: "cafe".to_owned(),
            exit_code: (status == v1::TaskStatus::Stopped).then_some(0),
            network_bindings: vec![v1::NetworkBinding {
                bind_ip: "0.0.0.0".to_owned(),
                container_port: 80,
                host_port: 49153,
                ..Default::default()
            }],
            ..Default::default()
        }],
        ..Default::default()
    }
}
