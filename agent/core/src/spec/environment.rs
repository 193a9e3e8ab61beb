//! What a container finds in its environment: values of the definition, and values that are kept
//! elsewhere and fetched for it (ECS's `environment`, `environmentFiles` and `secrets`).

use std::fmt;

use serde::{Deserialize, Serialize};

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
