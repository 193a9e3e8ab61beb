//! A task whose host goes: it is to be gone by a moment that nobody can put off, and its containers share
//! the time until then, in the order in which they stop.

use super::attempt::AttemptKind;
use super::reason::{StopCause, StopCode};
use super::step::Act;
use super::{Task, TaskStatus};
use crate::units::{Millis, Timestamp};

/// Of the time that is left, what is kept for killing those that do not heed their signal, and for giving
/// back what the task had.
const RESERVE: Millis = Millis::from_secs(1);

impl Task {
    pub(super) fn host_goes(&mut self, cause: StopCause, by: Timestamp) {
        if self.state.status == TaskStatus::Stopped {
            return;
        }
        self.stop(cause);
        if self.state.stop_by.is_some_and(|known| known <= by) {
            return;
        }
        self.state.stop_by = Some(by);
        for index in 0..self.state.containers.len() {
            let own = self.own_grace(index);
            let container = &mut self.state.containers[index];
            container.hurried = container.attempt.is_some_and(|attempt| {
                attempt.kind == AttemptKind::Stop && attempt.since.after(own).after(RESERVE) > by
            });
        }
    }

    /// The time between stop signal and SIGKILL: the container's own, or its share of what is left where
    /// those that stop one after another would have more together.
    pub(super) fn grace(&self, index: usize, now: Timestamp) -> Millis {
        let own = self.own_grace(index);
        let Some(by) = self.state.stop_by else {
            return own;
        };
        let left = by.since(now).0.saturating_sub(RESERVE.0);
        let wanted = self.chain(index, self.state.containers.len()).0;
        if wanted <= left {
            return own;
        }
        let share = u128::from(left) * u128::from(own.0) / u128::from(wanted.max(1));
        Millis(u64::try_from(share).unwrap_or(left))
    }

    /// Gives up a stop that was begun with more time than there is, so that another is begun.
    pub(super) fn hurry(&mut self, index: usize, acts: &mut Vec<Act>) {
        let container = &mut self.state.containers[index];
        if !std::mem::take(&mut container.hurried) {
            return;
        }
        if let Some(attempt) = container.attempt.take_if(|attempt| attempt.kind == AttemptKind::Stop) {
            acts.push(Act::Abandon { attempt: attempt.id });
        }
    }

    /// How long its containers may take to stop, each with its own grace, in order.
    #[must_use]
    pub fn longest_stop(&self) -> Millis {
        let depth = self.state.containers.len();
        let running = (0..depth).filter(|index| !self.state.containers[*index].is_stopped());
        running.map(|index| self.chain(index, depth)).max().unwrap_or_default()
    }

    fn own_grace(&self, index: usize) -> Millis {
        self.spec.containers[index].stop_timeout.unwrap_or(self.settings.stop_timeout)
    }

    /// The time of a container and of those that may stop only after it, along the longest way.
    fn chain(&self, index: usize, depth: usize) -> Millis {
        let spec = &self.spec.containers;
        let after = |name| spec.iter().position(|other| &other.name == name);
        let rest = spec[index]
            .depends_on
            .iter()
            .filter_map(|dependency| after(&dependency.container))
            .filter(|other| depth > 0 && !self.state.containers[*other].is_stopped())
            .map(|other| self.chain(other, depth - 1));
        Millis(self.own_grace(index).0.saturating_add(rest.max().unwrap_or_default().0))
    }

    /// A task whose essential container did not outlive its host says what happened to it.
    pub(super) fn note_reboot(&mut self) {
        let Some(index) = self.ended_essential() else { return };
        if self.state.containers[index].started_at.is_some() {
            self.stop(StopCause::new(StopCode::EssentialContainerExited, StopCause::CUT_OFF));
        }
    }
}
