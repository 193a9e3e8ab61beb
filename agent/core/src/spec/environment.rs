//! What a container finds in its environment: values of the definition, and values that are kept
//! elsewhere and fetched for it (ECS's `environment`, `environmentFiles` and `secrets`).

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{ContainerSpec, TaskFields};

/// An environment variable. `Debug` shows the name alone: values are the user's business.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnvVar {
    /// The name.
    pub name: String,
    /// The value.
    pub value: String,
}

impl fmt::Debug for EnvVar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}=…", self.name)
    }
}

/// A value that is kept elsewhere: one entry of `secrets` or `secretOptions`. It holds where the
/// value is, never the value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretRef {
    /// The variable, or the option of the log driver, that gets the value.
    pub name: String,
    /// Where the value is, as ECS's `valueFrom` says it.
    pub value_from: String,
}

impl TaskFields {
    /// Whether something of a container is kept elsewhere and has to be fetched before it can be made.
    /// The secret options of containers that log to the router are the router's.
    #[must_use]
    pub fn has_values_elsewhere(&self, container: &ContainerSpec) -> bool {
        let in_log = container.log.as_ref().is_some_and(|log| !log.secret_options.is_empty());
        (in_log && !container.logs_to_router())
            || (container.firelens.is_some() && !self.router_secrets().is_empty())
            || !container.secrets.is_empty()
            || !container.environment_files.is_empty()
    }
}
