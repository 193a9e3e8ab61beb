//! Values that are kept elsewhere: what `valueFrom` names, from where the operator keeps it.
//!
//! `valueFrom` is ECS's: the ARN of a Secrets Manager secret or a parameter, or a parameter's name.
//! What it names is asked of one of several providers; each does one thing, and knows nothing of tasks.

mod command;
mod directory;
mod reference;
mod vault;

use std::time::Duration;

use futures_util::future::BoxFuture;

use crate::config::{Secret, SecretSource};

pub use self::reference::Reference;

/// Longest that one value may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// Longest value, as of Secrets Manager.
const MAX_BYTES: usize = 65_536;

/// Why a value is not to be had. The text is for users; no value is in it.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
pub enum SecretError {
    /// It is not there, or may not be read: asking again would not help.
    #[error("{0}")]
    Refused(String),
    /// Whoever keeps it did not answer.
    #[error("{0}")]
    Away(String),
}

/// Somebody who keeps values.
trait Provider: Send + Sync {
    /// What is kept under that name: a plain text, or a JSON object of several.
    fn fetch<'a>(&'a self, reference: &'a Reference) -> BoxFuture<'a, Result<Secret, SecretError>>;
}

/// All values that tasks of this host may have.
pub struct Secrets {
    provider: Option<Box<dyn Provider>>,
}

impl Secrets {
    /// From where the operator says; without a source, every value is refused.
    #[must_use]
    pub fn new(source: Option<SecretSource>) -> Self {
        let provider = source.map(|source| -> Box<dyn Provider> {
            match source {
                SecretSource::Directory(path) => Box::new(directory::Directory::new(path)),
                SecretSource::Command(words) => Box::new(command::Command::new(words)),
                SecretSource::Vault(vault) => Box::new(vault::Vault::new(vault)),
            }
        });
        Self { provider }
    }

    /// The value that `valueFrom` names.
    ///
    /// # Errors
    /// [`SecretError`], naming what was asked for.
    pub async fn value(&self, value_from: &str) -> Result<Secret, SecretError> {
        let Some(provider) = &self.provider else {
            return Err(SecretError::Refused(format!(
                "{value_from}: this host keeps no secrets; set BERTH_SECRETS"
            )));
        };
        let reference = Reference::parse(value_from)
            .ok_or_else(|| SecretError::Refused(format!("{value_from} names no secret and no parameter")))?;
        let fetched = tokio::time::timeout(PATIENCE, provider.fetch(&reference)).await;
        let whole = fetched.unwrap_or_else(|_| {
            Err(SecretError::Away(format!("{value_from}: no answer within {} s", PATIENCE.as_secs())))
        })?;
        if whole.expose().len() > MAX_BYTES {
            return Err(SecretError::Refused(format!("{value_from} has more than {MAX_BYTES} bytes")));
        }
        reference.select(whole)
    }
}
