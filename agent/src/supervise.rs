//! Owned futures: every one has an owner, a name, a cancellation and, at the end, a deadline.

use std::future::Future;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Owns futures. Cloning shares the same set; [`Tracker::child`] makes a part that can be
/// cancelled by itself and is still waited for with the whole.
#[derive(Debug, Clone)]
pub struct Tracker {
    tracker: TaskTracker,
    token: CancellationToken,
}

impl Default for Tracker {
    fn default() -> Self {
        Self::new()
    }
}

impl Tracker {
    /// An empty set.
    #[must_use]
    pub fn new() -> Self {
        Self { tracker: TaskTracker::new(), token: CancellationToken::new() }
    }

    /// A part of this set with a cancellation of its own, which the whole's includes.
    #[must_use]
    pub fn child(&self) -> Self {
        Self { tracker: self.tracker.clone(), token: self.token.child_token() }
    }

    /// The cancellation: "the agent stops", never "the task stops".
    #[must_use]
    pub const fn token(&self) -> &CancellationToken {
        &self.token
    }

    /// Runs a future that minds the token itself and ends soon after it.
    pub fn spawn<F>(&self, name: &'static str, future: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        #[expect(clippy::disallowed_methods, reason = "the one place that spawns")]
        let handle = tokio::spawn(self.tracker.track_future(future));
        // A panic is a bug; it is told with the name, and the rest of the agent goes on.
        let watch = async move {
            if let Err(error) = handle.await
                && error.is_panic()
            {
                tracing::error!(name, "a future of the agent panicked; please report this");
            }
        };
        #[expect(clippy::disallowed_methods, reason = "ends with the future that it watches")]
        tokio::spawn(watch);
    }

    /// Runs a future that may be dropped at any await when the token is cancelled.
    pub fn spawn_droppable<F>(&self, name: &'static str, future: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let token = self.token.clone();
        self.spawn(name, async move {
            // Dropping the future is what its caller asked for by choosing this method.
            token.run_until_cancelled_owned(future).await;
        });
    }

    /// Cancels everything and waits for it, at most that long. Tells whether all of it ended.
    pub async fn shutdown(&self, deadline: Duration) -> bool {
        self.token.cancel();
        self.tracker.close();
        tokio::time::timeout(deadline, self.tracker.wait()).await.is_ok()
    }
}
