//! The Docker adapter against a real engine, with the demo image as every container.
//!
//! Needs an engine on `DOCKER_HOST` (else the usual socket) that has `berth-demo:latest`
//! (`tests/scripts/demo-image.sh`). Without them the tests fail: what was not tried does not work.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on panics")]

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use berth_agent::runtime::docker::{Docker, DockerConfig};
use berth_agent::runtime::{
    CreateRequest, EngineEvent, EngineEventKind, Fetched, ImageFacts, PullRequest, Runtime, RuntimeError,
    inspect_all, labels,
};
use berth_core::ids::{ContainerName, EngineId, Family, TaskArn};
use berth_core::spec::{ContainerSpec, EnvVar, HealthCheck, NetworkMode, TaskFields, TaskSpec};
use berth_core::task::{Exit, Fact, Health, PortBinding};
use berth_core::units::{Mebibytes, Millis, PortRange, Protocol};
use futures_util::StreamExt;
use futures_util::future::join_all;
use futures_util::stream::BoxStream;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener, UnixStream};

const IMAGE: &str = "berth-demo:latest";

static COUNTER: AtomicU64 = AtomicU64::new(0);

/// Where the engine listens.
fn host() -> String {
    std::env::var("DOCKER_HOST").unwrap_or_else(|_| DockerConfig::default().host)
}

/// Hands a connection on to the engine.
async fn relay(mut near: impl AsyncRead + AsyncWrite + Unpin) {
    let mut far = UnixStream::connect(host().trim_start_matches("unix://")).await.unwrap();
    let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
}

/// An engine and a namespace of the test's own; what is left of it is removed at the end.
struct Rig {
    docker: Docker,
    namespace: String,
}

impl Rig {
    fn new() -> Self {
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        let namespace = format!("berth-test-{}-{number}", std::process::id());
        let config =
            DockerConfig { host: host(), namespace: Some(namespace.clone()), ..DockerConfig::default() };
        Self { docker: Docker::new(config).unwrap(), namespace }
    }

    /// A request for a container that runs `berth-demo` with these words.
    fn request(&self, words: &[&str]) -> Request {
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        let id = format!("{:016x}{number:016x}", std::process::id());
        let mut spec = ContainerSpec::minimal(ContainerName::new("main").unwrap(), IMAGE, Mebibytes(32));
        spec.command = Some(words.iter().map(ToString::to_string).collect());
        Request {
            name: format!("{}-{number}", self.namespace),
            arn: TaskArn::new(format!("arn:aws:ecs:eu-west-1:123456789012:task/test/{id}")).unwrap(),
            network: NetworkMode::None,
            spec,
            bindings: Vec::new(),
        }
    }

    async fn pull(&self, reference: &str) -> Result<ImageFacts, RuntimeError> {
        let patience = Millis::from_secs(60);
        let request =
            PullRequest { reference, auth: None, begin: patience, inactivity: patience, progress: &|_| () };
        self.docker.pull(request).await
    }

    async fn start(&self, request: &Request) -> EngineId {
        let id = self.docker.create(request.build()).await.unwrap();
        self.docker.start(&id).await.unwrap();
        id
    }

