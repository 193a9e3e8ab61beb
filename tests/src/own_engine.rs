//! A container engine of a test's own, for what would stay in one that others use: an engine never forgets a
//! volume plug-in, and asks each that it knows for every listing of volumes, for ever.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bollard::query_parameters::ImportImageOptions;
use futures_util::TryStreamExt;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::expect::{PATIENCE, here};
use crate::{Engine, demo, eventually};

/// Where engines look for plug-ins.
pub const PLUGINS: &str = "/run/docker/plugins";

/// An engine with a network, storage and a folder for plug-ins of its own; it ends with its value. Containers
/// have no network there but `none` and `host`.
///
/// Its containerd is a process beside it, as where the packages of distributions put it: one can die without the
/// other.
#[derive(Debug)]
pub struct OwnEngine {
    folder: TempDir,
    containerd: Child,
    daemon: Child,
    /// Whether its containers are to be ended with it: one with live-restore leaves them running.
    leaves: bool,
}

impl OwnEngine {
    /// Starts one that has the demo image. From here on this thread, and every thread and program that it
    /// starts, has the engine's folder for plug-ins in the place of the host's.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn start() -> Result<Self> {
        Self::start_with(&[]).await
    }

    /// The same, with more options for the daemon.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn start_with(options: &[&str]) -> Result<Self> {
        demo::image().await?;
        fs::create_dir_all(PLUGINS)?;
        let nothing = None::<&str>;
        unshare(CloneFlags::CLONE_NEWNS).context("a mount namespace")?;
        mount(nothing, "/", nothing, MsFlags::MS_REC | MsFlags::MS_PRIVATE, nothing)?;
        mount(Some("plugins"), PLUGINS, Some("tmpfs"), MsFlags::empty(), nothing)?;
        let folder =
            tempfile::Builder::new().prefix(&format!("berth-engine-{}-", std::process::id())).tempdir()?;
        let containerd = containerd(folder.path())?;
        let daemon = daemon(folder.path(), options)?;
        let own = Self { folder, containerd, daemon, leaves: leaves(options) };
        own.answers().await?;
        let engine = Engine::at(&own.host()).await?;
        let shared = Engine::connect().await?;
        let image = shared.docker().export_image(demo::IMAGE);
        let loaded = engine.docker().import_image_stream(ImportImageOptions::default(), image, None);
        loaded.try_collect::<Vec<_>>().await.context("the demo image")?;
        Ok(own)
    }

    /// What `DOCKER_HOST` is for its clients.
    #[must_use]
    pub fn host(&self) -> String {
        host(self.folder.path())
    }

    /// Waits until it answers.
    ///
    /// # Errors
    /// When it does not; with what it said.
    pub async fn answers(&self) -> Result<()> {
        eventually(PATIENCE, "an engine of the test's own answers", || async {
            let log = fs::read_to_string(self.folder.path().join("log"))?;
            Engine::at(&self.host()).await.context(log).map(|_| Some(()))
        })
        .await
    }

    /// Ends the daemon as a service manager does, and waits for it.
    ///
    /// # Errors
    /// When it does not end.
    pub async fn terminate(&mut self) -> Result<()> {
        self.signal(Signal::SIGTERM)?;
        ended(&mut self.daemon).await
    }

    /// `kill -9` of the daemon, not of its containerd.
    ///
    /// # Errors
    /// When it does not end.
    pub async fn kill(&mut self) -> Result<()> {
        self.signal(Signal::SIGKILL)?;
        ended(&mut self.daemon).await
    }

    /// `kill -9` of its containerd.
    ///
    /// # Errors
    /// When it does not end.
    pub async fn kill_containerd(&mut self) -> Result<()> {
        signal(&self.containerd, Signal::SIGKILL)?;
        ended(&mut self.containerd).await
    }

    /// Sends the daemon a signal.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn signal(&self, number: Signal) -> Result<()> {
        signal(&self.daemon, number)
    }

    /// Starts what has ended of it, with these options, over what there is; does not wait until it answers.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start_again(&mut self, options: &[&str]) -> Result<()> {
        if self.containerd.try_wait()?.is_some() {
            self.containerd = containerd(self.folder.path())?;
        }
        if self.daemon.try_wait()?.is_some() {
            self.daemon = daemon(self.folder.path(), options)?;
            self.leaves = leaves(options);
        }
        Ok(())
    }

    /// What `docker` says to these words, as an operator types them.
    ///
    /// # Errors
    /// When it fails, with what it says.
    pub fn typed(&self, words: &[&str]) -> Result<String> {
        let done = Command::new("docker").args(["--host", &self.host()]).args(words).output()?;
        ensure!(done.status.success(), "docker {words:?}: {}", String::from_utf8_lossy(&done.stderr));
        Ok(String::from_utf8(done.stdout)?.trim().to_owned())
    }
}

