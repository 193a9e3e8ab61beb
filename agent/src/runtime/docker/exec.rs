//! Programs that are started in containers that run.

use berth_core::ids::EngineId;
use bollard::container::LogOutput;
use bollard::exec::{CreateExecOptions, ResizeExecOptions, StartExecOptions, StartExecResults};
use futures_util::StreamExt;

use super::client::Connector;
use crate::runtime::{Exec, ExecRequest, RuntimeError, Said};

/// Starts a program in a container.
///
/// # Errors
/// The engine's: the container does not run, or there is no such program.
pub(super) async fn start(
    connector: &Connector,
    id: &EngineId,
    request: ExecRequest,
) -> Result<Exec, RuntimeError> {
    let link = connector.link().await?;
    let options = CreateExecOptions {
        cmd: Some(request.command),
        tty: Some(request.tty),
        attach_stdin: Some(true),
        attach_stdout: Some(true),
        attach_stderr: Some(true),
        ..CreateExecOptions::default()
    };
    let made = match link.api.create_exec(id.as_str(), options).await {
        Ok(made) => made,
        Err(error) => return Err(connector.failed(&link, error.into()).await),
    };
    let options = StartExecOptions { detach: false, tty: request.tty, output_capacity: None };
    match link.api.start_exec(&made.id, Some(options)).await {
        Ok(StartExecResults::Attached { output, input }) => {
            let said = |part: Result<LogOutput, bollard::errors::Error>| match part {
                Ok(LogOutput::StdErr { message }) => Ok(Said::Err(message)),
                Ok(other) => Ok(Said::Out(other.into_bytes())),
                Err(error) => Err(RuntimeError::Refused(error.to_string())),
            };
            Ok(Exec { id: made.id, output: output.map(said).boxed(), input })
        }
        Ok(StartExecResults::Detached) => {
            Err(RuntimeError::Refused("the engine started the program out of reach".to_owned()))
        }
        Err(error) => Err(connector.failed(&link, error.into()).await),
    }
}

/// Tells a program's terminal its size.
///
/// # Errors
/// The engine's.
pub(super) async fn resize(
    connector: &Connector,
    exec: &str,
    columns: u16,
    rows: u16,
) -> Result<(), RuntimeError> {
    let link = connector.link().await?;
    let size = ResizeExecOptions { height: rows, width: columns };
    match link.api.resize_exec(exec, size).await {
        Ok(()) => Ok(()),
        Err(error) => Err(connector.failed(&link, error.into()).await),
    }
}

/// How a program ended; `None` while it runs.
///
/// # Errors
/// The engine's.
pub(super) async fn exit(connector: &Connector, exec: &str) -> Result<Option<i32>, RuntimeError> {
    let link = connector.link().await?;
    match link.api.inspect_exec(exec).await {
        Ok(told) if told.running == Some(true) => Ok(None),
        Ok(told) => Ok(told.exit_code.and_then(|code| i32::try_from(code).ok())),
        Err(error) => Err(connector.failed(&link, error.into()).await),
    }
}
