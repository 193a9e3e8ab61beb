//! Task cgroups in memory: they remember what was asked of them, and fail on demand.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use berth_core::ids::TaskArn;
use berth_core::units::{CpuUnits, Millis};
use futures_util::future::{self, BoxFuture, FutureExt};

use super::{Bounds, CgroupError, Cgroups, MemoryPast};

/// A call that can be made to fail or to take its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// [`Cgroups::create`].
    Create,
    /// [`Cgroups::bound`].
    Bound,
    /// [`Cgroups::remove`] and [`Cgroups::remove_id`].
    Remove,
    /// [`Cgroups::kill`].
    Kill,
    /// [`Cgroups::list`].
    List,
}

/// The cgroup of one task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FakeCgroup {
    /// What it was made with.
    pub bounds: Bounds,
    /// The CPU quota in force.
    pub quota: Option<CpuUnits>,
    /// How often its processes were killed.
    pub kills: u32,
    /// How many of its processes ran out of memory.
    pub memory_kills: u64,
}

#[derive(Debug, Default)]
struct State {
    cgroups: BTreeMap<String, FakeCgroup>,
    failures: VecDeque<(Call, io::ErrorKind)>,
    delays: Vec<(Call, Millis)>,
    calls: Vec<Call>,
}

/// Cgroups in memory; clones share them.
#[derive(Debug, Clone, Default)]
pub struct FakeCgroups {
    state: Arc<Mutex<State>>,
}

impl FakeCgroups {
    /// No cgroups, no failures.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The next such call fails, without effect.
    pub fn fail_next(&self, call: Call, kind: io::ErrorKind) {
        self.state().failures.push_back((call, kind));
    }

    /// From now on such calls take this long.
    pub fn delay(&self, call: Call, by: Millis) {
        self.state().delays.push((call, by));
    }

    /// The cgroup of a task.
    #[must_use]
    pub fn get(&self, task_id: &str) -> Option<FakeCgroup> {
        self.state().cgroups.get(task_id).copied()
    }

    /// Leaves a cgroup behind, as an agent of old would.
    pub fn plant(&self, task_id: &str) {
        self.state().cgroups.insert(task_id.to_owned(), FakeCgroup::default());
    }

    /// The kernel kills a process of the task for want of memory.
    pub fn run_out_of_memory(&self, task_id: &str) {
        if let Some(cgroup) = self.state().cgroups.get_mut(task_id) {
            cgroup.memory_kills += 1;
        }
    }

    /// Every call so far, in order.
    #[must_use]
    pub fn calls(&self) -> Vec<Call> {
        self.state().calls.clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A test that panicked elsewhere leaves plain data behind: still good to read.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn begin(&self, call: Call, task: &str) -> Result<(), CgroupError> {
        let delay = {
            let mut state = self.state();
            state.calls.push(call);
            state.delays.iter().rev().find(|(of, _)| *of == call).map(|(_, by)| *by)
        };
        if let Some(by) = delay {
            tokio::time::sleep(by.as_duration()).await;
        }
        let mut state = self.state();
        let Some(at) = state.failures.iter().position(|(of, _)| *of == call) else {
            return Ok(());
        };
        match state.failures.remove(at) {
            Some((_, kind)) => Err(failed(task, format!("{call:?}"), kind)),
            None => Ok(()),
        }
    }

    async fn take(&self, task_id: &str) -> Result<(), CgroupError> {
        self.begin(Call::Remove, task_id).await?;
        self.state().cgroups.remove(task_id);
        Ok(())
    }
}

fn failed(task: &str, what: String, kind: io::ErrorKind) -> CgroupError {
    CgroupError { task: task.to_owned(), what, source: io::Error::from(kind) }
}

impl Cgroups for FakeCgroups {
    fn create<'a>(
        &'a self,
        task: &'a TaskArn,
        bounds: Bounds,
    ) -> BoxFuture<'a, Result<Option<String>, CgroupError>> {
        async move {
            self.begin(Call::Create, task.id()).await?;
            self.state().cgroups.entry(task.id().to_owned()).or_default().bounds = bounds;
            Ok(Some(format!("/ecs/{}", task.id())))
        }
        .boxed()
    }

    fn bound<'a>(&'a self, task: &'a TaskArn, cpu: CpuUnits) -> BoxFuture<'a, Result<(), CgroupError>> {
        async move {
            self.begin(Call::Bound, task.id()).await?;
            match self.state().cgroups.get_mut(task.id()) {
                Some(cgroup) => {
                    cgroup.quota = Some(cpu);
                    Ok(())
                }
                None => Err(failed(task.id(), "set the CPU quota".to_owned(), io::ErrorKind::NotFound)),
            }
        }
        .boxed()
    }

    fn remove<'a>(&'a self, task: &'a TaskArn) -> BoxFuture<'a, Result<(), CgroupError>> {
        self.take(task.id()).boxed()
    }

    fn kill<'a>(&'a self, task: &'a TaskArn) -> BoxFuture<'a, Result<(), CgroupError>> {
        async move {
            self.begin(Call::Kill, task.id()).await?;
            if let Some(cgroup) = self.state().cgroups.get_mut(task.id()) {
                cgroup.kills += 1;
            }
            Ok(())
        }
        .boxed()
    }

    fn list(&self) -> BoxFuture<'_, Result<Vec<String>, CgroupError>> {
        async move {
            self.begin(Call::List, "*").await?;
            Ok(self.state().cgroups.keys().cloned().collect())
        }
        .boxed()
    }

    fn memory<'a>(&'a self, task: &'a TaskArn) -> BoxFuture<'a, MemoryPast> {
        let kills = self.get(task.id()).map(|cgroup| cgroup.memory_kills);
        future::ready(MemoryPast { kills, peak_bytes: None }).boxed()
    }

    fn remove_id<'a>(&'a self, task_id: &'a str) -> BoxFuture<'a, Result<(), CgroupError>> {
        self.take(task_id).boxed()
    }

    fn enabled(&self) -> bool {
        true
    }
}
