//! A container engine of a test's own, for what would stay in one that others use: an engine never forgets a
//! volume plug-in, and asks each that it knows for every listing of volumes, for ever.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};
use bollard::query_parameters::ImportImageOptions;
use futures_util::TryStreamExt;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::expect::PATIENCE;
use crate::{Engine, demo, eventually};

/// Where engines look for plug-ins.
pub const PLUGINS: &str = "/run/docker/plugins";

/// An engine with a network, storage and a folder for plug-ins of its own; it ends with its value. Containers
/// have no network there but `none` and `host`.
#[derive(Debug)]
pub struct OwnEngine {
    folder: TempDir,
    daemon: Child,
}

impl OwnEngine {
    /// Starts one that has the demo image. From here on this thread, and every thread and program that it
    /// starts, has the engine's folder for plug-ins in the place of the host's.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn start() -> Result<Self> {
        demo::image().await?;
        fs::create_dir_all(PLUGINS)?;
        let nothing = None::<&str>;
        unshare(CloneFlags::CLONE_NEWNS).context("a mount namespace")?;
        mount(nothing, "/", nothing, MsFlags::MS_REC | MsFlags::MS_PRIVATE, nothing)?;
        mount(Some("plugins"), PLUGINS, Some("tmpfs"), MsFlags::empty(), nothing)?;
        let folder =
            tempfile::Builder::new().prefix(&format!("berth-engine-{}-", std::process::id())).tempdir()?;
        let at = |name: &str| folder.path().join(name);
        let output = File::create(at("log"))?;
        // It ends with this thread, whatever that ends by.
        let daemon = Command::new("unshare")
            .args(["--net", "setpriv", "--pdeathsig", "TERM", "dockerd", "--bridge", "none"])
            .args(["--iptables=false", "--ip6tables=false", "--ip-forward=false", "--ip-masq=false"])
            .args([
                "--containerd-namespace",
                "berth-test",
                "--containerd-plugins-namespace",
                "berth-test-plugins",
            ])
            .args(["--shutdown-timeout", "5", "--host", &host(folder.path())])
            .arg("--data-root")
            .arg(at("data"))
            .arg("--exec-root")
            .arg(at("run"))
            .arg("--pidfile")
            .arg(at("pid"))
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .context("unshare, setpriv and dockerd are needed")?;
        let own = Self { folder, daemon };
        let engine = eventually(PATIENCE, "an engine of the test's own answers", || async {
            let log = fs::read_to_string(own.folder.path().join("log"))?;
            Engine::at(&own.host()).await.context(log).map(Some)
        })
        .await?;
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
}

fn host(folder: &Path) -> String {
    format!("unix://{}/engine.sock", folder.display())
}

impl Drop for OwnEngine {
    fn drop(&mut self) {
        let ended = i32::try_from(self.daemon.id()).map(|pid| kill(Pid::from_raw(pid), Signal::SIGTERM));
        if let (Ok(Ok(())), Err(why)) = (ended, self.daemon.wait()) {
            eprintln!("an engine of the test's own was not waited for: {why}");
        }
        // It has made a mount of it, and may not have taken that away.
        let _ = umount2(&self.folder.path().join("data"), MntFlags::MNT_DETACH);
    }
}
