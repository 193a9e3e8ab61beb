//! A store in memory: the semantics of the embedded one without the durability.

use std::sync::{Arc, PoisonError, RwLock};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::broadcast;

use super::index::Index;
use super::{Commit, CommitError, History, Revision, Store, Txn, View, WATCH_BACKLOG};

/// Keeps everything in memory, and loses it with the process.
#[derive(Debug)]
pub struct MemoryStore {
    index: RwLock<Arc<Index>>,
    history: History,
    watchers: broadcast::Sender<Arc<Commit>>,
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self {
            index: RwLock::default(),
            history: History::begin(),
            watchers: broadcast::Sender::new(WATCH_BACKLOG),
        }
    }
}

impl MemoryStore {
    /// An empty store.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn change(
        &self,
        change: impl FnOnce(&mut Index) -> Result<Vec<super::Key>, CommitError>,
    ) -> Result<Revision, CommitError> {
        let mut index = self.index.write().unwrap_or_else(PoisonError::into_inner);
        let mut next = Index::clone(&index);
        let keys = change(&mut next)?;
        let revision = next.last_revision();
        *index = Arc::new(next);
        // Told under the lock, so that watchers hear commits in order. Nobody listening is fine.
        let _ = self.watchers.send(Arc::new(Commit { revision, keys }));
        Ok(revision)
    }
}

impl Store for MemoryStore {
    fn view(&self) -> Arc<dyn View> {
        let index = self.index.read().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(&index) as Arc<dyn View>
    }

    fn history(&self) -> &History {
        &self.history
    }

    fn commit(&self, txn: Txn) -> BoxFuture<'_, Result<Revision, CommitError>> {
        async move {
            self.change(|index| {
                index.check(&txn)?;
                Ok(index.apply(&txn))
            })
        }
        .boxed()
    }

    fn watch(&self) -> broadcast::Receiver<Arc<Commit>> {
        self.watchers.subscribe()
    }

    fn reset(&self) -> BoxFuture<'_, Result<Revision, CommitError>> {
        async move { self.change(|index| Ok(index.clear())) }.boxed()
    }
}
