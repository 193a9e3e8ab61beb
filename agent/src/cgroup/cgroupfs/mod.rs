//! Task cgroups as directories that the agent makes itself: cgroup v1 and v2.

mod v1;
mod v2;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use berth_core::ids::{TaskArn, is_resource_name};
use berth_core::units::{CPU_UNITS_PER_CPU, CpuUnits, Millis};
use cgroups_rs::fs::pid::PidController;
use cgroups_rs::fs::{Controller, MaxValue};
use futures_util::future::{BoxFuture, FutureExt};

use super::driver::Hierarchy;
use super::{Bounds, CgroupError, Cgroups, MemoryPast, tree};

/// Pauses between attempts to remove a cgroup that is still busy: about a second in all.
const REMOVE_PAUSES_MS: [u64; 8] = [2, 5, 10, 25, 60, 150, 300, 450];
/// Pauses between rounds of killing: processes may fork while we read their list.
const KILL_PAUSES_MS: [u64; 6] = [1, 5, 20, 50, 200, 700];
/// The kernel's smallest quota, in microseconds.
const LEAST_QUOTA_US: u64 = 1000;

/// Where task cgroups are made, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CgroupfsConfig {
    /// Where the hierarchy is mounted.
    pub mount: PathBuf,
    /// The cgroup that all task cgroups are in.
    pub root: String,
    /// The period of the CPU quota, 8 to 100 ms.
    pub period: Millis,
}

impl Default for CgroupfsConfig {
    fn default() -> Self {
        Self { mount: PathBuf::from("/sys/fs/cgroup"), root: "ecs".to_owned(), period: Millis(100) }
    }
}

/// Task cgroups made by hand.
#[derive(Debug, Clone)]
pub struct Cgroupfs {
    config: Arc<CgroupfsConfig>,
    version: Hierarchy,
}

/// A failed step: what was tried, and what came of it.
type Failed = (String, io::Error);

impl Cgroupfs {
    /// Cgroups of that version below `config.mount`.
    #[must_use]
    pub fn new(config: CgroupfsConfig, version: Hierarchy) -> Self {
        Self { config: Arc::new(config), version }
    }

    /// The directories that a task's cgroup consists of.
    fn directories(&self, task_id: &str) -> io::Result<Vec<PathBuf>> {
        match self.version {
            Hierarchy::V1 => v1::directories(&self.config, task_id),
            Hierarchy::V2 => Ok(vec![self.config.mount.join(&self.config.root).join(task_id)]),
        }
    }

