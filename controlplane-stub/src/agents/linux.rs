//! The kernel's side of a container in the protocol's words.

use berth_core::spec::{Device, Firelens, LinuxParameters, LogConfiguration, SecretRef, Sharing, Tmpfs};
use berth_core::units::Mebibytes;
use berth_proto::v1;

/// `linuxParameters` for the wire.
pub(super) fn linux_parameters(linux: &LinuxParameters) -> v1::LinuxParameters {
    let mib = |amount: Option<Mebibytes>| amount.map(|amount| amount.0);
    v1::LinuxParameters {
        add_capabilities: linux.add_capabilities.clone(),
        drop_capabilities: linux.drop_capabilities.clone(),
        devices: linux.devices.iter().map(device).collect(),
        init_process: linux.init_process,
        shared_memory_mib: mib(linux.shared_memory).unwrap_or_default(),
        max_swap_mib: mib(linux.max_swap),
        swappiness: linux.swappiness.map(u32::from),
        tmpfs: linux.tmpfs.iter().map(tmpfs).collect(),
    }
}

fn device(device: &Device) -> v1::Device {
    let words = [("r", "read"), ("w", "write"), ("m", "mknod")];
    let given = words.iter().filter(|(letter, _)| device.permissions.contains(letter));
    v1::Device {
        host_path: device.host_path.clone(),
        container_path: device.container_path.clone(),
        permissions: given.map(|(_, word)| (*word).to_owned()).collect(),
    }
}

fn tmpfs(tmpfs: &Tmpfs) -> v1::Tmpfs {
    v1::Tmpfs {
        container_path: tmpfs.path.clone(),
        size_mib: tmpfs.size.0,
        mount_options: tmpfs.options.clone(),
    }
}

/// `pidMode` or `ipcMode` for the wire.
pub(super) const fn sharing(sharing: Option<Sharing>) -> &'static str {
    match sharing {
        None => "",
        Some(Sharing::Host) => "host",
        Some(Sharing::Task) => "task",
        Some(Sharing::None) => "none",
    }
}

/// `logConfiguration` for the wire.
pub(super) fn log_configuration(log: &LogConfiguration) -> v1::LogConfiguration {
    v1::LogConfiguration {
        driver: log.driver.clone(),
        options: log.options.clone().into_iter().collect(),
        secret_options: log.secret_options.iter().map(secret).collect(),
    }
}

/// `firelensConfiguration` for the wire.
pub(super) fn firelens(firelens: &Firelens) -> v1::FirelensConfiguration {
    v1::FirelensConfiguration {
        r#type: firelens.kind.as_str().to_owned(),
        options: firelens.options().into_iter().collect(),
    }
}

/// An entry of `secrets` or `secretOptions` for the wire.
pub(super) fn secret(secret: &SecretRef) -> v1::SecretRef {
    v1::SecretRef { name: secret.name.clone(), value_from: secret.value_from.clone() }
}
