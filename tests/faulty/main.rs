//! `berth-agent-faulty`: the agent as it ships, with somebody beside everything that it does to the world. The
//! folder in `BERTH_FAULTS_FOLDER` says what happens where: see `berth_tests::faults::Armed`.

use std::path::PathBuf;
use std::process::ExitCode;

use berth_agent::config::{Config, Variables};
use berth_agent::daemon::{self, DaemonError};
use berth_agent::telemetry;
use berth_tests::faults::{Armed, FOLDER, points};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

fn main() -> ExitCode {
    if std::env::args().nth(1).as_deref() == Some("faults") {
        points::all().for_each(|effect| println!("{effect}.before\n{effect}.after"));
        return ExitCode::SUCCESS;
    }
    drop(rustls::crypto::ring::default_provider().install_default());
    match start() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("berth-agent-faulty: {error}");
            ExitCode::FAILURE
        }
    }
}

fn start() -> Result<(), DaemonError> {
    let failed = |error: std::io::Error| DaemonError::Failed(error.to_string());
    let config =
        Config::read(&Variables::from_env()).map_err(|error| DaemonError::Terminal(error.to_string()))?;
    let folder = std::env::var_os(FOLDER).map(PathBuf::from);
    let folder = folder.ok_or_else(|| DaemonError::Terminal(format!("{FOLDER} is not set")))?;
    telemetry::init(&config.log_level, config.log_format, config.log_file.clone()).map_err(failed)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(8)
        .enable_all()
        .build()
        .map_err(failed)?;
    runtime.block_on(async {
        let stop = CancellationToken::new();
        let mut term = signal(SignalKind::terminate()).map_err(failed)?;
        let armed = Armed::new(folder);
        let agent = daemon::run_within(config, stop.clone(), &armed);
        tokio::pin!(agent);
        tokio::select! {
            ended = &mut agent => return ended,
            _ = term.recv() => {}
        }
        stop.cancel();
        agent.await
    })
}
