//! What others ask about tasks and their containers. Answers come from what the actors show, from what is
//! held for tasks, and from the container engine; nothing is changed, but for programs that an operator
//! starts, and what a task does to its own network.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use berth_core::ids::{ContainerName, EngineId, TaskArn};
use berth_core::image::familiar;
use berth_core::spec::TaskSpec;
use berth_core::task::{Task, TaskStatus};

use super::{Engine, clean_up};
use crate::clock;
use crate::credentials::RoleCredentials;
use crate::fault::{FaultError, Request, Status};
use crate::image::{Progress, Record};
use crate::runtime::{Details, Exec, ExecRequest, LocalImage, LogStream, Pulling, RuntimeError};

/// Longest that an answer about a container may take.
const DETAILS: Duration = Duration::from_secs(2);

/// A container that waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerWait {
    /// Its task.
    pub task: TaskArn,
    /// Its name.
    pub container: ContainerName,
    /// What for, for people.
    pub on: String,
}

/// An image that the engine has, and what this agent knows of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownImage {
    /// The image.
    pub image: LocalImage,
    /// Where this agent has pulled it: when, and when it was used last.
    pub record: Option<Record>,
    /// Whether a task of this host has it.
    pub in_use: bool,
}

impl Engine {
    /// All tasks as they stand.
    #[must_use]
    pub fn tasks(&self) -> Vec<Arc<Task>> {
        self.shared.registry.views()
    }

    /// The container that asks under that name, and its task as it stands.
    #[must_use]
    pub fn asked_by(&self, path_id: &str) -> Option<(Arc<Task>, ContainerName)> {
        let (task, container) = self.shared.path_ids.find(path_id)?;
        Some((self.task(&task)?, container))
    }

    /// The task whose credentials are asked for under that name.
    #[must_use]
    pub fn credentials_asked_by(&self, path_id: &str) -> Option<Arc<Task>> {
        self.task(&self.shared.path_ids.find_task(path_id)?)
    }

    /// The credentials of a task's role; `None` when there are none.
    #[must_use]
    pub fn credentials(&self, task: &TaskArn) -> Option<RoleCredentials> {
        self.shared.credentials.of(task)
    }

    /// One task as it stands.
    #[must_use]
    pub fn task(&self, task: &TaskArn) -> Option<Arc<Task>> {
        self.shared.registry.get(task).map(|handle| Arc::clone(&handle.view.borrow()))
    }

    /// What each container of a task waits for, for people: an image with how far it is.
    #[must_use]
    pub fn container_waits(&self, task: &Task) -> Vec<(ContainerName, String)> {
        let mut waits = task.container_waits(clock::now());
        for (name, on) in &mut waits {
            let image = task.spec().container(name).map(|spec| spec.image.as_str()).unwrap_or_default();
            if on.strip_prefix("image ") != Some(image) {
                continue;
            }
            match self.shared.images.progress(image) {
                Some(Progress::Queued) => on.push_str(", behind other pulls"),
                Some(Progress::Again) => on.push_str(", to be tried again"),
                Some(Progress::Pulling(Pulling { bytes, of })) if of > 0 => {
                    on.push_str(&format!(", {} of {} KiB", bytes.div_ceil(1024), of.div_ceil(1024)));
                }
                Some(Progress::Pulling(_)) | None => {}
            }
        }
        waits
    }

    /// What containers of tasks wait for that do not run yet, where it is not the whole task that waits.
    #[must_use]
    pub fn waits_of_containers(&self) -> Vec<ContainerWait> {
        let mut all = Vec::new();
        for task in self.tasks() {
            let begins = task.state().status == TaskStatus::Pending && !task.is_stopping();
            if !begins || !task.waiting_for().is_empty() {
                continue;
            }
            let waits = self.container_waits(&task).into_iter();
            all.extend(waits.map(|(container, on)| ContainerWait {
                task: task.spec().arn.clone(),
                container,
                on,
            }));
        }
        all
    }

    /// The images that the engine has, by name, and what this agent knows of them.
    ///
    /// # Errors
    /// The engine's.
    pub async fn images(&self) -> Result<Vec<KnownImage>, RuntimeError> {
        let used = clean_up::in_use(&self.shared);
        let known = |image: LocalImage| KnownImage {
            record: self.shared.images.records().of(&image.name),
            in_use: used.contains(&familiar(&image.name)),
            image,
        };
        Ok(self.shared.runtime.images().await?.into_iter().map(known).collect())
    }

    /// A container in detail, as the engine has it; `None` when it has none.
    ///
    /// # Errors
    /// The engine's, also when it takes too long.
    pub async fn details(&self, id: &EngineId) -> Result<Option<Details>, RuntimeError> {
        tokio::time::timeout(DETAILS, self.shared.runtime.details(id))
            .await
            .unwrap_or_else(|_| Err(RuntimeError::Unavailable("no answer in time".to_owned())))
    }

    /// Starts a program in a container that runs.
    ///
    /// # Errors
    /// The engine's.
    pub async fn exec(&self, id: &EngineId, request: ExecRequest) -> Result<Exec, RuntimeError> {
        self.shared.runtime.exec(id, request).await
    }

    /// Tells the terminal of such a program its size, in columns and rows.
    ///
    /// # Errors
    /// The engine's.
    pub async fn exec_resize(&self, exec: &str, columns: u16, rows: u16) -> Result<(), RuntimeError> {
        self.shared.runtime.exec_resize(exec, columns, rows).await
    }

    /// How such a program ended; `None` while it runs.
    ///
    /// # Errors
    /// The engine's.
    pub async fn exec_exit(&self, exec: &str) -> Result<Option<i32>, RuntimeError> {
        self.shared.runtime.exec_exit(exec).await
    }

    /// What a container has said.
    ///
    /// # Errors
    /// The engine's.
    pub async fn logs(
        &self,
        id: &EngineId,
        tail: Option<u32>,
        follow: bool,
    ) -> Result<LogStream, RuntimeError> {
        self.shared.runtime.logs(id, tail, follow).await
    }

    /// Breaks a task's network, makes it whole again, or tells how it is.
    ///
    /// # Errors
    /// [`FaultError`].
    pub async fn fault(&self, task: &TaskSpec, request: Request) -> Result<Status, FaultError> {
        self.shared.faults.ask(task, request).await
    }

    /// The address by which a task in `awsvpc` mode asks about itself.
    #[must_use]
    pub fn endpoint_address(&self, task: &TaskArn) -> Option<Ipv4Addr> {
        self.shared.network.endpoint_address(task)
    }
}
