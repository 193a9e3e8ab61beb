//! The task's endpoint, `http://169.254.170.2`: what a container finds out about itself and its task,
//! in the shapes of ECS's task metadata, versions 2, 3 and 4 (developer guide, "Task metadata endpoint").
//!
//! | part | its one job |
//! | --- | --- |
//! | `caller` | who asks: the secret name in the path, and the address that it comes from |
//! | `credentials` | credentials of the task's role |
//! | `fault` | what a task does to its own network |
//! | `limit` | how often one caller may ask |
//! | `metadata` | tasks and containers in ECS's shapes |
//! | `protection` | protection of a task from scale-in, which the control plane decides |
//! | `stats` | what containers use, in the engine's shape |

mod caller;
mod credentials;
mod fault;
mod limit;
mod metadata;
mod protection;
mod stats;

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{ConnectInfo, Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use berth_core::ids::ContainerName;
use berth_core::task::Task;
use serde::Serialize;
use tokio::net::TcpListener;

use crate::engine::Engine;
use crate::session::Inquiries;
use crate::supervise::Tracker;

use super::connections;
use super::readings::Readings;

use self::caller::{Callers, Refusal};
use self::stats::Stats;

pub use self::limit::Rate;

/// Longest that one answer may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// What the answers are made from.
pub struct TaskEndpoint {
    engine: Engine,
    zone: Option<String>,
    callers: Callers,
    stats: Stats,
    inquiries: Inquiries,
    faults: fault::Asked,
}

/// A version of the endpoint, which decides how much an answer has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Version {
    Two,
    Three,
    Four,
}

impl TaskEndpoint {
    /// An endpoint at that address of the host's. `zone` is the host's availability zone; what the control
    /// plane decides is asked through `inquiries`.
    #[must_use]
    pub fn new(
        engine: Engine,
        own: IpAddr,
        zone: Option<String>,
        readings: Arc<Readings>,
        rate: Rate,
        inquiries: Inquiries,
    ) -> Self {
        let callers = Callers::new(engine.clone(), own, rate, Arc::clone(&readings));
        Self { stats: Stats::new(readings), engine, zone, callers, inquiries, faults: fault::asked() }
    }

    /// The answer for a task: of all its containers, or of one.
    async fn answer(
        &self,
        task: &Task,
        container: Option<&ContainerName>,
        what: What,
        version: Version,
    ) -> Response {
        match (what, container) {
            (What::Metadata, None) => Json(metadata::task(self, task, version).await).into_response(),
            (What::Metadata, Some(name)) => found(metadata::container(self, task, name, version).await),
            (What::Stats, None) => Json(self.stats.of_task(task).await).into_response(),
            (What::Stats, Some(name)) => found(self.stats.of_container(task, name).await),
        }
    }
}

fn found(answer: Option<impl Serialize>) -> Response {
    answer.map_or_else(
        || refuse(StatusCode::NOT_FOUND, "the container is not there"),
        |answer| Json(answer).into_response(),
    )
}

/// What is asked about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    Metadata,
    Stats,
}

/// Serves until the tracker's token is cancelled.
pub async fn serve(listener: TcpListener, state: Arc<TaskEndpoint>, tracker: &Tracker) {
    let router = Router::new()
        .route("/v2/metadata", get(by_address))
        .route("/v2/metadata/{container}", get(by_address))
        .route("/v2/metadataWithTags", get(by_address))
        .route("/v2/stats", get(stats_by_address))
        .route("/v2/stats/{container}", get(stats_by_address))
        .route("/v1/credentials", get(credentials_by_query))
        .route("/v2/credentials", get(credentials_by_path))
        .route("/v2/credentials/{id}", get(credentials_by_path))
        .route("/api/{id}/task-protection/v1/state", get(protection).put(protect))
        .route("/api/{id}/fault/v1/{kind}/{operation}", post(inject))
        .route("/v3/{id}", get(three))
        .route("/v3/{id}/{*rest}", get(three))
        .route("/v4/{id}", get(four))
        .route("/v4/{id}/{*rest}", get(four))
        .fallback(|| async { refuse(StatusCode::NOT_FOUND, "no such page") })
        .with_state(state);
    connections::serve(listener, router, tracker).await;
}

/// ECS answers a refusal with a JSON text.
fn refuse(status: StatusCode, why: &str) -> Response {
    (status, Json(why)).into_response()
}

fn refusal(refusal: &Refusal, version: &str) -> Response {
    match refusal {
        Refusal::TooMany => refuse(StatusCode::TOO_MANY_REQUESTS, "too many requests; ask less often"),
        Refusal::Unknown => refuse(
            StatusCode::NOT_FOUND,
            &format!("{version} metadata handler: unable to get the task for this request"),
        ),
        Refusal::Away => refuse(StatusCode::INTERNAL_SERVER_ERROR, "the container engine does not answer"),
    }
}

async fn within(answer: impl Future<Output = Response>) -> Response {
    tokio::time::timeout(PATIENCE, answer)
        .await
        .unwrap_or_else(|_| refuse(StatusCode::INTERNAL_SERVER_ERROR, "the answer took too long"))
}

