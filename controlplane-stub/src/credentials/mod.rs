//! Credentials for the roles of tasks, from where the operator says: a file for development, a program in
//! the manner of `credential_process`, or AWS's Security Token Service and what speaks like it.

mod command;
mod file;
mod sts;

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use berth_core::units::Timestamp;
use futures_util::future::BoxFuture;
use serde::Deserialize;

use self::command::Command;
use self::file::File;
use self::sts::Sts;

/// Longest that one answer may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long credentials hold whose source does not say.
const LIFETIME: Duration = Duration::from_secs(3600);

/// Credentials of a role, for a while. `Debug` shows when they end, and no more.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// Access key.
    pub access_key_id: String,
    /// Secret key.
    pub secret_access_key: String,
    /// Session token; empty where there is none.
    pub session_token: String,
    /// When they end.
    pub expires_at: Timestamp,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Credentials(until {:?})", self.expires_at)
    }
}

/// Why there are none. The text is for people.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub struct CredentialsError(pub String);

/// Somebody who gives credentials for roles.
pub trait Provider: Send + Sync {
    /// Credentials of the role; `session` names who has them in the provider's own records.
    fn assume<'a>(
        &'a self,
        role: &'a str,
        session: &'a str,
    ) -> BoxFuture<'a, Result<Credentials, CredentialsError>>;
}

/// Asks a provider, but not for ever.
///
/// # Errors
/// The provider's, naming the role.
pub async fn assume(
    provider: &dyn Provider,
    role: &str,
    session: &str,
) -> Result<Credentials, CredentialsError> {
    let asked = tokio::time::timeout(PATIENCE, provider.assume(role, session)).await;
    let late = |_| CredentialsError(format!("no answer within {} s", PATIENCE.as_secs()));
    asked.map_err(late).flatten().map_err(|CredentialsError(why)| {
        CredentialsError(format!(
            "the control plane was unable to assume the role '{role}' of this task: {why}"
        ))
    })
}

/// Where credentials come from, as the operator says it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// `file:/PATH`
    File(PathBuf),
    /// `command:/PROGRAM ARGUMENTS`
    Command(Vec<String>),
    /// `sts:https://HOST`
    Sts(reqwest::Url),
}

/// A text that names no source.
#[derive(Debug, Clone, thiserror::Error)]
#[error(
    "{0:?} is no source of credentials: file:/PATH, command:/PROGRAM ARGUMENTS or sts:https://HOST is expected"
)]
pub struct InvalidSource(String);

impl FromStr for Source {
    type Err = InvalidSource;

    fn from_str(text: &str) -> Result<Self, InvalidSource> {
        let wrong = || InvalidSource(text.to_owned());
        match text.split_once(':').ok_or_else(wrong)? {
            ("file", path) if path.starts_with('/') => Ok(Self::File(path.into())),
            ("command", line) if !line.trim().is_empty() => {
                Ok(Self::Command(line.split_whitespace().map(str::to_owned).collect()))
            }
            ("sts", url) => {
                let url = reqwest::Url::parse(url).map_err(|_| wrong())?;
                if matches!(url.scheme(), "http" | "https") { Ok(Self::Sts(url)) } else { Err(wrong()) }
            }
            _ => Err(wrong()),
        }
    }
}

/// The provider of that source.
///
/// # Errors
/// When what it needs is not there.
pub fn provider(source: Source, region: &str) -> Result<Arc<dyn Provider>, CredentialsError> {
    Ok(match source {
        Source::File(path) => Arc::new(File::new(path)),
        Source::Command(words) => Arc::new(Command::new(words)),
        Source::Sts(url) => Arc::new(Sts::new(url, region)?),
    })
}

/// What `credential_process` prints (AWS SDKs and Tools Reference Guide, "Process credential provider").
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Printed {
    access_key_id: String,
    secret_access_key: String,
    #[serde(default)]
    session_token: String,
    #[serde(default)]
    expiration: Option<jiff::Timestamp>,
}

impl Printed {
    fn credentials(self, now: Timestamp) -> Credentials {
        let told = self.expiration.and_then(|at| u64::try_from(at.as_millisecond()).ok()).map(Timestamp);
        let lifetime = u64::try_from(LIFETIME.as_millis()).unwrap_or_default();
        Credentials {
            access_key_id: self.access_key_id,
            secret_access_key: self.secret_access_key,
            session_token: self.session_token,
            expires_at: told.unwrap_or_else(|| Timestamp(now.0.saturating_add(lifetime))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_is_a_file_a_program_or_a_service() {
        assert_eq!("file:/etc/roles.json".parse::<Source>().unwrap(), Source::File("/etc/roles.json".into()));
        assert!(matches!("command:/bin/x -q".parse().unwrap(), Source::Command(words) if words.len() == 2));
        assert!(matches!("sts:https://sts.amazonaws.com".parse().unwrap(), Source::Sts(_)));
        for bad in ["", "file:relative", "command:", "sts:ftp://x", "vault:x"] {
            assert!(bad.parse::<Source>().is_err(), "{bad}");
        }
    }

    #[test]
    fn what_a_program_prints_is_read() {
        let text = r#"{"Version": 1, "AccessKeyId": "A", "SecretAccessKey": "S", "Expiration": "2030-01-01T00:00:00Z"}"#;
        let read: Printed = serde_json::from_str(text).unwrap();
        let credentials = read.credentials(Timestamp(0));
        assert_eq!(credentials.expires_at, Timestamp(1_893_456_000_000));
        assert!(!format!("{credentials:?}").contains('S'));
    }
}
