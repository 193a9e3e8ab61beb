//! The shell round the core: takes tasks in, gives each an actor, and keeps them all in touch with
//! the ledger, the engine's events and the store.
//!
//! | part | its one job |
//! | --- | --- |
//! | `actor` | one for each task: persist, then act, feed back |
//! | `perform` | one act, one call, one outcome |
//! | `making` | what the container engine is asked for, and what becomes of what comes too late |
//! | `suspects` | which driver may be behind a failure |
//! | `post_mortem` | what the kernel knows of a container's end |
//! | `admission` | the ledger, and who is told when it changes |
//! | `intake` | what the control plane wants: new tasks, stops, refusals |
//! | `clean_up` | images that nobody needs |
//! | `departure` | a host that goes: its tasks, in order |
//! | `inform` | what a container is told of itself |
//! | `narrate` | what happened, for people |
//! | `registry`, `hints` | who is there, and what each has to look at |
//! | `questions` | what others ask about tasks and containers |
//! | `subsystems` | how each part of the agent is |
//! | `talk` | programs in containers, and whoever talks with them |
//! | `reconcile` | the engine's events |
//! | `outages` | when the engine was away |
//! | `pulse` | whether all of it still turns |
//! | `path_ids` | the names by which containers ask about themselves |
//! | `restore`, `keepsake` | after a start; what containers carry for it |
//! | `sweep` | what tasks left that are gone |

mod actor;
mod admission;
mod clean_up;
mod departure;
mod hints;
mod inform;
mod intake;
mod keepsake;
mod making;
mod narrate;
mod outages;
mod path_ids;
mod perform;
mod post_mortem;
mod pulse;
mod questions;
mod reconcile;
mod registry;
mod restore;
mod subsystems;
mod suspects;
mod sweep;
mod talk;

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::PathBuf;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use berth_core::attachment::SecurityGroup;
use berth_core::ids::{ContainerInstanceArn, TaskArn};
use berth_core::ledger::Verdict;
use berth_core::resources::Resources;
use berth_core::task::{Act, Event, Settings, StopCause, Task};
use berth_core::units::Millis;
use tokio::sync::{mpsc, oneshot, watch};

use self::actor::{Actor, MAILBOX, Message};
use self::admission::Admission;
use self::clean_up::Cleaner;
use self::outages::Outages;
use self::path_ids::PathIds;
use self::registry::{Handle, Registry};
use crate::cgroup::Cgroups;
use crate::clock;
use crate::config::CleanUp;
use crate::credentials::{Credentials, RoleCredentials};
use crate::effects::Effects;
use crate::environment::Environments;
use crate::fault::Faults;
use crate::firelens::LogRouters;
use crate::gpu::GpuChooser;
use crate::image::Images;
use crate::journal::Journal;
use crate::metadata_file::MetadataFiles;
use crate::network::TaskNetwork;
use crate::network::ports::PortChooser;
use crate::runtime::Runtime;
use crate::store::{Identity, Saved, Store, StoreError, Write};
use crate::supervise::Tracker;

pub use self::admission::Usage;
pub use self::departure::Departure;
pub use self::intake::Assignment;
pub use self::keepsake::engine_name;
pub use self::perform::Timeouts;
pub use self::questions::{ContainerWait, KnownImage};
pub use self::restore::{World, look};
pub use self::talk::recite;

/// Longest that changed security groups may take to be in force.
const GUARD: Duration = Duration::from_secs(10);
/// Longest that whoever asks for it waits for that: it has others to listen to.
const GUARD_SEEN: Duration = Duration::from_secs(1);

