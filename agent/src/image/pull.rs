//! One image is brought here: from a mirror of its registry where there is one that has it, with the login
//! that it wants, and again where another try may help.

use std::sync::Arc;
use std::time::Duration;

use berth_core::image::{registry, repository, with_tag};
use tokio::sync::watch;

use super::lanes::Lanes;
use super::words::{is_passing, wants_login, with_hint};
use super::{ImageError, Logins, PullSettings, Wanted};
use crate::backoff::Backoff;
use crate::random;
use crate::runtime::{ImageFacts, PullRequest, Pulling, Runtime, RuntimeError};

/// Tries of one pull, with growing pauses between them, as of ECS.
const TRIES: u32 = 5;
const FIRST_PAUSE: Duration = Duration::from_millis(1100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// How far a pull is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Progress {
    /// Others come first.
    #[default]
    Queued,
    /// It runs.
    Pulling(Pulling),
    /// It failed, and will be tried again.
    Again,
}

/// Brings images here.
pub(super) struct Puller {
    runtime: Arc<dyn Runtime>,
    settings: PullSettings,
    logins: Logins,
    lanes: Lanes,
}

impl Puller {
    pub(super) const fn new(runtime: Arc<dyn Runtime>, settings: PullSettings, logins: Logins) -> Self {
        Self { runtime, settings, logins, lanes: Lanes::new() }
    }

    /// Pulls, and tries again where that may help.
    pub(super) async fn pull(
        &self,
        wanted: &Wanted,
        progress: &watch::Sender<Progress>,
    ) -> Result<ImageFacts, ImageError> {
        let mut pauses = Backoff::new(random::number() ^ wanted.seed(), FIRST_PAUSE, LONGEST_PAUSE);
        let mut tries = 1;
        loop {
            match self.once(wanted, progress).await {
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
                    self.logins.refused(&wanted.reference);
                    progress.send_replace(Progress::Again);
                    tokio::time::sleep(pauses.pause()).await;
                    tries += 1;
                }
                result => return result,
            }
        }
    }

    /// Pulls, once.
    pub(super) async fn once(
        &self,
        wanted: &Wanted,
        progress: &watch::Sender<Progress>,
    ) -> Result<ImageFacts, ImageError> {
        let begun = || {
            progress.send_replace(Progress::Pulling(Pulling::default()));
        };
        self.lanes.run(begun, self.anywhere(wanted, progress)).await
    }

    /// From the mirrors first, in their order, and from the registry itself last. An image that is named by
    /// its digest comes from the registry: an engine knows a digest by the repository it was pulled from.
    async fn anywhere(
        &self,
        wanted: &Wanted,
        progress: &watch::Sender<Progress>,
    ) -> Result<ImageFacts, ImageError> {
        let reference = with_tag(&wanted.reference);
        let mirrors = self.settings.mirrors.get(&registry(&reference)).map_or(&[][..], Vec::as_slice);
        for mirror in mirrors.iter().filter(|_| !reference.contains('@')) {
            let there = mirrored(mirror, &reference);
            match self.from(&there, None, progress).await {
                Ok(facts) => match self.rename(&there, &reference).await {
                    Ok(()) => return Ok(facts),
                    Err(error) => tracing::warn!(image = reference, %error, "an image from a mirror"),
                },
                Err(ImageError::CannotPull(reason)) => {
                    tracing::info!(image = reference, mirror, reason, "the mirror does not have it");
                }
                Err(away @ ImageError::EngineAway(_)) => return Err(away),
            }
        }
        self.from(&wanted.reference, wanted.login.as_deref(), progress).await
    }

    async fn from(
        &self,
        reference: &str,
        login: Option<&str>,
        progress: &watch::Sender<Progress>,
    ) -> Result<ImageFacts, ImageError> {
        let login = self.logins.of(reference, login).await;
        let login = login.map_err(|error| ImageError::CannotPull(format!("{reference}: {error}")))?;
        let told = |pulling| {
            progress.send_replace(Progress::Pulling(pulling));
        };
        let request = PullRequest {
            reference,
            auth: login,
            begin: self.settings.begin,
            inactivity: self.settings.inactivity,
            progress: &told,
        };
        let pull = self.runtime.pull(request);
        match tokio::time::timeout(self.settings.total.as_duration(), pull).await {
            Ok(result) => result.map_err(|error| refused(reference, error)),
            Err(_) => {
                Err(ImageError::CannotPull(format!("{reference}: not pulled within {}", self.settings.total)))
            }
        }
    }

    async fn rename(&self, from: &str, to: &str) -> Result<(), RuntimeError> {
        self.runtime.tag(from, to).await?;
        self.runtime.remove_image(from).await.map(|_| ())
    }
}

/// Where a mirror has an image: below its own name, under that of the image without its registry.
fn mirrored(mirror: &str, reference: &str) -> String {
    let host = registry(reference);
    let path = reference.strip_prefix(&format!("{host}/")).unwrap_or(reference);
    // Docker Hub's own images have a folder that nobody writes.
    let official = host == berth_core::image::HUB && !repository(reference).contains('/');
    let path =
        if official && !path.starts_with("library/") { format!("library/{path}") } else { path.to_owned() };
    format!("{mirror}/{path}")
}

/// What an error of the engine means for the image: an engine that answers is not away.
pub(super) fn refused(reference: &str, error: RuntimeError) -> ImageError {
    match error {
        RuntimeError::Unavailable(detail) => ImageError::EngineAway(detail),
        error => ImageError::CannotPull(with_hint(reference, &error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::mirrored;

    #[test]
    fn a_mirror_has_images_below_its_own_name() {
        for (reference, there) in [
            ("web:1", "m.local/hub/library/web:1"),
            ("docker.io/team/web:1", "m.local/hub/team/web:1"),
            ("r.local:5000/team/web:1", "m.local/hub/team/web:1"),
        ] {
            assert_eq!(mirrored("m.local/hub", reference), there);
        }
    }
}
