//! The state machine of a task.
mod attempt;
mod event;
mod reason;
mod resource;
pub use attempt::{Attempt, AttemptKind};
pub use event::{Acquired, Event, Exit, Fact, Health, Outcome, PortBinding};
pub use reason::{ErrorClass, Failure, FailureKind, StopCause, StopCode, cut_reason};
pub use resource::{Resource, ResourceInput, ResourceKey, ResourceStatus};
#[derive(Debug)]
/// .
pub struct Task;
