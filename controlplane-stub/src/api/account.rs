//! What is set for the account. There is one account and nothing that depends on its settings, so they
//! live as long as the process.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The settings that somebody set. Cloning yields another handle on the same.
#[derive(Debug, Clone, Default)]
pub(super) struct Settings(Arc<Mutex<BTreeMap<String, String>>>);

impl Settings {
    /// Forgets everything that was set.
    pub(super) fn clear(&self) {
        self.lock().clear();
    }

    /// All of them, by name.
    pub(super) fn lock(&self) -> MutexGuard<'_, BTreeMap<String, String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
