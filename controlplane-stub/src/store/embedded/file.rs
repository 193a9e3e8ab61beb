//! The file: records as JSON behind a byte that names the schema, the last revision, and the store's lives.

use std::fs;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use redb::{Builder, Database, DatabaseError, ReadableDatabase, ReadableTable, TableDefinition};
use serde::{Deserialize, Serialize};

use super::OpenError;
use crate::ownership;
use crate::store::history::{History, Life, MOST};
use crate::store::index::Index;
use crate::store::{Key, Record, Revision};

const RECORDS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("records");
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
/// The store's lives by their number, as JSON.
const LIVES: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("lives");
const LAST_REVISION: &str = "last-revision";

/// The schema of the records that this version writes.
const SCHEMA: u8 = 1;
/// Reads are served from the index, so that the file needs little memory.
const CACHE_BYTES: usize = 8 * 1024 * 1024;

/// What is written.
pub(super) enum Change {
    Put(Key, Record, Revision),
    Delete(Key),
    Clear,
}

#[derive(Serialize, Deserialize)]
struct Stored<K, R> {
    key: K,
    revision: Revision,
    #[serde(flatten)]
    record: R,
}

/// The open file; nobody else has it.
pub(super) struct File {
    database: Database,
    path: PathBuf,
    history: History,
}

impl File {
    /// Opens or makes the file, reads all of it, and begins a life of it.
    pub(super) fn open(path: &Path) -> Result<(Self, Index), OpenError> {
        if !path.try_exists().map_err(|error| failed(path, &error))? {
            create(path)?;
        }
        let database = builder().open(path).map_err(|error| open_error(path, error))?;
        Self::of(database, path)
    }

    /// Reads all of an open database.
    fn of(database: Database, path: &Path) -> Result<(Self, Index), OpenError> {
        let mut file = Self { database, path: path.to_owned(), history: History::default() };
        let index = file.read()?;
        let begun = file.begin_life(index.last_revision());
        file.history = begun.map_err(|why| OpenError::Failed { path: path.to_owned(), why })?;
        Ok((file, index))
    }

    /// The lives of the store, the present one last.
    pub(super) const fn history(&self) -> &History {
        &self.history
    }

    /// Begins a life at that revision, durably; all that are known then.
    fn begin_life(&self, from: Revision) -> Result<History, String> {
        let txn = self.database.begin_write().map_err(text)?;
        let mut history = Vec::new();
        {
            let mut lives = txn.open_table(LIVES).map_err(text)?;
            let mut number = 0;
            for entry in lives.iter().map_err(text)? {
                let (at, value) = entry.map_err(text)?;
                number = at.value() + 1;
                history
                    .push(serde_json::from_slice(value.value()).map_err(|error| format!("lives: {error}"))?);
            }
            let life = Life::new(from);
            let value = serde_json::to_vec(&life).map_err(|error| format!("lives: {error}"))?;
            lives.insert(number, value.as_slice()).map_err(text)?;
            history.push(life);
            let forgotten = history.len().saturating_sub(MOST);
            history.drain(..forgotten);
            let kept = number.saturating_sub(MOST as u64 - 1);
            lives.retain(|at, _| at >= kept).map_err(text)?;
        }
        txn.commit().map_err(text)?;
        Ok(History::of(history))
    }

    /// The same over storage that a test makes fail.
    #[cfg(test)]
    pub(super) fn over(backend: impl redb::StorageBackend) -> Result<(Self, Index), OpenError> {
        let path = Path::new("test storage");
        let database = builder().create_with_backend(backend).map_err(|error| open_error(path, error))?;
        prepare(&database).map_err(|why| OpenError::Failed { path: path.to_owned(), why })?;
        Self::of(database, path)
    }

    fn read(&self) -> Result<Index, OpenError> {
        let failed = |error: redb::Error| failed(&self.path, &error);
        let txn = self.database.begin_read().map_err(|error| failed(error.into()))?;
        let records = txn.open_table(RECORDS).map_err(|error| failed(error.into()))?;
        let mut index = Index::default();
        for entry in records.iter().map_err(|error| failed(error.into()))? {
            let (name, value) = entry.map_err(|error| failed(error.into()))?;
            let unreadable = |why: String| OpenError::Unreadable {
                path: self.path.clone(),
                key: name.value().to_owned(),
                why,
            };
            let stored = decode(value.value()).map_err(unreadable)?;
            index.put(&stored.key, &stored.record, stored.revision);
        }
        let meta = txn.open_table(META).map_err(|error| failed(error.into()))?;
        let revision = meta.get(LAST_REVISION).map_err(|error| failed(error.into()))?;
        index.set_revision(revision.map(|revision| revision.value()).unwrap_or_default());
        Ok(index)
    }

