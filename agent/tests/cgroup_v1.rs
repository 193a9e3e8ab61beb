//! Task cgroups on a host with cgroup v1: real directories, real limits, real processes.
//!
//! Needs root and a v1 hierarchy; without them the tests fail: what was not tried does not work.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on panics")]

use std::fs;
use std::future::Future;
use std::io;
use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use berth_agent::cgroup::cgroupfs::{Cgroupfs, CgroupfsConfig};
use berth_agent::cgroup::driver::Hierarchy;
use berth_agent::cgroup::{Bounds, Cgroups, mounted};
use berth_core::ids::TaskArn;
use berth_core::units::{CpuUnits, Mebibytes, Millis};
use futures_util::FutureExt;

const MOUNT: &str = "/sys/fs/cgroup";
const TREES: [&str; 3] = ["memory", "cpu", "pids"];

static COUNTER: AtomicU64 = AtomicU64::new(0);

/// A cgroup root of the test's own.
struct Rig {
    cgroups: Cgroupfs,
    root: String,
    task: TaskArn,
}

impl Rig {
    fn new() -> Self {
        assert_eq!(mounted(MOUNT.as_ref()), Some(Hierarchy::V1), "a host with cgroup v1 is needed");
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        let root = format!("berth-test-{}-{number}", std::process::id());
        let config = CgroupfsConfig { root: root.clone(), period: Millis(50), ..CgroupfsConfig::default() };
        let arn = format!("arn:aws:ecs:eu-west-1:123456789012:task/test/{number:032x}");
        Self { cgroups: Cgroupfs::new(config, Hierarchy::V1), root, task: TaskArn::new(arn).unwrap() }
    }

    fn path(&self, tree: &str, below: &str) -> PathBuf {
        [MOUNT, tree, &self.root, self.task.id(), below].iter().collect()
    }

    fn read(&self, tree: &str, file: &str) -> String {
        fs::read_to_string(self.path(tree, file)).unwrap().trim().to_owned()
    }

    fn sweep(&self) {
        for tree in fs::read_dir(MOUNT).unwrap() {
            sweep(&tree.unwrap().path().join(&self.root));
        }
    }
}

fn sweep(path: &PathBuf) {
    let Ok(entries) = fs::read_dir(path) else { return };
    for entry in entries.flatten().filter(|entry| entry.path().is_dir()) {
        sweep(&entry.path());
    }
    let _ = fs::remove_dir(path);
}

/// Runs a test, then removes what it made, also when it fails.
async fn with_rig<'a, F: Future<Output = ()> + 'a>(rig: &'a Rig, test: impl FnOnce(&'a Rig) -> F) {
    let outcome = AssertUnwindSafe(test(rig)).catch_unwind().await;
    rig.sweep();
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}

fn sleeper() -> Child {
    Command::new("sleep").arg("600").stdout(Stdio::null()).spawn().unwrap()
}

#[tokio::test]
async fn bounds_are_in_force_but_for_the_quota_which_comes_later() {
    with_rig(&Rig::new(), |rig| async move {
        let bounds =
            Bounds { cpu: Some(CpuUnits(512)), cpu_shares: 77, memory: Some(Mebibytes(64)), pids: Some(100) };
        let parent = rig.cgroups.create(&rig.task, bounds).await.unwrap();
        assert_eq!(parent.unwrap(), format!("/{}/{}", rig.root, rig.task.id()));
        assert_eq!(rig.read("memory", "memory.limit_in_bytes"), (64 << 20).to_string());
        assert_eq!(rig.read("memory", "memory.use_hierarchy"), "1");
        assert_eq!(rig.read("pids", "pids.max"), "100");
        assert_eq!(rig.read("cpu", "cpu.cfs_quota_us"), "-1", "the quota comes after the start");
        assert_eq!(rig.read("cpu", "cpu.shares"), "1024", "a bounded task has no weight of its own");

        rig.cgroups.bound(&rig.task, CpuUnits(512)).await.unwrap();
        assert_eq!(rig.read("cpu", "cpu.cfs_quota_us"), "25000");
        assert_eq!(rig.read("cpu", "cpu.cfs_period_us"), "50000");

        // Both may be repeated, and the quota may be changed.
        rig.cgroups.create(&rig.task, bounds).await.unwrap();
        rig.cgroups.bound(&rig.task, CpuUnits(1024)).await.unwrap();
        assert_eq!(rig.read("cpu", "cpu.cfs_quota_us"), "50000");
        assert_eq!(rig.cgroups.list().await.unwrap(), [rig.task.id()]);

        rig.cgroups.remove(&rig.task).await.unwrap();
        rig.cgroups.remove(&rig.task).await.unwrap();
        assert!(TREES.iter().all(|tree| !rig.path(tree, "").exists()));
        assert!(rig.cgroups.list().await.unwrap().is_empty());
    })
    .await;
}

#[tokio::test]
async fn without_a_quota_the_weight_holds_and_only_what_bounds_is_made() {
    with_rig(&Rig::new(), |rig| async move {
        rig.cgroups.create(&rig.task, Bounds { cpu_shares: 300, ..Bounds::default() }).await.unwrap();
        assert_eq!(rig.read("cpu", "cpu.shares"), "300");
        assert!(!rig.path("pids", "").exists());
        let systemd = rig.path("systemd", "");
        assert!(!systemd.exists(), "the hierarchy of systemd is not ours to touch");
    })
    .await;
}

