//! The agent's own log: human on a terminal, journald's native fields under systemd, JSON otherwise;
//! or a file, where the operator names one.

mod file;

use std::io::{self, IsTerminal};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::config::{LogFile, LogFormat};

use self::file::RollingFile;

/// Libraries that log whole requests, environments of containers included: never below `warn`.
const QUIET: &str = "bollard=warn,hyper=warn,hyper_util=warn,h2=warn,tonic=warn,tower=warn,rustls=warn,zbus=warn,cgroups_rs=error,netlink_proto=error";

/// Installs the log for the whole process. A second call changes nothing.
///
/// # Errors
/// When the log file cannot be written.
pub fn init(level: &str, format: LogFormat, file: Option<LogFile>) -> io::Result<()> {
    let filter = EnvFilter::new(format!("{level},{QUIET}"));
    let registry = tracing_subscriber::registry().with(filter);
    let text = || tracing_subscriber::fmt::layer().with_target(false);
    let under_journald = std::env::var_os("JOURNAL_STREAM").is_some();
    let installed = match (file, format) {
        (Some(file), LogFormat::Json) => registry.with(json(RollingFile::open(file)?)).try_init(),
        (Some(file), _) => {
            registry.with(text().with_ansi(false).with_writer(RollingFile::open(file)?)).try_init()
        }
        (None, LogFormat::Auto) if under_journald => match tracing_journald::layer() {
            Ok(layer) => registry.with(layer).try_init(),
            Err(_) => registry.with(json(io::stderr)).try_init(),
        },
        (None, LogFormat::Auto) if io::stderr().is_terminal() => {
            registry.with(text().with_writer(io::stderr)).try_init()
        }
        (None, LogFormat::Auto | LogFormat::Json) => registry.with(json(io::stderr)).try_init(),
        (None, LogFormat::Text) => registry.with(text().with_ansi(false).with_writer(io::stderr)).try_init(),
    };
    // Only a test that starts two agents in one process comes here twice.
    drop(installed);
    Ok(())
}

fn json<S, W>(writer: W) -> impl tracing_subscriber::Layer<S>
where
    S: tracing::Subscriber + for<'a> tracing_subscriber::registry::LookupSpan<'a>,
    W: for<'a> tracing_subscriber::fmt::MakeWriter<'a> + Send + Sync + 'static,
{
    tracing_subscriber::fmt::layer().json().flatten_event(true).with_writer(writer)
}
