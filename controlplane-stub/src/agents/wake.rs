//! Wakes the sessions whose tasks or instance a commit touched: one watcher for all of them.

use std::collections::BTreeSet;
use std::sync::Arc;

use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::registry::Registry;
use crate::arn::Arns;
use crate::store::{Commit, Key, Store};
use crate::vpc::Vpc;

/// Runs until cancelled or until the store is gone.
pub(super) async fn run(
    store: Arc<dyn Store>,
    mut commits: Receiver<Arc<Commit>>,
    registry: Registry,
    arns: Arns,
    stop: CancellationToken,
) {
    loop {
        let received = tokio::select! {
            () = stop.cancelled() => return,
            received = commits.recv() => received,
        };
        match received {
            Ok(commit) => {
                let view = store.view();
                let has_interface = |key: &Key| match key {
                    Key::Task(cluster, id) => {
                        view.task(cluster, id).is_some_and(|task| task.value.spec.attachment.is_some())
                    }
                    _ => false,
                };
                // Others may let the task pass, or not any more.
                if commit.keys.iter().any(has_interface) {
                    registry.wake_all();
                    continue;
                }
                let touched: BTreeSet<String> = commit
                    .keys
                    .iter()
                    .filter_map(|key| match key {
                        Key::Task(cluster, id) => {
                            view.task(cluster, id).map(|task| task.value.instance.clone())
                        }
                        Key::Instance(cluster, id) => Some(arns.container_instance(cluster, id)),
                        _ => None,
                    })
                    .collect();
                for instance in touched {
                    registry.wake(&instance);
                }
            }
            Err(RecvError::Lagged(_)) => registry.wake_all(),
            Err(RecvError::Closed) => return,
        }
    }
}

/// Wakes every session when the subnets or security groups change.
pub(super) async fn follow(mut vpc: watch::Receiver<Arc<Vpc>>, registry: Registry, stop: CancellationToken) {
    while let Some(Ok(())) = stop.run_until_cancelled(vpc.changed()).await {
        registry.wake_all();
    }
}