    /// Waits until an inspection says what is wanted: the engine learns of an exit a moment later.
    async fn until<T>(&self, id: &EngineId, what: &str, wanted: impl Fn(Fact) -> Option<T>) -> T {
        let begun = Instant::now();
        loop {
            let fact = self.docker.inspect(id).await.unwrap();
            if let Some(found) = wanted(fact.clone()) {
                return found;
            }
            assert!(begun.elapsed() < Duration::from_secs(30), "{what}: still {fact:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn until_exited(&self, id: &EngineId) -> Exit {
        self.until(id, "exited", |fact| match fact {
            Fact::Exited { exit, .. } => Some(exit),
            _ => None,
        })
        .await
    }

    /// Waits until its program says something.
    async fn first_words(&self, id: &EngineId) {
        let mut said = self.docker.logs(id, None, true).await.unwrap();
        let words = tokio::time::timeout(Duration::from_secs(30), said.next()).await;
        assert!(matches!(words, Ok(Some(Ok(_)))), "{id} says {words:?}");
    }

    async fn events(&self, since: Option<i64>) -> BoxStream<'static, Result<EngineEvent, RuntimeError>> {
        self.docker.events(since).await.unwrap()
    }

    async fn sweep(&self) {
        let left = self.docker.list().await.unwrap();
        join_all(left.iter().map(|listed| async {
            self.docker.kill(&listed.id).await.unwrap();
            self.docker.remove(&listed.id).await.unwrap();
        }))
        .await;
    }
}

/// What a test varies of a request.
#[derive(Clone)]
struct Request {
    name: String,
    arn: TaskArn,
    network: NetworkMode,
    spec: ContainerSpec,
    bindings: Vec<PortBinding>,
}

impl Request {
    fn build(&self) -> CreateRequest {
        let fields = TaskFields {
            arn: self.arn.clone(),
            family: Family::new("test").unwrap(),
            revision: 1,
            network_mode: self.network,
            cpu: None,
            memory: None,
            containers: vec![self.spec.clone()],
            attachment: None,
            pid_mode: None,
            ipc_mode: None,
            volumes: Vec::new(),
            task_role: None,
            fault_injection: false,
        };
        CreateRequest {
            name: self.name.clone(),
            task: Arc::new(TaskSpec::try_from(fields).unwrap()),
            container: 0,
            bindings: self.bindings.clone(),
            gpus: Vec::new(),
            links: Vec::new(),
            volumes: BTreeMap::new(),
            volumes_from: Vec::new(),
            host_mounts: Vec::new(),
            log: self.spec.log.clone(),
            cgroup_parent: None,
            holder: None,
            labels: BTreeMap::from([(labels::SPEC.to_owned(), "{}".to_owned())]),
            fetched: Fetched {
                below: vec![EnvVar { name: "AGENT".to_owned(), value: "1".to_owned() }],
                ..Fetched::default()
            },
        }
    }
}

/// Runs a test, then removes what it made, also when it fails.
async fn with_rig<F: Future<Output = ()>>(test: impl FnOnce(Arc<Rig>) -> F) {
    let rig = Arc::new(Rig::new());
    let outcome =
        futures_util::FutureExt::catch_unwind(std::panic::AssertUnwindSafe(test(Arc::clone(&rig)))).await;
    rig.sweep().await;
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}

async fn kinds(
    events: &mut BoxStream<'static, Result<EngineEvent, RuntimeError>>,
    id: &EngineId,
    last: EngineEventKind,
) -> Vec<EngineEvent> {
    let mut seen = Vec::new();
    let read = async {
        while let Some(event) = events.next().await {
            let event = event.unwrap();
            if event.id == *id {
                seen.push(event.clone());
                if event.kind == last {
                    return;
                }
            }
        }
    };
    let in_time = tokio::time::timeout(Duration::from_secs(20), read).await.is_ok();
    assert!(in_time, "no {last:?} among {seen:?}");
    seen
}

#[tokio::test]
async fn a_container_lives_and_its_events_and_facts_tell_so() {
    with_rig(|rig| async move {
        let info = rig.docker.info().await.unwrap();
        assert!(info.api >= (1, 41), "{info:?}");
        assert!([1, 2].contains(&info.cgroup_version) && !info.log_drivers.is_empty(), "{info:?}");

        let mut events = rig.events(None).await;
        let mut request = rig.request(&["serve"]);
        request.spec.environment = vec![EnvVar { name: "AGENT".to_owned(), value: "user".to_owned() }];
        let id = rig.docker.create(request.build()).await.unwrap();
        assert_eq!(rig.docker.inspect(&id).await.unwrap(), Fact::Created { id: id.clone() });
        // The same request again finds the container that the first one made.
        assert_eq!(rig.docker.create(request.build()).await.unwrap(), id);

        rig.docker.start(&id).await.unwrap();
        rig.docker.start(&id).await.unwrap();
        let Fact::Running { started_at, health, .. } = rig.docker.inspect(&id).await.unwrap() else {
            panic!("it does not run")
        };
        assert_eq!(health, None);
        assert!(rig.docker.now().since(started_at).0 < 60_000);

        let listed = rig.docker.list().await.unwrap();
        assert_eq!(listed.len(), 1);
        assert_eq!((&listed[0].id, &listed[0].task), (&id, &request.arn));
        assert_eq!(listed[0].spec.as_deref(), Some("{}"));

        // It heeds no signal before it is up.
        rig.first_words(&id).await;
        rig.docker.stop(&id, Millis(5000)).await.unwrap();
        rig.docker.stop(&id, Millis(5000)).await.unwrap();
        rig.docker.kill(&id).await.unwrap();
        let exit = rig.until_exited(&id).await;
        assert_eq!((exit.code, exit.oom_killed), (0, false));
        assert!(exit.finished_at.unwrap() >= exit.started_at.unwrap());

        rig.docker.remove(&id).await.unwrap();
        rig.docker.remove(&id).await.unwrap();
        rig.docker.stop(&id, Millis(0)).await.unwrap();
        assert_eq!(rig.docker.inspect(&id).await.unwrap(), Fact::Missing);
        assert!(matches!(rig.docker.start(&id).await, Err(RuntimeError::NoSuchContainer(_))));

        use EngineEventKind::{Died, Removed, Started};
        let seen = kinds(&mut events, &id, Removed).await;
        let died = Died { exit_code: Some(exit.code) };
        assert_eq!(seen.iter().map(|event| event.kind).collect::<Vec<_>>(), [Started, died, Removed]);
        assert_eq!(seen[0].task, request.arn);

        // From the start's event on, exclusively: the replay has the other two, in order.
        let mut replay = rig.events(Some(seen[0].time_ns)).await;
        let again = kinds(&mut replay, &id, Removed).await;
        assert_eq!(again, seen[1..]);
    })
    .await;
}

#[tokio::test]
async fn what_is_not_there_or_in_the_way_is_named() {
    with_rig(|rig| async move {
        let mut request = rig.request(&["serve"]);
        request.spec.image = "berth-test.invalid/nothing:1".to_owned();
        match rig.docker.create(request.build()).await {
            Err(RuntimeError::NoSuchImage(image)) => assert_eq!(image, request.spec.image),
            other => panic!("{other:?}"),
        }
        assert_eq!(rig.docker.image(&request.spec.image).await.unwrap(), None);
        let found = rig.docker.image("berth-demo").await.unwrap().unwrap();
        assert!(found.id.starts_with("sha256:"), "{found:?}");
        let pulled = rig.pull(&request.spec.image).await;
        assert!(matches!(&pulled, Err(RuntimeError::Refused(why)) if !why.is_empty()), "{pulled:?}");

        let id = rig.start(&rig.request(&["serve"])).await;
        let mut other = rig.request(&["serve"]);
        let taken = rig.docker.list().await.unwrap().remove(0);
        other.name =
            format!("{}-{}", rig.namespace, u64::from_str_radix(&taken.task.id()[16..], 16).unwrap());
        match rig.docker.create(other.build()).await {
            Err(RuntimeError::Refused(why)) => {
                assert!(why.contains(id.as_str()) && why.contains(taken.task.as_str()), "{why}");
            }
            other => panic!("{other:?}"),
        }
        assert!(matches!(rig.docker.remove(&id).await, Err(RuntimeError::Refused(_))), "a running one");

        let mut broken = rig.request(&[]);
        broken.spec.entry_point = Some(vec!["/no/such/program".to_owned()]);
        let id = rig.docker.create(broken.build()).await.unwrap();
        match rig.docker.start(&id).await {
            Err(RuntimeError::Refused(why)) => {
                assert!(why.contains("no such file") && !why.ends_with(": unknown"), "{why}");
            }
            other => panic!("{other:?}"),
        }
        let fact = rig.docker.inspect(&id).await.unwrap();
        assert_eq!(fact, Fact::Created { id }, "it never ran");
    })
    .await;
}

#[tokio::test]
async fn a_taken_port_is_told_from_other_failures() {
    with_rig(|rig| async move {
        let taken = std::net::TcpListener::bind("0.0.0.0:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        let mut request = rig.request(&["serve"]);
        request.network = NetworkMode::Bridge;
        request.bindings = vec![PortBinding {
            container: request.spec.name.clone(),
            container_ports: PortRange::single(8080).unwrap(),
            host_ports: PortRange::single(port).unwrap(),
            protocol: Protocol::Tcp,
        }];
        let id = rig.docker.create(request.build()).await.unwrap();
        let failed = rig.docker.start(&id).await;
        assert!(
            matches!(&failed, Err(RuntimeError::PortTaken(why)) if why.contains(&port.to_string())),
            "{failed:?}"
        );
        assert_eq!(rig.docker.inspect(&id).await.unwrap(), Fact::Created { id: id.clone() });

        drop(taken);
        rig.docker.start(&id).await.unwrap();
        let mut second = rig.request(&["serve"]);
        (second.network, second.bindings) = (request.network, request.bindings);
        let second = rig.docker.create(second.build()).await.unwrap();
        let failed = rig.docker.start(&second).await;
        assert!(matches!(&failed, Err(RuntimeError::PortTaken(_))), "{failed:?}");
    })
    .await;
}

#[tokio::test]
async fn exits_are_told_with_code_cause_and_health() {
    with_rig(|rig| async move {
        let mut events = rig.events(None).await;
        let code = rig.start(&rig.request(&["exit", "7"])).await;
        let mut greedy = rig.request(&["eat-memory", "64"]);
        greedy.spec.memory = Some(Mebibytes(16));
        let greedy = rig.start(&greedy).await;
        let mut checked = rig.request(&["serve"]);
        checked.spec.health_check = Some(HealthCheck {
            command: ["CMD", "/berth-demo", "healthy"].map(str::to_owned).to_vec(),
            interval: Millis(1000),
            timeout: Millis(2000),
            retries: 1,
            start_period: Millis(0),
        });
        let checked = rig.start(&checked).await;
        let Fact::Running { health, .. } = rig.docker.inspect(&checked).await.unwrap() else {
            panic!("gone")
        };
        assert!(health.is_some());

        assert_eq!(rig.until_exited(&code).await.code, 7);
        let exit = rig.until_exited(&greedy).await;
        assert_eq!((exit.code, exit.oom_killed), (137, true), "{exit:?}");
        rig.until(&checked, "healthy", |fact| match fact {
            Fact::Running { health: Some(Health::Healthy), .. } => Some(()),
            _ => None,
        })
        .await;
        kinds(&mut events, &checked, EngineEventKind::Health).await;
    })
    .await;
}

#[tokio::test]
async fn a_slow_stop_delays_nobody() {
    with_rig(|rig| async move {
        let stubborn = rig.request(&["ignore-term"]);
        let slow = join_all((0..3).map(|n| {
            let mut request = stubborn.clone();
            request.name = format!("{}-s{n}", request.name);
            let rig = Arc::clone(&rig);
            async move { rig.start(&request).await }
        }))
        .await;
        let quick = rig.start(&rig.request(&["serve"])).await;
        // Process 1 has to be up before it can ignore or heed anything.
        join_all(slow.iter().chain([&quick]).map(|id| rig.first_words(id))).await;

        let begun = Instant::now();
        let mut slow_stops = pin!(join_all(slow.iter().map(|id| rig.docker.stop(id, Millis(2500)))));
        let quick_stop = rig.docker.stop(&quick, Millis::from_secs(30));
        tokio::select! {
            biased;
            _ = &mut slow_stops => panic!("the stubborn ones stopped first"),
            stopped = quick_stop => drop(stopped.unwrap()),
        }
        assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
        for stopped in slow_stops.await {
            stopped.unwrap();
        }
        // The grace is rounded up to whole seconds.
        assert!(begun.elapsed() >= Duration::from_millis(2900), "{:?}", begun.elapsed());
        assert_eq!(rig.until_exited(&slow[0]).await.code, 137);
    })
    .await;
}

#[tokio::test]
async fn an_engine_that_comes_late_or_comes_back_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("engine.sock");
    let config = DockerConfig { host: format!("unix://{}", socket.display()), ..DockerConfig::default() };
    let docker = Docker::new(config).unwrap();
    assert!(matches!(docker.info().await, Err(RuntimeError::Unavailable(_))));

    // A relay to the real engine stands for an engine that starts, stops and starts again.
    for _ in 0..2 {
        let listener = UnixListener::bind(&socket).unwrap();
        let relay = async {
            loop {
                relay(listener.accept().await.unwrap().0).await;
            }
        };
        tokio::select! {
            () = relay => {}
            info = docker.info() => assert!(!info.unwrap().version.is_empty()),
        }
        drop(listener);
        std::fs::remove_file(&socket).unwrap();
        assert!(matches!(docker.list().await, Err(RuntimeError::Unavailable(_))));
    }
}

#[tokio::test]
async fn an_engine_may_be_reached_over_tcp() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let host = format!("tcp://{}", listener.local_addr().unwrap());
    let docker = Docker::new(DockerConfig { host, ..DockerConfig::default() }).unwrap();
    let relay = async {
        loop {
            relay(listener.accept().await.unwrap().0).await;
        }
    };
    tokio::select! {
        () = relay => {}
        info = docker.info() => assert!(!info.unwrap().version.is_empty()),
    }
}

