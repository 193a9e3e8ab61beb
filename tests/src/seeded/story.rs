//! What happens to a host, from its first task until nothing is left: orders, and mishaps of all kinds; then the
//! faults end, everything comes to rest, all is stopped, and the host is as it was before.

use std::cell::Cell;
use std::panic;
use std::sync::{Arc, Once};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use berth_agent::engine::Engine;
use berth_agent::{clock, random};
use berth_proto::v1;
use tokio::time::sleep;

use super::check;
use super::climate::Climate;
use super::control_plane::{ControlPlane, Manner, arn_of};
use super::life::{Life, RETENTION};
use super::store::short;
use super::tasks;
use super::world::{Asked, START, Wish, World};

/// Longest until everything has come to rest: the longest deadlines of calls that hang, one after the other.
const REST: Duration = Duration::from_secs(2400);
/// Between two looks.
const LOOK: Duration = Duration::from_secs(2);

/// What came of a story.
#[derive(Debug)]
pub struct Story {
    /// How many lines it has, and a number that no other story has.
    pub digest: (u64, u64),
    /// The lines: the last ones, or all where that was asked for.
    pub lines: Vec<String>,
    /// How many tasks were asked for.
    pub tasks: u64,
    /// How many lives the agent had.
    pub lives: u64,
    /// How long it was, in milliseconds.
    pub millis: u128,
    /// What went wrong.
    pub wrong: Option<String>,
}

thread_local! {
    static PANICKED: Cell<bool> = const { Cell::new(false) };
}

/// A panic of a future of the agent is caught by its runtime: here it is noticed.
fn notice_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            PANICKED.set(true);
            before(info);
        }));
    });
    PANICKED.set(false);
}

/// Tells the story of that seed. With `whole`, all of its lines are kept.
///
/// # Errors
/// When there is no runtime to be had.
pub fn tell(seed: u64, whole: bool) -> Result<Story> {
    play(seed, whole, async |teller: &mut Teller| teller.tell().await)
}

/// Plays what is written, in a world in which no more is chance than how long everything takes.
///
/// # Errors
/// When there is no runtime to be had.
pub fn play(seed: u64, whole: bool, script: impl AsyncFnOnce(&mut Teller) -> Result<()>) -> Result<Story> {
    notice_panics();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build()?;
    let story = runtime.block_on(async {
        let _clock = clock::simulate(START);
        let _chance = random::simulate(seed ^ 0x5eed);
        let world = World::new(seed, whole);
        let mut teller = Teller {
            control_plane: ControlPlane::new(Arc::clone(&world)),
            world: Arc::clone(&world),
            life: None,
            asked: 0,
            lives: 0,
        };
        tasks::introduce(&world.engine);
        let ended = script(&mut teller).await;
        let wrong = match ended {
            Err(why) => Some(format!("{why:#}")),
            Ok(()) if PANICKED.get() => Some("a future of the agent panicked".to_owned()),
            Ok(()) => None,
        };
        Story {
            digest: world.trace.digest(),
            lines: world.trace.lines(),
            tasks: teller.asked,
            lives: teller.lives,
            millis: world.trace.millis(),
            wrong,
        }
    });
    // What hangs in it for good ends with it.
    drop(runtime);
    Ok(story)
}

/// Whoever has things happen.
pub struct Teller {
    /// The world.
    pub world: Arc<World>,
    /// The control plane.
    pub control_plane: ControlPlane,
    pub(super) life: Option<Life>,
    asked: u64,
    lives: u64,
}

impl Teller {
    async fn tell(&mut self) -> Result<()> {
        let climate = self.world.choose(Climate::of);
        self.world.note(format_args!("{climate:?}"));
        self.world.set_climate(climate);
        self.live().await?;
        let steps = 6 + self.world.below(18);
        for _ in 0..steps {
            self.step().await?;
            let bounds = [40, 400, 3_000, 3_000, 30_000, 300_000];
            let bound = self.world.choose(|chance| chance.pick(&bounds).copied()).unwrap_or(400);
            self.pass(self.world.span(Duration::from_millis(bound))).await?;
            check::always(&self.world)?;
        }
        self.calm().await?;
        self.end().await
    }

    /// Everything comes to rest, then all is stopped, and the host is as it was before.
    ///
    /// # Errors
    /// What is not.
    pub async fn end(&mut self) -> Result<()> {
        self.rest(false).await.context("at rest")?;
        let all: Vec<String> = self.world.known().tasks.keys().cloned().collect();
        for arn in &all {
            self.stop(arn);
        }
        sleep(RETENTION.as_duration()).await;
        self.rest(true).await.context("at the end")
    }

