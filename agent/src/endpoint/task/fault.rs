//! What a task does to its own network, asked for by its containers (AWS FIS, "Use the AWS FIS aws:ecs:task
//! actions"): read, checked, passed on. Answers are ECS's, `{"Status": …}` or `{"Error": …}`.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use axum::Json;
use axum::body::{Body, to_bytes};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use super::TaskEndpoint;
use super::caller::Refusal;
use super::limit::Limits;
use crate::fault::{FaultError, Kind, Operation, Request, Status};

/// Longest that one answer may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// Largest request, in bytes.
const MAX_BODY: usize = 16 * 1024;
/// How often a container may ask for the same thing in the long run, which is ECS's; and how often at once.
const EVERY: Duration = Duration::from_secs(5);
const AT_ONCE: u32 = 5;

/// How often each container has asked for each thing.
pub(super) type Asked = Limits<(String, Kind, Operation)>;

/// Nobody has asked for anything yet.
pub(super) fn asked() -> Asked {
    Limits::seldom(EVERY, AT_ONCE)
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
enum Reply {
    Status(&'static str),
    Error(String),
}

struct Refused(StatusCode, String);

impl From<FaultError> for Refused {
    fn from(error: FaultError) -> Self {
        let status = match &error {
            FaultError::Running(_) => StatusCode::CONFLICT,
            FaultError::Closed => StatusCode::BAD_REQUEST,
            FaultError::Unsupported(_) | FaultError::Kernel { .. } => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self(status, error.to_string())
    }
}

impl Refused {
    fn caller(refusal: Refusal, id: &str) -> Self {
        match refusal {
            Refusal::Unknown => Self(StatusCode::NOT_FOUND, format!("unable to lookup container: {id}")),
            Refusal::TooMany => too_many(),
            Refusal::Away => {
                let why = format!("unable to obtain container metadata for container: {id}");
                Self(StatusCode::INTERNAL_SERVER_ERROR, why)
            }
        }
    }
}

fn too_many() -> Refused {
    Refused(StatusCode::TOO_MANY_REQUESTS, "too many requests; ask less often".to_owned())
}

/// The kind and the operation that a path names.
pub(super) fn named(kind: &str, operation: &str) -> Option<(Kind, Operation)> {
    let kind = Kind::ALL.into_iter().find(|known| known.as_str() == kind)?;
    Some((kind, Operation::ALL.into_iter().find(|known| known.as_str() == operation)?))
}

/// Answers the container of that name.
pub(super) async fn answer(
    endpoint: &TaskEndpoint,
    id: &str,
    from: IpAddr,
    wanted: (Kind, Operation),
    body: Body,
) -> Response {
    let asked = tokio::time::timeout(PATIENCE, ask(endpoint, id, from, wanted, body)).await;
    let (status, reply) = match asked.unwrap_or_else(|_| Err(late(wanted))) {
        Ok(status) => (StatusCode::OK, Reply::Status(status.as_str())),
        Err(Refused(status, why)) => (status, Reply::Error(why)),
    };
    (status, Json(reply)).into_response()
}

fn late((kind, operation): (Kind, Operation)) -> Refused {
    let what = match operation {
        Operation::Status => "check status",
        other => other.as_str(),
    };
    Refused(StatusCode::INTERNAL_SERVER_ERROR, format!("{what} {}: request timed out", kind.as_str()))
}

async fn ask(
    endpoint: &TaskEndpoint,
    id: &str,
    from: IpAddr,
    (kind, operation): (Kind, Operation),
    body: Body,
) -> Result<Status, Refused> {
    let caller = endpoint.callers.named(id, from).await.map_err(|why| Refused::caller(why, id))?;
    if !endpoint.faults.take((id.to_owned(), kind, operation), Instant::now()) {
        return Err(too_many());
    }
    let bad = |why: String| Refused(StatusCode::BAD_REQUEST, why);
    let body = to_bytes(body, MAX_BODY)
        .await
        .map_err(|_| bad(format!("the request body did not come, or is longer than {MAX_BODY} bytes")))?;
    let request = Request::read(kind, operation, &body).map_err(bad)?;
    let spec = caller.task.spec();
    if !spec.fault_injection {
        return Err(bad(format!("enableFaultInjection is not enabled for task: {}", spec.arn)));
    }
    if !spec.takes_faults() {
        let mode = spec.network_mode.as_str();
        return Err(bad(format!("{mode} mode is not supported. Please use either host or awsvpc mode.")));
    }
    let done = endpoint.engine.fault(spec, request).await;
    done.map_err(|error| {
        tracing::warn!(task = %spec.arn, fault = kind.as_str(), operation = operation.as_str(), %error, "a fault");
        error.into()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_name_a_kind_and_an_operation() {
        let wanted = Some((Kind::PacketLoss, Operation::Status));
        assert_eq!(named("network-packet-loss", "status"), wanted);
        assert_eq!(named("network-packet-loss", "begin"), None);
        assert_eq!(named("network-partition", "start"), None);
    }

    #[test]
    fn answers_have_ecs_shape() {
        let shown = |reply: Reply| serde_json::to_string(&reply).unwrap();
        assert_eq!(shown(Reply::Status(Status::NotRunning.as_str())), r#"{"Status":"not-running"}"#);
        let Refused(status, why) = FaultError::Running(Kind::PacketLoss).into();
        assert_eq!(status, StatusCode::CONFLICT);
        let expected = r#"{"Error":"There is already one network packet loss fault running"}"#;
        assert_eq!(shown(Reply::Error(why)), expected);
        let Refused(_, why) = late((Kind::Latency, Operation::Status));
        assert_eq!(why, "check status network-latency: request timed out");
    }
}
