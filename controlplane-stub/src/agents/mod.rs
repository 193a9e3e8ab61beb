//! The gRPC side: registration and sessions of agents. Writes observed state only.

pub mod registry;
