//! Programs in containers, over the operator's socket: one connection for each, upgraded to frames.

use std::io;
use std::sync::Arc;

use axum::extract::Request;
use axum::http::header::{CONNECTION, UPGRADE};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use berth_core::ids::EngineId;
use futures_util::StreamExt;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, split};

use crate::engine::Engine;
use crate::frames::Frame;
use crate::runtime::{Exec, ExecRequest, Said};
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
    let (id, engine) = (id.clone(), Arc::new(engine));
    tracker.spawn_droppable("exec", async move {
        let exec_id = exec.id.clone();
        let talked = match upgraded.await {
            Ok(wire) => talk(&engine, exec, TokioIo::new(wire)).await,
            Err(error) => Err(io::Error::other(error)),
        };
        let exit = engine.exec_exit(&exec_id).await.ok().flatten();
        let error = talked.err().map(|error| error.to_string());
        tracing::info!(target: "berth::audit", container = %id, exit, error, "a program in a container was left");
    });
    let head = [(CONNECTION, "upgrade"), (UPGRADE, HEADER)];
    (StatusCode::SWITCHING_PROTOCOLS, head).into_response()
}

async fn talk(engine: &Engine, exec: Exec, wire: impl AsyncRead + AsyncWrite) -> io::Result<()> {
    let (mut from, mut to) = split(wire);
    let Exec { id, mut output, mut input } = exec;
    let heard = async {
        while let Some(frame) = Frame::read(&mut from).await? {
            match frame {
                Frame::In(bytes) => {
                    input.write_all(&bytes).await?;
                    input.flush().await?;
                }
                Frame::EndOfInput => input.shutdown().await?,
                Frame::Resize(columns, rows) => {
                    // A program that has just ended has no terminal.
                    let _ = engine.exec_resize(&id, columns, rows).await;
                }
                _ => return Err(io::Error::other("a frame of the wrong side")),
            }
        }
        // Whoever asked has hung up.
        io::Result::Ok(())
    };
    let said = async {
        while let Some(part) = output.next().await {
            let frame = match part {
                Ok(Said::Out(bytes)) => Frame::Out(bytes),
                Ok(Said::Err(bytes)) => Frame::Err(bytes),
                Err(error) => Frame::Failed(error.to_string()),
            };
            frame.write(&mut to).await?;
        }
        let end = match engine.exec_exit(&id).await {
            Ok(Some(code)) => Frame::Exit(code),
            Ok(None) => Frame::Failed("the program is out of reach".to_owned()),
            Err(error) => Frame::Failed(error.to_string()),
        };
        end.write(&mut to).await
    };
    tokio::select! {
        ended = said => ended,
        hung_up = heard => hung_up,
    }
}
