//! EC2's instance metadata, where the notice stands that a Spot instance is taken back
//! (`spot/instance-action`). Asked with a session token (version 2 of the service), and without where the
//! service knows of none.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use berth_core::units::Timestamp;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use reqwest::StatusCode;
use serde::Deserialize;

use super::{Notice, NoticeError, NoticeKind, NoticeSource, moment};
use crate::web::explain;

/// Longest that one answer may take.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long a token is asked for, and how much of that it is used.
const TOKEN_LIFE: Duration = Duration::from_secs(21_600);
const TOKEN_USE: Duration = Duration::from_secs(21_000);
/// Most of an answer that is read, in bytes.
const MOST: u64 = 4096;

/// The instance's metadata service.
pub struct InstanceMetadata {
    base: String,
    client: reqwest::Client,
    token: Mutex<Option<(String, Instant)>>,
}

impl std::fmt::Debug for InstanceMetadata {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("InstanceMetadata").field("base", &self.base).finish_non_exhaustive()
    }
}

#[derive(Deserialize)]
struct InstanceAction {
    action: String,
    time: String,
}

/// Until when, in the words of the service.
pub(super) fn deadline(text: &str) -> Option<Timestamp> {
    serde_json::from_str::<InstanceAction>(text).ok().and_then(|found| moment(&found.time))
}

impl InstanceMetadata {
    /// The service at that address, `http://169.254.169.254` on an instance.
    #[must_use]
    pub fn new(base: &str) -> Self {
        // Whoever comes first installs it; it is the same for all.
        let _ = rustls::crypto::ring::default_provider().install_default();
        // It is on the link: no proxy knows the way.
        let client = reqwest::Client::builder().no_proxy().timeout(PATIENCE).build().unwrap_or_default();
        Self { base: base.trim_end_matches('/').to_owned(), client, token: Mutex::default() }
    }

    fn known_token(&self) -> Option<String> {
        let token = self.token.lock().unwrap_or_else(PoisonError::into_inner);
        token.as_ref().filter(|(_, since)| since.elapsed() < TOKEN_USE).map(|(token, _)| token.clone())
    }

    fn keep_token(&self, token: Option<String>) {
        let kept = token.map(|token| (token, Instant::now()));
        *self.token.lock().unwrap_or_else(PoisonError::into_inner) = kept;
    }

    /// A session token; `None` where the service does without.
    async fn token(&self) -> Result<Option<String>, NoticeError> {
        if let Some(token) = self.known_token() {
            return Ok(Some(token));
        }
        let url = format!("{}/latest/api/token", self.base);
        let ask = self.client.put(&url).header("X-aws-ec2-metadata-token-ttl-seconds", TOKEN_LIFE.as_secs());
        let answer = ask.send().await.map_err(|error| NoticeError(explain(&error)))?;
        match answer.status() {
            StatusCode::OK => {
                let token = text(answer).await?;
                self.keep_token(Some(token.clone()));
                Ok(Some(token))
            }
            StatusCode::FORBIDDEN | StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED => Ok(None),
            other => Err(NoticeError(format!("PUT {url}: {other}"))),
        }
    }

    async fn action(&self) -> Result<Option<Notice>, NoticeError> {
        let url = format!("{}/latest/meta-data/spot/instance-action", self.base);
        let mut ask = self.client.get(&url);
        if let Some(token) = self.token().await? {
            ask = ask.header("X-aws-ec2-metadata-token", token);
        }
        let answer = ask.send().await.map_err(|error| NoticeError(explain(&error)))?;
        match answer.status() {
            StatusCode::OK => {}
            StatusCode::NOT_FOUND => return Ok(None),
            other => {
                // A token that is not known any more: the next look asks for another.
                self.keep_token(None);
                return Err(NoticeError(format!("GET {url}: {other}")));
            }
        }
        let said = text(answer).await?;
        let unreadable = || NoticeError(format!("GET {url}: {said:?} names no action and time"));
        let action: InstanceAction = serde_json::from_str(&said).map_err(|_| unreadable())?;
        // ECS minds these two; an instance that hibernates keeps its tasks.
        if !matches!(action.action.as_str(), "terminate" | "stop") {
            return Ok(None);
        }
        let deadline = moment(&action.time).ok_or_else(unreadable)?;
        Ok(Some(Notice { kind: NoticeKind::Spot, deadline: Some(deadline) }))
    }
}

async fn text(mut answer: reqwest::Response) -> Result<String, NoticeError> {
    let mut bytes = Vec::new();
    while let Some(chunk) = answer.chunk().await.map_err(|error| NoticeError(explain(&error)))? {
        bytes.extend_from_slice(&chunk);
        if u64::try_from(bytes.len()).is_ok_and(|length| length > MOST) {
            return Err(NoticeError(format!("an answer of more than {MOST} bytes")));
        }
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

impl NoticeSource for InstanceMetadata {
    fn name(&self) -> &'static str {
        "ECS_ENABLE_SPOT_INSTANCE_DRAINING"
    }

    fn look(&self) -> BoxFuture<'_, Result<Option<Notice>, NoticeError>> {
        self.action().boxed()
    }
}
