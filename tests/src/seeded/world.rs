//! What outlives the agent: the engine, networks, cgroups, the disk, the control plane, what was asked for, and
//! the chance behind all of it.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use berth_agent::cgroup::fake::FakeCgroups;
use berth_agent::clock;
use berth_agent::effects::{Sentry, Side};
use berth_agent::network::fake::FakeNetwork;
use berth_agent::runtime::fake::FakeRuntime;
use berth_agent::store::memory::MemoryStore;
use berth_core::ids::EngineId;
use berth_core::units::Timestamp;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use tokio::sync::Notify;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::climate::{Blow, Climate};
use super::trace::Trace;
use crate::faults::points::point;
use crate::sim::Chance;

/// When stories begin.
pub const START: Timestamp = Timestamp(1_800_000_000_000);

/// What is wanted of a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    /// It is to run.
    Run,
    /// It is to stop.
    Stop,
    /// The control plane knows nothing of it any more.
    Nothing,
}

/// What is known of a task that was asked for.
#[derive(Debug, Clone)]
pub struct Asked {
    /// What is wanted.
    pub wish: Wish,
    /// Whether it may fail to start: it needs of the control plane what it does not always have.
    pub may_fail: bool,
    /// Whether it may end by itself: its program does, or something was done to it.
    pub may_end: bool,
    /// Whether a container of it may be started more than once.
    pub may_start_again: bool,
    /// Whether somebody started a container of it by hand.
    pub meddled: bool,
    /// Whether that was after its end had been told: who knows nothing of it any more takes it for what runs here.
    pub risen: bool,
}

impl Asked {
    /// One that is to run, and neither ends nor fails by itself.
    #[must_use]
    pub const fn to_run() -> Self {
        Self {
            wish: Wish::Run,
            may_fail: false,
            may_end: false,
            may_start_again: false,
            meddled: false,
            risen: false,
        }
    }
}

/// What a world is told of while it goes on.
#[derive(Debug, Default)]
pub struct Known {
    /// The tasks that were asked for, by ARN.
    pub tasks: BTreeMap<String, Asked>,
    /// How many starts of each container are on their way to the engine.
    pub starting: BTreeMap<EngineId, usize>,
    /// Whether faults were about that may make a task fail.
    pub excuses_failures: bool,
    /// The first thing that was seen and must not be.
    pub wrong: Option<String>,
}

/// A world.
pub struct World {
    /// The container engine.
    pub engine: FakeRuntime,
    /// Cgroups.
    pub cgroups: FakeCgroups,
    /// Networks of tasks.
    pub network: FakeNetwork,
    /// What happened.
    pub trace: Trace,
    /// What runs beside the agent.
    pub tasks: TaskTracker,
    /// The engine answers nobody while this is set.
    pub engine_hangs: Gate,
    disk: Mutex<Arc<MemoryStore>>,
    clock_moves: Mutex<Option<i64>>,
    chance: Mutex<Chance>,
    climate: Mutex<Climate>,
    known: Mutex<Known>,
}

impl World {
    /// The world of that seed. It needs a runtime, whose time it takes.
    #[must_use]
    pub fn new(seed: u64, whole: bool) -> Arc<Self> {
        Arc::new(Self {
            engine: FakeRuntime::at(START).in_namespace("host"),
            cgroups: FakeCgroups::new(),
            network: FakeNetwork::new(),
            trace: Trace::new(whole),
            tasks: TaskTracker::new(),
            engine_hangs: Gate::default(),
            disk: Mutex::default(),
            clock_moves: Mutex::default(),
            chance: Mutex::new(Chance::new(seed)),
            climate: Mutex::new(Climate::FAIR),
            known: Mutex::default(),
        })
    }

    /// The agent's state on the disk.
    #[must_use]
    pub fn disk(&self) -> Arc<MemoryStore> {
        Arc::clone(&lock(&self.disk))
    }

    /// The disk is replaced by an empty one.
    pub fn lose_disk(&self) {
        *lock(&self.disk) = Arc::default();
    }