    /// The agent starts.
    ///
    /// # Errors
    /// When it does not come up.
    pub async fn begin(&mut self) -> Result<()> {
        self.live().await
    }

    /// The agent is killed, and started again.
    ///
    /// # Errors
    /// When it does not come up.
    pub async fn kill(&mut self) -> Result<()> {
        self.die().await;
        self.live().await
    }

    /// The agent is killed and loses its state: it has to go by what its containers carry.
    ///
    /// # Errors
    /// When it does not come up.
    pub async fn lose_the_disk(&mut self) -> Result<()> {
        self.die().await;
        self.world.note(format_args!("disk lost"));
        self.world.lose_disk();
        for (arn, asked) in &mut self.world.known().tasks {
            // What was removed by hand is not there to be known again, and a start that was on its way comes about
            // behind everybody's back.
            let heard = self.control_plane.heard(arn).map(|change| change.status());
            asked.may_start_again |= asked.may_end || heard != Some(v1::TaskStatus::Running);
            asked.may_end = true;
        }
        self.live().await
    }

    /// The engine of the agent's life, where it lives.
    #[must_use]
    pub fn engine(&self) -> Option<&Engine> {
        self.life.as_ref().and_then(Life::engine)
    }

    /// Asks for a task; its ARN.
    pub fn run(&mut self, spec: v1::TaskSpec, asked: Asked) -> String {
        self.asked += 1;
        let arn = arn_of(self.asked);
        self.world.note(format_args!("run {} {spec:?} {asked:?}", short(&arn)));
        self.world.known().tasks.insert(arn.clone(), asked);
        self.control_plane.run(&arn, spec);
        arn
    }

    /// Time goes by. An agent that dies is started again, soon or later.
    ///
    /// # Errors
    /// When it does not come up.
    pub async fn pass(&mut self, time: Duration) -> Result<()> {
        let until = tokio::time::Instant::now() + time;
        loop {
            let Some(life) = &self.life else { bail!("nobody lives") };
            if life.dead.clone().run_until_cancelled(tokio::time::sleep_until(until)).await.is_some() {
                return Ok(());
            }
            self.die().await;
            let bound = if self.world.once_in(4) { 60_000 } else { 300 };
            sleep(self.world.span(Duration::from_millis(bound))).await;
            self.live().await?;
        }
    }

    pub(super) async fn live(&mut self) -> Result<()> {
        self.lives += 1;
        self.life = Some(Life::begin(&self.world, &self.control_plane).await?);
        Ok(())
    }

    pub(super) async fn die(&mut self) {
        self.world.note(format_args!("agent killed"));
        if let Some(life) = self.life.take() {
            life.kill().await;
        }
    }

    pub(super) fn ask(&mut self) {
        let number = self.asked + 1;
        let (spec, asked) = self.world.choose(|chance| tasks::one(chance, number));
        self.run(spec, asked);
    }

    /// A task is to stop.
    pub fn stop(&self, arn: &str) {
        if !self.control_plane.knows(arn) {
            // As whoever asks is told.
            self.world.note(format_args!("stop {}: no such task", short(arn)));
            return;
        }
        self.world.note(format_args!("stop {}", short(arn)));
        if let Some(asked) = self.world.known().tasks.get_mut(arn)
            && asked.wish == Wish::Run
        {
            asked.wish = Wish::Stop;
        }
        self.control_plane.stop(arn);
    }

    /// No more faults; those that last end.
    ///
    /// # Errors
    /// When the agent does not come up.
    pub async fn calm(&mut self) -> Result<()> {
        self.world.note(format_args!("calm"));
        self.world.set_climate(Climate::FAIR);
        self.world.engine.up();
        self.world.engine_hangs.set(false);
        self.world.engine.lose_events(false);
        self.world.disk().fail_with(None);
        self.control_plane.behave(Manner::Fine);
        self.pass(Duration::from_millis(1)).await
    }

    async fn rest(&mut self, end: bool) -> Result<()> {
        let began = self.world.trace.millis();
        loop {
            self.pass(LOOK).await?;
            check::always(&self.world)?;
            let Some(life) = &self.life else { bail!("nobody lives") };
            let at_rest = match end {
                false => check::at_rest(&self.world, &self.control_plane, life).await,
                true => check::at_the_end(&self.world, &self.control_plane, life).await,
            };
            let Err(why) = at_rest else { return Ok(()) };
            if self.world.trace.millis() - began > REST.as_millis() {
                return Err(why).with_context(|| format!("not within {} s", REST.as_secs()));
            }
        }
    }
}
