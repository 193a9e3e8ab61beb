//! A system bus of a test, with a logind and a systemd on it that do as the test says.

#![allow(missing_docs, reason = "zbus::interface makes items of its own")]

use std::io::Read;
use std::os::fd::OwnedFd;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use zbus::Connection;
use zbus::object_server::SignalEmitter;

use crate::expect::{PATIENCE, eventually, here};

const PATH: &str = "/org/freedesktop/login1";

/// The locks that were given out: their far ends, which say when the near one is let go.
type Locks = Arc<Mutex<Vec<(String, std::io::PipeReader)>>>;

struct Manager {
    delay: Duration,
    locks: Locks,
}

#[zbus::interface(name = "org.freedesktop.login1.Manager")]
impl Manager {
    fn inhibit(
        &self,
        what: &str,
        who: &str,
        why: &str,
        mode: &str,
    ) -> zbus::fdo::Result<zbus::zvariant::OwnedFd> {
        let failed = |error: std::io::Error| zbus::fdo::Error::IOError(error.to_string());
        let (far, near) = std::io::pipe().map_err(failed)?;
        fcntl(&far, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).map_err(|error| failed(error.into()))?;
        let told = format!("{what} {who} {mode}: {why}");
        self.locks.lock().unwrap_or_else(PoisonError::into_inner).push((told, far));
        Ok(OwnedFd::from(near).into())
    }

    #[zbus(property, name = "InhibitDelayMaxUSec")]
    fn inhibit_delay_max_usec(&self) -> u64 {
        u64::try_from(self.delay.as_micros()).unwrap_or(u64::MAX)
    }

    /// A shutdown begins, or was called off.
    #[zbus(signal)]
    async fn prepare_for_shutdown(emitter: &SignalEmitter<'_>, start: bool) -> zbus::Result<()>;
}

struct Systemd {
    state: Arc<Mutex<String>>,
}

#[zbus::interface(name = "org.freedesktop.systemd1.Manager")]
impl Systemd {
    #[zbus(property)]
    fn system_state(&self) -> String {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The bus and who is on it; they end with their value.
#[derive(Debug)]
pub struct Logind {
    _folder: TempDir,
    _bus: Child,
    address: String,
    connection: Connection,
    locks: Locks,
    state: Arc<Mutex<String>>,
}

impl Logind {
    /// Starts a bus with a logind that waits so long for locks.
    ///
    /// # Errors
    /// When the bus does not start: it is Debian's package `dbus-daemon`.
    pub async fn start(delay: Duration) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("berth-bus-").tempdir()?;
        let config = folder.path().join("bus.conf");
        let socket = folder.path().join("socket");
        let text = format!(
            r#"<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig><type>system</type><listen>unix:path={}</listen>
<policy context="default"><allow user="*"/><allow own="*"/><allow send_type="method_call"/><allow send_type="signal"/>
<allow send_type="method_return"/><allow send_type="error"/><allow receive_type="method_call"/>
<allow receive_type="signal"/><allow receive_type="method_return"/><allow receive_type="error"/></policy></busconfig>"#,
            socket.display()
        );
        std::fs::write(&config, text)?;
        let mut bus = Command::new("dbus-daemon")
            .arg("--config-file")
            .arg(&config)
            .args(["--nofork", "--nosyslog", "--print-address"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("dbus-daemon does not start")?;
        let output = bus.stdout.take().context("dbus-daemon has no output")?;
        let mut lines = BufReader::new(output).lines();
        let line = tokio::time::timeout(here(PATIENCE), lines.next_line()).await??;
        let address = line.context("dbus-daemon ended")?;
        let (locks, state) = (Locks::default(), Arc::new(Mutex::new("running".to_owned())));
        let connection = zbus::connection::Builder::address(address.as_str())?
            .serve_at(PATH, Manager { delay, locks: Arc::clone(&locks) })?
            .serve_at("/org/freedesktop/systemd1", Systemd { state: Arc::clone(&state) })?
            .name("org.freedesktop.login1")?
            .name("org.freedesktop.systemd1")?
            .build()
            .await?;
        Ok(Self { _folder: folder, _bus: bus, address, connection, locks, state })
    }

    /// What tells a program where the bus is: `DBUS_SYSTEM_BUS_ADDRESS`.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The locks that are held.
    #[must_use]
    pub fn held(&self) -> Vec<String> {
        let locks = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
        locks.iter().filter(|(_, far)| is_held(far)).map(|(told, _)| told.clone()).collect()
    }

    /// Waits until so many locks are held.
    ///
    /// # Errors
    /// When that does not come about.
    pub async fn until_held(&self, count: usize) -> Result<()> {
        eventually(PATIENCE, format!("{count} locks are held"), || async {
            Ok((self.held().len() == count).then_some(()))
        })
        .await
    }

    /// Says that a shutdown begins, or that it was called off.
    ///
    /// # Errors
    /// When the bus has gone.
    pub async fn shuts_down(&self, begins: bool) -> Result<()> {
        let manager = self.connection.object_server().interface::<_, Manager>(PATH).await?;
        Ok(Manager::prepare_for_shutdown(manager.signal_emitter(), begins).await?)
    }

    /// What systemd says of the host from now on: `running`, `stopping`.
    pub fn is(&self, state: &str) {
        state.clone_into(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

/// Whether the other end of the pipe is open.
fn is_held(far: &std::io::PipeReader) -> bool {
    let mut far = far;
    far.read(&mut [0]).is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock)
}
