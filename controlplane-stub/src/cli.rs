//! The command line: flags, their environment variables, and what they mean.

use std::net::SocketAddr;
use std::path::PathBuf;

use berth_core::units::Millis;
use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::agents::HEARTBEAT_INTERVAL;
use crate::agents::listener::AgentAddress;
use crate::credentials::Source;
use crate::daemon::{AgentTls, Config};
use crate::state::AccessKey;

/// A control plane for Berth agents that speaks the ECS JSON API.
#[derive(Debug, Parser)]
#[command(name = "berth-controlplane", version)]
pub struct Cli {
    /// What to do; `serve` unless given.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// How to serve.
    #[command(flatten)]
    pub options: Options,
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Subcommand)]
pub enum Command {
    /// Serve the API and the agents (the default).
    Serve,
    /// Make a join token for hosts, and print it with the fingerprint of the CA.
    Token {
        /// How long the token holds, such as 30m, 24h or 7d.
        #[arg(long, default_value = "24h", value_parser = span)]
        lifetime: Millis,
    },
}

/// The form of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object for each line.
    Json,
}

/// All flags. Each may also come from the environment.
#[derive(Debug, Args)]
pub struct Options {
    /// Where the JSON API listens.
    #[arg(long, global = true, env = "BERTH_CP_LISTEN", default_value = "127.0.0.1:8045")]
    pub listen: SocketAddr,
    /// Where agents connect to: `ip:port` or `unix:/path`.
    #[arg(long, global = true, env = "BERTH_CP_AGENT_LISTEN", default_value = "127.0.0.1:8046")]
    pub agent_listen: AgentAddress,
    /// Whether agents speak TLS: auto is everywhere but on loopback and unix sockets.
    #[arg(long, global = true, env = "BERTH_CP_AGENT_TLS", value_enum, num_args = 0..=1, default_value = "auto", default_missing_value = "on", require_equals = true)]
    pub agent_tls: TlsMode,
    /// A DNS name or address that agents dial, for the certificate; may be repeated.
    #[arg(long, global = true, env = "BERTH_CP_AGENT_NAME", value_delimiter = ',')]
    pub agent_name: Vec<String>,
    /// Where records, certificates and tokens are kept.
    #[arg(long, global = true, env = "BERTH_CP_DATA_DIR", default_value = "/var/lib/berth-controlplane")]
    pub data_dir: PathBuf,
    /// The region in ARNs.
    #[arg(long, global = true, env = "BERTH_CP_REGION", default_value = "us-east-1")]
    pub region: String,
    /// The account in ARNs.
    #[arg(long, global = true, env = "BERTH_CP_ACCOUNT", default_value = "123456789012")]
    pub account: String,
    /// A key that API requests must be signed with, as ID:SECRET; may be repeated. Without one
    /// nobody is asked, and the API listens on loopback alone.
    #[arg(long, global = true, env = "BERTH_CP_ACCESS_KEY", hide_env_values = true, value_delimiter = ',')]
    pub access_key: Vec<AccessKey>,
    /// Development: agents may be simulated, and everything may be deleted.
    #[arg(long, global = true, env = "BERTH_CP_DEV")]
    pub dev: bool,
    /// File with the subnets and security groups of awsvpc tasks; SIGHUP has it read again.
    #[arg(long, global = true, env = "BERTH_CP_VPC")]
    pub vpc: Option<PathBuf>,
    /// Where credentials for the roles of tasks come from: file:/PATH, command:/PROGRAM ARGUMENTS or
    /// sts:https://HOST (signed with the key of `AWS_ACCESS_KEY_ID`).
    #[arg(long, global = true, env = "BERTH_CP_CREDENTIALS")]
    pub credentials: Option<Source>,
    /// How long a host's certificate holds.
    #[arg(long, global = true, env = "BERTH_CP_CERTIFICATE_LIFETIME", default_value = "30d", value_parser = span)]
    pub certificate_lifetime: Millis,
    /// How long a task stays describable after it has STOPPED.
    #[arg(long, global = true, env = "BERTH_CP_TASK_RETENTION", default_value = "1h", value_parser = span)]
    pub task_retention: Millis,
    /// The form of the log.
    #[arg(long, global = true, env = "BERTH_CP_LOG_FORMAT", value_enum, default_value = "text")]
    pub log_format: LogFormat,
    /// What is logged, such as info or berth_controlplane=debug.
    #[arg(long, global = true, env = "BERTH_CP_LOG", default_value = "info")]
    pub log: String,
}

/// Whether agents speak TLS, on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum TlsMode {
    /// Where others than this machine can reach the listener.
    Auto,
    /// Always.
    On,
    /// Never.
    Off,
}

impl From<Options> for Config {
    fn from(options: Options) -> Self {
        Self {
            listen: options.listen,
            agent_listen: options.agent_listen,
            agent_tls: match options.agent_tls {
                TlsMode::Auto => AgentTls::Auto,
                TlsMode::On => AgentTls::On,
                TlsMode::Off => AgentTls::Off,
            },
            agent_names: options.agent_name,
            data_dir: options.data_dir,
            region: options.region,
            account: options.account,
            access_keys: options.access_key,
            dev: options.dev,
            vpc: options.vpc,
            credentials: options.credentials,
            certificate_lifetime: options.certificate_lifetime,
            task_retention: options.task_retention.as_duration(),
            heartbeat_interval: HEARTBEAT_INTERVAL,
        }
    }
}

/// Reads a span of time: a whole number and s, m, h or d.
///
/// # Errors
/// A text that says what is accepted.
pub fn span(text: &str) -> Result<Millis, String> {
    let bad = || format!("{text:?} is no span of time; write a whole number and s, m, h or d, such as 24h");
    let unit = match text.chars().last() {
        Some('s') => 1,
        Some('m') => 60,
        Some('h') => 60 * 60,
        Some('d') => 24 * 60 * 60,
        _ => return Err(bad()),
    };
    let number = text.get(..text.len() - 1).and_then(|number| number.parse::<u64>().ok()).ok_or_else(bad)?;
    match number.checked_mul(unit) {
        // Certificates can't name a year past 9999.
        Some(secs) if secs > 0 && secs <= 100 * 365 * 24 * 60 * 60 => Ok(Millis::from_secs(secs)),
        _ => Err(bad()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
        let cli =
            Cli::try_parse_from(["x", "serve", "--agent-tls", "--access-key", "a:b", "--access-key", "c:d"])
                .unwrap();
        assert_eq!((cli.options.agent_tls, cli.options.access_key.len()), (TlsMode::On, 2));
        let cli = Cli::try_parse_from(["x", "--data-dir", "/d", "token", "--lifetime", "2d"]).unwrap();
        assert_eq!(cli.command, Some(Command::Token { lifetime: Millis::from_secs(172_800) }));
        assert!(Cli::try_parse_from(["x", "--access-key", "nocolon"]).is_err());
    }

    #[test]
    fn spans_are_read_or_refused() {
        assert_eq!(span("90s"), Ok(Millis(90_000)));
        assert_eq!(span("30d"), Ok(Millis(2_592_000_000)));
        for bad in ["", "h", "1", "1.5h", "-1h", "0s", "99999999999999999999d", "9999999d", "é"] {
            assert!(span(bad).is_err(), "{bad}");
        }
    }
}
