//! HTTP requests of a test: one GET, or one POST with any head and body.

use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Request, StatusCode};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;

/// No request of a test takes longer than this.
const TIMEOUT: Duration = Duration::from_secs(20);
/// How long a connection that nothing is asked on is kept: less than any server here does, which hangs up after a
/// minute, perhaps just when the next question is on its way.
const IDLE: Duration = Duration::from_secs(20);

/// A client that keeps connections, as those of users do.
pub(crate) fn client() -> Client<HttpConnector, Full<Bytes>> {
    Client::builder(TokioExecutor::new()).pool_idle_timeout(IDLE).build_http()
}

/// Sends the request and reads the whole answer.
pub(crate) async fn send(
    client: &Client<HttpConnector, Full<Bytes>>,
    request: Request<Full<Bytes>>,
) -> Result<(StatusCode, Bytes)> {
    let uri = request.uri().clone();
    let exchange = async {
        let response = client.request(request).await?;
        let status = response.status();
        anyhow::Ok((status, response.into_body().collect().await?.to_bytes()))
    };
    tokio::time::timeout(TIMEOUT, exchange)
        .await
        .with_context(|| format!("{uri} did not answer within {TIMEOUT:?}"))?
        .with_context(|| format!("{uri} did not answer"))
}

/// The text that a GET of the address yields, whatever the status.
///
/// # Errors
/// When nothing answers there.
pub async fn get(url: &str) -> Result<(StatusCode, String)> {
    let request = Request::get(url).body(Full::default()).with_context(|| format!("the address {url}"))?;
    let (status, body) = send(&client(), request).await?;
    Ok((status, String::from_utf8_lossy(&body).into_owned()))
}
