//! Cgroup v1: one directory for the task in the tree of each controller.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use cgroups_rs::fs::Controller;
use cgroups_rs::fs::cpu::CpuController;
use cgroups_rs::fs::memory::MemController;

use super::{CgroupfsConfig, Failed, cause, limit_pids, verify};
use crate::cgroup::Bounds;
use crate::cgroup::driver::Hierarchy;

/// The root of one controller's tree.
fn tree(config: &CgroupfsConfig, controller: &str) -> Result<PathBuf, Failed> {
    let path = config.mount.join(controller);
    if path.is_dir() {
        return Ok(path);
    }
    let missing = io::Error::new(io::ErrorKind::NotFound, "the controller is not mounted");
    Err((format!("find cgroup controller {controller} at {}", path.display()), missing))
}

fn place(config: &CgroupfsConfig, controller: &str, task_id: &str) -> Result<PathBuf, Failed> {
    Ok(tree(config, controller)?.join(&config.root).join(task_id))
}

/// A task's directories in all trees that are mounted: the engine makes its own below the parent
/// in every one of them. Names that are links to a tree of several controllers count once.
pub(super) fn directories(config: &CgroupfsConfig, task_id: &str) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(&config.mount)? {
        let entry = entry?;
        // In the unified tree beside the others there are no controllers, but there may be a
        // directory that the engine made.
        if entry.file_type()?.is_dir() {
            found.push(entry.path().join(&config.root).join(task_id));
        }
    }
    Ok(found)
}

/// Makes the directories of the controllers that bound anything, and sets all but the CPU quota.
pub(super) fn create(config: &CgroupfsConfig, task_id: &str, bounds: &Bounds) -> Result<(), Failed> {
    memory(config, &place(config, "memory", task_id)?, bounds)?;
    cpu(&place(config, "cpu", task_id)?, bounds)?;
    if let Some(pids) = bounds.pids {
        limit_pids(&place(config, "pids", task_id)?, pids, Hierarchy::V1)?;
    }
    Ok(())
}

fn memory(config: &CgroupfsConfig, path: &Path, bounds: &Bounds) -> Result<(), Failed> {
    let controller = MemController::new(path.to_owned(), PathBuf::new(), false);
    hierarchical(&tree(config, "memory")?.join(&config.root))?;
    make(&controller)?;
    if let Some(limit) = bounds.memory {
        let what = || format!("set memory.limit_in_bytes of {}", path.display());
        let wanted = i64::try_from(limit.bytes()).unwrap_or(i64::MAX);
        controller.set_limit(wanted).map_err(|error| (what(), cause(error)))?;
        let read = number(&path.join("memory.limit_in_bytes"));
        verify(what, wanted, read)?;
    }
    Ok(())
}

/// Has the kernel count what is below a cgroup as its own. Kernels since 5.11 do nothing else.
fn hierarchical(root: &Path) -> Result<(), Failed> {
    let what = |error| (format!("set memory.use_hierarchy of {}", root.display()), error);
    fs::create_dir_all(root).map_err(what)?;
    let file = root.join("memory.use_hierarchy");
    if number(&file).map_err(what)? == 1 {
        return Ok(());
    }
    fs::write(file, "1").map_err(what)
}

fn cpu(path: &Path, bounds: &Bounds) -> Result<(), Failed> {
    let controller = CpuController::new(path.to_owned(), PathBuf::new(), false);
    make(&controller)?;
    if bounds.cpu.is_none() {
        let what = || format!("set cpu.shares of {}", path.display());
        let wanted = bounds.cpu_shares.clamp(2, 262_144);
        controller.set_shares(wanted).map_err(|error| (what(), cause(error)))?;
        verify(what, wanted, controller.shares().map_err(cause))?;
    }
    Ok(())
}

/// Sets the CPU quota.
pub(super) fn bound(config: &CgroupfsConfig, task_id: &str, quota: i64, period: u64) -> Result<(), Failed> {
    let path = place(config, "cpu", task_id)?;
    let controller = CpuController::new(path.clone(), PathBuf::new(), false);
    let what = || format!("set cpu.cfs_quota_us of {}", path.display());
    let failed = |error| (what(), cause(error));
    controller.set_cfs_period(period).map_err(failed)?;
    controller.set_cfs_quota(quota).map_err(failed)?;
    verify(what, period, controller.cfs_period().map_err(cause))?;
    verify(what, quota, controller.cfs_quota().map_err(cause))
}

fn make(controller: &impl Controller) -> Result<(), Failed> {
    controller.create().map_err(|error| (format!("make {}", controller.path().display()), cause(error)))
}

fn number(file: &Path) -> io::Result<i64> {
    let text = fs::read_to_string(file)?;
    text.trim()
        .parse()
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, format!("{:?} is no number", text.trim())))
}
