//! The introspection API on port 51678, in ECS's shapes: what this agent is and what it runs.
//! Beyond ECS's, each task says what it waits for, and `/v1/health` says whether all is well.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use berth_core::ids::ContainerInstanceArn;
use berth_core::task::{Container, Task};
use futures_util::future::join_all;
use futures_util::stream::{self, StreamExt};
use serde::Serialize;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::clock::rfc3339;
use crate::engine::Engine;
use crate::runtime::Details;
use crate::session::SessionStatus;
use crate::supervise::Tracker;

use super::readings::Readings;
use super::{connections, debug};

/// Longest that the engine may take to tell of a container.
const GLANCE: Duration = Duration::from_secs(1);
/// Tasks that are looked at at once.
const AT_ONCE: usize = 32;

/// What the answers are made from.
#[derive(Clone)]
pub struct Introspection {
    /// Tasks.
    pub engine: Engine,
    /// The cluster's name.
    pub cluster: String,
    /// Which instance this is.
    pub instance: watch::Receiver<Option<ContainerInstanceArn>>,
    /// Where the session stands.
    pub session: watch::Receiver<SessionStatus>,
    /// Whether the instance is drained.
    pub draining: watch::Receiver<bool>,
    /// What containers use.
    pub readings: Arc<Readings>,
    /// Whether how the agent itself is can be asked.
    pub debug: bool,
}

