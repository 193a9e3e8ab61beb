//! Deletes tasks that have been STOPPED for long enough.

use std::sync::Arc;
use std::time::Duration;

use berth_core::units::{Millis, Timestamp};
use tokio_util::sync::CancellationToken;

use crate::clock;
use crate::model::TaskStatus;
use crate::store::{CommitError, Key, Store, Txn, View};

/// Most tasks that one transaction deletes.
const BATCH: usize = 256;
/// The longest time between two looks.
const LONGEST: Duration = Duration::from_secs(60);

/// Runs until cancelled.
pub(super) async fn run(store: Arc<dyn Store>, retention: Duration, stop: CancellationToken) {
    let span = Millis(u64::try_from(retention.as_millis()).unwrap_or(u64::MAX));
    let mut ticks = tokio::time::interval((retention / 10).clamp(Duration::from_millis(10), LONGEST));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = ticks.tick() => {}
        }
        let view = store.view();
        for txn in expired(&*view, span, clock::now()) {
            match store.commit(txn).await {
                Ok(_) => {}
                // Somebody touched one of them: the next look finds it again.
                Err(CommitError::Conflict(_)) => {}
                Err(error) => tracing::warn!(%error, "stopped tasks were not deleted"),
            }
        }
    }
}

/// Transactions that delete what has been STOPPED for `span`.
fn expired(view: &dyn View, span: Millis, now: Timestamp) -> Vec<Txn> {
    let mut tasks = view.tasks(None);
    tasks.retain(|task| {
        let observed = &task.value.observed;
        observed.status == TaskStatus::Stopped
            && observed.stopped_at.unwrap_or(task.value.created_at).after(span) <= now
    });
    let of_batch = |batch: &[crate::store::Versioned<Arc<crate::model::Task>>]| {
        let mut txn = Txn::default();
        for task in batch {
            let key = Key::Task(task.value.cluster.clone(), crate::arn::id_of(&task.value.arn).to_owned());
            txn.compares.push((key.clone(), Some(task.revision)));
            txn.deletes.push(key);
        }
        txn
    };
    tasks.chunks(BATCH).map(of_batch).collect()
}
