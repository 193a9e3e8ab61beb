//! What the processes of a container use, from the kernel's files: their cgroup's counters and their
//! network's. No engine is asked, and nothing runs between two questions.

mod v1;
mod v2;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use berth_core::units::Timestamp;

use crate::clock;

/// What a container had used by a point in time.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Usage {
    /// When.
    pub at: Timestamp,
    /// Processor time.
    pub cpu: Cpu,
    /// Memory.
    pub memory: Memory,
    /// Processes and threads.
    pub pids: Pids,
    /// Bytes moved to and from block devices.
    pub block: Vec<Block>,
    /// Traffic by interface.
    pub networks: BTreeMap<String, Traffic>,
}

/// Processor time in nanoseconds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cpu {
    /// Of the container, in all.
    pub total_ns: u64,
    /// Of that in its programs.
    pub user_ns: u64,
    /// Of that in the kernel.
    pub system_ns: u64,
    /// By processor; empty where the kernel does not tell (cgroup v2).
    pub per_cpu_ns: Vec<u64>,
    /// Of the host, in all, idle time included.
    pub host_ns: u64,
    /// Processors of the host.
    pub online: u32,
    /// Periods of the CPU bound.
    pub periods: u64,
    /// Periods in which the bound was reached.
    pub throttled_periods: u64,
    /// How long the bound held it up.
    pub throttled_ns: u64,
}

/// Memory in bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Memory {
    /// In use, the page cache included.
    pub usage: u64,
    /// The most that was in use.
    pub peak: u64,
    /// Its limit; the host's memory where it has none.
    pub limit: u64,
    /// How often the limit was reached.
    pub failures: u64,
    /// The kernel's own account.
    pub detail: BTreeMap<String, u64>,
}

/// Processes and threads.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pids {
    /// How many there are.
    pub current: u64,
    /// How many there may be; none: as many as the host has.
    pub limit: Option<u64>,
}

/// Bytes moved to or from one block device.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Block {
    /// The device's numbers.
    pub device: (u64, u64),
    /// `read` or `write`.
    pub operation: &'static str,
    /// How many.
    pub bytes: u64,
}

/// Traffic of one interface.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Received: bytes, packets, errors, dropped.
    pub received: [u64; 4],
    /// Sent: bytes, packets, errors, dropped.
    pub sent: [u64; 4],
}

/// Reads what the container of that main process uses; `mount` is where cgroups are mounted. Blocks
/// for the time of a dozen small files.
///
/// # Errors
/// When the process is gone.
pub fn read(pid: u32, mount: &Path) -> io::Result<Usage> {
    let membership = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
    let mut usage = match v1::Paths::of(&membership, mount) {
        Some(paths) => v1::read(&paths)?,
        None => v2::read(&v2::path(&membership, mount)?)?,
    };
    usage.at = clock::now();
    usage.networks = traffic(&fs::read_to_string(format!("/proc/{pid}/net/dev"))?);
    let (host_ns, online) = host(&fs::read_to_string("/proc/stat")?);
    usage.cpu.host_ns = host_ns;
    usage.cpu.online = online;
    let total = host_memory(&fs::read_to_string("/proc/meminfo")?);
    usage.memory.limit = usage.memory.limit.min(total);
    Ok(usage)
}

/// The kernel's ticks in `/proc/stat` and `cpuacct.stat` (`USER_HZ`, 100 on every Linux since 2.6).
const TICK_NS: u64 = 10_000_000;

/// Time of all processors, and how many there are (proc(5), `/proc/stat`).
fn host(stat: &str) -> (u64, u32) {
    let mut total = 0_u64;
    let mut online = 0;
    for line in stat.lines() {
        let Some(rest) = line.strip_prefix("cpu") else { break };
        match rest.strip_prefix(' ') {
            // Guest time is in user time already.
            Some(all) => total = all.split_whitespace().take(8).filter_map(|n| n.parse::<u64>().ok()).sum(),
            None => online += 1,
        }
    }
    (total.saturating_mul(TICK_NS), online)
}

fn host_memory(meminfo: &str) -> u64 {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kib = line.and_then(|line| line.trim().trim_end_matches("kB").trim().parse::<u64>().ok());
    kib.map_or(u64::MAX, |kib| kib.saturating_mul(1024))
}

/// Traffic by interface, without loopback (proc(5), `/proc/net/dev`).
fn traffic(dev: &str) -> BTreeMap<String, Traffic> {
    let interface = |line: &str| {
        let (name, counters) = line.split_once(':')?;
        let n: Vec<u64> = counters.split_whitespace().filter_map(|n| n.parse().ok()).collect();
        let traffic =
            Traffic { received: n.get(..4)?.try_into().ok()?, sent: n.get(8..12)?.try_into().ok()? };
        Some((name.trim().to_owned(), traffic))
    };
    dev.lines().skip(2).filter_map(interface).filter(|(name, _)| name != "lo").collect()
}

/// A file with one number; 0 where it is not there, the largest number where it says `max`.
fn number(path: PathBuf) -> u64 {
    let text = fs::read_to_string(path).unwrap_or_default();
    match text.trim() {
        "max" => u64::MAX,
        text => text.parse().unwrap_or_default(),
    }
}

/// A file of `name number` lines.
fn table(path: PathBuf) -> BTreeMap<String, u64> {
    let text = fs::read_to_string(path).unwrap_or_default();
    let pair = |line: &str| {
        let (name, number) = line.split_once(' ')?;
        Some((name.to_owned(), number.trim().parse().ok()?))
    };
    text.lines().filter_map(pair).collect()
}

/// The numbers of a device, `8:0`.
fn device(text: &str) -> Option<(u64, u64)> {
    let (major, minor) = text.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_files_are_read() {
        assert_eq!(host("cpu  1 2 3 4 5 6 7 8 9 10\ncpu0 1 1\ncpu1 1 1\nintr 5\n"), (36 * TICK_NS, 2));
        assert_eq!(host_memory("MemTotal:       2048 kB\n"), 2 << 20);
        let dev = "Inter-| Receive | Transmit\n face |bytes |bytes\n    lo: 9 9 0 0 0 0 0 0 9 9 0 0 0 0 0 0\n  \
                   eth0: 100 2 3 4 0 0 0 0 200 6 7 8 0 0 0 0\n";
        let found = traffic(dev);
        assert_eq!(found.len(), 1);
        assert_eq!((found["eth0"].received, found["eth0"].sent), ([100, 2, 3, 4], [200, 6, 7, 8]));
    }

    #[test]
    fn this_process_uses_something() {
        let usage = read(std::process::id(), Path::new("/sys/fs/cgroup")).unwrap();
        assert!(usage.cpu.online > 0 && usage.cpu.host_ns > 0 && usage.at.0 > 0);
    }
}
