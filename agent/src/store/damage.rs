//! A state file that is not what was written: cut short, overwritten, with bits that have turned. It is found out
//! before anything is read from it, kept for those who want to look at it, and begun anew: what runs on the host is
//! known by the labels of its containers.

use std::fs;
use std::io::ErrorKind;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use redb::{Database, DatabaseError, StorageError};

use super::StoreError;

/// Opens the file with `open`, and looks at all of it. One that is damaged is set aside, and `open` makes another.
///
/// # Errors
/// What `open` says of a file that is not damaged; a damaged one that cannot be set aside.
pub(super) fn open_sound(
    path: &Path,
    open: impl Fn(&Path) -> Result<Database, StoreError>,
) -> Result<Database, StoreError> {
    // What is read from a damaged file may break any promise inside the database.
    let looked = catch_unwind(AssertUnwindSafe(|| sound(path, &open)));
    let damage = match looked.unwrap_or_else(|_| Err(damaged(path, &"reading it breaks the database"))) {
        Err(error @ StoreError::Damaged { .. }) => error,
        other => return other,
    };
    let aside = path.with_extension("redb.damaged");
    fs::rename(path, &aside).map_err(|error| StoreError::Io {
        what: "set aside",
        path: path.display().to_string(),
        detail: error.to_string(),
    })?;
    tracing::error!(
        error = %damage,
        kept = %aside.display(),
        "the agent begins with a new state; what runs is known by the labels of its containers"
    );
    open(path)
}

fn sound(path: &Path, open: &impl Fn(&Path) -> Result<Database, StoreError>) -> Result<Database, StoreError> {
    if fs::metadata(path).is_ok_and(|file| file.len() == 0) {
        return Err(damaged(path, &"it is empty"));
    }
    let mut database = open(path)?;
    match database.check_integrity() {
        Ok(true) => Ok(database),
        Ok(false) => {
            tracing::warn!(path = %path.display(), "the agent's state was repaired");
            Ok(database)
        }
        Err(error) if is_damage(&error) => Err(damaged(path, &error)),
        Err(error) => {
            Err(StoreError::Io { what: "read", path: path.display().to_string(), detail: error.to_string() })
        }
    }
}

/// Whether the error says that the file is not what was written, rather than that it cannot be had now.
pub(super) fn is_damage(error: &DatabaseError) -> bool {
    match error {
        DatabaseError::Storage(StorageError::Corrupted(_)) | DatabaseError::RepairAborted => true,
        DatabaseError::Storage(StorageError::Io(error)) => {
            matches!(
                error.kind(),
                ErrorKind::UnexpectedEof | ErrorKind::InvalidData | ErrorKind::InvalidInput
            )
        }
        _ => false,
    }
}

pub(super) fn damaged(path: &Path, error: &dyn std::fmt::Display) -> StoreError {
    StoreError::Damaged { path: path.display().to_string(), detail: error.to_string() }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use redb::{ReadableDatabase, ReadableTable, TableDefinition};

    use super::*;

    const TABLE: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("table");
    const COMMITS: u64 = 8;

    fn open(path: &Path) -> Result<Database, StoreError> {
        Database::builder().set_cache_size(1 << 20).create(path).map_err(|error| {
            if is_damage(&error) {
                return damaged(path, &error);
            }
            let path = path.display().to_string();
            StoreError::Io { what: "open", path, detail: error.to_string() }
        })
    }

    fn record(commit: u64, key: u64) -> Vec<u8> {
        format!("{commit} {key} {}", "x".repeat(usize::try_from(key % 7).unwrap() * 100)).into_bytes()
    }

    /// Each commit writes all records anew.
    fn write(path: &Path) {
        let database = open(path).unwrap();
        for commit in 1..=COMMITS {
            let transaction = database.begin_write().unwrap();
            {
                let mut table = transaction.open_table(TABLE).unwrap();
                for key in 0..100 {
                    table.insert(key, &*record(commit, key)).unwrap();
                }
            }
            transaction.commit().unwrap();
        }
    }

    /// The commit of which everything is there; 0 where there is nothing.
    fn found(database: &Database) -> u64 {
        let transaction = database.begin_read().unwrap();
        let Ok(table) = transaction.open_table(TABLE) else { return 0 };
        let rows: Vec<(u64, Vec<u8>)> = table
            .iter()
            .unwrap()
            .map(|row| row.map(|(k, v)| (k.value(), v.value().to_vec())).unwrap())
            .collect();
        let commit = (1..=COMMITS).find(|commit| rows[0].1 == record(*commit, 0)).unwrap();
        let whole: Vec<(u64, Vec<u8>)> = (0..100).map(|key| (key, record(commit, key))).collect();
        assert!(rows == whole, "a mixture");
        commit
    }

    /// What there is after the file was damaged so: everything of one commit, or nothing and the damaged file aside.
    fn after(damage: impl FnOnce(&fs::File, u64)) -> u64 {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("agent.redb");
        write(&path);
        let file = fs::OpenOptions::new().write(true).read(true).open(&path).unwrap();
        damage(&file, file.metadata().unwrap().len());
        let there = found(&open_sound(&path, open).unwrap());
        assert_eq!(there == 0, folder.path().join("agent.redb.damaged").exists());
        // What was begun anew, or repaired, is sound.
        assert_eq!(found(&open_sound(&path, open).unwrap()), there);
        there
    }

    #[test]
    fn a_sound_file_stays() {
        assert_eq!(after(|_, _| {}), COMMITS);
    }

    #[test]
    fn one_that_was_cut_short_anywhere_is_set_aside() {
        for part in 0..40 {
            assert_eq!(after(|file, length| file.set_len(length * part / 40).unwrap()), 0, "{part} of 40");
        }
    }

    #[test]
    fn what_turned_or_was_written_over_is_never_taken_for_what_was_written() {
        let mut aside = 0;
        for seed in 0_u64..150 {
            let there = after(|file, length| {
                let mut number = seed;
                for _ in 0..=seed % 40 {
                    number = number
                        .wrapping_mul(6_364_136_223_846_793_005)
                        .wrapping_add(1_442_695_040_888_963_407);
                    let at = (number >> 16) % length;
                    let bytes = (number >> 40).to_le_bytes();
                    let bytes = if seed % 3 == 0 { &bytes[..1] } else { &bytes[..] };
                    file.write_all_at(bytes, at).unwrap();
                }
            });
            aside += u32::from(there == 0);
        }
        assert!(aside > 0, "none was found out");
    }

    #[test]
    fn another_file_in_its_place_is_set_aside() {
        let text = b"this is no database ".repeat(4096);
        assert_eq!(after(|file, _| file.write_all_at(&text, 0).unwrap()), 0);
    }
}