    /// A choice.
    pub fn choose<T>(&self, choose: impl FnOnce(&mut Chance) -> T) -> T {
        choose(&mut lock(&self.chance))
    }

    /// A number below that.
    #[must_use]
    pub fn below(&self, bound: u64) -> u64 {
        self.choose(|chance| chance.below(bound))
    }

    /// Yes once in so many times.
    #[must_use]
    pub fn once_in(&self, among: u64) -> bool {
        self.choose(|chance| chance.once_in(among))
    }

    /// A time shorter than that.
    #[must_use]
    pub fn span(&self, bound: Duration) -> Duration {
        self.choose(|chance| chance.span(bound))
    }

    /// Other faults are about from now on.
    pub fn set_climate(&self, climate: Climate) {
        self.known().excuses_failures |= climate.hang > 0 || climate.fail > 0;
        *lock(&self.climate) = climate;
    }

    /// What is known.
    pub fn known(&self) -> MutexGuard<'_, Known> {
        lock(&self.known)
    }

    /// Takes note of something that must not be.
    pub fn wrong(&self, what: String) {
        self.note(format_args!("WRONG {what}"));
        self.known().wrong.get_or_insert(what);
    }

    /// Writes down what happens.
    pub fn note(&self, what: fmt::Arguments<'_>) {
        self.trace.note(what);
    }

    /// The clock of the host is put forward by so many milliseconds, or back where that is negative.
    pub fn put_clock(&self, by: i64) {
        self.note(format_args!("the clock is put forward by {by} ms"));
        clock::put(by);
        self.engine.put_clock(by);
    }

    /// The same, while the agent's state is written the next time.
    pub fn put_clock_at_next_write(&self, by: i64) {
        *lock(&self.clock_moves) = Some(by);
    }

    /// The agent's state is being written.
    pub fn writes(&self) {
        let by = lock(&self.clock_moves).take();
        by.into_iter().for_each(|by| self.put_clock(by));
    }

    /// The time now.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        clock::now()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Something that can be shut for a while, and who waits for it.
#[derive(Debug, Default)]
pub struct Gate {
    shut: Mutex<bool>,
    opened: Notify,
}

impl Gate {
    /// Shuts it, or opens it.
    pub fn set(&self, shut: bool) {
        *lock(&self.shut) = shut;
        if !shut {
            self.opened.notify_waiters();
        }
    }

    /// Waits until it is open.
    pub async fn pass(&self) {
        loop {
            let opened = self.opened.notified();
            if !*lock(&self.shut) {
                return;
            }
            opened.await;
        }
    }
}

/// Stands beside what one life of the agent does, and has the climate strike.
pub struct Fate {
    world: Arc<World>,
    dead: CancellationToken,
}

impl Fate {
    /// Of a life that is over when `dead` is cancelled. From then on nothing that it does comes about: what is
    /// still on its way through the agent is what a killed process had in its memory.
    #[must_use]
    pub const fn new(world: Arc<World>, dead: CancellationToken) -> Self {
        Self { world, dead }
    }

    async fn while_alive(&self) {
        if self.dead.is_cancelled() {
            std::future::pending::<()>().await;
        }
    }
}

impl Sentry for Fate {
    fn pass<'a>(&'a self, effect: &'static str, side: Side) -> BoxFuture<'a, Result<(), String>> {
        async move {
            self.while_alive().await;
            let climate = *lock(&self.world.climate);
            let blow = self.world.choose(|chance| climate.blow(chance, effect, side));
            match blow {
                None => self.world.note(format_args!("{}", point(effect, side))),
                Some(blow) => self.world.note(format_args!("{} {blow:?}", point(effect, side))),
            }
            match blow {
                None => {}
                Some(Blow::Die) => {
                    self.dead.cancel();
                    std::future::pending::<()>().await;
                }
                Some(Blow::Hang) => std::future::pending().await,
                Some(Blow::Fail) => return Err("a fault of the simulation".to_owned()),
                Some(Blow::Wait(wait)) => sleep(wait).await,
            }
            self.while_alive().await;
            Ok(())
        }
        .boxed()
    }
}
