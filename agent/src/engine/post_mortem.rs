//! Completes what the container engine tells of a container's end: whether the kernel killed it for
//! want of memory, and whether the engine took it along. Engines learn the one from a notice that can
//! come after the container's death, or, on a busy host, not at all; the task's cgroup keeps the count.
//! Of the other they say nothing.

use berth_core::spec::TaskSpec;
use berth_core::task::Fact;

use super::Shared;

/// The exit code of a program that SIGKILL ended: 128 + 9.
const KILLED: i32 = 137;

/// The fact, with the kernel's word where the engine has none.
///
/// The kernel's count is the whole task's. So a container killed by somebody else's SIGKILL after
/// another of the same task ran out of memory is taken for one more of these.
pub(super) async fn complete(shared: &Shared, spec: &TaskSpec, mut fact: Fact) -> Fact {
    if let Fact::Exited { exit, .. } = &mut fact {
        exit.with_engine = match exit.finished_at {
            Some(at) => shared.outages.took(at).await,
            None => false,
        };
    }
    if let Fact::Exited { exit, .. } = &mut fact
        && (exit.code == KILLED || exit.oom_killed)
    {
        let past = shared.cgroups.memory(&spec.arn).await;
        exit.oom_killed |= past.kills.is_some_and(|kills| kills > 0);
        // The container's own cgroup has gone with it.
        exit.task_memory_peak = past.peak_bytes.filter(|_| exit.oom_killed);
    }
    fact
}
