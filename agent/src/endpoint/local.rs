//! The operator's socket: what `berth-agent status`, `tasks`, `images`, `explain`, `logs` and `exec` ask of the agent that
//! runs. Only root and the agent's own user get an answer.

use std::collections::HashMap;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::body::Body;
use axum::extract::connect_info::Connected;
use axum::extract::{ConnectInfo, Path as UrlPath, Query, Request, State};
use axum::http::StatusCode;
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::serve::IncomingStream;
use axum::{Json, Router};
use berth_core::ids::EngineId;
use berth_core::task::Task;
use serde_json::{Value, json};
use tokio::net::UnixListener;
use tokio_util::sync::CancellationToken;

use crate::clock::rfc3339;
use crate::engine::{Engine, KnownImage};
use crate::journal;
use crate::session::SessionStatus;
use crate::supervise::Tracker;

use super::exec;
use super::introspection::{Introspection, task_views};

/// What the answers are made from.
pub struct Local {
    /// What operators may know.
    pub about: Introspection,
    /// The agent's data folder, where the journal is.
    pub data_dir: PathBuf,
    /// Who owns the conversations with programs in containers.
    pub tracker: Tracker,
}

/// Who is at the other end.
#[derive(Debug, Clone, Copy)]
struct Peer {
    uid: Option<u32>,
}

impl Connected<IncomingStream<'_, UnixListener>> for Peer {
    fn connect_info(stream: IncomingStream<'_, UnixListener>) -> Self {
        Self { uid: stream.io().peer_cred().ok().map(|cred| cred.uid()) }
    }
}

/// Listens at a path that an agent before this one may have left behind.
///
/// # Errors
/// When there can be no socket.
pub fn listen(path: &Path) -> io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Serves until the token is cancelled.
///
/// # Errors
/// The listener's.
pub async fn serve(listener: UnixListener, state: Local, stop: CancellationToken) -> io::Result<()> {
    let router = Router::new()
        .route("/v1/status", get(status))
        .route("/v1/tasks", get(tasks))
        .route("/v1/images", get(images))
        .route("/v1/explain/{task}", get(explain))
        .route("/v1/logs/{task}/{container}", get(logs))
        .route("/v1/exec/{task}/{container}", get(start))
        .with_state(Arc::new(state))
        .layer(from_fn(known));
    let service = router.into_make_service_with_connect_info::<Peer>();
    axum::serve(listener, service).with_graceful_shutdown(stop.cancelled_owned()).await
}

/// Lets root and the agent's own user in.
async fn known(ConnectInfo(peer): ConnectInfo<Peer>, request: Request, next: Next) -> Response {
    let own = nix::unistd::geteuid().as_raw();
    if peer.uid.is_some_and(|uid| uid == 0 || uid == own) {
        return next.run(request).await;
    }
    tracing::warn!(target: "berth::audit", uid = peer.uid, "somebody else asked at the operator's socket");
    (StatusCode::FORBIDDEN, "only root may ask").into_response()
}

async fn status(State(state): State<Arc<Local>>) -> Json<Value> {
    let about = &state.about;
    let usage = about.engine.usage().borrow().clone();
    let session = match about.session.borrow().clone() {
        SessionStatus::Connecting => "connecting".to_owned(),
        SessionStatus::Disconnected(why) => format!("disconnected: {why}"),
        SessionStatus::Connected if *about.draining.borrow() => "connected, draining".to_owned(),
        SessionStatus::Connected => "connected".to_owned(),
        SessionStatus::Deregistered => "deregistered".to_owned(),
    };
    Json(json!({
        "version": env!("CARGO_PKG_VERSION"),
        "cluster": about.cluster,
        "containerInstance": about.instance.borrow().as_ref().map(ToString::to_string),
        "session": session,
        "engine": if *about.engine.healthy().borrow() { "answers" } else { "does not answer" },
        "cpu": [usage.in_use.cpu.0, usage.total.cpu.0],
        "memoryMiB": [usage.in_use.memory.0, usage.total.memory.0],
        "interfaces": [usage.in_use.enis, usage.total.enis],
        "waiting": usage.waiting.iter().map(|(task, missing)| json!({
            "task": task.id(), "for": berth_core::resources::describe(missing),
        })).collect::<Vec<_>>(),
        "tasks": about.engine.tasks().len(),
    }))
}

