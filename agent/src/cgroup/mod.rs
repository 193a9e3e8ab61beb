//! The cgroup of a task: what a task may use, in the kernel. The port that every adapter fulfils.
//!
//! The memory bound is in force before a container exists in the cgroup. The CPU bound comes
//! after the containers have started: the engine's own start-up work runs inside the cgroup, and
//! a small quota would stretch a launch of 100 ms to seconds.

pub mod cgroupfs;
pub mod driver;
pub mod fake;
pub mod off;
pub mod systemd;
mod tree;

pub use tree::mounted;

use berth_core::ids::TaskArn;
use berth_core::units::{CpuUnits, Mebibytes};
use futures_util::future::BoxFuture;

/// What a task's cgroup enforces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Bounds {
    /// Hard CPU bound; the relative weight below holds where absent.
    pub cpu: Option<CpuUnits>,
    /// Relative weight among tasks: the sum over the containers, at least 2 each, at most 262144.
    pub cpu_shares: u64,
    /// Hard memory bound.
    pub memory: Option<Mebibytes>,
    /// Most processes.
    pub pids: Option<u32>,
}

/// The weight of cgroup v2 (1 to 10000) that stands for CPU shares (2 to 262144).
#[must_use]
pub fn weight(shares: u64) -> u64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142
}

/// What went wrong with a task's cgroup.
#[derive(Debug, thiserror::Error)]
#[error("cgroup of task {task}: {what}: {source}")]
pub struct CgroupError {
    /// The task's id.
    pub task: String,
    /// What was tried, with the path or the unit.
    pub what: String,
    /// What the kernel or systemd said.
    #[source]
    pub source: std::io::Error,
}

/// What the kernel remembers of a cgroup's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MemoryPast {
    /// Processes killed for want of memory; `None` where the hierarchy does not count them for a whole tree
    /// (cgroup v1), or the cgroup is not ours.
    pub kills: Option<u64>,
    /// Most bytes that were ever in use; `None` on kernels that do not remember (cgroup v2 before Linux 5.19).
    pub peak_bytes: Option<u64>,
}

/// Makes, bounds and removes the cgroups of tasks. Every call may be repeated.
pub trait Cgroups: Send + Sync + 'static {
    /// Makes the task's cgroup with every bound but the CPU quota; tells what the engine is to be
    /// given as the containers' parent. `None` where task limits are off.
    fn create<'a>(
        &'a self,
        task: &'a TaskArn,
        bounds: Bounds,
    ) -> BoxFuture<'a, Result<Option<String>, CgroupError>>;
    /// Puts the CPU quota in force.
    fn bound<'a>(&'a self, task: &'a TaskArn, cpu: CpuUnits) -> BoxFuture<'a, Result<(), CgroupError>>;
    /// Removes the task's cgroup; one that is not there is removed already.
    fn remove<'a>(&'a self, task: &'a TaskArn) -> BoxFuture<'a, Result<(), CgroupError>>;
    /// Kills every process in the task's cgroup and below.
    fn kill<'a>(&'a self, task: &'a TaskArn) -> BoxFuture<'a, Result<(), CgroupError>>;
    /// The ids of the tasks that have a cgroup of ours, to find what was left over.
    fn list(&self) -> BoxFuture<'_, Result<Vec<String>, CgroupError>>;
    /// What the kernel remembers of the memory of the task's cgroup and below.
    fn memory<'a>(&'a self, task: &'a TaskArn) -> BoxFuture<'a, MemoryPast>;
    /// Removes the cgroup of a task that is known by its id alone.
    fn remove_id<'a>(&'a self, task_id: &'a str) -> BoxFuture<'a, Result<(), CgroupError>>;
    /// Whether tasks are bounded at all.
    fn enabled(&self) -> bool;
}

#[cfg(test)]
mod tests {
    use super::weight;

    #[test]
    fn the_scale_of_shares_maps_onto_the_scale_of_weights() {
        assert_eq!([0, 2, 1024, 262_144, u64::MAX].map(weight), [1, 1, 39, 10_000, 10_000]);
    }
}
