//! Routes that only a development server has, and only for callers on the same host.

use std::net::SocketAddr;

use axum::http::Method;
use axum::http::header::ORIGIN;
use axum::http::request::Parts;
use serde::Deserialize;
use serde_json::{Value, json};

use super::account::Settings;
use super::context;
use super::error::{ApiError, ApiResult};
use crate::simulated::{Simulated, SimulatedError};
use crate::state::ApiState;

/// Where they are.
pub(super) const PREFIX: &str = "/dev/";

/// Which instance an agent is simulated for.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Target {
    cluster: Option<String>,
    container_instance: String,
}

/// Answers a request to one of the routes.
///
/// # Errors
/// What is refused, with a status of its own.
pub(super) async fn handle(
    state: &ApiState,
    settings: &Settings,
    simulated: &Simulated,
    peer: SocketAddr,
    head: &Parts,
    body: &[u8],
) -> ApiResult<Value> {
    // A page in a browser of this host must not reach what deletes everything.
    if !peer.ip().to_canonical().is_loopback() || head.headers.contains_key(ORIGIN) {
        let refused = ApiError::access_denied("Development routes are for programs on the same host.");
        return Err(ApiError { status: 403, ..refused });
    }
    match (head.method.clone(), head.uri.path()) {
        (Method::POST, "/dev/reset") => {
            state.controller.reset().await?;
            settings.clear();
            Ok(json!({}))
        }
        (Method::POST, "/dev/simulated-agent") => {
            let (cluster, arn) = target(state, body)?;
            simulated.attach(&cluster, &arn).await?;
            Ok(json!({"containerInstanceArn": arn}))
        }
        (Method::DELETE, "/dev/simulated-agent") => {
            let (_, arn) = target(state, body)?;
            let detached = simulated.detach(&arn).await;
            Ok(json!({"containerInstanceArn": arn, "detached": detached}))
        }
        (_, "/dev/reset" | "/dev/simulated-agent") => {
            Err(ApiError { status: 405, ..ApiError::unknown_operation("This method is not possible here.") })
        }
        _ => Err(ApiError {
            status: 404,
            ..ApiError::unknown_operation("There is no such development route.")
        }),
    }
}

/// Name of the cluster and ARN of the instance that a body names.
fn target(state: &ApiState, body: &[u8]) -> ApiResult<(String, String)> {
    let target: Target = serde_json::from_slice(body).map_err(|error| {
        ApiError::serialization(format!("The request's body is not what is taken here: {error}"))
    })?;
    let view = state.store.view();
    let cluster = context::cluster(&*view, target.cluster.as_deref())?;
    let instance = context::instance(&*view, &cluster.name, &target.container_instance)?;
    Ok((cluster.name.clone(), instance.value.arn.clone()))
}

impl From<SimulatedError> for ApiError {
    fn from(error: SimulatedError) -> Self {
        match error {
            SimulatedError::NotFound(_) => Self::invalid_parameter(error.to_string()),
            other => Self::server(other.to_string()),
        }
    }
}
