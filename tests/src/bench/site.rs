//! The names of all that a benchmark makes, and its removal.
//!
//! Every cluster's name begins with `berth-test-<process id>-`, by which tests/scripts/sweep.sh knows
//! what a killed benchmark left behind.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::Result;
use serde_json::{Value, json};

use super::raw::Raw;

/// The host as one benchmark uses it.
#[derive(Debug, Clone)]
pub struct Site {
    /// The engine.
    pub raw: Raw,
    prefix: String,
}

/// Where one container of the floor is.
#[derive(Debug, Clone)]
pub struct Place {
    /// The ARN of the task that it would belong to.
    pub task_arn: String,
    /// Its cgroup's parent, as the agent would choose it.
    pub cgroup_parent: String,
}

impl Site {
    /// A place for this process.
    ///
    /// # Errors
    /// When the engine is not on a unix socket.
    pub fn new() -> Result<Self> {
        Ok(Self { raw: Raw::new()?, prefix: format!("berth-test-{}-", std::process::id()) })
    }

    /// A name for a cluster that nobody else has.
    #[must_use]
    pub fn cluster(&self, what: &str) -> String {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        format!("{}{what}{}", self.prefix, COUNT.fetch_add(1, Ordering::Relaxed))
    }

    /// A place for a container that no agent knows of.
    #[must_use]
    pub fn place(&self) -> Place {
        let cluster = format!("{}raw", self.prefix);
        let id = new_id();
        Place { cgroup_parent: format!("/{cluster}/{id}"), task_arn: task_arn(&cluster, &id) }
    }

    /// Removes all containers of the clusters whose name begins so, and their cgroups.
    ///
    /// # Errors
    /// What the engine says.
    pub async fn clear(&self, cluster: &str) -> Result<()> {
        let within = format!(":task/{cluster}");
        let ids: Vec<String> = self
            .raw
            .tasks()
            .await?
            .into_iter()
            .filter(|(_, arn)| arn.contains(&within))
            .map(|c| c.0)
            .collect();
        self.raw.remove_all(&ids).await?;
        let base = Path::new("/sys/fs/cgroup");
        for hierarchy in folders(base).into_iter().chain([base.to_owned()]) {
            for folder in folders(&hierarchy) {
                if folder.file_name().is_some_and(|name| name.to_string_lossy().starts_with(cluster)) {
                    remove_tree(&folder);
                }
            }
        }
        Ok(())
    }

    /// Removes everything that this process made.
    ///
    /// # Errors
    /// What the engine says.
    pub async fn clear_all(&self) -> Result<()> {
        self.clear(&self.prefix).await
    }

    /// What the agent asks the engine for, for a task of [`scripted::task`](super::scripted::task).
    #[must_use]
    pub fn body(&self, mode: &str, place: &Place) -> Value {
        json!({
            "Image": crate::demo::IMAGE,
            "Cmd": COMMAND,
            "Env": [],
            "Labels": {
                crate::engine::TASK_ARN: place.task_arn,
                crate::engine::CONTAINER_NAME: "one",
                "com.amazonaws.ecs.task-definition-family": "bench",
                "com.amazonaws.ecs.task-definition-version": "1",
            },
            "HostConfig": {
                "NetworkMode": mode,
                "CgroupParent": place.cgroup_parent,
                "CpuShares": 2,
                "Memory": u64::from(MEMORY_MIB) << 20,
            },
        })
    }
}

/// The command of every container.
pub const COMMAND: [&str; 2] = ["sleep", "36000"];
/// The memory of every container.
pub const MEMORY_MIB: u32 = 32;

/// The ARN of a task.
#[must_use]
pub fn task_arn(cluster: &str, id: &str) -> String {
    format!("arn:aws:ecs:us-east-1:123456789012:task/{cluster}/{id}")
}

/// A fresh id of 32 hex digits.
#[must_use]
pub fn new_id() -> String {
    uuid::Uuid::new_v4().simple().to_string()
}

fn folders(of: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(of).into_iter().flatten().flatten();
    entries.filter(|e| e.file_type().is_ok_and(|kind| kind.is_dir())).map(|e| e.path()).collect()
}

/// Best effort: a cgroup that still has a process stays, and the sweep gets it.
fn remove_tree(folder: &Path) {
    for child in folders(folder) {
        remove_tree(&child);
    }
    if let Err(why) = fs::remove_dir(folder) {
        eprintln!("{} stays: {why}", folder.display());
    }
}
