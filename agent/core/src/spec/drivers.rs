//! Who else the engine needs for a container beside itself: drivers of volumes and logs, which may be slow,
//! broken or gone.

use super::{ContainerSpec, TaskSpec, VolumeSource};

/// Log drivers that need nobody outside the engine.
const OWN_LOGS: [&str; 4] = ["json-file", "local", "none", "journald"];

impl TaskSpec {
    /// The volumes of a container that need more than the engine, each as `volume data of driver rexray`.
    #[must_use]
    pub fn outside_volumes(&self, container: &ContainerSpec) -> Vec<String> {
        let of_others = container.volumes_from.iter().filter_map(|from| self.container(&from.container));
        let mounts = [container].into_iter().chain(of_others).flat_map(|c| &c.mount_points);
        let mut found: Vec<String> = mounts
            .filter_map(|mount| {
                let volume = self.volumes.iter().find(|volume| volume.name == mount.volume)?;
                let driver = match &volume.source {
                    VolumeSource::Host { .. } => None,
                    VolumeSource::Task(made) | VolumeSource::Shared { volume: made, .. } => made.depends_on(),
                }?;
                Some(format!("volume {} of driver {driver}", volume.name))
            })
            .collect();
        found.sort();
        found.dedup();
        found
    }

    /// All that a container needs of others than the engine, for people; empty when that is nothing.
    #[must_use]
    pub fn outside_needs(&self, container: &ContainerSpec) -> String {
        let mut needs = self.outside_volumes(container);
        needs.extend(container.outside_log());
        needs.join(", ")
    }
}

impl ContainerSpec {
    /// The log driver, where it needs more than the engine, as `log driver fluentd`.
    #[must_use]
    pub fn outside_log(&self) -> Option<String> {
        let driver = &self.log.as_ref()?.driver;
        (!OWN_LOGS.contains(&driver.as_str())).then(|| format!("log driver {driver}"))
    }
}
