//! Promise: whatever strangers, the control plane or hosts send, nobody panics, hangs or asks for memory without
//! bound; and what one side takes, the other takes as well.
//!
//! A few seconds for each here; `BERTH_FUZZ_SECONDS=3600` for a long look. See [`berth_tests::fuzz`].

use std::alloc::{GlobalAlloc, Layout, System};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use berth_agent::endpoint::introspection::{self, Introspection};
use berth_agent::endpoint::local::{self, Local};
use berth_agent::endpoint::readings::Readings;
use berth_agent::endpoint::task::{self, Rate, TaskEndpoint};
use berth_agent::session::{Admitted, SessionStatus, admit};
use berth_agent::supervise::Tracker;
use berth_controlplane::agents::convert;
use berth_controlplane::daemon::{Config, Daemon, Running};
use berth_core::resources::Resources;
use berth_core::units::{CpuUnits, Mebibytes};
use berth_proto::v1;
use berth_proto::v1::agent_message::Message as FromAgent;
use berth_proto::v1::control_plane_client::ControlPlaneClient;
use berth_proto::v1::control_plane_message::Message as ToAgent;
use berth_tests::bench::scripted::{self, Scripted};
use berth_tests::expect::PATIENCE;
use berth_tests::fuzz::{Campaign, json as change_json, wire};
use berth_tests::sim::{Chance, Fleet, Host};
use berth_tests::{Ecs, EcsError};
use bytes::Bytes;
use prost::Message;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

/// Most memory that one input may have in use at once, whatever it says of itself.
const MOST_MEMORY: usize = 256 << 20;

/// Counts what is allocated.
struct Counting;

static IN_USE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: all of it is the system's own; nothing but numbers is added.
#[allow(unsafe_code, reason = "a global allocator cannot be without")]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let now = IN_USE.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        PEAK.fetch_max(now, Ordering::Relaxed);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        IN_USE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// What an input may have.
struct Memory(usize);

impl Memory {
    fn begin() -> Self {
        let now = IN_USE.load(Ordering::Relaxed);
        PEAK.store(now, Ordering::Relaxed);
        Self(now)
    }

    fn within_bounds(&self) -> Result<()> {
        let more = PEAK.load(Ordering::Relaxed).saturating_sub(self.0);
        ensure!(more < MOST_MEMORY, "{} MiB of memory at once", more >> 20);
        Ok(())
    }
}

const TASK: &str = "arn:aws:ecs:us-east-1:123456789012:task/default/0123456789abcdef0123456789abcdef";

fn pair(key: &str, value: &str) -> v1::KeyValue {
    v1::KeyValue { key: key.to_owned(), value: value.to_owned() }
}

