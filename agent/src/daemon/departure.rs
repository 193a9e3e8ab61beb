//! What the agent does when its host goes. A shutdown stops the tasks in order, within the time that there is;
//! a notice drains the instance, and stops them so that they are gone by its deadline. SIGTERM alone, as of an
//! upgrade, touches nothing.
//!
//! A shutdown is learnt of from logind, whose lock holds it up; and where that gives less time than the tasks
//! need, or there is none, once more when the service is stopped and systemd says that the host goes down:
//! until the agent has ended the container engine is not stopped either.

use std::sync::Arc;
use std::time::Duration;

use berth_core::task::{StopCause, StopCode};
use berth_core::units::{Millis, Timestamp};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::service::{Service, count};
use crate::clock;
use crate::config::Config;
use crate::engine::{Departure, Engine};
use crate::host;
use crate::host_life::logind::{Logind, Shutdown};
use crate::host_life::notice::file::NoticeFile;
use crate::host_life::notice::instance_metadata::InstanceMetadata;
use crate::host_life::notice::{Notice, NoticeKind, NoticeSource, Notices};
use crate::host_life::systemd;
use crate::supervise::Tracker;

/// Of the time that there is, what is kept for the last word to the control plane.
const LAST_WORD: Millis = Millis::from_secs(2);
/// Longest that what was killed at its deadline may take to be gone and told, when the service is stopped then.
const AFTER: Duration = Duration::from_secs(10);
/// Stops begin so much before they have to, so that what is killed is gone as well.
const MARGIN: Millis = Millis::from_secs(10);
/// How often it is asked whether it is time to stop tasks before a deadline.
const LOOK: Duration = Duration::from_secs(1);

/// Who follows the host's life.
pub(super) struct HostWatch {
    engine: Engine,
    logind: Arc<Logind>,
    notices: Notices,
    timeout: Millis,
    /// Whether the time beyond logind's is the agent's, because systemd waits for the service.
    is_service: bool,
}

impl HostWatch {
    pub(super) fn new(config: &Config, engine: Engine, is_service: bool) -> Self {
        let life = &config.host_life;
        let file = life.notice_file.clone().map(|path| Arc::new(NoticeFile(path)) as Arc<dyn NoticeSource>);
        let metadata = life.instance_metadata.as_deref().map(InstanceMetadata::new);
        let metadata = metadata.map(|source| Arc::new(source) as Arc<dyn NoticeSource>);
        let notices = Notices::new(file.into_iter().chain(metadata).collect());
        let timeout = life.shutdown_timeout;
        Self { engine, logind: Arc::default(), notices, timeout, is_service }
    }

    /// Looks once, and then follows until the tracker ends.
    pub(super) async fn follow(self, tracker: &Tracker) -> HostEnd {
        let Self { engine, logind, mut notices, timeout, is_service } = self;
        let end = HostEnd { engine: engine.clone(), shutdown: logind.shutdown(), timeout };
        let mut mind = Mind {
            engine,
            logind: Arc::clone(&logind),
            shutdown: logind.shutdown(),
            notice: notices.notice(),
            timeout,
            is_service,
        };
        notices.look().await;
        mind.decide().await;
        tracker.spawn_droppable("notices", notices.run());
        tracker.spawn_droppable("logind", async move { logind.run().await });
        tracker.spawn_droppable("host's end", async move { mind.run().await });
        end
    }
}

/// Decides what becomes of the tasks.
struct Mind {
    engine: Engine,
    logind: Arc<Logind>,
    shutdown: watch::Receiver<Shutdown>,
    notice: watch::Receiver<Option<Notice>>,
    timeout: Millis,
    is_service: bool,
}

impl Mind {
    async fn run(&mut self) {
        loop {
            let departure = self.decide().await;
            let waits_for_time = departure.is_some_and(|known| !known.stops && known.deadline.is_some());
            let shutting_down = *self.shutdown.borrow() != Shutdown::None;
            tokio::select! {
                Ok(()) = self.shutdown.changed() => {}
                Ok(()) = self.notice.changed() => {}
                () = sleep(LOOK), if waits_for_time => {}
                // Once: what comes after it is that the host is gone, or stays.
                () = done(&self.engine), if shutting_down => {
                    self.logind.release();
                    tokio::select! {
                        Ok(()) = self.shutdown.changed() => {}
                        else => return,
                    }
                }
            }
        }
    }

