//! A volume plug-in for Docker (its documentation, "Docker volume plugins"): folders of the test, and calls that
//! hang for as long as the test says so.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::eventually;
use crate::expect::PATIENCE;
use crate::own_engine::PLUGINS;

/// A call of the engine's: the method, such as `Mount`, and the volume.
pub type Call = (String, String);

/// A plug-in, on a thread of its own. It ends with its value.
#[derive(Debug)]
pub struct VolumePlugin {
    name: String,
    shared: Arc<Shared>,
    end: CancellationToken,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    folder: TempDir,
    volumes: Mutex<BTreeMap<String, BTreeMap<String, String>>>,
    calls: Mutex<Vec<Call>>,
    hanging: watch::Sender<Option<&'static str>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Asked {
    name: String,
    opts: Option<BTreeMap<String, String>>,
}

/// Has the plug-in answer again when it goes out of scope.
#[derive(Debug)]
pub struct Hanging<'a>(&'a VolumePlugin);

impl Drop for Hanging<'_> {
    fn drop(&mut self) {
        self.0.shared.hanging.send_replace(None);
    }
}

impl VolumePlugin {
    /// Starts a plug-in that the engine of this thread finds under that name.
    ///
    /// # Errors
    /// When its socket cannot be made.
    pub fn start(name: &str) -> Result<Self> {
        let socket = Path::new(PLUGINS).join(name).with_added_extension("sock");
        let listener =
            std::os::unix::net::UnixListener::bind(&socket).with_context(|| socket.display().to_string())?;
        listener.set_nonblocking(true)?;
        let shared = Arc::new(Shared {
            folder: tempfile::Builder::new().prefix("berth-volumes-").tempdir()?,
            volumes: Mutex::default(),
            calls: Mutex::default(),
            hanging: watch::Sender::new(None),
        });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let end = CancellationToken::new();
        let (serving, ending) = (Arc::clone(&shared), end.clone());
        // Its own thread: the engine asks also while the test removes what it made, and waits for that.
        let thread = thread::spawn(move || {
            runtime.block_on(ending.run_until_cancelled(serve(listener, serving)));
            let _ = fs::remove_file(socket);
        });
        Ok(Self { name: name.to_owned(), shared, end, thread: Some(thread) })
    }

    /// Its name as a driver.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Lets all calls of that method hang until the value is dropped.
    #[must_use = "it answers again when this is dropped"]
    pub fn hang(&self, method: &'static str) -> Hanging<'_> {
        self.shared.hanging.send_replace(Some(method));
        Hanging(self)
    }

    /// All calls so far.
    #[must_use]
    pub fn calls(&self) -> Vec<Call> {
        lock(&self.shared.calls).clone()
    }

    /// Waits for a call of that method; the volume.
    ///
    /// # Errors
    /// When none comes.
    pub async fn called(&self, method: &str) -> Result<String> {
        eventually(PATIENCE, format!("{method} is called"), || async {
            Ok(self.calls().into_iter().find_map(|(called, volume)| (called == method).then_some(volume)))
        })
        .await
    }

    /// Its volumes, with the options that they were made with.
    #[must_use]
    pub fn volumes(&self) -> BTreeMap<String, BTreeMap<String, String>> {
        lock(&self.shared.volumes).clone()
    }

    /// Where the files of a volume are.
    #[must_use]
    pub fn folder(&self, volume: &str) -> PathBuf {
        self.shared.folder.path().join(volume)
    }
}

impl Drop for VolumePlugin {
    fn drop(&mut self) {
        self.end.cancel();
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            eprintln!("plug-in {} panicked", self.name);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn serve(listener: std::os::unix::net::UnixListener, shared: Arc<Shared>) {
    let Ok(listener) = UnixListener::from_std(listener) else { return };
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let shared = Arc::clone(&shared);
        let service = service_fn(move |request| answer(Arc::clone(&shared), request));
        connections.spawn(async move {
            // An engine that has lost patience goes away in the middle.
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

#[expect(clippy::disallowed_methods, reason = "it ends with the runtime of the plug-in's thread")]
async fn answer(shared: Arc<Shared>, request: Request<Incoming>) -> Result<Response<Full<Bytes>>> {
    let method = request.uri().path().rsplit('.').next().unwrap_or_default().to_owned();
    let body = request.into_body().collect().await?.to_bytes();
    let asked: Asked = serde_json::from_slice(&body).unwrap_or_default();
    lock(&shared.calls).push((method.clone(), asked.name.clone()));
    // Also when nobody waits for the answer any more, the work is done: on a future of its own.
    let work = tokio::task::spawn(async move {
        let mut hanging = shared.hanging.subscribe();
        // Its sender is in what is shared.
        let _ = hanging.wait_for(|hanging| *hanging != Some(method.as_str())).await;
        shared.perform(&method, asked)
    });
    let (status, answer) = match work.await? {
        Ok(answer) => (200, answer),
        Err(why) => (500, json!({ "Err": why.to_string() })),
    };
    Ok(Response::builder().status(status).body(Full::new(Bytes::from(answer.to_string())))?)
}

impl Shared {
    fn perform(&self, method: &str, asked: Asked) -> Result<Value> {
        let Asked { name, opts } = asked;
        let place = self.folder.path().join(&name);
        let mut volumes = lock(&self.volumes);
        let volume = |name: &String| json!({ "Name": name, "Mountpoint": self.folder.path().join(name) });
        Ok(match method {
            "Activate" => json!({ "Implements": ["VolumeDriver"] }),
            "Capabilities" => json!({ "Capabilities": { "Scope": "local" } }),
            "Create" => {
                fs::create_dir_all(place)?;
                volumes.insert(name, opts.unwrap_or_default());
                json!({})
            }
            "Remove" => {
                volumes.remove(&name).context("no such volume")?;
                fs::remove_dir_all(place)?;
                json!({})
            }
            "List" => json!({ "Volumes": volumes.keys().map(volume).collect::<Vec<_>>() }),
            "Get" => {
                json!({ "Volume": volumes.contains_key(&name).then(|| volume(&name)).context("no such volume")? })
            }
            "Path" | "Mount" => json!({ "Mountpoint": place }),
            _ => json!({}),
        })
    }
}