/// What the control plane says, one of each kind, with as much in it as there can be.
fn of_the_control_plane() -> Vec<v1::ControlPlaneMessage> {
    let mut full = scripted::awsvpc_task("default", 2);
    let spec = full.spec.get_or_insert_default();
    (spec.pid_mode, spec.ipc_mode, spec.memory_mib) = ("task".to_owned(), "host".to_owned(), 512);
    spec.volumes = vec![v1::Volume { name: "v".to_owned(), ..v1::Volume::default() }];
    let one = &mut spec.containers[0];
    one.environment = vec![pair("A", "b")];
    one.port_mappings =
        vec![v1::PortMapping { container_port: 80, container_port_last: 90, ..Default::default() }];
    one.health_check = Some(v1::HealthCheck { command: vec!["CMD".to_owned()], ..Default::default() });
    one.ulimits = vec![v1::Ulimit { name: "nofile".to_owned(), soft: 1, hard: 2 }];
    one.links = vec![pair("further1", "alias")];
    one.linux_parameters = Some(v1::LinuxParameters::default());
    one.log_configuration =
        Some(v1::LogConfiguration { driver: "json-file".to_owned(), ..Default::default() });
    one.restart_policy = Some(v1::RestartPolicy { ignored_exit_codes: vec![0], attempt_period_ms: 1 });
    one.firelens_configuration = Some(v1::FirelensConfiguration::default());
    let rule =
        v1::SecurityRule { traffic: "tcp".to_owned(), first_port: 1, last_port: 2, ..Default::default() };
    let group = v1::SecurityGroup { id: "sg".to_owned(), version: 1, rules: vec![rule] };
    let tasks = vec![full, scripted::task("default", "bridge", 256), scripted::task("default", "host", 0)];
    let at = v1::RecordsPoint { life: "l".to_owned(), revision: 3 };
    let all = [
        ToAgent::Payload(v1::Payload { sequence: 7, tasks, at: Some(at.clone()) }),
        ToAgent::Manifest(v1::Manifest {
            sequence: 9,
            tasks: vec![v1::ManifestEntry { task_arn: TASK.to_owned(), ..Default::default() }],
            at: Some(at),
        }),
        ToAgent::TaskInquiry(v1::TaskInquiry { task_arns: vec![TASK.to_owned()] }),
        ToAgent::StopVerificationAck(v1::StopVerificationAck {
            message_id: "m".to_owned(),
            task_arns: vec![TASK.to_owned()],
        }),
        ToAgent::StateChangeAck(v1::StateChangeAck { sequence: 1, at: None }),
        ToAgent::Drain(v1::Drain { draining: true }),
        ToAgent::HeartbeatAck(v1::HeartbeatAck { sequence: 1 }),
        ToAgent::SecurityGroups(v1::SecurityGroups { groups: vec![group] }),
        ToAgent::RoleCredentials(v1::RoleCredentials {
            task_arn: TASK.to_owned(),
            role_arn: "role".to_owned(),
            access_key_id: "AKIA".to_owned(),
            secret_access_key: "s".to_owned(),
            session_token: "t".to_owned(),
            expires_at_ms: 1,
            problem: String::new(),
        }),
        ToAgent::AttachRequest(v1::AttachRequest {
            attach_id: "a".to_owned(),
            task_arn: TASK.to_owned(),
            container: "one".to_owned(),
            ..Default::default()
        }),
        ToAgent::TaskProtectionReply(v1::TaskProtectionReply::default()),
    ];
    all.into_iter().map(|message| v1::ControlPlaneMessage { message: Some(message) }).collect()
}

/// What an agent says, one of each kind.
fn of_agents(hello: v1::Hello) -> Vec<v1::AgentMessage> {
    let amount = v1::Resources {
        cpu: 1,
        memory_mib: 2,
        tcp_ports: vec![80],
        udp_ports: vec![53],
        ..Default::default()
    };
    let change = v1::TaskStateChange {
        sequence: 1,
        task_arn: TASK.to_owned(),
        status: v1::TaskStatus::Stopped.into(),
        stop: Some(v1::StopCause { code: "c".to_owned(), reason: "r".to_owned() }),
        containers: vec![v1::ContainerState {
            name: "app".to_owned(),
            exit_code: Some(-1),
            network_bindings: vec![v1::NetworkBinding { host_port: 1, ..Default::default() }],
            ..Default::default()
        }],
        ..Default::default()
    };
    let all = [
        FromAgent::Hello(hello),
        FromAgent::PayloadAck(v1::PayloadAck { sequence: 1 }),
        FromAgent::TaskStateChange(change),
        FromAgent::Heartbeat(v1::Heartbeat {
            sequence: 1,
            in_use: Some(amount.clone()),
            remaining: Some(amount),
            engine_healthy: true,
            waiting: vec![v1::WaitingTask {
                task_arn: TASK.to_owned(),
                missing: "m".to_owned(),
                container: "app".to_owned(),
            }],
        }),
        FromAgent::StopVerification(v1::StopVerification {
            message_id: "m".to_owned(),
            manifest_sequence: 1,
            task_arns: vec![TASK.to_owned()],
        }),
        FromAgent::ManifestAck(v1::ManifestAck { sequence: 1 }),
        FromAgent::TaskAccount(v1::TaskAccount { task_arn: TASK.to_owned(), ..Default::default() }),
        FromAgent::TaskProtectionRequest(v1::TaskProtectionRequest {
            task_arn: TASK.to_owned(),
            ..Default::default()
        }),
        FromAgent::HostNotice(v1::HostNotice { going: true, reason: "r".to_owned(), deadline_ms: 1 }),
    ];
    all.into_iter().map(|message| v1::AgentMessage { message: Some(message) }).collect()
}

fn encoded<M: Message>(messages: Vec<M>) -> Vec<Vec<u8>> {
    messages.iter().map(M::encode_to_vec).collect()
}

