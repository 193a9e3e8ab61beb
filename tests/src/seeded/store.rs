//! The agent's state as a writer of its own has it: commits are made one after the other, also when whoever
//! asked has lost patience; with the agent's life the writer ends, and what it had not written is lost.

use std::sync::Arc;
use std::time::Duration;

use berth_agent::store::memory::MemoryStore;
use berth_agent::store::{Outbox, Saved, Store, StoreError, Write};
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use tokio::sync::{mpsc, oneshot};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::world::World;

/// What a sync of the disk takes.
const SYNC: Duration = Duration::from_millis(3);
/// Commits that may wait.
const QUEUE: usize = 64;

type Job = (Vec<Write>, oneshot::Sender<Result<(), StoreError>>);

/// The state, and its writer.
pub struct Written {
    disk: Arc<MemoryStore>,
    queue: mpsc::Sender<Job>,
}

impl Written {
    /// The state on the world's disk. The writer ends with that life.
    #[must_use]
    pub fn begin(world: &Arc<World>, dead: CancellationToken) -> Self {
        let disk = world.disk();
        let (queue, jobs) = mpsc::channel(QUEUE);
        let write = write(Arc::clone(world), Arc::clone(&disk), jobs);
        world.tasks.spawn(async move {
            dead.run_until_cancelled_owned(write).await;
        });
        Self { disk, queue }
    }
}

async fn write(world: Arc<World>, disk: Arc<MemoryStore>, mut jobs: mpsc::Receiver<Job>) {
    while let Some((writes, tell)) = jobs.recv().await {
        sleep(world.span(SYNC)).await;
        world.writes();
        let what: Vec<String> = writes.iter().map(name).collect();
        let done = disk.commit(writes).await;
        world.note(format_args!("disk {} {}", what.join(" "), if done.is_ok() { "" } else { "full" }));
        // Whoever asked may have gone away.
        drop(tell.send(done));
    }
}

fn name(write: &Write) -> String {
    match write {
        Write::NewTask { spec, .. } => format!("new:{}", short(spec.arn.id())),
        Write::State { task, .. } => format!("state:{}", short(task.id())),
        Write::Forget(task) => format!("forget:{}", short(task.id())),
        Write::Report { task, report } => format!("report:{}:{}", short(task.id()), report.status.as_str()),
        Write::Told(up_to) => format!("told:{up_to}"),
        Write::Seen(_) => "seen".to_owned(),
        Write::Identity(identity) => format!("identity:{}", identity.manifest_sequence),
    }
}

/// As much of a task's id as tells it from others.
#[must_use]
pub fn short(id: &str) -> &str {
    id.get(id.len().saturating_sub(4)..).unwrap_or(id)
}

fn gone() -> StoreError {
    StoreError::Io { what: "reach the writer of", path: "memory".to_owned(), detail: "it ended".to_owned() }
}

impl Store for Written {
    fn load(&self) -> BoxFuture<'_, Result<Saved, StoreError>> {
        self.disk.load()
    }

    fn commit(&self, writes: Vec<Write>) -> BoxFuture<'_, Result<(), StoreError>> {
        async move {
            let (tell, told) = oneshot::channel();
            self.queue.send((writes, tell)).await.map_err(|_| gone())?;
            told.await.map_err(|_| gone())?
        }
        .boxed()
    }

    fn outbox(&self) -> &Outbox {
        self.disk.outbox()
    }
}
