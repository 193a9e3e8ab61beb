//! The operator's command: into the containers of a cluster, from anywhere that reaches its control plane.

use std::process::ExitCode;

use anyhow::Context;
use berth_controlplane::operator::Operator;
use berth_proto::sigv4::Key;
use clap::{Args, Parser, Subcommand};
use serde_json::{Value, json};

/// Reaches into the containers of a cluster's tasks.
///
/// Takes the keys and the region of the AWS command line: `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`,
/// `AWS_DEFAULT_REGION`.
#[derive(Debug, Parser)]
#[command(name = "berth", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// The control plane's API.
    #[arg(long, global = true, env = "AWS_ENDPOINT_URL_ECS", default_value = "http://127.0.0.1:8045")]
    endpoint: reqwest::Url,
    /// The region that requests are signed for.
    #[arg(long, global = true, env = "AWS_DEFAULT_REGION", default_value = "us-east-1")]
    region: String,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a program in a container of a task that was run with `--enable-execute-command`.
    Exec {
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

#[derive(Debug, Args)]
struct Target {
    /// The task, by its id or its ARN.
    task: String,
    /// The task's cluster; `default`, or that of the ARN, unless given.
    #[arg(long)]
    cluster: Option<String>,
    /// The container, where the task has several.
    #[arg(short, long)]
    container: Option<String>,
}

impl Target {
    /// As the API has it.
    fn request(&self) -> Value {
        let of_arn = self.task.rsplit('/').nth(1).map(str::to_owned);
        json!({ "task": self.task, "cluster": self.cluster.clone().or(of_arn), "container": self.container })
    }
}

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(code) => ExitCode::from(u8::try_from(code).unwrap_or(1)),
        Err(error) => {
            eprintln!("berth: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<i32> {
    let key = Key::from_env().map_err(|name| anyhow::anyhow!("{name} is not set: whose name is this in?"))?;
    let operator = Operator::new(cli.endpoint, cli.region, key);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("starting")?;
    let ended = runtime.block_on(async {
        match cli.command {
            Command::Exec { target, interactive, command } => {
                operator.exec(target.request(), &command, interactive).await
            }
            Command::Logs { target, tail, follow } => {
                let mut request = target.request();
                request["follow"] = follow.into();
                request["tail"] = tail.into();
                operator.logs(&request).await
            }
        }
    });
    // Somebody may be waited for at the terminal.
    runtime.shutdown_background();
    Ok(ended?)
}
