//! Promise: an agent that dies, hangs or fails at any point at which it touches the world loses and doubles no task
//! and leaves nothing behind, whether a task is on its way up, runs, stops or is cleaned up, in every network mode.
//! Real engine, kernel and control plane; the agent is the one that ships, with somebody beside what it does.
//!
//! Where the agent comes by in which phase is seen first, in a life without faults. Then follows what `BERTH_FAULTS`
//! says: `all` strikes every point in every phase and mode with every fault, `2/5` the second fifth of that,
//! `runtime.create` the points whose names begin so. Unless told, it is the fifth of the day: all of it in five days.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs;
use std::net::TcpListener;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail, ensure};
use berth_tests::expect::PATIENCE;
use berth_tests::faults::{FOLDER, Fault, Trigger, is_senseless, points};
use berth_tests::{Cluster, Endpoint, demo, eventually, vpc};
use serde_json::{Value, json};
use tempfile::TempDir;

const ROLE: &str = "arn:aws:iam::123456789012:role/web";
/// In how many days all of it is done: no multiple of the kinds of faults, so that each day has every kind.
const PARTS: u64 = 5;
/// Longest that a phase takes in which a fault does not come about after all.
const WITHOUT: Duration = Duration::from_secs(6);
/// What is done after that a phase is seen to be over takes no longer.
const AFTER: Duration = Duration::from_millis(300);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    Launch,
    Running,
    Stop,
    CleanUp,
}

const MODES: [&str; 3] = ["none", "bridge", "awsvpc"];

/// Effects that a life without mishaps has no use for, and who has them struck, or done while the engine or the registry
/// fails.
const ELSEWHERE: [(&str, &str); 13] = [
    ("runtime.kill", "a container that outlasts its stop: seeded.rs"),
    ("runtime.logs", "an operator asks: exec.rs"),
    ("runtime.images", "images of others are cleaned up: seeded.rs"),
    ("runtime.strangers", "containers of others are cleaned up: seeded.rs"),
    ("runtime.remove-image", "old images are cleaned up: seeded.rs"),
    ("runtime.tag", "an image comes from a mirror that fails: images.rs"),
    ("runtime.pull", "the image is not there: seeded.rs"),
    ("cgroups.kill", "a container that outlasts its stop: seeded.rs"),
    ("cgroups.remove-id", "a cgroup of nobody is found: seeded.rs"),
    ("acquire.gpus", "a host with GPUs: seeded.rs"),
    ("release.gpus", "a host with GPUs: seeded.rs"),
    ("images.keep", "an image was pulled: what is lost is that it may go some day"),
    ("store.load", "its end is as good as that of what follows it"),
];

/// One thing that befalls the agent.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Cell {
    point: String,
    fault: Fault,
    phase: Phase,
}

/// A host of one network mode, and what it is used for.
struct Host {
    mode: &'static str,
    cluster: Cluster,
    trigger: Trigger,
    definition: String,
    bystander: String,
    untouched: Untouched,
    _endpoint: Endpoint,
    _folder: TempDir,
}

/// What a host has without tasks.
#[derive(Debug, PartialEq)]
struct Untouched {
    traces: BTreeSet<String>,
    cgroups: BTreeSet<String>,
    metadata: BTreeSet<String>,
    routers: BTreeSet<String>,
    remaining: Value,
}

impl Host {
    async fn start(mode: &'static str) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let keys = json!({ "AccessKeyId": "id", "SecretAccessKey": "key", "SessionToken": "token" });
        let roles = folder.path().join("roles.json");
        fs::write(&roles, json!({ ROLE: keys }).to_string())?;
        fs::create_dir(folder.path().join("kept"))?;
        fs::write(folder.path().join("kept/word"), "hush")?;
        let faults = folder.path().join("faults");
        fs::create_dir(&faults)?;
        let secrets = format!("directory:{}", folder.path().join("kept").display());
        let at = faults.display().to_string();
        let endpoint = Endpoint::new()?;
        let address = endpoint.address();
        let env = [
            (FOLDER, at.as_str()),
            ("BERTH_SECRETS", &secrets),
            ("BERTH_ENDPOINT_ADDRESS", &address),
            ("ECS_ENABLE_CONTAINER_METADATA", "true"),
            ("ECS_ENGINE_TASK_CLEANUP_WAIT_DURATION", "1s"),
            vpc::ENV[0],
        ];
        let credentials = format!("file:{}", roles.display());
        let subnets = vpc::Vpc::new("veth");
        let own = [("BERTH_CP_CREDENTIALS", credentials.as_str())];
        let cluster = Cluster::start_vpc_with(subnets.file(), &own, &env).await?;
        let definition = cluster.register(definition(mode)).await?;
        let one = json!([demo::container_with("one", &["sleep", "3600"], json!({ "memory": 16 }))]);
        let bystander = cluster.register(demo::task("bystander", "none", one)).await?;
        let trigger = Trigger::new(faults);
        let mut host = Self {
            mode,
            untouched: Untouched::of(&cluster).await?,
            cluster,
            trigger,
            definition,
            bystander,
            _endpoint: endpoint,
            _folder: folder,
        };
        // The first has bridges and pools made that stay.
        host.life(&mut BTreeMap::new(), &mut Tally::default()).await.context("a first life")?;
        host.untouched = Untouched::of(&host.cluster).await?;
        host.trigger.passed()?;
        Ok(host)
    }

