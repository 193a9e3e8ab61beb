//! The command line of `berth`. Manual page and completions are made of it as well.

use clap::{Args, Parser, Subcommand};
use serde_json::{Value, json};

/// Reaches into the containers of a cluster's tasks.
///
/// Takes the keys and the region of the AWS command line: `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`,
/// `AWS_DEFAULT_REGION`.
#[derive(Debug, Parser)]
#[command(name = "berth", version)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// The control plane's API.
    #[arg(long, global = true, env = "AWS_ENDPOINT_URL_ECS", default_value = "http://127.0.0.1:8045")]
    pub endpoint: reqwest::Url,
    /// The region that requests are signed for.
    #[arg(long, global = true, env = "AWS_DEFAULT_REGION", default_value = "us-east-1")]
    pub region: String,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a program in a container of a task that was run with `--enable-execute-command`.
    Exec {
        /// Which container.
        #[command(flatten)]
        target: Target,
        /// Pass on what is typed, and the terminal.
        #[arg(short, long)]
        interactive: bool,
        /// The program and its arguments.
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// Print what a container has said.
    Logs {
        /// Which container.
        #[command(flatten)]
        target: Target,
        /// The last lines alone.
        #[arg(long)]
        tail: Option<u32>,
        /// Go on with what it says from now on.
        #[arg(short, long)]
        follow: bool,
    },
}

/// Which container.
#[derive(Debug, Args)]
pub struct Target {
    /// The task, by its id or its ARN.
    pub task: String,
    /// The task's cluster; `default`, or that of the ARN, unless given.
    #[arg(long)]
    pub cluster: Option<String>,
    /// The container, where the task has several.
    #[arg(short, long)]
    pub container: Option<String>,
}

impl Target {
    /// As the API has it.
    #[must_use]
    pub fn request(&self) -> Value {
        let of_arn = self.task.rsplit('/').nth(1).map(str::to_owned);
        json!({ "task": self.task, "cluster": self.cluster.clone().or(of_arn), "container": self.container })
    }
}
