//! Counters of cgroup v1: a hierarchy for each controller (kernel documentation,
//! `admin-guide/cgroup-v1`).

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::{Block, Cpu, Memory, Pids, TICK_NS, Usage, device, number, table};

/// A limit of this and more is none.
const NO_LIMIT: u64 = 1 << 62;

/// Where the counters of one container are.
pub(super) struct Paths {
    cpuacct: PathBuf,
    cpu: PathBuf,
    memory: PathBuf,
    pids: PathBuf,
    blkio: PathBuf,
}

impl Paths {
    /// `None` where the memory controller is not one of v1.
    pub(super) fn of(membership: &str, mount: &Path) -> Option<Self> {
        let of = |controller: &str| {
            let path = membership.lines().find_map(|line| {
                let (_, rest) = line.split_once(':')?;
                let (controllers, path) = rest.split_once(':')?;
                controllers.split(',').any(|name| name == controller).then_some(path)
            });
            path.map(|path| mount.join(controller).join(path.trim_start_matches('/')))
        };
        let memory = of("memory")?;
        let or = |controller: &str| of(controller).unwrap_or_default();
        Some(Self { cpuacct: or("cpuacct"), cpu: or("cpu"), pids: or("pids"), blkio: or("blkio"), memory })
    }
}

pub(super) fn read(paths: &Paths) -> io::Result<Usage> {
    fs::metadata(&paths.memory)?;
    let ticks = table(paths.cpuacct.join("cpuacct.stat"));
    let bound = table(paths.cpu.join("cpu.stat"));
    let of = |table: &std::collections::BTreeMap<String, u64>, name: &str| {
        table.get(name).copied().unwrap_or_default()
    };
    let per_cpu = fs::read_to_string(paths.cpuacct.join("cpuacct.usage_percpu")).unwrap_or_default();
    let memory_limit = number(paths.memory.join("memory.limit_in_bytes"));
    Ok(Usage {
        cpu: Cpu {
            total_ns: number(paths.cpuacct.join("cpuacct.usage")),
            user_ns: of(&ticks, "user").saturating_mul(TICK_NS),
            system_ns: of(&ticks, "system").saturating_mul(TICK_NS),
            per_cpu_ns: per_cpu.split_whitespace().filter_map(|n| n.parse().ok()).collect(),
            periods: of(&bound, "nr_periods"),
            throttled_periods: of(&bound, "nr_throttled"),
            throttled_ns: of(&bound, "throttled_time"),
            ..Cpu::default()
        },
        memory: Memory {
            usage: number(paths.memory.join("memory.usage_in_bytes")),
            peak: number(paths.memory.join("memory.max_usage_in_bytes")),
            limit: if memory_limit >= NO_LIMIT { u64::MAX } else { memory_limit },
            failures: number(paths.memory.join("memory.failcnt")),
            detail: table(paths.memory.join("memory.stat")),
        },
        pids: Pids {
            current: number(paths.pids.join("pids.current")),
            limit: Some(number(paths.pids.join("pids.max"))).filter(|limit| *limit != u64::MAX),
        },
        block: block(
            &fs::read_to_string(paths.blkio.join("blkio.throttle.io_service_bytes_recursive"))
                .unwrap_or_default(),
        ),
        ..Usage::default()
    })
}

/// `8:0 Read 4096`, a line for each device and operation.
fn block(text: &str) -> Vec<Block> {
    let line = |line: &str| {
        let mut words = line.split_whitespace();
        let device = device(words.next()?)?;
        let operation = match words.next()? {
            "Read" => "read",
            "Write" => "write",
            _ => return None,
        };
        Some(Block { device, operation, bytes: words.next()?.parse().ok()? })
    };
    text.lines().filter_map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_controller_has_its_own_place() {
        let membership = "5:cpu,cpuacct:/ecs/t/c\n4:memory:/ecs/t/c\n0::/ecs/t/c\n";
        let paths = Paths::of(membership, Path::new("/cg")).unwrap();
        assert_eq!(paths.memory, Path::new("/cg/memory/ecs/t/c"));
        assert_eq!(paths.cpuacct, Path::new("/cg/cpuacct/ecs/t/c"));
        assert!(Paths::of("0::/ecs/t/c\n", Path::new("/cg")).is_none());
    }

    #[test]
    fn bytes_are_read_by_device() {
        let found = block("8:0 Read 4096\n8:0 Write 8192\n8:0 Sync 0\nTotal 12288\n");
        assert_eq!(found.len(), 2);
        assert_eq!((found[1].device, found[1].operation, found[1].bytes), ((8, 0), "write", 8192));
    }
}
