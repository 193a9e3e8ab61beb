//! Removes what tasks left that nobody knows any more: an agent that was killed, or lost its records,
//! could not.

use std::collections::BTreeSet;

use super::{Engine, inform};

impl Engine {
    /// Removes cgroups, folders of log routers, faults of the host's network and metadata files that belong to
    /// no task.
    pub(super) async fn sweep(&self) {
        self.sweep_cgroups().await;
        self.sweep_log_routers().await;
        self.sweep_faults().await;
        inform::sweep_files(&self.shared).await;
    }

    async fn sweep_cgroups(&self) {
        let left_over = match self.shared.cgroups.list().await {
            Ok(ids) => ids,
            Err(error) => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "cannot look for cgroups that were left over"
                );
                return;
            }
        };
        for id in self.of_nobody(left_over) {
            match self.shared.cgroups.remove_id(&id).await {
                Ok(()) => tracing::info!(task = id, "removed a cgroup that was left over"),
                Err(error) => {
                    tracing::warn!(error = &error as &dyn std::error::Error, "a cgroup that was left over");
                }
            }
        }
    }

    async fn sweep_log_routers(&self) {
        let left_over = match self.shared.log_routers.list().await {
            Ok(ids) => ids,
            Err(error) => {
                tracing::warn!(%error, "cannot look for folders of log routers that were left over");
                return;
            }
        };
        for id in self.of_nobody(left_over) {
            match self.shared.log_routers.remove_id(&id).await {
                Ok(()) => tracing::info!(task = id, "removed the folder of a log router that was left over"),
                Err(error) => {
                    tracing::warn!(task = id, %error, "the folder of a log router that was left over");
                }
            }
        }
    }

    async fn sweep_faults(&self) {
        let left_over = match self.shared.faults.list().await {
            Ok(ids) => ids,
            Err(error) => {
                tracing::warn!(%error, "cannot look for faults of the host's network that were left over");
                return;
            }
        };
        for id in self.of_nobody(left_over) {
            match self.shared.faults.undo(&id).await {
                Ok(()) => tracing::info!(task = id, "undid what a task had done to the host's network"),
                Err(error) => {
                    tracing::warn!(task = id, %error, "what a task did to the host's network was left over");
                }
            }
        }
    }

    /// Those that are of no task. To be asked after they were listed: a task is known before it makes
    /// anything.
    fn of_nobody(&self, ids: Vec<String>) -> Vec<String> {
        let known: BTreeSet<String> =
            self.tasks().iter().map(|task| task.spec().arn.id().to_owned()).collect();
        ids.into_iter().filter(|id| !known.contains(id)).collect()
    }
}
