//! A task's log router: a container that gets what the others say, and passes it on (ECS's FireLens).
//!
//! The rules are those of ECS's developer guide, "Send Amazon ECS logs to an AWS service or AWS Partner".

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::check::{InvalidSpec, invalid};
use super::{ContainerSpec, LogConfiguration, SecretRef, TaskFields};

/// The log driver of containers whose output goes to the log router of their task.
pub const FIRELENS_DRIVER: &str = "awsfirelens";
/// The option of that driver that bounds how many lines the engine holds for a router that is slow.
pub const BUFFER_LIMIT: &str = "log-driver-buffer-limit";
/// The option of that driver with a pattern of what is passed on.
pub const INCLUDE_PATTERN: &str = "include-pattern";
/// The option of that driver with a pattern of what is not.
pub const EXCLUDE_PATTERN: &str = "exclude-pattern";

const METADATA: &str = "enable-ecs-log-metadata";
const CONFIG_TYPE: &str = "config-file-type";
const CONFIG_VALUE: &str = "config-file-value";
/// Lines that the engine can be told to hold: fewer than these.
const BUFFER_LIMIT_END: u32 = 536_870_912;

/// The program that routes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RouterKind {
    /// Fluentd.
    Fluentd,
    /// Fluent Bit.
    Fluentbit,
}

impl RouterKind {
    /// As ECS writes it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Fluentd => "fluentd",
            Self::Fluentbit => "fluentbit",
        }
    }

    /// The option of a log configuration that names the plugin which the output goes to.
    #[must_use]
    pub const fn output_option(self) -> &'static str {
        match self {
            Self::Fluentd => "@type",
            Self::Fluentbit => "Name",
        }
    }

    /// Where the program finds its configuration.
    #[must_use]
    pub const fn config_path(self) -> &'static str {
        match self {
            Self::Fluentd => "/fluentd/etc/fluent.conf",
            Self::Fluentbit => "/fluent-bit/etc/fluent-bit.conf",
        }
    }

    /// Where the program finds what is fetched for it from an object store.
    #[must_use]
    pub const fn fetched_path(self) -> &'static str {
        match self {
            Self::Fluentd => "/fluentd/etc/external.conf",
            Self::Fluentbit => "/fluent-bit/etc/external.conf",
        }
    }
}

/// Configuration of the user's own, in addition to what is generated.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RouterConfig {
    /// A file of the router's own file system.
    File(String),
    /// An object of a bucket, by its ARN.
    Object(String),
}

/// ECS's `firelensConfiguration`: the container is the log router of its task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Firelens {
    /// The program.
    pub kind: RouterKind,
    /// Whether it adds to each record which task it is from.
    pub metadata: bool,
    /// Configuration of the user's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config: Option<RouterConfig>,
}

