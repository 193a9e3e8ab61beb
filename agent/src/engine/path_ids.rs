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

/// Bytes of a name: enough that nobody guesses one.
const BYTES: usize = 16;

#[derive(Debug, Default)]
struct Names {
    by_id: HashMap<String, (TaskArn, ContainerName)>,
    by_container: HashMap<(TaskArn, ContainerName), String>,
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
            let id = self.derive(&spec.arn, &container.name);
            self.set(&spec.arn, &container.name, id, false);
        }
    }

    /// Takes over the name that a container carries already.
    pub(super) fn adopt(&self, task: &TaskArn, container: &ContainerName, id: String) {
        self.set(task, container, id, true);
    }

    /// Forgets a task's names.
    pub(super) fn forget(&self, task: &TaskArn) {
        let mut names = self.lock();
        names.by_id.retain(|_, (of, _)| of != task);
        names.by_container.retain(|(of, _), _| of != task);
    }

    /// A container's name.
    pub(super) fn of(&self, task: &TaskArn, container: &ContainerName) -> Option<String> {
        self.lock().by_container.get(&(task.clone(), container.clone())).cloned()
    }

    /// The container of that name.
    pub(super) fn find(&self, id: &str) -> Option<(TaskArn, ContainerName)> {
        self.lock().by_id.get(id).cloned()
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

    fn derive(&self, task: &TaskArn, container: &ContainerName) -> String {
        let tag = hmac::sign(&self.key, format!("{task}\n{container}").as_bytes());
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
        ids.adopt(&task, &name, "old".to_owned());
        ids.enter(&spec());
        assert_eq!(ids.of(&task, &name).as_deref(), Some("old"));
        assert_eq!(ids.find("old"), Some((task, name)));
    }
}
