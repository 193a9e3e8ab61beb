//! When the container engine was away, and whether it took its containers along. One without live-restore ends
//! them when it is stopped, and when it starts after it was killed; it says of neither that it did.

use std::time::Duration;

use berth_core::units::{Millis, Timestamp};
use tokio::sync::watch;
use tokio::time::timeout;

use crate::runtime::EngineInfo;

/// An engine that is stopped takes no calls any more, while it gives its containers so long to end. What ended
/// before, and by itself, was looked at while it still took calls.
const PARTING: Millis = Millis::from_secs(60);
/// Longest wait for what became of an engine that seems to be back.
const PATIENCE: Duration = Duration::from_secs(5);

/// The last time that the engine was away.
#[derive(Debug)]
pub(super) struct Outages {
    last: watch::Sender<Last>,
}

#[derive(Debug, Default)]
struct Last {
    /// The engine, as it was known last.
    engine: Option<EngineInfo>,
    since: Option<Timestamp>,
    until: Option<Timestamp>,
    /// Whether it took its containers along then.
    took: bool,
}

impl Last {
    fn is_over(&self) -> bool {
        self.since.is_none() || self.until.is_some()
    }

    fn took(&self, at: Timestamp) -> bool {
        let (Some(since), Some(until)) = (self.since, self.until) else { return false };
        self.took && at.0 >= since.0.saturating_sub(PARTING.0) && at <= until
    }
}

impl Outages {
    pub(super) fn new() -> Self {
        Self { last: watch::Sender::default() }
    }

    /// What the engine is that is there.
    pub(super) fn engine_is(&self, engine: EngineInfo) {
        self.last.send_modify(|last| last.engine = Some(engine));
    }

    /// The engine is away from now on.
    pub(super) fn begun(&self, now: Timestamp) {
        self.last.send_modify(|last| {
            // Whoever goes again at once has not been back for anybody to look at what happened.
            let goes_on = last.until.is_some_and(|until| now.0.saturating_sub(until.0) < PARTING.0);
            if !goes_on {
                (last.since, last.took) = (Some(now), false);
            }
            last.until = None;
        });
    }

    /// The engine is back: started again or the same as before, and this, where it says so. What it was before.
    pub(super) fn ended(
        &self,
        now: Timestamp,
        again: bool,
        engine: Option<EngineInfo>,
    ) -> Option<EngineInfo> {
        let mut before = None;
        self.last.send_modify(|last| {
            last.until = Some(now);
            before.clone_from(&last.engine);
            // One that was stopped took them when it went, one that was killed when it came.
            let takes = before.iter().chain(&engine).any(|engine| !engine.live_restore);
            last.took |= again && takes;
            last.engine = engine.or_else(|| last.engine.take());
        });
        before
    }

    /// Whether the engine took along what ended then. Where it is back and it is not known yet what became of it,
    /// that is waited for.
    pub(super) async fn took(&self, at: Timestamp) -> bool {
        let mut seen = self.last.subscribe();
        // The sender is here, and if it takes too long, nothing is said.
        let known = timeout(PATIENCE, seen.wait_for(Last::is_over)).await;
        matches!(known, Ok(Ok(last)) if last.took(at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: u64 = 60_000;

    async fn took(outages: &Outages, minutes: u64) -> bool {
        outages.took(Timestamp(minutes * MINUTE)).await
    }

    fn engine(takes: bool) -> EngineInfo {
        EngineInfo { live_restore: !takes, ..EngineInfo::default() }
    }

    /// Away from the tenth minute to the twelfth.
    fn away(before: bool, again: bool, after: Option<bool>) -> Outages {
        let outages = Outages::new();
        outages.engine_is(engine(before));
        outages.begun(Timestamp(10 * MINUTE));
        assert_eq!(outages.ended(Timestamp(12 * MINUTE), again, after.map(engine)), Some(engine(before)));
        outages
    }

    #[tokio::test]
    async fn what_ended_with_an_engine_that_was_started_again_was_taken_along() {
        let outages = away(true, true, Some(true));
        for (at, expected) in [(8, false), (9, true), (10, true), (11, true), (12, true), (13, false)] {
            assert_eq!(took(&outages, at).await, expected, "{at}");
        }
    }

    #[tokio::test]
    async fn one_that_is_the_same_or_has_live_restore_takes_nothing() {
        for outages in
            [away(true, false, Some(true)), away(false, true, Some(false)), away(false, true, None)]
        {
            assert!(!took(&outages, 11).await, "{outages:?}");
        }
    }

    #[tokio::test]
    async fn it_may_take_them_when_it_goes_or_when_it_comes() {
        for outages in [away(true, true, Some(false)), away(false, true, Some(true)), away(true, true, None)]
        {
            assert!(took(&outages, 11).await, "{outages:?}");
        }
    }

    #[tokio::test]
    async fn one_that_is_back_for_a_moment_was_away_all_the_time() {
        let outages = away(true, true, Some(false));
        outages.begun(Timestamp(12 * MINUTE + 1));
        outages.ended(Timestamp(14 * MINUTE), true, None);
        assert!(took(&outages, 11).await && took(&outages, 13).await);
        // Not so when it was there for long.
        outages.begun(Timestamp(20 * MINUTE));
        outages.ended(Timestamp(21 * MINUTE), true, None);
        assert!(!took(&outages, 13).await && !took(&outages, 20).await);
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_sees_first_that_it_is_back_waits_for_what_became_of_it_and_not_for_ever() {
        let outages = Outages::new();
        outages.engine_is(engine(true));
        outages.begun(Timestamp(10 * MINUTE));
        let back = async {
            tokio::time::sleep(PATIENCE / 2).await;
            outages.ended(Timestamp(12 * MINUTE), true, None);
        };
        assert!(tokio::join!(took(&outages, 11), back).0);
        outages.begun(Timestamp(20 * MINUTE));
        assert!(!took(&outages, 20).await);
    }
}
