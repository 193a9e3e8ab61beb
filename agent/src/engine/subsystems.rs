//! The last state of each part of the agent, in a few words, for people who look for what is wrong.

use std::sync::atomic::Ordering;

use super::Engine;
use crate::image::Progress;

impl Engine {
    /// Each part and its last state.
    #[must_use]
    pub fn subsystems(&self) -> Vec<(&'static str, String)> {
        let shared = &self.shared;
        let usage = self.usage().borrow().clone();
        let engine = if *self.healthy().borrow() { "answers" } else { "does not answer" };
        let pulls = shared.images.under_way();
        let queued = pulls.iter().filter(|pull| **pull == Progress::Queued).count();
        let removed = shared.images_removed.load(Ordering::Relaxed);
        let offers = shared.network.offers();
        let providers: Vec<&str> = offers.providers.iter().copied().collect();
        let interfaces = if providers.is_empty() {
            "off".to_owned()
        } else {
            format!("{} of {} in use: {}", usage.in_use.enis, usage.total.enis, providers.join(", "))
        };
        let limits = if shared.cgroups.enabled() { "on" } else { "off" };
        let journal = if shared.journal.is_some() { "is written" } else { "off" };
        let departure = self.departure().borrow().as_ref().map(|departure| departure.cause.reason.clone());
        vec![
            ("Host", departure.unwrap_or_else(|| "stays".to_owned())),
            ("Engine", engine.to_owned()),
            ("Tasks", format!("{}, {} waiting", self.tasks().len(), usage.waiting.len())),
            ("Images", format!("{} pulls, {queued} of them queued", pulls.len())),
            ("ImageCleanUp", format!("{removed} removed since the start")),
            ("TaskLimits", limits.to_owned()),
            ("TaskInterfaces", interfaces),
            ("TaskEndpoint", shared.endpoint.clone().unwrap_or_else(|| "off".to_owned())),
            ("Credentials", format!("of {} tasks", shared.credentials.held())),
            ("Journal", journal.to_owned()),
        ]
    }
}