    /// Where the agent comes by in each phase of a life without faults.
    async fn survey(&mut self) -> Result<BTreeMap<Phase, BTreeSet<String>>> {
        let mut tally = Tally { surveys: true, ..Tally::default() };
        self.life(&mut BTreeMap::new(), &mut tally).await.context("a life without faults")?;
        Ok(tally.passed)
    }

    /// A task from its launch until nothing is left of it, with something befalling the agent in each phase.
    async fn life(&mut self, cells: &mut BTreeMap<Phase, Cell>, tally: &mut Tally) -> Result<()> {
        let members = if self.mode == "awsvpc" { vpc::network(&["sg-open"]) } else { json!({}) };
        self.begin(cells.get(&Phase::Launch))?;
        let arn = self.cluster.run_with(&self.definition, members).await?;
        self.suffer(cells.get(&Phase::Launch), tally, &arn, "RUNNING").await?;
        let task = self.until(&arn, "RUNNING").await?;
        let ports = ports(&task);
        let before = self.processes(&arn).await?;
        ensure!(before.len() == 2, "{before:?}");
        tally.survey(Phase::Launch, &self.trigger)?;

        self.cluster.agent.terminate().await?;
        self.cluster.disconnected().await?;
        // Where it came by on its way down.
        self.trigger.passed()?;
        self.begin(cells.get(&Phase::Running))?;
        self.cluster.agent.start_again()?;
        self.up_or_struck().await?;
        self.cluster.engine.kill(&self.cluster.engine.id_of(&arn, "helper").await?).await?;
        self.suffer(cells.get(&Phase::Running), tally, &arn, "").await?;
        self.cluster.registered().await?;
        let seen = |task: &Value| {
            berth_tests::cluster::container(task, "helper").map(|c| c["lastStatus"] == "STOPPED")
        };
        eventually(PATIENCE, "the helper's end is told", || async {
            let task = self.cluster.task(&arn).await?;
            ensure!(task["lastStatus"] == "RUNNING", "{task}");
            Ok(seen(&task)?.then_some(()))
        })
        .await?;
        let mut after = self.processes(&arn).await?;
        after.extend(before.get_key_value("helper").map(|(name, process)| (name.clone(), process.clone())));
        ensure!(after == before, "{after:?} are not {before:?}");
        tally.survey(Phase::Running, &self.trigger)?;

        self.begin(cells.get(&Phase::Stop))?;
        self.cluster.stop(&arn, None).await?;
        self.suffer(cells.get(&Phase::Stop), tally, &arn, "STOPPED").await?;
        let task = self.until(&arn, "STOPPED").await?;
        tally.survey(Phase::Stop, &self.trigger)?;

        self.begin(cells.get(&Phase::CleanUp))?;
        ensure!(task["stopCode"] == "UserInitiated", "{task}");
        ensure!(self.processes(&arn).await?.is_empty(), "STOPPED, and processes are left");
        for port in ports {
            drop(TcpListener::bind(("0.0.0.0", port)).with_context(|| format!("port {port} is not free"))?);
        }
        self.suffer(cells.get(&Phase::CleanUp), tally, &arn, "gone").await?;
        self.nothing_left().await?;
        tally.survey(Phase::CleanUp, &self.trigger)?;
        self.trigger.disarm()
    }

    fn begin(&self, cell: Option<&Cell>) -> Result<()> {
        match cell {
            Some(cell) => self.trigger.arm(&cell.point, cell.fault),
            None => Ok(()),
        }
    }

