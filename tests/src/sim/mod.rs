//! Simulated hosts beside a real control plane, and parts of a real host that a test can break.
//!
//! | module | its one job |
//! | --- | --- |
//! | [`host`] | the real agent library on an engine, cgroups and a store in memory |
//! | [`fleet`] | many such hosts on one control plane in this process |
//! | [`orders`] | what was asked of a fleet, and whether it came so |
//! | [`chance`] | the same choices for the same seed |
//! | [`impostor`] | servers that are no control plane |
//! | [`proxy`] | the engine's socket, which can be cut |
//! | [`storm`] | faults that chance picks |
//! | [`disk`] | a small disk, which can be full |
//! | [`clock`] | a host's clock, which can be moved |
//! | [`crowd`] | processes and threads, of which there can be no more |
//!
//! A simulated host is wired as `berth_agent::daemon` wires a real one, and speaks the real
//! protocol over loopback; only what is below the agent's ports is in memory.

pub mod chance;
pub mod clock;
pub mod crowd;
pub mod disk;
pub mod fleet;
pub mod host;
pub mod impostor;
pub mod orders;
pub mod proxy;
pub mod storm;

pub use chance::Chance;
pub use clock::WrongClock;
pub use crowd::Crowd;
pub use disk::SmallDisk;
pub use fleet::Fleet;
pub use host::Host;
pub use impostor::{Impostor, Manner};
pub use orders::Orders;
pub use proxy::Proxy;
