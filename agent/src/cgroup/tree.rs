//! Directories of the cgroup file system: removing, killing, listing. What both drivers and both
//! versions share; everything here blocks.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nix::sys::signal::{Signal, kill};
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};
use nix::unistd::Pid;

use super::MemoryPast;
use super::driver::Hierarchy;

/// What is mounted at `mount`; `None` when it is no cgroup hierarchy.
#[must_use]
pub fn mounted(mount: &Path) -> Option<Hierarchy> {
    let unified = statfs(mount).is_ok_and(|stat| stat.filesystem_type() == CGROUP2_SUPER_MAGIC);
    if unified {
        return Some(Hierarchy::V2);
    }
    // The memory controller is the one that task limits cannot do without.
    mount.join("memory").is_dir().then_some(Hierarchy::V1)
}

/// The directories right below `path`; none when it is not there.
pub(super) fn children(path: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if is_gone(&error) => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = match entry {
            Ok(entry) => entry,
            Err(error) if is_gone(&error) => break,
            Err(error) => return Err(error),
        };
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.push(entry.path());
        }
    }
    Ok(found)
}

/// Removes a cgroup and those below it, the innermost first. One that is not there is removed
/// already.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    for child in children(path)? {
        remove(&child)?;
    }
    match fs::remove_dir(path) {
        Err(error) if !is_gone(&error) => Err(error),
        _ => Ok(()),
    }
}

/// Sends SIGKILL to every process in a cgroup and below; tells how many there were.
pub(super) fn kill_all(path: &Path) -> io::Result<usize> {
    let mut killed = 0;
    for child in children(path)? {
        killed += kill_all(&child)?;
    }
    let processes = match fs::read_to_string(path.join("cgroup.procs")) {
        Ok(processes) => processes,
        Err(error) if is_gone(&error) => return Ok(killed),
        Err(error) => return Err(error),
    };
    let ours = Pid::this();
    for line in processes.lines() {
        // A process of a namespace that cannot be seen from here shows as 0, which would mean us.
        let Some(pid) = line.trim().parse().ok().filter(|pid| *pid > 1).map(Pid::from_raw) else {
            continue;
        };
        if pid == ours {
            continue;
        }
        match kill(pid, Signal::SIGKILL) {
            Ok(()) => killed += 1,
            Err(nix::errno::Errno::ESRCH) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(killed)
}

/// What the kernel remembers of the memory of a cgroup of either hierarchy and below.
pub(super) fn memory(path: &Path) -> MemoryPast {
    let read = |file: &str| fs::read_to_string(path.join(file)).ok();
    let kills =
        |events: String| events.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok());
    let peak = read("memory.peak").or_else(|| read("memory.max_usage_in_bytes"));
    MemoryPast {
        kills: read("memory.events").and_then(kills),
        peak_bytes: peak.and_then(|text| text.trim().parse().ok()),
    }
}

/// Whether the thing is not there: absent, or taken away while we looked.
pub(super) fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(nix::errno::Errno::ENODEV as i32)
}

/// Whether processes, or cgroups that are on their way out, are still in it.
pub(super) fn is_busy(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ResourceBusy | io::ErrorKind::DirectoryNotEmpty)
}