/// `/v3/ID/…` and `/v4/ID/…`: what follows the name of the container.
fn asked(rest: Option<&str>) -> Option<(What, bool)> {
    Some(match rest.map(|rest| rest.trim_end_matches('/')) {
        None | Some("") => (What::Metadata, false),
        Some("task" | "taskWithTags") => (What::Metadata, true),
        Some("stats") => (What::Stats, false),
        Some("task/stats") => (What::Stats, true),
        Some(_) => return None,
    })
}

async fn named(
    state: &TaskEndpoint,
    from: IpAddr,
    path: Vec<(String, String)>,
    version: Version,
) -> Response {
    let label = if version == Version::Four { "V4" } else { "V3" };
    let value = |key: &str| path.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str());
    let caller = match state.callers.named(value("id").unwrap_or_default(), from).await {
        Ok(caller) => caller,
        Err(why) => return refusal(&why, label),
    };
    let Some((what, whole)) = asked(value("rest")) else {
        return refuse(StatusCode::NOT_FOUND, "no such page");
    };
    state.answer(&caller.task, (!whole).then_some(&caller.container), what, version).await
}

async fn three(
    State(state): State<Arc<TaskEndpoint>>,
    ConnectInfo(from): ConnectInfo<SocketAddr>,
    Path(path): Path<Vec<(String, String)>>,
) -> Response {
    within(named(&state, from.ip(), path, Version::Three)).await
}

async fn four(
    State(state): State<Arc<TaskEndpoint>>,
    ConnectInfo(from): ConnectInfo<SocketAddr>,
    Path(path): Path<Vec<(String, String)>>,
) -> Response {
    within(named(&state, from.ip(), path, Version::Four)).await
}

/// Version 2 knows a task by its address alone, and so in `awsvpc` alone.
async fn of_address(state: &TaskEndpoint, from: IpAddr, path: Vec<(String, String)>, what: What) -> Response {
    let task = match state.callers.by_address(from).await {
        Ok(task) => task,
        Err(why) => return refusal(&why, "V2"),
    };
    let named = path.iter().find(|(name, _)| name == "container").map(|(_, id)| id);
    let Some(id) = named else {
        return state.answer(&task, None, what, Version::Two).await;
    };
    let container =
        task.state().containers.iter().find(|c| c.id.as_ref().is_some_and(|known| known.as_str() == id));
    match container {
        Some(container) => state.answer(&task, Some(&container.name), what, Version::Two).await,
        None => refuse(StatusCode::NOT_FOUND, "the task has no such container"),
    }
}

async fn by_address(
    State(state): State<Arc<TaskEndpoint>>,
    ConnectInfo(from): ConnectInfo<SocketAddr>,
    Path(path): Path<Vec<(String, String)>>,
) -> Response {
    within(of_address(&state, from.ip(), path, What::Metadata)).await
}

async fn stats_by_address(
    State(state): State<Arc<TaskEndpoint>>,
    ConnectInfo(from): ConnectInfo<SocketAddr>,
    Path(path): Path<Vec<(String, String)>>,
) -> Response {
    within(of_address(&state, from.ip(), path, What::Stats)).await
}

async fn credentials_by_path(
    State(state): State<Arc<TaskEndpoint>>,
    ConnectInfo(from): ConnectInfo<SocketAddr>,
    Path(path): Path<Vec<(String, String)>>,
) -> Response {
    let id = path.into_iter().next().map(|(_, id)| id).unwrap_or_default();
    within(credentials::answer(&state, &id, from.ip())).await
}

async fn credentials_by_query(
    State(state): State<Arc<TaskEndpoint>>,
    ConnectInfo(from): ConnectInfo<SocketAddr>,
    Query(query): Query<HashMap<String, String>>,
) -> Response {
    let id = query.get("id").cloned().unwrap_or_default();
    within(credentials::answer(&state, &id, from.ip())).await
}

async fn protection(
    State(state): State<Arc<TaskEndpoint>>,
    ConnectInfo(from): ConnectInfo<SocketAddr>,
    Path(id): Path<String>,
) -> Response {
    protection::answer(&state, &id, from.ip(), None).await
}

async fn protect(
    State(state): State<Arc<TaskEndpoint>>,
    ConnectInfo(from): ConnectInfo<SocketAddr>,
    Path(id): Path<String>,
    body: Body,
) -> Response {
    protection::answer(&state, &id, from.ip(), Some(body)).await
}

async fn inject(
    State(state): State<Arc<TaskEndpoint>>,
    ConnectInfo(from): ConnectInfo<SocketAddr>,
    Path((id, kind, operation)): Path<(String, String, String)>,
    body: Body,
) -> Response {
    match fault::named(&kind, &operation) {
        Some(wanted) => fault::answer(&state, &id, from.ip(), wanted, body).await,
        None => refuse(StatusCode::NOT_FOUND, "no such page"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_follows_the_name_says_what_is_asked() {
        assert_eq!(asked(None), Some((What::Metadata, false)));
        assert_eq!(asked(Some("task")), Some((What::Metadata, true)));
        assert_eq!(asked(Some("task/stats")), Some((What::Stats, true)));
        assert_eq!(asked(Some("stats/")), Some((What::Stats, false)));
        assert_eq!(asked(Some("../etc")), None);
    }
}
