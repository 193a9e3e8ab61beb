//! Protection of a task from scale-in, as the task itself asks for it (developer guide, "Amazon ECS task
//! scale-in protection endpoint"): passed on to the control plane, which decides.

use std::net::IpAddr;
use std::time::Duration;

use axum::Json;
use axum::body::{Body, to_bytes};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::{Map, Value};

use super::TaskEndpoint;
use super::caller::Refusal;
use crate::clock::rfc3339;
use crate::session::{Answer, Change, NoAnswer, Question};

/// Longest that one answer may take, with all that comes before and after the control plane's.
const PATIENCE: Duration = Duration::from_secs(5);
/// Largest request, in bytes.
const MAX_BODY: usize = 4096;
/// ECS's error classes.
const INVALID: &str = "InvalidParameterException";
const NOT_FOUND: &str = "ResourceNotFoundException";
const SERVER: &str = "ServerException";
const CANCELED: &str = "RequestCanceled";

/// One of the three members is there; a request has a name where the control plane refused it.
#[derive(Debug, Default, Serialize)]
struct Reply {
    #[serde(rename = "requestID", skip_serializing_if = "Option::is_none")]
    request_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    protection: Option<Protection>,
    #[serde(skip_serializing_if = "Option::is_none")]
    failure: Option<Failure>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<Problem>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Protection {
    expiration_date: Option<String>,
    protection_enabled: bool,
    task_arn: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Failure {
    arn: String,
    detail: Option<String>,
    reason: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Problem {
    #[serde(skip_serializing_if = "Option::is_none")]
    arn: Option<String>,
    code: String,
    message: String,
}

/// Why a request was not passed on, or has no answer.
#[derive(Debug, PartialEq, Eq)]
struct Refused {
    status: StatusCode,
    task: Option<String>,
    code: &'static str,
    message: String,
}

impl Refused {
    fn new(status: StatusCode, task: Option<&str>, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, task: task.map(str::to_owned), code, message: message.into() }
    }
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Unknown => {
                Self::new(StatusCode::NOT_FOUND, None, NOT_FOUND, "Failed to find a task for the request")
            }
            Refusal::TooMany => Self::new(
                StatusCode::TOO_MANY_REQUESTS,
                None,
                "ThrottlingException",
                "too many requests; ask less often",
            ),
            Refusal::Away => {
                let message = "Failed to find a task for the request: the container engine does not answer";
                Self::new(StatusCode::INTERNAL_SERVER_ERROR, None, SERVER, message)
            }
        }
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let error = Problem { arn: self.task, code: self.code.to_owned(), message: self.message };
        (self.status, Json(Reply { error: Some(error), ..Reply::default() })).into_response()
    }
}

fn timed_out(task: Option<&str>) -> Refused {
    let message = "Timed out calling ECS Task Protection API";
    Refused::new(StatusCode::GATEWAY_TIMEOUT, task, CANCELED, message)
}

/// Answers the container of that name; with a `body`, it wants a change.
pub(super) async fn answer(endpoint: &TaskEndpoint, id: &str, from: IpAddr, body: Option<Body>) -> Response {
    let asked = tokio::time::timeout(PATIENCE, ask(endpoint, id, from, body)).await;
    match asked.unwrap_or_else(|_| Err(timed_out(None))) {
        Ok(response) => response,
        Err(refused) => refused.into_response(),
    }
}

async fn ask(
    endpoint: &TaskEndpoint,
    id: &str,
    from: IpAddr,
    body: Option<Body>,
) -> Result<Response, Refused> {
    let caller = endpoint.callers.named(id, from).await?;
    let task = caller.task.spec().arn.clone();
    let change = match body {
        Some(body) => Some(read(body, task.as_str()).await?),
        None => None,
    };
    let answer = endpoint.inquiries.ask(Question { task: task.clone(), change }).await;
    if let Some(change) = change {
        tracing::debug!(%task, enabled = change.enabled, ?answer, "a task asked for protection from scale-in");
    }
    let internal = StatusCode::INTERNAL_SERVER_ERROR;
    match answer {
        Ok(answer) => Ok(said(task.to_string(), answer)),
        Err(NoAnswer::Late) => Err(timed_out(Some(task.as_str()))),
        Err(why) => Err(Refused::new(internal, Some(task.as_str()), SERVER, why.to_string())),
    }
}

/// The change that a request wants.
async fn read(body: Body, task: &str) -> Result<Change, Refused> {
    let bytes = to_bytes(body, MAX_BODY).await.unwrap_or_default();
    change(&bytes).map_err(|message| Refused::new(StatusCode::BAD_REQUEST, Some(task), INVALID, message))
}

