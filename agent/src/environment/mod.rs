//! What is kept elsewhere for the containers of a task: fetched before they are made, held in memory
//! until the task is gone, and written nowhere.

mod file;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use berth_core::ids::{ContainerName, TaskArn};
use berth_core::spec::{ContainerSpec, EnvVar, SecretRef, TaskSpec};

use crate::object::{ObjectError, Objects};
use crate::runtime::Fetched;
use crate::secret::{SecretError, Secrets};

use self::file::variables;

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
    objects: Arc<Objects>,
    held: Mutex<HashMap<TaskArn, HashMap<ContainerName, Fetched>>>,
}

impl Environments {
    /// With secrets and files from there.
    #[must_use]
    pub fn new(secrets: Arc<Secrets>, objects: Arc<Objects>) -> Self {
        Self { secrets, objects, held: Mutex::default() }
    }

    /// Fetches all that the task's containers need, and holds it.
    ///
    /// # Errors
    /// The first that is not to be had, with its container and name.
    pub async fn fetch(&self, spec: &TaskSpec) -> Result<(), EnvironmentError> {
        let mut all = HashMap::new();
        for container in spec.containers.iter().filter(|container| spec.has_values_elsewhere(container)) {
            all.insert(container.name.clone(), self.of(spec, container).await?);
        }
        self.held().insert(spec.arn.clone(), all);
        Ok(())
    }

    /// What was fetched for a container; nothing for one that needs nothing, `None` for one whose
    /// values are not here.
    #[must_use]
    pub fn held_for(&self, spec: &TaskSpec, container: &ContainerSpec) -> Option<Fetched> {
        if !spec.has_values_elsewhere(container) {
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

    async fn of(&self, spec: &TaskSpec, container: &ContainerSpec) -> Result<Fetched, EnvironmentError> {
        let mut fetched = Fetched::default();
        // Of a name in two files the earlier one has its way, and so comes last here.
        for location in container.environment_files.iter().rev() {
            let refused =
                |why: String| format!("container {}, environment file {location}: {why}", container.name);
            let text = self.objects.read(location).await.map_err(|error| match error {
                ObjectError::Refused(why) => EnvironmentError::Refused(refused(why)),
                ObjectError::Away(why) => EnvironmentError::Away(refused(why)),
            })?;
            fetched.below.extend(variables(&text).into_iter().map(|(name, value)| EnvVar { name, value }));
        }
        for secret in &container.secrets {
            fetched.above.push(self.value(container, secret).await?);
        }
        // The engine is told nothing of what goes to the log router: the router has the values.
        let log = container.log.as_ref().filter(|_| !container.logs_to_router());
        for option in log.iter().flat_map(|log| &log.secret_options) {
            fetched.log_options.push(self.value(container, option).await?);
        }
        if container.firelens.is_some() {
            for secret in spec.router_secrets() {
                let value = self.value(secret.container, secret.option).await?;
                fetched.above.push(EnvVar { name: secret.variable, ..value });
            }
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
