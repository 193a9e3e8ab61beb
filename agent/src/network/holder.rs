//! The namespaces of tasks and the containers that hold them: some kept ready, each taken once,
//! watched while it is in use.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use berth_core::ids::{EngineId, TaskArn};
use berth_core::spec::{Sharing, TaskSpec};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::io::unix::AsyncFd;
use tokio::sync::{Notify, OnceCell, mpsc};

use super::NetworkError;
use super::pause;
use crate::random;
use crate::runtime::RuntimeError;
use crate::runtime::holder::Holders;
use crate::supervise::Tracker;

/// How the name of a holder begins that belongs to no task.
pub(super) const POOLED: &str = "berth-pause-";
/// Ends of holders that nobody has taken note of yet; more cannot be than tasks run.
const LOST: usize = 1024;

/// Holders that have ended and are not removed yet; with more, who ends one removes it.
const REMOVALS: usize = 1024;
/// Longest that a killed process takes to be gone.
const END: Duration = Duration::from_secs(2);

/// What can wait is done when the engine has been left alone for that long, so that launches have the
/// processors to themselves;
const QUIET: Duration = Duration::from_millis(100);
/// and after that long in any case.
const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// Between attempts to remove a holder while the engine is away.
const ENGINE_AWAY: Duration = Duration::from_secs(1);

/// A holder that runs.
#[derive(Debug, Clone)]
pub(super) struct Held {
    pub(super) id: EngineId,
    pub(super) pid: u32,
    /// The process itself, which no other can take the place of.
    process: Arc<OwnedFd>,
}

