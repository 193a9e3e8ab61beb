//! The command line of `berth-agent`. Manual page and completions are made of it as well.

use std::path::PathBuf;

use clap::{Parser, Subcommand};

/// Joins this host to a cluster and runs the tasks that are placed on it.
///
/// Everything is set by environment variables (ECS's names, and BERTH_ beyond them);
/// `berth-agent check-config` lists them.
#[derive(Debug, Parser)]
#[command(name = "berth-agent", version, about, long_about)]
pub struct Arguments {
    /// File of KEY=value lines; the environment wins over it.
    #[arg(long, value_name = "FILE", env = "BERTH_CONFIG_FILE", global = true)]
    pub config: Option<PathBuf>,
    /// What to do; `run` unless given.
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the agent (what it does without a subcommand, too).
    Run,
    /// Check the configuration, and print every variable with its value and default.
    CheckConfig,
    /// How the agent on this host is.
    Status,
    /// The tasks on this host, and what they wait for.
    Tasks,
    /// The images on this host: which are in use, and which this agent has pulled.
    Images,
    /// What happened to a task, in order: waits with their reasons, steps with their durations, ends with
    /// their causes and the last lines. Kept for a week.
    Explain {
        /// The task: its ARN, its id or the beginning of it.
        task: String,
    },
    /// What a container has said.
    Logs {
        /// The task: its ARN, its id or the beginning of it.
        task: String,
        /// The container; the only one needs no name.
        container: Option<String>,
        /// Only so many lines from the end.
        #[arg(long, short = 'n')]
        tail: Option<u32>,
        /// Go on with what it says from now on.
        #[arg(long, short)]
        follow: bool,
    },
    /// Run a program in a container that runs; its exit code becomes this one's.
    Exec {
        /// Pass on what is typed, and the terminal.
        #[arg(long, short)]
        interactive: bool,
        /// The container; the only one needs no name.
        #[arg(long, short)]
        container: Option<String>,
        /// The task: its ARN, its id or the beginning of it.
        task: String,
        /// The program and its arguments.
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// Show the networks of awsvpc tasks on this host, as the kernel has them.
    #[command(subcommand)]
    Net(Net),
}

/// What to show of networks.
#[derive(Debug, Subcommand)]
pub enum Net {
    /// The tasks that have a network namespace here.
    List,
    /// Interfaces, addresses, routes and rules of a task, by its id or ARN.
    Inspect {
        /// The task.
        task: String,
    },
}
