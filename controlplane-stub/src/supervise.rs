//! Owned futures: everything that runs beside the caller is spawned through a [`Tracker`], has a
//! name, hears the order to stop, and is waited for.

use std::fmt;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures_util::FutureExt;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Owns the futures of one part of the program.
#[derive(Clone, Default)]
pub struct Tracker {
    tasks: TaskTracker,
    token: CancellationToken,
}

impl fmt::Debug for Tracker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tracker({} running)", self.tasks.len())
    }
}

/// Not everything ended in time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{left} of what was started had not ended after {deadline:?}")]
pub struct Unfinished {
    /// How many futures still ran.
    pub left: usize,
    /// How long they were waited for.
    pub deadline: Duration,
}

impl Tracker {
    /// A tracker of its own.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A tracker that hears this one's order to stop, and may be stopped alone.
    #[must_use]
    pub fn child(&self) -> Self {
        Self { tasks: TaskTracker::new(), token: self.token.child_token() }
    }

    /// What is cancelled when everything is to stop.
    #[must_use]
    pub fn token(&self) -> &CancellationToken {
        &self.token
    }

    /// Runs a future under a name. It is to end soon after [`Self::token`] is cancelled.
    pub fn spawn(&self, name: &'static str, future: impl Future<Output = ()> + Send + 'static) {
        let watched = async move {
            if AssertUnwindSafe(future).catch_unwind().await.is_err() {
                tracing::error!(name, "a part of the control plane panicked");
            }
        };
        #[expect(
            clippy::disallowed_methods,
            reason = "the one place that spawns; the tracker owns the future"
        )]
        drop(tokio::spawn(self.tasks.track_future(watched)));
    }

    /// Orders everything to stop, and waits for it.
    ///
    /// # Errors
    /// [`Unfinished`] when something has not ended by the deadline.
    pub async fn stop(&self, deadline: Duration) -> Result<(), Unfinished> {
        self.token.cancel();
        self.tasks.close();
        match tokio::time::timeout(deadline, self.tasks.wait()).await {
            Ok(()) => Ok(()),
            Err(_) => Err(Unfinished { left: self.tasks.len(), deadline }),
        }
    }
}
