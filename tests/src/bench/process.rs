//! The optimised programs as child processes. Their output goes into files, so that reading it costs
//! the measurement nothing.

use std::collections::BTreeMap;
use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::time::timeout;

/// Lines of a program's output that a failure shows.
const SHOWN_LINES: usize = 30;
/// How long a program may take to get ready.
const READY: Duration = Duration::from_secs(20);

/// The agent. Ends with its value, as `kill -9` would end it.
#[derive(Debug)]
pub struct BenchAgent {
    folder: TempDir,
    env: BTreeMap<String, String>,
    child: Child,
    /// When it was started last.
    pub began: Instant,
}

impl BenchAgent {
    /// Starts an agent with an empty data folder. `env` goes over what is set here.
    ///
    /// # Errors
    /// When the program is not there.
    pub fn start(cluster: &str, control_plane: SocketAddr, env: &[(&str, &str)]) -> Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix(&format!("berth-agent-{}-bench-", std::process::id()))
            .tempdir()?;
        let data = folder.path().join("data").display().to_string();
        let own = [
            ("ECS_CLUSTER", cluster),
            ("ECS_BACKEND_HOST", &format!("http://{control_plane}")),
            ("ECS_DATADIR", &data),
            ("ECS_IMAGE_PULL_BEHAVIOR", "prefer-cached"),
            ("BERTH_INTROSPECTION_ADDRESS", "127.0.0.1:0"),
            ("BERTH_CGROUP_ROOT", cluster),
            // This host's own /run and addresses are left alone.
            ("BERTH_RUN_DIR", &format!("{data}/run")),
            ("BERTH_ENDPOINT_ADDRESS", "off"),
        ];
        let mut env: BTreeMap<String, String> =
            own.iter().chain(env).map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        if let Ok(host) = std::env::var("DOCKER_HOST") {
            env.insert("DOCKER_HOST".to_owned(), host);
        }
        let began = Instant::now();
        let child = spawn_agent(folder.path(), &env)?;
        Ok(Self { folder, env, child, began })
    }

    /// Its data folder.
    #[must_use]
    pub fn data_dir(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// The numbers under that key in the lines of its log so far that say `message`.
    #[must_use]
    pub fn logged(&self, message: &str, key: &str) -> Vec<f64> {
        let log = std::fs::read_to_string(log_of(self.folder.path())).unwrap_or_default();
        let key = format!("\"{key}\":");
        let message = format!("\"message\":\"{message}\"");
        let numbers = log.lines().filter(|line| line.contains(&message)).filter_map(|line| {
            let rest = line.split_once(&key)?.1.trim_start_matches('"');
            rest.split(|c: char| !c.is_ascii_digit() && c != '.').next()?.parse().ok()
        });
        numbers.collect()
    }

    /// `kill -9`. Its tasks and its state stay.
    ///
    /// # Errors
    /// When the process cannot be waited for.
    pub async fn kill(&mut self) -> Result<()> {
        Ok(self.child.kill().await?)
    }

    /// Starts it again with the same state.
    ///
    /// # Errors
    /// When the program is not there.
    pub fn start_again(&mut self) -> Result<()> {
        self.began = Instant::now();
        self.child = spawn_agent(self.folder.path(), &self.env)?;
        Ok(())
    }

    /// Waits for `what`, as long as the agent lives.
    ///
    /// # Errors
    /// What `what` says, or the agent when it ends; with the agent's last words.
    pub async fn while_alive<T>(&mut self, what: impl Future<Output = Result<T>>) -> Result<T> {
        let outcome = tokio::select! {
            biased;
            outcome = what => outcome,
            ended = self.child.wait() => Err(anyhow::anyhow!("the agent has ended: {ended:?}")),
        };
        outcome.with_context(|| self.last_words())
    }

    /// Its process id.
    ///
    /// # Errors
    /// When it has ended.
    pub fn pid(&self) -> Result<u32> {
        self.child.id().with_context(|| format!("the agent has ended:\n{}", self.last_words()))
    }

    /// The end of what it has said.
    #[must_use]
    pub fn last_words(&self) -> String {
        let text = std::fs::read_to_string(log_of(self.folder.path())).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(SHOWN_LINES)..].join("\n")
    }
}

fn log_of(folder: &Path) -> PathBuf {
    folder.join("agent.log")
}

fn spawn_agent(folder: &Path, env: &BTreeMap<String, String>) -> Result<Child> {
    let log = File::options().create(true).append(true).open(log_of(folder))?;
    let mut command = program("berth-agent")?;
    command.env_clear().envs(env).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    command.spawn().context("berth-agent does not start")
}

/// The real control plane. Ends with its value.
#[derive(Debug)]
pub struct BenchControlPlane {
    _folder: TempDir,
    _child: Child,
    /// Where the JSON API listens.
    pub api: SocketAddr,
    /// Where agents connect.
    pub agents: SocketAddr,
}

impl BenchControlPlane {
    /// Starts one with an empty store, on ports that the kernel chooses.
    ///
    /// # Errors
    /// When it does not get ready.
    pub async fn start() -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("berth-bench-controlplane-").tempdir()?;
        let mut command = program("berth-controlplane")?;
        command.args(["serve", "--listen", "127.0.0.1:0", "--agent-listen", "127.0.0.1:0", "--data-dir"]);
        command.arg(folder.path().join("data"));
        let log = File::create(folder.path().join("log"))?;
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log);
        let mut child = command.spawn().context("berth-controlplane does not start")?;
        let stdout = child.stdout.take().context("it has no output")?;
        let mut lines = BufReader::new(stdout).lines();
        let ready = async {
            while let Some(line) = lines.next_line().await? {
                if line.starts_with("listening ") {
                    return Ok(line);
                }
            }
            bail!("berth-controlplane ended: {}", std::fs::read_to_string(folder.path().join("log"))?)
        };
        let line = timeout(READY, ready).await.context("berth-controlplane does not get ready")??;
        let address = |key: &str| {
            let found = line.split_whitespace().find_map(|word| word.strip_prefix(key)?.strip_prefix('='));
            found.and_then(|address| address.parse().ok()).with_context(|| format!("no {key} in {line:?}"))
        };
        Ok(Self { api: address("api")?, agents: address("agents")?, _folder: folder, _child: child })
    }
}

/// A program of the build that this benchmark belongs to.
fn program(name: &str) -> Result<Command> {
    let own = std::env::current_exe()?;
    let folder = own.parent().and_then(Path::parent).context("a benchmark lies in target/<profile>/deps")?;
    let folder = std::env::var_os("BERTH_BIN_DIR").map_or_else(|| folder.to_owned(), PathBuf::from);
    let path = folder.join(name);
    if !path.is_file() {
        bail!("{} is not built: run make bench", path.display());
    }
    let mut command = Command::new(path);
    command.kill_on_drop(true);
    Ok(command)
}
