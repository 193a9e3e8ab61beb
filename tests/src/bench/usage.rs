//! CPU and memory of processes, from /proc.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context, Result};
use nix::unistd::{SysconfVar, sysconf};

/// Resident memory of a process in MiB.
///
/// # Errors
/// When the process is gone.
pub fn resident_mib(pid: u32) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).context("the process is gone")?;
    let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB"));
    let kib: f64 = kib.context("/proc says nothing of VmRSS")?.trim().parse()?;
    Ok(kib / 1024.0)
}

/// CPU seconds that a process has used so far; none when it is gone.
#[must_use]
pub fn cpu_seconds(pid: u32) -> Option<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // Fields 14 and 15, counted behind the name in brackets.
    let mut fields = stat.rsplit_once(") ")?.1.split(' ').skip(11);
    let user: f64 = fields.next()?.parse().ok()?;
    let system: f64 = fields.next()?.parse().ok()?;
    let ticks = sysconf(SysconfVar::CLK_TCK).ok().flatten().unwrap_or(100);
    Some((user + system) / f64::from(i32::try_from(ticks).unwrap_or(100)))
}

/// The processes of an engine that serve some containers.
#[derive(Debug, Clone)]
pub struct EngineProcesses {
    daemon: u32,
    containers: Vec<String>,
}

/// CPU of the engine so far, process by process: dockerd, its containerd, and the shims of those
/// containers.
#[derive(Debug, Clone)]
pub struct EngineCpu(BTreeMap<u32, f64>);

impl EngineProcesses {
    /// Of the engine whose daemon has that process id.
    #[must_use]
    pub const fn new(daemon: u32, containers: Vec<String>) -> Self {
        Self { daemon, containers }
    }

    /// What they have used so far.
    #[must_use]
    pub fn cpu(&self) -> EngineCpu {
        let pids = fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        EngineCpu(
            pids.filter(|pid| self.has(*pid)).filter_map(|pid| Some((pid, cpu_seconds(pid)?))).collect(),
        )
    }

    fn has(&self, pid: u32) -> bool {
        match name(pid).as_str() {
            "dockerd" => pid == self.daemon,
            // One that systemd started serves all engines of the host.
            "containerd" => {
                parent(pid).is_some_and(|parent| parent == self.daemon || name(parent) != "dockerd")
            }
            "containerd-shim" => {
                let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
                let mut words = command.split(|byte| *byte == 0);
                words.any(|word| self.containers.iter().any(|id| id.as_bytes() == word))
            }
            _ => false,
        }
    }
}

impl EngineCpu {
    /// Seconds used since then, by the processes that were there then and are there now.
    #[must_use]
    pub fn since(&self, then: &Self) -> f64 {
        self.0.iter().filter_map(|(pid, now)| Some(now - then.0.get(pid)?)).sum()
    }
}

/// The name of a process, of which the kernel keeps 15 characters.
fn name(pid: u32) -> String {
    fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim().to_owned()
}

fn parent(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()
}

/// The load averages of this host, as the kernel says them.
#[must_use]
pub fn load() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').take(3).collect::<Vec<_>>().join(" ")
}
