//! Notices that the host is taken back, from where they come: a port, and who looks there each second.
//!
//! A source looks, and says what stands there now. What it cannot see changes nothing: a notice stands until
//! its source says that there is none.

pub mod file;
pub mod instance_metadata;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use berth_core::units::Timestamp;
use futures_util::future::BoxFuture;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};

/// How often the sources are looked at: as often as ECS does.
const PERIOD: Duration = Duration::from_secs(1);

/// A notice that the host is taken back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    /// Whose it is.
    pub kind: NoticeKind,
    /// When nothing runs here any more, where that is known.
    pub deadline: Option<Timestamp>,
}

/// Whose notice it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoticeKind {
    /// EC2 takes a Spot instance back.
    Spot,
    /// Somebody on the host says so.
    Told,
}

/// Why a source could not be looked at.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NoticeError(pub String);

/// Where notices come from.
pub trait NoticeSource: Send + Sync + fmt::Debug {
    /// Its name, for people: what an operator set to have it.
    fn name(&self) -> &'static str;
    /// The notice that stands there; `None` when none does.
    fn look(&self) -> BoxFuture<'_, Result<Option<Notice>, NoticeError>>;
}

/// What stands at all sources together.
#[derive(Debug)]
pub struct Notices {
    sources: Vec<Arc<dyn NoticeSource>>,
    stands: Vec<Option<Notice>>,
    /// Whether trouble with a source was told, so that it is told once.
    troubled: Vec<bool>,
    notice: watch::Sender<Option<Notice>>,
}

impl Notices {
    /// Of these sources.
    #[must_use]
    pub fn new(sources: Vec<Arc<dyn NoticeSource>>) -> Self {
        let count = sources.len();
        Self {
            sources,
            stands: vec![None; count],
            troubled: vec![false; count],
            notice: watch::Sender::default(),
        }
    }

    /// The notice that stands: of several, the one with the earliest deadline.
    #[must_use]
    pub fn notice(&self) -> watch::Receiver<Option<Notice>> {
        self.notice.subscribe()
    }

    /// Looks at every source once.
    pub async fn look(&mut self) {
        let looks = futures_util::future::join_all(self.sources.iter().map(|source| source.look())).await;
        for (at, look) in looks.into_iter().enumerate() {
            let source = self.sources[at].name();
            match look {
                Ok(found) => {
                    self.troubled[at] = false;
                    self.stands[at] = found;
                }
                Err(error) if self.troubled[at] => tracing::debug!(source, %error, "no look for notices"),
                Err(error) => {
                    self.troubled[at] = true;
                    tracing::warn!(source, %error, "cannot look for notices that the host is taken back");
                }
            }
        }
        let standing = self.stands.iter().flatten();
        let first = standing.min_by_key(|notice| notice.deadline.map_or(u64::MAX, |at| at.0)).cloned();
        self.notice.send_if_modified(|known| {
            let changed = *known != first;
            *known = first;
            changed
        });
    }

    /// Looks for ever.
    pub async fn run(mut self) {
        if self.sources.is_empty() {
            return;
        }
        let mut ticks = interval(PERIOD);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            self.look().await;
        }
    }
}

/// Reads a moment as RFC 3339 has it.
fn moment(text: &str) -> Option<Timestamp> {
    let at: jiff::Timestamp = text.trim().parse().ok()?;
    u64::try_from(at.as_millisecond()).ok().map(Timestamp)
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[derive(Debug, Default)]
    struct Scripted(Mutex<Vec<Result<Option<Notice>, NoticeError>>>);

    impl NoticeSource for Scripted {
        fn name(&self) -> &'static str {
            "SCRIPTED"
        }

        fn look(&self) -> BoxFuture<'_, Result<Option<Notice>, NoticeError>> {
            let next = self.0.lock().unwrap().remove(0);
            Box::pin(async move { next })
        }
    }

    fn told(deadline: Option<u64>) -> Option<Notice> {
        Some(Notice { kind: NoticeKind::Told, deadline: deadline.map(Timestamp) })
    }

    #[tokio::test]
    async fn a_notice_stands_until_its_source_takes_it_back_and_the_earliest_counts() {
        let away = || Err(NoticeError("away".to_owned()));
        let one = Scripted(Mutex::new(vec![Ok(None), Ok(told(None)), away(), Ok(None), Ok(None)]));
        let other =
            Scripted(Mutex::new(vec![away(), Ok(told(Some(5))), Ok(told(Some(5))), away(), Ok(None)]));
        let mut all = Notices::new(vec![Arc::new(one), Arc::new(other)]);
        let seen = all.notice();
        for expected in [None, told(Some(5)), told(Some(5)), told(Some(5)), None] {
            all.look().await;
            assert_eq!(*seen.borrow(), expected);
        }
    }
}
