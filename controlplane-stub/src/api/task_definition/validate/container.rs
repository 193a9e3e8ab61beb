//! Rules for one container by itself.

use std::ops::RangeInclusive;

use super::super::input::{
    Container, HealthCheck, LEAST_MEMORY, LinuxParameters, LogConfiguration, RestartPolicy,
};
use super::{one_of, refuse};
use crate::api::error::ApiResult;

/// The most environment files of a container.
const MAX_ENVIRONMENT_FILES: usize = 10;
/// The most exit codes that a restart policy may ignore.
const MAX_IGNORED_EXIT_CODES: usize = 50;
/// The longest start or stop timeout in seconds.
const MAX_TIMEOUT: i64 = 7 * 24 * 3600;

const ULIMITS: [&str; 15] = [
    "core",
    "cpu",
    "data",
    "fsize",
    "locks",
    "memlock",
    "msgqueue",
    "nice",
    "nofile",
    "nproc",
    "rss",
    "rtprio",
    "rttime",
    "sigpending",
    "stack",
];

/// ECS's own, and the engine's two that cost nothing to have.
const LOG_DRIVERS: [&str; 10] = [
    "json-file",
    "local",
    "none",
    "syslog",
    "journald",
    "gelf",
    "fluentd",
    "awslogs",
    "splunk",
    "awsfirelens",
];

pub(super) fn check(container: &Container) -> ApiResult<()> {
    check_image(container)?;
    check_amounts(container)?;
    check_environment(container)?;
    if let Some(check) = &container.health_check {
        check_health(&container.name, check)?;
    }
    if let Some(policy) = &container.restart_policy {
        check_restart(&container.name, policy)?;
    }
    if let Some(log) = &container.log_configuration {
        check_log(&container.name, log)?;
    }
    if let Some(linux) = &container.linux_parameters {
        check_linux(&container.name, linux)?;
    }
    check_rest(container)
}

fn check_image(container: &Container) -> ApiResult<()> {
    let image = &container.image;
    if image.is_empty() {
        return refuse("Container.image should not be null or empty.");
    }
    if image.len() > 255 {
        return refuse("Container.image should not be longer than 255 characters.");
    }
    if !image.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-:./#@".contains(&b)) {
        return refuse("Container.image contains invalid characters.");
    }
    Ok(())
}

fn check_amounts(container: &Container) -> ApiResult<()> {
    let name = &container.name;
    if u32::try_from(container.cpu).is_err() {
        return refuse(format!("Invalid 'cpu' setting for container '{name}'."));
    }
    for (member, amount) in
        [("memory", container.memory), ("memoryReservation", container.memory_reservation)]
    {
        if amount.is_some_and(|amount| amount < LEAST_MEMORY) {
            return refuse(format!(
                "Invalid '{member}' setting for container '{name}'. The minimum is {LEAST_MEMORY} MiB."
            ));
        }
    }
    if let (Some(hard), Some(soft)) = (container.memory, container.memory_reservation)
        && hard < soft
    {
        return refuse(format!(
            "Invalid setting for container '{name}'. The 'memory' setting must not be less than the 'memoryReservation' setting."
        ));
    }
    for (member, seconds) in
        [("startTimeout", container.start_timeout), ("stopTimeout", container.stop_timeout)]
    {
        within(name, member, seconds, 0..=MAX_TIMEOUT)?;
    }
    for limit in &container.ulimits {
        one_of(&format!("Ulimit.name of container '{name}'"), &limit.name, &ULIMITS)?;
        // -1 is "unlimited", above every number.
        let above = |limit: i64| if limit == -1 { i64::MAX } else { limit };
        if above(limit.hard_limit) < above(limit.soft_limit) || limit.hard_limit < -1 || limit.soft_limit < -1
        {
            return refuse(format!(
                "Invalid ulimit '{}' for container '{name}'. The hard limit must not be less than the soft limit.",
                limit.name
            ));
        }
    }
    Ok(())
}

fn check_environment(container: &Container) -> ApiResult<()> {
    let name = &container.name;
    if container.environment_files.len() > MAX_ENVIRONMENT_FILES {
        return refuse(format!(
            "Too many environment files for container '{name}': at most {MAX_ENVIRONMENT_FILES}."
        ));
    }
    for file in &container.environment_files {
        one_of(&format!("EnvironmentFile.type of container '{name}'"), &file.kind, &["s3", "http", "file"])?;
        if !file.value.ends_with(".env") {
            return refuse(format!(
                "Invalid environment file '{}' for container '{name}'. Its name must end in .env.",
                file.value
            ));
        }
    }
    let unnamed = |pair: &&str| pair.is_empty() || pair.contains('=') || pair.contains('\0');
    if container.environment.iter().map(|pair| pair.name.as_str()).any(|pair| unnamed(&pair)) {
        return refuse(format!(
            "Invalid 'environment' setting for container '{name}'. A variable needs a name without '='."
        ));
    }
    let options = container.log_configuration.iter().flat_map(|log| &log.secret_options);
    if container.secrets.iter().chain(options).any(|s| s.name.is_empty() || s.value_from.is_empty()) {
        return refuse(format!(
            "Invalid 'secrets' setting for container '{name}'. A secret needs 'name' and 'valueFrom'."
        ));
    }
    Ok(())
}