async fn tasks(State(state): State<Arc<Local>>) -> Response {
    task_views(&state.about).await.into_response()
}

async fn images(State(state): State<Arc<Local>>) -> Response {
    match state.about.engine.images().await {
        Ok(images) => {
            let entry = |known: KnownImage| {
                json!({
                    "name": known.image.name,
                    "bytes": known.image.bytes,
                    "pulledAt": known.record.and_then(|record| rfc3339(record.pulled_at)),
                    "usedAt": known.record.and_then(|record| rfc3339(record.used_at)),
                    "inUse": known.in_use,
                })
            };
            Json(images.into_iter().map(entry).collect::<Vec<_>>()).into_response()
        }
        Err(error) => (StatusCode::BAD_GATEWAY, error.to_string()).into_response(),
    }
}

async fn explain(State(state): State<Arc<Local>>, UrlPath(task): UrlPath<String>) -> Response {
    let data_dir = state.data_dir.clone();
    let read = tokio::task::spawn_blocking(move || journal::read(&data_dir, &task)).await;
    match read {
        Ok(Ok((id, entries))) => Json(json!({ "task": id, "entries": entries })).into_response(),
        Ok(Err(error)) => (StatusCode::NOT_FOUND, error.to_string()).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

/// The one task that is here whose id begins so.
fn find(engine: &Engine, wanted: &str) -> Option<Arc<Task>> {
    let mut fitting = engine.tasks().into_iter().filter(|task| task.spec().arn.id().starts_with(wanted));
    fitting.next().filter(|_| fitting.next().is_none())
}

/// The engine's id of a container, by the beginning of its task's id and its name; the only one of a task
/// needs no name.
fn container_id(engine: &Engine, task: &str, container: &str) -> Result<EngineId, String> {
    let found = find(engine, task).ok_or_else(|| format!("no task, or several, begin with {task}"))?;
    let containers = &found.state().containers;
    let wanted = match container {
        "-" if containers.len() == 1 => containers.first(),
        name => containers.iter().find(|c| c.name.as_str() == name),
    };
    let container = wanted.ok_or_else(|| {
        let none =
            if container == "-" { String::new() } else { format!("there is no container {container}; ") };
        let names: Vec<&str> = containers.iter().map(|c| c.name.as_str()).collect();
        format!("{none}which container of the task? {}", names.join(", "))
    })?;
    container.id.clone().ok_or_else(|| format!("container {} was not made yet", container.name))
}

async fn start(
    State(state): State<Arc<Local>>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    UrlPath((task, container)): UrlPath<(String, String)>,
    asked: Request,
) -> Response {
    let Some(wanted) = exec::request(asked.headers()) else {
        return (StatusCode::BAD_REQUEST, "what is to be started?").into_response();
    };
    let id = match container_id(&state.about.engine, &task, &container) {
        Ok(id) => id,
        Err(why) => return (StatusCode::NOT_FOUND, why).into_response(),
    };
    let who = format!("uid {}", peer.uid.unwrap_or(u32::MAX));
    exec::start(state.about.engine.clone(), &state.tracker, &id, wanted, asked, who).await
}

async fn logs(
    State(state): State<Arc<Local>>,
    UrlPath((task, container)): UrlPath<(String, String)>,
    Query(query): Query<HashMap<String, String>>,
) -> Response {
    let id = match container_id(&state.about.engine, &task, &container) {
        Ok(id) => id,
        Err(why) => return (StatusCode::NOT_FOUND, why).into_response(),
    };
    let follow = query.contains_key("follow");
    let tail = query.get("tail").and_then(|tail| tail.parse().ok());
    match state.about.engine.logs(&id, tail, follow).await {
        Ok(lines) => Body::from_stream(lines).into_response(),
        Err(error) => (StatusCode::BAD_GATEWAY, error.to_string()).into_response(),
    }
}
