//! Volumes: where a container has them, whether one is there, and its removal.

use berth_core::spec::{MountPoint, VolumeSource};
use bollard::models::{Mount, MountType, MountVolumeOptions, MountVolumeOptionsDriverConfig};
use bollard::query_parameters::RemoveVolumeOptions;

use super::client::{CallError, Connector};
use super::create::map;
use crate::runtime::{CreateRequest, HostMount, RuntimeError, labels};

/// Folders of the host in the container.
pub(super) fn binds(request: &CreateRequest) -> impl Iterator<Item = String> {
    let own = mounted(request).filter_map(|(mount, source)| bind(mount, source));
    own.chain(request.host_mounts.iter().filter(|mount| mount.relabel).map(relabelled))
}

/// Volumes of the engine in the container, and what is the agent's.
pub(super) fn mounts(request: &CreateRequest) -> impl Iterator<Item = Mount> {
    let of_agent = request.host_mounts.iter().filter(|mount| !mount.relabel).map(host_mount);
    mounted(request).filter_map(|(mount, source)| engine_mount(request, mount, source)).chain(of_agent)
}

/// In this form the engine makes nothing that is not there, also when somebody starts the container
/// again after its task.
fn host_mount(mount: &HostMount) -> Mount {
    Mount {
        typ: Some(MountType::BIND),
        source: Some(mount.host_path.clone()),
        target: Some(mount.path.clone()),
        read_only: Some(mount.read_only),
        ..Mount::default()
    }
}

/// Each mount point, with where its data are. The specification was checked: each has a volume.
fn mounted(request: &CreateRequest) -> impl Iterator<Item = (&MountPoint, &VolumeSource)> {
    request.spec().mount_points.iter().filter_map(|mount| {
        let volume = request.task.volumes.iter().find(|volume| volume.name == mount.volume)?;
        Some((mount, &volume.source))
    })
}

/// A folder of the host. In this form the engine makes one that is not there, as ECS has it.
fn bind(mount: &MountPoint, source: &VolumeSource) -> Option<String> {
    let VolumeSource::Host { path } = source else { return None };
    Some(format!("{path}:{}:{}", mount.path, if mount.read_only { "ro" } else { "rw" }))
}

/// A mount in the one form in which the engine gives it a label. Its path has no colon.
fn relabelled(mount: &HostMount) -> String {
    format!("{}:{}:{}", mount.host_path, mount.path, if mount.read_only { "ro,Z" } else { "rw,Z" })
}

/// A volume of the engine, which it makes where it is not there.
fn engine_mount(request: &CreateRequest, mount: &MountPoint, source: &VolumeSource) -> Option<Mount> {
    let (VolumeSource::Task(made) | VolumeSource::Shared { volume: made, .. }) = source else { return None };
    let mut labelled = made.labels.clone();
    if matches!(source, VolumeSource::Task(_)) {
        labelled.insert(labels::TASK_ARN.to_owned(), request.task.arn.to_string());
    }
    let driver =
        (made.driver.is_some() || !made.options.is_empty()).then(|| MountVolumeOptionsDriverConfig {
            name: made.driver.clone().or_else(|| Some("local".to_owned())),
            options: map(made.options.clone()),
        });
    Some(Mount {
        typ: Some(MountType::VOLUME),
        source: request.volumes.get(&mount.volume).cloned(),
        target: Some(mount.path.clone()),
        read_only: Some(mount.read_only),
        volume_options: Some(MountVolumeOptions {
            labels: map(labelled),
            driver_config: driver,
            ..MountVolumeOptions::default()
        }),
        ..Mount::default()
    })
}

/// Sees to it that the volumes are there which the container mounts and nobody makes.
///
/// # Errors
/// [`RuntimeError::Refused`] naming the one that is not there.
pub(super) async fn must_be_there(
    connector: &Connector,
    request: &CreateRequest,
) -> Result<(), RuntimeError> {
    for (mount, source) in mounted(request) {
        let VolumeSource::Shared { autoprovision: false, .. } = source else { continue };
        let link = connector.link().await?;
        match link.api.inspect_volume(&mount.volume).await.map_err(CallError::from) {
            Ok(_) => {}
            Err(CallError::Answer(answer)) if answer.status == 404 => {
                return Err(RuntimeError::Refused(format!(
                    "there is no volume {}: make it with `docker volume create`, or set autoprovision",
                    mount.volume
                )));
            }
            Err(error) => return Err(connector.failed(&link, error).await),
        }
    }
    Ok(())
}

/// Removes a volume, unless a container still has it; one that is not there is removed already.
///
/// # Errors
/// [`RuntimeError`] when the engine does not answer, or the volume's driver refuses.
pub(super) async fn remove(connector: &Connector, name: &str) -> Result<(), RuntimeError> {
    let link = connector.link().await?;
    match link.api.remove_volume(name, None::<RemoveVolumeOptions>).await.map_err(CallError::from) {
        Ok(()) => Ok(()),
        Err(CallError::Answer(answer)) if answer.status == 404 || answer.status == 409 => Ok(()),
        Err(error) => Err(connector.failed(&link, error).await),
    }
}
