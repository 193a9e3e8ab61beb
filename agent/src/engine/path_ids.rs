//! The secret names under which containers ask the task's endpoint about themselves. A name is in the
//! container's environment alone; who knows it and calls from the task's own address is that container.
//!
//! Names follow from a key of the host, so that a restarted agent knows them again. A container that
//! outlived the key carries its name in a label.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use berth_core::ids::{ContainerName, TaskArn};
use berth_core::spec::TaskSpec;
use ring::hmac;
use serde::{Deserialize, Serialize};

/// Bytes of a name: enough that nobody guesses one.
const BYTES: usize = 16;

/// The names that a container carries in its environment: its own, and that of its task's credentials.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct KeptIds {
    container: Option<String>,
    credentials: Option<String>,
}

#[derive(Debug, Default)]
struct Names {
    tasks: HashMap<String, TaskArn>,
    by_task: HashMap<TaskArn, String>,
    by_id: HashMap<String, (TaskArn, ContainerName)>,
    by_container: HashMap<(TaskArn, ContainerName), String>,
}

impl Names {
    fn set_task(&mut self, task: &TaskArn, id: String) {
        if let Some(old) = self.by_task.insert(task.clone(), id.clone()) {
            self.tasks.remove(&old);
        }
        self.tasks.insert(id, task.clone());
    }
}

/// The names of all containers on this host.
pub(super) struct PathIds {
    key: hmac::Key,
    names: Mutex<Names>,
}

impl PathIds {
    pub(super) fn new(key: &str) -> Self {
        Self { key: hmac::Key::new(hmac::HMAC_SHA256, key.as_bytes()), names: Mutex::default() }
    }

    /// Gives every container of a task its name.
    pub(super) fn enter(&self, spec: &TaskSpec) {
        for container in &spec.containers {
            let id = self.derive(&spec.arn, container.name.as_str());
            self.set(&spec.arn, &container.name, id, false);
        }
        let mut names = self.lock();
        if !names.by_task.contains_key(&spec.arn) {
            // No container is called so: names have no space.
            names.set_task(&spec.arn, self.derive(&spec.arn, "its credentials"));
        }
    }

    /// Takes over the names that a container carries already.
    pub(super) fn adopt(&self, task: &TaskArn, container: &ContainerName, kept: &KeptIds) {
        if let Some(id) = &kept.container {
            self.set(task, container, id.clone(), true);
        }
        if let Some(id) = &kept.credentials {
            self.lock().set_task(task, id.clone());
        }
    }

    /// What a container is to carry.
    pub(super) fn kept(&self, task: &TaskArn, container: &ContainerName) -> KeptIds {
        KeptIds { container: self.of(task, container), credentials: self.of_task(task) }
    }

    /// Forgets a task's names.
    pub(super) fn forget(&self, task: &TaskArn) {
        let mut names = self.lock();
        names.by_id.retain(|_, (of, _)| of != task);
        names.by_container.retain(|(of, _), _| of != task);
        if let Some(id) = names.by_task.remove(task) {
            names.tasks.remove(&id);
        }
    }

    /// A container's name.
    pub(super) fn of(&self, task: &TaskArn, container: &ContainerName) -> Option<String> {
        self.lock().by_container.get(&(task.clone(), container.clone())).cloned()
    }

    /// The container of that name.
    pub(super) fn find(&self, id: &str) -> Option<(TaskArn, ContainerName)> {
        self.lock().by_id.get(id).cloned()
    }

    /// The name under which a task's credentials are asked for.
    pub(super) fn of_task(&self, task: &TaskArn) -> Option<String> {
        self.lock().by_task.get(task).cloned()
    }

    /// The task whose credentials have that name.
    pub(super) fn find_task(&self, id: &str) -> Option<TaskArn> {
        self.lock().tasks.get(id).cloned()
    }

    fn set(&self, task: &TaskArn, container: &ContainerName, id: String, anew: bool) {
        let mut names = self.lock();
        let whose = (task.clone(), container.clone());
        if !anew && names.by_container.contains_key(&whose) {
            return;
        }
        if let Some(old) = names.by_container.insert(whose.clone(), id.clone()) {
            names.by_id.remove(&old);
        }
        names.by_id.insert(id, whose);
    }

    fn derive(&self, task: &TaskArn, whose: &str) -> String {
        let tag = hmac::sign(&self.key, format!("{task}\n{whose}").as_bytes());
        tag.as_ref().iter().take(BYTES).map(|byte| format!("{byte:02x}")).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Names> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use berth_core::ids::Family;
    use berth_core::spec::{ContainerSpec, NetworkMode, TaskFields};
    use berth_core::units::Mebibytes;

    use super::*;

    fn spec() -> TaskSpec {
        let name = ContainerName::new("web").unwrap();
        TaskSpec::try_from(TaskFields {
            arn: TaskArn::new("arn:aws:ecs:r:1:task/c/0123456789abcdef0123456789abcdef").unwrap(),
            family: Family::new("f").unwrap(),
            revision: 1,
            network_mode: NetworkMode::Bridge,
            cpu: None,
            memory: None,
            containers: vec![ContainerSpec::minimal(name, "i", Mebibytes(6))],
            attachment: None,
            pid_mode: None,
            ipc_mode: None,
            volumes: Vec::new(),
            task_role: None,
            fault_injection: false,
        })
        .unwrap()
    }

    #[test]
    fn a_name_is_the_same_after_a_restart_and_another_on_another_host() {
        let (task, name) = (spec().arn.clone(), spec().containers[0].name.clone());
        let id = |key: &str| {
            let ids = PathIds::new(key);
            ids.enter(&spec());
            let id = ids.of(&task, &name).unwrap();
            assert_eq!(ids.find(&id), Some((task.clone(), name.clone())));
            ids.forget(&task);
            assert_eq!(ids.find(&id), None);
            id
        };
        assert_eq!(id("a"), id("a"));
        assert_ne!(id("a"), id("b"));
    }

    #[test]
    fn a_name_that_a_container_carries_stays() {
        let (task, name) = (spec().arn.clone(), spec().containers[0].name.clone());
        let ids = PathIds::new("a");
        let kept = KeptIds { container: Some("old".to_owned()), credentials: Some("older".to_owned()) };
        ids.adopt(&task, &name, &kept);
        ids.enter(&spec());
        assert_eq!(ids.find_task("older"), Some(task.clone()));
        assert_eq!(ids.of(&task, &name).as_deref(), Some("old"));
        assert_eq!(ids.find("old"), Some((task, name)));
    }
}
