//! The one next point in time at which a task wants to be asked again.

use super::attempt::Attempt;
use super::container::ContainerStatus;
use super::graph::{Gate, start_gate};
use super::{Task, TaskStatus};
use crate::units::Timestamp;

impl Task {
    /// When [`super::Event::Deadline`] is due; `None` when only an event can change anything.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Timestamp> {
        let state = &self.state;
        if state.forgotten {
            return None;
        }
        let pauses = state
            .containers
            .iter()
            .map(|c| c.retry_at)
            .chain(state.resources.iter().map(|r| r.retry_at))
            .flatten();
        let gates = state.containers.iter().enumerate().filter_map(|(index, container)| {
            if container.status >= ContainerStatus::Running || self.is_stopping() || !container.is_free() {
                return None;
            }
            // Asked as of the beginning of time: a gate that is overdue is still told.
            match start_gate(&self.spec, &state.containers, index, Timestamp(0)) {
                Gate::Waiting { until, .. } => until,
                _ => None,
            }
        });
        pauses.chain(gates).chain(self.cleanup_at().filter(|_| !self.is_cleaning())).min()
    }

    /// The clock was put forward by so many milliseconds, or back where that is negative: what the task waits for
    /// comes neither sooner nor later, and what runs, or is under way, has taken as long as it has. What the engine
    /// says of starts and ends stays as it is, by which it is known again.
    pub fn clock_moved(&mut self, by: i64) {
        let move_it = |at: &mut Option<Timestamp>| *at = at.map(|at| at.moved(by));
        let move_attempt = |attempt: &mut Option<Attempt>| {
            if let Some(attempt) = attempt {
                attempt.since = attempt.since.moved(by);
            }
        };
        let state = &mut self.state;
        for container in &mut state.containers {
            move_it(&mut container.retry_at);
            move_it(&mut container.created_at);
            move_attempt(&mut container.attempt);
            if container.status == ContainerStatus::Running {
                container.clock_moved_ms = container.clock_moved_ms.saturating_add(by);
            }
        }
        for resource in &mut state.resources {
            move_it(&mut resource.retry_at);
            move_attempt(&mut resource.attempt);
        }
        move_it(&mut state.stop_by);
        move_it(&mut state.stopped_at);
    }

    /// Nothing began later than now: what says so was written before the clock was put back while nobody watched it.
    /// How long ago it was nobody knows; it counts from now on.
    pub(super) fn begin_no_later(&mut self, now: Timestamp) {
        let bound = |at: &mut Option<Timestamp>| *at = at.map(|at| at.min(now));
        let state = &mut self.state;
        for container in &mut state.containers {
            bound(&mut container.created_at);
            if container.status == ContainerStatus::Running {
                container.began_no_later(now);
            }
        }
        bound(&mut state.stopped_at);
    }

    /// When the remains of the task are removed; not before the control plane has its STOPPED.
    pub(super) fn cleanup_at(&self) -> Option<Timestamp> {
        let stopped_at = self.state.stopped_at.filter(|_| self.state.status == TaskStatus::Stopped)?;
        self.state.acknowledged.then(|| stopped_at.after(self.settings.retention))
    }

    /// Whether removal is under way: what is in flight, or paused, says when to go on.
    fn is_cleaning(&self) -> bool {
        self.state.containers.iter().any(|c| c.attempt.is_some() || c.retry_at.is_some())
    }
}
