//! What the service manager is told of the agent: that it is ready, what it does, that it is alive.
//!
//! It is ready once it is in conversation with the control plane, or once it has found that it has to do
//! without and its tasks run; and in any case after a while, with a status that says what is missing: a start
//! that waits for others is not a start that failed.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use berth_core::ids::ContainerInstanceArn;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until, timeout};

use crate::engine::{Departure, Engine, Usage};
use crate::host_life::notify::Notify;
use crate::session::{Session, SessionStatus};
use crate::supervise::Tracker;

/// When the agent is ready at the latest.
const READY: Duration = Duration::from_secs(15);
/// The status is told at most this often.
const PAUSE: Duration = Duration::from_millis(200);
/// How often the main loop shows that it turns.
const TURN: Duration = Duration::from_millis(500);
/// How much more time is asked for, again and again, while tasks are stopped at the end.
const MORE: Duration = Duration::from_secs(20);
const ASK_AGAIN: Duration = Duration::from_secs(5);

/// The service manager, and what it is told of.
pub(super) struct Service {
    inner: Arc<Inner>,
}

struct Inner {
    notify: Notify,
    stage: watch::Sender<Stage>,
    turns: watch::Sender<u64>,
}

/// How far the agent is.
#[derive(Clone)]
enum Stage {
    Starting(&'static str),
    Up(Box<Up>),
}

/// What is told of an agent that runs.
#[derive(Clone)]
struct Up {
    engine: Engine,
    session: watch::Receiver<SessionStatus>,
    instance: watch::Receiver<Option<ContainerInstanceArn>>,
    draining: watch::Receiver<bool>,
    usage: watch::Receiver<Usage>,
    healthy: watch::Receiver<bool>,
    departure: watch::Receiver<Option<Departure>>,
}

impl Service {
    /// Begins to inform.
    pub(super) fn start(notify: Notify, tracker: &Tracker) -> Self {
        let stage = watch::Sender::new(Stage::Starting("starting"));
        let inner = Arc::new(Inner { notify, stage, turns: watch::Sender::new(0) });
        if inner.notify.is_there() {
            let told = Arc::clone(&inner);
            tracker.spawn_droppable("service status", async move { told.inform().await });
            if let Some(patience) = inner.notify.watchdog() {
                let told = Arc::clone(&inner);
                tracker.spawn_droppable("watchdog", async move { told.show_life(patience).await });
            }
        }
        Self { inner }
    }

    /// Whether there is a service manager.
    pub(super) fn is_there(&self) -> bool {
        self.inner.notify.is_there()
    }

    /// What the start is at.
    pub(super) fn starts(&self, with: &'static str) {
        self.inner.stage.send_replace(Stage::Starting(with));
    }

    /// The agent runs.
    pub(super) fn is_up(&self, engine: &Engine, session: &Session) {
        let up = Up {
            session: session.status(),
            instance: session.instance(),
            draining: session.draining(),
            usage: engine.usage(),
            healthy: engine.healthy(),
            departure: engine.departure(),
            engine: engine.clone(),
        };
        self.inner.stage.send_replace(Stage::Up(Box::new(up)));
    }

    /// The agent is about to end.
    pub(super) fn ending(&self, status: &str) {
        self.inner.notify.stopping(status);
    }

    /// Has the service manager wait while something is done at the end.
    pub(super) async fn waiting<F: Future>(&self, work: F) -> F::Output {
        tokio::pin!(work);
        let mut ask = interval(ASK_AGAIN);
        loop {
            tokio::select! {
                output = &mut work => return output,
                _ = ask.tick() => self.inner.notify.extend(MORE),
            }
        }
    }

    /// Drives the agent's main loop, and shows that it turns: who blocks it, blocks this.
    pub(super) async fn turning<F: Future>(&self, main: F) -> F::Output {
        tokio::pin!(main);
        let often = self.inner.notify.watchdog().map_or(TURN, |patience| TURN.min(patience / 8));
        let mut turn = interval(often.max(Duration::from_millis(1)));
        turn.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                output = &mut main => return output,
                _ = turn.tick() => self.inner.turns.send_modify(|turns| *turns += 1),
            }
        }
    }
}

impl Inner {
    /// Tells the status whenever it changes, and once that the agent is ready.
    async fn inform(&self) {
        let latest = Instant::now() + READY;
        let mut stage = self.stage.subscribe();
        let (mut ready, mut last) = (false, String::new());
        loop {
            let mut now = stage.borrow_and_update().clone();
            now.mark_seen();
            let text = now.text();
            if !ready && (now.is_settled() || Instant::now() >= latest) {
                ready = true;
                self.notify.ready(&text);
            } else if text != last {
                self.notify.status(&text);
            }
            last = text;
            tokio::select! {
                changed = stage.changed() => if changed.is_err() { return },
                () = now.changed() => {}
                () = sleep_until(latest), if !ready => {}
            }
            sleep(PAUSE).await;
        }
    }

    /// Says that the agent is alive, as often as its main loop and its engine show it.
    async fn show_life(&self, patience: Duration) {
        let turns = self.turns.subscribe();
        let engine = || {
            let stage = self.stage.borrow().clone();
            async move {
                if let Stage::Up(up) = stage {
                    up.engine.pulse().await;
                }
            }
        };
        watch(turns, engine, patience, || self.notify.alive()).await;
    }
}

