//! What a container engine tells of a container beyond what decides its task's course: for people
//! and programs that ask about it.

use std::net::IpAddr;

use berth_core::units::Timestamp;

/// A container in detail.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Details {
    /// The process id of its main process on the host; 0 when it does not run.
    pub pid: u32,
    /// The engine's name for it, without a slash.
    pub name: String,
    /// Id of its image.
    pub image_id: String,
    /// When it was made.
    pub created_at: Option<Timestamp>,
    /// The log driver that it has.
    pub log_driver: String,
    /// The storage driver under it.
    pub storage_driver: String,
    /// Its own addresses and the hardware address of each, where the engine gave it any.
    pub networks: Vec<Interface>,
    /// What is mounted in it.
    pub mounts: Vec<Mounted>,
    /// What its health check said last.
    pub health: Option<Checked>,
}

/// An interface that the engine gave a container.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Interface {
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Its hardware address.
    pub mac: String,
}

/// Something mounted in a container.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mounted {
    /// The volume's name; empty for a folder of the host.
    pub volume: String,
    /// Where it is on the host.
    pub source: String,
    /// Where it is in the container.
    pub destination: String,
}

/// The last run of a health check.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Checked {
    /// When it ended.
    pub at: Option<Timestamp>,
    /// Its exit code.
    pub exit_code: i64,
    /// What it printed.
    pub output: String,
}
