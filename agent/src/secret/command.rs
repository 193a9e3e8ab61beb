//! Values from a program, in the manner of the AWS command line's `credential_process`: it gets the
//! name, and prints a JSON object with the value.

use std::process::Stdio;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use serde::Deserialize;

use super::{Provider, Reference, SecretError};
use crate::config::{Secret, without_secrets};

/// Most of what a program that failed has to say.
const MAX_EXCUSE: usize = 300;

/// A program and its arguments, the first being the program; the name comes after them.
pub(super) struct Command {
    words: Vec<String>,
}

/// What the program prints.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    secret_string: String,
}

impl Command {
    pub(super) const fn new(words: Vec<String>) -> Self {
        Self { words }
    }

    async fn run(&self, reference: &Reference) -> Result<Secret, SecretError> {
        let [program, arguments @ ..] = self.words.as_slice() else {
            return Err(SecretError::Refused("BERTH_SECRETS names no program".to_owned()));
        };
        let mut command = tokio::process::Command::new(program);
        command.args(arguments).arg(&reference.text).stdin(Stdio::null()).kill_on_drop(true);
        without_secrets(&mut command);
        let output = command.output().await.map_err(|error| {
            SecretError::Refused(format!("{}: cannot run {program}: {error}", reference.text))
        })?;
        if !output.status.success() {
            let excuse = String::from_utf8_lossy(&output.stderr);
            let excuse: String = excuse.trim().chars().take(MAX_EXCUSE).collect();
            return Err(SecretError::Refused(format!(
                "{}: {program} ended with {}: {excuse}",
                reference.text, output.status
            )));
        }
        // What it printed may be the value: it goes into no message.
        let answer: Answer = serde_json::from_slice(&output.stdout).map_err(|_| {
            SecretError::Refused(format!(
                "{}: {program} did not print a JSON object with a SecretString",
                reference.text
            ))
        })?;
        Ok(Secret::new(answer.secret_string))
    }
}

impl Provider for Command {
    fn fetch<'a>(&'a self, reference: &'a Reference) -> BoxFuture<'a, Result<Secret, SecretError>> {
        self.run(reference).boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn answer(script: &str) -> Result<String, String> {
        let words = ["sh", "-c", script, "secret"].map(str::to_owned).to_vec();
        let reference = Reference::parse("prod/db").unwrap();
        let value = Command::new(words).run(&reference).await;
        value.map(|value| value.expose().to_owned()).map_err(|error| error.to_string())
    }

    #[tokio::test]
    async fn a_program_gets_the_name_and_prints_the_value() {
        let value = answer(r#"printf '{"Version": 1, "SecretString": "value of %s"}' "$1""#).await;
        assert_eq!(value.unwrap(), "value of prod/db");
    }

    #[tokio::test]
    async fn one_that_fails_says_why_and_no_value() {
        let why = answer("echo no such secret >&2; exit 3").await.unwrap_err();
        assert!(why.contains("no such secret") && why.contains("prod/db"), "{why}");
        let why = answer("echo hunter2").await.unwrap_err();
        assert!(why.contains("SecretString") && !why.contains("hunter2"), "{why}");
    }
}
