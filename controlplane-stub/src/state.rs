//! What the HTTP side is given: handles, identity of the region, and who may call.

use std::fmt;
use std::sync::Arc;

use crate::agents::registry::Registry;
use crate::arn::Arns;
use crate::controller::Controller;
use crate::remote::Remote;
use crate::simulated::Simulated;
use crate::store::Store;
use crate::vpc::CurrentVpc;

/// Everything that a request handler works with. Cloning is cheap.
#[derive(Clone)]
pub struct ApiState {
    /// The records.
    pub store: Arc<dyn Store>,
    /// Launches, stops and drains.
    pub controller: Controller,
    /// Which agents are connected, and what they said of their hosts.
    pub registry: Registry,
    /// What operators do in containers from afar.
    pub remote: Remote,
    /// Subnets and security groups.
    pub vpc: CurrentVpc,
    /// Simulated agents; `None` unless this is a development server.
    pub simulated: Option<Simulated>,
    /// Region and account.
    pub arns: Arns,
    /// Who may call; everybody when empty.
    pub access_keys: Arc<[AccessKey]>,
}

impl fmt::Debug for ApiState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ApiState")
            .field("arns", &self.arns)
            .field("access_keys", &self.access_keys)
            .finish_non_exhaustive()
    }
}

/// A key that requests are signed with. `Debug` shows its id alone.
#[derive(Clone, PartialEq, Eq)]
pub struct AccessKey {
    /// The public id.
    pub id: String,
    /// The secret.
    pub secret: String,
}

impl fmt::Debug for AccessKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AccessKey({})", self.id)
    }
}

/// A text is not `ID:SECRET`. The text is not repeated: it may hold the secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("an access key is written ID:SECRET, both not empty")]
pub struct InvalidAccessKey;

impl std::str::FromStr for AccessKey {
    type Err = InvalidAccessKey;

    fn from_str(text: &str) -> Result<Self, InvalidAccessKey> {
        match text.split_once(':') {
            Some((id, secret)) if !id.is_empty() && !secret.is_empty() => {
                Ok(Self { id: id.to_owned(), secret: secret.to_owned() })
            }
            _ => Err(InvalidAccessKey),
        }
    }
}
