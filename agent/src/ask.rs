//! The operator's command line: asks the agent that runs on this host, and prints what it says.

use std::io::Write;
use std::path::Path;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use berth_proto::talk;
use http_body_util::{BodyExt, Empty};
use hyper::body::Bytes;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use serde_json::Value;
use tokio::net::UnixStream;

use crate::endpoint::exec::HEADER;
use crate::journal::Entry;
use crate::runtime::ExecRequest;
use crate::supervise::Tracker;

/// What went wrong, for people.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct AskError(String);

fn failed(error: impl std::fmt::Display) -> AskError {
    AskError(error.to_string())
}

async fn connect(socket: &Path) -> Result<UnixStream, AskError> {
    UnixStream::connect(socket).await.map_err(|error| {
        AskError(format!(
            "no agent answers at {}: {error}; is it running, with the same ECS_DATADIR?",
            socket.display()
        ))
    })
}

/// Asks, and hands each part of the answer on as it comes.
async fn get(
    socket: &Path,
    path: &str,
    mut take: impl FnMut(&[u8]) -> std::io::Result<()>,
) -> Result<(), AskError> {
    let stream = connect(socket).await?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(failed)?;
    let tracker = Tracker::new();
    tracker.spawn_droppable("connection", async move {
        // How it ended shows in the answer.
        let _ = connection.await;
    });
    let request = Request::get(path).header("host", "agent").body(Empty::<Bytes>::new()).map_err(failed)?;
    let mut response = sender.send_request(request).await.map_err(failed)?;
    if response.status() != StatusCode::OK {
        let text = response.into_body().collect().await.map_err(failed)?.to_bytes();
        return Err(AskError(String::from_utf8_lossy(&text).into_owned()));
    }
    while let Some(frame) = response.frame().await {
        if let Some(data) = frame.map_err(failed)?.data_ref() {
            take(data).map_err(failed)?;
        }
    }
    Ok(())
}

async fn get_json<T: for<'de> Deserialize<'de>>(socket: &Path, path: &str) -> Result<T, AskError> {
    let mut text = Vec::new();
    get(socket, path, |data| {
        text.extend_from_slice(data);
        Ok(())
    })
    .await?;
    serde_json::from_slice(&text).map_err(failed)
}

/// How the agent is, in a few lines.
///
/// # Errors
/// When it does not answer.
pub async fn status(socket: &Path) -> Result<String, AskError> {
    let told: Value = get_json(socket, "/v1/status").await?;
    let text = |key: &str| told[key].as_str().unwrap_or("-").to_owned();
    let pair = |key: &str| format!("{} of {}", told[key][0], told[key][1]);
    let mut lines = vec![
        format!("agent      {}", text("version")),
        format!("cluster    {}", text("cluster")),
        format!("instance   {}", text("containerInstance")),
        format!("session    {}", text("session")),
        format!("engine     {}", text("engine")),
        format!("tasks      {}", told["tasks"]),
        format!("cpu        {} units", pair("cpu")),
        format!("memory     {} MiB", pair("memoryMiB")),
        format!("interfaces {}", pair("interfaces")),
    ];
    for waiting in told["waiting"].as_array().into_iter().flatten() {
        let word = |key: &str| waiting[key].as_str().unwrap_or_default().to_owned();
        lines.push(format!("waiting    {} for {}", word("task"), word("for")));
    }
    Ok(lines.join("\n") + "\n")
}

/// The tasks of the host, a line for each and its containers.
///
/// # Errors
/// When the agent does not answer.
pub async fn tasks(socket: &Path) -> Result<String, AskError> {
    let told: Value = get_json(socket, "/v1/tasks").await?;
    let mut lines = Vec::new();
    for task in told["Tasks"].as_array().into_iter().flatten() {
        let word = |value: &Value, key: &str| value[key].as_str().unwrap_or_default().to_owned();
        let arn = word(task, "Arn");
        let id = arn.rsplit('/').next().unwrap_or_default();
        let waits = Some(word(task, "WaitingFor")).filter(|on| !on.is_empty());
        let why = waits
            .map(|on| format!("waits for {on}"))
            .or_else(|| task["StoppedReason"].as_str().map(str::to_owned));
        let name = format!("{}:{}", word(task, "Family"), word(task, "Version"));
        lines.push(format!("{id}  {:<8} {name}  {}", word(task, "KnownStatus"), why.unwrap_or_default()));
        for container in task["Containers"].as_array().into_iter().flatten() {
            let waits = container["WaitingFor"].as_str().map(|on| format!("waits for {on}"));
            let exit = container["ExitCode"].as_i64().map(|code| format!("exit code {code}"));
            let why = waits.or(exit).unwrap_or_default();
            let image = word(container, "Image");
            lines.push(format!(
                "    {:<20} {:<8} {image}  {why}",
                word(container, "Name"),
                word(container, "KnownStatus")
            ));
        }
    }
    lines.iter_mut().for_each(|line| line.truncate(line.trim_end().len()));
    Ok(lines.join("\n") + if lines.is_empty() { "" } else { "\n" })
}

