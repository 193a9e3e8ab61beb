//! What operators and tasks ask of the agent.

pub mod address;
pub mod exec;
pub mod introspection;
pub mod local;
pub mod metrics;
pub mod readings;
pub mod task;
