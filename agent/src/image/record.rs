//! Which images this agent has pulled, and when each was used last: what clean-up goes by. Kept in a file
//! beside the state; losing it means that some images are never cleaned up, and nothing else.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use berth_core::image::familiar;
use berth_core::units::{Millis, Timestamp};
use serde::{Deserialize, Serialize};

const FILE: &str = "images.json";

/// One image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// When it was pulled last.
    pub pulled_at: Timestamp,
    /// When a task wanted it last.
    pub used_at: Timestamp,
}

/// The images that this agent has pulled, by their familiar names.
pub struct Records {
    path: Option<PathBuf>,
    images: Mutex<BTreeMap<String, Record>>,
    changed: AtomicBool,
}

impl Records {
    /// Those of the file below that folder; without a folder, in memory alone.
    #[must_use]
    pub fn open(data_dir: Option<&Path>) -> Self {
        let path = data_dir.map(|folder| folder.join(FILE));
        let text = path.as_ref().and_then(|path| fs::read(path).ok());
        let images = text.and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default();
        Self { path, images: Mutex::new(images), changed: AtomicBool::new(false) }
    }

    /// Whether they are in a file.
    #[must_use]
    pub const fn are_kept(&self) -> bool {
        self.path.is_some()
    }

    /// What is known of an image, where this agent has pulled it.
    #[must_use]
    pub fn of(&self, reference: &str) -> Option<Record> {
        self.lock().get(&familiar(reference)).copied()
    }

    /// Whether this agent has pulled it.
    #[must_use]
    pub fn has(&self, reference: &str) -> bool {
        self.of(reference).is_some()
    }

    /// It was pulled.
    pub fn pulled(&self, reference: &str, now: Timestamp) {
        self.lock().insert(familiar(reference), Record { pulled_at: now, used_at: now });
        self.changed.store(true, Ordering::Release);
    }

    /// A task wants it.
    pub fn used(&self, reference: &str, now: Timestamp) {
        if let Some(record) = self.lock().get_mut(&familiar(reference)) {
            record.used_at = now;
            self.changed.store(true, Ordering::Release);
        }
    }

    /// It is not here any more.
    pub fn removed(&self, reference: &str) {
        self.lock().remove(&familiar(reference));
        self.changed.store(true, Ordering::Release);
    }

    /// Those that nobody uses and that were pulled so long ago, the one that was used longest ago first.
    #[must_use]
    pub fn unused(&self, in_use: &dyn Fn(&str) -> bool, age: Millis, now: Timestamp) -> Vec<String> {
        let images = self.lock();
        let mut found: Vec<(&String, &Record)> = images
            .iter()
            .filter(|(reference, record)| {
                !in_use(reference) && now.0.saturating_sub(record.pulled_at.0) >= age.0
            })
            .collect();
        found.sort_by_key(|(_, record)| record.used_at);
        found.into_iter().map(|(reference, _)| reference.clone()).collect()
    }

    /// Writes the file, where something has changed. Blocks.
    ///
    /// # Errors
    /// When it cannot be written; the next time it is tried again.
    pub fn save(&self) -> io::Result<()> {
        let Some(path) = &self.path else { return Ok(()) };
        if !self.changed.swap(false, Ordering::AcqRel) {
            return Ok(());
        }
        let saved = self.write(path);
        if saved.is_err() {
            self.changed.store(true, Ordering::Release);
        }
        saved
    }

    fn write(&self, path: &Path) -> io::Result<()> {
        let text = serde_json::to_vec(&*self.lock())?;
        let next = path.with_extension("next");
        let mut file = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&next)?;
        file.write_all(&text)?;
        fs::rename(&next, path)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Record>> {
        self.images.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_one_that_was_used_longest_ago_goes_first_and_none_that_is_used_or_young() {
        let folder = tempfile::tempdir().unwrap();
        let records = Records::open(Some(folder.path()));
        for (name, pulled, used) in [("a", 0, 50), ("b", 0, 10), ("c", 0, 5), ("young", 90, 90)] {
            records.pulled(name, Timestamp(pulled));
            records.used(name, Timestamp(used));
        }
        let unused =
            |records: &Records| records.unused(&|name| name == "c:latest", Millis(50), Timestamp(100));
        assert_eq!(unused(&records), ["b:latest", "a:latest"]);
        records.save().unwrap();
        let again = Records::open(Some(folder.path()));
        assert_eq!(unused(&again), ["b:latest", "a:latest"]);
        // What could not be written is, once that is possible.
        let (here, away) = (folder.path().to_owned(), folder.path().with_extension("away"));
        fs::rename(&here, &away).unwrap();
        again.removed("a");
        again.save().unwrap_err();
        fs::rename(&away, &here).unwrap();
        again.save().unwrap();
        let again = Records::open(Some(folder.path()));
        assert_eq!(unused(&again), ["b:latest"]);
        again.removed("b");
        assert!(unused(&again).is_empty());
        // Wanted again, by a task that is gone by now.
        again.used("never pulled here", Timestamp(1));
        assert!(!again.has("never pulled here"));
    }
}
