//! The AWS command line, unmodified, pointed at a control plane.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Output, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;
use tokio::process::Command;

use crate::demo;

/// `aws` of .venv with its endpoint and credentials of no meaning.
#[derive(Debug, Clone)]
pub struct Aws {
    program: PathBuf,
    endpoint: String,
}

impl Aws {
    /// The command line for the API at that address.
    ///
    /// # Errors
    /// When it is not installed.
    pub fn new(api: SocketAddr) -> Result<Self> {
        let program = demo::checkout().join(".venv/bin/aws");
        if !program.is_file() {
            bail!("{} is missing: run tests/scripts/prepare.sh clients", program.display());
        }
        Ok(Self { program, endpoint: format!("http://{api}") })
    }

    /// Runs `aws ecs …`, whatever comes of it.
    ///
    /// # Errors
    /// When the program itself cannot be run.
    pub async fn output(&self, args: &[&str]) -> Result<Output> {
        let mut command = Command::new(&self.program);
        command.env_clear();
        command.envs(std::env::var_os("PATH").map(|path| ("PATH", path)));
        command.env("AWS_ENDPOINT_URL_ECS", &self.endpoint);
        command.env("AWS_ACCESS_KEY_ID", "test").env("AWS_SECRET_ACCESS_KEY", "test");
        command.env("AWS_DEFAULT_REGION", "us-east-1").env("AWS_EC2_METADATA_DISABLED", "true");
        command.env("AWS_PAGER", "").env("AWS_CONFIG_FILE", "/dev/null");
        command.env("AWS_SHARED_CREDENTIALS_FILE", "/dev/null");
        command.arg("ecs").args(args).stdin(Stdio::null()).kill_on_drop(true);
        command.output().await.with_context(|| format!("{}", self.program.display()))
    }

    /// Runs `aws ecs …` and reads its answer; null when it says nothing, as waiters do.
    ///
    /// # Errors
    /// When it fails; the text holds what it said.
    pub async fn ecs(&self, args: &[&str]) -> Result<Value> {
        let output = self.output(args).await?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            bail!("aws ecs {}: {}: {}", args.join(" "), output.status, said.trim());
        }
        if output.stdout.iter().all(u8::is_ascii_whitespace) {
            return Ok(Value::Null);
        }
        serde_json::from_slice(&output.stdout).with_context(|| format!("aws ecs {}: no JSON", args.join(" ")))
    }
}
