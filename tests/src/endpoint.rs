//! The task's endpoint in tests: one link-local address of this host, which the tests that are under way
//! share, and a port for each of their agents.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::net::TcpListener;
use std::process::Stdio;
use std::thread;

use anyhow::{Context, Result, ensure};
use nix::fcntl::{Flock, FlockArg};
use nix::sched::{CloneFlags, setns};
use serde_json::Value;
use tokio::process::Command;
use tokio::sync::oneshot;

use crate::expect::PATIENCE;
use crate::vpc::ip;
use crate::{Cluster, Engine, eventually};

/// The address that containers know.
pub const ADDRESS: &str = "169.254.170.2";

/// A place for one agent's endpoint. The last test that is under way takes the address from the host
/// again, unless the host had it before the first.
#[derive(Debug)]
pub struct Endpoint {
    lock: Option<Flock<File>>,
    port: u16,
}

impl Endpoint {
    /// A place of its own.
    ///
    /// # Errors
    /// When there is none.
    pub fn new() -> Result<Self> {
        let port = TcpListener::bind("0.0.0.0:0")?.local_addr()?.port();
        Self::shared(port)
    }

    /// The place that every container knows without being told, port 80: for one test at a time.
    ///
    /// # Errors
    /// When somebody else listens there.
    pub fn well_known() -> Result<Self> {
        Self::shared(80)
    }

    fn shared(port: u16) -> Result<Self> {
        let lock = Some(lock(FlockArg::LockShared)?);
        // The host's, and no agent's: one that ends must not take it from the others. It may be there already.
        let _ = ip(&["address", "add", &format!("{ADDRESS}/32"), "dev", "lo"]);
        Ok(Self { lock, port })
    }

    /// No place: as long as this is held, no test's agent gives the host the address.
    ///
    /// # Errors
    /// When that cannot be had.
    pub fn of_nobody() -> Result<Self> {
        let lock = Some(lock(FlockArg::LockExclusive)?);
        // Whoever had it last may not have come to that.
        let _ = ip(&["address", "delete", &format!("{ADDRESS}/32"), "dev", "lo"]);
        Ok(Self { lock, port: 80 })
    }

    /// What the agent is to be told.
    #[must_use]
    pub fn address(&self) -> String {
        format!("{ADDRESS}:{}", self.port)
    }
}

fn lock(how: FlockArg) -> Result<Flock<File>> {
    let path = std::env::temp_dir().join("berth-test-endpoint.lock");
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(path)?;
    let locked = Flock::lock(file, how);
    ensure!(locked.is_ok(), "the endpoint's lock cannot be had");
    locked.map_err(|(_, why)| why.into())
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        drop(self.lock.take());
        // Held until the address is gone: whoever comes next shall not take it for the operator's.
        if let Ok(_held) = lock(FlockArg::LockExclusiveNonblock) {
            // It may be gone already, or never have come.
            let _ = ip(&["address", "delete", &format!("{ADDRESS}/32"), "dev", "lo"]);
        }
    }
}

/// The environment of a container's process; none while it still is what makes the container of itself.
///
/// # Errors
/// When the process has ended.
fn environment(pid: i64) -> Result<Option<BTreeMap<String, String>>> {
    let read = fs::read(format!("/proc/{pid}/environ"))?;
    let pairs = read.split(|byte| *byte == 0).filter_map(|pair| {
        let (name, value) = std::str::from_utf8(pair).ok()?.split_once('=')?;
        Some((name.to_owned(), value.to_owned()))
    });
    let environment: BTreeMap<String, String> = pairs.collect();
    let is_runtimes = environment.keys().any(|name| name.starts_with("_LIBCONTAINER_"));
    Ok(Some(environment).filter(|environment| !environment.is_empty() && !is_runtimes))
}

/// A process of a container of this host.
#[derive(Debug)]
pub struct Inside {
    /// Its process id on the host.
    pub pid: i64,
    /// Its environment.
    pub environment: BTreeMap<String, String>,
}

