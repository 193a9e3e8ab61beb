//! Who is there: the actors by task.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use berth_core::ids::TaskArn;
use berth_core::task::{ContainerStatus, Task};
use tokio::sync::{mpsc, watch};

use super::actor::Message;
use super::hints::Hints;
use super::pulse::Pulse;
use crate::runtime::{EngineEvent, EngineEventKind};

/// How an actor is reached.
#[derive(Debug, Clone)]
pub(super) struct Handle {
    pub(super) mailbox: mpsc::Sender<Message>,
    pub(super) hints: Arc<Hints>,
    pub(super) view: watch::Receiver<Arc<Task>>,
    pub(super) pulse: Arc<Pulse>,
}

/// The actors of all tasks.
#[derive(Debug, Default)]
pub(super) struct Registry {
    tasks: Mutex<BTreeMap<TaskArn, Handle>>,
}

impl Registry {
    pub(super) fn insert(&self, task: TaskArn, handle: Handle) {
        self.lock().insert(task, handle);
    }

    pub(super) fn remove(&self, task: &TaskArn) {
        self.lock().remove(task);
    }

    pub(super) fn get(&self, task: &TaskArn) -> Option<Handle> {
        self.lock().get(task).cloned()
    }

    /// How all of them are reached, by ARN.
    pub(super) fn handles(&self) -> Vec<Handle> {
        self.lock().values().cloned().collect()
    }

    /// All tasks as they stand, by ARN.
    pub(super) fn views(&self) -> Vec<Arc<Task>> {
        self.lock().values().map(|handle| Arc::clone(&handle.view.borrow())).collect()
    }

    /// Passes an event of the engine on, as a hint.
    pub(super) fn hint(&self, event: EngineEvent) {
        if let Some(handle) = self.lock().get(&event.task) {
            handle.hints.leave(event.container, event.id, event.kind);
        }
    }

    /// Has every container looked at that may have changed while nobody listened.
    pub(super) fn hint_all(&self) {
        for handle in self.lock().values() {
            let task = Arc::clone(&handle.view.borrow());
            for container in &task.state().containers {
                if let (Some(id), ContainerStatus::Created | ContainerStatus::Running) =
                    (&container.id, container.status)
                {
                    handle.hints.leave(container.name.clone(), id.clone(), EngineEventKind::Health);
                }
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<TaskArn, Handle>> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
