//! The operator's command: into the containers of a cluster, from anywhere that reaches its control plane.

use std::process::ExitCode;

use anyhow::Context;
use berth_controlplane::operator::Operator;
use berth_controlplane::operator::arguments::{Cli, Command};
use berth_proto::sigv4::Key;
use clap::Parser;

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
