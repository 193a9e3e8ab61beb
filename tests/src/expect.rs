//! Asking again until the answer is there. Only for what no event tells; everything else is awaited.

use std::fmt::Display;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// How long a step of a test may take before it has failed, unless the test is about time. Long,
/// because the machine may be busy; nothing waits for it when all is well.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// How many times slower than usual this host is: `BERTH_TEST_SLOWNESS`, 1 unless told.
#[must_use]
pub fn slowness() -> u32 {
    static TOLD: LazyLock<u32> = LazyLock::new(|| {
        let told = std::env::var("BERTH_TEST_SLOWNESS").ok().and_then(|text| text.parse().ok());
        told.unwrap_or(1)
    });
    *TOLD
}

/// What that time is on a host of this slowness. All waiting here goes by it already.
#[must_use]
pub fn here(time: Duration) -> Duration {
    time * slowness()
}

/// Calls `ask` until it yields something or the time is over.
///
/// # Errors
/// When the time is over; the text holds `what` and the last thing that `ask` said. An error of
/// `ask` counts as "not yet".
pub async fn eventually<T, Ask, Answer>(within: Duration, what: impl Display, mut ask: Ask) -> Result<T>
where
    Ask: FnMut() -> Answer,
    Answer: Future<Output = Result<Option<T>>>,
{
    let within = here(within);
    let began = Instant::now();
    let mut pause = Duration::from_millis(1);
    let mut last = None;
    loop {
        match tokio::time::timeout(within, ask()).await {
            Ok(Ok(Some(value))) => return Ok(value),
            Ok(Ok(None)) => {}
            Ok(Err(why)) => last = Some(format!("{why:#}")),
            Err(_) => last = Some("no answer at all".to_owned()),
        }
        if began.elapsed() >= within {
            match last {
                Some(last) => bail!("{what}: not within {within:?}; the last answer: {last}"),
                None => bail!("{what}: not within {within:?}"),
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}
