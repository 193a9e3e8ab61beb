//! The state machine of a task.
