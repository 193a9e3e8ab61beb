//! What operators and tasks ask of the agent.

pub mod address;
mod connections;
pub mod debug;
pub mod exec;
pub mod introspection;
pub mod local;
pub mod metrics;
pub mod readings;
pub mod task;
