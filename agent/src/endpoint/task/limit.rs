//! How often one caller may ask: a bucket for each, so that a busy task takes nothing from another.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Most buckets that are kept; full ones go first, for they say nothing.
const MOST: usize = 4096;

/// How often.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rate {
    /// Requests in a second, in the long run.
    pub per_second: u32,
    /// Requests at once.
    pub burst: u32,
}

#[derive(Debug, Clone, Copy)]
struct Bucket {
    left: f64,
    at: Instant,
}

/// The buckets of all callers.
#[derive(Debug)]
pub(super) struct Limits<K> {
    per_second: f64,
    burst: f64,
    buckets: Mutex<HashMap<K, Bucket>>,
}

impl<K: Eq + Hash> Limits<K> {
    pub(super) fn new(rate: Rate) -> Self {
        Self {
            per_second: f64::from(rate.per_second),
            burst: f64::from(rate.burst),
            buckets: Mutex::default(),
        }
    }

    /// One in so long a time, in the long run.
    pub(super) fn seldom(every: Duration, burst: u32) -> Self {
        Self { per_second: every.as_secs_f64().recip(), burst: f64::from(burst), buckets: Mutex::default() }
    }

    /// Takes one request; false when the caller has asked too often.
    pub(super) fn take(&self, caller: K, now: Instant) -> bool {
        let full = self.burst;
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        if buckets.len() >= MOST && !buckets.contains_key(&caller) {
            buckets.retain(|_, bucket| self.filled(*bucket, now) < full);
            if buckets.len() >= MOST {
                return false;
            }
        }
        let bucket = buckets.entry(caller).or_insert(Bucket { left: full, at: now });
        let left = self.filled(*bucket, now);
        let allowed = left >= 1.0;
        *bucket = Bucket { left: if allowed { left - 1.0 } else { left }, at: now };
        allowed
    }

    fn filled(&self, bucket: Bucket, now: Instant) -> f64 {
        let gained = now.saturating_duration_since(bucket.at).as_secs_f64() * self.per_second;
        (bucket.left + gained).min(self.burst)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_caller_has_its_burst_and_then_its_rate() {
        let limits = Limits::new(Rate { per_second: 10, burst: 3 });
        let now = Instant::now();
        let taken = |who: u8, at: Duration| limits.take(who, now + at);
        assert_eq!([0; 4].map(|who| taken(who, Duration::ZERO)), [true, true, true, false]);
        assert!(taken(1, Duration::ZERO));
        assert!(!taken(0, Duration::from_millis(90)));
        assert!(taken(0, Duration::from_millis(200)));
    }

    #[test]
    fn a_rate_may_be_less_than_one_in_a_second() {
        let limits = Limits::seldom(Duration::from_secs(5), 1);
        let now = Instant::now();
        assert!(limits.take(0, now));
        assert!(!limits.take(0, now + Duration::from_secs(4)));
        assert!(limits.take(0, now + Duration::from_secs(6)));
    }

    #[test]
    fn buckets_are_bounded() {
        let limits = Limits::new(Rate { per_second: 1, burst: 2 });
        let now = Instant::now();
        for who in 0..MOST {
            assert!(limits.take(who, now));
        }
        assert!(!limits.take(MOST, now));
        assert!(limits.take(MOST, now + Duration::from_secs(5)));
    }
}