/// What the engine works with.
pub struct Parts {
    /// The container engine.
    pub runtime: Arc<dyn Runtime>,
    /// The cgroups of tasks.
    pub cgroups: Arc<dyn Cgroups>,
    /// Images.
    pub images: Images,
    /// What is kept elsewhere for containers.
    pub environments: Environments,
    /// Log routers of tasks.
    pub log_routers: LogRouters,
    /// Credentials of the roles of tasks.
    pub credentials: Arc<Credentials>,
    /// Host ports.
    pub ports: PortChooser,
    /// GPUs.
    pub gpus: GpuChooser,
    /// Networks of `awsvpc` tasks.
    pub network: Arc<dyn TaskNetwork>,
    /// What tasks do to their networks.
    pub faults: Arc<dyn Faults>,
    /// How images are cleaned up; they are not, where there are no rules.
    pub clean_up: Option<CleanUp>,
    /// Where the engine keeps images; `None` where that is out of sight.
    pub disk: Option<PathBuf>,
    /// Where what happens is written for people; nowhere, where there is none.
    pub journal: Option<Journal>,
    /// The metadata files of containers; none are made or removed, where there is none.
    pub metadata_files: Option<MetadataFiles>,
    /// State.
    pub store: Arc<dyn Store>,
    /// What holds for every task.
    pub settings: Settings,
    /// How much longer than `settings.retention` stopped tasks may be kept, so that those which stopped
    /// together are not removed together.
    pub retention_jitter: Millis,
    /// How long the container engine may take.
    pub timeouts: Timeouts,
    /// Most processes in a task.
    pub pids_limit: Option<u32>,
    /// Names this agent among those that share an engine.
    pub agent: String,
    /// Where containers ask about themselves, `http://169.254.170.2`; `None` where they cannot.
    pub endpoint: Option<String>,
    /// What the host can hold.
    pub total: Resources,
    /// Who stands beside what is done to the world, if anybody.
    pub effects: Effects,
}

/// What all actors share.
struct Shared {
    runtime: Arc<dyn Runtime>,
    cgroups: Arc<dyn Cgroups>,
    images: Images,
    environments: Environments,
    log_routers: LogRouters,
    credentials: Arc<Credentials>,
    ports: PortChooser,
    gpus: GpuChooser,
    network: Arc<dyn TaskNetwork>,
    faults: Arc<dyn Faults>,
    journal: Option<Journal>,
    metadata_files: Option<MetadataFiles>,
    store: Arc<dyn Store>,
    settings: Settings,
    retention_jitter: Millis,
    timeouts: Timeouts,
    pids_limit: Option<u32>,
    agent: String,
    endpoint: Option<String>,
    effects: Effects,
    path_ids: PathIds,
    instance: Mutex<Option<ContainerInstanceArn>>,
    admission: Admission,
    registry: Registry,
    engine_healthy: watch::Sender<bool>,
    outages: Outages,
    departure: watch::Sender<Option<Departure>>,
    images_removed: AtomicU64,
    tracker: Tracker,
}

