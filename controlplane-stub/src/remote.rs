//! Programs in containers and logs, for operators who are elsewhere. The API gives out a session: an address
//! and a token that hold for a minute and for one use. Whoever connects there with it talks with the agent,
//! frame by frame; who did what is written down.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::body::Bytes;
use axum::http::header::{AUTHORIZATION, CONNECTION, UPGRADE};
use axum::http::{HeaderValue, Request, Response, StatusCode};
use berth_core::units::{Millis, Timestamp};
use berth_proto::talk::{self, Kind};
use berth_proto::v1;
use berth_proto::v1::attach_request::What;
use futures_util::StreamExt;
use http_body_util::Full;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::agents::streams::{AgentSide, Streams};
use crate::clock;
use crate::supervise::Tracker;
use berth_proto::sigv4::sha256;

/// Where sessions are.
const PREFIX: &str = "/berth/v1/streams/";
/// What the connection becomes.
pub const PROTOCOL: &str = "berth-stream";
/// How long a session may be used.
const LIFETIME: Millis = Millis::from_secs(60);
/// Most sessions that were given out and not used yet.
const MOST: usize = 1024;

/// What a session is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wish {
    /// A program: it and its arguments.
    Exec(Vec<String>),
    /// What a container says: its last lines, or all, and whether to go on.
    Logs(Option<u32>, bool),
}

/// What a session reaches, and for whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// ARN of the task's container instance.
    pub instance: String,
    /// ARN of the task.
    pub task: String,
    /// Name of the container.
    pub container: String,
    /// What is wanted.
    pub wish: Wish,
    /// The access key of whoever asked.
    pub who: String,
}

/// A session that was given out. `Debug` shows no token.
#[derive(Clone)]
pub struct Session {
    /// Its name.
    pub id: String,
    /// The path of its address.
    pub path: String,
    /// What opens it, once.
    pub token: String,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Session({})", self.id)
    }
}

struct Given {
    target: Target,
    token_sha256: String,
    until: Timestamp,
}

/// Too many sessions were given out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("too many sessions were given out and not used; try again in a minute")]
pub struct TooMany;

/// Gives out sessions and serves them. Cloning yields another handle on the same.
#[derive(Clone)]
pub struct Remote {
    streams: Streams,
    tracker: Tracker,
    given: Arc<Mutex<HashMap<String, Given>>>,
}

impl fmt::Debug for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Remote({} given out)", self.lock().len())
    }
}

impl Remote {
    /// Over those streams; conversations end with the tracker.
    #[must_use]
    pub fn new(streams: Streams, tracker: &Tracker) -> Self {
        Self { streams, tracker: tracker.clone(), given: Arc::default() }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Given>> {
        self.given.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the agent of an instance is there to be asked.
    #[must_use]
    pub fn reaches(&self, instance_arn: &str) -> bool {
        self.streams.reaches(instance_arn)
    }

    /// Gives out a session.
    ///
    /// # Errors
    /// [`TooMany`].
    pub fn give(&self, target: Target) -> Result<Session, TooMany> {
        let now = clock::now();
        let (id, token) = (uuid::Uuid::new_v4().to_string(), uuid::Uuid::new_v4().to_string());
        let mut given = self.lock();
        given.retain(|_, session| session.until > now);
        if given.len() >= MOST {
            return Err(TooMany);
        }
        let session = Given { target, token_sha256: sha256(token.as_bytes()), until: now.after(LIFETIME) };
        given.insert(id.clone(), session);
        Ok(Session { path: format!("{PREFIX}{id}"), id, token })
    }

    /// What a session is for, which it is only once.
    fn take(&self, id: &str, token: &str) -> Option<Target> {
        let mut given = self.lock();
        let session = given.get(id)?;
        // By their digests: how long that takes tells nothing of the token.
        (session.token_sha256 == sha256(token.as_bytes())).then_some(())?;
        given.remove(id).filter(|session| session.until > clock::now()).map(|session| session.target)
    }
}

/// The session that a request is for, if it is for one.
#[must_use]
pub fn stream_of<B>(request: &Request<B>) -> Option<&str> {
    request.uri().path().strip_prefix(PREFIX)
}

fn refused(status: StatusCode, why: &str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(why.to_owned())));
    *response.status_mut() = status;
    response
}

