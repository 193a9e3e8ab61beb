//! The agent's state, watched.

use berth_agent::store::{Outbox, Saved, Store, StoreError, Write};
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;

use super::Watched;
use super::points::STORE;

fn failed(detail: String) -> StoreError {
    StoreError::Io { what: "write", path: "a fault".to_owned(), detail }
}

impl Store for Watched<dyn Store> {
    fn load(&self) -> BoxFuture<'_, Result<Saved, StoreError>> {
        self.effects.around(STORE[0], failed, self.inner.load()).boxed()
    }

    fn commit(&self, writes: Vec<Write>) -> BoxFuture<'_, Result<(), StoreError>> {
        // As a store does that queues what it is asked for: not before its turn.
        let commit = async move { self.inner.commit(writes).await };
        self.effects.around(STORE[1], failed, commit).boxed()
    }

    fn outbox(&self) -> &Outbox {
        self.inner.outbox()
    }
}
