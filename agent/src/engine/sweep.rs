//! Removes what tasks left that nobody knows any more: an agent that was killed, or lost its records,
//! could not; and an engine that is long about a container may be done with it after all others are.

use std::collections::BTreeSet;
use std::time::Duration;

use berth_core::ids::{EngineId, TaskArn};
use berth_core::task::{Fact, TaskStatus};
use tokio::time::{sleep, timeout};

use super::keepsake::Keepsake;
use super::perform::own_volumes;
use super::{Engine, inform};
use crate::runtime::RuntimeError;

/// Longest that the start waits for what was left over.
pub(super) const AT_START: Duration = Duration::from_secs(20);
/// Longest that a round may take.
const SWEEP: Duration = Duration::from_secs(60);
/// Between two looks for containers that came late.
const BETWEEN: Duration = Duration::from_secs(600);
/// The pause before another round, and the longest.
const AGAIN: Duration = Duration::from_secs(1);
const AGAIN_MAX: Duration = Duration::from_secs(300);

impl Engine {
    /// Removes cgroups, folders of log routers, faults of the host's network and metadata files that belong to
    /// no task.
    pub(super) async fn sweep(&self) {
        self.sweep_log_routers().await;
        self.sweep_faults().await;
        inform::sweep_files(&self.shared).await;
        // One that a process is still in, or that systemd is busy with, goes another time.
        let mut pause = AGAIN;
        while !matches!(timeout(SWEEP, self.sweep_cgroups()).await, Ok(true)) {
            sleep(pause).await;
            pause = (pause * 2).min(AGAIN_MAX);
        }
    }

    /// Removes containers of tasks that nobody knows: those that do not run, and, once it is `later` than the start,
    /// those that do. All that ran at the start was taken for what it is, so that somebody has started them since.
    pub(super) async fn sweep_containers(&self, later: bool) {
        let listed = match self.shared.runtime.list().await {
            Ok(listed) => listed,
            Err(error) => return tracing::debug!(%error, "cannot look for containers that were left over"),
        };
        // A task is known before it makes anything.
        for container in listed.into_iter().filter(|found| self.shared.registry.get(&found.task).is_none()) {
            let id = container.id;
            let keepsake =
                container.spec.as_deref().and_then(|json| serde_json::from_str::<Keepsake>(json).ok());
            let ended = match self.shared.runtime.inspect(&id).await {
                Ok(Fact::Created { .. } | Fact::Exited { .. }) => Ok(()),
                // What carries no readable specification is left alone at the start, too.
                Ok(Fact::Running { .. }) if later && keepsake.is_some() => {
                    self.end(&id, &container.task).await
                }
                _ => continue,
            };
            let removed = match ended {
                Ok(()) => self.discard(&id, keepsake.as_ref()).await,
                Err(error) => Err(error),
            };
            match removed {
                Ok(()) => {
                    tracing::info!(task = %container.task, %id, "removed a container that was left over");
                }
                Err(error) => {
                    tracing::warn!(task = %container.task, %id, %error, "a container that was left over");
                }
            }
        }
    }

    /// Ends a container that somebody started after its task was over: what it uses, other tasks were promised.
    async fn end(&self, id: &EngineId, task: &TaskArn) -> Result<(), RuntimeError> {
        tracing::warn!(%task, %id, "a container of a task that is over runs: somebody has started it; it is stopped and removed");
        let grace = self.shared.settings_of(task).stop_timeout;
        self.shared.runtime.stop(id, grace).await.map(drop)
    }

    /// Removes a container, and the volumes that were its task's alone.
    async fn discard(&self, id: &EngineId, keepsake: Option<&Keepsake>) -> Result<(), RuntimeError> {
        self.shared.runtime.remove(id).await?;
        for volume in keepsake.iter().flat_map(|keepsake| own_volumes(&keepsake.spec)) {
            self.shared.runtime.remove_volume(&volume).await?;
        }
        Ok(())
    }

    /// The same now and then, for as long as the agent runs.
    pub(super) async fn keep_swept(&self) {
        loop {
            sleep(BETWEEN).await;
            // What hangs is tried again.
            let _ = timeout(SWEEP, self.sweep_containers(true)).await;
        }
    }

    /// Whether all are gone.
    async fn sweep_cgroups(&self) -> bool {
        let left_over = match self.shared.cgroups.list().await {
            Ok(ids) => ids,
            Err(error) => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "cannot look for cgroups that were left over"
                );
                return false;
            }
        };
        let mut all = true;
        for id in self.of_nobody(left_over) {
            match self.shared.cgroups.remove_id(&id).await {
                Ok(()) => tracing::info!(task = id, "removed a cgroup that was left over"),
                Err(error) => {
                    all = false;
                    tracing::warn!(error = &error as &dyn std::error::Error, "a cgroup that was left over");
                }
            }
        }
        all
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

    /// Those that are of no task, or of one that has stopped: that has let go of all that it knew of. To be asked
    /// after they were listed: a task is known before it makes anything.
    fn of_nobody(&self, ids: Vec<String>) -> Vec<String> {
        let tasks = self.tasks();
        let live = tasks.iter().filter(|task| task.state().status != TaskStatus::Stopped);
        let theirs: BTreeSet<&str> = live.map(|task| task.spec().arn.id()).collect();
        ids.into_iter().filter(|id| !theirs.contains(id.as_str())).collect()
    }
}