/// Reads a request as ECS's agent does: names in whatever case, and none that it does not know.
fn change(bytes: &[u8]) -> Result<Change, &'static str> {
    const UNREADABLE: &str = "UpdateTaskProtection: failed to decode request";
    let members: Map<String, Value> = serde_json::from_slice(bytes).map_err(|_| UNREADABLE)?;
    let (mut enabled, mut expires_in_minutes) = (None, None);
    for (name, value) in members {
        if name.eq_ignore_ascii_case("ProtectionEnabled") {
            enabled = serde_json::from_value(value).map_err(|_| UNREADABLE)?;
        } else if name.eq_ignore_ascii_case("ExpiresInMinutes") {
            expires_in_minutes = serde_json::from_value(value).map_err(|_| UNREADABLE)?;
        } else {
            return Err(UNREADABLE);
        }
    }
    let enabled = enabled.ok_or("Invalid request: does not contain 'ProtectionEnabled' field")?;
    Ok(Change { enabled, expires_in_minutes })
}

/// What the control plane said, in ECS's shape.
fn said(task: String, answer: Answer) -> Response {
    let (status, reply) = match answer {
        Answer::Protection { until } => {
            let protection = Protection {
                expiration_date: until.and_then(rfc3339),
                protection_enabled: until.is_some(),
                task_arn: task,
            };
            (StatusCode::OK, Reply { protection: Some(protection), ..Reply::default() })
        }
        Answer::Failure { reason, detail } => {
            let failure = Failure { arn: task, detail, reason };
            (StatusCode::OK, Reply { failure: Some(failure), ..Reply::default() })
        }
        Answer::Error { code, message, request_id } => {
            let ours = code == SERVER;
            let status = if ours { StatusCode::INTERNAL_SERVER_ERROR } else { StatusCode::BAD_REQUEST };
            let error = Some(Problem { arn: Some(task), code, message });
            let request_id = Some(request_id).filter(|id| !id.is_empty());
            (status, Reply { request_id, error, ..Reply::default() })
        }
    };
    (status, Json(reply)).into_response()
}

#[cfg(test)]
mod tests {
    use berth_core::units::Timestamp;
    use serde_json::json;

    use super::*;

    #[test]
    fn a_request_is_read_as_ecs_reads_it() {
        let wanted = |enabled, expires_in_minutes| Ok(Change { enabled, expires_in_minutes });
        for (text, expected) in [
            (r#"{"ProtectionEnabled":true}"#, wanted(true, None)),
            (r#"{"ProtectionEnabled":true,"ExpiresInMinutes":60}"#, wanted(true, Some(60))),
            (r#"{"protectionEnabled":false,"expiresInMinutes":null}"#, wanted(false, None)),
            // Its bounds are the control plane's to check.
            (r#"{"ProtectionEnabled":true,"ExpiresInMinutes":-1}"#, wanted(true, Some(-1))),
        ] {
            assert_eq!(change(text.as_bytes()), expected, "{text}");
        }
        for text in ["{}", r#"{"ProtectionEnabled":null}"#, r#"{"ExpiresInMinutes":5}"#] {
            assert!(change(text.as_bytes()).unwrap_err().contains("'ProtectionEnabled'"), "{text}");
        }
        for text in [
            "",
            "true",
            r#"{"ProtectionEnabled":"true"}"#,
            r#"{"ProtectionEnabled":true,"ExpiresInMinutes":1.5}"#,
            r#"{"ProtectionEnabled":true,"Expires":5}"#,
        ] {
            assert!(change(text.as_bytes()).unwrap_err().contains("failed to decode"), "{text}");
        }
    }

    async fn shown(response: Response) -> (u16, Value) {
        let status = response.status().as_u16();
        let body = to_bytes(response.into_body(), MAX_BODY).await.unwrap();
        (status, serde_json::from_slice(&body).unwrap())
    }

    #[tokio::test]
    async fn answers_have_ecs_shape() {
        let error = |code: &str| Answer::Error {
            code: code.to_owned(),
            message: "why".to_owned(),
            request_id: "r".to_owned(),
        };
        let problem =
            |code: &str| json!({"requestID": "r", "error": {"Arn": "t", "Code": code, "Message": "why"}});
        for (answer, status, expected) in [
            (
                Answer::Protection { until: Some(Timestamp(1_767_225_600_000)) },
                200,
                json!({"protection": {
                    "ExpirationDate": "2026-01-01T00:00:00Z", "ProtectionEnabled": true, "TaskArn": "t",
                }}),
            ),
            (
                Answer::Protection { until: None },
                200,
                json!({"protection": {"ExpirationDate": null, "ProtectionEnabled": false, "TaskArn": "t"}}),
            ),
            (
                Answer::Failure { reason: "TASK_NOT_VALID".to_owned(), detail: None },
                200,
                json!({"failure": {"Arn": "t", "Detail": null, "Reason": "TASK_NOT_VALID"}}),
            ),
            (error(INVALID), 400, problem(INVALID)),
            (error(SERVER), 500, problem(SERVER)),
        ] {
            assert_eq!(shown(said("t".to_owned(), answer)).await, (status, expected));
        }
        let late = shown(timed_out(Some("t")).into_response()).await;
        let message = "Timed out calling ECS Task Protection API";
        assert_eq!(
            late,
            (504, json!({"error": {"Arn": "t", "Code": "RequestCanceled", "Message": message}}))
        );
        let unknown = shown(Refused::from(Refusal::Unknown).into_response()).await;
        assert_eq!((unknown.0, &unknown.1["error"]["Code"]), (404, &json!(NOT_FOUND)));
    }
}
