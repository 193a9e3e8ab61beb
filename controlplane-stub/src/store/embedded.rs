//! A store in one file on this machine: durable, crash-safe, no server.
//!
//! One thread owns the file. It takes all transactions that wait, writes them in one go, and then
//! answers each: a burst costs one flush to disk. Reads never touch the file; they look at the
//! index in memory, which changes only after the write is durable.

mod file;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::{broadcast, mpsc, oneshot};

use super::index::Index;
use super::{Commit, CommitError, History, Key, Revision, Store, Txn, View, WATCH_BACKLOG};
use file::{Change, File};

/// How many transactions may wait for the writer.
const QUEUE: usize = 1024;
/// Most transactions that are written in one go.
const TOGETHER: usize = 256;

/// Why the file could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it.
    #[error("{} is in use by another process; stop that one, or use another data directory", .0.display())]
    InUse(PathBuf),
    /// It holds what this version can't read.
    #[error("{}: the record {key} can't be read: {why}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The record's name in the file.
        key: String,
        /// What is wrong with it.
        why: String,
    },
    /// Reading or writing failed.
    #[error("{}: {why}", path.display())]
    Failed {
        /// The file.
        path: PathBuf,
        /// What the system or the database said.
        why: String,
    },
}

enum Order {
    Commit(Txn, Answer),
    Reset(Answer),
    Close(oneshot::Sender<()>),
}

type Answer = oneshot::Sender<Result<Revision, CommitError>>;
type Shared = Arc<RwLock<Arc<Index>>>;

/// Keeps everything in one file.
pub struct EmbeddedStore {
    index: Shared,
    history: History,
    watchers: broadcast::Sender<Arc<Commit>>,
    orders: mpsc::Sender<Order>,
}

impl fmt::Debug for EmbeddedStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EmbeddedStore({} transactions wait)", QUEUE - self.orders.capacity())
    }
}

impl EmbeddedStore {
    /// Opens the file, and makes it when there is none. Blocks: call it before or beside the runtime.
    ///
    /// # Errors
    /// [`OpenError`], naming the file.
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        let (file, index) = File::open(path)?;
        Self::start(file, index)
            .map_err(|error| OpenError::Failed { path: path.to_owned(), why: error.to_string() })
    }

    fn start(file: File, index: Index) -> std::io::Result<Self> {
        let index: Shared = Arc::new(RwLock::new(Arc::new(index)));
        let history = file.history().clone();
        let watchers = broadcast::Sender::new(WATCH_BACKLOG);
        let (orders, inbox) = mpsc::channel(QUEUE);
        let writer = Writer { file: Ok(file), index: Arc::clone(&index), watchers: watchers.clone() };
        std::thread::Builder::new().name("store".to_owned()).spawn(move || writer.run(inbox))?;
        Ok(Self { index, history, watchers, orders })
    }

    /// Writes what waits, closes the file and returns when another may open it. Later commits fail.
    pub async fn close(&self) {
        let (answer, closed) = oneshot::channel();
        if self.orders.send(Order::Close(answer)).await.is_ok() {
            // An error means that the writer has ended, which is what was asked for.
            let _ = closed.await;
        }
    }

    async fn order(&self, make: impl FnOnce(Answer) -> Order) -> Result<Revision, CommitError> {
        let closed = || CommitError::Unavailable("the store is closed".to_owned());
        let (answer, answered) = oneshot::channel();
        self.orders.send(make(answer)).await.map_err(|_| closed())?;
        answered.await.map_err(|_| closed())?
    }
}

impl Store for EmbeddedStore {
    fn view(&self) -> Arc<dyn View> {
        let index = self.index.read().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(&index) as Arc<dyn View>
    }

    fn history(&self) -> &History {
        &self.history
    }

    fn commit(&self, txn: Txn) -> BoxFuture<'_, Result<Revision, CommitError>> {
        self.order(|answer| Order::Commit(txn, answer)).boxed()
    }

    fn watch(&self) -> broadcast::Receiver<Arc<Commit>> {
        self.watchers.subscribe()
    }

    fn reset(&self) -> BoxFuture<'_, Result<Revision, CommitError>> {
        self.order(Order::Reset).boxed()
    }
}

/// The thread that owns the file.
struct Writer {
    /// Why nothing can be written any more, once a write has failed: what the file holds is not
    /// known then, and only a restart finds out.
    file: Result<File, String>,
    index: Shared,
    watchers: broadcast::Sender<Arc<Commit>>,
}

impl Writer {
    fn run(mut self, mut inbox: mpsc::Receiver<Order>) {
        let mut orders = Vec::with_capacity(TOGETHER);
        while inbox.blocking_recv_many(&mut orders, TOGETHER) > 0 {
            let mut group = Group::new(&self.index);
            for order in orders.drain(..) {
                match order {
                    Order::Commit(txn, answer) => group.add(txn, answer),
                    Order::Reset(answer) => group.reset(answer),
                    Order::Close(answer) => {
                        self.write(group);
                        self.file = Err("the store is closed".to_owned());
                        let _ = answer.send(());
                        return;
                    }
                }
            }
            self.write(group);
        }
    }

    fn write(&mut self, group: Group) {
        let written = match &mut self.file {
            Ok(file) if !group.changes.is_empty() => file.write(&group.changes, group.next.last_revision()),
            Ok(_) => Ok(()),
            Err(why) => Err(why.clone()),
        };
        match written {
            Ok(()) => {
                *self.index.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(group.next);
                for commit in group.commits {
                    // Nobody listening is fine.
                    let _ = self.watchers.send(Arc::new(commit));
                }
                for (answer, result) in group.answers {
                    // A caller that has gone away needs no answer.
                    let _ = answer.send(result);
                }
            }
            Err(why) => {
                if self.file.is_ok() {
                    tracing::error!(%why, "the store cannot write any more; restart the control plane once the cause is mended");
                }
                self.file = Err(why.clone());
                for (answer, _) in group.answers {
                    let _ = answer.send(Err(CommitError::Unavailable(why.clone())));
                }
            }
        }
    }
}

/// Transactions that are written together.
struct Group {
    /// What the index is to be afterwards.
    next: Index,
    changes: Vec<Change>,
    commits: Vec<Commit>,
    answers: Vec<(Answer, Result<Revision, CommitError>)>,
}

impl Group {
    fn new(index: &Shared) -> Self {
        let next = Index::clone(&index.read().unwrap_or_else(PoisonError::into_inner));
        Self { next, changes: Vec::new(), commits: Vec::new(), answers: Vec::new() }
    }

    fn add(&mut self, txn: Txn, answer: Answer) {
        if let Err(error) = self.next.check(&txn) {
            // Answered with the others: who reads again is to see what it collided with.
            self.answers.push((answer, Err(error)));
            return;
        }
        let keys = self.next.apply(&txn);
        let revision = self.next.last_revision();
        self.changes.extend(txn.puts.into_iter().map(|(key, record)| Change::Put(key, record, revision)));
        self.changes.extend(txn.deletes.into_iter().map(Change::Delete));
        self.finish(keys, answer);
    }

    fn reset(&mut self, answer: Answer) {
        let keys = self.next.clear();
        self.changes.push(Change::Clear);
        self.finish(keys, answer);
    }

    fn finish(&mut self, keys: Vec<Key>, answer: Answer) {
        let revision = self.next.last_revision();
        self.commits.push(Commit { revision, keys });
        self.answers.push((answer, Ok(revision)));
    }
}

#[cfg(test)]
mod faults;
