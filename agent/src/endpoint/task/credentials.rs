//! Credentials of a task's role, as every AWS SDK asks for them (SDKs and Tools Reference Guide, "Container
//! credential provider").

use std::net::IpAddr;

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use super::TaskEndpoint;
use super::caller::Refusal;
use crate::clock::rfc3339;

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    role_arn: String,
    access_key_id: String,
    secret_access_key: String,
    token: String,
    expiration: Option<String>,
}

#[derive(Serialize)]
struct Problem {
    code: &'static str,
    message: &'static str,
    #[serde(rename = "HTTPErrorCode")]
    status: u16,
}

fn problem(status: StatusCode, code: &'static str, message: &'static str) -> Response {
    (status, Json(Problem { code, message, status: status.as_u16() })).into_response()
}

/// The credentials of that name. Every hand-out, and every refusal, is a line of the log.
pub(super) async fn answer(endpoint: &TaskEndpoint, id: &str, from: IpAddr) -> Response {
    const UNINITIALIZED: &str = "CredentialsUninitialized";
    if id.is_empty() {
        return problem(
            StatusCode::BAD_REQUEST,
            "NoIdInRequest",
            "CredentialsV2Request: No ID in the request",
        );
    }
    let task = match endpoint.callers.for_credentials(id, from).await {
        Ok(task) => task,
        Err(Refusal::TooMany) => {
            return problem(StatusCode::TOO_MANY_REQUESTS, "TooManyRequests", "ask less often");
        }
        Err(Refusal::Away) => return problem(StatusCode::SERVICE_UNAVAILABLE, UNINITIALIZED, "try again"),
        Err(Refusal::Unknown) => {
            tracing::warn!(target: "berth::audit", %from, "credentials were asked for under a name that is not the caller's");
            let message = "CredentialsV2Request: Credentials not found";
            return problem(StatusCode::BAD_REQUEST, "InvalidIdInRequest", message);
        }
    };
    let arn = &task.spec().arn;
    let Some(credentials) = endpoint.engine.credentials(arn) else {
        tracing::warn!(target: "berth::audit", task = %arn, %from, "there are no credentials to hand out");
        let message = "CredentialsV2Request: Credentials uninitialized";
        return problem(StatusCode::SERVICE_UNAVAILABLE, UNINITIALIZED, message);
    };
    tracing::info!(target: "berth::audit", task = %arn, %from, role = credentials.role_arn, "credentials handed out");
    let answer = Answer {
        role_arn: credentials.role_arn,
        access_key_id: credentials.access_key_id,
        secret_access_key: credentials.secret_access_key,
        token: credentials.session_token,
        expiration: rfc3339(credentials.expires_at),
    };
    Json(answer).into_response()
}