#[tokio::test]
async fn an_unbounded_task_cannot_be_bounded_before_it_is_made() {
    with_rig(&Rig::new(), |rig| async move {
        let error = rig.cgroups.bound(&rig.task, CpuUnits(512)).await.unwrap_err();
        assert_eq!(error.source.kind(), io::ErrorKind::NotFound);
        assert!(error.to_string().contains(rig.task.id()) && error.to_string().contains("cfs_"), "{error}");
    })
    .await;
}

#[tokio::test]
async fn what_runs_below_is_killed_and_then_removed() {
    with_rig(&Rig::new(), |rig| async move {
        rig.cgroups.create(&rig.task, Bounds { cpu_shares: 2, ..Bounds::default() }).await.unwrap();
        let mut child = sleeper();
        for tree in ["memory", "cpu"] {
            // A container's cgroup, as the engine makes it, and another one inside.
            let inner = rig.path(tree, "container/inner");
            fs::create_dir_all(&inner).unwrap();
            fs::write(inner.join("cgroup.procs"), child.id().to_string()).unwrap();
        }
        let begun = Instant::now();
        let busy = rig.cgroups.remove(&rig.task).await.unwrap_err();
        assert_eq!(busy.source.kind(), io::ErrorKind::ResourceBusy, "{busy}");
        assert!((500..2500).contains(&begun.elapsed().as_millis()), "{:?}", begun.elapsed());

        let reaped = tokio::task::spawn_blocking(move || child.wait().unwrap());
        rig.cgroups.kill(&rig.task).await.unwrap();
        let status = reaped.await.unwrap();
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(9));
        rig.cgroups.kill(&rig.task).await.unwrap();
        rig.cgroups.remove_id(rig.task.id()).await.unwrap();
        assert!(!rig.path("memory", "").exists() && !rig.path("cpu", "").exists());
        rig.cgroups.kill(&rig.task).await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn a_process_that_is_just_going_does_not_spoil_the_removal() {
    with_rig(&Rig::new(), |rig| async move {
        rig.cgroups.create(&rig.task, Bounds { cpu_shares: 2, ..Bounds::default() }).await.unwrap();
        let mut child = sleeper();
        fs::write(rig.path("cpu", "cgroup.procs"), child.id().to_string()).unwrap();
        let going = async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            child.kill().unwrap();
            child.wait().unwrap();
        };
        let (removed, ()) = tokio::join!(rig.cgroups.remove(&rig.task), going);
        removed.unwrap();
    })
    .await;
}

/// Prints what it measures; the bound is wide, for a busy host.
#[tokio::test]
async fn calls_are_quick() {
    with_rig(&Rig::new(), |rig| async move {
        let bounds = Bounds { cpu: None, cpu_shares: 2, memory: Some(Mebibytes(64)), pids: Some(10) };
        let mut times = [const { Vec::new() }; 3];
        for _ in 0..21 {
            let begun = Instant::now();
            rig.cgroups.create(&rig.task, bounds).await.unwrap();
            times[0].push(begun.elapsed());
            let begun = Instant::now();
            rig.cgroups.bound(&rig.task, CpuUnits(512)).await.unwrap();
            times[1].push(begun.elapsed());
            let begun = Instant::now();
            rig.cgroups.remove(&rig.task).await.unwrap();
            times[2].push(begun.elapsed());
        }
        let [create, bound, remove] = times.map(|mut times| {
            times.sort_unstable();
            times[10]
        });
        println!("medians: create {create:?}, bound {bound:?}, remove {remove:?}");
        assert!(create < Duration::from_millis(100), "{create:?}");
    })
    .await;
}

/// The engine makes cgroups of its own below the parent, in trees that we do not touch: they go
/// with the task, too.
#[tokio::test]
async fn a_container_of_the_engine_is_bounded_and_nothing_of_it_is_left() {
    with_rig(&Rig::new(), |rig| async move {
        let docker = |args: &[&str]| {
            let done = Command::new("docker").args(args).output().unwrap();
            assert!(done.status.success(), "docker {args:?}: {}", String::from_utf8_lossy(&done.stderr));
        };
        let bounds =
            Bounds { cpu: Some(CpuUnits(256)), cpu_shares: 2, memory: Some(Mebibytes(24)), pids: None };
        let parent = rig.cgroups.create(&rig.task, bounds).await.unwrap().unwrap();
        let name = rig.root.clone();
        let eater = ["berth-demo:latest", "eat-memory", "64"];
        let run = ["run", "-d", "--network", "none", "--name", &name, "--cgroup-parent", &parent];
        let (created, swept) = (AssertUnwindSafe(async { docker(&[&run[..], &eater].concat()) }), || {
            let _ = Command::new("docker").args(["rm", "-f", "-v", &name]).output();
        });
        if let Err(panic) = created.catch_unwind().await {
            swept();
            std::panic::resume_unwind(panic);
        }
        rig.cgroups.bound(&rig.task, CpuUnits(256)).await.unwrap();
        // The container itself has no limit: it is the task's that it runs into.
        let waited = Command::new("docker").args(["wait", &name]).output().unwrap();
        swept();
        assert_eq!(String::from_utf8_lossy(&waited.stdout).trim(), "137");
        rig.cgroups.remove(&rig.task).await.unwrap();
        for tree in fs::read_dir(MOUNT).unwrap().flatten() {
            let left = tree.path().join(&rig.root).join(rig.task.id());
            assert!(!left.exists(), "{}", left.display());
        }
    })
    .await;
}
