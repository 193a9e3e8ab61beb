//! What containers are and use at this moment: what the engine tells is asked of it once in each life of a
//! container, everything else comes from the kernel.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use berth_core::ids::EngineId;
use berth_core::task::{Container, ContainerStatus};
use berth_core::units::Timestamp;

use crate::engine::Engine;
use crate::runtime::{Details, RuntimeError};
use crate::usage::{self, Usage};

/// Most containers whose details are remembered.
const MOST: usize = 2048;

/// Details by container, with the life that they are of: an address may change with a restart.
type Remembered = HashMap<EngineId, (Option<Timestamp>, Arc<Details>)>;

/// Reads what containers are and use.
pub struct Readings {
    engine: Engine,
    cgroups: Option<PathBuf>,
    details: Mutex<Remembered>,
}

impl Readings {
    /// Of the containers of that engine; `cgroups` is where cgroups are mounted, `None` for an agent that sees
    /// neither them nor the processes of the host: then nothing is known of what containers use.
    #[must_use]
    pub fn new(engine: Engine, cgroups: Option<PathBuf>) -> Arc<Self> {
        Arc::new(Self { engine, cgroups, details: Mutex::default() })
    }

    /// A container in detail; `None` when it does not exist.
    ///
    /// # Errors
    /// The engine's.
    pub async fn details(&self, container: &Container) -> Result<Option<Arc<Details>>, RuntimeError> {
        let Some(id) = &container.id else { return Ok(None) };
        let life = container.started_at;
        if let Some((known, details)) = self.remembered().get(id)
            && *known == life
        {
            return Ok(Some(Arc::clone(details)));
        }
        let Some(details) = self.engine.details(id).await? else { return Ok(None) };
        let details = Arc::new(details);
        let mut remembered = self.remembered();
        if remembered.len() >= MOST {
            remembered.clear();
        }
        remembered.insert(id.clone(), (life, Arc::clone(&details)));
        Ok(Some(details))
    }

    /// What one container uses; `None` when it does not run.
    pub async fn of(&self, container: &Container) -> Option<Usage> {
        let cgroups = self.cgroups.clone()?;
        let pid = self.pid(container).await?;
        tokio::task::spawn_blocking(move || usage::read(pid, &cgroups)).await.ok()?.ok()
    }

    /// What several use, read in one go.
    pub async fn of_all(&self, containers: &[Container]) -> Vec<Option<Usage>> {
        let Some(cgroups) = self.cgroups.clone() else { return vec![None; containers.len()] };
        let mut pids = Vec::with_capacity(containers.len());
        for container in containers {
            pids.push(self.pid(container).await);
        }
        let read = move || pids.iter().map(|pid| usage::read((*pid)?, &cgroups).ok()).collect();
        tokio::task::spawn_blocking(read).await.unwrap_or_default()
    }

    /// The main process of a container that runs.
    async fn pid(&self, container: &Container) -> Option<u32> {
        if container.status != ContainerStatus::Running {
            return None;
        }
        let details = self.details(container).await.ok()??;
        Some(details.pid).filter(|pid| *pid != 0)
    }

    fn remembered(&self) -> MutexGuard<'_, Remembered> {
        self.details.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