/// The agent may add some milliseconds to what the engine takes, and has fifty containers to
/// recover in a blink. Prints what it measures; the bounds are wide, for a busy host.
#[tokio::test]
async fn calls_are_quick() {
    with_rig(|rig| async move {
        let begun = Instant::now();
        rig.docker.info().await.unwrap();
        println!("connect + info: {:?}", begun.elapsed());

        let (mut creates, mut starts) = (Vec::new(), Vec::new());
        for _ in 0..8 {
            let mut request = rig.request(&["serve"]);
            request.network = NetworkMode::Host;
            request.spec.command = Some(["sleep", "600"].map(str::to_owned).to_vec());
            let begun = Instant::now();
            let id = rig.docker.create(request.build()).await.unwrap();
            creates.push(begun.elapsed());
            let begun = Instant::now();
            rig.docker.start(&id).await.unwrap();
            starts.push(begun.elapsed());
        }
        join_all(
            (0..42).map(|_| async { rig.docker.create(rig.request(&["serve"]).build()).await.unwrap() }),
        )
        .await;

        let begun = Instant::now();
        let listed = rig.docker.list().await.unwrap();
        let list = begun.elapsed();
        assert_eq!(listed.len(), 50);
        let ids: Vec<EngineId> = listed.into_iter().map(|listed| listed.id).collect();
        let begun = Instant::now();
        let facts = inspect_all(&rig.docker, &ids).await;
        let inspects = begun.elapsed();
        assert!(facts.iter().all(|(_, fact)| fact.is_ok()));
        let begun = Instant::now();
        rig.docker.inspect(&ids[0]).await.unwrap();
        let inspect = begun.elapsed();

        creates.sort_unstable();
        starts.sort_unstable();
        println!("create {:?} (median), start {:?} (median, host network)", creates[4], starts[4]);
        println!("inspect {inspect:?}, list of 50 {list:?}, 50 inspections {inspects:?}");
        assert!(list + inspects < Duration::from_secs(1), "{list:?} + {inspects:?}");
    })
    .await;
}

#[tokio::test]
async fn stopped_containers_of_others_are_known_and_no_container_of_an_agents() {
    with_rig(|rig| async move {
        let mut request = rig.request(&["serve"]);
        request.name += "-task";
        let ours = rig.docker.create(request.build()).await.unwrap();
        let name = format!("{}-stranger", rig.namespace);
        let made =
            std::process::Command::new("docker").args(["create", "--name", &name, IMAGE]).output().unwrap();
        let stranger = EngineId::new(String::from_utf8(made.stdout).unwrap().trim()).unwrap();
        let found = rig.docker.strangers().await;
        rig.docker.remove(&stranger).await.unwrap();
        let found = found.unwrap();
        let at = found.iter().find(|(id, _)| id == &stranger).map(|(_, at)| at.0);
        let now = rig.docker.now().0;
        assert!(at.is_some_and(|at| now.saturating_sub(at) < 60_000), "{at:?} {now}");
        assert!(found.iter().all(|(id, _)| id != &ours));
        let listed = rig.docker.images().await.unwrap();
        assert!(listed.iter().any(|image| image.name == IMAGE && image.bytes > 0), "{listed:?}");
    })
    .await;
}