/// The images of the host, a line for each: its size, whether a task has it, and when the agent pulled it.
///
/// # Errors
/// When the agent, or the engine, does not answer.
pub async fn images(socket: &Path) -> Result<String, AskError> {
    let told: Value = get_json(socket, "/v1/images").await?;
    let mut text = String::new();
    for image in told.as_array().into_iter().flatten() {
        let mebibytes = image["bytes"].as_u64().unwrap_or_default().div_ceil(1 << 20);
        let used = if image["inUse"] == true { "in use" } else { "unused" };
        let pulled = image["pulledAt"].as_str().map(|at| format!("pulled {at}"));
        let whose = pulled.unwrap_or_else(|| "not pulled by this agent".to_owned());
        text += &format!("{}  {mebibytes} MiB  {used}  {whose}\n", image["name"].as_str().unwrap_or("-"));
    }
    Ok(text)
}

#[derive(Deserialize)]
struct Explained {
    task: String,
    entries: Vec<Entry>,
}

/// What happened to a task, in order: when, how long after the entry before, and what.
///
/// # Errors
/// When nothing is known of it.
pub async fn explain(socket: &Path, task: &str) -> Result<String, AskError> {
    let id = task.rsplit('/').next().unwrap_or(task);
    let told: Explained = get_json(socket, &format!("/v1/explain/{id}")).await?;
    let mut text = format!("task {}\n", told.task);
    let mut last = told.entries.first().map(|entry| entry.at);
    for entry in &told.entries {
        let at = i64::try_from(entry.at.0).ok().and_then(|at| jiff::Timestamp::from_millisecond(at).ok());
        let at = at.map(|at| at.strftime("%Y-%m-%d %H:%M:%S%.3fZ").to_string()).unwrap_or_default();
        let gap = last.map_or(0, |last| entry.at.0.saturating_sub(last.0));
        let gap = if gap == 0 { String::new() } else { format!("+{}.{:03} s", gap / 1000, gap % 1000) };
        text += &format!("{at}  {gap:>12}  {}\n", entry.what);
        last = Some(entry.at);
    }
    Ok(text)
}

/// Copies what a container has said, and goes on with what it says if that is wanted.
///
/// # Errors
/// When there is no such container.
pub async fn logs(
    socket: &Path,
    task: &str,
    container: Option<&str>,
    tail: Option<u32>,
    follow: bool,
    out: &mut impl Write,
) -> Result<(), AskError> {
    let id = task.rsplit('/').next().unwrap_or(task);
    let mut path = format!("/v1/logs/{id}/{}?x", container.unwrap_or("-"));
    if let Some(tail) = tail {
        path += &format!("&tail={tail}");
    }
    if follow {
        path += "&follow";
    }
    get(socket, &path, |data| out.write_all(data).and_then(|()| out.flush())).await
}

/// Runs a program in a container, with this program's input and output for its own, and its terminal where
/// there is one; its exit code.
///
/// # Errors
/// When it cannot be started, or is out of reach.
pub async fn exec(
    socket: &Path,
    task: &str,
    container: Option<&str>,
    command: &[String],
    interactive: bool,
) -> Result<i32, AskError> {
    let id = task.rsplit('/').next().unwrap_or(task);
    let wanted = ExecRequest { command: command.to_vec(), tty: interactive && talk::has_terminal() };
    let header = BASE64_STANDARD.encode(serde_json::to_vec(&wanted).map_err(failed)?);
    let stream = connect(socket).await?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(failed)?;
    let tracker = Tracker::new();
    tracker.spawn_droppable("connection", async move {
        // How it ended shows in the answer.
        let _ = connection.with_upgrades().await;
    });
    let request = Request::get(format!("/v1/exec/{id}/{}", container.unwrap_or("-")))
        .header("host", "agent")
        .header("connection", "upgrade")
        .header("upgrade", HEADER)
        .header(HEADER, header)
        .body(Empty::<Bytes>::new())
        .map_err(failed)?;
    let response = sender.send_request(request).await.map_err(failed)?;
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        let text = response.into_body().collect().await.map_err(failed)?.to_bytes();
        return Err(AskError(String::from_utf8_lossy(&text).into_owned()));
    }
    let wire = TokioIo::new(hyper::upgrade::on(response).await.map_err(failed)?);
    talk::sit(wire, wanted.tty, interactive).await.map_err(failed)
}