impl Held {
    /// `None` when the process is gone.
    fn new(id: EngineId, pid: u32) -> io::Result<Option<Self>> {
        let Some(process) = i32::try_from(pid).ok().and_then(Pid::from_raw) else {
            return Ok(None);
        };
        match pidfd_open(process, PidfdFlags::NONBLOCK) {
            Ok(process) => Ok(Some(Self { id, pid, process: Arc::new(process) })),
            Err(rustix::io::Errno::SRCH) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Waits until the process has ended.
    async fn ended(&self) -> io::Result<()> {
        #[expect(deprecated, reason = "the descriptor is owned, and lives as long as it is waited for")]
        let process = AsyncFd::new(self.process.try_clone()?)?;
        process.readable().await.map(|_| ())
    }

    /// Kills the process, and waits until it has ended.
    async fn kill(&self) -> io::Result<()> {
        match pidfd_send_signal(&self.process, Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(error) => return Err(error.into()),
        }
        tokio::time::timeout(END, self.ended()).await?
    }
}

/// Makes holders, and keeps some ready.
pub(super) struct Pool {
    engine: Arc<dyn Holders>,
    image: OnceCell<String>,
    ready: Mutex<VecDeque<Held>>,
    size: usize,
    wanted: Notify,
    tracker: Tracker,
    ends: mpsc::Sender<(TaskArn, EngineId)>,
    removals: mpsc::Sender<EngineId>,
}

pub(super) fn failed(error: RuntimeError) -> NetworkError {
    match error {
        RuntimeError::Unavailable(why) => NetworkError::EngineAway(why),
        other => NetworkError::Passing(format!("the container that holds the task's namespaces: {other}")),
    }
}

/// The name of the holder of a task's namespace; its end names the task.
pub(super) fn holder_name(task: &TaskSpec) -> String {
    format!("ecs-{}-{}-pause-{}", task.family, task.revision, task.arn.id())
}

/// The id of the task whose holder has that name.
pub(super) fn task_of(name: &str) -> Option<&str> {
    name.rsplit_once("-pause-").map(|(_, id)| id).filter(|id| id.len() == 32)
}

impl Pool {
    /// A pool that keeps so many holders ready, and where the ends of holders in use are told.
    pub(super) fn new(
        engine: Arc<dyn Holders>,
        size: usize,
        tracker: Tracker,
    ) -> (Arc<Self>, mpsc::Receiver<(TaskArn, EngineId)>) {
        let (ends, lost) = mpsc::channel(LOST);
        let (removals, ended) = mpsc::channel(REMOVALS);
        tracker.spawn_droppable("removal of holders", remove(Arc::clone(&engine), ended));
        let pool = Self {
            engine,
            image: OnceCell::new(),
            ready: Mutex::default(),
            size,
            wanted: Notify::new(),
            tracker,
            ends,
            removals,
        };
        (Arc::new(pool), lost)
    }

    /// Begins to keep holders ready.
    pub(super) fn fill(self: &Arc<Self>) {
        if self.size == 0 {
            return;
        }
        let pool = Arc::clone(self);
        self.tracker.spawn_droppable("pool of holders", async move { pool.keep_full().await });
        self.wanted.notify_one();
    }

    async fn keep_full(&self) {
        loop {
            self.wanted.notified().await;
            while self.ready().len() < self.size {
                wait_for_quiet(&*self.engine).await;
                let name = format!("{POOLED}{}", random::name().simple());
                match self.make(&name, "", false).await {
                    Ok(held) => self.ready().push_back(held),
                    Err(error) => {
                        // The next task that takes one asks again.
                        tracing::warn!(%error, "no holder is kept ready");
                        break;
                    }
                }
            }
        }
    }

    fn ready(&self) -> std::sync::MutexGuard<'_, VecDeque<Held>> {
        self.ready.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn image(&self) -> Result<&str, NetworkError> {
        let load = || async {
            let reference = pause::reference();
            self.engine.have_image(&reference, &pause::archive).await.map(|()| reference)
        };
        self.image.get_or_try_init(load).await.map(String::as_str).map_err(failed)
    }

    async fn make(&self, name: &str, hostname: &str, shares_ipc: bool) -> Result<Held, NetworkError> {
        let image = self.image().await?;
        let id = self.engine.hold(name, image, hostname, shares_ipc).await.map_err(failed)?;
        self.running(&id).await?.ok_or_else(|| {
            NetworkError::Passing(format!(
                "the container {name}, which holds the task's namespaces, has ended"
            ))
        })
    }

    /// The holder as it runs; `None` when it does not.
    pub(super) async fn running(&self, id: &EngineId) -> Result<Option<Held>, NetworkError> {
        let Some(pid) = self.engine.pid(id).await.map_err(failed)? else {
            return Ok(None);
        };
        Held::new(id.clone(), pid)
            .map_err(|error| NetworkError::Passing(format!("looking at process {pid} of {id}: {error}")))
    }

    /// A holder for a task: one that was kept ready, or a new one.
    pub(super) async fn take(&self, task: &TaskSpec, hostname: &str) -> Result<Held, NetworkError> {
        let name = holder_name(task);
        let shares_ipc = task.ipc_mode == Some(Sharing::Task);
        // One that was kept ready lets nobody share its IPC.
        let kept = if shares_ipc { None } else { self.ready().pop_front() };
        self.wanted.notify_one();
        if let Some(held) = kept {
            // One that was removed by hand meanwhile has no name to change.
            match self.engine.rename(&held.id, &name).await {
                Ok(()) => return Ok(held),
                Err(RuntimeError::Unavailable(why)) => return Err(NetworkError::EngineAway(why)),
                Err(error) => tracing::warn!(%error, "a holder that was kept ready is of no use"),
            }
        }
        self.make(&name, hostname, shares_ipc).await
    }

    /// Tells when the holder ends.
    pub(super) fn watch(&self, task: TaskArn, held: &Held) {
        let (held, ends) = (held.clone(), self.ends.clone());
        self.tracker.spawn_droppable("holder", async move {
            if let Err(error) = held.ended().await {
                tracing::error!(%task, %error, "the holder of the task's network cannot be watched");
                return;
            }
            // Nobody listens when the agent stops.
            let _ = ends.send((task, held.id)).await;
        });
    }

    /// All holders of this agent: name, id and whether they run.
    pub(super) async fn all(&self) -> Result<Vec<crate::runtime::holder::Holder>, NetworkError> {
        self.engine.holders().await.map_err(failed)
    }

    /// Ends a holder: its process is gone, and the engine is told to remove it soon. One that the agent
    /// does not get to remove is removed at its next start.
    pub(super) async fn end(&self, held: &Held) -> Result<(), NetworkError> {
        if let Err(error) = held.kill().await {
            tracing::warn!(%error, holder = %held.id, "a holder is not to be killed; the engine is asked to");
            return self.release(&held.id).await;
        }
        match self.removals.try_send(held.id.clone()) {
            Ok(()) => Ok(()),
            Err(_) => self.release(&held.id).await,
        }
    }

    /// Ends and removes a holder.
    pub(super) async fn release(&self, id: &EngineId) -> Result<(), NetworkError> {
        self.engine.release(id).await.map_err(failed)
    }
}

async fn wait_for_quiet(engine: &dyn Holders) {
    // Not having it quiet is all that can come of it.
    let _ = tokio::time::timeout(LONGEST_WAIT, engine.quiet(QUIET)).await;
}

/// Removes holders that have ended.
async fn remove(engine: Arc<dyn Holders>, mut ended: mpsc::Receiver<EngineId>) {
    while let Some(first) = ended.recv().await {
        wait_for_quiet(&*engine).await;
        remove_one(&*engine, &first).await;
        while let Ok(next) = ended.try_recv() {
            remove_one(&*engine, &next).await;
        }
    }
}

async fn remove_one(engine: &dyn Holders, id: &EngineId) {
    loop {
        match engine.release(id).await {
            Err(RuntimeError::Unavailable(_)) => tokio::time::sleep(ENGINE_AWAY).await,
            Err(error) => {
                tracing::warn!(%error, holder = %id, "a holder that has ended stays until the next start");
                return;
            }
            Ok(()) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_holders_name_tells_its_task() {
        let id = "0123456789abcdef0123456789abcdef";
        assert_eq!(task_of(&format!("ecs-web-pause-3-pause-{id}")), Some(id));
        assert_eq!(task_of("ecs-web-3-app-0123"), None);
        assert_eq!(task_of("berth-pause-0123456789abcdef0123456789abcde"), None);
    }
}
