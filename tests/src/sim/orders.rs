//! What was asked of a fleet and acknowledged: the measure of what must come of it.

use std::collections::BTreeMap;

/// The state that was asked for, by task ARN. Nothing is forgotten.
#[derive(Debug, Clone, Default)]
pub struct Orders(BTreeMap<String, &'static str>);

impl Orders {
    /// RunTask was acknowledged with these tasks. Those that were to stop already are stopping.
    pub fn ran(&mut self, tasks: impl IntoIterator<Item = String>) {
        for task in tasks {
            self.0.entry(task).or_insert("RUNNING");
        }
    }

    /// The task is to end: StopTask was acknowledged, or its end was brought about.
    pub fn stopped(&mut self, task: &str) {
        self.0.insert(task.to_owned(), "STOPPED");
    }

    /// The tasks that are to be in that state.
    #[must_use]
    pub fn of(&self, status: &str) -> Vec<String> {
        self.0.iter().filter(|(_, wanted)| **wanted == status).map(|(task, _)| task.clone()).collect()
    }

    /// The state in which the task is to be, if it was asked for.
    #[must_use]
    pub fn wanted(&self, task: &str) -> Option<&'static str> {
        self.0.get(task).copied()
    }

    /// How many tasks were ever asked for.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether nothing was ever asked for.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
