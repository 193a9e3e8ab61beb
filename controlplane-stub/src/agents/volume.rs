//! Volumes in the protocol's words.

use berth_core::spec::{EngineVolume, MountPoint, Volume, VolumeSource, VolumesFrom};
use berth_proto::v1;
use berth_proto::v1::volume::Source;

/// A volume of a task for the wire.
pub(super) fn volume(volume: &Volume) -> v1::Volume {
    let (source, autoprovision) = match &volume.source {
        VolumeSource::Host { path } => (Source::HostPath(path.clone()), false),
        VolumeSource::Task(made) => (Source::Task(engine_volume(made)), false),
        VolumeSource::Shared { volume, autoprovision } => {
            (Source::Shared(engine_volume(volume)), *autoprovision)
        }
    };
    v1::Volume { name: volume.name.clone(), autoprovision, source: Some(source) }
}

fn engine_volume(volume: &EngineVolume) -> v1::EngineVolume {
    v1::EngineVolume {
        driver: volume.driver.clone().unwrap_or_default(),
        options: volume.options.clone().into_iter().collect(),
        labels: volume.labels.clone().into_iter().collect(),
    }
}

/// A mount point for the wire.
pub(super) fn mount_point(mount: &MountPoint) -> v1::MountPoint {
    v1::MountPoint {
        volume: mount.volume.clone(),
        container_path: mount.path.clone(),
        read_only: mount.read_only,
    }
}

/// An entry of `volumesFrom` for the wire.
pub(super) fn volumes_from(from: &VolumesFrom) -> v1::VolumesFrom {
    v1::VolumesFrom { container: from.container.to_string(), read_only: from.read_only }
}