impl Shared {
    fn instance(&self) -> Option<ContainerInstanceArn> {
        self.instance.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What holds for a task: the same whenever it is asked.
    fn settings_of(&self, task: &TaskArn) -> Settings {
        let mut hasher = DefaultHasher::new();
        task.hash(&mut hasher);
        let jitter = hasher.finish().checked_rem(self.retention_jitter.0).unwrap_or_default();
        let retention = Millis(self.settings.retention.0.saturating_add(jitter));
        Settings { retention, ..self.settings }
    }
}

/// The engine: runs the tasks of the host. Cloning shares it.
#[derive(Clone)]
pub struct Engine {
    shared: Arc<Shared>,
}

impl Engine {
    /// Starts with what was persisted and what the container engine has: one commit, then every
    /// task goes on where it was.
    ///
    /// # Errors
    /// When the state cannot be written.
    pub async fn start(
        parts: Parts,
        saved: Saved,
        world: World,
        tracker: Tracker,
    ) -> Result<Self, StoreError> {
        let shared = Arc::new(Shared {
            runtime: parts.runtime,
            cgroups: parts.cgroups,
            images: parts.images,
            environments: parts.environments,
            log_routers: parts.log_routers,
            credentials: parts.credentials,
            ports: parts.ports,
            gpus: parts.gpus,
            network: parts.network,
            faults: parts.faults,
            journal: parts.journal,
            metadata_files: parts.metadata_files,
            store: parts.store,
            settings: parts.settings,
            retention_jitter: parts.retention_jitter,
            timeouts: parts.timeouts,
            pids_limit: parts.pids_limit,
            agent: parts.agent,
            endpoint: parts.endpoint,
            effects: parts.effects,
            path_ids: PathIds::new(saved.identity.as_ref().map_or("", |identity| &identity.endpoint_key)),
            instance: Mutex::new(saved.identity.as_ref().and_then(|i| i.instance.clone())),
            admission: Admission::new(parts.total),
            registry: Registry::default(),
            engine_healthy: watch::Sender::new(true),
            outages: Outages::new(),
            departure: watch::Sender::default(),
            images_removed: AtomicU64::new(0),
            tracker,
        });
        let engine = Self { shared: Arc::clone(&shared) };
        let cursor = world.cursor;
        let mut known: BTreeSet<TaskArn> = saved.tasks.iter().map(|(spec, _)| spec.arn.clone()).collect();
        let mut writes = Vec::new();
        let mut started = Vec::new();
        let identity = saved.identity.clone();
        let clock = clock::Watch::begin();
        let found = restore::reunite(&shared, saved, world, clock.now());
        let lost = restore::reconnect(&shared, &found).await;
        // Before anybody is granted anything: what others hold.
        let held: BTreeMap<TaskArn, watch::Receiver<Verdict>> = found
            .iter()
            .filter(|(task, _)| task.holds_grant())
            .map(|(task, _)| task.spec())
            .map(|spec| (spec.arn.clone(), shared.admission.adopt(&spec.arn, &spec.need())))
            .collect();
        for (mut task, mut events) in found {
            events.extend(restore::loss_of(&task, &lost));
            let arn = task.spec().arn.clone();
            let waits = matches!(task.state().admission, berth_core::task::Admission::Waiting(_));
            let (verdict, receiver) = match held.get(&arn) {
                Some(receiver) => (Verdict::Granted, receiver.clone()),
                None if waits => shared.admission.request(&arn, &task.spec().need()),
                None => (Verdict::Granted, watch::channel(Verdict::Granted).1),
            };
            let mut acts = Vec::new();
            let mut reports = Vec::new();
            let first = waits.then(|| event_of(verdict));
            for event in events.into_iter().chain(first) {
                let step = task.handle(clock.now(), event);
                reports.extend(step.report.clone());
                acts.extend(step.persisted());
            }
            if known.remove(&arn) {
                writes.push(Write::State { task: arn.clone(), state: task.state().clone() });
            } else {
                writes.push(Write::NewTask { spec: Arc::clone(task.spec()), state: task.state().clone() });
            }
            writes.extend(
                reports
                    .into_iter()
                    .map(|report| Write::Report { task: arn.clone(), report: Box::new(report) }),
            );
            started.push((task, receiver, acts));
        }
        if let Some(identity) = identity.filter(|identity| !identity.settled) {
            writes.push(Write::Identity(Identity { settled: true, ..identity }));
        }
        if !writes.is_empty() {
            shared.store.commit(writes).await?;
        }
        let restored = started.len();
        for (task, receiver, acts) in started {
            engine.spawn(task, receiver, acts, clock);
        }
        if restored > 0 {
            tracing::info!(tasks = restored, "restored");
        }
        let follower = Arc::clone(&shared);
        shared.tracker.spawn_droppable("engine events", reconcile::follow(follower, cursor));
        let follower = engine.clone();
        shared.tracker.spawn_droppable("namespaces", async move { follower.follow_namespaces().await });
        let cleaner = Cleaner { rules: parts.clean_up, disk: parts.disk };
        shared.tracker.spawn_droppable("image clean-up", clean_up::run(Arc::clone(&shared), cleaner));
        let sweeper = engine.clone();
        shared.tracker.spawn_droppable("sweep", async move { sweeper.sweep().await });
        // Before anybody asks for what they were made for.
        let _ = tokio::time::timeout(sweep::AT_START, engine.sweep_containers(false)).await;
        let sweeper = engine.clone();
        shared.tracker.spawn_droppable("late containers", async move { sweeper.keep_swept().await });
        Ok(engine)
    }

    /// Says which instance this is, once it is registered.
    pub fn set_instance(&self, instance: ContainerInstanceArn) {
        *self.shared.instance.lock().unwrap_or_else(PoisonError::into_inner) = Some(instance);
    }

    /// Tells actors something, and waits until what follows from it is durable.
    async fn tell(&self, events: Vec<(Handle, Event)>) {
        let mut waits = Vec::new();
        for (handle, event) in events {
            let (persisted, wait) = oneshot::channel();
            if handle.mailbox.send(Message { event, persisted: Some(persisted) }).await.is_ok() {
                waits.push(wait);
            }
        }
        for wait in waits {
            // An actor that ended meanwhile has nothing left to persist.
            let _ = wait.await;
        }
    }

