//! What containers use at this moment: the processes are known from the engine, everything else comes
//! from the kernel.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use berth_core::ids::EngineId;
use berth_core::task::{Container, ContainerStatus};
use berth_core::units::Timestamp;

use crate::engine::Engine;
use crate::usage::{self, Usage};

/// Most containers whose process is remembered.
const MOST: usize = 2048;

/// Reads what containers use.
pub struct Readings {
    engine: Engine,
    cgroups: PathBuf,
    pids: Mutex<HashMap<EngineId, (Option<Timestamp>, u32)>>,
}

impl Readings {
    /// Of the containers of that engine; `cgroups` is where cgroups are mounted.
    #[must_use]
    pub fn new(engine: Engine, cgroups: PathBuf) -> Arc<Self> {
        Arc::new(Self { engine, cgroups, pids: Mutex::default() })
    }

    /// What one container uses; `None` when it does not run.
    pub async fn of(self: &Arc<Self>, container: &Container) -> Option<Usage> {
        let pid = self.pid(container).await?;
        let cgroups = self.cgroups.clone();
        tokio::task::spawn_blocking(move || usage::read(pid, &cgroups)).await.ok()?.ok()
    }

    /// What several use, read in one go.
    pub async fn of_all(self: &Arc<Self>, containers: &[Container]) -> Vec<Option<Usage>> {
        let mut pids = Vec::with_capacity(containers.len());
        for container in containers {
            pids.push(self.pid(container).await);
        }
        let cgroups = self.cgroups.clone();
        let read = move || pids.iter().map(|pid| usage::read((*pid)?, &cgroups).ok()).collect();
        tokio::task::spawn_blocking(read).await.unwrap_or_default()
    }

    /// The main process of a container, asked of the engine once in each of its lives.
    async fn pid(&self, container: &Container) -> Option<u32> {
        let id = container.id.as_ref().filter(|_| container.status == ContainerStatus::Running)?;
        let life = container.started_at;
        let known = self.pids.lock().unwrap_or_else(PoisonError::into_inner).get(id).copied();
        if let Some((of, pid)) = known
            && of == life
        {
            return Some(pid);
        }
        let pid = self.engine.details(id).await.ok()??.pid;
        if pid == 0 {
            return None;
        }
        let mut pids = self.pids.lock().unwrap_or_else(PoisonError::into_inner);
        if pids.len() >= MOST {
            pids.clear();
        }
        pids.insert(id.clone(), (life, pid));
        Some(pid)
    }
}
