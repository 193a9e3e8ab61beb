//! Images: makes sure that one is here, by the operator's choice of when to pull.

mod login;
mod record;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use berth_core::units::Millis;
use tokio::sync::{Notify, Semaphore, watch};

use crate::clock;
use crate::config::PullBehavior;
use crate::runtime::{ImageFacts, Runtime, RuntimeError};

pub use self::login::{LoginError, Logins};
pub use self::record::Records;

/// Pulls that may run at once; more would only share the disk.
const CONCURRENT_PULLS: usize = 4;
/// Tries of one pull, with growing pauses between them.
const TRIES: u32 = 3;
const FIRST_PAUSE: Duration = Duration::from_millis(1100);

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
#[derive(Debug, Clone, Copy)]
pub struct PullSettings {
    /// When to pull.
    pub behavior: PullBehavior,
    /// Longest silence.
    pub inactivity: Millis,
    /// Longest pull.
    pub total: Millis,
}

/// An image, and the login that the task has for it: with another it may not be had.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Wanted {
    reference: String,
    login: Option<String>,
}

type Answer = Option<Result<ImageFacts, ImageError>>;

/// Makes sure that images are here; one look and one pull for each, however many wait for it.
pub struct Images {
    runtime: Arc<dyn Runtime>,
    settings: PullSettings,
    logins: Logins,
    pulls: Semaphore,
    under_way: Mutex<HashMap<Wanted, watch::Receiver<Answer>>>,
    records: Records,
    news: Notify,
}

