//! Volumes, and where containers have them.

use berth_core::ids::ContainerName;
use berth_core::spec::{EngineVolume, MountPoint, Volume, VolumeSource, VolumesFrom};

use super::invalid_id;
use crate::api::error::ApiResult;
use crate::api::task_definition::input;

/// A volume of the task. What kinds an instance must know for it, the definition requires.
pub(super) fn volume(volume: &input::Volume) -> Volume {
    let path = volume.host.as_ref().and_then(|host| host.source_path.clone()).filter(|path| !path.is_empty());
    let source = match (&volume.docker_volume_configuration, path) {
        (Some(docker), _) => {
            let made = EngineVolume {
                driver: docker.driver.clone().filter(|driver| !driver.is_empty()),
                options: docker.driver_opts.clone(),
                labels: docker.labels.clone(),
            };
            // ECS's default is the task.
            if docker.scope.as_deref() == Some("shared") {
                VolumeSource::Shared { volume: made, autoprovision: docker.autoprovision }
            } else {
                VolumeSource::Task(made)
            }
        }
        (None, Some(path)) => VolumeSource::Host { path },
        (None, None) => VolumeSource::Task(EngineVolume::default()),
    };
    Volume { name: volume.name.clone(), source }
}

/// A mount point.
pub(super) fn mount_point(mount: &input::MountPoint) -> MountPoint {
    MountPoint {
        volume: mount.source_volume.clone(),
        path: mount.container_path.clone(),
        read_only: mount.read_only,
    }
}

/// An entry of `volumesFrom`.
///
/// # Errors
/// `InvalidParameterException` when it names no container.
pub(super) fn volumes_from(from: &input::VolumeFrom) -> ApiResult<VolumesFrom> {
    let container = ContainerName::new(&from.source_container).map_err(|error| invalid_id(&error))?;
    Ok(VolumesFrom { container, read_only: from.read_only })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn source(value: Value) -> VolumeSource {
        volume(&serde_json::from_value(value).unwrap()).source
    }

    #[test]
    fn a_volume_is_of_the_host_of_the_task_or_shared() {
        let bound = source(json!({"name": "v", "host": {"sourcePath": "/srv"}}));
        assert_eq!(bound, VolumeSource::Host { path: "/srv".to_owned() });
        for own in [
            json!({"name": "v"}),
            json!({"name": "v", "host": {}}),
            json!({"name": "v", "host": {"sourcePath": ""}}),
        ] {
            assert_eq!(source(own), VolumeSource::Task(EngineVolume::default()));
        }
        let shared = json!({"name": "v", "dockerVolumeConfiguration": {
            "scope": "shared", "autoprovision": true, "driver": "local", "driverOpts": {"type": "nfs"}}});
        let VolumeSource::Shared { volume, autoprovision: true } = source(shared) else {
            panic!("it is shared")
        };
        assert_eq!((volume.driver.as_deref(), volume.options["type"].as_str()), (Some("local"), "nfs"));
    }
}
