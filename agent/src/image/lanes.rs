//! Whose turn it is to pull. Pulls begin in the order in which they were asked for, a few at once; one that
//! turns out to be long moves to a lane of its own, so that short ones behind it need not wait for its end.

use std::future::Future;
use std::time::Duration;

use tokio::sync::Semaphore;

/// Pulls that may run at once in each lane; more would only share the disk.
const AT_ONCE: usize = 4;
/// A pull that has taken this long is a long one.
const LONG: Duration = Duration::from_secs(10);

/// The two lanes.
pub(super) struct Lanes {
    short: Semaphore,
    long: Semaphore,
}

impl Lanes {
    pub(super) const fn new() -> Self {
        Self { short: Semaphore::const_new(AT_ONCE), long: Semaphore::const_new(AT_ONCE) }
    }

    /// Waits for its turn, says so by `begun`, and runs the pull.
    pub(super) async fn run<T>(&self, begun: impl FnOnce(), pull: impl Future<Output = T>) -> T {
        // Neither is ever closed.
        let short = self.short.acquire().await;
        begun();
        tokio::pin!(pull);
        if let Ok(done) = tokio::time::timeout(LONG, &mut pull).await {
            return done;
        }
        let _long = tokio::select! {
            biased;
            done = &mut pull => return done,
            long = self.long.acquire() => long,
        };
        drop(short);
        pull.await
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::time::{Instant, sleep};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_short_pull_does_not_wait_for_the_end_of_long_ones() {
        let lanes = Arc::new(Lanes::new());
        let began = Instant::now();
        let mut long = tokio::task::JoinSet::new();
        for _ in 0..AT_ONCE {
            let lanes = Arc::clone(&lanes);
            long.spawn(async move { lanes.run(|| (), sleep(Duration::from_secs(3600))).await });
        }
        tokio::task::yield_now().await;
        lanes.run(|| (), sleep(Duration::from_secs(1))).await;
        assert!(began.elapsed() < LONG * 2);
        // With both lanes full of long ones, it does.
        for _ in 0..AT_ONCE {
            let lanes = Arc::clone(&lanes);
            long.spawn(async move { lanes.run(|| (), sleep(Duration::from_secs(3600))).await });
        }
        tokio::task::yield_now().await;
        lanes.run(|| (), sleep(Duration::from_secs(1))).await;
        assert!(began.elapsed() >= Duration::from_secs(3600) - LONG);
    }
}
