//! How much the engine is asked to do at once.
//!
//! Launches are bound by the processor below us, and too many at a time only hinder one another.
//! Nothing waits long for something slow, though: a permit goes back after a while whatever became
//! of the call.

use std::future::Future;
use std::time::Duration;

use tokio::sync::Semaphore;

/// A launch is some 200 ms of work; one that takes longer than this hangs on something else.
const LAUNCH_HOLD: Duration = Duration::from_secs(5);
/// A stop is work for a moment, when the signal goes out, and then waiting.
const STOP_HOLD: Duration = Duration::from_millis(100);

/// Permits for the engine's attention.
#[derive(Debug)]
pub(super) struct Pace {
    launches: Semaphore,
    stops: Semaphore,
}

impl Pace {
    pub(super) fn new(launches: usize, stops: usize) -> Self {
        Self { launches: Semaphore::new(launches.max(1)), stops: Semaphore::new(stops.max(1)) }
    }

    /// Runs the making or the starting of a container when it is its turn.
    pub(super) async fn launch<F: Future>(&self, call: F) -> F::Output {
        paced(&self.launches, LAUNCH_HOLD, call).await
    }

    /// Runs the stopping, killing or removing of a container when it is its turn.
    pub(super) async fn stop<F: Future>(&self, call: F) -> F::Output {
        paced(&self.stops, STOP_HOLD, call).await
    }
}

async fn paced<F: Future>(permits: &Semaphore, hold: Duration, call: F) -> F::Output {
    // The semaphore is never closed; if it were, to go on unpaced would be right.
    let permit = permits.acquire().await.ok();
    let mut call = std::pin::pin!(call);
    tokio::select! {
        biased;
        output = &mut call => return output,
        () = tokio::time::sleep(hold) => drop(permit),
    }
    call.await
}

#[cfg(test)]
mod tests {
    use futures_util::future::join_all;
    use tokio::time::{Instant, sleep};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn slow_stops_delay_nobody_for_longer_than_the_hold() {
        let pace = Pace::new(1, 2);
        let begun = Instant::now();
        let slow = join_all((0..2).map(|_| pace.stop(sleep(Duration::from_secs(30)))));
        let quick = async {
            sleep(Duration::from_millis(1)).await;
            pace.stop(async {}).await;
            begun.elapsed()
        };
        let (_, waited) = tokio::join!(slow, quick);
        assert!(waited <= STOP_HOLD + Duration::from_millis(5), "{waited:?}");
        assert_eq!(begun.elapsed().as_secs(), 30);
    }

    #[tokio::test(start_paused = true)]
    async fn so_many_launches_at_once_and_no_more() {
        let pace = Pace::new(4, 1);
        let begun = Instant::now();
        join_all((0..8).map(|_| pace.launch(async { sleep(Duration::from_millis(200)).await }))).await;
        assert!((400..410).contains(&begun.elapsed().as_millis()), "{:?}", begun.elapsed());
    }
}
