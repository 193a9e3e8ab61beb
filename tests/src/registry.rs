//! A registry of images on loopback: Debian's, with a login, behind a door that can be made to fail.

use std::collections::HashMap;
use std::convert::Infallible;
use std::fs;
use std::io::Read as _;
use std::net::SocketAddr;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bollard::query_parameters::RemoveImageOptionsBuilder;
use bytes::Bytes;
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::process::{Child, Command};
use tokio::task::JoinSet;

use crate::expect::PATIENCE;
use crate::{Engine, demo, eventually, http};

/// The user of every registry, and its password: such as the wrong kind of base64 would spoil.
pub const USER: &str = "berth";
/// See [`USER`].
pub const PASSWORD: &str = "a~>?";

/// How large the layer is that each image has for itself: large enough for engines to tell how far they are.
const LAYER: usize = 2 << 20;

/// Bytes that cannot be compressed, and that no other image has.
fn noise(size: usize) -> Result<Vec<u8>> {
    let mut bytes = vec![0; size];
    fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// What the registry does instead of answering.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It answers everything with that status.
    Status(u16),
    /// It answers with that status so many times, and then as it should.
    Passing(u16, u32),
    /// It accepts connections, and never answers.
    Silence,
    /// It sends half of each blob, and then nothing.
    Stall,
    /// It sends half of each blob, and hangs up.
    Cut,
    /// It sends blobs of the right length with other contents.
    Corrupt,
}

type Body = BoxBody<Bytes, std::io::Error>;
type Upstream = Client<HttpConnector, Full<Bytes>>;

struct Door {
    upstream: SocketAddr,
    client: Upstream,
    fault: Mutex<Option<Fault>>,
    pulls: Mutex<HashMap<String, u32>>,
}

/// A registry; it ends with its value.
pub struct Registry {
    address: SocketAddr,
    door: Arc<Door>,
    engine: Engine,
    images: Mutex<Vec<String>>,
    folder: TempDir,
    _server: Child,
    _accepting: JoinSet<()>,
}

impl Registry {
    /// Starts an empty one.
    ///
    /// # Errors
    /// When it is not installed or does not get ready.
    pub async fn start(engine: &Engine) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("berth-registry-").tempdir()?;
        let made = std::process::Command::new("htpasswd").args(["-Bbn", USER, PASSWORD]).output();
        let made = made.context("htpasswd: run tests/scripts/prepare.sh registry")?;
        fs::write(folder.path().join("htpasswd"), made.stdout)?;
        let upstream = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let config = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {0}/data}}, delete: {{enabled: true}}}}\n\
             http: {{addr: \"{upstream}\", relativeurls: true}}\n\
             auth: {{htpasswd: {{realm: berth, path: {0}/htpasswd}}}}\n",
            folder.path().display()
        );
        fs::write(folder.path().join("config.yml"), config)?;
        let server = Command::new("docker-registry")
            .arg("serve")
            .arg(folder.path().join("config.yml"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .context("docker-registry: run tests/scripts/prepare.sh registry")?;
        let url = format!("http://{upstream}/v2/");
        eventually(PATIENCE, "the registry answers", || async { Ok(http::get(&url).await.ok().map(|_| ())) })
            .await?;

        let door = Arc::new(Door {
            upstream,
            client: Client::builder(TokioExecutor::new()).build_http(),
            fault: Mutex::default(),
            pulls: Mutex::default(),
        });
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let mut accepting = JoinSet::new();
        accepting.spawn(accept(listener, Arc::clone(&door)));
        Ok(Self {
            address,
            door,
            engine: engine.clone(),
            images: Mutex::default(),
            folder,
            _server: server,
            _accepting: accepting,
        })
    }

    /// Its name, as images and logins have it.
    #[must_use]
    pub fn name(&self) -> String {
        self.address.to_string()
    }

    /// What it does from now on.
    pub fn fail(&self, fault: Option<Fault>) {
        *self.door.fault.lock().unwrap_or_else(PoisonError::into_inner) = fault;
    }

    /// How often that image's manifest was asked for by name.
    #[must_use]
    pub fn manifests(&self, path: &str) -> u32 {
        self.door.pulls.lock().unwrap_or_else(PoisonError::into_inner).get(path).copied().unwrap_or_default()
    }

    /// Puts the demo image, with a layer that no other image has, into it under that path (`name:tag`), and
    /// takes it from the engine again; its whole name.
    ///
    /// # Errors
    /// What engine or registry say.
    pub async fn put(&self, path: &str) -> Result<String> {
        let image = format!("{}/{path}", self.name());
        let unique = self.folder.path().join("unique");
        fs::write(&unique, noise(LAYER)?)?;
        let (unique, config) = (unique.display().to_string(), self.folder.path().display().to_string());
        let container = docker(&["create", demo::IMAGE]).await?;
        let made = async {
            docker(&["cp", &unique, &format!("{container}:/unique")]).await?;
            docker(&["commit", &container, &image]).await
        };
        let made = made.await;
        docker(&["rm", &container]).await?;
        made?;
        self.images.lock().unwrap_or_else(PoisonError::into_inner).push(image.clone());
        // The one client that spoils no login: the engine's own command line.
        let login = ["--config", &config, "login", "--username", USER, "--password", PASSWORD, &self.name()];
        docker(&login).await?;
        docker(&["--config", &config, "push", "--quiet", &image]).await?;
        self.forget(&image).await?;
        Ok(image)
    }

    /// Brings an image to the engine, behind Berth's back.
    ///
    /// # Errors
    /// What engine or registry say.
    pub async fn pull(&self, image: &str) -> Result<()> {
        let config = self.folder.path().display().to_string();
        docker(&["--config", &config, "pull", "--quiet", image]).await.map(|_| ())
    }

    /// Takes an image from the engine.
    ///
    /// # Errors
    /// What the engine says.
    pub async fn forget(&self, image: &str) -> Result<()> {
        let options = RemoveImageOptionsBuilder::new().force(true).build();
        match self.engine.docker().remove_image(image, Some(options), None).await {
            Ok(_) => Ok(()),
            Err(bollard::errors::Error::DockerResponseServerError { status_code: 404, .. }) => Ok(()),
            Err(why) => Err(why.into()),
        }
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        for image in self.images.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            // It may be gone already.
            let _ = std::process::Command::new("docker").args(["rmi", "--force", &image]).output();
        }
    }
}

