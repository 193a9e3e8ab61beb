//! Protection of tasks from scale-in and deployments: who can have it, and for how long. It ends by itself,
//! because nothing but the time when it ends is recorded.

use std::sync::Arc;

use berth_core::units::{Millis, Timestamp};

use super::{ChangeError, Controller};
use crate::clock;
use crate::model::{Task, TaskStatus};
use crate::store::{CommitError, Key, Record, Txn, Versioned, View};

/// ECS's bounds, and what holds where nothing is said.
const MINUTES: std::ops::RangeInclusive<i64> = 1..=2880;
const DEFAULT_MINUTES: i64 = 120;

/// A time that protection cannot have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expiresInMinutes should be between {} and {}.", MINUTES.start(), MINUTES.end())]
pub struct InvalidExpiry;

/// What is wanted of a task's protection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protection {
    /// From now on for so long, whatever held before.
    For(Millis),
    /// None any more.
    Off,
}

impl Protection {
    /// What a request means by `protectionEnabled` and `expiresInMinutes`.
    ///
    /// # Errors
    /// [`InvalidExpiry`], also where protection is to end.
    pub fn wanted(enabled: bool, minutes: Option<i64>) -> Result<Self, InvalidExpiry> {
        let minutes = minutes.unwrap_or(DEFAULT_MINUTES);
        if !MINUTES.contains(&minutes) {
            return Err(InvalidExpiry);
        }
        let span = Millis::from_secs(minutes.unsigned_abs().saturating_mul(60));
        Ok(if enabled { Self::For(span) } else { Self::Off })
    }

    fn until(self, now: Timestamp) -> Option<Timestamp> {
        match self {
            Self::For(span) => Some(now.after(span)),
            Self::Off => None,
        }
    }
}

/// Why a task has no protection, and can have none: a reason of `failures`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unprotectable {
    /// There is no such task.
    Missing,
    /// No service runs it.
    NotOfService,
    /// It has ended.
    Stopped,
}

impl Unprotectable {
    /// ECS's word for it.
    #[must_use]
    pub const fn reason(self) -> &'static str {
        match self {
            Self::Missing => "MISSING",
            Self::NotOfService | Self::Stopped => "TASK_NOT_VALID",
        }
    }

    /// More for people, where there is more.
    #[must_use]
    pub const fn detail(self) -> Option<&'static str> {
        match self {
            Self::Missing => None,
            Self::NotOfService => Some("The task is of no service: only tasks of services can be protected."),
            Self::Stopped => Some("The task has stopped."),
        }
    }
}

/// A task that can have protection.
///
/// # Errors
/// [`Unprotectable`].
pub fn protectable(view: &dyn View, cluster: &str, id: &str) -> Result<Versioned<Arc<Task>>, Unprotectable> {
    let found = view.task(cluster, id).ok_or(Unprotectable::Missing)?;
    if !found.value.is_of_service() {
        return Err(Unprotectable::NotOfService);
    }
    if found.value.observed.status == TaskStatus::Stopped {
        return Err(Unprotectable::Stopped);
    }
    Ok(found)
}

impl Controller {
    /// Gives tasks of a cluster protection, or takes it; those that can have it all at once. Yields what
    /// became of each, in the order of the ids.
    ///
    /// # Errors
    /// [`ChangeError::Unavailable`] when the store cannot write: nothing was changed.
    pub async fn protect(
        &self,
        cluster: &str,
        ids: &[String],
        wanted: Protection,
    ) -> Result<Vec<Result<Arc<Task>, Unprotectable>>, ChangeError> {
        loop {
            let until = wanted.until(clock::now());
            let mut txn = Txn::default();
            let mut results = Vec::with_capacity(ids.len());
            {
                let view = self.store.view();
                for id in ids {
                    results.push(protectable(&*view, cluster, id).map(|found| {
                        let mut task = Task::clone(&found.value);
                        task.protected_until = until;
                        let task = Arc::new(task);
                        let key = Key::Task(cluster.to_owned(), id.clone());
                        // Named twice, it is changed once.
                        if !txn.puts.iter().any(|(known, _)| *known == key) {
                            txn.compares.push((key.clone(), Some(found.revision)));
                            txn.puts.push((key, Record::Task(Arc::clone(&task))));
                        }
                        task
                    }));
                }
            }
            if txn.puts.is_empty() {
                return Ok(results);
            }
            match self.store.commit(txn).await {
                Ok(_) => return Ok(results),
                // A task was changed meanwhile: decide anew.
                Err(CommitError::Conflict(_)) => {}
                Err(CommitError::Unavailable(why)) => return Err(ChangeError::Unavailable(why)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn protection_has_ecs_bounds_and_default() {
        let minutes = |minutes: u64| Ok(Protection::For(Millis::from_secs(minutes * 60)));
        assert_eq!(Protection::wanted(true, None), minutes(120));
        assert_eq!(Protection::wanted(true, Some(1)), minutes(1));
        assert_eq!(Protection::wanted(true, Some(2880)), minutes(2880));
        assert_eq!(Protection::wanted(false, Some(5)), Ok(Protection::Off));
        for wrong in [0, -1, 2881, i64::MIN, i64::MAX] {
            assert_eq!(Protection::wanted(true, Some(wrong)), Err(InvalidExpiry), "{wrong}");
        }
        assert_eq!(InvalidExpiry.to_string(), "expiresInMinutes should be between 1 and 2880.");
    }
}
