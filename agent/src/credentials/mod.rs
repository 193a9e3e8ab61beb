//! Credentials of the roles of tasks, as the control plane sends them: held in memory, and sealed on disk
//! so that an agent that starts again can hand them out at once.

mod sealed;

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use berth_core::ids::TaskArn;
use berth_core::units::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use crate::clock;
use crate::effects::{CREDENTIALS_KEEP, Effects};
use crate::supervise::Tracker;

pub use self::sealed::{Sealed, run_file};

/// How long a task waits for what the control plane has promised.
const PATIENCE: Duration = Duration::from_secs(30);

/// Credentials of a role. `Debug` shows whose they are, and no more.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoleCredentials {
    /// The role.
    pub role_arn: String,
    /// Access key.
    pub access_key_id: String,
    /// Secret key.
    pub secret_access_key: String,
    /// Session token.
    pub session_token: String,
    /// When they end.
    pub expires_at: Timestamp,
}

impl fmt::Debug for RoleCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RoleCredentials({})", self.role_arn)
    }
}

/// Why a task has none. The text is for users.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
pub enum CredentialsError {
    /// The control plane says that there will be none.
    #[error("{0}")]
    Refused(String),
    /// None came yet.
    #[error("the control plane has sent no credentials for the task's role yet")]
    Late,
}

#[derive(Debug, Clone)]
enum Held {
    Credentials(RoleCredentials),
    Problem(String),
}

impl Held {
    fn good(&self) -> Option<&RoleCredentials> {
        match self {
            Self::Credentials(credentials) if credentials.expires_at > clock::now() => Some(credentials),
            _ => None,
        }
    }
}

/// The credentials of all tasks.
pub struct Credentials {
    held: Mutex<HashMap<TaskArn, Held>>,
    /// For those who wait, in the order in which they came.
    changed: Notify,
    /// For whoever seals what is held.
    unsealed: Notify,
}

impl Credentials {
    /// With what was sealed before; what changes is sealed anew, in the background.
    #[must_use]
    pub fn new(sealed: Option<Sealed>, effects: Effects, tracker: &Tracker) -> Arc<Self> {
        let before = sealed.as_ref().map(Sealed::open).unwrap_or_default();
        let held = before.into_iter().map(|(task, known)| (task, Held::Credentials(known))).collect();
        let all = Arc::new(Self { held: Mutex::new(held), changed: Notify::new(), unsealed: Notify::new() });
        if let Some(sealed) = sealed {
            let keeper = Arc::clone(&all);
            tracker.spawn_droppable("sealed credentials", async move { keeper.keep(sealed, &effects).await });
        }
        all
    }

    /// Takes new credentials of a task.
    pub fn put(&self, task: TaskArn, credentials: RoleCredentials) {
        self.lock().insert(task, Held::Credentials(credentials));
        self.tell();
    }

    /// Takes note that there are none. Credentials that a task has are good until they end.
    pub fn refuse(&self, task: TaskArn, problem: String) {
        let mut held = self.lock();
        if held.get(&task).and_then(Held::good).is_none() {
            held.insert(task, Held::Problem(problem));
        }
        drop(held);
        self.tell();
    }

    /// Those of a task; `None` when it has none, or they have ended.
    #[must_use]
    pub fn of(&self, task: &TaskArn) -> Option<RoleCredentials> {
        self.lock().get(task)?.good().cloned()
    }

    /// Waits until a task has them.
    ///
    /// # Errors
    /// [`CredentialsError`].
    pub async fn wait(&self, task: &TaskArn) -> Result<(), CredentialsError> {
        let come = async {
            loop {
                let mut changed = std::pin::pin!(self.changed.notified());
                // What changes between the look and the wait must not be missed.
                changed.as_mut().enable();
                match self.lock().get(task) {
                    Some(Held::Problem(problem)) => return Err(CredentialsError::Refused(problem.clone())),
                    Some(held) if held.good().is_some() => return Ok(()),
                    _ => {}
                }
                changed.await;
            }
        };
        tokio::time::timeout(PATIENCE, come).await.unwrap_or(Err(CredentialsError::Late))
    }

    /// For how many tasks there are any.
    #[must_use]
    pub fn held(&self) -> usize {
        self.lock().values().filter(|held| held.good().is_some()).count()
    }

    /// Forgets those of a task that is gone.
    pub fn forget(&self, task: &TaskArn) {
        if self.lock().remove(task).is_some() {
            self.tell();
        }
    }

    /// Seals what is held whenever it has changed.
    async fn keep(&self, sealed: Sealed, effects: &Effects) {
        let sealed = Arc::new(sealed);
        loop {
            self.unsealed.notified().await;
            let all: Vec<(TaskArn, RoleCredentials)> = self
                .lock()
                .iter()
                .filter_map(|(task, held)| Some((task.clone(), held.good()?.clone())))
                .collect();
            let writer = Arc::clone(&sealed);
            let write = async {
                tokio::task::spawn_blocking(move || writer.write(&all)).await.map_err(io::Error::other)?
            };
            if let Err(error) = effects.around(CREDENTIALS_KEEP, io::Error::other, write).await {
                tracing::warn!(
                    %error,
                    "credentials of tasks are not sealed: after a restart the control plane must send them"
                );
            }
        }
    }

    fn tell(&self) {
        self.changed.notify_waiters();
        self.unsealed.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<TaskArn, Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(n: u8) -> TaskArn {
        TaskArn::new(format!("arn:aws:ecs:r:1:task/c/{n:032x}")).unwrap()
    }

    fn credentials(until: u64) -> RoleCredentials {
        RoleCredentials {
            role_arn: "arn:aws:iam::1:role/web".to_owned(),
            access_key_id: "A".to_owned(),
            secret_access_key: "hush".to_owned(),
            session_token: String::new(),
            expires_at: Timestamp(clock::now().0 + until),
        }
    }

    #[tokio::test]
    async fn a_task_waits_for_them_and_hears_why_there_are_none() {
        let all = Credentials::new(None, Effects::default(), &Tracker::new());
        let name = task(1);
        let (waited, ()) = tokio::join!(all.wait(&name), async { all.put(task(1), credentials(60_000)) });
        assert_eq!(waited, Ok(()));
        all.refuse(task(2), "no such role".to_owned());
        assert_eq!(all.wait(&task(2)).await, Err(CredentialsError::Refused("no such role".to_owned())));
        // A provider that is away for a while takes nothing away.
        all.refuse(task(1), "away".to_owned());
        assert!(all.of(&task(1)).is_some());
        all.forget(&task(1));
        assert!(all.of(&task(1)).is_none());
    }

    #[tokio::test]
    async fn what_has_ended_is_not_handed_out() {
        let all = Credentials::new(None, Effects::default(), &Tracker::new());
        all.put(task(1), credentials(0));
        assert!(all.of(&task(1)).is_none());
        assert!(!format!("{:?}", credentials(0)).contains("hush"));
    }
}