    /// Writes all changes, wholly and durably, or tells why that can't be known.
    pub(super) fn write(&mut self, changes: &[Change], last: Revision) -> Result<(), String> {
        self.try_write(changes, last).map_err(|why| format!("{}: {why}", self.path.display()))
    }

    fn try_write(&mut self, changes: &[Change], last: Revision) -> Result<(), String> {
        let txn = self.database.begin_write().map_err(text)?;
        {
            let mut records = txn.open_table(RECORDS).map_err(text)?;
            for change in changes {
                match change {
                    Change::Put(key, record, revision) => {
                        let value = encode(key, record, *revision)?;
                        records.insert(key.to_string().as_str(), value.as_slice()).map_err(text)?;
                    }
                    Change::Delete(key) => drop(records.remove(key.to_string().as_str()).map_err(text)?),
                    Change::Clear => records.retain(|_, _| false).map_err(text)?,
                }
            }
            let mut meta = txn.open_table(META).map_err(text)?;
            meta.insert(LAST_REVISION, last).map_err(text)?;
        }
        txn.commit().map_err(text)
    }
}

fn text(error: impl Into<redb::Error>) -> String {
    error.into().to_string()
}

fn failed(path: &Path, error: &dyn std::error::Error) -> OpenError {
    OpenError::Failed { path: path.to_owned(), why: error.to_string() }
}

fn open_error(path: &Path, error: DatabaseError) -> OpenError {
    match error {
        DatabaseError::DatabaseAlreadyOpen => OpenError::InUse(path.to_owned()),
        error => failed(path, &error),
    }
}

fn builder() -> Builder {
    let mut builder = Database::builder();
    builder.set_cache_size(CACHE_BYTES);
    builder
}

/// Makes an empty file under another name and moves it into place: a crash in between leaves
/// nothing that looks like a store.
fn create(path: &Path) -> Result<(), OpenError> {
    let directory = ownership::parent(path);
    ownership::ensure_directory(directory).map_err(|error| failed(directory, &error))?;
    let unfinished = path.with_extension("new");
    private(&unfinished).map_err(|error| failed(&unfinished, &error))?;
    let database = match builder().create(&unfinished) {
        Ok(database) => database,
        Err(error @ DatabaseError::DatabaseAlreadyOpen) => return Err(open_error(path, error)),
        // Left behind by a crash while it was made, and nobody's: the database locks before it looks.
        Err(_) => {
            fs::remove_file(&unfinished).map_err(|error| failed(&unfinished, &error))?;
            private(&unfinished).map_err(|error| failed(&unfinished, &error))?;
            builder().create(&unfinished).map_err(|error| open_error(&unfinished, error))?
        }
    };
    prepare(&database).map_err(|why| OpenError::Failed { path: unfinished.clone(), why })?;
    drop(database);
    let settle = || -> io::Result<()> {
        fs::File::open(&unfinished)?.sync_all()?;
        fs::rename(&unfinished, path)?;
        fs::File::open(directory)?.sync_all()
    };
    settle().map_err(|error| failed(path, &error))
}

/// Makes an empty file unless there is one: environments of tasks are for the owner's eyes alone.
fn private(path: &Path) -> io::Result<()> {
    let mut options = ownership::itself();
    let file = options.write(true).create(true).truncate(false).mode(0o600).open(path)?;
    ownership::inherit(&file, ownership::parent(path))
}

/// Makes the tables, so that readers never miss one.
fn prepare(database: &Database) -> Result<(), String> {
    let txn = database.begin_write().map_err(text)?;
    txn.open_table(RECORDS).map_err(text)?;
    txn.open_table(META).map_err(text)?;
    txn.commit().map_err(text)
}

fn encode(key: &Key, record: &Record, revision: Revision) -> Result<Vec<u8>, String> {
    let mut bytes = vec![SCHEMA];
    serde_json::to_writer(&mut bytes, &Stored { key, revision, record })
        .map_err(|error| format!("{key}: {error}"))?;
    Ok(bytes)
}

fn decode(bytes: &[u8]) -> Result<Stored<Key, Record>, String> {
    match bytes.split_first() {
        Some((&SCHEMA, json)) => serde_json::from_slice(json).map_err(|error| error.to_string()),
        Some((schema, _)) => Err(format!("it has schema {schema}, this version knows {SCHEMA}")),
        None => Err("it is empty".to_owned()),
    }
}
