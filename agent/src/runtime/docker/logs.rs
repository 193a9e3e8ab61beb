//! What containers have said.

use berth_core::ids::EngineId;
use bollard::query_parameters::LogsOptions;
use futures_util::{StreamExt, TryStreamExt};

use super::client::Connector;
use crate::runtime::{LogStream, RuntimeError};

/// What a container has said, both of its streams in the order in which they came.
///
/// # Errors
/// The engine's: there is no such container, or its log driver keeps nothing to read.
pub(super) async fn of(
    connector: &Connector,
    id: &EngineId,
    tail: Option<u32>,
    follow: bool,
) -> Result<LogStream, RuntimeError> {
    let link = connector.link().await?;
    let options = LogsOptions {
        stdout: true,
        stderr: true,
        follow,
        tail: tail.map_or_else(|| "all".to_owned(), |lines| lines.to_string()),
        ..LogsOptions::default()
    };
    let mut parts =
        link.api.logs(id.as_str(), Some(options)).map_ok(bollard::container::LogOutput::into_bytes);
    let refused = |error: bollard::errors::Error| RuntimeError::Refused(error.to_string());
    // The stream is lazy: whether the engine answers at all shows with its first part.
    match parts.next().await {
        None => Ok(futures_util::stream::empty().boxed()),
        Some(Err(error)) => Err(connector.failed(&link, error.into()).await),
        Some(Ok(first)) => {
            Ok(futures_util::stream::once(async { Ok(first) }).chain(parts.map_err(refused)).boxed())
        }
    }
}
