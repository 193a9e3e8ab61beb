//! The engine's API with nothing between: plain HTTP over its unix socket. The floor.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1;
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::UnixStream;

use crate::engine::TASK_ARN;

/// No call takes longer.
const TIMEOUT: Duration = Duration::from_secs(60);
/// Removals at a time.
const REMOVALS: usize = 8;

/// The engine's socket.
#[derive(Debug, Clone)]
pub struct Raw {
    socket: PathBuf,
}

impl Raw {
    /// The engine of `DOCKER_HOST`, or of the usual socket.
    ///
    /// # Errors
    /// When it is not on a unix socket.
    pub fn new() -> Result<Self> {
        let host = std::env::var("DOCKER_HOST").unwrap_or_else(|_| "unix:///var/run/docker.sock".to_owned());
        let socket = host.strip_prefix("unix://");
        let socket = socket.with_context(|| format!("DOCKER_HOST={host}: a unix socket is needed"))?;
        Ok(Self { socket: socket.into() })
    }

    async fn call(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Bytes> {
        let exchange = self.exchange(method, path, body);
        let answer = tokio::time::timeout(TIMEOUT, exchange).await;
        let (status, body) = answer.with_context(|| format!("{path}: no answer within {TIMEOUT:?}"))??;
        if !(200..400).contains(&status) {
            bail!("{path}: {status}: {}", String::from_utf8_lossy(&body));
        }
        Ok(body)
    }

    async fn exchange(&self, method: Method, path: &str, body: Option<&Value>) -> Result<(u16, Bytes)> {
        let stream = UnixStream::connect(&self.socket).await.context("the engine's socket")?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        let text = body.map(Value::to_string).unwrap_or_default();
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "engine")
            .header("content-type", "application/json")
            .body(Full::new(Bytes::from(text)))?;
        let exchange = async {
            let response = sender.send_request(request).await?;
            let status = response.status().as_u16();
            anyhow::Ok((status, response.into_body().collect().await?.to_bytes()))
        };
        tokio::select! {
            biased;
            answer = exchange => answer,
            ended = connection => bail!("{path}: the engine hung up: {ended:?}"),
        }
    }

    /// The process that serves the socket.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub async fn daemon(&self) -> Result<u32> {
        let pid = UnixStream::connect(&self.socket).await?.peer_cred()?.pid();
        Ok(u32::try_from(pid.context("whose the engine's socket is")?)?)
    }

    /// Creates a container; its id.
    ///
    /// # Errors
    /// What the engine says.
    pub async fn create(&self, body: &Value) -> Result<String> {
        let answer = self.call(Method::POST, "/containers/create", Some(body)).await?;
        let answer: Value = serde_json::from_slice(&answer)?;
        Ok(answer["Id"].as_str().context("no id in the answer")?.to_owned())
    }

    /// Starts a container.
    ///
    /// # Errors
    /// What the engine says.
    pub async fn start(&self, id: &str) -> Result<()> {
        self.call(Method::POST, &format!("/containers/{id}/start"), None).await.map(drop)
    }

    /// Stops a container, and waits for its end.
    ///
    /// # Errors
    /// What the engine says.
    pub async fn stop(&self, id: &str) -> Result<()> {
        self.call(Method::POST, &format!("/containers/{id}/stop?t=30"), None).await.map(drop)
    }

    /// SIGKILL, and waits for the end.
    ///
    /// # Errors
    /// What the engine says.
    pub async fn kill(&self, id: &str) -> Result<()> {
        self.call(Method::POST, &format!("/containers/{id}/kill"), None).await?;
        self.call(Method::POST, &format!("/containers/{id}/wait?condition=not-running"), None).await.map(drop)
    }

    /// Waits until a container is gone; one that is not there is gone already.
    ///
    /// # Errors
    /// When the engine does not answer.
    pub async fn gone(&self, id: &str) -> Result<()> {
        let path = format!("/containers/{id}/wait?condition=removed");
        let wait = self.exchange(Method::POST, &path, None);
        let answer = tokio::time::timeout(TIMEOUT, wait).await;
        answer.with_context(|| format!("container {id} is still there after {TIMEOUT:?}"))?.map(drop)
    }

    /// Removes a container, running or not.
    ///
    /// # Errors
    /// What the engine says.
    pub async fn remove(&self, id: &str) -> Result<()> {
        let path = format!("/containers/{id}?force=1&v=1");
        let (status, body) = self.exchange(Method::DELETE, &path, None).await?;
        // 404: gone. 409: somebody else is removing it.
        match status {
            200..400 | 404 | 409 => Ok(()),
            _ => bail!("{path}: {status}: {}", String::from_utf8_lossy(&body)),
        }
    }

    /// Removes containers, running or not; all are tried.
    ///
    /// # Errors
    /// The first that failed.
    pub async fn remove_all(&self, ids: &[String]) -> Result<()> {
        let removals = stream::iter(ids).map(|id| self.remove(id)).buffer_unordered(REMOVALS);
        removals.collect::<Vec<_>>().await.into_iter().collect()
    }

    /// Containers of tasks, ended ones included: id and ARN of the task.
    ///
    /// # Errors
    /// What the engine says.
    pub async fn tasks(&self) -> Result<Vec<(String, String)>> {
        let filters = format!("%7B%22label%22:%5B%22{TASK_ARN}%22%5D%7D");
        let answer =
            self.call(Method::GET, &format!("/containers/json?all=1&filters={filters}"), None).await?;
        let found: Vec<Value> = serde_json::from_slice(&answer)?;
        let text = |value: &Value| value.as_str().map(str::to_owned);
        Ok(found.iter().filter_map(|c| Some((text(&c["Id"])?, text(&c["Labels"][TASK_ARN])?))).collect())
    }

    /// Creates and starts containers, so many at a time; their ids, and how long it took.
    ///
    /// # Errors
    /// What the engine says.
    pub async fn launch(&self, bodies: &[Value], at_once: usize) -> Result<(Vec<String>, Duration)> {
        let began = Instant::now();
        let launches = stream::iter(bodies).map(|body| async move {
            let id = self.create(body).await?;
            self.start(&id).await?;
            anyhow::Ok(id)
        });
        let ids = launches.buffer_unordered(at_once).try_collect().await?;
        Ok((ids, began.elapsed()))
    }

    /// Stops containers, so many at a time; how long it took.
    ///
    /// # Errors
    /// What the engine says.
    pub async fn end(&self, ids: &[String], at_once: usize) -> Result<Duration> {
        let began = Instant::now();
        let stops = stream::iter(ids).map(|id| self.stop(id)).buffer_unordered(at_once);
        stops.try_collect::<()>().await?;
        Ok(began.elapsed())
    }
}
