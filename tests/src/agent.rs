//! The real agent as a child process, configured by environment, with a data folder of its own.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;

use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use tempfile::TempDir;

use crate::expect::PATIENCE;
use crate::faults;
use crate::program::Program;

/// An agent of this host. Ends with its value (as `kill -9` would end it), and so does its data;
/// its tasks are removed by [`Cluster`](crate::Cluster).
#[derive(Debug)]
pub struct Agent {
    data: TempDir,
    env: BTreeMap<String, String>,
    program: Program,
}

/// The program that an agent of that environment is: one that ships, unless faults are to befall it.
fn name(env: &BTreeMap<String, String>) -> &'static str {
    if env.contains_key(faults::FOLDER) { "berth-agent-faulty" } else { "berth-agent" }
}

impl Agent {
    /// Starts an agent that joins the cluster at that control plane. `env` goes over what is set here.
    ///
    /// # Errors
    /// When the process does not start. That it registers is for the control plane to tell:
    /// [`Cluster::registered`](crate::Cluster::registered).
    pub fn start(cluster: &str, agents: SocketAddr, env: &[(&str, &str)]) -> Result<Self> {
        // The agent takes none that others may write to, whatever the test's umask is.
        let data = tempfile::Builder::new()
            .prefix(&format!("berth-agent-{}-", std::process::id()))
            .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o700))
            .tempdir()?;
        let datadir = data.path().to_str().context("the temporary folder has a strange name")?;
        let own = [
            ("ECS_CLUSTER", cluster),
            ("ECS_BACKEND_HOST", &format!("http://{agents}")),
            ("ECS_DATADIR", datadir),
            ("ECS_IMAGE_PULL_BEHAVIOR", "prefer-cached"),
            ("ECS_LOGLEVEL", "debug"),
            // Several agents share this host: each has its own port and its own place for cgroups.
            ("BERTH_INTROSPECTION_ADDRESS", "127.0.0.1:0"),
            ("BERTH_CGROUP_ROOT", cluster),
            ("BERTH_RUN_DIR", &format!("{datadir}/run")),
            // Tests of it say where: see [`Endpoint`](crate::Endpoint).
            ("BERTH_ENDPOINT_ADDRESS", "off"),
        ];
        let env: BTreeMap<String, String> =
            own.iter().chain(env).map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let program = Program::start(name(&env), &[], &env)?;
        Ok(Self { data, env, program })
    }

    /// Changes its environment for the next start.
    pub fn set(&mut self, key: &str, value: &str) {
        self.env.insert(key.to_owned(), value.to_owned());
    }

    /// `kill -9`. Its tasks and its state stay.
    ///
    /// # Errors
    /// When the process cannot be waited for.
    pub async fn kill(&mut self) -> Result<()> {
        self.program.kill().await
    }

    /// SIGTERM, then waits for the end.
    ///
    /// # Errors
    /// When it does not end.
    pub async fn terminate(&mut self) -> Result<ExitStatus> {
        self.program.terminate(PATIENCE).await
    }

    /// Waits until it ends by itself.
    ///
    /// # Errors
    /// When it does not.
    pub async fn end(&mut self) -> Result<ExitStatus> {
        self.program.end(PATIENCE).await
    }

    /// Whether it has ended by itself.
    ///
    /// # Errors
    /// When the process cannot be asked.
    pub fn has_ended(&mut self) -> Result<bool> {
        self.program.has_ended()
    }

    /// Its own program, as an operator on this host would start it.
    ///
    /// # Errors
    /// When it was not built.
    pub fn command(&self) -> Result<tokio::process::Command> {
        let mut command = tokio::process::Command::new(crate::program::binary("berth-agent")?);
        command.envs(&self.env);
        Ok(command)
    }

    /// What it was told.
    #[must_use]
    pub const fn environment(&self) -> &BTreeMap<String, String> {
        &self.env
    }

    /// What its own program says on this host, as an operator would type it.
    ///
    /// # Errors
    /// When it fails, with what it says.
    pub async fn typed(&self, arguments: &[&str]) -> Result<String> {
        let typed =
            self.command()?.args(arguments).stdin(std::process::Stdio::null()).kill_on_drop(true).output();
        let done = typed.await?;
        anyhow::ensure!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        Ok(String::from_utf8(done.stdout)?)
    }

    /// Starts another program in its place, with the same state.
    ///
    /// # Errors
    /// When the process does not start.
    pub fn start_as(&mut self, program: &Path) -> Result<()> {
        let program = program.to_str().context("a strange path")?;
        self.program = Program::start(program, &[], &self.env)?;
        Ok(())
    }

    /// Where its introspection API listens, as its log tells.
    ///
    /// # Errors
    /// When the log does not tell.
    pub fn introspection(&self) -> Result<String> {
        let output = self.output();
        let mut told = output.lines().rev().filter(|line| line.contains("introspection API"));
        let address = told.find_map(|line| line.split_once("\"address\":\"")?.1.split('"').next());
        address.map(ToOwned::to_owned).context("the agent's log does not tell of an introspection API")
    }

    /// Starts it again with the same state.
    ///
    /// # Errors
    /// When the process does not start.
    pub fn start_again(&mut self) -> Result<()> {
        self.program = Program::start(name(&self.env), &[], &self.env)?;
        Ok(())
    }

    /// Empties its data folder, as a lost disk would.
    ///
    /// # Errors
    /// When a file cannot be removed.
    pub fn lose_state(&self) -> Result<()> {
        for entry in std::fs::read_dir(self.data.path())? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                std::fs::remove_dir_all(entry.path())?;
            } else {
                std::fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }

    /// Its data folder.
    #[must_use]
    pub fn data_dir(&self) -> &Path {
        self.data.path()
    }

    /// Its process id, while it runs.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.program.pid()
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        self.program.signal(signal)
    }

    /// What it has said so far.
    #[must_use]
    pub fn output(&self) -> String {
        self.program.output()
    }

    /// Where its cgroups are in the hierarchy of that controller (cgroup v1) or in the only one (v2).
    #[must_use]
    pub fn cgroup(&self, controller: &str) -> PathBuf {
        let root = self.env.get("BERTH_CGROUP_ROOT").map_or("", String::as_str);
        let v1 = Path::new("/sys/fs/cgroup").join(controller);
        if v1.is_dir() { v1.join(root) } else { Path::new("/sys/fs/cgroup").join(root) }
    }

    /// The cgroup of a task while it is there: a folder in [`cgroup`](Self::cgroup), or a slice of
    /// systemd, which is where its name says (`a-b.slice` is in `a.slice`).
    #[must_use]
    pub fn task_cgroup(&self, controller: &str, id: &str) -> PathBuf {
        let folder = self.cgroup(controller);
        let name = folder.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let unit = format!("{name}tasks-{id}");
        let ends = unit.match_indices('-').map(|(at, _)| at).chain([unit.len()]);
        let slice = ends.fold(folder.parent().unwrap_or(&folder).to_owned(), |above, end| {
            above.join(format!("{}.slice", &unit[..end]))
        });
        if slice.is_dir() { slice } else { folder.join(id) }
    }
}
