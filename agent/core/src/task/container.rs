//! The machine of a container: Pending → Created → Running → Stopped, moved by observations alone.

use serde::{Deserialize, Serialize};

use super::attempt::{Attempt, AttemptKind};
use super::event::{Exit, Health};
use super::reason::Failure;
use crate::ids::{AttemptId, ContainerName, EngineId};
use crate::units::Timestamp;

/// What is known of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum ContainerStatus {
    /// The engine has none yet.
    Pending,
    /// The engine has it; it never ran, or is to be started again.
    Created,
    /// Its main process runs.
    Running,
    /// It will never run again.
    Stopped,
}

/// What can be seen of a container, or decided for one that does not run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ContainerInput {
    /// The engine has it, never started.
    SeenCreated,
    /// Its main process runs.
    SeenRunning,
    /// Its main process is gone.
    SeenExited,
    /// The engine does not know it.
    SeenMissing,
    /// Its main process is gone, and its restart policy has it started again.
    ToRestart,
    /// It was removed so that it can be made anew.
    Discarded,
    /// It does not run and is not wanted any more, or cannot be had.
    GaveUp,
}

impl ContainerStatus {
    /// All of them, in order.
    pub const ALL: [Self; 4] = [Self::Pending, Self::Created, Self::Running, Self::Stopped];

    /// The table: where `input` leads from here. `None` where it changes nothing.
    #[must_use]
    pub const fn on(self, input: ContainerInput) -> Option<Self> {
        use ContainerInput as I;
        match (self, input) {
            (Self::Pending, I::SeenCreated)
            | (Self::Pending | Self::Created | Self::Running, I::ToRestart) => Some(Self::Created),
            (Self::Pending | Self::Created, I::SeenRunning) => Some(Self::Running),
            (Self::Pending | Self::Created | Self::Running, I::SeenExited)
            | (Self::Created | Self::Running, I::SeenMissing)
            | (Self::Pending | Self::Created, I::GaveUp) => Some(Self::Stopped),
            (Self::Created, I::Discarded) => Some(Self::Pending),
            _ => None,
        }
    }

    /// As ECS's users see it: there is no CREATED.
    #[must_use]
    pub const fn as_seen(self) -> Self {
        match self {
            Self::Created => Self::Pending,
            other => other,
        }
    }

    /// In capitals, as ECS writes it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "PENDING",
            Self::Created => "CREATED",
            Self::Running => "RUNNING",
            Self::Stopped => "STOPPED",
        }
    }
}

/// A container of a task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Container {
    /// Its name.
    pub name: ContainerName,
    /// What is known of it.
    pub status: ContainerStatus,
    /// The engine's id.
    #[serde(default)]
    pub id: Option<EngineId>,
    /// What is in flight.
    #[serde(default)]
    pub attempt: Option<Attempt>,
    /// How often the present step has failed.
    #[serde(default)]
    pub tries: u32,
    /// How often it outlasted a stop that the engine had heard of.
    #[serde(default)]
    pub outlasted: u32,
    /// Whether it is being stopped with more time than there is by now.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub hurried: bool,
    /// When to try again.
    #[serde(default)]
    pub retry_at: Option<Timestamp>,
    /// Whether the engine was ever asked to make it: it may exist even without an id.
    #[serde(default)]
    pub touched: bool,
    /// Whether a start may have worked, or the container may be gone, without our knowing: the
    /// engine is asked before anything else.
    #[serde(default)]
    pub unsure: bool,
    /// Whether it is to be removed and made anew.
    #[serde(default)]
    pub discard: bool,
    /// How often what it needs was acquired anew: an image that had vanished, ports that were taken.
    #[serde(default)]
    pub renewed: u32,
    /// Whether it was seen running after it had stopped.
    #[serde(default)]
    pub revived: bool,
    /// How it ended.
    #[serde(default)]
    pub exit: Option<Exit>,
    /// What went wrong with it.
    #[serde(default)]
    pub failure: Option<Failure>,
    /// Its health, where it has a check.
    #[serde(default)]
    pub health: Option<Health>,
    /// When it was seen to exist first, by the clock as it is now.
    #[serde(default)]
    pub created_at: Option<Timestamp>,
    /// When it started, as the engine has it: by the clock of then.
    #[serde(default)]
    pub started_at: Option<Timestamp>,
    /// By how many milliseconds the clock was put forward since it started, or back where that is negative.
    #[serde(default)]
    pub clock_moved_ms: i64,
    /// When it stopped.
    #[serde(default)]
    pub finished_at: Option<Timestamp>,
    /// Whether it was removed from the engine for good.
    #[serde(default)]
    pub removed: bool,
    /// How often its restart policy had it started again.
    #[serde(default)]
    pub restarts: u32,
    /// How many of these came one soon after the other: a crash loop.
    #[serde(default)]
    pub restarts_in_a_row: u32,
    /// Why its restart policy did not have it started again.
    #[serde(default)]
    pub not_restarted: Option<String>,
}

