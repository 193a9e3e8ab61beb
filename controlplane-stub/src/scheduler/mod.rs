//! Decisions without side effects: a read-only view and the time in, a plan out.

pub mod candidate;
pub mod placement;
pub mod query;
