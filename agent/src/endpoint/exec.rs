//! Programs in containers, over the operator's socket: one connection for each, upgraded to frames.

use std::io;

use axum::extract::Request;
use axum::http::header::{CONNECTION, UPGRADE};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use berth_core::ids::EngineId;
use berth_proto::talk::{frames, write};
use futures_util::sink;
use hyper_util::rt::TokioIo;

use crate::engine::Engine;
use crate::runtime::ExecRequest;
use crate::supervise::Tracker;

/// The header with what is to be started: JSON in base64.
pub const HEADER: &str = "berth-exec";

/// What is to be started, as the header says.
pub(super) fn request(headers: &HeaderMap) -> Option<ExecRequest> {
    let text = BASE64_STANDARD.decode(headers.get(HEADER)?.as_bytes()).ok()?;
    let request: ExecRequest = serde_json::from_slice(&text).ok()?;
    (!request.command.is_empty()).then_some(request)
}

/// Starts the program, and talks with whoever asked until it ends.
pub(super) async fn start(
    engine: Engine,
    tracker: &Tracker,
    id: &EngineId,
    wanted: ExecRequest,
    mut asked: Request,
    who: String,
) -> Response {
    let tty = wanted.tty;
    let program = wanted.command.first().cloned().unwrap_or_default();
    let exec = match engine.exec(id, wanted).await {
        Ok(exec) => exec,
        Err(error) => return (StatusCode::BAD_GATEWAY, error.to_string()).into_response(),
    };
    tracing::info!(target: "berth::audit", container = %id, program, tty, who, "a program was started in a container");
    let upgraded = hyper::upgrade::on(&mut asked);
    let id = id.clone();
    tracker.spawn_droppable("exec", async move {
        let exec_id = exec.id.clone();
        let talked = match upgraded.await {
            Ok(wire) => {
                let (from, to) = tokio::io::split(TokioIo::new(wire));
                let to = sink::unfold(to, |mut to, kind| async move {
                    write(&mut to, kind).await?;
                    Ok(to)
                });
                engine.talk(exec, frames(from), to).await
            }
            Err(error) => Err(io::Error::other(error)),
        };
        let exit = engine.exec_exit(&exec_id).await.ok().flatten();
        let error = talked.err().map(|error| error.to_string());
        tracing::info!(target: "berth::audit", container = %id, exit, error, "a program in a container was left");
    });
    let head = [(CONNECTION, "upgrade"), (UPGRADE, HEADER)];
    (StatusCode::SWITCHING_PROTOCOLS, head).into_response()
}