    /// Runs a step off the runtime's threads: the kernel may take its time over a cgroup.
    async fn blocking<T: Send + 'static>(
        &self,
        task_id: &str,
        step: impl FnOnce(&Self, &str) -> Result<T, Failed> + Send + 'static,
    ) -> Result<T, CgroupError> {
        let (this, id) = (self.clone(), task_id.to_owned());
        let outcome = tokio::task::spawn_blocking(move || step(&this, &id)).await;
        let (what, source) = match outcome {
            Ok(Ok(output)) => return Ok(output),
            Ok(Err(failed)) => failed,
            Err(error) => ("run a step".to_owned(), io::Error::other(error)),
        };
        Err(CgroupError { task: task_id.to_owned(), what, source })
    }

    async fn take(&self, task_id: &str) -> Result<(), CgroupError> {
        if !is_resource_name(task_id) {
            return Err(not_an_id(task_id));
        }
        let mut pauses = REMOVE_PAUSES_MS.iter();
        loop {
            let outcome = self.blocking(task_id, Self::remove_once).await;
            match outcome {
                Err(error) if tree::is_busy(&error.source) => match pauses.next() {
                    Some(ms) => tokio::time::sleep(Duration::from_millis(*ms)).await,
                    None => return Err(error),
                },
                outcome => return outcome,
            }
        }
    }

    /// Tries all of a task's directories, whatever becomes of the first.
    fn remove_once(&self, task_id: &str) -> Result<(), Failed> {
        let directories = self.directories(task_id).map_err(|error| self.looking(error))?;
        let failures = directories.iter().filter_map(|path| {
            let error = tree::remove(path).err()?;
            Some((format!("remove {}", path.display()), error))
        });
        // A failure that waiting will not cure is the one to tell of.
        failures.min_by_key(|(_, error)| tree::is_busy(error)).map_or(Ok(()), Err)
    }

    fn kill_once(&self, task_id: &str) -> Result<usize, Failed> {
        let directories = self.directories(task_id).map_err(|error| self.looking(error))?;
        if self.version == Hierarchy::V2 && v2::kill(&directories)? {
            return Ok(0);
        }
        let mut killed = 0;
        for path in directories {
            killed += tree::kill_all(&path)
                .map_err(|error| (format!("kill what is in {}", path.display()), error))?;
        }
        Ok(killed)
    }

    fn ids(&self) -> Result<Vec<String>, Failed> {
        let roots = self.directories("").map_err(|error| self.looking(error))?;
        let mut ids = Vec::new();
        for root in roots {
            let children =
                tree::children(&root).map_err(|error| (format!("read {}", root.display()), error))?;
            let names = children.iter().filter_map(|path| path.file_name()?.to_str());
            ids.extend(names.filter(|name| is_task_id(name)).map(str::to_owned));
        }
        ids.sort_unstable();
        ids.dedup();
        Ok(ids)
    }

    fn looking(&self, error: io::Error) -> Failed {
        (format!("look into {}", self.config.mount.display()), error)
    }
}

