//! What happened to each task, for people: kept in a file for each, for days, within bounds. Writing is
//! beside the tasks; what cannot be written in time is left out.

use std::collections::HashSet;
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use berth_core::ids::TaskArn;
use berth_core::units::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use crate::clock;
use crate::effects::{Effects, JOURNAL_WRITE};
use crate::supervise::Tracker;

const FOLDER: &str = "journal";
/// Entries that may wait to be written.
const QUEUE: usize = 1024;
/// Largest file of one task.
const MAX_FILE_BYTES: u64 = 256 * 1024;
/// Most tasks that are kept; the oldest go first.
const MAX_TASKS: usize = 2000;
/// How long they are kept.
const RETENTION: Duration = Duration::from_secs(7 * 24 * 3600);
/// How often what is too old is removed.
const SWEEP: Duration = Duration::from_secs(3600);

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// When.
    pub at: Timestamp,
    /// What, for people.
    pub what: String,
}

/// Takes notes of what happens to tasks.
#[derive(Debug, Clone)]
pub struct Journal {
    notes: mpsc::Sender<(String, Vec<Entry>)>,
}

impl Journal {
    /// A journal below that folder.
    ///
    /// # Errors
    /// When the folder cannot be made.
    pub fn start(data_dir: &Path, effects: Effects, tracker: &Tracker) -> io::Result<Self> {
        let folder = data_dir.join(FOLDER);
        DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
        let (notes, mut waiting) = mpsc::channel::<(String, Vec<Entry>)>(QUEUE);
        tracker.spawn_droppable("journal", async move {
            let mut sweep = tokio::time::interval(SWEEP);
            loop {
                let folder = folder.clone();
                let work = tokio::select! {
                    Some(first) = waiting.recv() => {
                        let mut all = vec![first];
                        while let Ok(next) = waiting.try_recv() {
                            all.push(next);
                        }
                        let written = tokio::task::spawn_blocking(move || write(&folder, &all));
                        let written = async { written.await.map_err(io::Error::other)? };
                        effects.around(JOURNAL_WRITE, io::Error::other, written).await
                    }
                    _ = sweep.tick() => {
                        let pruned = tokio::task::spawn_blocking(move || prune(&folder)).await;
                        pruned.map_err(io::Error::other).flatten()
                    }
                };
                if let Err(error) = work {
                    tracing::warn!(%error, "the journal of tasks has a gap");
                }
            }
        });
        Ok(Self { notes })
    }

    /// Takes notes of a task, now. Never waits.
    pub fn note(&self, task: &TaskArn, what: Vec<String>) {
        let at = clock::now();
        let entries: Vec<Entry> = what.into_iter().map(|what| Entry { at, what }).collect();
        if !entries.is_empty() && self.notes.try_send((task.id().to_owned(), entries)).is_err() {
            tracing::debug!(%task, "the journal cannot keep up; a note was left out");
        }
    }
}

/// What is known of a task, by its id or the beginning of it.
///
/// # Errors
/// When nothing is, or the beginning is that of several.
pub fn read(data_dir: &Path, task: &str) -> io::Result<(String, Vec<Entry>)> {
    let folder = data_dir.join(FOLDER);
    let wanted = task.rsplit('/').next().unwrap_or(task);
    let names = fs::read_dir(&folder)?.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let fitting: HashSet<String> = names
        .filter_map(|name| name.strip_suffix(".jsonl").map(str::to_owned))
        .filter(|id| !wanted.is_empty() && id.starts_with(wanted))
        .collect();
    let mut fitting = fitting.into_iter();
    let id = match (fitting.next(), fitting.next()) {
        (Some(id), None) => id,
        (None, _) => {
            return Err(io::Error::new(
                io::ErrorKind::NotFound,
                format!("nothing is known here of a task {wanted}"),
            ));
        }
        (Some(_), Some(_)) => {
            return Err(io::Error::other(format!("{wanted} is the beginning of several tasks")));
        }
    };
    let text = fs::read_to_string(path(&folder, &id))?;
    // A line that was cut by a crash is left out.
    Ok((id, text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()))
}

fn path(folder: &Path, id: &str) -> PathBuf {
    folder.join(format!("{id}.jsonl"))
}

fn write(folder: &Path, all: &[(String, Vec<Entry>)]) -> io::Result<()> {
    for (id, entries) in all {
        let mut file = OpenOptions::new().create(true).append(true).mode(0o600).open(path(folder, id))?;
        if file.metadata()?.len() > MAX_FILE_BYTES {
            continue;
        }
        let mut lines = Vec::new();
        for entry in entries {
            serde_json::to_writer(&mut lines, entry)?;
            lines.push(b'\n');
        }
        file.write_all(&lines)?;
    }
    Ok(())
}

/// Removes what is too old, or too much.
fn prune(folder: &Path) -> io::Result<()> {
    let now = SystemTime::now();
    let mut kept: Vec<(SystemTime, PathBuf)> = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let at = entry.metadata()?.modified()?;
        if now.duration_since(at).is_ok_and(|age| age > RETENTION) {
            fs::remove_file(entry.path())?;
        } else {
            kept.push((at, entry.path()));
        }
    }
    kept.sort();
    for (_, path) in kept.iter().take(kept.len().saturating_sub(MAX_TASKS)) {
        fs::remove_file(path)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_found_by_the_beginning_of_the_id_and_bounded() {
        let folder = tempfile::tempdir().unwrap();
        let journal = folder.path().join(FOLDER);
        fs::create_dir(&journal).unwrap();
        let entry = |what: &str| Entry { at: Timestamp(1), what: what.to_owned() };
        let (one, two) = ("aa11".to_owned(), "aa22".to_owned());
        write(&journal, &[(one.clone(), vec![entry("a")]), (two, vec![entry("b")]), (one, vec![entry("c")])])
            .unwrap();
        fs::write(journal.join("bb33.jsonl"), "{\"at\":1,\"what\":\"x\"}\n{\"at\":2,\"wh").unwrap();
        assert_eq!(read(folder.path(), "aa1").unwrap(), ("aa11".to_owned(), vec![entry("a"), entry("c")]));
        assert_eq!(read(folder.path(), "arn:aws:ecs:r:1:task/c/bb33").unwrap().1, [entry("x")]);
        assert!(read(folder.path(), "aa").unwrap_err().to_string().contains("several"));
        assert!(read(folder.path(), "cc").unwrap_err().to_string().contains("nothing is known"));
        assert!(read(folder.path(), "").is_err());
        let long = entry(&"x".repeat(300_000));
        write(&journal, &[("dd".to_owned(), vec![long.clone()])]).unwrap();
        write(&journal, &[("dd".to_owned(), vec![long])]).unwrap();
        assert_eq!(read(folder.path(), "dd").unwrap().1.len(), 1);
        prune(&journal).unwrap();
        assert_eq!(fs::read_dir(&journal).unwrap().count(), 4);
    }
}