    /// Stops a task, if it is here.
    pub async fn stop(&self, task: &TaskArn, cause: StopCause) {
        if let Some(handle) = self.shared.registry.get(task) {
            self.tell(vec![(handle, Event::Stop(cause))]).await;
        }
    }

    /// Takes note that the control plane has the end of these tasks.
    pub async fn acknowledged(&self, tasks: &[TaskArn]) {
        let events = tasks
            .iter()
            .filter_map(|task| Some((self.shared.registry.get(task)?, Event::Acknowledged)))
            .collect();
        self.tell(events).await;
    }

    /// Takes the credentials of a task's role, or why there are none.
    pub fn take_credentials(&self, task: TaskArn, answer: Result<RoleCredentials, String>) {
        // One that is not here has ended, or was refused.
        if self.shared.registry.get(&task).is_none() {
            return;
        }
        match answer {
            Ok(credentials) => self.shared.credentials.put(task, credentials),
            Err(problem) => self.shared.credentials.refuse(task, problem),
        }
    }

    /// Puts changed security groups in force.
    pub async fn guard(&self, groups: Vec<SecurityGroup>) {
        let (shared, (tell, told)) = (Arc::clone(&self.shared), oneshot::channel());
        self.shared.tracker.spawn_droppable("security groups", async move {
            if tokio::time::timeout(GUARD, shared.network.guard(groups)).await.is_err() {
                tracing::error!(
                    "changed security groups are not in force everywhere: the kernel was not done within {} s",
                    GUARD.as_secs()
                );
            }
            // Whoever asked may have gone on.
            let _ = tell.send(());
        });
        let _ = tokio::time::timeout(GUARD_SEEN, told).await;
    }

    /// What is granted, left and waited for.
    #[must_use]
    pub fn usage(&self) -> watch::Receiver<Usage> {
        self.shared.admission.usage()
    }

    /// Whether the container engine answers.
    #[must_use]
    pub fn healthy(&self) -> watch::Receiver<bool> {
        self.shared.engine_healthy.subscribe()
    }

    /// `acts` are those of the task as it was when `clock` looked.
    fn spawn(&self, task: Task, verdict: watch::Receiver<Verdict>, acts: Vec<Act>, clock: clock::Watch) {
        self.shared.path_ids.enter(task.spec());
        let (sender, mailbox) = mpsc::channel(MAILBOX);
        let hints = Arc::<hints::Hints>::default();
        let (view, seen) = watch::channel(Arc::new(task.clone()));
        let pulse = Arc::<pulse::Pulse>::default();
        let handle = Handle {
            mailbox: sender.clone(),
            hints: Arc::clone(&hints),
            view: seen,
            pulse: Arc::clone(&pulse),
        };
        self.shared.registry.insert(task.spec().arn.clone(), handle);
        if self.shared.metadata_files.is_some() {
            let followed = inform::follow(Arc::clone(&self.shared), view.subscribe());
            self.shared.tracker.spawn_droppable("metadata files", followed);
        }
        let actor = Actor {
            stop_is_kept: task.is_stopping(),
            task,
            shared: Arc::clone(&self.shared),
            mailbox,
            sender,
            hints,
            verdict,
            view,
            pulse,
            in_flight: BTreeMap::new(),
            unsaved: false,
            clock,
        };
        self.shared.tracker.spawn("task", actor.run(acts));
    }

    /// Tells tasks that the container which holds their network has ended.
    async fn follow_namespaces(&self) {
        loop {
            let (task, holder) = self.shared.network.lost().await;
            if let Some(handle) = self.shared.registry.get(&task) {
                // An actor that has ended has no use for it.
                let _ = handle.mailbox.send(Event::NamespaceLost { holder }.into()).await;
            }
        }
    }
}

fn event_of(verdict: Verdict) -> Event {
    match verdict {
        Verdict::Granted => Event::Granted,
        Verdict::Waiting(missing) => Event::Waiting(missing),
        Verdict::Never(missing) => Event::Never(missing),
    }
}