/// Answers whoever connects with a session. A program gets a terminal where the request's query is `tty`.
pub fn answer<B>(remote: &Remote, mut request: Request<B>) -> Response<Full<Bytes>> {
    let asked = request.headers().get(UPGRADE).and_then(|value| value.to_str().ok());
    if asked != Some(PROTOCOL) {
        return refused(StatusCode::UPGRADE_REQUIRED, "this address is for berth exec and berth logs");
    }
    let token = request.headers().get(AUTHORIZATION).and_then(|value| value.to_str().ok());
    let token = token.and_then(|value| value.strip_prefix("Bearer ")).unwrap_or_default();
    let Some(target) = stream_of(&request).and_then(|id| remote.take(id, token)) else {
        return refused(StatusCode::FORBIDDEN, "no such session: it was used, or is older than a minute");
    };
    let tty = request.uri().query() == Some("tty");
    let upgraded = hyper::upgrade::on(&mut request);
    let (streams, stop) = (remote.streams.clone(), remote.tracker.token().clone());
    remote.tracker.spawn("operator's session", async move {
        match upgraded.await {
            // The tracker waits for nobody's program.
            Ok(wire) => drop(stop.run_until_cancelled(serve(streams, target, tty, TokioIo::new(wire))).await),
            Err(error) => tracing::debug!(%error, "an operator's connection was not upgraded"),
        }
    });
    let mut response = refused(StatusCode::SWITCHING_PROTOCOLS, "");
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("upgrade"));
    response.headers_mut().insert(UPGRADE, HeaderValue::from_static(PROTOCOL));
    response
}

async fn serve(streams: Streams, target: Target, tty: bool, wire: impl AsyncRead + AsyncWrite + Send) {
    let Target { instance, task, container, wish, who } = target;
    let (what, wanted) = match wish {
        Wish::Exec(command) => {
            let program = command.first().cloned().unwrap_or_default();
            (What::Exec(v1::Exec { command, tty }), format!("program {program}"))
        }
        Wish::Logs(tail, follow) => (What::Logs(v1::Logs { tail, follow }), "logs".to_owned()),
    };
    tracing::info!(target: "berth::audit", task, container, wanted, who, "an operator reaches into a container");
    let (from, mut to) = tokio::io::split(wire);
    let ended = match streams.open(&instance, (task.clone(), container.clone()), what, who.clone()).await {
        Ok(side) => join(side, from, &mut to).await,
        Err(error) => talk::write(&mut to, Kind::Failure(error.to_string())).await.map(|()| None),
    };
    // Whoever has gone does not hear it.
    let _ = tokio::io::AsyncWriteExt::shutdown(&mut to).await;
    let exit = ended.as_ref().ok().copied().flatten();
    let error = ended.err().map(|error| error.to_string());
    tracing::info!(target: "berth::audit", task, container, wanted, who, exit, error, "an operator has left a container");
}

/// Passes frames on in both directions until one side has no more; the exit code, where one came.
async fn join(
    mut agent: AgentSide,
    from: impl AsyncRead + Unpin + Send,
    to: &mut (impl AsyncWrite + Unpin),
) -> io::Result<Option<i32>> {
    let frames = talk::frames(from);
    tokio::pin!(frames);
    let told = async {
        while let Some(kind) = frames.next().await {
            // Only the agent says which request it answers.
            let kind = kind?;
            if matches!(kind, Kind::AttachId(_)) {
                return Err(io::Error::from(io::ErrorKind::InvalidData));
            }
            if agent.outgoing.send(Ok(v1::Frame { kind: Some(kind) })).await.is_err() {
                // It ends by itself: what it said last is still to come.
                return std::future::pending().await;
            }
        }
        io::Result::Ok(None)
    };
    let heard = async {
        while let Some(frame) = agent.incoming.message().await.map_err(io::Error::other)? {
            let Some(kind) = frame.kind else { continue };
            let exit = if let Kind::ExitCode(code) = &kind { Some(*code) } else { None };
            talk::write(to, kind).await?;
            if exit.is_some() {
                return Ok(exit);
            }
        }
        io::Result::Ok(None)
    };
    tokio::select! {
        ended = heard => ended,
        hung_up = told => hung_up,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agents::registry::Registry;

    fn target() -> Target {
        let text = |text: &str| text.to_owned();
        let wish = Wish::Exec(vec![text("sh")]);
        Target { instance: text("i"), task: text("t"), container: text("c"), wish, who: text("AKIA") }
    }

    #[tokio::test]
    async fn a_session_is_used_once_and_with_its_own_token() {
        let remote = Remote::new(Streams::new(Registry::new()), &Tracker::new());
        let (one, other) = (remote.give(target()).unwrap(), remote.give(target()).unwrap());
        assert_eq!(remote.take(&one.id, &other.token), None);
        assert_eq!(remote.take(&one.id, &one.token), Some(target()));
        assert_eq!(remote.take(&one.id, &one.token), None);
        assert!(!format!("{other:?}").contains(&other.token));
    }
}
