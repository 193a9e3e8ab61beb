//! Cgroup v2: one directory for the task, with the controllers switched on from the top down.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use cgroups_rs::fs::MaxValue;
use cgroups_rs::fs::cpu::CpuController;
use cgroups_rs::fs::memory::{MemController, SetMemory};

use super::{CgroupfsConfig, Failed, cause, limit_pids, number, verify};
use crate::cgroup::driver::Hierarchy;
use crate::cgroup::{Bounds, tree, weight};

/// Makes the task's directory and sets all but the CPU quota.
pub(super) fn create(config: &CgroupfsConfig, task_id: &str, bounds: &Bounds) -> Result<(), Failed> {
    let root = config.mount.join(&config.root);
    let path = root.join(task_id);
    fs::create_dir_all(&root).map_err(|error| (format!("make {}", root.display()), error))?;
    // Only what bounds anything: every controller costs something in the whole tree above.
    let mut controllers = vec!["cpu", "memory"];
    controllers.extend(bounds.pids.map(|_| "pids"));
    for level in [&config.mount, &root] {
        switch_on(level, &controllers)?;
    }
    match fs::create_dir(&path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err((format!("make {}", path.display()), error));
        }
        _ => {}
    }
    set(&path, bounds)
}

fn set(path: &Path, bounds: &Bounds) -> Result<(), Failed> {
    if let Some(limit) = bounds.memory {
        let what = || format!("set memory.max of {}", path.display());
        let controller = MemController::new(path.to_owned(), PathBuf::new(), true);
        let wanted = i64::try_from(limit.bytes()).unwrap_or(i64::MAX);
        let max = SetMemory { max: Some(MaxValue::Value(wanted)), ..SetMemory::default() };
        controller.set_mem(max).map_err(|error| (what(), cause(error)))?;
        let read = controller.get_mem().map_err(cause).map(|read| read.max.map_or(i64::MAX, number));
        verify(what, wanted, read)?;
    }
    if bounds.cpu.is_none() {
        let what = || format!("set cpu.weight of {}", path.display());
        let controller = CpuController::new(path.to_owned(), PathBuf::new(), true);
        let wanted = weight(bounds.cpu_shares);
        controller.set_shares(wanted).map_err(|error| (what(), cause(error)))?;
        verify(what, wanted, controller.shares().map_err(cause))?;
    }
    if let Some(pids) = bounds.pids {
        limit_pids(path, pids, Hierarchy::V2)?;
    }
    Ok(())
}

/// Switches controllers on for what is below `level`, where they are not on already.
fn switch_on(level: &Path, controllers: &[&str]) -> Result<(), Failed> {
    let file = level.join("cgroup.subtree_control");
    let read = || fs::read_to_string(&file).map_err(|error| (format!("read {}", file.display()), error));
    let on = read()?;
    for controller in controllers {
        if !on.split_whitespace().any(|name| name == *controller) {
            fs::write(&file, format!("+{controller}")).map_err(|error| {
                (format!("switch on cgroup controller {controller} in {}", file.display()), error)
            })?;
        }
    }
    let on = read()?;
    for controller in controllers {
        if !on.split_whitespace().any(|name| name == *controller) {
            let off = io::Error::new(io::ErrorKind::Unsupported, "it stays off");
            return Err((format!("switch on cgroup controller {controller} in {}", file.display()), off));
        }
    }
    Ok(())
}

/// Sets the CPU quota.
pub(super) fn bound(config: &CgroupfsConfig, task_id: &str, quota: i64, period: u64) -> Result<(), Failed> {
    let path = config.mount.join(&config.root).join(task_id);
    let what = || format!("set cpu.max of {}", path.display());
    let controller = CpuController::new(path.clone(), PathBuf::new(), true);
    controller.set_cfs_quota_and_period(Some(quota), Some(period)).map_err(|error| (what(), cause(error)))?;
    verify(what, period, controller.cfs_period().map_err(cause))?;
    verify(what, quota, controller.cfs_quota().map_err(cause))
}

/// Has the kernel kill everything at once; false where it is too old for that.
pub(super) fn kill(directories: &[PathBuf]) -> Result<bool, Failed> {
    for path in directories {
        let file = path.join("cgroup.kill");
        match fs::write(&file, "1") {
            Ok(()) => {}
            Err(error) if tree::is_gone(&error) => {
                if path.is_dir() {
                    return Ok(false);
                }
            }
            // A kernel without the file refuses to make one.
            Err(_) if path.is_dir() && !file.exists() => return Ok(false),
            Err(error) => return Err((format!("write {}", file.display()), error)),
        }
    }
    Ok(true)
}
