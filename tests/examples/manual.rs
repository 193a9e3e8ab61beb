//! Writes the manual pages and shell completions of the programs into the folder that is its argument. Part of
//! making packages alone: nothing of it is in the programs.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use berth_agent::arguments::Arguments;
use berth_agent::config::VARIABLES;
use berth_controlplane::{cli, operator};
use clap::{Command, CommandFactory};
use clap_complete::Shell;
use clap_mangen::Man;

fn main() -> io::Result<()> {
    let out: PathBuf =
        std::env::args_os().nth(1).ok_or_else(|| io::Error::other("usage: manual FOLDER"))?.into();
    fs::create_dir_all(&out)?;
    let programs =
        [(Arguments::command(), "8"), (cli::Cli::command(), "8"), (operator::arguments::Cli::command(), "1")];
    for (command, section) in programs {
        let name = command.get_name().to_owned();
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            clap_complete::generate_to(shell, &mut command.clone(), &name, &out)?;
        }
        let mut command = command.disable_help_subcommand(true);
        command.build();
        pages(&command, section, &out)?;
    }
    fs::write(out.join("berth-agent.config.5"), configuration())
}

/// One page for each subcommand, as the page above it refers to.
fn pages(command: &Command, section: &str, out: &Path) -> io::Result<()> {
    for below in command.get_subcommands().filter(|below| !below.is_hide_set()) {
        pages(below, section, out)?;
    }
    Man::new(command.clone()).section(section).generate_to(out).map(drop)
}

/// The page of the configuration file: every variable.
fn configuration() -> String {
    let mut page = String::from(concat!(
        ".TH berth-agent.config 5 \"\" \"berth-agent ",
        env!("CARGO_PKG_VERSION"),
        "\"\n.SH NAME\nberth\\-agent.config \\- configuration of berth\\-agent(8)\n.SH SYNOPSIS\n\
         /etc/berth/agent.config\n.SH DESCRIPTION\nLines of KEY=value, which systemd(1) gives the agent as its \
         environment; lines that begin with # say nothing. A value that does not parse stops the start, and all \
         that do not are named at once; an unknown variable that begins with ECS_ or BERTH_ is warned about. \
         \\fBberth\\-agent \\-\\-config /etc/berth/agent.config check\\-config\\fR shows what holds. A change is in \
         force after \\fBsystemctl restart berth\\-agent\\fR; tasks go on running.\n.SH VARIABLES\n",
    ));
    for (name, default, meaning) in VARIABLES {
        // To a String nothing can fail.
        let _ =
            writeln!(page, ".TP\n\\fB{}\\fR\n{} (default: {})", plain(name), plain(meaning), plain(default));
    }
    page + ".SH FILES\n.TP\n\\fI$DOCKER_CONFIG/config.json\\fR, \\fI~/.docker/config.json\\fR\nWhat docker login left: the \
            logins of registries that nothing above names.\n.SH SEE ALSO\nberth\\-agent(8)\n"
}

/// A text in which roff sees nothing to act on.
fn plain(text: &str) -> String {
    text.replace('\\', "\\e").replace('-', "\\-").replace('\'', "\\(aq").replace('…', "...")
}
