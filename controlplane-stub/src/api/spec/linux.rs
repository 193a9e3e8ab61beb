//! The kernel's side of a container, and its log.

use berth_core::spec::{
    Device, FIRELENS_DRIVER, Firelens, LinuxParameters, LogConfiguration, Sharing, Tmpfs,
};
use berth_core::units::Mebibytes;

use super::environment::secret;
use crate::api::error::{ApiError, ApiResult};
use crate::api::task_definition::input;

/// Drivers that have no buffer of the engine's: what logs nothing, and what a log router has options for.
const UNBUFFERED: [&str; 2] = ["none", FIRELENS_DRIVER];

/// `linuxParameters`, checked at registration.
pub(super) fn parameters(linux: &input::LinuxParameters) -> LinuxParameters {
    let capabilities = linux.capabilities.clone().unwrap_or_default();
    LinuxParameters {
        add_capabilities: capabilities.add,
        drop_capabilities: capabilities.drop,
        devices: linux.devices.iter().map(device).collect(),
        init_process: linux.init_process_enabled,
        shared_memory: mebibytes(linux.shared_memory_size).filter(|size| size.0 > 0),
        max_swap: mebibytes(linux.max_swap),
        swappiness: linux.swappiness.and_then(|swappiness| u8::try_from(swappiness).ok()),
        tmpfs: linux.tmpfs.iter().map(tmpfs).collect(),
    }
}

fn mebibytes(amount: Option<i64>) -> Option<Mebibytes> {
    amount.and_then(|amount| u32::try_from(amount).ok()).map(Mebibytes)
}

fn device(device: &input::Device) -> Device {
    let words = [("read", 'r'), ("write", 'w'), ("mknod", 'm')];
    // Without any it has them all.
    let given = |word: &str| device.permissions.is_empty() || device.permissions.iter().any(|p| p == word);
    let inside = device.container_path.clone().filter(|path| !path.is_empty());
    Device {
        host_path: device.host_path.clone(),
        container_path: inside.unwrap_or_else(|| device.host_path.clone()),
        permissions: words.iter().filter(|(word, _)| given(word)).map(|(_, letter)| letter).collect(),
    }
}

fn tmpfs(tmpfs: &input::Tmpfs) -> Tmpfs {
    Tmpfs {
        path: tmpfs.container_path.clone(),
        size: mebibytes(Some(tmpfs.size)).unwrap_or_default(),
        options: tmpfs.mount_options.clone(),
    }
}

/// `firelensConfiguration`, where there is one.
///
/// # Errors
/// `InvalidParameterException` for what no log router can be.
pub(super) fn firelens(container: &input::Container) -> ApiResult<Option<Firelens>> {
    let read = |given: &input::Firelens| Firelens::parse(&given.kind, &given.options);
    container.firelens_configuration.as_ref().map(read).transpose().map_err(|problem| {
        ApiError::invalid_parameter(format!(
            "Invalid 'firelensConfiguration' setting for container '{}': {problem}.",
            container.name
        ))
    })
}

/// `logConfiguration`; what its options mean is the engine's affair, or the log router's.
pub(super) fn log_configuration(log: &input::LogConfiguration) -> LogConfiguration {
    LogConfiguration {
        driver: log.log_driver.clone(),
        options: log.options.clone(),
        secret_options: log.secret_options.iter().map(secret).collect(),
    }
}

/// Tells a log driver how to take what it is given, where its options do not: with a buffer that drops what
/// it cannot hold, as large as ECS makes it, or with the container waiting for it.
pub(super) fn default_mode(log: &mut LogConfiguration, mode: &str) {
    if mode != "non-blocking" || log.options.contains_key("mode") || UNBUFFERED.contains(&log.driver.as_str())
    {
        return;
    }
    log.options.insert("mode".to_owned(), mode.to_owned());
    log.options.entry("max-buffer-size".to_owned()).or_insert_with(|| "10m".to_owned());
}

/// `pidMode` or `ipcMode`.
///
/// # Errors
/// `InvalidParameterException` for a mode that no instance offers.
pub(super) fn sharing(mode: Option<&str>, member: &str) -> ApiResult<Option<Sharing>> {
    match mode.unwrap_or_default() {
        "" => Ok(None),
        "host" => Ok(Some(Sharing::Host)),
        "task" => Ok(Some(Sharing::Task)),
        "none" => Ok(Some(Sharing::None)),
        other => Err(ApiError::invalid_parameter(format!("{member} {other} is unknown."))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_driver_that_is_not_told_drops_rather_than_waits() {
        let log = |driver: &str, options: &[(&str, &str)], mode: &str| {
            let options = options.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
            let mut log = LogConfiguration { driver: driver.to_owned(), options, secret_options: Vec::new() };
            default_mode(&mut log, mode);
            log.options.into_iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join(" ")
        };
        let wanted = "max-buffer-size=10m mode=non-blocking";
        assert_eq!(log("syslog", &[], "non-blocking"), wanted);
        let given = [("max-buffer-size", "1m")];
        assert_eq!(log("syslog", &given, "non-blocking"), "max-buffer-size=1m mode=non-blocking");
        assert_eq!(log("syslog", &[("mode", "blocking")], "non-blocking"), "mode=blocking");
        assert_eq!(log("syslog", &[], "blocking"), "");
        assert_eq!(log("none", &[], "non-blocking"), "");
        assert_eq!(log("awsfirelens", &[], "non-blocking"), "");
    }

    #[test]
    fn a_device_has_the_permissions_that_are_given_or_all() {
        let with = |permissions: &[&str]| {
            device(&input::Device {
                host_path: "/dev/fuse".to_owned(),
                container_path: Some(String::new()),
                permissions: permissions.iter().map(|p| (*p).to_owned()).collect(),
            })
        };
        assert_eq!((with(&[]).permissions.as_str(), with(&[]).container_path.as_str()), ("rwm", "/dev/fuse"));
        assert_eq!(with(&["mknod", "read"]).permissions, "rm");
    }

    #[test]
    fn nothing_that_was_not_asked_for_is_given() {
        assert_eq!(parameters(&input::LinuxParameters::default()), LinuxParameters::default());
        assert_eq!(sharing(None, "pidMode").unwrap(), None);
        assert!(sharing(Some("family"), "pidMode").is_err());
    }
}
