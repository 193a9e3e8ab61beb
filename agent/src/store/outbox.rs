//! What is yet to be told to the control plane, in order: the part of the store that the session
//! reads. Written by the store alone, after the commit.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use berth_core::ids::TaskArn;
use berth_core::task::Report;
use tokio::sync::watch;

/// A numbered report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutboxEntry {
    /// Its number: one more than that of the one before.
    pub sequence: u64,
    /// The task that it tells of.
    pub task: TaskArn,
    /// What it tells.
    pub report: Report,
}

/// The reports that the control plane has not confirmed.
#[derive(Debug)]
pub struct Outbox {
    entries: Mutex<VecDeque<Arc<OutboxEntry>>>,
    newest: watch::Sender<u64>,
}

impl Default for Outbox {
    fn default() -> Self {
        Self { entries: Mutex::default(), newest: watch::Sender::new(0) }
    }
}

impl Outbox {
    /// Takes what was committed; in order.
    pub(super) fn push(&self, entries: impl IntoIterator<Item = OutboxEntry>) {
        let mut queue = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        queue.extend(entries.into_iter().map(Arc::new));
        if let Some(last) = queue.back() {
            self.newest.send_replace(last.sequence);
        }
    }

    /// Drops what was confirmed.
    pub(super) fn told(&self, up_to: u64) {
        let mut queue = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        while queue.front().is_some_and(|entry| entry.sequence <= up_to) {
            queue.pop_front();
        }
    }

    /// The next reports after that number, at most `limit`.
    #[must_use]
    pub fn after(&self, sequence: u64, limit: usize) -> Vec<Arc<OutboxEntry>> {
        let queue = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let start = queue.partition_point(|entry| entry.sequence <= sequence);
        queue.iter().skip(start).take(limit).cloned().collect()
    }

    /// Those among the reports up to that number which tell that a task stopped.
    #[must_use]
    pub fn stopped_up_to(&self, sequence: u64) -> Vec<TaskArn> {
        let queue = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        queue
            .iter()
            .take_while(|entry| entry.sequence <= sequence)
            .filter(|entry| entry.report.status == berth_core::task::TaskStatus::Stopped)
            .map(|entry| entry.task.clone())
            .collect()
    }

    /// Whether it is yet to be told that this task stopped.
    #[must_use]
    pub fn has_stopped(&self, task: &TaskArn) -> bool {
        let queue = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        queue
            .iter()
            .any(|entry| &entry.task == task && entry.report.status == berth_core::task::TaskStatus::Stopped)
    }

    /// Changes whenever there is something new; its value is the newest number.
    #[must_use]
    pub fn newest(&self) -> watch::Receiver<u64> {
        self.newest.subscribe()
    }
}
