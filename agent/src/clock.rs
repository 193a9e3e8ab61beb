//! The one place that reads the clock.

use std::time::{Duration, SystemTime};

use berth_core::units::Timestamp;

/// The time now.
#[must_use]
pub fn now() -> Timestamp {
    let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Timestamp(u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX))
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
