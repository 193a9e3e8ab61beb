//! State in one file, `agent.redb`, on redb: one writer thread that makes everything that is
//! queued durable with a single sync.
//!
//! A write error (a full disk) leaves the file as it was at the last commit. The database is then
//! opened anew before the next commit, so that the agent goes on once there is room again.

use std::fs;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;

use berth_core::ids::TaskArn;
use berth_core::spec::TaskSpec;
use berth_core::task::{Report, TaskState};
use futures_util::future::BoxFuture;
use redb::{Database, Durability, ReadableDatabase, ReadableTable, TableDefinition};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::{mpsc, oneshot};

use super::damage::{damaged, is_damage, open_sound};
use super::format;
use super::{Identity, Outbox, OutboxEntry, Saved, Store, StoreError, Write};

const SPECS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("task-specs");
const STATES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("task-states");
const OUTBOX: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("outbox");
pub(super) const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");
const IDENTITY: &str = "identity";
const LAST_SEQUENCE: &str = "last-sequence";

/// The first byte of every record: how the rest is written.
const JSON_1: u8 = 1;
/// Memory that the database may use for pages.
const CACHE_BYTES: usize = 1024 * 1024;
/// Commits that may wait for the writer before callers wait in turn.
const QUEUE: usize = 256;

/// State in a file.
#[derive(Debug)]
pub struct RedbStore {
    queue: mpsc::Sender<Job>,
    outbox: Arc<Outbox>,
}

type Reply<T> = oneshot::Sender<Result<T, StoreError>>;

enum Job {
    Load(Reply<Saved>),
    Commit(Vec<Write>, Reply<()>),
}

impl RedbStore {
    /// Opens, or makes, the state file in `directory`. Blocks; call it before the runtime's work
    /// begins.
    ///
    /// # Errors
    /// [`StoreError::InUse`] when another agent has it; [`StoreError::Newer`] when a newer one wrote it;
    /// [`StoreError::Io`] otherwise.
    pub fn open(directory: &Path) -> Result<Self, StoreError> {
        let path = directory.join("agent.redb");
        format::must_be_known(&path)?;
        let database = open_sound(&path, open_database)?;
        let outbox = Arc::new(Outbox::default());
        let (queue, jobs) = mpsc::channel(QUEUE);
        let writer = Writer {
            path: path.clone(),
            database: Some(database),
            outbox: Arc::clone(&outbox),
            last_sequence: 0,
        };
        thread::Builder::new()
            .name("store".to_owned())
            .stack_size(512 * 1024)
            .spawn(move || writer.run(jobs))
            .map_err(|e| io("start the writer of", &path, &e))?;
        Ok(Self { queue, outbox })
    }

    async fn ask<T>(
        &self,
        job: Job,
        answer: oneshot::Receiver<Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let gone = || StoreError::Io {
            what: "reach the writer of",
            path: "agent.redb".into(),
            detail: "it has ended".into(),
        };
        self.queue.send(job).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }
}

impl Store for RedbStore {
    fn load(&self) -> BoxFuture<'_, Result<Saved, StoreError>> {
        let (reply, answer) = oneshot::channel();
        Box::pin(self.ask(Job::Load(reply), answer))
    }

    fn commit(&self, writes: Vec<Write>) -> BoxFuture<'_, Result<(), StoreError>> {
        let (reply, answer) = oneshot::channel();
        Box::pin(self.ask(Job::Commit(writes, reply), answer))
    }

    fn outbox(&self) -> &Outbox {
        &self.outbox
    }
}

struct Writer {
    path: PathBuf,
    database: Option<Database>,
    outbox: Arc<Outbox>,
    last_sequence: u64,
}

impl Writer {
    fn run(mut self, mut jobs: mpsc::Receiver<Job>) {
        let mut batch = Vec::new();
        // Whatever queued up during the last sync shares the next one.
        while jobs.blocking_recv_many(&mut batch, QUEUE) > 0 {
            let mut commits = Vec::new();
            for job in batch.drain(..) {
                match job {
                    Job::Load(reply) => {
                        let _ = reply.send(self.load());
                    }
                    Job::Commit(writes, reply) => commits.push((writes, reply)),
                }
            }
            if !commits.is_empty() {
                self.commit_all(commits);
            }
        }
    }

    fn commit_all(&mut self, commits: Vec<(Vec<Write>, Reply<()>)>) {
        let (writes, replies): (Vec<_>, Vec<_>) = commits.into_iter().unzip();
        // What nobody depends on goes to the disk with the next commit that somebody depends on.
        let durability = match writes.iter().flatten().all(|w| matches!(w, Write::Told(_) | Write::Seen(_))) {
            true => Durability::None,
            false => Durability::Immediate,
        };
        let mut result = self.commit(writes.iter().flatten(), durability);
        if result.is_err() {
            // After an error redb refuses every write until the file is opened again.
            self.database = None;
            result = self.commit(writes.iter().flatten(), durability);
        }
        for reply in replies {
            // A caller that went away does not need the answer.
            let _ = reply.send(result.clone());
        }
    }

