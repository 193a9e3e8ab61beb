//! Whether a container that ended is started again, and when: ECS's `restartPolicy` (developer guide,
//! "Restart individual containers in Amazon ECS tasks with container restart policies"), with pauses
//! that grow while it keeps ending.

use super::container::{Container, ContainerStatus};
use super::event::Exit;
use crate::ids::EngineId;
use crate::spec::RestartPolicy;
use crate::units::{Millis, Timestamp};

/// The pause before the second restart of a row; the first has none.
const FIRST_PAUSE: Millis = Millis::from_secs(1);
/// The longest pause.
const LONGEST_PAUSE: Millis = Millis::from_secs(300);
/// A container that ran for so many attempt periods is not in a crash loop.
const STEADY_PERIODS: u64 = 5;

/// What becomes of a container that ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is started again, after a pause.
    Again {
        /// How long.
        after: Millis,
        /// How many restarts this makes in a row.
        in_a_row: u32,
    },
    /// It stays as it is; why, where that is not plain.
    Over(Option<String>),
}

/// Judges the end of a container that has a policy.
pub(super) fn judge(policy: &RestartPolicy, container: &Container, exit: &Exit, now: Timestamp) -> Verdict {
    if policy.ignored_exit_codes.contains(&exit.code) {
        return Verdict::Over(None);
    }
    // The engine says what the clock was then; what it is now is another one where it was moved meanwhile.
    let began = exit.started_at.map(|at| at.moved(container.clock_moved_ms));
    let Some(started_at) = began.or_else(|| container.runs_since()) else {
        return Verdict::Over(None); // It never ran.
    };
    // One that ended before it began did so by a clock that was put back while nobody watched: how long it ran is
    // not known, and not held against it.
    let finished_at = exit.finished_at.unwrap_or(now);
    let ran = (finished_at >= started_at).then(|| finished_at.since(started_at));
    if let Some(ran) = ran.filter(|ran| *ran < policy.attempt_period) {
        return Verdict::Over(Some(format!(
            "exit code {} after {ran}; it is started again only if it ran for {} (restartAttemptPeriod)",
            exit.code, policy.attempt_period
        )));
    }
    let in_a_row = in_a_row(policy, container, ran.unwrap_or(Millis(0)));
    Verdict::Again { after: pause(in_a_row), in_a_row }
}

/// How many restarts this would be in a row.
fn in_a_row(policy: &RestartPolicy, container: &Container, ran: Millis) -> u32 {
    let steady = ran.0 >= policy.attempt_period.0.saturating_mul(STEADY_PERIODS) && ran.0 > 0;
    if steady { 1 } else { container.restarts_in_a_row.saturating_add(1) }
}

/// The pause before that restart of a row.
fn pause(number: u32) -> Millis {
    match number {
        0 | 1 => Millis(0),
        more => Millis((FIRST_PAUSE.0 << (more - 2).min(10)).min(LONGEST_PAUSE.0)),
    }
}

/// What is to be told of restarts; `None` where there is nothing to tell.
pub(super) fn tell(container: &Container) -> Option<String> {
    let times = match container.restarts {
        0 => String::new(),
        1 => "restarted once".to_owned(),
        more => format!("restarted {more} times"),
    };
    if container.is_stopped() {
        let why = container.not_restarted.as_ref()?;
        if container.exit.as_ref().is_some_and(|exit| exit.oom_killed) {
            return None; // That says more.
        }
        return Some(if times.is_empty() { why.clone() } else { format!("{why}; it was {times}") });
    }
    let exit = container.exit.as_ref().filter(|_| container.restarts > 0)?;
    let cause = match exit {
        Exit { oom_killed: true, .. } => " (out of memory)",
        Exit { with_engine: true, .. } => " (the container engine was restarted)",
        _ => "",
    };
    Some(format!("{times}, last after exit code {}{cause}", exit.code))
}

/// What a container waits for that is to be started again later.
pub(super) fn wait(container: &Container, now: Timestamp) -> Option<String> {
    let at = container.retry_at.filter(|_| container.restarts > 0)?;
    let pause = Millis(at.0.saturating_sub(now.0));
    Some(format!("the pause before it is started again, {pause} ({} restarts)", container.restarts))
}

impl Container {
    /// Whether it has ended so, and is to be started again: the engine tells of an end until then.
    pub(super) fn is_known_end(&self, exit: &Exit) -> bool {
        self.status == ContainerStatus::Created
            && self.restarts > 0
            && self.exit.as_ref().is_some_and(|known| {
                (known.started_at, known.finished_at) == (exit.started_at, exit.finished_at)
            })
    }

    /// Notes that it ended and is to be started again.
    pub(super) fn restart(&mut self, id: EngineId, exit: Exit, at: Timestamp, in_a_row: u32) {
        self.id = Some(id);
        self.restarts = self.restarts.saturating_add(1);
        self.restarts_in_a_row = in_a_row;
        self.started_at = exit.started_at.or(self.started_at);
        self.exit = Some(exit);
        self.health = None;
        self.failure = None;
        self.unsure = false;
        self.retry_at = Some(at);
    }
}
