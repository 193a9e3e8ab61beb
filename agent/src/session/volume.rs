//! The door for volumes.

use berth_core::ids::ContainerName;
use berth_core::spec::{EngineVolume, MountPoint, Volume, VolumeSource, VolumesFrom};
use berth_proto::v1;
use berth_proto::v1::volume::Source;

/// Checks a volume of a task.
pub(super) fn volume(message: v1::Volume) -> Result<Volume, String> {
    let source = match message.source {
        None => return Err(format!("volume {:?} says nothing of its data", message.name)),
        Some(Source::HostPath(path)) => VolumeSource::Host { path },
        Some(Source::Task(volume)) => VolumeSource::Task(engine_volume(volume)),
        Some(Source::Shared(volume)) => {
            VolumeSource::Shared { volume: engine_volume(volume), autoprovision: message.autoprovision }
        }
    };
    Ok(Volume { name: message.name, source })
}

fn engine_volume(message: v1::EngineVolume) -> EngineVolume {
    EngineVolume {
        driver: (!message.driver.is_empty()).then_some(message.driver),
        options: message.options.into_iter().collect(),
        labels: message.labels.into_iter().collect(),
    }
}

pub(super) fn mount_point(message: v1::MountPoint) -> MountPoint {
    MountPoint { volume: message.volume, path: message.container_path, read_only: message.read_only }
}

/// Checks an entry of `volumesFrom`.
pub(super) fn volumes_from(message: &v1::VolumesFrom) -> Result<VolumesFrom, String> {
    let container = ContainerName::new(&message.container).map_err(|error| error.to_string())?;
    Ok(VolumesFrom { container, read_only: message.read_only })
}
