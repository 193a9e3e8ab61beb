//! Where the agent touches the world: the names of what it does there, and a place for somebody to stand just
//! before and just after it. Nobody stands there in an agent that ships; tests do, and have it die, hang or fail.
//!
//! What is behind a port ([`Runtime`](crate::runtime::Runtime), [`Store`](crate::store::Store) and the like) needs
//! no place here: whoever wants to stand there wraps the port.

use std::future::Future;
use std::sync::Arc;

use berth_core::task::ResourceKey;
use futures_util::future::BoxFuture;

/// On which side of an effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Side {
    /// It has not begun.
    Before,
    /// It has come about, and nobody knows yet.
    After,
}

/// Somebody who stands before and after effects.
pub trait Sentry: Send + Sync + 'static {
    /// The agent comes by; an error makes it believe that the effect has failed.
    fn pass<'a>(&'a self, effect: &'static str, side: Side) -> BoxFuture<'a, Result<(), String>>;
}

/// The effects that are behind no port, in the engine's words.
pub const UNPORTED: [&str; 19] = [
    ACQUIRE_PORTS,
    ACQUIRE_GPUS,
    ACQUIRE_ENVIRONMENT,
    ACQUIRE_LOG_ROUTER,
    ACQUIRE_CREDENTIALS,
    ACQUIRE_FAULTS,
    RELEASE_PORTS,
    RELEASE_GPUS,
    RELEASE_ENVIRONMENT,
    RELEASE_LOG_ROUTER,
    RELEASE_CREDENTIALS,
    RELEASE_FAULTS,
    METADATA_BEGIN,
    METADATA_TELL,
    METADATA_REMOVE,
    METADATA_FORGET,
    CREDENTIALS_KEEP,
    IMAGES_KEEP,
    JOURNAL_WRITE,
];
const ACQUIRE_PORTS: &str = "acquire.ports";
const ACQUIRE_GPUS: &str = "acquire.gpus";
const ACQUIRE_ENVIRONMENT: &str = "acquire.environment";
const ACQUIRE_LOG_ROUTER: &str = "acquire.log-router";
const ACQUIRE_CREDENTIALS: &str = "acquire.credentials";
/// Of a task that may break its network.
const ACQUIRE_FAULTS: &str = "acquire.faults";
const RELEASE_PORTS: &str = "release.ports";
const RELEASE_GPUS: &str = "release.gpus";
const RELEASE_ENVIRONMENT: &str = "release.environment";
const RELEASE_LOG_ROUTER: &str = "release.log-router";
const RELEASE_CREDENTIALS: &str = "release.credentials";
/// What the task broke is made whole.
const RELEASE_FAULTS: &str = "release.faults";
/// The metadata file of a container that is about to be made.
pub(crate) const METADATA_BEGIN: &str = "metadata.begin";
/// The metadata file of one that runs.
pub(crate) const METADATA_TELL: &str = "metadata.tell";
/// The metadata file of one that is gone.
pub(crate) const METADATA_REMOVE: &str = "metadata.remove";
/// All metadata files of a task that is gone.
pub(crate) const METADATA_FORGET: &str = "metadata.forget";
/// The credentials of all tasks, sealed.
pub(crate) const CREDENTIALS_KEEP: &str = "credentials.keep";
/// Which images were pulled, and used when.
pub(crate) const IMAGES_KEEP: &str = "images.keep";
/// What happened to tasks, for people.
pub(crate) const JOURNAL_WRITE: &str = "journal.write";

/// What acquiring a resource is called; `None` for one that is behind a port.
pub(crate) const fn acquiring(resource: &ResourceKey) -> Option<&'static str> {
    match resource {
        ResourceKey::Ports(_) => Some(ACQUIRE_PORTS),
        ResourceKey::Gpus(_) => Some(ACQUIRE_GPUS),
        ResourceKey::Environment => Some(ACQUIRE_ENVIRONMENT),
        ResourceKey::LogRouter => Some(ACQUIRE_LOG_ROUTER),
        ResourceKey::Credentials => Some(ACQUIRE_CREDENTIALS),
        ResourceKey::Faults => Some(ACQUIRE_FAULTS),
        ResourceKey::Cgroup
        | ResourceKey::CpuBound
        | ResourceKey::Image(_)
        | ResourceKey::Namespace
        | ResourceKey::Interface => None,
    }
}

/// What releasing it is called.
pub(crate) const fn releasing(resource: &ResourceKey) -> Option<&'static str> {
    match resource {
        ResourceKey::Ports(_) => Some(RELEASE_PORTS),
        ResourceKey::Gpus(_) => Some(RELEASE_GPUS),
        ResourceKey::Environment => Some(RELEASE_ENVIRONMENT),
        ResourceKey::LogRouter => Some(RELEASE_LOG_ROUTER),
        ResourceKey::Credentials => Some(RELEASE_CREDENTIALS),
        ResourceKey::Faults => Some(RELEASE_FAULTS),
        ResourceKey::Cgroup
        | ResourceKey::CpuBound
        | ResourceKey::Image(_)
        | ResourceKey::Namespace
        | ResourceKey::Interface => None,
    }
}

/// Who stands there, if anybody. Cloning shares them.
#[derive(Clone, Default)]
pub struct Effects(Option<Arc<dyn Sentry>>);

impl Effects {
    /// With somebody who stands there.
    #[must_use]
    pub fn watched_by(sentry: Arc<dyn Sentry>) -> Self {
        Self(Some(sentry))
    }

    /// Has the effect come about, past whoever stands before and after it.
    ///
    /// # Errors
    /// Those of the effect, and what whoever stands there makes one believe, as `failed` has it.
    pub async fn around<T, E>(
        &self,
        effect: &'static str,
        failed: impl Fn(String) -> E,
        act: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        let Some(sentry) = &self.0 else {
            return act.await;
        };
        sentry.pass(effect, Side::Before).await.map_err(&failed)?;
        let done = act.await?;
        sentry.pass(effect, Side::After).await.map_err(failed)?;
        Ok(done)
    }
}
