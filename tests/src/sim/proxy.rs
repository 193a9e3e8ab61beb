//! A socket between an agent and its container engine that a test can cut and mend.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use tempfile::TempDir;
use tokio::io::copy_bidirectional;
use tokio::net::{UnixListener, UnixStream};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

/// Passes everything on to the engine's real socket. To the agent a cut is an engine that is
/// down: what is under way breaks off, and nobody accepts. Ends with its value.
#[derive(Debug)]
pub struct Proxy {
    folder: TempDir,
    engine: PathBuf,
    link: Option<Link>,
}

#[derive(Debug)]
struct Link {
    stop: DropGuard,
    tracker: TaskTracker,
}

impl Proxy {
    /// A proxy to the engine that tests use, open.
    ///
    /// # Errors
    /// When the engine has no unix socket, or none can be made here.
    pub fn start() -> Result<Self> {
        let host = std::env::var("DOCKER_HOST").unwrap_or_else(|_| "unix:///var/run/docker.sock".to_owned());
        Self::start_to(&host)
    }

    /// A proxy to the engine at that address, open.
    ///
    /// # Errors
    /// When it is no unix socket, or none can be made here.
    pub fn start_to(host: &str) -> Result<Self> {
        let engine =
            host.strip_prefix("unix://").with_context(|| format!("DOCKER_HOST={host} is no unix socket"))?;
        let folder = tempfile::Builder::new().prefix("berth-proxy-").tempdir()?;
        let mut proxy = Self { folder, engine: engine.into(), link: None };
        proxy.mend()?;
        Ok(proxy)
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("engine.sock")
    }

    /// What `DOCKER_HOST` is for an agent behind it.
    #[must_use]
    pub fn docker_host(&self) -> String {
        format!("unix://{}", self.socket().display())
    }

    /// Cuts every connection, and takes no more. Nothing passes once this returns.
    ///
    /// # Errors
    /// When the socket cannot be removed.
    pub async fn cut(&mut self) -> Result<()> {
        if let Some(link) = self.link.take() {
            drop(link.stop);
            link.tracker.wait().await;
        }
        match std::fs::remove_file(self.socket()) {
            Err(why) if why.kind() != ErrorKind::NotFound => Err(why).context("removing the proxy's socket"),
            _ => Ok(()),
        }
    }

    /// Opens it again.
    ///
    /// # Errors
    /// When the socket cannot be made.
    pub fn mend(&mut self) -> Result<()> {
        let listener = UnixListener::bind(self.socket())?;
        let (tracker, stop) = (TaskTracker::new(), CancellationToken::new());
        let pass = pass(listener, self.engine.clone(), tracker.clone(), stop.clone());
        tracker.spawn(stop.clone().run_until_cancelled_owned(pass));
        tracker.close();
        self.link = Some(Link { stop: stop.drop_guard(), tracker });
        Ok(())
    }
}

async fn pass(listener: UnixListener, engine: PathBuf, tracker: TaskTracker, stop: CancellationToken) {
    while let Ok((client, _)) = listener.accept().await {
        let connection = connect(client, engine.clone());
        tracker.spawn(stop.clone().run_until_cancelled_owned(connection));
    }
}

async fn connect(mut client: UnixStream, engine: impl AsRef<Path>) {
    if let Ok(mut engine) = UnixStream::connect(engine).await {
        // Either end may break off at any time; the other then sees the end.
        drop(copy_bidirectional(&mut client, &mut engine).await);
    }
}
