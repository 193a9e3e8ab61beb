//! A program under test as a child process: its output is kept, its end awaited, and it never
//! outlives the test.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio_util::task::TaskTracker;

use crate::expect::here;

/// Variables of the test's own environment that a program sees; the others would make a test
/// depend on who runs it.
const PASSED_ON: [&str; 5] = ["PATH", "HOME", "DOCKER_HOST", "RUST_BACKTRACE", "RUST_LOG"];

/// Lines of output that are shown of a program when its test fails.
const SHOWN_LINES: usize = 150;

/// A running (or ended) child process.
#[derive(Debug)]
pub struct Program {
    name: String,
    child: Child,
    output: watch::Receiver<Vec<String>>,
    readers: TaskTracker,
}

impl Program {
    /// Starts the binary of that name from the build that this test belongs to.
    ///
    /// # Errors
    /// When the binary is not there or does not start.
    pub fn start(name: &str, args: &[OsString], env: &BTreeMap<String, String>) -> Result<Self> {
        Self::of(Command::new(binary(name)?), name, args, env)
    }

    /// The same for a copy of a program that lies elsewhere, as a user other than the test's own.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start_as_user(
        user: u32,
        program: &Path,
        args: &[OsString],
        env: &BTreeMap<String, String>,
    ) -> Result<Self> {
        let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let mut command = Command::new(program);
        command.uid(user).gid(user).current_dir("/");
        Self::of(command, &name, args, env)
    }

    fn of(
        mut command: Command,
        name: &str,
        args: &[OsString],
        env: &BTreeMap<String, String>,
    ) -> Result<Self> {
        command.env_clear();
        for key in PASSED_ON {
            if let Some(value) = std::env::var_os(key) {
                command.env(key, value);
            }
        }
        command.args(args).envs(env);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().with_context(|| format!("{name} does not start"))?;
        let (lines, output) = watch::channel(Vec::new());
        let lines = Arc::new(lines);
        let readers = TaskTracker::new();
        if let Some(stdout) = child.stdout.take() {
            readers.spawn(keep_lines(stdout, Arc::clone(&lines)));
        }
        if let Some(stderr) = child.stderr.take() {
            readers.spawn(keep_lines(stderr, lines));
        }
        readers.close();
        Ok(Self { name: name.to_owned(), child, output, readers })
    }

    /// The first line of output, past or to come, that begins so.
    ///
    /// # Errors
    /// When the program ends first, or the time is over.
    pub async fn line(&mut self, beginning: &str, within: Duration) -> Result<String> {
        let within = here(within);
        let find = |lines: &[String]| lines.iter().find(|line| line.starts_with(beginning)).cloned();
        let mut output = self.output.clone();
        let found = tokio::time::timeout(within, output.wait_for(|lines| find(lines).is_some())).await;
        match found {
            Ok(Ok(lines)) => find(&lines).context("the line went away"),
            Ok(Err(_)) => bail!("{} ended before it said {beginning:?}:\n{}", self.name, self.output()),
            Err(_) => bail!("{} did not say {beginning:?} within {within:?}:\n{}", self.name, self.output()),
        }
    }

    /// The process id, while the program runs.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// SIGKILL, and waits until the process is gone.
    ///
    /// # Errors
    /// When the process cannot be waited for.
    pub async fn kill(&mut self) -> Result<()> {
        self.child.kill().await.with_context(|| format!("killing {}", self.name))
    }

    /// Sends a signal; one that has ended gets none.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let Some(pid) = self.pid().and_then(|pid| i32::try_from(pid).ok()) else { return Ok(()) };
        kill(Pid::from_raw(pid), signal).with_context(|| format!("{signal} to {}", self.name))
    }

    /// SIGTERM; the exit status once the process is gone.
    ///
    /// # Errors
    /// When it is still there after that time.
    pub async fn terminate(&mut self, within: Duration) -> Result<ExitStatus> {
        self.signal(Signal::SIGTERM)?;
        self.end(within).await
    }

    /// The exit status, once the process has ended by itself.
    ///
    /// # Errors
    /// When it is still there after that time.
    pub async fn end(&mut self, within: Duration) -> Result<ExitStatus> {
        let within = here(within);
        let ended = async {
            let status = self.child.wait().await;
            self.readers.wait().await;
            status
        };
        let status = tokio::time::timeout(within, ended).await;
        let status = status.with_context(|| format!("{} is still there after {within:?}", self.name))?;
        Ok(status?)
    }

    /// Whether the process has ended by itself.
    ///
    /// # Errors
    /// When it cannot be asked.
    pub fn has_ended(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_some())
    }

    /// What the program has said so far, on both outputs.
    #[must_use]
    pub fn output(&self) -> String {
        self.output.borrow().join("\n")
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // The process itself is ended by kill_on_drop. Test runners show this of failed tests alone.
        let lines = self.output.borrow();
        let from = lines.len().saturating_sub(SHOWN_LINES);
        eprintln!("--- {}, its last lines ---\n{}\n---", self.name, lines[from..].join("\n"));
    }
}

async fn keep_lines(stream: impl AsyncRead + Unpin, into: Arc<watch::Sender<Vec<String>>>) {
    let mut lines = BufReader::new(stream).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        into.send_modify(|lines| lines.push(line));
    }
}

/// The folder of the build that this test executable belongs to: `target/<profile>`.
///
/// # Errors
/// When the test lies somewhere else.
pub fn folder() -> Result<PathBuf> {
    if let Some(folder) = std::env::var_os("BERTH_BIN_DIR") {
        return Ok(folder.into());
    }
    let own = std::env::current_exe().context("where this test is")?;
    let folder = own.parent().and_then(Path::parent).context("a test lies in target/<profile>/deps")?;
    Ok(folder.to_owned())
}

/// The program of that name from the same build.
///
/// # Errors
/// When it was not built.
pub fn binary(name: &str) -> Result<PathBuf> {
    let path = folder()?.join(name);
    if !path.is_file() {
        bail!(
            "{} is not built: run `make test`, or `cargo build --workspace` before cargo test",
            path.display()
        );
    }
    Ok(path)
}
