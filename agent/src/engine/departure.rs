//! A host that goes: the control plane is told, nothing starts any more, and what runs is stopped in order by
//! the time that there is.

use berth_core::task::{Admission, Event, StopCause, TaskStatus};
use berth_core::units::{Millis, Timestamp};
use tokio::sync::watch;
use tokio::time::Instant;

use super::Engine;
use super::registry::Handle;

/// That the host goes, and what becomes of its tasks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Departure {
    /// Why they stop.
    pub cause: StopCause,
    /// When nothing runs here any more, where that is known.
    pub deadline: Option<Timestamp>,
    /// Whether they are stopped now, by the deadline; until then they run on.
    pub stops: bool,
}

impl Engine {
    /// That the host goes; `None` while it stays.
    #[must_use]
    pub fn departure(&self) -> watch::Receiver<Option<Departure>> {
        self.shared.departure.subscribe()
    }

    /// Takes note that the host goes, or that it stays after all. Tasks that were told to stop do so.
    pub async fn depart(&self, departure: Option<Departure>) {
        let before = self.shared.departure.send_replace(departure);
        if before != *self.shared.departure.borrow() {
            self.follow_departure().await;
        }
    }

    /// Tells every task that is here of the departure. Those that have not begun do not: elsewhere they may.
    pub(super) async fn follow_departure(&self) {
        let Some(cause) = self.cause_of_departure() else { return };
        let by = self.stops();
        let concerns = |handle: &Handle| {
            let view = handle.view.borrow();
            let waits = matches!(view.state().admission, Admission::Waiting(_));
            view.state().status != TaskStatus::Stopped && (by.is_some() || waits)
        };
        let event = || match by {
            Some(by) => Event::HostGoes { cause: cause.clone(), by },
            None => Event::Stop(cause.clone()),
        };
        let handles = self.shared.registry.handles().into_iter().filter(concerns);
        self.tell(handles.map(|handle| (handle, event())).collect()).await;
    }

    /// Why tasks that come now do not start.
    pub(super) fn cause_of_departure(&self) -> Option<StopCause> {
        self.shared.departure.borrow().as_ref().map(|departure| departure.cause.clone())
    }

    /// By when what runs is to be gone, once it is stopped.
    fn stops(&self) -> Option<Timestamp> {
        let departure = self.shared.departure.borrow();
        let departure = departure.as_ref().filter(|departure| departure.stops)?;
        // Without a deadline every container has its own time.
        Some(departure.deadline.unwrap_or(Timestamp(u64::MAX)))
    }

    /// How many tasks are not gone yet.
    #[must_use]
    pub fn live(&self) -> usize {
        self.tasks().iter().filter(|task| task.state().status != TaskStatus::Stopped).count()
    }

    /// Waits until every task is gone.
    pub async fn emptied(&self) {
        loop {
            let live = |handle: &Handle| handle.view.borrow().state().status != TaskStatus::Stopped;
            let Some(mut handle) = self.shared.registry.handles().into_iter().find(live) else { return };
            let gone = handle.view.wait_for(|task| task.state().status == TaskStatus::Stopped).await.is_err();
            if gone && self.shared.tracker.token().is_cancelled() {
                return; // The agent itself ends.
            }
        }
    }

    /// Waits until the control plane has all that there is to tell, at most that long.
    pub async fn told(&self, at_most: Millis) {
        const LOOK: std::time::Duration = std::time::Duration::from_millis(50);
        let until = Instant::now() + at_most.as_duration();
        while !self.shared.store.outbox().after(0, 1).is_empty() && Instant::now() < until {
            tokio::time::sleep(LOOK).await;
        }
    }

    /// How long the slowest of its tasks may take to stop in order.
    #[must_use]
    pub fn longest_stop(&self) -> Millis {
        self.tasks().iter().map(|task| task.longest_stop()).max().unwrap_or_default()
    }
}
