//! Whether the host is on its way down, as systemd says: what tells a shutdown from a plain stop of the
//! agent, which look the same to a service.

use std::io;
use std::time::Duration;

use zbus::Connection;

/// Longest that the answer may take: whoever asks is about to end.
const PATIENCE: Duration = Duration::from_secs(2);

/// Asks systemd; `false` where there is none, or none that answers.
pub async fn is_shutting_down() -> bool {
    let asked = tokio::time::timeout(PATIENCE, state()).await;
    match asked.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
        Ok(state) => state == "stopping",
        Err(error) => {
            tracing::debug!(%error, "systemd was not asked whether the host goes down");
            false
        }
    }
}

async fn state() -> io::Result<String> {
    let connection = Connection::system().await.map_err(io::Error::other)?;
    let manager = zbus::proxy::Builder::<zbus::Proxy<'_>>::new(&connection)
        .destination("org.freedesktop.systemd1")
        .and_then(|proxy| proxy.path("/org/freedesktop/systemd1"))
        .and_then(|proxy| proxy.interface("org.freedesktop.systemd1.Manager"))
        .map_err(io::Error::other)?;
    let manager =
        manager.cache_properties(zbus::proxy::CacheProperties::No).build().await.map_err(io::Error::other)?;
    manager.get_property("SystemState").await.map_err(io::Error::other)
}
