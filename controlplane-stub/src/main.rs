//! The program: reads the command line, starts the control plane, stops it on a signal.

use std::process::ExitCode;

use anyhow::Context;
use berth_controlplane::cli::{Cli, Command, LogFormat, Options};
use berth_controlplane::clock;
use berth_controlplane::daemon::{Config, Daemon};
use berth_controlplane::tls::{Authority, create_token};
use berth_controlplane::vpc::CurrentVpc;
use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let Cli { command, options } = Cli::parse();
    let done = match command {
        None | Some(Command::Serve) => serve(options),
        Some(Command::Token { lifetime }) => token(&options, lifetime),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("berth-controlplane: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn token(options: &Options, lifetime: berth_core::units::Millis) -> anyhow::Result<()> {
    let authority = Authority::open(&options.data_dir)?;
    let token = create_token(&options.data_dir, lifetime, clock::now())?;
    println!("token={token}\nca={}", authority.fingerprint());
    Ok(())
}

fn serve(options: Options) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(&options.log).with_context(|| format!("--log {}", options.log))?;
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match options.log_format {
        LogFormat::Text => log.init(),
        LogFormat::Json => log.json().init(),
    }
    // Only an error when somebody has chosen a provider already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let served = runtime.block_on(run(options.into()));
    // What did not end by its deadline is left behind.
    runtime.shutdown_background();
    served
}

/// Reads the subnets and security groups again; a file that is wrong changes nothing.
fn reload(vpc: &CurrentVpc) {
    match vpc.reload() {
        Ok(()) => tracing::info!("subnets and security groups were read again"),
        Err(error) => tracing::error!(%error, "subnets and security groups stay as they were"),
    }
}

async fn run(config: Config) -> anyhow::Result<()> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let mut hangup = signal(SignalKind::hangup())?;
    let running = Daemon::start(config).await?;
    println!("listening api={} agents={}", running.api_addr, running.agent_addr);
    let broken = loop {
        tokio::select! {
            _ = terminate.recv() => break false,
            _ = interrupt.recv() => break false,
            () = running.broken() => break true,
            _ = hangup.recv() => reload(&running.state.vpc),
        }
    };
    running.stop().await?;
    if broken {
        anyhow::bail!("a server ended by itself; the log says why");
    }
    Ok(())
}
