//! Images: is it here, and if not, bring it.

use std::sync::Arc;

use berth_core::units::{Millis, Timestamp};
use bollard::auth::DockerCredentials;
use bollard::query_parameters::{CreateImageOptions, RemoveImageOptions};
use futures_util::StreamExt;

use super::client::{Answer, CallError, Connector, Link};
use super::convert::{Image, ListedImage, with_tag};
use super::transport::escape;
use crate::runtime::{ImageFacts, RegistryAuth, RuntimeError};

/// The local image of that reference, if there is one.
pub(super) async fn find(connector: &Connector, reference: &str) -> Result<Option<ImageFacts>, RuntimeError> {
    let link = connector.link().await?;
    found(connector, &link, reference).await
}

async fn found(
    connector: &Connector,
    link: &Arc<Link>,
    reference: &str,
) -> Result<Option<ImageFacts>, RuntimeError> {
    match link.get::<Image>(&format!("/images/{}/json", escape(reference, "/:@"))).await {
        Ok(image) => Ok(Some(image.facts(reference))),
        Err(CallError::Answer(Answer { status: 404, .. })) => Ok(None),
        Err(error) => Err(connector.failed(link, error).await),
    }
}

/// All images that have a name, with when they were made.
///
/// # Errors
/// The engine's.
pub(super) async fn all(connector: &Connector) -> Result<Vec<(String, Timestamp)>, RuntimeError> {
    let link = connector.link().await?;
    let listed: Vec<ListedImage> = match link.get("/images/json").await {
        Ok(listed) => listed,
        Err(error) => return Err(connector.failed(&link, error).await),
    };
    let named = listed.into_iter().flat_map(|image| {
        let made_at = Timestamp(image.created.saturating_mul(1000));
        image.repo_tags.into_iter().map(move |name| (name, made_at))
    });
    Ok(named.filter(|(name, _)| !name.starts_with("<none>")).collect())
}

/// Takes a name from an image, and removes the image with its last name. False when a container has it;
/// one that is not there is removed already.
///
/// # Errors
/// The engine's.
pub(super) async fn remove(connector: &Connector, reference: &str) -> Result<bool, RuntimeError> {
    let link = connector.link().await?;
    let removed = link.api.remove_image(reference, None::<RemoveImageOptions>, None).await;
    match removed.map_err(CallError::from) {
        Ok(_) => Ok(true),
        Err(CallError::Answer(Answer { status: 404, .. })) => Ok(true),
        Err(CallError::Answer(Answer { status: 409, .. })) => Ok(false),
        Err(error) => Err(connector.failed(&link, error).await),
    }
}

/// Pulls an image; ends when nothing moves for `inactivity`.
pub(super) async fn pull(
    connector: &Connector,
    reference: &str,
    auth: Option<RegistryAuth>,
    inactivity: Millis,
) -> Result<ImageFacts, RuntimeError> {
    let link = connector.link().await?;
    let options = CreateImageOptions { from_image: Some(with_tag(reference)), ..Default::default() };
    let credentials = auth.map(|auth| DockerCredentials {
        username: Some(auth.username),
        password: Some(auth.password),
        serveraddress: Some(auth.server),
        ..Default::default()
    });
    let mut progress = link.api.create_image(Some(options), None, credentials);
    loop {
        match tokio::time::timeout(inactivity.as_duration(), progress.next()).await {
            Ok(Some(Ok(_))) => {}
            Ok(Some(Err(error))) => match CallError::from(error) {
                // A kind of progress that is not known is progress all the same; but the stream
                // ends with it, and whether the image came is seen below.
                CallError::Strange(why) => {
                    tracing::warn!(image = reference, %why, "the engine's report on a pull is not understood");
                    break;
                }
                error => return Err(connector.failed(&link, error).await),
            },
            Ok(None) => break,
            Err(_) => {
                return Err(RuntimeError::Refused(format!(
                    "pulling {reference}: no progress for {inactivity}"
                )));
            }
        }
    }
    drop(progress);
    found(connector, &link, reference).await?.ok_or_else(|| {
        RuntimeError::Refused(format!(
            "pulling {reference}: the engine reported no error, but has no such image"
        ))
    })
}