impl Inside {
    /// That of a container, once its task runs.
    ///
    /// # Errors
    /// When it does not run.
    pub async fn of(cluster: &Cluster, task: &str, name: &str) -> Result<Self> {
        cluster.until(task, "RUNNING", PATIENCE).await?;
        Self::now(&cluster.engine, task, name).await
    }

    /// That of a container which runs, or is about to.
    ///
    /// # Errors
    /// When it does not run.
    pub async fn now(engine: &Engine, task: &str, name: &str) -> Result<Self> {
        eventually(PATIENCE, format!("the program of {name} is up"), || async {
            let made = engine.inspect(&engine.id_of(task, name).await?).await?;
            let pid = made.state.and_then(|state| state.pid).filter(|pid| *pid != 0);
            let pid = pid.context("it does not run")?;
            Ok(environment(pid)?.map(|environment| Self { pid, environment }))
        })
        .await
    }

    /// Where it asks about itself.
    ///
    /// # Errors
    /// When it was not told.
    pub fn uri(&self) -> Result<&str> {
        let uri = self.environment.get("ECS_CONTAINER_METADATA_URI_V4");
        Ok(uri.with_context(|| format!("{:?}", self.environment.keys()))?)
    }

    /// What a GET from its network yields: the status and the body.
    ///
    /// # Errors
    /// When nobody answers.
    pub async fn get(&self, url: &str) -> Result<(u16, String)> {
        self.curl(&[], url).await
    }

    /// What a PUT of that body yields.
    ///
    /// # Errors
    /// When nobody answers.
    pub async fn put(&self, url: &str, body: &str) -> Result<(u16, String)> {
        self.curl(&["--request", "PUT", "--header", "Content-Type: application/json", "--data", body], url)
            .await
    }

    /// What a POST of that body yields.
    ///
    /// # Errors
    /// When nobody answers.
    pub async fn post(&self, url: &str, body: &str) -> Result<(u16, String)> {
        self.curl(&["--request", "POST", "--header", "Content-Type: application/json", "--data", body], url)
            .await
    }

    async fn curl(&self, options: &[&str], url: &str) -> Result<(u16, String)> {
        let asked = Command::new("nsenter")
            .args(["--target", &self.pid.to_string(), "--net", "--"])
            .args(["curl", "--silent", "--show-error", "--max-time", "10", "--write-out", "\n%{http_code}"])
            .args(options)
            .arg(url)
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output()
            .await?;
        ensure!(asked.status.success(), "{url}: {}", String::from_utf8_lossy(&asked.stderr));
        let said = String::from_utf8(asked.stdout)?;
        let (body, status) = said.rsplit_once('\n').with_context(|| format!("{url}: {said}"))?;
        Ok((status.parse()?, body.to_owned()))
    }

    /// The host and the path of where it asks about itself.
    ///
    /// # Errors
    /// When it was not told.
    pub fn endpoint(&self) -> Result<(String, String)> {
        let uri = self.uri()?;
        let (host, path) =
            uri.strip_prefix("http://").and_then(|rest| rest.split_once('/')).context("http")?;
        Ok((host.to_owned(), format!("/{path}")))
    }

    /// What something yields that runs on a thread whose network is the container's; threads that it starts
    /// have that network, too.
    ///
    /// # Errors
    /// When the network cannot be entered, or it fails.
    pub async fn run<T: Send + 'static>(
        &self,
        what: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let network = File::open(format!("/proc/{}/ns/net", self.pid))?;
        let (tell, told) = oneshot::channel();
        thread::spawn(move || {
            let entered = setns(network, CloneFlags::CLONE_NEWNET).context("entering a network");
            // A test that has ended wants no answer.
            let _ = tell.send(entered.and_then(|()| what()));
        });
        told.await.context("it panicked")?
    }

    /// What its metadata say under that path.
    ///
    /// # Errors
    /// When they are not told.
    pub async fn json(&self, path: &str) -> Result<Value> {
        let url = format!("{}{path}", self.uri()?);
        let (status, body) = self.get(&url).await?;
        ensure!(status == 200, "{url}: {status} {body}");
        Ok(serde_json::from_str(&body)?)
    }
}
