//! The program `berth-agent`: arguments and exit codes.

use std::process::ExitCode;

use berth_agent::arguments::{Arguments, Command, Net};
use berth_agent::ask;
use berth_agent::config::{Config, SECRET_VARIABLES, Strings, VARIABLES, Variables};
use berth_agent::contained;
use berth_agent::daemon::{self, DaemonError};
use berth_agent::host_life::notify::Notify;
use berth_agent::network::describe;
use berth_agent::supervise::Tracker;
use berth_agent::telemetry;
use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Something failed; a supervisor may start the agent again.
const FAILED: u8 = 1;
/// Starting again will not help until somebody has changed something.
const TERMINAL: u8 = 5;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    // Before anything else can use TLS; a second installation is the same provider.
    drop(rustls::crypto::ring::default_provider().install_default());
    match start(&arguments) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            let (code, text) = match error {
                DaemonError::Terminal(text) => (TERMINAL, text),
                DaemonError::Failed(text) => (FAILED, text),
            };
            tell(&text);
            ExitCode::from(code)
        }
    }
}

#[expect(clippy::print_stderr, reason = "the last word of a program, also where no log is set up")]
fn tell(text: &str) {
    eprintln!("berth-agent: {text}");
}

/// The exit code, where all went well.
fn start(arguments: &Arguments) -> Result<u8, DaemonError> {
    let variables = variables(arguments)?;
    let config = Config::read(&variables);
    if matches!(arguments.command, Some(Command::CheckConfig)) {
        print_variables(&variables);
    }
    let config = config.map_err(|e| DaemonError::Terminal(e.to_string()))?;
    if matches!(arguments.command, Some(Command::CheckConfig)) {
        return daemon::check(&config).map(|()| 0);
    }
    if let Some(Command::Net(net)) = &arguments.command {
        return show(net, &config).map(|()| 0);
    }
    if let Some(question) =
        arguments.command.as_ref().filter(|command| !matches!(command, Command::Run | Command::CheckConfig))
    {
        return ask(question, &config);
    }
    if let Err(error) = telemetry::init(&config.log_level, config.log_format, config.log_file.clone()) {
        // No reason to leave tasks alone.
        telemetry::init(&config.log_level, config.log_format, None).map_err(DaemonError::failed)?;
        tracing::error!(%error, "ECS_LOGFILE cannot be written: the log goes to standard error");
    }
    for name in Config::unknown(&variables) {
        tracing::warn!(variable = name, "unknown variable; see berth-agent check-config");
    }
    // A service manager inside takes 0 for a good end, as anywhere.
    let is_contained = contained::own_id().is_some() && !Notify::from_env().is_there();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(8)
        .enable_all()
        .build()
        .map_err(|e| DaemonError::Failed(format!("cannot start the runtime: {e}")))?;
    runtime.block_on(async {
        let stop = CancellationToken::new();
        let (mut term, mut int) = signal(SignalKind::terminate())
            .and_then(|term| Ok((term, signal(SignalKind::interrupt())?)))
            .map_err(|e| DaemonError::Failed(format!("cannot listen for signals: {e}")))?;
        let agent = daemon::run(config, stop.clone());
        tokio::pin!(agent);
        let signal = tokio::select! {
            ended = &mut agent => return ended.map(|()| 0),
            _ = term.recv() => SignalKind::terminate(),
            _ = int.recv() => SignalKind::interrupt(),
        };
        stop.cancel();
        agent.await.map(|()| if is_contained { killed_by(signal) } else { 0 })
    })
}

/// The code of a container that ended by a signal. With it an engine that was restarted starts the agent again, also
/// under `--restart=on-failure`, which takes 0 for the end; one that an operator stopped stays so either way.
fn killed_by(signal: SignalKind) -> u8 {
    128 + u8::try_from(signal.as_raw_value()).unwrap_or_default()
}

/// Asks the agent that runs.
#[expect(clippy::print_stdout, reason = "what the subcommand is for")]
fn ask(question: &Command, config: &Config) -> Result<u8, DaemonError> {
    let socket = daemon::socket(config)?;
    let failed = |error: std::io::Error| DaemonError::Failed(error.to_string());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
    let answered = runtime.block_on(async {
        let mut code = 0;
        let text = match question {
            Command::Status => ask::status(&socket).await,
            Command::Tasks => ask::tasks(&socket).await,
            Command::Images => ask::images(&socket).await,
            Command::Explain { task } => ask::explain(&socket, task).await,
            Command::Logs { task, container, tail, follow } => {
                let mut out = std::io::stdout();
                let copied = ask::logs(&socket, task, container.as_deref(), *tail, *follow, &mut out).await;
                copied.map(|()| String::new())
            }
            Command::Exec { interactive, container, task, command } => {
                let ended = ask::exec(&socket, task, container.as_deref(), command, *interactive).await;
                // 0 to 255, as a shell has it.
                ended.map(|exit| code = u8::try_from(exit & 0xff).unwrap_or(u8::MAX)).map(|()| String::new())
            }
            Command::Run | Command::CheckConfig | Command::Net(_) => Ok(String::new()),
        };
        text.map(|text| (text, code))
    });
    // Somebody may still be expected to type.
    runtime.shutdown_background();
    let (text, code) = answered.map_err(|error| DaemonError::Failed(error.to_string()))?;
    print!("{text}");
    Ok(code)
}

#[expect(clippy::print_stdout, reason = "what the subcommand is for")]
fn show(net: &Net, config: &Config) -> Result<(), DaemonError> {
    let failed = |error: std::io::Error| DaemonError::Failed(error.to_string());
    // As the agent itself names it.
    let data_dir = config.data_dir.canonicalize().map_err(failed)?;
    match net {
        Net::List => {
            for task in describe::list(&data_dir) {
                println!("{task}");
            }
            Ok(())
        }
        Net::Inspect { task } => {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
            let tracker = Tracker::new();
            let text = runtime
                .block_on(describe::inspect(&data_dir, task, config.endpoint, &tracker))
                .map_err(failed)?;
            print!("{text}");
            Ok(())
        }
    }
}

fn variables(arguments: &Arguments) -> Result<Variables, DaemonError> {
    let variables = Variables::from_env();
    let Some(path) = &arguments.config else {
        return Ok(variables);
    };
    let wrong = |what: String| DaemonError::Terminal(format!("{}: {what}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|e| wrong(e.to_string()))?;
    variables.with_file(&text).map_err(wrong)
}

#[expect(clippy::print_stdout, reason = "what the subcommand is for")]
fn print_variables(variables: &Variables) {
    for (name, default, meaning) in VARIABLES {
        let value = match variables.get(name) {
            Some(_) if SECRET_VARIABLES.contains(name) => "***".to_owned(),
            Some(value) => value,
            None => (*default).to_owned(),
        };
        println!("{name}={value}\n    {meaning} (default: {default})");
    }
    for name in Config::unknown(variables) {
        println!("{name}: unknown, ignored");
    }
}
