//! Task cgroups on a host with cgroup v2 and systemd: directories of our own and systemd's slices.
//!
//! No part of the normal test run: `make test-vm` has such a host and runs it there, as root.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on panics")]

use std::fs;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use berth_agent::cgroup::cgroupfs::{Cgroupfs, CgroupfsConfig};
use berth_agent::cgroup::driver::Hierarchy;
use berth_agent::cgroup::systemd::{Systemd, SystemdConfig};
use berth_agent::cgroup::{Bounds, Cgroups, mounted};
use berth_core::ids::TaskArn;
use berth_core::units::{CpuUnits, Mebibytes, Millis};
use futures_util::FutureExt;

const MOUNT: &str = "/sys/fs/cgroup";

fn task(number: u32) -> TaskArn {
    let id = format!("{:08x}{number:024x}", std::process::id());
    TaskArn::new(format!("arn:aws:ecs:eu-west-1:123456789012:task/test/{id}")).unwrap()
}

fn read(path: &Path, file: &str) -> String {
    fs::read_to_string(path.join(file)).unwrap().trim().to_owned()
}

fn sleeper() -> Child {
    Command::new("sleep").arg("600").spawn().unwrap()
}

/// What both drivers must do. `place` is where the task's cgroup is expected.
async fn lives(cgroups: &dyn Cgroups, task: &TaskArn, place: PathBuf, parent: &str, quota: &str) {
    assert_eq!(mounted(MOUNT.as_ref()), Some(Hierarchy::V2), "a host with cgroup v2 is needed");
    let outcome = AssertUnwindSafe(async {
        let bounds =
            Bounds { cpu: Some(CpuUnits(512)), cpu_shares: 2, memory: Some(Mebibytes(64)), pids: Some(100) };
        let begun = Instant::now();
        assert_eq!(cgroups.create(task, bounds).await.unwrap().as_deref(), Some(parent));
        println!("{parent}: create {:?}", begun.elapsed());
        assert_eq!(read(&place, "memory.max"), (64 << 20).to_string());
        assert_eq!(read(&place, "pids.max"), "100");
        assert!(read(&place, "cpu.max").starts_with("max "));
        let begun = Instant::now();
        cgroups.bound(task, CpuUnits(512)).await.unwrap();
        println!("{parent}: bound {:?}", begun.elapsed());
        assert_eq!(read(&place, "cpu.max"), quota);
        // Again, with another weight in place of the quota.
        cgroups.create(task, bounds).await.unwrap();
        let weighed = Bounds { cpu: None, cpu_shares: 1024, ..bounds };
        cgroups.create(task, weighed).await.unwrap();
        assert_eq!(read(&place, "cpu.weight"), "39");
        assert!(cgroups.list().await.unwrap().iter().any(|id| id == task.id()));

        let mut child = sleeper();
        let inner = place.join("container");
        fs::create_dir_all(&inner).unwrap();
        fs::write(inner.join("cgroup.procs"), child.id().to_string()).unwrap();
        cgroups.kill(task).await.unwrap();
        tokio::task::spawn_blocking(move || child.wait().unwrap()).await.unwrap();
        let begun = Instant::now();
        cgroups.remove(task).await.unwrap();
        println!("{parent}: remove {:?}", begun.elapsed());
        assert!(!place.exists());
        for _ in 0..50 {
            if !cgroups.list().await.unwrap().iter().any(|id| id == task.id()) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert!(!cgroups.list().await.unwrap().iter().any(|id| id == task.id()));
        cgroups.remove(task).await.unwrap();
        cgroups.kill(task).await.unwrap();
        assert!(cgroups.bound(task, CpuUnits(512)).await.is_err(), "there is nothing to bound");
    })
    .catch_unwind()
    .await;
    let _ = cgroups.kill(task).await;
    let _ = cgroups.remove(task).await;
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}

/// A slice under the engine: its containers are bounded by it, and go with it.
async fn with_engine(parent: &str, container: &str) {
    let run = Command::new("docker")
        .args(["run", "-d", "--name", container, "--cgroup-parent", parent, "busybox:local", "sleep", "600"])
        .output();
    let run = tokio::task::spawn_blocking(move || run.unwrap()).await.unwrap();
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
}

#[tokio::test]
async fn directories_of_our_own() {
    let root = format!("berth-test-{}", std::process::id());
    let config = CgroupfsConfig { root: root.clone(), period: Millis(50), ..CgroupfsConfig::default() };
    let cgroups = Cgroupfs::new(config, Hierarchy::V2);
    let task = task(1);
    let place = Path::new(MOUNT).join(&root).join(task.id());
    lives(&cgroups, &task, place, &format!("/{root}/{}", task.id()), "25000 50000").await;
    fs::remove_dir(Path::new(MOUNT).join(root)).unwrap();
}

#[tokio::test]
async fn slices_of_systemd() {
    let cgroups = Systemd::new(SystemdConfig::default(), Hierarchy::V2);
    let task = task(2);
    let unit = format!("ecstasks-{}.slice", task.id());
    let place = Path::new(MOUNT).join("ecstasks.slice").join(&unit);
    lives(&cgroups, &task, place, &unit, "50000 100000").await;
}

/// What the kernel killed for want of memory is counted for the task, also when the container's own
/// cgroup is gone.
#[tokio::test]
async fn memory_kills_are_counted_in_the_tasks_cgroup() {
    let cgroups = Systemd::new(SystemdConfig::default(), Hierarchy::V2);
    let task = task(4);
    let bounds = Bounds { memory: Some(Mebibytes(64)), cpu_shares: 2, ..Bounds::default() };
    let parent = cgroups.create(&task, bounds).await.unwrap().unwrap();
    assert_eq!(cgroups.memory(&task).await.kills, Some(0));
    let name = format!("berth-test-oom-{}", std::process::id());
    let arguments = ["run", "--rm", "--name", &name, "--memory", "16m", "--memory-swap", "16m"];
    let hungry = ["busybox:local", "sh", "-c", "x=x; while true; do x=$x$x; done"];
    let run = Command::new("docker")
        .args(arguments)
        .args(["--cgroup-parent", &parent])
        .args(hungry)
        .output()
        .unwrap();
    assert_eq!(run.status.code(), Some(137), "{run:?}");
    let past = cgroups.memory(&task).await;
    // Debian 12 has Linux 6.1, which remembers the peak: at least what one container had.
    assert!(past.kills > Some(0) && past.peak_bytes > Some(8 << 20), "{past:?}");
    cgroups.remove(&task).await.unwrap();
    assert_eq!(cgroups.memory(&task).await, berth_agent::cgroup::MemoryPast::default());
}

#[tokio::test]
async fn a_container_lives_and_dies_in_its_slice() {
    let cgroups = Systemd::new(SystemdConfig::default(), Hierarchy::V2);
    let task = task(3);
    let bounds = Bounds { memory: Some(Mebibytes(64)), cpu_shares: 2, ..Bounds::default() };
    let parent = cgroups.create(&task, bounds).await.unwrap().unwrap();
    let name = format!("berth-test-{}", std::process::id());
    with_engine(&parent, &name).await;
    let place = Path::new(MOUNT).join("ecstasks.slice").join(&parent);
    let scopes = fs::read_dir(&place).unwrap().flatten().filter(|entry| entry.path().is_dir()).count();
    assert_eq!(scopes, 1, "the container's scope is in the slice");
    cgroups.kill(&task).await.unwrap();
    let waited = Command::new("docker").args(["wait", &name]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&waited.stdout).trim(), "137");
    Command::new("docker").args(["rm", &name]).output().unwrap();
    cgroups.remove(&task).await.unwrap();
    assert!(!place.exists());
}
