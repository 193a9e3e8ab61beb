//! The network of tasks. `bridge`, `host` and `none` are the engine's; what the agent adds is the
//! choice of host ports.

pub mod ports;
