//! The door for the kernel's side of a container: capabilities, devices, memory file systems; and for logs.

use berth_core::spec::{Device, Firelens, LinuxParameters, LogConfiguration, Sharing, Tmpfs};
use berth_core::units::Mebibytes;
use berth_proto::v1;

use super::environment::secret;

/// Checks `linuxParameters`; what is wrong with them, if anything.
pub(super) fn linux_parameters(message: v1::LinuxParameters) -> Result<LinuxParameters, String> {
    let swappiness = match message.swappiness.map(u8::try_from).transpose() {
        Ok(swappiness) if swappiness.is_none_or(|s| s <= 100) => swappiness,
        _ => return Err("swappiness is not within 0 to 100".to_owned()),
    };
    Ok(LinuxParameters {
        add_capabilities: message.add_capabilities,
        drop_capabilities: message.drop_capabilities,
        devices: message.devices.into_iter().map(device).collect::<Result<_, _>>()?,
        init_process: message.init_process,
        shared_memory: (message.shared_memory_mib > 0).then_some(Mebibytes(message.shared_memory_mib)),
        max_swap: message.max_swap_mib.map(Mebibytes),
        swappiness,
        tmpfs: message.tmpfs.into_iter().map(tmpfs).collect::<Result<_, _>>()?,
    })
}

fn device(message: v1::Device) -> Result<Device, String> {
    if message.host_path.is_empty() {
        return Err("a device has no path on the host".to_owned());
    }
    let mut permissions = String::new();
    for (word, letter) in [("read", 'r'), ("write", 'w'), ("mknod", 'm')] {
        if message.permissions.is_empty() || message.permissions.iter().any(|given| given == word) {
            permissions.push(letter);
        }
    }
    if let Some(unknown) =
        message.permissions.iter().find(|p| !["read", "write", "mknod"].contains(&p.as_str()))
    {
        return Err(format!("{unknown:?} is no permission of a device: read, write or mknod"));
    }
    let container_path =
        if message.container_path.is_empty() { message.host_path.clone() } else { message.container_path };
    Ok(Device { host_path: message.host_path, container_path, permissions })
}

fn tmpfs(message: v1::Tmpfs) -> Result<Tmpfs, String> {
    if !message.container_path.starts_with('/') || message.size_mib == 0 {
        return Err(format!(
            "a tmpfs needs an absolute path and a size, not {:?} and 0",
            message.container_path
        ));
    }
    Ok(Tmpfs {
        path: message.container_path,
        size: Mebibytes(message.size_mib),
        options: message.mount_options,
    })
}

/// Checks `pidMode` or `ipcMode`.
pub(super) fn sharing(word: &str) -> Result<Option<Sharing>, String> {
    match word {
        "" => Ok(None),
        "host" => Ok(Some(Sharing::Host)),
        "task" => Ok(Some(Sharing::Task)),
        "none" => Ok(Some(Sharing::None)),
        other => Err(format!("{other:?} is none of host, task and none")),
    }
}

/// Checks `logConfiguration`.
pub(super) fn log_configuration(message: v1::LogConfiguration) -> Result<LogConfiguration, String> {
    if message.driver.is_empty() {
        return Err("names no log driver".to_owned());
    }
    Ok(LogConfiguration {
        driver: message.driver,
        options: message.options.into_iter().collect(),
        secret_options: message.secret_options.into_iter().map(secret).collect(),
    })
}

/// Checks `firelensConfiguration`.
pub(super) fn firelens(message: v1::FirelensConfiguration) -> Result<Firelens, String> {
    Firelens::parse(&message.r#type, &message.options.into_iter().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_have_the_permissions_that_are_given_or_all() {
        let device = |permissions: &[&str]| {
            device(v1::Device {
                host_path: "/dev/null".to_owned(),
                container_path: String::new(),
                permissions: permissions.iter().map(|p| (*p).to_owned()).collect(),
            })
        };
        assert_eq!(device(&[]).unwrap().permissions, "rwm");
        let read_only = device(&["mknod", "read"]).unwrap();
        assert_eq!((read_only.permissions.as_str(), read_only.container_path.as_str()), ("rm", "/dev/null"));
        assert!(device(&["own"]).unwrap_err().contains("own"));
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let swappy = v1::LinuxParameters { swappiness: Some(101), ..Default::default() };
        assert!(linux_parameters(swappy).is_err());
        let relative = v1::Tmpfs { container_path: "run".to_owned(), size_mib: 1, ..Default::default() };
        assert!(tmpfs(relative).is_err());
        assert!(sharing("family").unwrap_err().contains("family"));
        assert!(log_configuration(v1::LogConfiguration::default()).is_err());
        assert!(firelens(v1::FirelensConfiguration::default()).is_err());
    }
}
