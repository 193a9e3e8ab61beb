//! The engine in memory keeps the promises of the port.

use std::collections::BTreeMap;
use std::sync::Arc;

use berth_core::ids::{ContainerName, EngineId, Family, TaskArn};
use berth_core::spec::{ContainerSpec, HealthCheck, NetworkMode, TaskFields, TaskSpec};
use berth_core::task::{Fact, Health, PortBinding};
use berth_core::units::{Mebibytes, Millis, PortRange, Protocol, Timestamp};
use futures_util::StreamExt;
use tokio::time::{Duration, Instant, timeout};

use super::{Behaviour, Call, FakeRuntime};
use crate::runtime::{CreateRequest, EngineEventKind, Fetched, PullRequest, Runtime, RuntimeError};

fn request(number: u8, image: &str) -> CreateRequest {
    let container = ContainerName::new("web").unwrap();
    let mut spec = ContainerSpec::minimal(container.clone(), image, Mebibytes(16));
    spec.health_check = (image == "checked").then(|| HealthCheck {
        command: vec!["CMD".to_owned(), "/check".to_owned()],
        interval: Millis(1000),
        timeout: Millis(1000),
        retries: 1,
        start_period: Millis(0),
    });
    let fields = TaskFields {
        arn: TaskArn::new(format!("arn:aws:ecs:eu-west-1:123456789012:task/blue/{number:032x}")).unwrap(),
        family: Family::new("f").unwrap(),
        revision: 1,
        network_mode: NetworkMode::Bridge,
        cpu: None,
        memory: None,
        containers: vec![spec],
        attachment: None,
        pid_mode: None,
        ipc_mode: None,
        volumes: Vec::new(),
        task_role: None,
        fault_injection: false,
    };
    CreateRequest {
        name: format!("web-{number}"),
        task: Arc::new(TaskSpec::try_from(fields).unwrap()),
        container: 0,
        bindings: vec![PortBinding {
            container,
            container_ports: PortRange::single(80).unwrap(),
            host_ports: PortRange::single(8000 + u16::from(number)).unwrap(),
            protocol: Protocol::Tcp,
        }],
        gpus: Vec::new(),
        links: Vec::new(),
        volumes: BTreeMap::new(),
        volumes_from: Vec::new(),
        host_mounts: Vec::new(),
        log: None,
        cgroup_parent: None,
        holder: None,
        labels: BTreeMap::new(),
        fetched: Fetched::default(),
    }
}

async fn started(engine: &FakeRuntime, request: CreateRequest) -> EngineId {
    let id = engine.create(request).await.unwrap();
    engine.start(&id).await.unwrap();
    id
}

async fn exit_code(engine: &FakeRuntime, id: &EngineId) -> Option<i32> {
    match engine.inspect(id).await.unwrap() {
        Fact::Exited { exit, .. } => Some(exit.code),
        _ => None,
    }
}

fn wanted(reference: &str) -> PullRequest<'_> {
    PullRequest { reference, auth: None, begin: Millis(1), inactivity: Millis(1), progress: &|_| () }
}

#[tokio::test(start_paused = true)]
async fn containers_end_when_their_time_has_come_and_readers_hear_of_it() {
    let engine = FakeRuntime::at(Timestamp(1_000_000));
    engine.behave("job", Behaviour { exits: Some((Millis(5000), 3)), ..Behaviour::default() });
    let mut events = engine.events(None).await.unwrap();
    let id = started(&engine, request(1, "job")).await;
    assert_eq!(exit_code(&engine, &id).await, None);
    let begun = Instant::now();
    let first = events.next().await.unwrap().unwrap();
    let second = events.next().await.unwrap().unwrap();
    assert_eq!(
        [first.kind, second.kind],
        [EngineEventKind::Started, EngineEventKind::Died { exit_code: Some(3) }]
    );
    assert_eq!(begun.elapsed().as_secs(), 5);
    assert_eq!(exit_code(&engine, &id).await, Some(3));
    assert_eq!(engine.now(), Timestamp(1_005_000));

    engine.remove(&id).await.unwrap();
    assert_eq!(engine.inspect(&id).await.unwrap(), Fact::Missing);
    let mut replay = engine.events(Some(first.time_ns)).await.unwrap();
    assert_eq!(replay.next().await.unwrap().unwrap(), second, "the cursor itself is known already");
}