/// Whether a directory is named as a task is.
fn is_task_id(name: &str) -> bool {
    name.len() == 32 && name.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn not_an_id(task_id: &str) -> CgroupError {
    let source = io::Error::from(io::ErrorKind::InvalidInput);
    CgroupError { task: task_id.to_owned(), what: "take the id for the name of a cgroup".to_owned(), source }
}

/// Quota and period, in microseconds, of a CPU bound.
fn quota(cpu: CpuUnits, period: Millis) -> (i64, u64) {
    let period = period.0.clamp(8, 100) * 1000;
    let quota = (u64::from(cpu.0) * period).div_ceil(u64::from(CPU_UNITS_PER_CPU)).max(LEAST_QUOTA_US);
    (i64::try_from(quota).unwrap_or(i64::MAX), period)
}

/// The cause of an error of the cgroup library, which wraps what the kernel said.
fn cause(error: cgroups_rs::fs::error::Error) -> io::Error {
    let kernel = std::error::Error::source(&error).and_then(|cause| cause.downcast_ref::<io::Error>());
    match kernel.and_then(io::Error::raw_os_error) {
        Some(code) => io::Error::from_raw_os_error(code),
        None => io::Error::other(error.to_string()),
    }
}

/// Sees to it that the kernel took a value.
fn verify<T: PartialEq + std::fmt::Display>(
    what: impl Fn() -> String,
    wanted: T,
    read: Result<T, io::Error>,
) -> Result<(), Failed> {
    match read {
        Ok(read) if read == wanted => Ok(()),
        Ok(read) => Err((what(), io::Error::other(format!("{wanted} was written, but {read} is in force")))),
        Err(error) => Err((format!("read back: {}", what()), error)),
    }
}

/// Sets the most processes of a cgroup, in either version.
fn limit_pids(path: &Path, limit: u32, version: Hierarchy) -> Result<(), Failed> {
    let controller = PidController::new(path.to_owned(), PathBuf::new(), version == Hierarchy::V2);
    controller.create().map_err(|error| (format!("make {}", path.display()), cause(error)))?;
    let what = || format!("set pids.max of {}", path.display());
    controller.set_pid_max(MaxValue::Value(i64::from(limit))).map_err(|error| (what(), cause(error)))?;
    verify(what, i64::from(limit), controller.get_pid_max().map(number).map_err(cause))
}

/// A value that may be "max".
fn number(value: MaxValue) -> i64 {
    match value {
        MaxValue::Max => i64::MAX,
        MaxValue::Value(number) => number,
    }
}

impl Cgroups for Cgroupfs {
    fn create<'a>(
        &'a self,
        task: &'a TaskArn,
        bounds: Bounds,
    ) -> BoxFuture<'a, Result<Option<String>, CgroupError>> {
        async move {
            self.blocking(task.id(), move |this, id| match this.version {
                Hierarchy::V1 => v1::create(&this.config, id, &bounds),
                Hierarchy::V2 => v2::create(&this.config, id, &bounds),
            })
            .await?;
            // Absolute, as the engine reads it: from the host's root, wherever the agent itself is.
            Ok(Some(format!("/{}/{}", self.config.root, task.id())))
        }
        .boxed()
    }

    fn bound<'a>(&'a self, task: &'a TaskArn, cpu: CpuUnits) -> BoxFuture<'a, Result<(), CgroupError>> {
        self.blocking(task.id(), move |this, id| {
            let (quota, period) = quota(cpu, this.config.period);
            match this.version {
                Hierarchy::V1 => v1::bound(&this.config, id, quota, period),
                Hierarchy::V2 => v2::bound(&this.config, id, quota, period),
            }
        })
        .boxed()
    }

    fn remove<'a>(&'a self, task: &'a TaskArn) -> BoxFuture<'a, Result<(), CgroupError>> {
        self.take(task.id()).boxed()
    }

    fn kill<'a>(&'a self, task: &'a TaskArn) -> BoxFuture<'a, Result<(), CgroupError>> {
        async move {
            for pause in KILL_PAUSES_MS {
                if self.blocking(task.id(), Self::kill_once).await? == 0 {
                    return Ok(());
                }
                tokio::time::sleep(Duration::from_millis(pause)).await;
            }
            Err(CgroupError {
                task: task.id().to_owned(),
                what: "kill its processes".to_owned(),
                source: io::Error::new(
                    io::ErrorKind::ResourceBusy,
                    "some are still there after several rounds",
                ),
            })
        }
        .boxed()
    }

    fn list(&self) -> BoxFuture<'_, Result<Vec<String>, CgroupError>> {
        self.blocking("*", |this, _| this.ids()).boxed()
    }

    fn memory<'a>(&'a self, task: &'a TaskArn) -> BoxFuture<'a, MemoryPast> {
        async move {
            let read = |this: &Self, id: &str| {
                let directories = this.directories(id).map_err(|error| this.looking(error))?;
                // One of several controllers knows; the others have no such files.
                let told = directories.iter().map(|path| tree::memory(path));
                Ok(told.fold(MemoryPast::default(), |all, one| MemoryPast {
                    kills: all.kills.or(one.kills),
                    peak_bytes: all.peak_bytes.or(one.peak_bytes),
                }))
            };
            self.blocking(task.id(), read).await.unwrap_or_default()
        }
        .boxed()
    }

    fn remove_id<'a>(&'a self, task_id: &'a str) -> BoxFuture<'a, Result<(), CgroupError>> {
        self.take(task_id).boxed()
    }

    fn enabled(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quota_is_the_share_of_the_period() {
        assert_eq!(quota(CpuUnits(1024), Millis(100)), (100_000, 100_000));
        assert_eq!(quota(CpuUnits(128), Millis(100)), (12_500, 100_000));
        assert_eq!(quota(CpuUnits(3072), Millis(20)), (60_000, 20_000));
        // The kernel takes no less than a millisecond.
        assert_eq!(quota(CpuUnits(2), Millis(100)), (1000, 100_000));
        // A period out of range is brought into it.
        assert_eq!(quota(CpuUnits(1024), Millis(1)), (8000, 8000));
    }

    #[tokio::test]
    async fn an_id_that_is_a_path_is_refused() {
        let cgroups = Cgroupfs::new(CgroupfsConfig::default(), Hierarchy::V1);
        for bad in ["", "..", "../x", "a/b"] {
            assert!(cgroups.remove_id(bad).await.is_err(), "{bad}");
        }
    }
}
