//! Images: is it here, and if not, bring it.

use std::collections::HashMap;
use std::sync::Arc;

use berth_core::image::with_tag;
use berth_core::units::Timestamp;
use bollard::auth::DockerCredentials;
use bollard::models::CreateImageInfo;
use bollard::query_parameters::{CreateImageOptions, RemoveImageOptions, TagImageOptions};
use futures_util::StreamExt;

use super::client::{Answer, CallError, Connector, Link};
use super::convert::{Image, ListedImage};
use super::transport::escape;
use crate::runtime::{ImageFacts, LocalImage, PullRequest, Pulling, RuntimeError, labels};

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

/// All images that have a name.
///
/// # Errors
/// The engine's.
pub(super) async fn all(connector: &Connector) -> Result<Vec<LocalImage>, RuntimeError> {
    let link = connector.link().await?;
    let listed: Vec<ListedImage> = match link.get("/images/json").await {
        Ok(listed) => listed,
        Err(error) => return Err(connector.failed(&link, error).await),
    };
    let named = listed.into_iter().flat_map(|image| {
        let made_at = Timestamp(u64::try_from(image.created).unwrap_or_default().saturating_mul(1000));
        let bytes = u64::try_from(image.size).unwrap_or_default();
        let of_agent = image.labels.contains_key(labels::PROGRAM);
        image.repo_tags.into_iter().map(move |name| LocalImage { name, made_at, bytes, of_agent })
    });
    Ok(named.filter(|image| !image.name.starts_with("<none>")).collect())
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

/// Gives an image another name.
///
/// # Errors
/// The engine's.
pub(super) async fn tag(connector: &Connector, from: &str, to: &str) -> Result<(), RuntimeError> {
    let link = connector.link().await?;
    let to = with_tag(to);
    let (repo, tag) = to.rsplit_once(':').unwrap_or((&to, "latest"));
    let options = TagImageOptions { repo: Some(repo.to_owned()), tag: Some(tag.to_owned()) };
    match link.api.tag_image(from, Some(options)).await.map_err(CallError::from) {
        Ok(()) => Ok(()),
        Err(error) => Err(connector.failed(&link, error).await),
    }
}

/// Pulls an image; ends when the registry says nothing, or nothing moves.
pub(super) async fn pull(
    connector: &Connector,
    request: PullRequest<'_>,
) -> Result<ImageFacts, RuntimeError> {
    let link = connector.link().await?;
    let reference = request.reference;
    let options = CreateImageOptions { from_image: Some(with_tag(reference)), ..Default::default() };
    let credentials = request.auth.map(|auth| DockerCredentials {
        username: Some(auth.username),
        password: Some(auth.password),
        serveraddress: Some(auth.server),
        ..Default::default()
    });
    let mut told = link.api.create_image(Some(options), None, credentials);
    let mut layers = Layers::default();
    let mut patience = (request.begin, "the registry says nothing");
    loop {
        match tokio::time::timeout(patience.0.as_duration(), told.next()).await {
            Ok(Some(Ok(news))) => {
                patience = (request.inactivity, "no progress");
                if layers.hear(&news) {
                    (request.progress)(layers.sum());
                }
            }
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
                let (limit, what) = patience;
                return Err(RuntimeError::Refused(format!("pulling {reference}: {what} for {limit}")));
            }
        }
    }
    drop(told);
    found(connector, &link, reference).await?.ok_or_else(|| {
        RuntimeError::Refused(format!(
            "pulling {reference}: the engine reported no error, but has no such image"
        ))
    })
}

/// How far each layer of a pull is.
#[derive(Default)]
struct Layers(HashMap<String, Pulling>);

impl Layers {
    /// Takes in what the engine says; whether it changes anything. Only what comes over the wire counts.
    fn hear(&mut self, news: &CreateImageInfo) -> bool {
        let (Some(id), Some(status)) = (&news.id, news.status.as_deref()) else { return false };
        let size = |bytes: Option<i64>| bytes.and_then(|bytes| u64::try_from(bytes).ok());
        match status {
            "Downloading" => {
                let Some(detail) = &news.progress_detail else { return false };
                let layer = self.0.entry(id.clone()).or_default();
                layer.bytes = size(detail.current).unwrap_or(layer.bytes);
                layer.of = size(detail.total).unwrap_or(layer.of).max(layer.bytes);
                true
            }
            "Download complete" => self.0.get_mut(id).is_some_and(|layer| {
                layer.bytes = layer.of;
                true
            }),
            _ => false,
        }
    }

    fn sum(&self) -> Pulling {
        self.0.values().fold(Pulling::default(), |sum, layer| Pulling {
            bytes: sum.bytes.saturating_add(layer.bytes),
            of: sum.of.saturating_add(layer.of),
        })
    }
}