#[test]
fn the_agents_door_takes_any_message() -> Result<()> {
    let mut campaign = Campaign::begin("to_agents", encoded(of_the_control_plane()))?;
    let (mut decoded, mut admitted) = (0_u64, 0_u64);
    while let Some((_, input)) = campaign.next(wire::change) {
        let (memory, began) = (Memory::begin(), Instant::now());
        if let Ok(v1::ControlPlaneMessage { message }) = v1::ControlPlaneMessage::decode(&*input) {
            decoded += 1;
            if let Some(ToAgent::Payload(payload)) = message {
                for assignment in payload.tasks {
                    admitted += u64::from(matches!(admit(assignment), Admitted::Assignment(_)));
                }
            }
        }
        campaign.judge(&input, began, memory.within_bounds())?;
    }
    println!("{decoded} were messages, {admitted} assignments came in");
    ensure!(decoded > 100 && admitted > 100, "{decoded} decoded, {admitted} admitted: chance hits nothing");
    Ok(())
}

#[tokio::test]
async fn frames_of_programs_are_read_whatever_comes() -> Result<()> {
    let mut seeds = Vec::new();
    for kind in [
        v1::frame::Kind::Input(Bytes::from_static(b"ls\n")),
        v1::frame::Kind::Resize(v1::Resize { columns: 1, rows: 2 }),
        v1::frame::Kind::Failure("no".to_owned()),
    ] {
        berth_proto::talk::write(&mut seeds, kind).await?;
    }
    let mut campaign = Campaign::begin("frames", [seeds])?;
    while let Some((_, input)) = campaign.next(berth_tests::fuzz::bytes::change) {
        let (memory, began) = (Memory::begin(), Instant::now());
        let mut rest = &*input;
        while let Ok(Some(_)) = berth_proto::talk::read(&mut rest).await {}
        campaign.judge(&input, began, memory.within_bounds())?;
    }
    Ok(())
}

/// Waits until the agent is connected.
async fn connected(status: &mut watch::Receiver<SessionStatus>) -> Result<()> {
    let connected = status.wait_for(|status| *status == SessionStatus::Connected);
    if tokio::time::timeout(PATIENCE, connected).await.is_ok_and(|found| found.is_ok()) {
        return Ok(());
    }
    anyhow::bail!("the agent does not come back: {:?}", *status.borrow());
}