impl Container {
    /// A container that the engine knows nothing of.
    #[must_use]
    pub fn new(name: ContainerName) -> Self {
        Self {
            name,
            status: ContainerStatus::Pending,
            id: None,
            attempt: None,
            tries: 0,
            outlasted: 0,
            hurried: false,
            retry_at: None,
            touched: false,
            unsure: false,
            discard: false,
            renewed: 0,
            revived: false,
            exit: None,
            failure: None,
            health: None,
            created_at: None,
            started_at: None,
            clock_moved_ms: 0,
            finished_at: None,
            removed: false,
            restarts: 0,
            restarts_in_a_row: 0,
            not_restarted: None,
        }
    }

    /// What ECS's users see of it, and how often it was started again.
    #[must_use]
    pub fn as_seen(&self) -> (ContainerStatus, Option<Health>, u32) {
        (self.seen_status(), self.health, self.restarts)
    }

    /// How it ended; `None` while it runs, or is about to again.
    #[must_use]
    pub fn exit_code(&self) -> Option<i32> {
        self.exit.as_ref().filter(|_| self.is_stopped()).map(|exit| exit.code)
    }

    /// Its status as ECS's users see it: one that is about to be started again counts as running.
    #[must_use]
    pub fn seen_status(&self) -> ContainerStatus {
        if self.status == ContainerStatus::Created && self.restarts > 0 {
            return ContainerStatus::Running;
        }
        self.status.as_seen()
    }

    /// Moves along the table; tells whether anything changed.
    pub(super) fn apply(&mut self, input: ContainerInput, now: Timestamp) -> bool {
        let Some(next) = self.status.on(input) else {
            return false;
        };
        self.status = next;
        self.tries = 0;
        self.outlasted = 0;
        self.retry_at = None;
        match next {
            ContainerStatus::Stopped => {
                self.finished_at.get_or_insert(now);
                self.discard = false;
                self.unsure = false;
            }
            ContainerStatus::Pending => {
                self.id = None;
                self.discard = false;
            }
            ContainerStatus::Created | ContainerStatus::Running => {
                self.created_at.get_or_insert(now);
            }
        }
        true
    }

    /// Puts an attempt in flight.
    pub(super) fn begin(&mut self, id: AttemptId, kind: AttemptKind, now: Timestamp) {
        self.attempt = Some(Attempt { id, kind, since: now });
        self.retry_at = None;
        if kind == AttemptKind::Create {
            self.touched = true;
        }
    }

    /// Whether a new attempt may begin: none is in flight and no pause is on.
    pub(super) fn is_free(&self) -> bool {
        self.attempt.is_none() && self.retry_at.is_none()
    }

    /// When it started, by the clock as it is now.
    pub(super) fn runs_since(&self) -> Option<Timestamp> {
        self.started_at.map(|at| at.moved(self.clock_moved_ms))
    }

    /// It runs, and began no later than now: what says so may be of before the clock was put back while nobody
    /// watched it. How long it runs nobody knows then; that counts from now on.
    pub(super) fn began_no_later(&mut self, now: Timestamp) {
        if let Some(since) = self.runs_since() {
            let ahead = i64::try_from(since.since(now).0).unwrap_or(i64::MAX);
            self.clock_moved_ms = self.clock_moved_ms.saturating_sub(ahead);
        }
    }

    /// If it runs, it began no earlier than its start was asked for: what says so is of before the clock was put
    /// forward, between its start and the engine's answer.
    pub(super) fn began_no_earlier(&mut self, asked: Timestamp) {
        if self.status == ContainerStatus::Running
            && let Some(since) = self.runs_since()
        {
            let behind = i64::try_from(asked.since(since).0).unwrap_or(i64::MAX);
            self.clock_moved_ms = self.clock_moved_ms.saturating_add(behind);
        }
    }

    /// Whether it runs, or ever did.
    #[must_use]
    pub fn was_started(&self) -> bool {
        self.status == ContainerStatus::Running || self.started_at.is_some()
    }

    /// Whether it is gone for good.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        self.status == ContainerStatus::Stopped
    }
}