/// Serves until the tracker's token is cancelled.
pub async fn serve(listener: TcpListener, state: Introspection, tracker: &Tracker) {
    let router = Router::new()
        .route("/v1/metadata", get(metadata))
        .route("/v1/tasks", get(tasks))
        .route("/v1/health", get(health))
        .route("/metrics", get(metrics))
        .route("/license", get(|| async { include_str!("../../../LICENSE") }));
    let router = if state.debug { router.merge(debug::router()) } else { router };
    let router = router.fallback(get(commands)).with_state(Arc::new(state));
    connections::serve(listener, router, tracker).await;
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Commands {
    available_commands: [&'static str; 5],
}

/// What an unknown path is answered.
pub(super) async fn commands() -> Json<Commands> {
    Json(Commands { available_commands: ["/v1/metadata", "/v1/tasks", "/v1/health", "/metrics", "/license"] })
}

async fn metrics(State(state): State<Arc<Introspection>>) -> Response {
    let session = state.session.borrow().clone();
    let text = super::metrics::text(&state.engine, &state.readings, &session).await;
    ([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response()
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Metadata {
    cluster: String,
    container_instance_arn: Option<String>,
    version: String,
}

async fn metadata(State(state): State<Arc<Introspection>>) -> Json<Metadata> {
    Json(Metadata {
        cluster: state.cluster.clone(),
        container_instance_arn: state.instance.borrow().as_ref().map(ToString::to_string),
        version: format!("Berth Agent - v{}", env!("CARGO_PKG_VERSION")),
    })
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Health {
    healthy: bool,
    session: String,
    engine: bool,
    waiting_tasks: usize,
    subsystems: BTreeMap<&'static str, String>,
}

async fn health(State(state): State<Arc<Introspection>>) -> Response {
    let session = state.session.borrow().clone();
    let engine = *state.engine.healthy().borrow();
    let healthy = engine && session == SessionStatus::Connected;
    let session = match session {
        SessionStatus::Connecting => "connecting".to_owned(),
        SessionStatus::Disconnected(why) => format!("disconnected: {why}"),
        SessionStatus::Connected => "connected".to_owned(),
        SessionStatus::Deregistered => "deregistered".to_owned(),
    };
    let waiting_tasks = state.engine.usage().borrow().waiting.len();
    let subsystems = state.engine.subsystems().into_iter().collect();
    let status = if healthy { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(Health { healthy, session, engine, waiting_tasks, subsystems })).into_response()
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct TaskList {
    tasks: Vec<TaskView>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct TaskView {
    arn: String,
    desired_status: &'static str,
    known_status: &'static str,
    family: String,
    version: String,
    /// What it waits for; ours beyond ECS's.
    #[serde(skip_serializing_if = "String::is_empty")]
    waiting_for: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    stopped_reason: Option<String>,
    containers: Vec<ContainerView>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct ContainerView {
    docker_id: String,
    docker_name: String,
    name: String,
    image: String,
    #[serde(rename = "ImageID")]
    image_id: String,
    known_status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    restart_count: Option<u32>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    networks: Vec<NetworkView>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    volumes: Vec<VolumeView>,
    #[serde(skip_serializing_if = "Option::is_none")]
    waiting_for: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    exit_code: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    created_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    started_at: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    ports: Vec<PortView>,
}

#[derive(Serialize)]
struct NetworkView {
    #[serde(rename = "NetworkMode")]
    mode: &'static str,
    #[serde(rename = "IPv4Addresses")]
    four: Vec<String>,
    #[serde(rename = "IPv6Addresses", skip_serializing_if = "Vec::is_empty")]
    six: Vec<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct VolumeView {
    source: String,
    destination: String,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct PortView {
    container_port: String,
    host_port: String,
    protocol: &'static str,
}

impl Introspection {
    /// A container in detail. Without the engine, or while it is busy with the container, the rest is still
    /// true.
    async fn details(&self, container: &Container) -> Arc<Details> {
        let told = timeout(GLANCE, self.readings.details(container)).await;
        told.ok().and_then(Result::ok).flatten().unwrap_or_default()
    }
}

impl TaskView {
    async fn of(task: &Task, about: &Introspection) -> Self {
        let state = task.state();
        let waits: HashMap<_, _> = about.engine.container_waits(task).into_iter().collect();
        let all = state.containers.iter().zip(&task.spec().containers);
        let details = join_all(all.clone().map(|(container, _)| about.details(container))).await;
        let views = all.zip(details).map(|((container, spec), details)| ContainerView {
            image_id: details.image_id.clone(),
            restart_count: spec.restart_policy.as_ref().map(|_| container.restarts),
            networks: networks(task, &details),
            volumes: details
                .mounts
                .iter()
                .map(|mount| VolumeView {
                    source: mount.source.clone(),
                    destination: mount.destination.clone(),
                })
                .collect(),
            docker_id: container.id.as_ref().map(ToString::to_string).unwrap_or_default(),
            docker_name: crate::engine::engine_name(task.spec(), &container.name),
            name: container.name.to_string(),
            image: spec.image.clone(),
            known_status: container.status.as_str(),
            waiting_for: waits.get(&container.name).cloned(),
            exit_code: container.exit_code(),
            created_at: container.created_at.and_then(rfc3339),
            started_at: container.started_at.and_then(rfc3339),
            ports: ports(task, container),
        });
        let containers = views.collect();
        Self {
            arn: task.spec().arn.to_string(),
            desired_status: if task.is_stopping() { "STOPPED" } else { "RUNNING" },
            known_status: state.status.as_str(),
            family: task.spec().family.to_string(),
            version: task.spec().revision.to_string(),
            waiting_for: task.waiting_for(),
            stopped_reason: state.stop.as_ref().map(|stop| stop.reason.clone()),
            containers,
        }
    }
}

/// Its own addresses: those of the task's interface, or those that the engine gave it.
fn networks(task: &Task, details: &Details) -> Vec<NetworkView> {
    let spec = task.spec();
    let attached = spec.attachment.iter().flat_map(|a| a.addresses.iter().map(|cidr| cidr.address));
    let own = details.networks.iter().flat_map(|network| network.addresses.iter().copied());
    let all: Vec<IpAddr> = attached.chain(own).collect();
    let texts = |four: bool| all.iter().filter(|a| a.is_ipv4() == four).map(ToString::to_string).collect();
    let view = NetworkView { mode: spec.network_mode.as_str(), four: texts(true), six: texts(false) };
    if all.is_empty() { Vec::new() } else { vec![view] }
}

fn ports(task: &Task, container: &Container) -> Vec<PortView> {
    task.bindings(&container.name)
        .into_iter()
        .map(|binding| PortView {
            container_port: binding.container_ports.to_string(),
            host_port: binding.host_ports.to_string(),
            protocol: binding.protocol.as_str(),
        })
        .collect()
}

/// All tasks, or one by `?taskarn=` or `?dockerid=` (a prefix of 12 digits or fewer will do).
async fn tasks(
    State(state): State<Arc<Introspection>>,
    Query(query): Query<HashMap<String, String>>,
) -> Response {
    let all = state.engine.tasks();
    match (query.get("taskarn"), query.get("dockerid")) {
        (Some(_), Some(_)) => {
            (StatusCode::BAD_REQUEST, "Request contains both taskarn and dockerid; give one").into_response()
        }
        (Some(arn), None) => one(all.iter().filter(|task| task.spec().arn.as_str() == arn), &state).await,
        (None, Some(id)) => one(all.iter().filter(|task| has_container(task, id)), &state).await,
        (None, None) => task_views(&state).await.into_response(),
    }
}

/// All tasks.
pub(super) async fn task_views(about: &Introspection) -> impl IntoResponse + use<> {
    let all = about.engine.tasks();
    // Several at a time, so that those which the engine is busy with do not add up.
    let views = stream::iter(all).map(|task| async move { TaskView::of(&task, about).await });
    Json(TaskList { tasks: views.buffered(AT_ONCE).collect().await })
}

fn has_container(task: &Task, id: &str) -> bool {
    let short = id.len() <= 12;
    task.state()
        .containers
        .iter()
        .filter_map(|c| c.id.as_ref())
        .any(|full| full.as_str() == id || (short && !id.is_empty() && full.as_str().starts_with(id)))
}

async fn one<'a>(mut found: impl Iterator<Item = &'a Arc<Task>>, about: &Introspection) -> Response {
    match (found.next(), found.next()) {
        (None, _) => (StatusCode::NOT_FOUND, "no such task").into_response(),
        (Some(task), None) => Json(TaskView::of(task, about).await).into_response(),
        (Some(_), Some(_)) => (StatusCode::BAD_REQUEST, "the id is the beginning of several").into_response(),
    }
}
