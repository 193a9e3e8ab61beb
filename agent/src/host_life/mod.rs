//! The life of the host that the agent runs on: what its service manager is told, and how the agent gets to
//! know that the host goes.
//!
//! | part | its one job |
//! | --- | --- |
//! | [`notify`] | what systemd is told of the agent (sd_notify) |
//! | [`logind`] | the lock that holds a shutdown up, and the word that one has begun |
//! | [`systemd`] | whether the host is on its way down, for those who get SIGTERM |
//! | [`notice`] | notices that the host is taken back, from where they come |
//!
//! None of these has to be there: without a service manager nobody is told, without logind a shutdown is
//! learnt of from systemd, and without either the engine ends the containers as it sees fit.

pub mod logind;
pub mod notice;
pub mod notify;
pub mod systemd;
