//! In which format the state is written. It is raised whenever a version of the agent writes what the one before
//! cannot read rightly; a field that is new and may be missing raises nothing. State of an older format is brought
//! to this one when it is opened; that of a newer one is refused, and not a byte of it is changed.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use redb::backends::InMemoryBackend;
use redb::{Database, ReadableDatabase, ReadableTable, StorageBackend};

use super::StoreError;
use super::redb::{META, decode};

/// The format that is written here. Before 1 it had no number.
pub(super) const FORMAT: u32 = 1;
/// Where it stands among what is known of the whole.
pub(super) const KEY: &str = "format";

/// Refuses a file of a newer format. It is looked at in a copy in memory: a database that is opened is written to,
/// and one whose agent was killed has to be repaired before it is read.
///
/// # Errors
/// [`StoreError::Newer`]. Whatever else may be wrong with the file shows when it is opened.
pub(super) fn must_be_known(path: &Path) -> Result<(), StoreError> {
    // What is read from a damaged file may break any promise inside the database.
    let looked = catch_unwind(AssertUnwindSafe(|| of_file(path)));
    match looked.ok().flatten() {
        Some(found) if found > FORMAT => {
            Err(StoreError::Newer { path: path.display().to_string(), found, known: FORMAT })
        }
        _ => Ok(()),
    }
}

fn of_file(path: &Path) -> Option<u32> {
    let bytes = fs::read(path).ok().filter(|bytes| !bytes.is_empty())?;
    let memory = InMemoryBackend::new();
    memory.set_len(u64::try_from(bytes.len()).ok()?).ok()?;
    memory.write(0, &bytes).ok()?;
    drop(bytes);
    let database = Database::builder().create_with_backend(memory).ok()?;
    let meta = database.begin_read().ok()?.open_table(META).ok()?;
    of(&meta, path).ok()
}

/// The format that the state says it has.
///
/// # Errors
/// When it cannot be read.
pub(super) fn of(
    meta: &impl ReadableTable<&'static str, &'static [u8]>,
    path: &Path,
) -> Result<u32, StoreError> {
    match meta.get(KEY) {
        Ok(Some(value)) => decode(value.value(), path, KEY),
        Ok(None) => Ok(0),
        Err(error) => {
            Err(StoreError::Io { what: "read", path: path.display().to_string(), detail: error.to_string() })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::redb::RedbStore;
    use crate::store::{Identity, Store, Write};

    fn identity() -> Identity {
        Identity {
            host_key: "key".to_owned(),
            cluster: "blue".to_owned(),
            instance: None,
            outbox_epoch: "epoch".to_owned(),
            endpoint_key: String::new(),
            manifest_sequence: 7,
            last_seen: None,
            boot: String::new(),
            settled: false,
        }
    }

    /// State as an agent leaves it behind that ended, or was killed.
    async fn written(folder: &Path, killed: bool) {
        let store = RedbStore::open(folder).unwrap();
        store.load().await.unwrap();
        store.commit(vec![Write::Identity(identity())]).await.unwrap();
        if killed {
            let copy = fs::read(folder.join("agent.redb")).unwrap();
            closed(store, folder).await;
            fs::write(folder.join("agent.redb"), copy).unwrap();
        } else {
            closed(store, folder).await;
        }
    }

    /// Waits until the writer has let go of the file.
    async fn closed(store: RedbStore, folder: &Path) {
        drop(store);
        while Database::open(folder.join("agent.redb")).is_err() {
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
    }

    /// Says that the state has that format, or that it has none.
    fn says(folder: &Path, format: Option<u32>) {
        let database = Database::open(folder.join("agent.redb")).unwrap();
        let transaction = database.begin_write().unwrap();
        {
            let mut meta = transaction.open_table(META).unwrap();
            match format {
                Some(format) => {
                    meta.insert(KEY, [&[1], format.to_string().as_bytes()].concat().as_slice()).unwrap();
                }
                None => {
                    meta.remove(KEY).unwrap();
                }
            }
        }
        transaction.commit().unwrap();
    }

    #[tokio::test]
    async fn a_newer_format_is_refused_and_nothing_of_it_is_changed() {
        for killed in [false, true] {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("agent.redb");
            written(folder.path(), killed).await;
            says(folder.path(), Some(FORMAT + 1));
            if killed {
                // As after a commit and before the file was closed.
                let database = Database::open(&path).unwrap();
                let transaction = database.begin_write().unwrap();
                transaction.open_table(META).unwrap().insert("more", &[1_u8][..]).unwrap();
                transaction.commit().unwrap();
                let copy = fs::read(&path).unwrap();
                drop(database);
                fs::write(&path, copy).unwrap();
            }
            let before = fs::read(&path).unwrap();
            let refused = RedbStore::open(folder.path()).unwrap_err();
            assert!(matches!(&refused, StoreError::Newer { found, .. } if *found == FORMAT + 1), "{refused}");
            assert!(refused.to_string().contains("Install that version again"), "{refused}");
            assert!(fs::read(&path).unwrap() == before, "it was changed (killed: {killed})");
            assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        }
    }

    #[tokio::test]
    async fn an_older_format_is_brought_to_this_one_with_all_that_is_in_it() {
        for killed in [false, true] {
            let folder = tempfile::tempdir().unwrap();
            written(folder.path(), killed).await;
            says(folder.path(), None);
            assert_eq!(of_file(&folder.path().join("agent.redb")), Some(0));
            let store = RedbStore::open(folder.path()).unwrap();
            assert_eq!(store.load().await.unwrap().identity, Some(identity()));
            closed(store, folder.path()).await;
            assert_eq!(of_file(&folder.path().join("agent.redb")), Some(FORMAT));
        }
    }
}