#[tokio::test(start_paused = true)]
async fn a_stop_goes_its_way_even_when_nobody_waits() {
    let engine = FakeRuntime::new();
    engine.behave("deaf", Behaviour { ignores_stop: true, ..Behaviour::default() });
    let (deaf, polite) =
        (started(&engine, request(1, "deaf")).await, started(&engine, request(2, "x")).await);
    engine.stop(&polite, Millis::from_secs(30)).await.unwrap();
    assert_eq!(exit_code(&engine, &polite).await, Some(143));
    let given_up = timeout(Duration::from_secs(1), engine.stop(&deaf, Millis::from_secs(30))).await;
    assert!(given_up.is_err());
    tokio::time::sleep(Duration::from_secs(29)).await;
    assert_eq!(exit_code(&engine, &deaf).await, Some(137));
    engine.stop(&deaf, Millis::from_secs(30)).await.unwrap();
}

#[tokio::test]
async fn names_ports_and_images_are_as_with_an_engine() {
    let engine = FakeRuntime::new();
    let id = engine.create(request(1, "x")).await.unwrap();
    assert_eq!(engine.create(request(1, "x")).await.unwrap(), id, "the same request, the same container");
    let mut other = request(2, "x");
    other.name = request(1, "x").name;
    assert!(matches!(engine.create(other).await, Err(RuntimeError::Refused(_))));

    engine.occupy(8001, Protocol::Tcp);
    assert!(matches!(engine.start(&id).await, Err(RuntimeError::PortTaken(_))));
    engine.vacate(8001, Protocol::Tcp);
    engine.start(&id).await.unwrap();
    assert!(matches!(engine.remove(&id).await, Err(RuntimeError::Refused(_))));

    engine.remote_image("far");
    engine.no_image("nowhere");
    assert!(matches!(engine.create(request(3, "far")).await, Err(RuntimeError::NoSuchImage(_))));
    engine.pull(wanted("far")).await.unwrap();
    engine.create(request(3, "far")).await.unwrap();
    assert!(matches!(engine.pull(wanted("nowhere")).await, Err(RuntimeError::Refused(_))));
    let images = engine.images().await.unwrap();
    assert_eq!(images.iter().map(|image| image.name.as_str()).collect::<Vec<_>>(), ["far:latest"]);
    assert!(matches!(engine.remove_image("far:latest").await, Err(RuntimeError::Refused(_))));
}

#[tokio::test]
async fn it_fails_on_demand() {
    let engine = FakeRuntime::new();
    engine.fail_next(Call::Create, RuntimeError::Refused("disk full".to_owned()));
    assert!(engine.create(request(1, "x")).await.is_err());
    assert_eq!(engine.list().await.unwrap().len(), 0);
    engine.lose_next_answer(Call::Create);
    assert!(matches!(engine.create(request(1, "x")).await, Err(RuntimeError::Unavailable(_))));
    assert_eq!(engine.list().await.unwrap().len(), 1, "it had its effect");
    assert_eq!(engine.calls(Call::Create), 2);

    let mut events = engine.events(None).await.unwrap();
    engine.down();
    assert!(events.next().await.unwrap().is_err() && events.next().await.is_none());
    assert!(matches!(engine.list().await, Err(RuntimeError::Unavailable(_))));
    engine.up();
    let id = started(&engine, request(2, "x")).await;
    engine.oom(&id);
    let Fact::Exited { exit, .. } = engine.inspect(&id).await.unwrap() else { panic!("it was killed") };
    assert!(exit.oom_killed && exit.code == 137);
}

#[tokio::test(start_paused = true)]
async fn health_is_told_and_lost_events_are_lost() {
    let engine = FakeRuntime::new();
    engine.behave(
        "checked",
        Behaviour { health: Some((Millis(200), Health::Healthy)), ..Behaviour::default() },
    );
    let mut events = engine.events(None).await.unwrap();
    engine.lose_events(true);
    let id = started(&engine, request(1, "checked")).await;
    engine.lose_events(false);
    assert_eq!(events.next().await.unwrap().unwrap().kind, EngineEventKind::Health);
    let Fact::Running { health, .. } = engine.inspect(&id).await.unwrap() else { panic!("it runs") };
    assert_eq!(health, Some(Health::Healthy));
}

#[tokio::test]
async fn agents_of_other_namespaces_see_nothing_of_ours() {
    let engine = FakeRuntime::new();
    let (ours, theirs) = (engine.in_namespace("a"), engine.in_namespace("b"));
    started(&ours, request(1, "x")).await;
    assert_eq!(ours.list().await.unwrap().len(), 1);
    assert!(theirs.list().await.unwrap().is_empty());
    assert_eq!(engine.list().await.unwrap().len(), 1);
}