    /// Waits until the agent has registered, or something has befallen it on the way.
    async fn up_or_struck(&self) -> Result<()> {
        eventually(PATIENCE, "the agent is up", || async {
            let up = self.cluster.instance().await?["agentConnected"] == true;
            Ok((up || self.trigger.has_struck()).then_some(()))
        })
        .await
    }

    /// Waits until it has come about, and helps the agent up again. Where the phase is over before, it has not.
    async fn suffer(&mut self, cell: Option<&Cell>, tally: &mut Tally, arn: &str, goal: &str) -> Result<()> {
        let Some(cell) = cell else { return Ok(()) };
        let (began, mut over_since) = (Instant::now(), None);
        while !self.trigger.has_struck() {
            let over = match goal {
                "gone" => self.cluster.engine.containers_of(&self.cluster.name).await?.is_empty(),
                "" => began.elapsed() > WITHOUT,
                status => self.cluster.task(arn).await.is_ok_and(|task| task["lastStatus"] == status),
            };
            // The last of what a phase does comes after what shows that it is over.
            let is_over = over && over_since.get_or_insert_with(Instant::now).elapsed() > AFTER;
            if (is_over || began.elapsed() > WITHOUT * 3) && !self.trigger.has_struck() {
                tally.missed.push(cell.clone());
                return self.trigger.disarm();
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        tally.struck += 1;
        match cell.fault {
            Fault::Die => {
                self.cluster.agent.end().await?;
                self.cluster.disconnected().await?;
                self.cluster.agent.start_again()?;
            }
            Fault::Hang => {
                self.bystander(cell).await?;
                self.cluster.agent.kill().await?;
                self.cluster.disconnected().await?;
                self.cluster.agent.start_again()?;
            }
            Fault::Fail => {}
        }
        self.trigger.disarm()?;
        self.kept_up().await
    }

    /// Waits until the agent is connected. At its start it ends with what fails there, and whoever keeps it starts
    /// it again.
    async fn kept_up(&mut self) -> Result<()> {
        let began = Instant::now();
        while self.cluster.instance().await?["agentConnected"] != true {
            ensure!(began.elapsed() < PATIENCE, "the agent does not come up");
            if self.cluster.agent.has_ended()? {
                self.cluster.agent.start_again()?;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    /// A task that has nothing to do with it comes and goes meanwhile, where the agent has come far enough for it.
    async fn bystander(&self, cell: &Cell) -> Result<()> {
        let early = ["runtime.info", "runtime.list", "network.restore", "holders.", "cgroups.list", "store."];
        if cell.phase == Phase::Running || early.iter().any(|name| cell.point.starts_with(name)) {
            return Ok(());
        }
        let arn = self.cluster.run_definition(&self.bystander).await?;
        let while_it_hangs = format!("a bystander, while {} hangs", cell.point);
        self.cluster.until(&arn, "RUNNING", Duration::from_secs(10)).await.context(while_it_hangs)?;
        self.cluster.stop(&arn, None).await?;
        self.cluster.until(&arn, "STOPPED", PATIENCE).await.map(|_| ())
    }

    async fn until(&self, arn: &str, status: &str) -> Result<Value> {
        self.cluster.until(arn, status, PATIENCE).await
    }

    /// The processes of the task's containers that run, and since when. None is there twice.
    async fn processes(&self, arn: &str) -> Result<BTreeMap<String, (Option<i64>, Option<String>)>> {
        let mut found = BTreeMap::new();
        for container in self.cluster.engine.containers_of(&self.cluster.name).await? {
            let label = |key: &str| container.labels.as_ref().and_then(|labels| labels.get(key)).cloned();
            if label(berth_tests::engine::TASK_ARN).as_deref() != Some(arn) {
                continue;
            }
            let name = label(berth_tests::engine::CONTAINER_NAME).unwrap_or_default();
            let inspected = self.cluster.engine.inspect(container.id.as_deref().unwrap_or_default()).await?;
            let state = inspected.state.context("no state")?;
            if state.running == Some(true) {
                let other = found.insert(name.clone(), (state.pid, state.started_at));
                ensure!(other.is_none(), "{name} runs twice");
            }
        }
        Ok(found)
    }

    /// The host is as it was before, and the control plane has missed nothing.
    async fn nothing_left(&self) -> Result<()> {
        self.cluster.registered().await?;
        eventually(PATIENCE, "nothing is left", || async {
            let containers = self.cluster.engine.containers_of(&self.cluster.name).await?;
            let names: Vec<_> = containers.into_iter().filter_map(|c| c.names).flatten().collect();
            ensure!(names.is_empty(), "containers: {names:?}");
            let now = Untouched::of(&self.cluster).await?;
            ensure!(now == self.untouched, "{now:?} is not {:?}", self.untouched);
            Ok(Some(()))
        })
        .await?;
        let said = self.cluster.control_plane.output();
        ensure!(!said.contains("state changes are missing"), "the control plane misses state changes");
        Ok(())
    }
}

impl Untouched {
    async fn of(cluster: &Cluster) -> Result<Self> {
        let data = cluster.agent.data_dir();
        Ok(Self {
            traces: vpc::traces(data)?,
            cgroups: folders(&cluster.agent.cgroup("memory"))?,
            metadata: folders(&data.join("metadata"))?,
            routers: folders(&data.join("firelens"))?,
            remaining: cluster.instance().await?["remainingResources"].clone(),
        })
    }
}

fn folders(path: &std::path::Path) -> Result<BTreeSet<String>> {
    let entries = match fs::read_dir(path) {
        Err(why) if why.kind() == std::io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
        entries => entries?,
    };
    let folders = entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    Ok(folders.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect())
}

/// The host ports of a task.
fn ports(task: &Value) -> Vec<u16> {
    let containers = task["containers"].as_array().into_iter().flatten();
    let bindings =
        containers.flat_map(|container| container["networkBindings"].as_array().into_iter().flatten());
    bindings.filter_map(|binding| u16::try_from(binding["hostPort"].as_u64()?).ok()).collect()
}

/// A task that has of everything: a role, a secret, a volume, a port, bounds, a log router.
fn definition(mode: &str) -> Value {
    // One that is stopped before it heeds signals is not waited for.
    let small = json!({ "memory": 16, "stopTimeout": 3 });
    let mut app = json!({
        "secrets": [{ "name": "WORD", "valueFrom": "/word" }],
        "logConfiguration": { "logDriver": "awsfirelens" },
        "mountPoints": [{ "sourceVolume": "data", "containerPath": "/data" }],
    });
    if mode == "bridge" {
        app["portMappings"] = json!([{ "containerPort": 8080 }]);
    }
    let helper = json!({ "essential": false, "firelensConfiguration": { "type": "fluentbit" } });
    let containers = json!([
        demo::merged(demo::container_with("app", &["sleep", "3600"], app), &small),
        demo::merged(demo::container_with("helper", &["sleep", "3600"], helper), &small),
    ]);
    let task = json!({
        "cpu": "128", "memory": "64", "taskRoleArn": ROLE, "enableFaultInjection": mode == "awsvpc",
        "volumes": [{ "name": "data", "dockerVolumeConfiguration": { "scope": "task" } }],
    });
    demo::merged(demo::task(&format!("whole-{mode}"), mode, containers), &task)
}

/// What came of faults.
#[derive(Debug, Default)]
struct Tally {
    surveys: bool,
    passed: BTreeMap<Phase, BTreeSet<String>>,
    struck: usize,
    missed: Vec<Cell>,
}

impl Tally {
    fn survey(&mut self, phase: Phase, trigger: &Trigger) -> Result<()> {
        if self.surveys {
            self.passed.insert(phase, trigger.passed()?.into_iter().collect());
        }
        Ok(())
    }
}

/// Strikes all that is planned for a host, as many at a time as a life has phases.
async fn run(host: &mut Host, mut plan: BTreeMap<Phase, VecDeque<Cell>>) -> Result<Tally> {
    let mut tally = Tally::default();
    while plan.values().any(|queue| !queue.is_empty()) {
        let next = |(phase, queue): (&Phase, &mut VecDeque<Cell>)| Some((*phase, queue.pop_front()?));
        let mut cells: BTreeMap<Phase, Cell> = plan.iter_mut().filter_map(next).collect();
        let began = Instant::now();
        let done = host.life(&mut cells, &mut tally).await;
        let named: Vec<String> = cells
            .values()
            .map(|cell| format!("{:?}:{}={}", cell.phase, cell.point, cell.fault.as_str()))
            .collect();
        println!("{:>6} {:>5.1} s  {}", host.mode, began.elapsed().as_secs_f64(), named.join("  "));
        if let Err(why) = &done {
            println!("{:>6} {why:#}", host.mode);
        }
        done.with_context(|| format!("{}: {}", host.mode, named.join(", ")))?;
    }
    Ok(tally)
}

type Survey = BTreeMap<Phase, BTreeSet<String>>;

/// What of all that there is.
#[derive(Debug, PartialEq, Eq)]
enum Wanted {
    All,
    Part(u64, u64),
    Points(String),
}

impl Wanted {
    fn read(text: Option<&str>) -> Result<Self> {
        let Some(text) = text else {
            let days = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_secs() / (24 * 3600);
            return Ok(Self::Part(days % PARTS + 1, PARTS));
        };
        if text == "all" {
            return Ok(Self::All);
        }
        let Some((part, parts)) = text.split_once('/') else { return Ok(Self::Points(text.to_owned())) };
        let (part, parts) = (part.parse()?, parts.parse()?);
        ensure!((1..=parts).contains(&part), "there is no part {part} of {parts}");
        Ok(Self::Part(part, parts))
    }

    fn has(&self, index: u64, point: &str) -> bool {
        match self {
            Self::All => true,
            Self::Part(part, parts) => index % parts + 1 == *part,
            Self::Points(begin) => point.starts_with(begin),
        }
    }
}

impl std::fmt::Display for Wanted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::All => f.write_str("all"),
            Self::Part(part, parts) => write!(f, "{part}/{parts}"),
            Self::Points(begin) => f.write_str(begin),
        }
    }
}

/// What is wanted of every point in every phase and mode with every fault.
fn plan(surveys: &[(&'static str, Survey)], wanted: &Wanted) -> Result<Plans> {
    let mut plans = Plans::new();
    for effect in points::all() {
        let elsewhere = ELSEWHERE.iter().any(|(name, _)| *name == effect);
        for point in [format!("{effect}.before"), format!("{effect}.after")] {
            let passed = surveys.iter().any(|(_, survey)| survey.values().any(|p| p.contains(&point)));
            ensure!(passed || elsewhere, "the agent never comes by {point}: nothing here strikes it");
        }
    }
    for (mode, survey) in surveys {
        for (phase, passed) in survey {
            // Each lane is told apart by itself, so that all are equally long.
            let cells = passed.iter().flat_map(|point| Fault::ALL.map(|fault| (point, fault)));
            let cells = cells.filter(|(point, fault)| !is_senseless(point, *fault));
            for (_, (point, fault)) in
                (0..).zip(cells).filter(|(index, (point, _))| wanted.has(*index, point))
            {
                let cell = Cell { point: point.clone(), fault, phase: *phase };
                plans.entry(*mode).or_default().entry(*phase).or_default().push_back(cell);
            }
        }
    }
    Ok(plans)
}

type Plans = BTreeMap<&'static str, BTreeMap<Phase, VecDeque<Cell>>>;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_fault_at_any_point_loses_doubles_or_leaves_anything() -> Result<()> {
    let wanted = Wanted::read(std::env::var("BERTH_FAULTS").ok().as_deref())?;
    println!("BERTH_FAULTS={wanted} strikes these points again");
    let began = Instant::now();
    let hosts = futures_util::future::try_join_all(MODES.map(|mode| async move {
        let mut host = Host::start(mode).await.with_context(|| mode.to_owned())?;
        let survey = host.survey().await.with_context(|| mode.to_owned())?;
        anyhow::Ok((host, survey))
    }))
    .await?;
    let (mut hosts, surveys): (Vec<Host>, Vec<(&str, Survey)>) = hosts
        .into_iter()
        .map(|(host, survey)| {
            let mode = host.mode;
            (host, (mode, survey))
        })
        .unzip();
    println!("{:.1} s until the agent was followed in all modes", began.elapsed().as_secs_f64());
    let mut plans = plan(&surveys, &wanted)?;
    let planned: usize = plans.values().flat_map(BTreeMap::values).map(VecDeque::len).sum();
    let runs = hosts.iter_mut().map(|host| {
        let plan = plans.remove(host.mode).unwrap_or_default();
        run(host, plan)
    });
    let tallies = futures_util::future::join_all(runs).await.into_iter().collect::<Result<Vec<_>>>()?;
    let struck: usize = tallies.iter().map(|tally| tally.struck).sum();
    let missed: Vec<&Cell> = tallies.iter().flat_map(|tally| &tally.missed).collect();
    println!(
        "{struck} of {planned} faults struck, in {:.1} s; not this time: {missed:?}",
        began.elapsed().as_secs_f64()
    );
    if struck * 10 < planned * 9 {
        bail!("too many faults did not come about");
    }
    Ok(())
}