impl Images {
    /// Images of that engine.
    #[must_use]
    pub fn new(runtime: Arc<dyn Runtime>, settings: PullSettings, logins: Logins, records: Records) -> Self {
        Self {
            runtime,
            settings,
            logins,
            pulls: Semaphore::new(CONCURRENT_PULLS),
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

    /// Whether somebody waits for that image now.
    #[must_use]
    pub fn is_wanted(&self, reference: &str) -> bool {
        let under_way = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        under_way.keys().any(|wanted| wanted.reference == reference)
    }

    /// Makes sure that the image is here, or waits for another who does that already. `login` is where the
    /// task keeps the login of its registry, where it has one of its own.
    ///
    /// # Errors
    /// [`ImageError`] in the words that users see.
    pub async fn ensure(&self, reference: &str, login: Option<&str>) -> Result<ImageFacts, ImageError> {
        let wanted = Wanted { reference: reference.to_owned(), login: login.map(str::to_owned) };
        loop {
            let (answer, mut waiting) = {
                let mut under_way = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
                match under_way.get(&wanted) {
                    Some(waiting) => (None, waiting.clone()),
                    None => {
                        let (answer, waiting) = watch::channel(None);
                        under_way.insert(wanted.clone(), waiting.clone());
                        (Some(answer), waiting)
                    }
                }
            };
            if let Some(answer) = answer {
                // Dropped on the way (its task was stopped), the guard lets the next one try.
                let _guard = UnderWay { images: self, wanted: &wanted };
                self.records.used(reference, clock::now());
                let result = self.have(&wanted).await;
                answer.send_replace(Some(result.clone()));
                return result;
            }
            if let Ok(answer) = waiting.wait_for(Option::is_some).await
                && let Some(result) = answer.clone()
            {
                return result;
            }
        }
    }

    async fn have(&self, wanted: &Wanted) -> Result<ImageFacts, ImageError> {
        let reference = wanted.reference.as_str();
        match self.settings.behavior {
            PullBehavior::PreferCached => match self.local(reference).await? {
                Some(facts) => Ok(facts),
                None => self.pull(wanted).await,
            },
            PullBehavior::Once => {
                let known = self.records.has(reference);
                match self.local(reference).await? {
                    Some(facts) if known => Ok(facts),
                    local => self.pull_or(wanted, local).await,
                }
            }
            PullBehavior::Default => {
                let local = self.local(reference).await?;
                self.pull_or(wanted, local).await
            }
            PullBehavior::Always => self.pull(wanted).await,
        }
    }

    async fn local(&self, reference: &str) -> Result<Option<ImageFacts>, ImageError> {
        self.runtime.image(reference).await.map_err(|error| refused(reference, error))
    }

    /// Pulls, with an image that is here already to fall back on: then one try is enough.
    async fn pull_or(&self, wanted: &Wanted, local: Option<ImageFacts>) -> Result<ImageFacts, ImageError> {
        let Some(local) = local else {
            return self.pull(wanted).await;
        };
        match self.pull_once(wanted).await {
            Ok(facts) => Ok(facts),
            Err(error) => {
                tracing::info!(image = wanted.reference, %error, "not pulled; using the image that is here");
                Ok(local)
            }
        }
    }

    async fn pull(&self, wanted: &Wanted) -> Result<ImageFacts, ImageError> {
        let mut pause = FIRST_PAUSE;
        let mut tries = 1;
        loop {
            match self.pull_once(wanted).await {
                // A registry that was away for a moment when the engine asked whether it wants a login
                // is sent none, and complains of that.
                Err(ImageError::CannotPull(reason))
                    if tries < TRIES && (is_passing(&reason) || tries == 1 && wants_login(&reason)) =>
                {
                    tracing::info!(
                        image = wanted.reference,
                        reason,
                        "the pull failed and will be tried again"
                    );
                    tokio::time::sleep(pause).await;
                    pause *= 2;
                    tries += 1;
                }
                result => return result,
            }
        }
    }

    async fn pull_once(&self, wanted: &Wanted) -> Result<ImageFacts, ImageError> {
        let reference = wanted.reference.as_str();
        let login = self.logins.of(reference, wanted.login.as_deref()).await;
        let login = login.map_err(|error| ImageError::CannotPull(format!("{reference}: {error}")))?;
        let permit = self
            .pulls
            .acquire()
            .await
            .map_err(|_| ImageError::CannotPull("the agent is stopping".to_owned()))?;
        let pull = self.runtime.pull(reference, login, self.settings.inactivity);
        let result = tokio::time::timeout(self.settings.total.as_duration(), pull).await;
        drop(permit);
        match result {
            Ok(Ok(facts)) => {
                self.records.pulled(reference, clock::now());
                self.news.notify_one();
                Ok(facts)
            }
            Ok(Err(error)) => Err(refused(reference, error)),
            Err(_) => {
                Err(ImageError::CannotPull(format!("{reference}: not pulled within {}", self.settings.total)))
            }
        }
    }
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

/// What an error of the engine means for the image: an engine that answers is not away.
fn refused(reference: &str, error: RuntimeError) -> ImageError {
    match error {
        RuntimeError::Unavailable(detail) => ImageError::EngineAway(detail),
        error => ImageError::CannotPull(with_hint(reference, &error.to_string())),
    }
}

/// Whether trying again soon may help.
fn is_passing(reason: &str) -> bool {
    if wants_login(reason) {
        return false;
    }
    let final_answers = [
        "not found",
        "manifest unknown",
        "invalid reference",
        "does not exist",
        "no such host",
        "registry auth",
    ];
    !final_answers.iter().any(|answer| reason.contains(answer))
}

/// Whether the registry wants a login, or another one.
fn wants_login(reason: &str) -> bool {
    ["denied", "unauthorized", "no basic auth credentials"].iter().any(|answer| reason.contains(answer))
}

fn with_hint(reference: &str, reason: &str) -> String {
    let hint = if reason.contains("no such host")
        || reason.contains("dial tcp")
        || reason.contains("connection refused")
    {
        "the registry cannot be reached from this host"
    } else if wants_login(reason) {
        "the image does not exist, or its registry wants a login"
    } else if reason.contains("not found") || reason.contains("manifest unknown") {
        "check the image's name and tag"
    } else if reason.to_ascii_lowercase().contains("toomanyrequests") {
        "the registry limits how often it is asked: log in there, or try later"
    } else if reason.contains("verification failed") {
        "what the registry sent is damaged: push the image again"
    } else {
        return format!("{reference}: {reason}");
    };
    format!("{reference}: {reason} ({hint})")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::fake::{Call, FakeRuntime};

    fn images(runtime: &FakeRuntime) -> Images {
        let settings = PullSettings {
            behavior: PullBehavior::PreferCached,
            inactivity: Millis::from_secs(60),
            total: Millis::from_secs(60),
        };
        let logins = Logins::new(HashMap::new(), None, Arc::new(crate::secret::Secrets::new(None)));
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

    #[tokio::test]
    async fn an_engine_that_refuses_is_not_away() {
        let runtime = FakeRuntime::new();
        runtime.fail_next(Call::Image, RuntimeError::Refused("invalid reference format".to_owned()));
        let error = images(&runtime).ensure("Not//An:Image", None).await.unwrap_err();
        assert!(matches!(error, ImageError::CannotPull(_)), "{error:?}");
        assert_eq!(error.to_string(), "Not//An:Image: invalid reference format");
    }
}
