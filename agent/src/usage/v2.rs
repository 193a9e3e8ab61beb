//! Counters of cgroup v2: one hierarchy (kernel documentation, `admin-guide/cgroup-v2`).

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::{Block, Cpu, Memory, Pids, Usage, device, number, table};

/// Where the counters of a process's cgroup are.
pub(super) fn path(membership: &str, mount: &Path) -> io::Result<PathBuf> {
    let path = membership.lines().find_map(|line| line.strip_prefix("0::"));
    let path = path.ok_or_else(|| io::Error::other("the process is in no cgroup"))?;
    Ok(mount.join(path.trim_start_matches('/')))
}

pub(super) fn read(path: &Path) -> io::Result<Usage> {
    fs::metadata(path)?;
    let cpu = table(path.join("cpu.stat"));
    let events = table(path.join("memory.events"));
    let of = |table: &BTreeMap<String, u64>, name: &str| table.get(name).copied().unwrap_or_default();
    let nanoseconds = |name: &str| of(&cpu, name).saturating_mul(1000);
    Ok(Usage {
        cpu: Cpu {
            total_ns: nanoseconds("usage_usec"),
            user_ns: nanoseconds("user_usec"),
            system_ns: nanoseconds("system_usec"),
            periods: of(&cpu, "nr_periods"),
            throttled_periods: of(&cpu, "nr_throttled"),
            throttled_ns: nanoseconds("throttled_usec"),
            ..Cpu::default()
        },
        memory: Memory {
            usage: number(path.join("memory.current")),
            peak: number(path.join("memory.peak")),
            limit: number(path.join("memory.max")),
            failures: of(&events, "max"),
            detail: table(path.join("memory.stat")),
        },
        pids: Pids {
            current: number(path.join("pids.current")),
            limit: Some(number(path.join("pids.max"))).filter(|limit| *limit != u64::MAX),
        },
        block: block(&fs::read_to_string(path.join("io.stat")).unwrap_or_default()),
        ..Usage::default()
    })
}

/// `8:0 rbytes=4096 wbytes=8192 …`, a line for each device.
fn block(text: &str) -> Vec<Block> {
    let mut found = Vec::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let Some(device) = words.next().and_then(device) else { continue };
        for (word, operation) in words.filter_map(|word| word.split_once('=')).filter_map(|(name, bytes)| {
            let operation = match name {
                "rbytes" => "read",
                "wbytes" => "write",
                _ => return None,
            };
            Some((bytes, operation))
        }) {
            found.extend(word.parse().ok().map(|bytes| Block { device, operation, bytes }));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_read_by_device() {
        let found = block("8:16 rbytes=1459200 wbytes=314773504 rios=192 wios=353\n");
        assert_eq!(found.len(), 2);
        assert_eq!((found[0].device, found[0].operation, found[0].bytes), ((8, 16), "read", 1_459_200));
    }

    #[test]
    fn a_cgroup_is_below_the_mount() {
        assert_eq!(path("0::/a/b\n", Path::new("/cg")).unwrap(), Path::new("/cg/a/b"));
        assert!(path("", Path::new("/cg")).is_err());
    }
}
