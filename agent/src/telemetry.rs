//! The agent's own log: human on a terminal, journald's native fields under systemd, JSON otherwise.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::config::LogFormat;

/// Libraries that log whole requests, environments of containers included: never below `warn`.
const QUIET: &str = "bollard=warn,hyper=warn,hyper_util=warn,h2=warn,tonic=warn,tower=warn,rustls=warn,zbus=warn,cgroups_rs=error";

/// Installs the log for the whole process. A second call changes nothing.
pub fn init(level: &str, format: LogFormat) {
    let filter = EnvFilter::new(format!("{level},{QUIET}"));
    let registry = tracing_subscriber::registry().with(filter);
    let under_journald = std::env::var_os("JOURNAL_STREAM").is_some();
    let installed = match format {
        LogFormat::Auto if under_journald => match tracing_journald::layer() {
            Ok(layer) => registry.with(layer).try_init(),
            Err(_) => registry.with(json()).try_init(),
        },
        LogFormat::Auto if std::io::stderr().is_terminal() => registry
            .with(tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_target(false))
            .try_init(),
        LogFormat::Auto | LogFormat::Json => registry.with(json()).try_init(),
        LogFormat::Text => {
            let text = tracing_subscriber::fmt::layer()
                .with_writer(std::io::stderr)
                .with_ansi(false)
                .with_target(false);
            registry.with(text).try_init()
        }
    };
    // Only a test that starts two agents in one process comes here twice.
    drop(installed);
}

fn json<S>() -> impl tracing_subscriber::Layer<S>
where
    S: tracing::Subscriber + for<'a> tracing_subscriber::registry::LookupSpan<'a>,
{
    tracing_subscriber::fmt::layer().json().flatten_event(true).with_writer(std::io::stderr)
}