impl Firelens {
    /// Reads `type` and `options`.
    ///
    /// # Errors
    /// What is wrong with them, after the name of the member.
    pub fn parse(kind: &str, options: &BTreeMap<String, String>) -> Result<Self, String> {
        let kind = match kind {
            "fluentd" => RouterKind::Fluentd,
            "fluentbit" => RouterKind::Fluentbit,
            other => return Err(format!("type: {other:?} is neither fluentd nor fluentbit")),
        };
        if let Some(unknown) =
            options.keys().find(|o| ![METADATA, CONFIG_TYPE, CONFIG_VALUE].contains(&&***o))
        {
            return Err(format!(
                "options: {unknown:?} is none of {METADATA}, {CONFIG_TYPE} and {CONFIG_VALUE}"
            ));
        }
        let metadata = match options.get(METADATA).map(String::as_str) {
            None => true,
            // What ECS's agent takes for one or the other.
            Some("1" | "t" | "T" | "true" | "TRUE" | "True") => true,
            Some("0" | "f" | "F" | "false" | "FALSE" | "False") => false,
            Some(other) => return Err(format!("options: {METADATA} is {other:?}, neither true nor false")),
        };
        let value = options.get(CONFIG_VALUE).map(String::as_str);
        let config = match (options.get(CONFIG_TYPE).map(String::as_str), value) {
            (None, None) => None,
            (None, Some(_)) => {
                return Err(format!("options: {CONFIG_VALUE} needs {CONFIG_TYPE}, file or s3"));
            }
            (Some(_), None | Some("")) => {
                return Err(format!("options: {CONFIG_TYPE} needs {CONFIG_VALUE}, which says where it is"));
            }
            (Some("file"), Some(path)) if path == kind.config_path() => {
                return Err(format!(
                    "options: {path} is where the generated configuration is; have your own elsewhere"
                ));
            }
            (Some("file"), Some(path)) if !breaks_line(path) => Some(RouterConfig::File(path.to_owned())),
            (Some("s3"), Some(arn)) if arn.starts_with("arn:") && arn.contains(":s3:::") => {
                Some(RouterConfig::Object(arn.to_owned()))
            }
            (Some("s3"), Some(other)) => {
                return Err(format!("options: {CONFIG_VALUE} is {other:?}, not the ARN of an S3 object"));
            }
            (Some("file"), Some(other)) => {
                return Err(format!("options: {CONFIG_VALUE} is {other:?}, no path of a file"));
            }
            (Some(other), Some(_)) => {
                return Err(format!("options: {CONFIG_TYPE} is {other:?}, neither file nor s3"));
            }
        };
        Ok(Self { kind, metadata, config })
    }

    /// The options that it is read from.
    #[must_use]
    pub fn options(&self) -> BTreeMap<String, String> {
        let mut options = BTreeMap::from([(METADATA.to_owned(), self.metadata.to_string())]);
        if let Some(config) = &self.config {
            let (kind, value) = match config {
                RouterConfig::File(path) => ("file", path),
                RouterConfig::Object(arn) => ("s3", arn),
            };
            options.insert(CONFIG_TYPE.to_owned(), kind.to_owned());
            options.insert(CONFIG_VALUE.to_owned(), value.clone());
        }
        options
    }

    /// Checks how a container logs to it.
    ///
    /// # Errors
    /// What is wrong.
    pub fn check_log(&self, log: &LogConfiguration) -> Result<(), String> {
        // Name and value are a line of the configuration.
        let names = || log.options.keys().chain(log.secret_options.iter().map(|option| &option.name));
        if let Some(name) = names().find(|name| name.is_empty() || name.contains(char::is_whitespace)) {
            return Err(format!("option {name:?}: a name has no spaces"));
        }
        if let Some((name, _)) = log.options.iter().find(|(_, value)| breaks_line(value)) {
            return Err(format!("option {name:?}: a value is one line"));
        }
        if let Some(limit) = log.options.get(BUFFER_LIMIT)
            && !limit.parse::<u32>().is_ok_and(|limit| limit < BUFFER_LIMIT_END)
        {
            return Err(format!("option {BUFFER_LIMIT} is {limit:?}, no number below {BUFFER_LIMIT_END}"));
        }
        let output = self.kind.output_option();
        let own = [BUFFER_LIMIT, INCLUDE_PATTERN, EXCLUDE_PATTERN];
        if names().any(|name| !own.contains(&name.as_str())) && !names().any(|name| name == output) {
            return Err(format!(
                "missing output key {output} which is required for firelens configuration of type {}",
                self.kind.as_str()
            ));
        }
        Ok(())
    }
}

fn breaks_line(text: &str) -> bool {
    text.contains(['\n', '\r', '\0'])
}

/// Checks the user of a log router: the folder of its socket is to be that user's.
///
/// # Errors
/// What is wrong.
pub fn check_router_user(user: &str) -> Result<(), String> {
    match router_owner(user) {
        Some(_) => Ok(()),
        None => {
            Err(format!("{user:?} is neither root nor a number: a log router has UID, UID:GID or UID:GROUP"))
        }
    }
}

