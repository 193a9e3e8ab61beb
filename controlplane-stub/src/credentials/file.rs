//! Credentials from a file of roles: for development. It is read each time, so that a change needs no
//! restart.

use std::collections::BTreeMap;
use std::path::PathBuf;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use super::{Credentials, CredentialsError, Printed, Provider};
use crate::clock;

/// A JSON object with a member for each role: its ARN, and what `credential_process` would print.
pub(super) struct File {
    path: PathBuf,
}

impl File {
    pub(super) const fn new(path: PathBuf) -> Self {
        Self { path }
    }

    async fn read(&self, role: &str) -> Result<Credentials, CredentialsError> {
        let path = self.path.display();
        let text = tokio::fs::read_to_string(&self.path).await;
        let text = text.map_err(|error| CredentialsError(format!("{path}: {error}")))?;
        // What does not parse may be a secret: only its place is told.
        let mut roles: BTreeMap<String, Printed> = serde_json::from_str(&text).map_err(|error| {
            CredentialsError(format!("{path} is wrong in line {}, column {}", error.line(), error.column()))
        })?;
        let found = roles.remove(role).ok_or_else(|| CredentialsError(format!("{path} does not have it")))?;
        Ok(found.credentials(clock::now()))
    }
}

impl Provider for File {
    fn assume<'a>(
        &'a self,
        role: &'a str,
        _: &'a str,
    ) -> BoxFuture<'a, Result<Credentials, CredentialsError>> {
        self.read(role).boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_role_is_a_member_of_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("roles.json");
        std::fs::write(&path, r#"{"arn:r": {"AccessKeyId": "A", "SecretAccessKey": "hush"}}"#).unwrap();
        let file = File::new(path.clone());
        assert_eq!(file.read("arn:r").await.unwrap().access_key_id, "A");
        assert!(file.read("arn:other").await.unwrap_err().to_string().contains("does not have it"));
        std::fs::write(&path, r#"{"arn:r": {"AccessKeyId": "A", "SecretAccessKey": "hush" "#).unwrap();
        let wrong = file.read("arn:r").await.unwrap_err().to_string();
        assert!(wrong.contains("line 1") && !wrong.contains("hush"), "{wrong}");
    }
}
