//! ECS's JSON 1.1 API over HTTP.

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::state::ApiState;

/// Serves until `shutdown` is cancelled.
pub async fn serve(listener: TcpListener, state: ApiState, shutdown: CancellationToken) {
    let _ = (listener, state);
    shutdown.cancelled().await;
}