/// The owner of what a log router of that user writes to: user and group, where a number says.
#[must_use]
pub fn router_owner(user: &str) -> Option<(u32, Option<u32>)> {
    let (user, group) = user.split_once(':').map_or((user, None), |(user, group)| (user, Some(group)));
    let uid = if user == "root" { 0 } else { user.parse().ok()? };
    match group {
        Some(group) if group.is_empty() || group.contains(':') => None,
        group => Some((uid, group.and_then(|group| group.parse().ok()))),
    }
}

/// A secret option of a container that logs to the router: it reaches the router through a variable
/// of its environment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouterSecret<'a> {
    /// The container whose option it is.
    pub container: &'a ContainerSpec,
    /// The option.
    pub option: &'a SecretRef,
    /// The variable.
    pub variable: String,
}

impl ContainerSpec {
    /// Whether its output goes to the log router of the task.
    #[must_use]
    pub fn logs_to_router(&self) -> bool {
        self.log.as_ref().is_some_and(|log| log.driver == FIRELENS_DRIVER)
    }
}

impl TaskFields {
    /// The log router, with how it is one.
    #[must_use]
    pub fn router(&self) -> Option<(&ContainerSpec, &Firelens)> {
        self.containers.iter().find_map(|container| Some((container, container.firelens.as_ref()?)))
    }

    /// The secret options of all containers that log to the router. A variable has ECS's name, the
    /// option's with the container's place in the task, in characters that a variable may have.
    #[must_use]
    pub fn router_secrets(&self) -> Vec<RouterSecret<'_>> {
        let mut taken = BTreeSet::new();
        let mut found = Vec::new();
        for (at, container) in self.containers.iter().enumerate().filter(|(_, c)| c.logs_to_router()) {
            for option in container.log.iter().flat_map(|log| &log.secret_options) {
                let plain = |c: char| if c.is_ascii_alphanumeric() { c } else { '_' };
                let mut variable: String = option.name.chars().map(plain).collect();
                variable.push_str(&format!("_{at}"));
                while !taken.insert(variable.clone()) {
                    variable.push('_');
                }
                found.push(RouterSecret { container, option, variable });
            }
        }
        found
    }
}

/// What is wrong with the log router of a task, and with the containers that log to it.
pub(super) fn check(fields: &TaskFields) -> Result<(), InvalidSpec> {
    let at = |container: &ContainerSpec, field: &str| format!("containers[{}].{field}", container.name);
    let mut loggers = fields.containers.iter().filter(|container| container.logs_to_router());
    let Some((router, firelens)) = fields.router() else {
        return loggers.next().map_or(Ok(()), |logger| {
            let problem = "awsfirelens needs a container with a firelensConfiguration in the task";
            invalid(at(logger, "logConfiguration"), problem)
        });
    };
    let others = fields.containers.iter().filter(|c| c.firelens.is_some() && c.name != router.name);
    if let Some(other) = others.into_iter().next() {
        let problem = format!("{} is the log router of the task, which has one", router.name);
        return invalid(at(other, "firelensConfiguration"), problem);
    }
    // Also what was read back is what could have been asked for.
    if let Err(problem) = Firelens::parse(firelens.kind.as_str(), &firelens.options()) {
        return invalid(at(router, "firelensConfiguration"), problem);
    }
    if let Some(Err(problem)) = router.user.as_deref().map(check_router_user) {
        return invalid(at(router, "user"), problem);
    }
    for logger in loggers {
        if let Some(Err(problem)) = logger.log.as_ref().map(|log| firelens.check_log(log)) {
            return invalid(at(logger, "logConfiguration"), problem);
        }
        if router.depends_on.iter().any(|dependency| dependency.container == logger.name) {
            let problem = format!("{} logs to it and so starts after it", logger.name);
            return invalid(at(router, "dependsOn"), problem);
        }
    }
    Ok(())
}
