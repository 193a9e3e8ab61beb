//! Hints that something happened to a container: which ones to look at. Leaving one never waits,
//! so that a slow task holds up nobody's events.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use berth_core::ids::{ContainerName, EngineId};
use tokio::sync::Notify;

use crate::runtime::EngineEventKind;

/// The containers of one task that are to be looked at.
#[derive(Debug, Default)]
pub(super) struct Hints {
    waiting: Mutex<BTreeMap<(ContainerName, EngineId), EngineEventKind>>,
    notify: Notify,
}

impl Hints {
    /// Leaves a hint. Of several for the same container, the weightiest stays.
    pub(super) fn leave(&self, container: ContainerName, id: EngineId, kind: EngineEventKind) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = waiting.entry((container, id)).or_insert(kind);
        if weight(kind) > weight(*entry) {
            *entry = kind;
        }
        drop(waiting);
        self.notify.notify_one();
    }

    /// Takes all hints; waits until there is one. Dropping the future loses none.
    pub(super) async fn take(&self) -> Vec<(ContainerName, EngineId, EngineEventKind)> {
        loop {
            let taken = std::mem::take(&mut *self.waiting.lock().unwrap_or_else(PoisonError::into_inner));
            if !taken.is_empty() {
                return taken.into_iter().map(|((container, id), kind)| (container, id, kind)).collect();
            }
            self.notify.notified().await;
        }
    }
}

/// A death outweighs a start: the look is the same, but a start may be expected.
const fn weight(kind: EngineEventKind) -> u8 {
    match kind {
        EngineEventKind::Started => 0,
        EngineEventKind::Health | EngineEventKind::OutOfMemory => 1,
        EngineEventKind::Died { .. } => 2,
        EngineEventKind::Removed => 3,
    }
}
