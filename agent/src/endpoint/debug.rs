//! How the agent itself is, for those who look after it: `/debug/pprof/` on the introspection API, and a line in
//! the log from time to time (`ECS_ENABLE_RUNTIME_STATS`). Figures of the process and of its futures; profiles
//! need the symbols that the shipped program does not carry, so that `perf` is the tool for these.

use std::fmt::Write;
use std::fs;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{ConnectInfo, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use berth_core::task::TaskStatus;
use tokio::runtime::Handle;

use super::introspection::{Introspection, commands};
use crate::engine::Engine;
use crate::supervise::Tracker;

/// How often the log has a line: ECS's figure.
const EVERY: Duration = Duration::from_secs(120);

/// Figures of this moment, by their names.
type Figures = Vec<(&'static str, u64)>;

/// What there is, for `Router::merge`: for those on this host alone.
pub(super) fn router() -> Router<std::sync::Arc<Introspection>> {
    Router::new()
        .route("/debug/pprof", get(page))
        .route("/debug/pprof/", get(page))
        .route("/debug/pprof/{*rest}", get(page))
}

async fn page(
    State(about): State<std::sync::Arc<Introspection>>,
    ConnectInfo(from): ConnectInfo<SocketAddr>,
    uri: axum::http::Uri,
) -> Response {
    if !from.ip().to_canonical().is_loopback() {
        return commands().await.into_response();
    }
    match uri.path().trim_start_matches("/debug/pprof").trim_matches('/') {
        "" => index().into_response(),
        "cmdline" => std::env::args().collect::<Vec<_>>().join("\0").into_response(),
        "runtime" => table(&figures(&about.engine).await).into_response(),
        other => (StatusCode::NOT_FOUND, format!("Unknown profile {other:?}\n\n{}", index())).into_response(),
    }
}

fn index() -> String {
    format!(
        "/debug/pprof/\n\n\
         cmdline  how the agent was started\n\
         runtime  memory, threads, open files, and what the agent's futures do\n\n\
         Profiles are taken from outside, as by perf record -g -p {0}; perf top -p {0} shows them live.\n",
        std::process::id()
    )
}

fn table(figures: &Figures) -> String {
    figures.iter().fold(String::new(), |mut text, (name, value)| {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{name} {value}");
        text
    })
}

async fn figures(engine: &Engine) -> Figures {
    let mut figures = tokio::task::spawn_blocking(of_process).await.unwrap_or_default();
    figures.extend(of_agent(engine));
    figures
}

fn of_process() -> Figures {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kib = |name: &str| field(&status, name).unwrap_or_default() * 1024;
    let files = fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
    vec![
        ("resident_memory_bytes", kib("VmRSS")),
        ("resident_memory_peak_bytes", kib("VmHWM")),
        ("anonymous_memory_bytes", kib("RssAnon")),
        ("virtual_memory_bytes", kib("VmSize")),
        ("threads", field(&status, "Threads").unwrap_or_default()),
        ("context_switches_voluntary", field(&status, "voluntary_ctxt_switches").unwrap_or_default()),
        ("context_switches_involuntary", field(&status, "nonvoluntary_ctxt_switches").unwrap_or_default()),
        // The folder was open while it was read.
        ("open_files", count(files.saturating_sub(1))),
    ]
}

fn count(number: usize) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}

fn of_agent(engine: &Engine) -> Figures {
    let tasks = engine.tasks();
    let of = |status: TaskStatus| tasks.iter().filter(|task| task.state().status == status).count();
    let futures = Handle::current().metrics();
    let mut figures = vec![
        ("task_actors", count(tasks.len())),
        ("tasks_pending", count(of(TaskStatus::Pending))),
        ("tasks_running", count(of(TaskStatus::Running))),
        ("futures", count(futures.num_alive_tasks())),
        ("futures_queued", count(futures.global_queue_depth())),
        ("workers", count(futures.num_workers())),
    ];
    #[cfg(target_has_atomic = "64")]
    {
        let workers = 0..futures.num_workers();
        let busy: Duration = workers.clone().map(|worker| futures.worker_total_busy_duration(worker)).sum();
        figures.push(("workers_busy_milliseconds", u64::try_from(busy.as_millis()).unwrap_or(u64::MAX)));
        figures.push(("workers_parked_times", workers.map(|worker| futures.worker_park_count(worker)).sum()));
    }
    figures
}

/// A number in `/proc/self/status` (proc(5)).
fn field(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Says how the agent is, from time to time.
pub fn tell(engine: Engine, tracker: &Tracker) {
    let began = Instant::now();
    tracker.spawn_droppable("runtime statistics", async move {
        let mut turn = tokio::time::interval(EVERY);
        loop {
            turn.tick().await;
            let line: Vec<String> =
                figures(&engine).await.iter().map(|(name, value)| format!("{name}={value}")).collect();
            let uptime = began.elapsed().as_secs();
            tracing::info!(target: "berth::runtime", uptime, "runtime statistics: {}", line.join(" "));
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_tells_of_the_process() {
        let status = fs::read_to_string("/proc/self/status").unwrap();
        for name in ["VmRSS", "VmHWM", "RssAnon", "VmSize", "Threads"] {
            assert!(field(&status, name).is_some_and(|value| value > 0), "{name}");
        }
        assert!(field(&status, "voluntary_ctxt_switches").is_some());
        assert_eq!(field(&status, "Vm"), None);
        assert_eq!(table(&vec![("one", 1), ("two", 2)]), "one 1\ntwo 2\n");
    }
}