fn host(folder: &Path) -> String {
    format!("unix://{}/engine.sock", folder.display())
}

/// Whether a daemon with these options leaves its containers running.
fn leaves(options: &[&str]) -> bool {
    options.contains(&"--live-restore")
}

/// A daemon that ends with this thread, whatever that ends by.
fn tied(program: &str, folder: &Path) -> Result<Command> {
    let output = File::options().create(true).append(true).open(folder.join("log"))?;
    let mut command = Command::new("unshare");
    command
        .args(["--net", "setpriv", "--pdeathsig", "TERM", program])
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output);
    Ok(command)
}

fn containerd(folder: &Path) -> Result<Child> {
    let at = |name: &str| folder.join(name).display().to_string();
    let config = format!(
        "version = 2\nroot = {:?}\nstate = {:?}\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n\
         [grpc]\naddress = {:?}\n[ttrpc]\naddress = {:?}\n",
        at("containerd"),
        at("containerd-run"),
        at("containerd.sock"),
        at("containerd.sock.ttrpc"),
    );
    fs::write(folder.join("containerd.toml"), config)?;
    let mut command = tied("containerd", folder)?;
    command.arg("--config").arg(folder.join("containerd.toml"));
    command.spawn().context("unshare, setpriv and containerd are needed")
}

fn daemon(folder: &Path, options: &[&str]) -> Result<Child> {
    let at = |name: &str| folder.join(name);
    let mut command = tied("dockerd", folder)?;
    command
        .args(["--bridge", "none", "--iptables=false", "--ip6tables=false", "--ip-forward=false"])
        .args(["--ip-masq=false", "--containerd-namespace", "berth-test"])
        .args(["--containerd-plugins-namespace", "berth-test-plugins"])
        .args(["--shutdown-timeout", "5", "--host", &host(folder)])
        .arg("--containerd")
        .arg(at("containerd.sock"))
        .arg("--data-root")
        .arg(at("data"))
        .arg("--exec-root")
        .arg(at("run"))
        .arg("--pidfile")
        .arg(at("pid"))
        .args(options);
    command.spawn().context("unshare, setpriv and dockerd are needed")
}

fn signal(to: &Child, number: Signal) -> Result<()> {
    Ok(kill(Pid::from_raw(i32::try_from(to.id())?), number)?)
}

async fn ended(program: &mut Child) -> Result<()> {
    // Its containers have some seconds to end.
    let latest = Instant::now() + here(PATIENCE);
    while program.try_wait()?.is_none() {
        ensure!(Instant::now() < latest, "it does not end");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}

impl OwnEngine {
    /// Ends it, and first what it would leave running.
    fn end(&mut self) -> Result<()> {
        let _ = self.signal(Signal::SIGCONT);
        if self.containerd.try_wait()?.is_some() {
            // Without it nothing of what runs can be ended; the daemon finds it again after a while.
            self.containerd = containerd(self.folder.path())?;
        }
        if self.leaves {
            let all = "d() { docker --host \"$0\" \"$@\"; }; for _ in $(seq 50); do \
                       all=$(d ps --all --quiet) && { [ -z \"$all\" ] || d rm --force $all; } && exit; sleep 0.1; done; exit 1";
            let done = Command::new("sh").args(["-c", all, &self.host()]).output()?;
            ensure!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        }
        if self.daemon.try_wait()?.is_none() {
            self.signal(Signal::SIGTERM)?;
            self.daemon.wait()?;
        }
        if self.containerd.try_wait()?.is_none() {
            signal(&self.containerd, Signal::SIGTERM)?;
            self.containerd.wait()?;
        }
        Ok(())
    }
}

impl Drop for OwnEngine {
    fn drop(&mut self) {
        if let Err(why) = self.end() {
            eprintln!("an engine of the test's own did not end as it should: {why:#}");
        }
        // Each of its lives has made mounts below, and may not have taken them away.
        let mounts = fs::read_to_string("/proc/thread-self/mountinfo").unwrap_or_default();
        let targets = mounts.lines().filter_map(|line| line.split(' ').nth(4));
        for target in targets.filter(|target| Path::new(target).starts_with(self.folder.path())) {
            // With one, those on it go as well.
            let _ = umount2(target, MntFlags::MNT_DETACH);
        }
    }
}
