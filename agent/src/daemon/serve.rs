//! What the agent serves on this host: introspection, the operator's socket, the task's endpoint. Each is a
//! help and none a condition: tasks run without.

use std::fs;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::time::sleep;

use super::DaemonError;
use crate::config::Config;
use crate::contained::tell;
use crate::credentials::run_file;
use crate::endpoint::address;
use crate::endpoint::introspection::{self, Introspection};
use crate::endpoint::local::{self, Local};
use crate::endpoint::readings::Readings;
use crate::endpoint::task::{self, Rate, TaskEndpoint};
use crate::engine::Engine;
use crate::session::Inquiries;
use crate::supervise::Tracker;

/// Between two looks whether a port is free.
const AGAIN: Duration = Duration::from_secs(1);

/// Where the operator's command line finds the agent of that configuration.
///
/// # Errors
/// When its data folder is not there.
pub fn socket(config: &Config) -> Result<PathBuf, DaemonError> {
    let data_dir = config.data_dir.canonicalize().map_err(|error| {
        DaemonError::Failed(format!("ECS_DATADIR={}: {error}", config.data_dir.display()))
    })?;
    Ok(run_file(&data_dir, &config.run_dir, "sock"))
}

/// The operator's socket is a convenience, as the introspection API is.
pub(super) fn operator_socket(config: &Config, data_dir: &Path, tracker: &Tracker, about: Introspection) {
    let path = run_file(data_dir, &config.run_dir, "sock");
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&config.run_dir);
    let listener = match made.and_then(|()| local::listen(&path)) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::error!(path = %path.display(), %error, "no socket for the operator: BERTH_RUN_DIR");
            return;
        }
    };
    let (state, stop) =
        (Local { about, data_dir: data_dir.to_owned(), tracker: tracker.clone() }, tracker.token().clone());
    tracker.spawn("operator's socket", async move {
        if let Err(error) = local::serve(listener, state, stop).await {
            tracing::error!(%error, "the operator's socket ended");
        }
        // The next agent makes its own.
        let _ = fs::remove_file(&path);
    });
}

/// Where tasks ask about themselves. Tasks run without it, too, and are told of none.
///
/// In a container `missing` is what it may lack for that.
pub(super) async fn open_endpoint(
    config: &Config,
    missing: &[String],
    tracker: &Tracker,
) -> Option<TcpListener> {
    match address::listen(config.endpoint?, tracker).await {
        Ok(listener) => Some(listener),
        Err(_)
            if tell("tasks cannot ask about themselves: no metadata, no credentials of roles", missing) =>
        {
            None
        }
        Err(error) => {
            let what = match error.kind() {
                ErrorKind::AddrInUse => {
                    "another agent has it, perhaps: give this one a BERTH_ENDPOINT_ADDRESS"
                }
                _ => "the agent needs CAP_NET_ADMIN, or BERTH_ENDPOINT_ADDRESS another address",
            };
            tracing::error!(%error, "tasks cannot ask about themselves: no metadata; {what}");
            None
        }
    }
}

/// What the addresses of the endpoint begin with.
pub(super) fn endpoint_base(at: SocketAddr) -> String {
    if at.port() == 80 { format!("http://{}", at.ip()) } else { format!("http://{at}") }
}

pub(super) fn task_endpoint(
    config: &Config,
    tracker: &Tracker,
    engine: Engine,
    listener: Option<TcpListener>,
    readings: Arc<Readings>,
    inquiries: Inquiries,
) {
    let (Some(listener), Some(at)) = (listener, config.endpoint) else { return };
    tracing::info!(address = %at, "the task's endpoint");
    let zone = config.attributes.get("ecs.availability-zone").cloned();
    let (per_second, burst) = config.endpoint_rate;
    let rate = Rate { per_second, burst };
    let state = TaskEndpoint::new(engine, at.ip(), zone, readings, rate, inquiries);
    let connections = tracker.clone();
    tracker.spawn("task endpoint", async move {
        task::serve(listener, Arc::new(state), &connections).await;
    });
}

/// The introspection API is a convenience: tasks do not suffer when its port is taken, and as soon as it is free it
/// is there.
pub(super) async fn introspection_api(config: &Config, tracker: &Tracker, state: Introspection) {
    let Some(address) = config.introspection else {
        return;
    };
    // Before anybody hears that the agent is ready, where that can be.
    let first = TcpListener::bind(address).await;
    if let Err(error) = &first {
        tracing::warn!(
            %address,
            %error,
            "no introspection API until that port is free: it is tried again; BERTH_INTROSPECTION_ADDRESS may name another"
        );
    }
    let (connections, stop) = (tracker.clone(), tracker.token().clone());
    tracker.spawn("introspection", async move {
        let Some(listener) = stop.run_until_cancelled(bound(first.ok(), address)).await else { return };
        if let Ok(address) = listener.local_addr() {
            tracing::info!(%address, "introspection API");
        }
        introspection::serve(listener, state, &connections).await;
    });
}

async fn bound(first: Option<TcpListener>, address: SocketAddr) -> TcpListener {
    if let Some(listener) = first {
        return listener;
    }
    loop {
        sleep(AGAIN).await;
        if let Ok(listener) = TcpListener::bind(address).await {
            return listener;
        }
    }
}