    /// Brings the engine to what is known now.
    async fn decide(&mut self) -> Option<Departure> {
        let known = self.engine.departure().borrow().clone();
        let shutdown = *self.shutdown.borrow_and_update();
        let notice = self.notice.borrow_and_update().clone();
        let now = clock::now();
        let departure = match (shutdown, notice) {
            (Shutdown::Begun { delay }, _) => {
                let cause = shutdown_cause();
                match known.clone().filter(|known| known.cause == cause) {
                    Some(known) => Some(known),
                    None => Some(self.shut_down(cause, delay, now)),
                }
            }
            (Shutdown::None, Some(notice)) => {
                let cause = cause_of(&notice);
                let stopped = known.as_ref().is_some_and(|known| known.stops && known.cause == cause);
                let is_time = |deadline: Timestamp| {
                    let needed = Millis(self.engine.longest_stop().0.saturating_add(MARGIN.0));
                    deadline.since(now) <= needed
                };
                let stops = stopped || notice.deadline.is_some_and(is_time);
                Some(Departure { cause, deadline: notice.deadline, stops })
            }
            (Shutdown::None, None) => None,
        };
        if departure != known {
            match &departure {
                Some(Departure { cause, stops, .. }) => {
                    tracing::warn!(
                        reason = cause.reason,
                        stops,
                        tasks = self.engine.live(),
                        "the host goes: nothing new is taken{}",
                        if *stops { ", and tasks are stopped in order" } else { "" }
                    );
                }
                None => tracing::info!("the host stays after all: tasks are taken again"),
            }
            self.engine.depart(departure.clone()).await;
        }
        departure
    }

    fn shut_down(&self, cause: StopCause, delay: Duration, now: Timestamp) -> Departure {
        let given = Millis(u64::try_from(delay.as_millis()).unwrap_or(u64::MAX));
        let whole = if self.is_service { self.timeout } else { self.timeout.min(given) };
        let within = Millis(whole.0.saturating_sub(LAST_WORD.0));
        if given < self.timeout && self.is_service {
            tracing::info!(
                given = %given,
                wanted = %self.timeout,
                "logind waits for less than BERTH_SHUTDOWN_TIMEOUT (InhibitDelayMaxSec in logind.conf); what is \
                 not stopped by then is stopped while systemd waits for the service"
            );
        }
        Departure { cause, deadline: Some(now.after(within)), stops: self.timeout.0 > 0 }
    }
}

/// Waits until tasks are gone that are to go, and the control plane knows.
async fn done(engine: &Engine) {
    let stops = engine.departure().borrow().as_ref().is_some_and(|departure| departure.stops);
    if stops {
        engine.emptied().await;
    }
    engine.told(LAST_WORD).await;
}

/// What is left to be done when the agent is told to end.
pub(super) struct HostEnd {
    engine: Engine,
    shutdown: watch::Receiver<Shutdown>,
    timeout: Millis,
}

impl HostEnd {
    /// Stops the tasks if the host goes down, and only then.
    pub(super) async fn end(&self, service: &Service) {
        if self.timeout.0 == 0 {
            return;
        }
        let known = *self.shutdown.borrow() != Shutdown::None;
        if !known && !systemd::is_shutting_down().await {
            return;
        }
        let departure = self.engine.departure().borrow().clone().filter(|departure| departure.stops);
        let departure = departure.unwrap_or_else(|| Departure {
            cause: shutdown_cause(),
            deadline: Some(clock::now().after(Millis(self.timeout.0.saturating_sub(LAST_WORD.0)))),
            stops: true,
        });
        let deadline = departure.deadline.unwrap_or_else(|| clock::now().after(self.timeout));
        let live = self.engine.live();
        if live > 0 {
            tracing::warn!(tasks = live, "the host goes down: tasks are stopped in order");
            service.ending(&format!("the host goes down: {} to be stopped", count(live, "task")));
        }
        self.engine.depart(Some(departure)).await;
        let patience = clock::until(deadline).saturating_add(LAST_WORD.as_duration()).max(AFTER);
        let stopped = service.waiting(timeout(patience, done(&self.engine))).await;
        if stopped.is_err() {
            tracing::error!(tasks = self.engine.live(), "the host goes down before all tasks have stopped");
        }
    }
}

fn shutdown_cause() -> StopCause {
    StopCause::new(StopCode::TerminationNotice, format!("Host {} is shutting down", host::hostname()))
}

fn cause_of(notice: &Notice) -> StopCause {
    let code = match notice.kind {
        NoticeKind::Spot => StopCode::SpotInterruption,
        NoticeKind::Told => StopCode::TerminationNotice,
    };
    let at = notice.deadline.and_then(clock::rfc3339).map_or_else(String::new, |at| format!(" at {at}"));
    StopCause::new(code, format!("Host {} is to be terminated{at}", host::hostname()))
}
