//! Data that outlives a container, or that containers share: ECS's `volumes`, `mountPoints` and
//! `volumesFrom`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::ids::ContainerName;

/// A volume of a task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// What mount points call it.
    pub name: String,
    /// Where its data are.
    pub source: VolumeSource,
}

/// Where the data of a volume are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VolumeSource {
    /// In a folder of the host.
    Host {
        /// Its path.
        path: String,
    },
    /// In a volume of the engine that is made for the task and removed with its containers.
    Task(EngineVolume),
    /// In a volume of the engine of the same name, which outlives the task.
    Shared {
        /// How it is made.
        volume: EngineVolume,
        /// Whether it is made where it is not there.
        autoprovision: bool,
    },
}

/// How the engine makes a volume.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct EngineVolume {
    /// The driver; the engine's own where absent.
    pub driver: Option<String>,
    /// Options of the driver.
    pub options: BTreeMap<String, String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
}

impl EngineVolume {
    /// Whose word the engine needs for it: that of a driver which is not its own, or of whatever the options of
    /// its own driver name, such as a server.
    #[must_use]
    pub fn depends_on(&self) -> Option<&str> {
        let driver = self.driver.as_deref().unwrap_or("local");
        (driver != "local" || !self.options.is_empty()).then_some(driver)
    }
}

/// A volume in a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountPoint {
    /// The volume, by its name in the task.
    pub volume: String,
    /// Where it is in the container.
    pub path: String,
    /// Whether the container may not write.
    pub read_only: bool,
}

/// All mount points of another container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumesFrom {
    /// The other container.
    pub container: ContainerName,
    /// Whether this one may not write there.
    pub read_only: bool,
}
