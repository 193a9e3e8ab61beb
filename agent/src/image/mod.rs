//! Images: makes sure that one is here, by the operator's choice of when to pull.
//!
//! | part | its one job |
//! | --- | --- |
//! | `pull`, `lanes` | one image is brought here; whose turn it is |
//! | `login`, `ecr` | what registries want to know |
//! | `record` | what was pulled here, and when it was used |
//! | `words` | what registries mean when they refuse |

mod ecr;
mod lanes;
mod login;
mod pull;
mod record;
mod words;

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use berth_core::image::familiar;
use berth_core::units::Millis;
use tokio::sync::{Notify, oneshot, watch};
use tokio::time::timeout;

use self::pull::{Puller, refused};
use crate::clock;
use crate::config::PullBehavior;
use crate::runtime::{ImageFacts, Runtime, RuntimeError};

pub use self::login::{LoginError, Logins};
pub use self::pull::Progress;
pub use self::record::{Record, Records};

/// Why an image is not to be had. The text is for users.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ImageError {
    /// The engine does not answer.
    #[error("the container engine does not answer: {0}")]
    EngineAway(String),
    /// It could not be pulled.
    #[error("{0}")]
    CannotPull(String),
}

/// How images are had.
#[derive(Debug, Clone)]
pub struct PullSettings {
    /// When to pull.
    pub behavior: PullBehavior,
    /// Longest time until the registry says anything.
    pub begin: Millis,
    /// Longest silence afterwards.
    pub inactivity: Millis,
    /// Longest pull.
    pub total: Millis,
    /// Where images of a registry are looked for first.
    pub mirrors: BTreeMap<String, Vec<String>>,
}

/// An image, and the login that the task has for it: with another it may not be had.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Wanted {
    reference: String,
    login: Option<String>,
}

impl Wanted {
    /// Spreads the pauses of pulls.
    fn seed(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.hash(&mut hasher);
        hasher.finish()
    }
}

type Answer = Result<ImageFacts, ImageError>;

/// Longest that the engine may take to say whether it has an image.
const LOOK: Duration = Duration::from_secs(30);
/// After which it is asked a second time.
const FIRST_LOOK: Duration = Duration::from_secs(2);

/// A pull that runs, and who waits for what comes of it, in the order in which they came.
struct Pull {
    waiting: Vec<oneshot::Sender<Answer>>,
    progress: watch::Receiver<Progress>,
}

/// Makes sure that images are here; one look and one pull for each, however many wait for it.
pub struct Images {
    runtime: Arc<dyn Runtime>,
    behavior: PullBehavior,
    puller: Puller,
    under_way: Mutex<BTreeMap<Wanted, Pull>>,
    records: Records,
    news: Notify,
}

impl Images {
    /// Images of that engine.
    #[must_use]
    pub fn new(runtime: Arc<dyn Runtime>, settings: PullSettings, logins: Logins, records: Records) -> Self {
        Self {
            behavior: settings.behavior,
            puller: Puller::new(Arc::clone(&runtime), settings, logins),
            runtime,
            under_way: Mutex::default(),
            records,
            news: Notify::new(),
        }
    }

    /// What this agent has pulled.
    #[must_use]
    pub const fn records(&self) -> &Records {
        &self.records
    }

    /// Waits until another image was pulled.
    pub async fn pulled(&self) {
        self.news.notified().await;
    }

    /// How far each pull is.
    #[must_use]
    pub fn under_way(&self) -> Vec<Progress> {
        let under_way = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        under_way.values().map(|pull| *pull.progress.borrow()).collect()
    }

    /// How far the pull of that image is; `None` when nobody waits for it.
    #[must_use]
    pub fn progress(&self, reference: &str) -> Option<Progress> {
        let name = familiar(reference);
        let under_way = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        let pull = under_way.iter().find(|(wanted, _)| familiar(&wanted.reference) == name)?.1;
        Some(*pull.progress.borrow())
    }

    /// Makes sure that the image is here, or waits for another who does that already. `login` is where the
    /// task keeps the login of its registry, where it has one of its own.
    ///
    /// # Errors
    /// [`ImageError`] in the words that users see.
    pub async fn ensure(&self, reference: &str, login: Option<&str>) -> Result<Had, ImageError> {
        let wanted = Wanted { reference: reference.to_owned(), login: login.map(str::to_owned) };
        let (progress, seen) = watch::channel(Progress::default());
        loop {
            let waiting = {
                let mut under_way = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
                match under_way.get_mut(&wanted) {
                    Some(pull) => {
                        let (tell, told) = oneshot::channel();
                        pull.waiting.push(tell);
                        Some(told)
                    }
                    None => {
                        let pull = Pull { waiting: Vec::new(), progress: seen.clone() };
                        under_way.insert(wanted.clone(), pull);
                        None
                    }
                }
            };
            let Some(told) = waiting else {
                // Dropped on the way (its task was stopped), the guard lets the next one try.
                let _guard = UnderWay { images: self, wanted: &wanted };
                self.records.used(reference, clock::now());
                let result = self.have(&wanted, &progress).await;
                self.tell(&wanted, &result);
                let pulled = match *progress.borrow() {
                    Progress::Pulling(pulling) => pulling.bytes,
                    _ => 0,
                };
                return result.map(|facts| Had { facts, pulled });
            };
            if let Ok(result) = told.await {
                return result.map(|facts| Had { facts, pulled: 0 });
            }
        }
    }

