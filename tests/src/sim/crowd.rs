//! A host that is so crowded that a process gets no further process or thread: by a cgroup of its own.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

const MOUNT: &str = "/sys/fs/cgroup";

/// A process that may have no more processes and threads than a test allows; until this is dropped.
#[derive(Debug)]
pub struct Crowd {
    folder: PathBuf,
    /// Where it was before.
    home: PathBuf,
}

impl Crowd {
    /// Puts the process `pid` into a cgroup of that name.
    ///
    /// # Errors
    /// When there is no controller of processes.
    pub fn around(pid: u32, name: &str) -> Result<Self> {
        let v1 = Path::new(MOUNT).join("pids");
        let (mount, controller) = if v1.is_dir() { (v1, "pids") } else { (MOUNT.into(), "") };
        let cgroups = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
        let own = cgroups.lines().find_map(|line| {
            let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
            (controllers == controller).then_some(path)
        });
        let home = mount.join(own.context("no cgroup of processes")?.trim_start_matches('/'));
        let crowd = Self { folder: mount.join(name), home };
        fs::create_dir(&crowd.folder).with_context(|| crowd.folder.display().to_string())?;
        fs::write(crowd.folder.join("cgroup.procs"), pid.to_string())?;
        Ok(crowd)
    }

    /// Allows not one more than there are.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn fill(&self) -> Result<()> {
        let there = fs::read_to_string(self.folder.join("pids.current"))?;
        Ok(fs::write(self.folder.join("pids.max"), there.trim())?)
    }

    /// Allows as many as the host has.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn leave(&self) -> Result<()> {
        Ok(fs::write(self.folder.join("pids.max"), "max")?)
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        let pids = fs::read_to_string(self.folder.join("cgroup.procs")).unwrap_or_default();
        for pid in pids.lines() {
            // One that has ended meanwhile is in no cgroup.
            let _ = fs::write(self.home.join("cgroup.procs"), pid);
        }
        if let Err(error) = fs::remove_dir(&self.folder) {
            eprintln!("{} stays: {error}", self.folder.display());
        }
    }
}
