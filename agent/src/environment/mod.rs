//! What is kept elsewhere for the containers of a task: fetched before they are made, held in memory
//! until the task is gone, and written nowhere.

mod file;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use berth_core::ids::{ContainerName, TaskArn};
use berth_core::spec::{ContainerSpec, EnvVar, SecretRef, TaskSpec};

use crate::runtime::Fetched;
use crate::secret::{SecretError, Secrets};

use self::file::Files;

/// Why a task's environment is not to be had. The text is for users; no value is in it.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
pub enum EnvironmentError {
    /// Asking again would not help.
    #[error("{0}")]
    Refused(String),
    /// Somebody did not answer.
    #[error("{0}")]
    Away(String),
}

/// The environments of all tasks on their way up.
pub struct Environments {
    secrets: Arc<Secrets>,
    files: Files,
    held: Mutex<HashMap<TaskArn, HashMap<ContainerName, Fetched>>>,
}

impl Environments {
    /// With secrets from there; objects of `arn:aws:s3:::` are below `objects`, where one is given.
    #[must_use]
    pub fn new(secrets: Arc<Secrets>, objects: Option<String>) -> Self {
        Self { secrets, files: Files::new(objects), held: Mutex::default() }
    }

    /// Fetches all that the task's containers need, and holds it.
    ///
    /// # Errors
    /// The first that is not to be had, with its container and name.
    pub async fn fetch(&self, spec: &TaskSpec) -> Result<(), EnvironmentError> {
        let mut all = HashMap::new();
        for container in spec.containers.iter().filter(|container| container.has_values_elsewhere()) {
            all.insert(container.name.clone(), self.of(container).await?);
        }
        self.held().insert(spec.arn.clone(), all);
        Ok(())
    }

    /// What was fetched for a container; nothing for one that needs nothing, `None` for one whose
    /// values are not here.
    #[must_use]
    pub fn held_for(&self, spec: &TaskSpec, container: &ContainerSpec) -> Option<Fetched> {
        if !container.has_values_elsewhere() {
            return Some(Fetched::default());
        }
        self.held().get(&spec.arn)?.get(&container.name).cloned()
    }

    /// Forgets what was fetched for a task.
    pub fn forget(&self, task: &TaskArn) {
        self.held().remove(task);
    }

    fn held(&self) -> std::sync::MutexGuard<'_, HashMap<TaskArn, HashMap<ContainerName, Fetched>>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn of(&self, container: &ContainerSpec) -> Result<Fetched, EnvironmentError> {
        let mut fetched = Fetched::default();
        // Of a name in two files the earlier one has its way, and so comes last here.
        for location in container.environment_files.iter().rev() {
            let refused =
                |why: String| format!("container {}, environment file {location}: {why}", container.name);
            for (name, value) in self.files.read(location).await.map_err(|error| match error {
                EnvironmentError::Refused(why) => EnvironmentError::Refused(refused(why)),
                EnvironmentError::Away(why) => EnvironmentError::Away(refused(why)),
            })? {
                fetched.below.push(EnvVar { name, value });
            }
        }
        for secret in &container.secrets {
            fetched.above.push(self.value(container, secret).await?);
        }
        for option in container.log.iter().flat_map(|log| &log.secret_options) {
            fetched.log_options.push(self.value(container, option).await?);
        }
        Ok(fetched)
    }

    async fn value(&self, container: &ContainerSpec, secret: &SecretRef) -> Result<EnvVar, EnvironmentError> {
        let value = self.secrets.value(&secret.value_from).await.map_err(|error| {
            let text = format!("container {}, secret {}: {error}", container.name, secret.name);
            match error {
                SecretError::Refused(_) => EnvironmentError::Refused(text),
                SecretError::Away(_) => EnvironmentError::Away(text),
            }
        })?;
        Ok(EnvVar { name: secret.name.clone(), value: value.expose().to_owned() })
    }
}