    fn database(&mut self) -> Result<&Database, StoreError> {
        let database = match self.database.take() {
            Some(database) => database,
            None => open_database(&self.path)?,
        };
        Ok(self.database.insert(database))
    }

    fn commit<'a>(
        &mut self,
        writes: impl Iterator<Item = &'a Write>,
        durability: Durability,
    ) -> Result<(), StoreError> {
        let path = self.path.clone();
        let mut sequence = self.last_sequence;
        let mut told = None;
        let mut entries = Vec::new();
        let failed = |e: redb::Error| io("write", &path, &e);
        let mut transaction = self.database()?.begin_write().map_err(|e| failed(e.into()))?;
        transaction.set_durability(durability).map_err(|e| failed(e.into()))?;
        {
            let mut specs = transaction.open_table(SPECS).map_err(|e| failed(e.into()))?;
            let mut states = transaction.open_table(STATES).map_err(|e| failed(e.into()))?;
            let mut outbox = transaction.open_table(OUTBOX).map_err(|e| failed(e.into()))?;
            let mut meta = transaction.open_table(META).map_err(|e| failed(e.into()))?;
            for write in writes {
                match write {
                    Write::NewTask { spec, state } => {
                        let key = spec.arn.as_str();
                        specs.insert(key, &*encode(&**spec, &path, key)?).map_err(|e| failed(e.into()))?;
                        states.insert(key, &*encode(state, &path, key)?).map_err(|e| failed(e.into()))?;
                    }
                    Write::State { task, state } => {
                        let key = task.as_str();
                        states.insert(key, &*encode(state, &path, key)?).map_err(|e| failed(e.into()))?;
                    }
                    Write::Forget(task) => {
                        specs.remove(task.as_str()).map_err(|e| failed(e.into()))?;
                        states.remove(task.as_str()).map_err(|e| failed(e.into()))?;
                    }
                    Write::Report { task, report } => {
                        sequence += 1;
                        let value = encode(&(task, report), &path, "outbox")?;
                        outbox.insert(sequence, &*value).map_err(|e| failed(e.into()))?;
                        entries.push(OutboxEntry {
                            sequence,
                            task: task.clone(),
                            report: (**report).clone(),
                        });
                    }
                    Write::Told(up_to) => {
                        outbox.retain_in::<u64, _>(..=*up_to, |_, _| false).map_err(|e| failed(e.into()))?;
                        told = told.max(Some(*up_to));
                    }
                    Write::Identity(identity) | Write::Seen(identity) => {
                        let value = encode(identity, &path, IDENTITY)?;
                        meta.insert(IDENTITY, &*value).map_err(|e| failed(e.into()))?;
                    }
                }
            }
            if sequence != self.last_sequence {
                let value = encode(&sequence, &path, LAST_SEQUENCE)?;
                meta.insert(LAST_SEQUENCE, &*value).map_err(|e| failed(e.into()))?;
            }
        }
        transaction.commit().map_err(|e| failed(e.into()))?;
        self.last_sequence = sequence;
        self.outbox.push(entries);
        if let Some(up_to) = told {
            self.outbox.told(up_to);
        }
        Ok(())
    }

    fn load(&mut self) -> Result<Saved, StoreError> {
        let path = self.path.clone();
        let failed = |e: redb::Error| io("read", &path, &e);
        let transaction = self.database()?.begin_read().map_err(|e| failed(e.into()))?;
        let specs = transaction.open_table(SPECS).map_err(|e| failed(e.into()))?;
        let states = transaction.open_table(STATES).map_err(|e| failed(e.into()))?;
        let outbox = transaction.open_table(OUTBOX).map_err(|e| failed(e.into()))?;
        let meta = transaction.open_table(META).map_err(|e| failed(e.into()))?;

        let mut saved = Saved::default();
        if let Some(value) = meta.get(IDENTITY).map_err(|e| failed(e.into()))? {
            saved.identity = Some(decode::<Identity>(value.value(), &path, IDENTITY)?);
        }
        let last_sequence = match meta.get(LAST_SEQUENCE).map_err(|e| failed(e.into()))? {
            Some(value) => decode::<u64>(value.value(), &path, LAST_SEQUENCE)?,
            None => 0,
        };
        for row in states.iter().map_err(|e| failed(e.into()))? {
            let (key, value) = row.map_err(|e| failed(e.into()))?;
            let state: TaskState = decode(value.value(), &path, key.value())?;
            let spec = specs.get(key.value()).map_err(|e| failed(e.into()))?;
            let Some(spec) = spec else { continue };
            let spec: TaskSpec = decode(spec.value(), &path, key.value())?;
            saved.tasks.push((Arc::new(spec), state));
        }
        let mut entries = Vec::new();
        for row in outbox.iter().map_err(|e| failed(e.into()))? {
            let (key, value) = row.map_err(|e| failed(e.into()))?;
            let (task, report): (TaskArn, Report) = decode(value.value(), &path, "outbox")?;
            entries.push(OutboxEntry { sequence: key.value(), task, report });
        }
        drop((specs, states, outbox, meta, transaction));
        self.last_sequence = last_sequence;
        self.outbox.push(entries);
        Ok(saved)
    }
}

