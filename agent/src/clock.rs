//! The one place that reads the clock.

use std::cell::Cell;
use std::marker::PhantomData;
use std::time::{Duration, SystemTime};

use berth_core::units::{Millis, Timestamp};
use tokio::time::Instant;

thread_local! {
    /// Where this thread's time began, while it is simulated.
    static BEGAN: Cell<Option<(Instant, Timestamp)>> = const { Cell::new(None) };
}

/// The time now.
#[must_use]
pub fn now() -> Timestamp {
    if let Some((began, start)) = BEGAN.get() {
        let elapsed = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        return start.after(Millis(elapsed));
    }
    let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Timestamp(u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX))
}

/// Notices that the clock was put forward or back, as it is when a host learns the time from its network.
///
/// Whoever waits by the clock goes by [`now`](Self::now) and [`until`](Self::until) of one of these alone: a move of
/// the clock then happens at the moment at which it is noticed, and never between two readings that belong together.
#[derive(Debug, Clone, Copy)]
pub struct Watch {
    seen: Timestamp,
    at: Instant,
}

impl Watch {
    /// Less than that is a clock which goes a little fast or slow.
    const LEAST_MS: u64 = 1000;

    /// Watches from now on.
    #[must_use]
    pub fn begin() -> Self {
        Self { seen: now(), at: Instant::now() }
    }

    /// The time when it looked last.
    #[must_use]
    pub const fn now(&self) -> Timestamp {
        self.seen
    }

    /// How long it is until `at`, by the clock as it was when it looked last; zero when that has passed.
    #[must_use]
    pub fn until(&self, at: Timestamp) -> Duration {
        at.since(self.seen).as_duration().saturating_sub(self.at.elapsed())
    }

    /// Looks. By how many milliseconds the clock was moved since it looked last; negative where that was back.
    pub fn moved(&mut self) -> Option<i64> {
        self.compare(now(), Instant::now())
    }

    fn compare(&mut self, seen: Timestamp, at: Instant) -> Option<i64> {
        let passed = i64::try_from(at.duration_since(self.at).as_millis()).unwrap_or(i64::MAX);
        let expected = self.seen.moved(passed);
        *self = Self { seen, at };
        let by = if seen >= expected {
            i64::try_from(seen.0 - expected.0).unwrap_or(i64::MAX)
        } else {
            i64::try_from(expected.0 - seen.0).map_or(i64::MIN, |by| -by)
        };
        (by.unsigned_abs() >= Self::LEAST_MS).then_some(by)
    }
}

/// A time as people write it (RFC 3339); `None` for one beyond all calendars.
#[must_use]
pub fn rfc3339(at: Timestamp) -> Option<String> {
    Some(jiff::Timestamp::from_millisecond(i64::try_from(at.0).ok()?).ok()?.to_string())
}

/// How long it is until `at`; zero when it has passed.
#[must_use]
pub fn until(at: Timestamp) -> Duration {
    at.since(now()).as_duration()
}

/// A thread whose clock goes as its runtime's timers go. The clock is the host's again when this is dropped.
#[derive(Debug)]
#[must_use]
pub struct Simulated(PhantomData<*const ()>);

/// Makes this thread's clock begin at `start` and go as the timers of its runtime go, which may be paused: for
/// simulations, which have a thread to themselves.
pub fn simulate(start: Timestamp) -> Simulated {
    BEGAN.set(Some((Instant::now(), start)));
    Simulated(PhantomData)
}

/// Puts the clock of this thread forward by so many milliseconds, or back where that is negative, if it is simulated.
/// Timers go on as they do.
pub fn put(by: i64) {
    BEGAN.set(BEGAN.get().map(|(began, start)| (began, start.moved(by))));
}

impl Drop for Simulated {
    fn drop(&mut self) {
        BEGAN.set(None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_simulated_clock_goes_as_the_timers_go() {
        let simulated = simulate(Timestamp(5_000_000));
        tokio::time::sleep(Duration::from_secs(3600)).await;
        assert_eq!(now(), Timestamp(8_600_000));
        let mut watch = Watch::begin();
        put(-600_000);
        assert_eq!((now(), watch.now()), (Timestamp(8_000_000), Timestamp(8_600_000)));
        let until = |watch: &Watch| watch.until(watch.now().after(Millis::from_secs(60)));
        assert_eq!(until(&watch), Duration::from_secs(60));
        tokio::time::sleep(Duration::from_secs(20)).await;
        assert_eq!(
            until(&watch),
            Duration::from_secs(40),
            "what was waited is waited, whatever the clock says"
        );
        assert_eq!((watch.moved(), watch.now()), (Some(-600_000), Timestamp(8_020_000)));
        assert_eq!(until(&watch), Duration::from_secs(60));
        drop(simulated);
        assert!(now() > Timestamp(1_700_000_000_000));
    }

    #[test]
    fn only_what_the_hands_did_not_go_is_told() {
        let (began, hour) = (Instant::now(), Duration::from_secs(3600));
        let mut watch = Watch { seen: Timestamp(10_000_000_000), at: began };
        assert_eq!(watch.compare(Timestamp(10_003_600_400), began + hour), None, "a little fast");
        assert_eq!(watch.compare(Timestamp(10_007_200_400), began + 2 * hour), None, "and not more since");
        assert_eq!(watch.compare(Timestamp(10_097_200_400), began + 2 * hour), Some(90_000_000));
        assert_eq!(watch.compare(Timestamp(10_007_200_400), began + 2 * hour), Some(-90_000_000));
        assert_eq!(watch.compare(Timestamp(0), began + 3 * hour), Some(-10_010_800_400));
        assert_eq!(watch.compare(Timestamp(u64::MAX), began + 3 * hour), Some(i64::MAX));
    }
}
