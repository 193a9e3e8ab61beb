//! Connections of the HTTP side: a deadline for headers and bodies, an end when told to.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use super::account::Settings;
use super::wire;
use crate::remote;
use crate::state::ApiState;
use crate::supervise::Tracker;

/// How long a connection may take to send the head of its next request.
const HEADER_DEADLINE: Duration = Duration::from_secs(60);
/// How long requests in flight may take once the server is told to stop.
const SHUTDOWN_DEADLINE: Duration = Duration::from_secs(3);
/// How long to wait when no connection can be accepted, as without free file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How many failures in a row are taken to pass: a minute's worth.
const MAX_ACCEPT_FAILURES: u32 = 600;

/// Serves ECS's API on `listener` until `shutdown` is cancelled; requests in flight are finished.
///
/// # Errors
/// The listener's error when nothing could be accepted for a long time.
pub async fn serve(listener: TcpListener, state: ApiState, shutdown: CancellationToken) -> io::Result<()> {
    let tracker = Tracker::new();
    let settings = Settings::default();
    let mut failures = 0;
    let ended = loop {
        let accepted = tokio::select! {
            () = shutdown.cancelled() => break Ok(()),
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                failures = 0;
                let connection =
                    connection(stream, peer, state.clone(), settings.clone(), tracker.token().clone());
                tracker.spawn("api connection", connection);
            }
            Err(error) if failures >= MAX_ACCEPT_FAILURES => break Err(error),
            Err(error) => {
                failures += 1;
                // A peer that went away, or too many open files: both pass.
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    };
    if let Err(unfinished) = tracker.stop(SHUTDOWN_DEADLINE).await {
        tracing::warn!(%unfinished, "connections of the API were cut");
    }
    ended
}

async fn connection(
    stream: TcpStream,
    peer: SocketAddr,
    state: ApiState,
    settings: Settings,
    stop: CancellationToken,
) {
    // Small answers are to leave at once.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "TCP_NODELAY was not set");
    }
    let service = service_fn(|request| {
        let (state, settings) = (state.clone(), settings.clone());
        async move {
            let answer = match remote::stream_of(&request) {
                Some(_) => remote::answer(&state.remote, request),
                None => wire::answer(&state, &settings, peer, request).await,
            };
            Ok::<_, Infallible>(answer)
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_DEADLINE)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, %peer, "a connection of the API ended early");
    }
}
