//! The agent as a service: to be written.