fn check_health(name: &str, check: &HealthCheck) -> ApiResult<()> {
    if check.command.len() < 2 || !matches!(check.command[0].as_str(), "CMD" | "CMD-SHELL") {
        return refuse(format!(
            "Invalid 'healthCheck.command' setting for container '{name}'. It must begin with CMD or CMD-SHELL, followed by the command."
        ));
    }
    within(name, "healthCheck.interval", check.interval, 5..=300)?;
    within(name, "healthCheck.timeout", check.timeout, 2..=60)?;
    within(name, "healthCheck.retries", check.retries, 1..=10)?;
    within(name, "healthCheck.startPeriod", check.start_period, 0..=300)
}

fn check_restart(name: &str, policy: &RestartPolicy) -> ApiResult<()> {
    if policy.enabled.is_none() {
        return refuse(format!("Invalid 'restartPolicy.enabled' setting for container '{name}'."));
    }
    if policy.ignored_exit_codes.len() > MAX_IGNORED_EXIT_CODES {
        return refuse(format!(
            "Invalid 'restartPolicy.ignoredExitCodes' setting for container '{name}'. At most {MAX_IGNORED_EXIT_CODES} exit codes."
        ));
    }
    within(name, "restartPolicy.restartAttemptPeriod", policy.restart_attempt_period, 60..=1800)
}

fn check_log(name: &str, log: &LogConfiguration) -> ApiResult<()> {
    one_of(&format!("logConfiguration.logDriver of container '{name}'"), &log.log_driver, &LOG_DRIVERS)?;
    if log.log_driver == "awslogs" {
        let missing: Vec<&str> = ["awslogs-region", "awslogs-group"]
            .into_iter()
            .filter(|option| !log.options.contains_key(*option))
            .collect();
        if !missing.is_empty() {
            return refuse(format!("Log driver awslogs requires options: {}", missing.join(", ")));
        }
    }
    Ok(())
}

/// `swappiness` without `maxSwap` is taken: ECS ignores it rather than refuse it (API reference,
/// `LinuxParameters`).
fn check_linux(name: &str, linux: &LinuxParameters) -> ApiResult<()> {
    within(name, "linuxParameters.swappiness", linux.swappiness, 0..=100)?;
    within(name, "linuxParameters.maxSwap", linux.max_swap, 0..=i64::from(i32::MAX))?;
    within(name, "linuxParameters.sharedMemorySize", linux.shared_memory_size, 0..=i64::from(i32::MAX))?;
    for tmpfs in &linux.tmpfs {
        if tmpfs.container_path.is_empty() || tmpfs.size < 1 {
            return refuse(format!(
                "Invalid 'linuxParameters.tmpfs' setting for container '{name}'. It needs 'containerPath' and a positive 'size'."
            ));
        }
    }
    for device in &linux.devices {
        if device.host_path.is_empty() {
            return refuse(format!(
                "Invalid 'linuxParameters.devices' setting for container '{name}'. A device needs 'hostPath'."
            ));
        }
        for permission in &device.permissions {
            one_of(
                &format!("Device.permissions of container '{name}'"),
                permission,
                &["read", "write", "mknod"],
            )?;
        }
    }
    Ok(())
}

fn check_rest(container: &Container) -> ApiResult<()> {
    let name = &container.name;
    if let Some(problem) = container.resource_requirements.iter().find_map(|r| r.problem(name)) {
        return refuse(problem);
    }
    if container.repository_credentials.as_ref().is_some_and(|c| c.credentials_parameter.is_empty()) {
        return refuse(format!("Invalid 'repositoryCredentials' setting for container '{name}'."));
    }
    if container
        .system_controls
        .iter()
        .any(|control| control.namespace.is_empty() || control.value.is_empty())
    {
        return refuse(format!(
            "Invalid 'systemControls' setting for container '{name}'. A control needs 'namespace' and 'value'."
        ));
    }
    if container.extra_hosts.iter().any(|host| host.hostname.is_empty() || host.ip_address.is_empty()) {
        return refuse(format!(
            "Invalid 'extraHosts' setting for container '{name}'. An entry needs 'hostname' and 'ipAddress'."
        ));
    }
    Ok(())
}

fn within(name: &str, member: &str, value: Option<i64>, range: RangeInclusive<i64>) -> ApiResult<()> {
    match value {
        Some(value) if !range.contains(&value) => refuse(format!(
            "Invalid '{member}' setting for container '{name}'. It must be between {} and {}.",
            range.start(),
            range.end()
        )),
        _ => Ok(()),
    }
}
