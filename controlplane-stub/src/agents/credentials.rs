//! Credentials of the roles of one instance's tasks: asked for when a task comes, and again before they
//! end. A provider that is slow holds up nothing else of the conversation.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use berth_proto::v1;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use crate::clock;
use crate::credentials::{Credentials, CredentialsError, Provider, assume};
use crate::model::Task;

/// The pause after a provider refused.
const RETRY: Duration = Duration::from_secs(30);
/// New credentials are asked for so long before the old ones end, or when half their time is over.
const MARGIN: Duration = Duration::from_secs(15 * 60);

type Answer = Result<Credentials, CredentialsError>;

/// The credentials of the tasks of one instance, in one session.
pub(super) struct Keeper {
    provider: Option<Arc<dyn Provider>>,
    /// Tasks with a role, and when to ask for it; `None` while it is being asked for.
    tasks: HashMap<String, (String, Option<Instant>)>,
    asked: JoinSet<(String, Answer)>,
}

impl Keeper {
    pub(super) fn new(provider: Option<Arc<dyn Provider>>) -> Self {
        Self { provider, tasks: HashMap::new(), asked: JoinSet::new() }
    }

    /// Takes note of the tasks that are there now.
    pub(super) fn sync<'a>(&mut self, live: impl Iterator<Item = &'a Task>) {
        let mut known = std::mem::take(&mut self.tasks);
        // Whose task it is was its host's word alone: that gets nobody a role.
        for task in live.filter(|task| !task.adopted) {
            if let Some(role) = &task.spec.task_role {
                let entry = known.remove(&task.arn);
                let entry = entry.unwrap_or_else(|| (role.clone(), Some(Instant::now())));
                self.tasks.insert(task.arn.clone(), entry);
            }
        }
    }

    /// Waits for the next credentials that are to be sent. Dropping the future loses nothing.
    pub(super) async fn next(&mut self) -> v1::RoleCredentials {
        loop {
            self.ask();
            let due = self.tasks.values().filter_map(|(_, due)| *due).min();
            let wait = async {
                match due {
                    Some(due) => sleep_until(due).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                Some(Ok((task, answer))) = self.asked.join_next() => {
                    if let Some(message) = self.take(task, answer) {
                        return message;
                    }
                }
                () = wait => {}
            }
        }
    }

    /// Asks for what is due.
    fn ask(&mut self) {
        let now = Instant::now();
        for (task, (role, due)) in &mut self.tasks {
            if due.is_none_or(|due| due > now) {
                continue;
            }
            *due = None;
            let (task, role, provider) = (task.clone(), role.clone(), self.provider.clone());
            self.asked.spawn(async move {
                let session = task.rsplit('/').next().unwrap_or_default();
                let answer = match provider {
                    Some(provider) => assume(&*provider, &role, session).await,
                    None => Err(CredentialsError(format!(
                        "this control plane has no credentials for the role '{role}': start it with --credentials"
                    ))),
                };
                (task, answer)
            });
        }
    }

    /// What is to be sent of an answer; nothing for a task that has gone meanwhile.
    fn take(&mut self, task: String, answer: Answer) -> Option<v1::RoleCredentials> {
        let (role, due) = self.tasks.get_mut(&task)?;
        let message = v1::RoleCredentials { task_arn: task, role_arn: role.clone(), ..Default::default() };
        Some(match answer {
            Ok(credentials) => {
                let left = Duration::from_millis(credentials.expires_at.0.saturating_sub(clock::now().0));
                let wait =
                    left.checked_sub(MARGIN).unwrap_or_default().max(left / 2).max(Duration::from_secs(1));
                *due = Some(Instant::now() + wait);
                v1::RoleCredentials {
                    access_key_id: credentials.access_key_id,
                    secret_access_key: credentials.secret_access_key,
                    session_token: credentials.session_token,
                    expires_at_ms: credentials.expires_at.0,
                    ..message
                }
            }
            Err(error) => {
                tracing::warn!(task = message.task_arn, %error, "no credentials for a task");
                *due = Some(Instant::now() + RETRY);
                v1::RoleCredentials { problem: error.to_string(), ..message }
            }
        })
    }
}
