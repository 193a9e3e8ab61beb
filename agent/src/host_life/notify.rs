//! What the service manager is told of the agent: that it is ready, what it does, that it is alive
//! (sd_notify(3)). Nobody is told where there is no service manager.

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

/// Longest status, in bytes: it is one line for people.
const MAX_STATUS: usize = 400;

/// The service manager.
#[derive(Debug, Default)]
pub struct Notify {
    to: Option<(UnixDatagram, SocketAddr)>,
    watchdog: Option<Duration>,
}

impl Notify {
    /// The one that the environment names, and how often it wants to hear that the agent is alive.
    #[must_use]
    pub fn from_env() -> Self {
        let variable = |name| std::env::var_os(name);
        let Some(address) = variable("NOTIFY_SOCKET").filter(|address| !address.is_empty()) else {
            return Self::default();
        };
        let number = |name| variable(name)?.to_str()?.parse::<u64>().ok();
        let ours = number("WATCHDOG_PID").is_none_or(|pid| pid == u64::from(std::process::id()));
        let watchdog = number("WATCHDOG_USEC").filter(|micros| ours && *micros > 0);
        match Self::to(&address, watchdog.map(Duration::from_micros)) {
            Ok(notify) => notify,
            Err(error) => {
                tracing::warn!(%error, address = %address.display(), "NOTIFY_SOCKET: the service manager is not told anything");
                Self::default()
            }
        }
    }

    /// The one behind that socket: a path, or an abstract name that begins with `@`.
    ///
    /// # Errors
    /// When no socket can be made, or the name is too long.
    pub fn to(address: &OsStr, watchdog: Option<Duration>) -> io::Result<Self> {
        let address = match address.as_bytes().strip_prefix(b"@") {
            Some(name) => SocketAddr::from_abstract_name(name)?,
            None => SocketAddr::from_pathname(address)?,
        };
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        Ok(Self { to: Some((socket, address)), watchdog })
    }

    /// Whether there is somebody to be told.
    #[must_use]
    pub const fn is_there(&self) -> bool {
        self.to.is_some()
    }

    /// Longest that it waits for [`alive`](Self::alive); `None` where it does not watch.
    #[must_use]
    pub const fn watchdog(&self) -> Option<Duration> {
        self.watchdog
    }

    /// The agent has started, and does this.
    pub fn ready(&self, status: &str) {
        self.say(&format!("READY=1\nSTATUS={}", line(status)));
    }

    /// What the agent does.
    pub fn status(&self, status: &str) {
        self.say(&format!("STATUS={}", line(status)));
    }

    /// The agent is alive.
    pub fn alive(&self) {
        self.say("WATCHDOG=1");
    }

    /// The agent is about to end, and does this until then.
    pub fn stopping(&self, status: &str) {
        self.say(&format!("STOPPING=1\nSTATUS={}", line(status)));
    }

    /// The agent wants so much more time for what it is at, be it the start or the end.
    pub fn extend(&self, by: Duration) {
        self.say(&format!("EXTEND_TIMEOUT_USEC={}", by.as_micros()));
    }

    fn say(&self, text: &str) {
        let Some((socket, address)) = &self.to else { return };
        // A service manager that does not listen is not waited for: a watchdog hears of it soon enough.
        if let Err(error) = socket.send_to_addr(text.as_bytes(), address) {
            tracing::debug!(%error, "the service manager was not told");
        }
    }
}

/// One line of it, not too long.
fn line(text: &str) -> String {
    let mut line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    if line.len() > MAX_STATUS {
        let end = (0..=MAX_STATUS).rev().find(|at| line.is_char_boundary(*at)).unwrap_or(0);
        line.truncate(end);
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(listener: &UnixDatagram) -> String {
        listener.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let mut buffer = [0; 2048];
        let length = listener.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..length].to_vec()).unwrap()
    }

    #[test]
    fn the_manager_hears_each_word_as_it_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let listener = UnixDatagram::bind(&path).unwrap();
        let notify = Notify::to(path.as_os_str(), Some(Duration::from_secs(3))).unwrap();
        assert!(notify.is_there() && notify.watchdog() == Some(Duration::from_secs(3)));
        notify.ready("connected\nto the control plane");
        notify.status(&"é".repeat(MAX_STATUS));
        notify.alive();
        notify.extend(Duration::from_millis(1500));
        notify.stopping("3 tasks stop");
        assert_eq!(heard(&listener), "READY=1\nSTATUS=connected to the control plane");
        assert_eq!(heard(&listener), format!("STATUS={}", "é".repeat(MAX_STATUS / 2)));
        assert_eq!(heard(&listener), "WATCHDOG=1");
        assert_eq!(heard(&listener), "EXTEND_TIMEOUT_USEC=1500000");
        assert_eq!(heard(&listener), "STOPPING=1\nSTATUS=3 tasks stop");
    }

    #[test]
    fn an_abstract_name_will_do() {
        let name = format!("berth-test-notify-{}", std::process::id());
        let at = SocketAddr::from_abstract_name(&name).unwrap();
        let listener = UnixDatagram::bind_addr(&at).unwrap();
        let notify = Notify::to(OsStr::new(&format!("@{name}")), None).unwrap();
        notify.alive();
        assert_eq!(heard(&listener), "WATCHDOG=1");
    }

    #[test]
    fn a_manager_that_is_not_there_is_no_error() {
        Notify::default().ready("nobody hears it");
        let dir = tempfile::tempdir().unwrap();
        let notify = Notify::to(dir.path().join("gone").as_os_str(), None).unwrap();
        notify.ready("nor this");
    }
}