/// Opens the file, or makes it under another name first: a crash in mid-creation leaves nothing
/// that looks like a database.
fn open_database(path: &Path) -> Result<Database, StoreError> {
    if !path.exists() {
        let fresh = path.with_extension("new");
        remove_if_there(&fresh)?;
        fs::OpenOptions::new()
            .create_new(true)
            .read(true)
            .write(true)
            .mode(0o600)
            .open(&fresh)
            .map_err(|e| io("make", &fresh, &e))?;
        drop(prepare(&fresh)?);
        fs::rename(&fresh, path).map_err(|e| io("make", path, &e))?;
        if let Some(directory) = path.parent() {
            fs::File::open(directory).and_then(|d| d.sync_all()).map_err(|e| io("sync", directory, &e))?;
        }
    }
    prepare(path)
}

fn remove_if_there(path: &Path) -> Result<(), StoreError> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(io("remove", path, &e)),
        _ => Ok(()),
    }
}

/// Opens the database, makes every table, so that readers find them, and brings it to the present format.
fn prepare(path: &Path) -> Result<Database, StoreError> {
    let database = Database::builder().set_cache_size(CACHE_BYTES).create(path).map_err(|e| match e {
        redb::DatabaseError::DatabaseAlreadyOpen => StoreError::InUse { path: path.display().to_string() },
        damage if is_damage(&damage) => damaged(path, &damage),
        other => io("open", path, &other),
    })?;
    let failed = |e: redb::Error| io("prepare", path, &e);
    let found = {
        let transaction = database.begin_read().map_err(|e| failed(e.into()))?;
        match transaction.list_tables().map_err(|e| failed(e.into()))?.count() {
            0..4 => None,
            _ => Some(format::of(&transaction.open_table(META).map_err(|e| failed(e.into()))?, path)?),
        }
    };
    if found != Some(format::FORMAT) {
        let transaction = database.begin_write().map_err(|e| failed(e.into()))?;
        transaction.open_table(SPECS).map_err(|e| failed(e.into()))?;
        transaction.open_table(STATES).map_err(|e| failed(e.into()))?;
        transaction.open_table(OUTBOX).map_err(|e| failed(e.into()))?;
        {
            // Nothing but the number is new in format 1.
            let mut meta = transaction.open_table(META).map_err(|e| failed(e.into()))?;
            let value = encode(&format::FORMAT, path, format::KEY)?;
            meta.insert(format::KEY, &*value).map_err(|e| failed(e.into()))?;
        }
        transaction.commit().map_err(|e| failed(e.into()))?;
        if let Some(found) = found {
            tracing::info!(path = %path.display(), found, now = format::FORMAT, "the agent's state has the present format");
        }
    }
    Ok(database)
}

fn io(what: &'static str, path: &Path, error: &dyn std::fmt::Display) -> StoreError {
    StoreError::Io { what, path: path.display().to_string(), detail: error.to_string() }
}

fn encode<T: Serialize + ?Sized>(value: &T, path: &Path, key: &str) -> Result<Vec<u8>, StoreError> {
    let mut bytes = vec![JSON_1];
    serde_json::to_writer(&mut bytes, value).map_err(|e| corrupt(path, key, &e))?;
    Ok(bytes)
}

pub(super) fn decode<T: DeserializeOwned>(bytes: &[u8], path: &Path, key: &str) -> Result<T, StoreError> {
    match bytes.split_first() {
        Some((&JSON_1, json)) => serde_json::from_slice(json).map_err(|e| corrupt(path, key, &e)),
        _ => Err(corrupt(path, key, &"written by another version")),
    }
}

fn corrupt(path: &Path, key: &str, error: &dyn std::fmt::Display) -> StoreError {
    StoreError::Corrupt { path: path.display().to_string(), key: key.to_owned(), detail: error.to_string() }
}