fn plenty() -> Resources {
    Resources { cpu: CpuUnits(1 << 30), memory: Mebibytes(1 << 30), gpus: 8, ..Resources::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_lives_through_any_conversation() -> Result<()> {
    let plane = Scripted::start("default").await?;
    let host = Host::start("fuzzed", "default", &format!("http://{}", plane.address), plenty()).await?;
    let mut campaign = Campaign::begin("to_agents", encoded(of_the_control_plane()))?;
    let mut status = host.status();
    while let Some((_, input)) = campaign.next(wire::change) {
        let Ok(message) = v1::ControlPlaneMessage::decode(&*input) else { continue };
        if matches!(message.message, Some(ToAgent::Close(_))) {
            continue;
        }
        connected(&mut status).await?;
        let (memory, began) = (Memory::begin(), Instant::now());
        plane.say(message);
        // The agent's own loop is alive, and so are those who ask it.
        tokio::task::yield_now().await;
        std::hint::black_box(host.engine().tasks());
        campaign.judge(&input, began, memory.within_bounds())?;
    }
    // It still runs what it is told to.
    connected(&mut status).await?;
    let (arns, _) = plane.run(vec![scripted::task("default", "none", 0)])?;
    plane.running(&arns, PATIENCE).await?;
    host.check()?;
    berth_tests::fuzz::no_panic()?;
    ensure!(host.stop().await, "the agent does not end");
    Ok(())
}

/// A control plane of this process, and a client of its API.
async fn control_plane(data: &tempfile::TempDir) -> Result<(Running, Ecs)> {
    let mut config = Config::local(data.path());
    // The host below says nothing of its own accord.
    config.heartbeat_interval = Duration::from_secs(100_000);
    let file = data.path().join("vpc.json");
    std::fs::write(
        &file,
        r#"{"subnets": [{"id": "subnet-1", "cidr": "10.0.0.0/8", "provider": "veth"}], "securityGroups": [{"id": "sg-1"}]}"#,
    )?;
    config.vpc = Some(file);
    let running = Daemon::start(config).await?;
    let ecs = Ecs::new(running.api_addr);
    Ok((running, ecs))
}

fn folder() -> Result<tempfile::TempDir> {
    let mut folder = tempfile::Builder::new();
    folder.prefix("berth-fuzz-");
    Ok(folder.tempdir_in("/dev/shm").or_else(|_| folder.tempdir())?)
}

/// A host that is connected, for what is placed on it; it runs nothing.
struct Bare {
    arn: String,
    hello: v1::Hello,
    client: ControlPlaneClient<Channel>,
}

impl Bare {
    async fn register(running: &Running, attributes: &[String]) -> Result<Self> {
        let channel = Channel::from_shared(format!("http://{}", running.agent_addr))?.connect().await?;
        let mut client = ControlPlaneClient::new(channel);
        let total =
            v1::Resources { cpu: 1 << 30, memory_mib: 1 << 30, enis: 1 << 20, gpus: 8, ..Default::default() };
        let attribute = |name: &String| v1::Attribute { name: name.clone(), value: String::new() };
        let request = v1::RegisterRequest {
            cluster: "default".to_owned(),
            host_key: "fuzz".to_owned(),
            total: Some(total),
            attributes: attributes.iter().map(attribute).collect(),
            versions: Some(v1::Versions::default()),
            protocol_version: berth_proto::PROTOCOL_VERSION,
            gpu_ids: (0..8).map(|n| format!("GPU-{n}")).collect(),
            ..Default::default()
        };
        let arn = client.register(request).await?.into_inner().container_instance_arn;
        let hello = v1::Hello {
            container_instance_arn: arn.clone(),
            host_key: "fuzz".to_owned(),
            outbox_epoch: "e".to_owned(),
            last_manifest_sequence: 0,
            last_seen: None,
        };
        Ok(Self { arn, hello, client })
    }

    /// A session, past its greeting. What the control plane says is read and dropped.
    async fn session(&mut self) -> Result<mpsc::Sender<v1::AgentMessage>> {
        let (outgoing, stream) = mpsc::channel(64);
        let hello = FromAgent::Hello(self.hello.clone());
        outgoing.send(v1::AgentMessage { message: Some(hello) }).await?;
        let mut heard = self.client.session(ReceiverStream::new(stream)).await?.into_inner();
        heard.message().await?.context("no greeting")?;
        let keep = outgoing.clone();
        #[expect(clippy::disallowed_methods, reason = "it ends with the session")]
        tokio::spawn(async move {
            while let Ok(Some(_)) = heard.message().await {}
            drop(keep);
        });
        Ok(outgoing)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_control_plane_lives_through_whatever_a_host_says() -> Result<()> {
    let data = folder()?;
    let (running, ecs) = control_plane(&data).await?;
    let mut host = Bare::register(&running, &[]).await?;
    let mut campaign = Campaign::begin("to_control_plane", encoded(of_agents(host.hello.clone())))?;
    let definition =
        json!({ "family": "f", "containerDefinitions": [{ "name": "app", "image": "i", "memory": 8 }] });
    ecs.call("RegisterTaskDefinition", definition).await?;
    let mut session = host.session().await?;
    while let Some((_, input)) = campaign.next(wire::change) {
        let Ok(message) = v1::AgentMessage::decode(&*input) else { continue };
        let (memory, began) = (Memory::begin(), Instant::now());
        // Who is let go comes back.
        if session.send(message).await.is_err() {
            session = host.session().await?;
        }
        campaign.judge(&input, began, memory.within_bounds())?;
    }
    for (operation, input) in [
        ("DescribeContainerInstances", json!({ "containerInstances": [host.arn] })),
        ("ListTasks", json!({})),
        ("RunTask", json!({ "taskDefinition": "f" })),
    ] {
        let called = ecs.call(operation, input).await;
        ensure!(!matches!(called, Err(EcsError::Broken(_))), "{operation}: {called:?}");
    }
    berth_tests::fuzz::no_panic()?;
    running.stop().await
}

/// What was given is in what is shown, whatever was added to it.
fn shown(given: &Value, shown_as: &Value, path: &str) -> Result<()> {
    match (given, shown_as) {
        // What is null was not given.
        (Value::Null, _) => Ok(()),
        (Value::Object(given), Value::Object(found)) => {
            for (key, value) in given {
                let Some(member) = found.get(key) else { continue };
                shown(value, member, &format!("{path}.{key}"))?;
            }
            Ok(())
        }
        (Value::Array(given), Value::Array(found)) => {
            ensure!(given.len() == found.len(), "{path}: {} of {}", found.len(), given.len());
            for (at, (given, found)) in given.iter().zip(found).enumerate() {
                shown(given, found, &format!("{path}[{at}]"))?;
            }
            Ok(())
        }
        // Amounts of a task in words become numbers; a host port follows the mode.
        _ if path == ".cpu" || path == ".memory" || path.ends_with(".hostPort") => Ok(()),
        (Value::Number(a), Value::Number(b)) if a.as_f64() == b.as_f64() => Ok(()),
        _ => {
            ensure!(given == shown_as, "{path}: {given} was given, {shown_as} is shown");
            Ok(())
        }
    }
}

/// The attributes that all definitions of the corpus want of a host.
async fn wanted(ecs: &Ecs, campaign: &Campaign) -> Result<Vec<String>> {
    let mut all = Vec::new();
    for (name, input) in campaign.corpus() {
        if !name.starts_with("RegisterTaskDefinition.") {
            continue;
        }
        let Ok(answer) = ecs.call_raw("RegisterTaskDefinition", input.clone()).await else { continue };
        let wanted = answer["taskDefinition"]["requiresAttributes"].as_array().cloned().unwrap_or_default();
        all.extend(wanted.iter().filter_map(|attribute| Some(attribute["name"].as_str()?.to_owned())));
    }
    all.sort();
    all.dedup();
    Ok(all)
}

fn change_input(chance: &mut Chance, one: &[u8], other: &[u8]) -> Vec<u8> {
    match (serde_json::from_slice::<Value>(one), serde_json::from_slice(other)) {
        (Ok(mut value), Ok(other)) if !chance.once_in(32) => {
            change_json::change(chance, &mut value, &other);
            value.to_string().into_bytes()
        }
        _ => berth_tests::fuzz::bytes::change(chance, one, other),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_api_answers_any_request() -> Result<()> {
    let data = folder()?;
    let (running, ecs) = control_plane(&data).await?;
    let mut campaign = Campaign::begin("ecs_api", [])?;
    let attributes = wanted(&ecs, &campaign).await?;
    let mut host = Bare::register(&running, &attributes).await?;
    let _session = host.session().await?;
    let (mut taken, mut refused) = (0_u64, 0_u64);
    while let Some((name, input)) = campaign.next(change_input) {
        let operation = name.split('.').next().unwrap_or_default();
        let (memory, began) = (Memory::begin(), Instant::now());
        let outcome = match ecs.call_raw(operation, input.clone()).await {
            Ok(_) => {
                taken += 1;
                Ok(())
            }
            Err(EcsError::Refused { status, .. }) if (400..500).contains(&status) => {
                refused += 1;
                Ok(())
            }
            Err(other) => Err(anyhow::anyhow!("{operation}: {other}")),
        };
        campaign.judge(&input, began, outcome.and_then(|()| memory.within_bounds()))?;
    }
    println!("{taken} taken, {refused} refused");
    ensure!(taken > 20 && refused > 20, "{taken} taken, {refused} refused: chance hits nothing");
    ecs.call("ListClusters", json!({})).await?;
    running.stop().await
}

/// One definition: where it is taken, it is shown as it came, and the agent's door takes its task.
async fn definition(running: &Running, ecs: &Ecs, input: &[u8], sent: &mut u64) -> Result<()> {
    let answer = match ecs.call_raw("RegisterTaskDefinition", input.to_vec()).await {
        Ok(answer) => answer,
        Err(EcsError::Refused { status, .. }) if (400..500).contains(&status) => return Ok(()),
        Err(other) => return Err(other.into()),
    };
    let mut given: Value = serde_json::from_slice(input)?;
    given.as_object_mut().context("no object was taken")?.remove("tags");
    let arn = answer["taskDefinition"]["taskDefinitionArn"].clone();
    let described = ecs.call("DescribeTaskDefinition", json!({ "taskDefinition": arn })).await?;
    shown(&given, &described["taskDefinition"], "")?;
    ensure!(answer["taskDefinition"] == described["taskDefinition"], "it is described as another");

    let mut run = json!({ "taskDefinition": arn });
    if described["taskDefinition"]["networkMode"] == "awsvpc" {
        run["networkConfiguration"] = json!({ "awsvpcConfiguration": { "subnets": ["subnet-1"] } });
    }
    let answer = match ecs.call("RunTask", run).await {
        Ok(answer) => answer,
        Err(EcsError::Refused { status, .. }) if (400..500).contains(&status) => return Ok(()),
        Err(other) => return Err(other.into()),
    };
    let Some(task) = answer["tasks"][0]["taskArn"].as_str() else { return Ok(()) };
    let id = task.rsplit('/').next().unwrap_or_default();
    let record = running.state.store.view().task("default", id).context("no record")?;
    let assignment = v1::Assignment {
        task_arn: task.to_owned(),
        desired: v1::DesiredStatus::Running.into(),
        spec: Some(convert::task_spec(&record.value.spec)),
        ..Default::default()
    };
    // As it goes over the wire.
    let assignment = v1::Assignment::decode(&*assignment.encode_to_vec())?;
    match admit(assignment) {
        Admitted::Assignment(admitted) => {
            let spec = admitted.spec.context("no specification")?;
            let same = serde_json::to_value(&*spec)? == serde_json::to_value(&record.value.spec)?;
            ensure!(
                same,
                "the agent understands\n{spec:?}\nwhere the control plane has\n{:?}",
                record.value.spec
            );
        }
        refused => anyhow::bail!("the agent's door refuses what the API took: {refused:?}"),
    }
    *sent += 1;
    ecs.call("StopTask", json!({ "task": task })).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_api_takes_is_shown_and_the_agent_takes_it() -> Result<()> {
    let data = folder()?;
    let (running, ecs) = control_plane(&data).await?;
    let corpus = Campaign::begin("ecs_api", [])?;
    let attributes = wanted(&ecs, &corpus).await?;
    let mut host = Bare::register(&running, &attributes).await?;
    let _session = host.session().await?;
    let definitions = corpus.corpus().iter().filter(|(name, _)| name.starts_with("RegisterTaskDefinition."));
    let mut campaign = Campaign::begin("definitions", definitions.map(|(_, input)| input.clone()))?;
    let mut sent = 0;
    while let Some((_, input)) = campaign.next(change_input) {
        let (memory, began) = (Memory::begin(), Instant::now());
        let outcome = definition(&running, &ecs, &input, &mut sent).await;
        campaign.judge(&input, began, outcome.and_then(|()| memory.within_bounds()))?;
    }
    println!("{sent} came to the agent's door");
    ensure!(sent > 5, "{sent} came to the agent's door: chance hits nothing");
    running.stop().await
}

/// The servers of an agent on a host in memory, with a task that asks; each with its address.
struct Served {
    host: Host,
    _fleet: Fleet,
    tracker: Tracker,
    endpoint: SocketAddr,
    introspection: SocketAddr,
    socket: PathBuf,
    id: String,
    _data: tempfile::TempDir,
}

impl Served {
    async fn start() -> Result<Self> {
        let fleet = Fleet::start(0, &plenty()).await?;
        let agents = fleet.control_plane()?.agent_addr.to_string();
        let host = Host::start("served", "fleet", &format!("http://{agents}"), plenty()).await?;
        let mut status = host.status();
        connected(&mut status).await?;
        let app = json!({ "name": "app", "image": "i", "memory": 8 });
        let definition = json!({ "family": "f", "networkMode": "host", "containerDefinitions": [app] });
        fleet.ecs.call("RegisterTaskDefinition", definition).await?;
        let run = json!({ "cluster": "fleet", "taskDefinition": "f" });
        berth_tests::eventually(PATIENCE, "a task runs", || async {
            if host.running().is_empty() && host.engine().tasks().is_empty() {
                fleet.ecs.call("RunTask", run.clone()).await?;
            }
            Ok((!host.running().is_empty()).then_some(()))
        })
        .await?;
        let (request, _) = host.runtime.containers().into_iter().next().context("no container")?;
        let uri = request.fetched.above.iter().find(|var| var.name == "ECS_CONTAINER_METADATA_URI_V4");
        let id = uri.and_then(|uri| uri.value.rsplit('/').next()).context("no name")?.to_owned();

        let (data, tracker) = (folder()?, Tracker::new());
        let readings = Readings::new(host.engine().clone(), Some("/nonexistent".into()));
        let about = Introspection {
            engine: host.engine().clone(),
            cluster: "fleet".to_owned(),
            instance: host.session().instance(),
            session: host.session().status(),
            draining: host.session().draining(),
            readings: Arc::clone(&readings),
            debug: true,
        };
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let introspection = listener.local_addr()?;
        let (serving, state) = (tracker.clone(), about.clone());
        tracker.spawn("introspection", async move { introspection::serve(listener, state, &serving).await });
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let endpoint = listener.local_addr()?;
        let rate = Rate { per_second: 1_000_000, burst: 1_000_000 };
        let state = TaskEndpoint::new(
            host.engine().clone(),
            endpoint.ip(),
            None,
            readings,
            rate,
            host.session().inquiries(),
        );
        let serving = tracker.clone();
        tracker.spawn("endpoint", async move { task::serve(listener, Arc::new(state), &serving).await });
        let socket = data.path().join("operator.sock");
        let listener = local::listen(&socket)?;
        let state = Local { about, data_dir: data.path().to_owned(), tracker: tracker.clone() };
        let stop = tracker.token().clone();
        tracker.spawn("operator", async move { drop(local::serve(listener, state, stop).await) });
        Ok(Self { host, _fleet: fleet, tracker, endpoint, introspection, socket, id, _data: data })
    }
}

/// Sends bytes, says that there are no more, and reads what comes, for a while.
async fn exchange(mut wire: impl AsyncReadExt + AsyncWriteExt + Unpin, input: &[u8]) -> Vec<u8> {
    let mut answer = Vec::new();
    // Whoever hears enough hangs up.
    let _ = wire.write_all(input).await;
    let _ = wire.shutdown().await;
    let _ = tokio::time::timeout(Duration::from_secs(1), wire.read_to_end(&mut answer)).await;
    answer
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_agent_serves_on_its_host_answers_anything() -> Result<()> {
    let served = Served::start().await?;
    let mut campaign = Campaign::begin("hosts_http", [])?;
    let mut answered = [0_u64; 3];
    let mut statuses = std::collections::BTreeMap::new();
    while let Some((_, input)) = campaign.next(berth_tests::fuzz::bytes::change) {
        let text: Vec<u8> = {
            let named = String::from_utf8_lossy(&input).replace("CID", &served.id).replace("ID", &served.id);
            // What is no text stays as it is.
            if std::str::from_utf8(&input).is_ok() { named.into_bytes() } else { input.clone() }
        };
        let (memory, began) = (Memory::begin(), Instant::now());
        let at = usize::try_from(campaign.chance.below(3))?;
        let answer = match at {
            0 => exchange(TcpStream::connect(served.endpoint).await?, &text).await,
            1 => exchange(TcpStream::connect(served.introspection).await?, &text).await,
            _ => exchange(UnixStream::connect(&served.socket).await?, &text).await,
        };
        answered[at] += u64::from(answer.starts_with(b"HTTP/1."));
        let status = String::from_utf8_lossy(answer.get(9..12).unwrap_or_default()).into_owned();
        *statuses.entry(status).or_insert(0) += 1;
        let unharmed = memory.within_bounds().and_then(|()| {
            let broken = answer.starts_with(b"HTTP/1.1 500");
            ensure!(!broken, "{}", String::from_utf8_lossy(&answer));
            Ok(())
        });
        campaign.judge(&input, began, unharmed)?;
    }
    println!("{answered:?} {statuses:?}");
    ensure!(answered.iter().all(|count| *count > 3), "{answered:?}: chance hits nothing");
    let (status, _) =
        berth_tests::http::get(&format!("http://{}/v4/{}/task", served.endpoint, served.id)).await?;
    ensure!(status.is_success(), "{status}");
    ensure!(served.tracker.shutdown(PATIENCE).await, "the servers do not end");
    ensure!(served.host.stop().await, "the agent does not end");
    Ok(())
}
