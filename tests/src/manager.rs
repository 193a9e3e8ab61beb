//! A service manager of a test: the socket on which a program says that it is ready, what it does and that it
//! is alive (sd_notify).

use std::time::Duration;

use anyhow::{Context, Result};
use tempfile::TempDir;
use tokio::net::UnixDatagram;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::expect::here;

/// What it heard so far, message by message; it ends with its value.
#[derive(Debug)]
pub struct Manager {
    folder: TempDir,
    heard: watch::Receiver<Vec<String>>,
    _listening: JoinSet<()>,
}

impl Manager {
    /// Begins to listen.
    ///
    /// # Errors
    /// When there is no socket to be had.
    pub fn start() -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("berth-manager-").tempdir()?;
        let socket = UnixDatagram::bind(folder.path().join("notify"))?;
        let (said, heard) = watch::channel(Vec::new());
        let mut listening = JoinSet::new();
        listening.spawn(async move {
            let mut buffer = [0; 4096];
            while let Ok(length) = socket.recv(&mut buffer).await {
                let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
                said.send_modify(|heard| heard.push(text));
            }
        });
        Ok(Self { folder, heard, _listening: listening })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> String {
        self.folder.path().join("notify").display().to_string()
    }

    /// All that it heard so far.
    #[must_use]
    pub fn heard(&self) -> Vec<String> {
        self.heard.borrow().clone()
    }

    /// The first message, past or to come, after so many others, that has this in it.
    ///
    /// # Errors
    /// When none comes in time.
    pub async fn hears(&self, what: &str, after: usize, within: Duration) -> Result<String> {
        let find = |heard: &[String]| heard.iter().skip(after).find(|text| text.contains(what)).cloned();
        let mut heard = self.heard.clone();
        let found = tokio::time::timeout(here(within), heard.wait_for(|heard| find(heard).is_some())).await;
        let found = found.with_context(|| format!("nobody said {what:?}: {:?}", self.heard()))??;
        find(&found).context("it went away")
    }
}