/// Tells `alive` as often as the main loop turns and the engine shows a pulse. Between two words of one that lives
/// there is less than the manager's `patience`, however late within their time the answers come.
async fn watch<Pulse: Future<Output = ()>>(
    mut turns: watch::Receiver<u64>,
    pulse: impl Fn() -> Pulse,
    patience: Duration,
    alive: impl Fn(),
) {
    loop {
        let life = async {
            turns.mark_unchanged();
            // The sender is the service's own.
            let _ = turns.changed().await;
            pulse().await;
        };
        if timeout(patience / 2, life).await.is_ok() {
            alive();
        } else {
            tracing::error!(
                "the agent's main loop or one of its tasks hangs; the service manager is not told that it is alive"
            );
        }
        sleep(patience / 4).await;
    }
}

impl Stage {
    /// Whether the agent does what it is there for: with the control plane, or knowingly without.
    fn is_settled(&self) -> bool {
        match self {
            Self::Starting(_) => false,
            Self::Up(up) => *up.session.borrow() != SessionStatus::Connecting,
        }
    }

    fn text(&self) -> String {
        match self {
            Self::Starting(with) => (*with).to_owned(),
            Self::Up(up) => up.text(),
        }
    }

    /// What is there now is no change.
    fn mark_seen(&mut self) {
        if let Self::Up(up) = self {
            up.session.mark_unchanged();
            up.instance.mark_unchanged();
            up.draining.mark_unchanged();
            up.usage.mark_unchanged();
            up.healthy.mark_unchanged();
            up.departure.mark_unchanged();
        }
    }

    /// Waits for a change of what the text is made of.
    async fn changed(&mut self) {
        match self {
            Self::Starting(_) => std::future::pending().await,
            Self::Up(up) => up.changed().await,
        }
    }
}

impl Up {
    fn text(&self) -> String {
        let mut text = match &*self.session.borrow() {
            SessionStatus::Connecting => "connecting to the control plane".to_owned(),
            SessionStatus::Connected => {
                let instance = self.instance.borrow();
                let id = instance.as_ref().and_then(|arn| arn.as_str().rsplit('/').next());
                format!("connected to the control plane as {}", id.unwrap_or("?"))
            }
            SessionStatus::Disconnected(_) => "without the control plane, tasks run on".to_owned(),
            SessionStatus::Deregistered => {
                "deregistered: restart the agent to register the host anew".to_owned()
            }
        };
        let waiting = self.usage.borrow().waiting.len();
        text.push_str(&format!("; {}", count(self.engine.live(), "task")));
        if waiting > 0 {
            text.push_str(&format!(", {waiting} of them waiting"));
        }
        if !*self.healthy.borrow() {
            text.push_str("; the container engine does not answer");
        }
        if let Some(departure) = &*self.departure.borrow() {
            let what = if departure.stops { ": tasks are stopped" } else { "" };
            text.push_str(&format!("; {}{what}", departure.cause.reason));
        } else if *self.draining.borrow() {
            text.push_str("; draining");
        }
        if let SessionStatus::Disconnected(why) = &*self.session.borrow() {
            text.push_str(&format!(" ({why})"));
        }
        text
    }

    async fn changed(&mut self) {
        // A sender that has gone has nothing more to say.
        let changed = tokio::select! {
            changed = self.session.changed() => changed,
            changed = self.instance.changed() => changed,
            changed = self.draining.changed() => changed,
            changed = self.usage.changed() => changed,
            changed = self.healthy.changed() => changed,
            changed = self.departure.changed() => changed,
        };
        if changed.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// "1 task", "2 tasks".
pub(super) fn count(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::future::pending;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(40);

    /// When the manager hears that the agent lives, within ten times its patience.
    async fn heard<Pulse: Future<Output = ()>>(turns: bool, pulse: impl Fn() -> Pulse) -> Vec<Instant> {
        let sender = watch::Sender::new(0_u64);
        let heard = RefCell::new(vec![Instant::now()]);
        let main = async {
            if !turns {
                pending::<()>().await;
            }
            let mut turn = interval(PATIENCE / 8);
            loop {
                turn.tick().await;
                sender.send_modify(|count| *count += 1);
            }
        };
        let watched = watch(sender.subscribe(), pulse, PATIENCE, || heard.borrow_mut().push(Instant::now()));
        let both = async { tokio::join!(main, watched) };
        assert!(timeout(PATIENCE * 10, both).await.is_err(), "neither ends");
        heard.into_inner()
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_lives_is_heard_in_time_however_late_its_answers_are() {
        for late in [Duration::ZERO, PATIENCE / 3] {
            let heard = heard(true, || sleep(late)).await;
            let longest = heard.windows(2).map(|pair| pair[1] - pair[0]).max();
            assert!(heard.len() > 10 && longest < Some(PATIENCE), "{late:?}: {longest:?} of {}", heard.len());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn one_whose_engine_or_main_loop_hangs_is_not_heard() {
        assert_eq!(heard(true, pending).await.len(), 1, "an engine without a pulse");
        assert_eq!(heard(false, || async {}).await.len(), 1, "a main loop that stands still");
    }
}
