//! Credentials from a program: it gets the role's ARN and the session's name, and prints what
//! `credential_process` prints.

use std::process::Stdio;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use super::{Credentials, CredentialsError, Printed, Provider};
use crate::clock;

/// Most of what a program that failed has to say.
const MAX_EXCUSE: usize = 300;

/// A program and its arguments, the first being the program.
pub(super) struct Command {
    words: Vec<String>,
}

impl Command {
    pub(super) const fn new(words: Vec<String>) -> Self {
        Self { words }
    }

    async fn run(&self, role: &str, session: &str) -> Result<Credentials, CredentialsError> {
        let [program, arguments @ ..] = self.words.as_slice() else {
            return Err(CredentialsError("no program is named".to_owned()));
        };
        let mut command = tokio::process::Command::new(program);
        command.args(arguments).args([role, session]).stdin(Stdio::null()).kill_on_drop(true);
        let output = command.output().await;
        let output = output.map_err(|error| CredentialsError(format!("cannot run {program}: {error}")))?;
        if !output.status.success() {
            let excuse = String::from_utf8_lossy(&output.stderr);
            let excuse: String = excuse.trim().chars().take(MAX_EXCUSE).collect();
            return Err(CredentialsError(format!("{program} ended with {}: {excuse}", output.status)));
        }
        // What it printed may be a secret: it goes into no message.
        let printed: Printed = serde_json::from_slice(&output.stdout).map_err(|_| {
            CredentialsError(format!("{program} did not print what a credential_process prints"))
        })?;
        Ok(printed.credentials(clock::now()))
    }
}

impl Provider for Command {
    fn assume<'a>(
        &'a self,
        role: &'a str,
        session: &'a str,
    ) -> BoxFuture<'a, Result<Credentials, CredentialsError>> {
        self.run(role, session).boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn printed(script: &str) -> Result<Credentials, CredentialsError> {
        let words = ["sh", "-c", script, "assume"].map(str::to_owned).to_vec();
        Command::new(words).run("arn:r", "task-1").await
    }

    #[tokio::test]
    async fn a_program_gets_role_and_session() {
        let script = r#"printf '{"Version": 1, "AccessKeyId": "%s", "SecretAccessKey": "%s"}' "$1" "$2""#;
        let credentials = printed(script).await.unwrap();
        assert_eq!(
            (credentials.access_key_id.as_str(), credentials.secret_access_key.as_str()),
            ("arn:r", "task-1")
        );
        assert!(
            printed("echo no such role >&2; exit 1").await.unwrap_err().to_string().contains("no such role")
        );
        assert!(!printed("echo hush").await.unwrap_err().to_string().contains("hush"));
    }
}