    /// Tells those who wait.
    fn tell(&self, wanted: &Wanted, answer: &Answer) {
        let mut under_way = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        for tell in under_way.get_mut(wanted).into_iter().flat_map(|pull| pull.waiting.drain(..)) {
            // Its task may have been stopped.
            drop(tell.send(answer.clone()));
        }
    }

    async fn have(
        &self,
        wanted: &Wanted,
        progress: &watch::Sender<Progress>,
    ) -> Result<ImageFacts, ImageError> {
        let reference = wanted.reference.as_str();
        match self.behavior {
            PullBehavior::PreferCached => match self.local(reference).await? {
                Some(facts) => Ok(facts),
                None => self.take_note(wanted, self.puller.pull(wanted, progress).await),
            },
            PullBehavior::Once => {
                let known = self.records.has(reference);
                match self.local(reference).await? {
                    Some(facts) if known => Ok(facts),
                    local => self.pull_or(wanted, local, progress).await,
                }
            }
            PullBehavior::Default => {
                let local = self.local(reference).await?;
                self.pull_or(wanted, local, progress).await
            }
            PullBehavior::Always => self.take_note(wanted, self.puller.pull(wanted, progress).await),
        }
    }

    /// An answer may be lost, and everybody who wants the image waits for this one: it is asked again before long.
    async fn local(&self, reference: &str) -> Result<Option<ImageFacts>, ImageError> {
        let (mut patience, mut left) = (FIRST_LOOK, LOOK);
        loop {
            if let Ok(looked) = timeout(patience.min(left), self.runtime.image(reference)).await {
                return looked.map_err(|error| refused(reference, error));
            }
            left = left.saturating_sub(patience);
            if left.is_zero() {
                let late = format!("it does not say whether it has {reference} within {} s", LOOK.as_secs());
                return Err(refused(reference, RuntimeError::Unavailable(late)));
            }
            tracing::debug!(
                image = reference,
                "the engine does not say whether it has it; it is asked again"
            );
            patience *= 2;
        }
    }

    /// Pulls, with an image that is here already to fall back on: then one try is enough.
    async fn pull_or(
        &self,
        wanted: &Wanted,
        local: Option<ImageFacts>,
        progress: &watch::Sender<Progress>,
    ) -> Result<ImageFacts, ImageError> {
        let Some(local) = local else {
            return self.take_note(wanted, self.puller.pull(wanted, progress).await);
        };
        match self.take_note(wanted, self.puller.once(wanted, progress).await) {
            Ok(facts) => Ok(facts),
            Err(error) => {
                tracing::info!(image = wanted.reference, %error, "not pulled; using the image that is here");
                Ok(local)
            }
        }
    }

    fn take_note<T>(&self, wanted: &Wanted, result: Result<T, ImageError>) -> Result<T, ImageError> {
        if result.is_ok() {
            self.records.pulled(&wanted.reference, clock::now());
            self.news.notify_one();
        }
        result
    }
}

/// An image that is here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Had {
    /// What it is.
    pub facts: ImageFacts,
    /// How many bytes came for whoever asked, 0 for those who waited for another's pull.
    pub pulled: u64,
}

struct UnderWay<'a> {
    images: &'a Images,
    wanted: &'a Wanted,
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.images.under_way.lock().unwrap_or_else(PoisonError::into_inner).remove(self.wanted);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::RuntimeError;
    use crate::runtime::fake::{Call, FakeRuntime};

    fn images(runtime: &FakeRuntime) -> Images {
        let settings = PullSettings {
            behavior: PullBehavior::PreferCached,
            begin: Millis::from_secs(60),
            mirrors: BTreeMap::new(),
            inactivity: Millis::from_secs(60),
            total: Millis::from_secs(60),
        };
        let logins = Logins::new(
            std::collections::HashMap::new(),
            None,
            None,
            Arc::new(crate::secret::Secrets::new(None)),
        );
        Images::new(Arc::new(runtime.clone()), settings, logins, Records::open(None))
    }

    #[tokio::test]
    async fn an_engine_that_does_not_answer_is_said_to_be_away_once() {
        let runtime = FakeRuntime::new();
        runtime.down();
        let error = images(&runtime).ensure("web", None).await.unwrap_err();
        assert!(matches!(error, ImageError::EngineAway(_)), "{error:?}");
        assert_eq!(error.to_string().matches("does not answer").count(), 1, "{error}");
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_is_lost_holds_up_nobody_for_long() {
        let runtime = FakeRuntime::new();
        runtime.delay(Call::Image, Millis::from_secs(3600));
        let (images, began) = (images(&runtime), tokio::time::Instant::now());
        let heals = async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            runtime.delay(Call::Image, Millis(0));
        };
        let (had, also_had, ()) = tokio::join!(images.ensure("web", None), images.ensure("web", None), heals);
        assert!(had.is_ok() && also_had.is_ok());
        assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
        runtime.delay(Call::Image, Millis::from_secs(3600));
        let error = images.ensure("web", None).await.unwrap_err();
        assert!(error.to_string().contains("within 30 s"), "{error}");
    }

    #[tokio::test]
    async fn an_engine_that_refuses_is_not_away() {
        let runtime = FakeRuntime::new();
        runtime.fail_next(Call::Image, RuntimeError::Refused("invalid reference format".to_owned()));
        let error = images(&runtime).ensure("Not//An:Image", None).await.unwrap_err();
        assert!(matches!(error, ImageError::CannotPull(_)), "{error:?}");
        assert_eq!(error.to_string(), "Not//An:Image: invalid reference format");
    }
}