/// The engine's own command line; what it prints.
async fn docker(arguments: &[&str]) -> Result<String> {
    let done = Command::new("docker").args(arguments).stdin(Stdio::null()).output().await?;
    let said = String::from_utf8_lossy(&done.stderr);
    ensure!(done.status.success(), "docker {}: {said}", arguments.first().unwrap_or(&""));
    Ok(String::from_utf8(done.stdout)?.trim().to_owned())
}

async fn accept(listener: TcpListener, door: Arc<Door>) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let door = Arc::clone(&door);
        let service = service_fn(move |request| {
            let door = Arc::clone(&door);
            async move { Ok::<_, Infallible>(door.answer(request).await) }
        });
        connections.spawn(async move {
            // A client that goes away in the middle, and a connection that is cut, end here.
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

impl Door {
    fn fault(&self) -> Option<Fault> {
        let mut fault = self.fault.lock().unwrap_or_else(PoisonError::into_inner);
        let now = *fault;
        if let Some(Fault::Passing(status, times)) = now {
            *fault = (times > 1).then(|| Fault::Passing(status, times - 1));
        }
        now
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        let path = request.uri().path().to_owned();
        if request.method() == hyper::Method::HEAD && path.contains("/manifests/") {
            *self.pulls.lock().unwrap_or_else(PoisonError::into_inner).entry(path.clone()).or_default() += 1;
        }
        let fault = self.fault();
        if let Some(Fault::Status(status) | Fault::Passing(status, _)) = fault {
            let code = match status {
                401 => "UNAUTHORIZED",
                403 => "DENIED",
                404 => "MANIFEST_UNKNOWN",
                429 => "TOOMANYREQUESTS",
                _ => "UNAVAILABLE",
            };
            let message = code.to_lowercase();
            let text = serde_json::json!({ "errors": [{ "code": code, "message": message }] });
            return told(status, &text.to_string());
        }
        if fault == Some(Fault::Silence) {
            std::future::pending::<()>().await;
        }
        match self.pass(request).await {
            Ok((head, body)) => {
                let blob = path.contains("/blobs/") && head.status == StatusCode::OK && !body.is_empty();
                let body = if blob { spoiled(body, fault) } else { whole(body) };
                Response::from_parts(head, body)
            }
            Err(why) => told(502, &why.to_string()),
        }
    }

    async fn pass(&self, request: Request<Incoming>) -> Result<(hyper::http::response::Parts, Bytes)> {
        let (mut head, body) = request.into_parts();
        let path = head.uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
        head.uri = format!("http://{}{path}", self.upstream).parse()?;
        let body = body.collect().await?.to_bytes();
        let response = self.client.request(Request::from_parts(head, Full::new(body))).await?;
        let (head, body) = response.into_parts();
        Ok((head, body.collect().await?.to_bytes()))
    }
}

fn whole(body: Bytes) -> Body {
    Full::new(body).map_err(|never| match never {}).boxed()
}

fn told(status: u16, text: &str) -> Response<Body> {
    let mut response = Response::new(whole(Bytes::from(text.to_owned())));
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or_default();
    response
}

/// A blob as the fault has it.
fn spoiled(body: Bytes, fault: Option<Fault>) -> Body {
    let half = body.slice(..body.len() / 2);
    let first = futures_util::stream::iter([Ok(Frame::data(half))]);
    match fault {
        Some(Fault::Corrupt) => whole(body.iter().map(|byte| byte ^ 1).collect()),
        Some(Fault::Cut) => {
            let end = futures_util::stream::iter([Err(std::io::Error::other("cut"))]);
            BodyExt::boxed(StreamBody::new(futures_util::StreamExt::chain(first, end)))
        }
        Some(Fault::Stall) => {
            let silence = futures_util::stream::once(async {
                tokio::time::sleep(Duration::from_secs(3600)).await;
                Err(std::io::Error::other("silence"))
            });
            BodyExt::boxed(StreamBody::new(futures_util::StreamExt::chain(first, silence)))
        }
        _ => whole(body),
    }
}
