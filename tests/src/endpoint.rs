//! The task's endpoint in tests: one link-local address of this host, which the tests that are under way
//! share, and a port for each of their agents.

use std::fs::{File, OpenOptions};
use std::net::TcpListener;

use anyhow::{Result, ensure};
use nix::fcntl::{Flock, FlockArg};

use crate::vpc::ip;

/// The address that containers know.
pub const ADDRESS: &str = "169.254.170.2";

/// A place for one agent's endpoint. The last test that is under way takes the address from the host
/// again, unless the host had it before the first.
#[derive(Debug)]
pub struct Endpoint {
    lock: Option<Flock<File>>,
    port: u16,
}

impl Endpoint {
    /// A place of its own.
    ///
    /// # Errors
    /// When there is none.
    pub fn new() -> Result<Self> {
        let port = TcpListener::bind("0.0.0.0:0")?.local_addr()?.port();
        Ok(Self { lock: Some(lock(FlockArg::LockShared)?), port })
    }

    /// The place that every container knows without being told, port 80: for one test at a time.
    ///
    /// # Errors
    /// When somebody else listens there.
    pub fn well_known() -> Result<Self> {
        Ok(Self { lock: Some(lock(FlockArg::LockShared)?), port: 80 })
    }

    /// What the agent is to be told.
    #[must_use]
    pub fn address(&self) -> String {
        format!("{ADDRESS}:{}", self.port)
    }
}

fn lock(how: FlockArg) -> Result<Flock<File>> {
    let path = std::env::temp_dir().join("berth-test-endpoint.lock");
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(path)?;
    let locked = Flock::lock(file, how);
    ensure!(locked.is_ok(), "the endpoint's lock cannot be had");
    locked.map_err(|(_, why)| why.into())
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        drop(self.lock.take());
        if lock(FlockArg::LockExclusiveNonblock).is_ok() {
            // It may be gone already, or never have come.
            let _ = ip(&["address", "delete", &format!("{ADDRESS}/32"), "dev", "lo"]);
        }
    }
}
