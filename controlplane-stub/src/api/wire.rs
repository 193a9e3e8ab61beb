//! One HTTP request in, one response out: ECS's JSON 1.1 on the wire.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use axum::body::Bytes;
use axum::http::header::{ALLOW, CONTENT_TYPE, HOST};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use futures_util::FutureExt;
use http_body_util::{BodyExt, Full};
use hyper::body::Body;
use serde_json::Value;

use super::account::Settings;
use super::context::Context;
use super::error::{ApiError, ApiResult};
use super::{context, dev, dispatch, shape, sigv4};
use crate::arn::Arns;
use crate::state::ApiState;

/// The most bytes of a request's body.
const MAX_BODY: usize = 1024 * 1024;
/// The most bytes of a body too large that are read and thrown away, so that its sender gets to
/// read the refusal instead of a broken connection.
const MAX_DISCARD: usize = 16 * 1024 * 1024;
/// How long a body may take.
const BODY_DEADLINE: Duration = Duration::from_secs(30);

const TARGET: &str = "x-amz-target";
const TARGET_PREFIX: &str = "AmazonEC2ContainerServiceV20141113.";
const REQUEST_ID: HeaderName = HeaderName::from_static("x-amzn-requestid");
const ERROR_TYPE: HeaderName = HeaderName::from_static("x-amzn-errortype");

/// Answers a request, whatever it is.
pub(super) async fn answer<B>(
    state: &ApiState,
    settings: &Settings,
    peer: SocketAddr,
    request: Request<B>,
) -> Response<Full<Bytes>>
where
    B: Body<Data = Bytes> + Unpin + Send,
    B::Error: std::fmt::Display,
{
    let id = uuid::Uuid::new_v4().to_string();
    let method = request.method().clone();
    let handled = AssertUnwindSafe(handle(state, settings, peer, request)).catch_unwind().await;
    let outcome = handled.unwrap_or_else(|_| {
        tracing::error!(request = %id, "a request handler panicked");
        Err(ApiError::server("The request failed because of an error inside the control plane."))
    });
    let mut response = match outcome {
        Ok(body) => respond(StatusCode::OK, &body),
        Err(error) => {
            tracing::debug!(request = %id, code = error.code, message = %error.message, "refused");
            refuse(&error, &method)
        }
    };
    if let Ok(value) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    response
}

fn respond(status: StatusCode, body: &Value) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body.to_string())));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/x-amz-json-1.1"));
    response
}

fn refuse(error: &ApiError, method: &Method) -> Response<Full<Bytes>> {
    let status = StatusCode::from_u16(error.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = respond(status, &error.body());
    response.headers_mut().insert(ERROR_TYPE, HeaderValue::from_static(error.code));
    if status == StatusCode::METHOD_NOT_ALLOWED && method != Method::POST {
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("POST"));
    }
    response
}

async fn handle<B>(
    state: &ApiState,
    settings: &Settings,
    peer: SocketAddr,
    request: Request<B>,
) -> ApiResult<Value>
where
    B: Body<Data = Bytes> + Unpin + Send,
    B::Error: std::fmt::Display,
{
    let (head, body) = request.into_parts();
    let path = head.uri.path();
    if let Some(simulated) = state.simulated.as_ref().filter(|_| path.starts_with(dev::PREFIX)) {
        let body = read_body(body).await?;
        return dev::handle(state, settings, simulated, peer, &head, &body).await;
    }
    if path != "/" {
        return Err(ApiError {
            status: 404,
            ..ApiError::unknown_operation("There is nothing here: send operations to /.")
        });
    }
    if head.method != Method::POST {
        let message =
            format!("{} is not possible: send a POST with the operation in X-Amz-Target.", head.method);
        return Err(ApiError { status: 405, ..ApiError::unknown_operation(message) });
    }
    let body = read_body(body).await?;
    if !state.access_keys.is_empty() {
        let keys: BTreeMap<String, String> =
            state.access_keys.iter().map(|key| (key.id.clone(), key.secret.clone())).collect();
        sigv4::verify(&keys, &head.headers, &body, context::now())?;
    }
    let operation = operation(&head.headers)?;
    let input: Value = serde_json::from_slice(&body)
        .map_err(|error| ApiError::serialization(format!("The request's body is not JSON: {error}")))?;
    let input = shape::check(operation, input)?;
    let context = Context {
        state: state.clone(),
        settings: settings.clone(),
        arns: arns_of(state, &head.headers),
        caller: sigv4::Authorization::of(&head.headers)
            .map(|claim| claim.access_key.to_owned())
            .unwrap_or_default(),
        host: head.headers.get(HOST).and_then(|host| host.to_str().ok()).unwrap_or("localhost").to_owned(),
    };
    dispatch::dispatch(&context, operation, input).await
}

/// The operation that the request's target names.
fn operation(headers: &HeaderMap) -> ApiResult<&str> {
    let target = headers.get(TARGET).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let operation = target.strip_prefix(TARGET_PREFIX).unwrap_or_default();
    if shape::knows(operation) {
        Ok(operation)
    } else if target.is_empty() {
        Err(ApiError::unknown_operation("The request names no operation: X-Amz-Target is missing."))
    } else {
        Err(ApiError::unknown_operation(format!("The operation {target} is not known here.")))
    }
}

/// The region that the caller's credentials are scoped to, ours without one.
fn arns_of(state: &ApiState, headers: &HeaderMap) -> Arns {
    let is_region = |region: &str| {
        (1..=32).contains(&region.len())
            && region.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
    };
    match sigv4::Authorization::of(headers).map(|claim| claim.region).filter(|region| is_region(region)) {
        Some(region) => Arns::new(region, state.arns.account.clone()),
        None => state.arns.clone(),
    }
}

async fn read_body<B>(body: B) -> ApiResult<Bytes>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    match tokio::time::timeout(BODY_DEADLINE, collect(body)).await {
        Ok(read) => read,
        Err(_) => Err(ApiError {
            status: 408,
            ..ApiError::serialization(format!("The request's body did not arrive within {BODY_DEADLINE:?}."))
        }),
    }
}

async fn collect<B>(mut body: B) -> ApiResult<Bytes>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    let mut bytes = Vec::new();
    let mut seen = 0_usize;
    while let Some(frame) = body.frame().await {
        let frame = frame
            .map_err(|error| ApiError::serialization(format!("The request's body broke off: {error}")))?;
        let Ok(data) = frame.into_data() else { continue };
        seen = seen.saturating_add(data.len());
        if seen <= MAX_BODY {
            bytes.extend_from_slice(&data);
        } else if seen > MAX_DISCARD {
            break;
        }
    }
    if seen > MAX_BODY {
        return Err(ApiError::request_too_large(format!(
            "The request's body is larger than {MAX_BODY} bytes."
        )));
    }
    Ok(bytes.into())
}

#[cfg(test)]
mod tests;
