//! State that does not outlive the process: for `ECS_CHECKPOINT=false` and for simulations.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use berth_core::ids::TaskArn;
use berth_core::spec::TaskSpec;
use berth_core::task::TaskState;
use futures_util::future::BoxFuture;

use super::{Identity, Outbox, OutboxEntry, Saved, Store, StoreError, Write};

/// State in memory.
#[derive(Debug, Default)]
pub struct MemoryStore {
    kept: Mutex<Kept>,
    outbox: Outbox,
}

#[derive(Debug, Default)]
struct Kept {
    identity: Option<Identity>,
    tasks: BTreeMap<TaskArn, (Arc<TaskSpec>, TaskState)>,
    next_sequence: u64,
    failing: Option<StoreError>,
}

impl MemoryStore {
    /// Makes every commit fail with that error until it is called with `None`.
    pub fn fail_with(&self, error: Option<StoreError>) {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).failing = error;
    }

    fn apply(&self, writes: Vec<Write>) -> Result<(), StoreError> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(error) = &kept.failing {
            return Err(error.clone());
        }
        for write in writes {
            match write {
                Write::NewTask { spec, state } => {
                    kept.tasks.insert(spec.arn.clone(), (spec, state));
                }
                Write::State { task, state } => {
                    if let Some(entry) = kept.tasks.get_mut(&task) {
                        entry.1 = state;
                    }
                }
                Write::Forget(task) => {
                    kept.tasks.remove(&task);
                }
                Write::Report { task, report } => {
                    kept.next_sequence += 1;
                    let sequence = kept.next_sequence;
                    self.outbox.push([OutboxEntry { sequence, task, report: *report }]);
                }
                Write::Told(up_to) => self.outbox.told(up_to),
                Write::Identity(identity) | Write::Seen(identity) => kept.identity = Some(identity),
            }
        }
        Ok(())
    }
}

impl Store for MemoryStore {
    fn load(&self) -> BoxFuture<'_, Result<Saved, StoreError>> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let saved = Saved {
            identity: kept.identity.clone(),
            tasks: kept.tasks.values().cloned().collect(),
            rebooted: false,
        };
        Box::pin(std::future::ready(Ok(saved)))
    }

    fn commit(&self, writes: Vec<Write>) -> BoxFuture<'_, Result<(), StoreError>> {
        let result = self.apply(writes);
        Box::pin(std::future::ready(result))
    }

    fn outbox(&self) -> &Outbox {
        &self.outbox
    }
}
