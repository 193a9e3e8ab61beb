//! The one place that reads the clock.

use std::time::{SystemTime, UNIX_EPOCH};

use berth_core::units::Timestamp;

/// What time it is, in milliseconds since the Unix epoch.
#[must_use]
pub fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// Now, as signatures of AWS have it.
#[must_use]
pub fn signing_date() -> String {
    jiff::Timestamp::now().strftime(berth_proto::sigv4::DATE).to_string()
}
