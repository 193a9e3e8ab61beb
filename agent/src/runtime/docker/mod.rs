//! Docker, and whatever else speaks its API, as a container engine.

mod client;
mod convert;
mod create;
mod details;
mod events;
mod exec;
mod holder;
mod image;
mod logs;
mod pace;
mod plugins;
mod transport;
mod volumes;

use std::sync::Arc;

use berth_core::ids::EngineId;
use berth_core::task::{Exit, Fact};
use berth_core::units::{Millis, Timestamp};
use bollard::query_parameters::{
    CreateContainerOptions, KillContainerOptions, RemoveContainerOptions, StartContainerOptions,
    StopContainerOptions,
};
use futures_util::future::{BoxFuture, FutureExt};
use futures_util::stream::{BoxStream, StreamExt, TryStreamExt};
use hyper::Method;

use self::client::{Answer, CallError, Connector, Link, clean};
use self::convert::{Info, Inspected, Summary};
use self::pace::Pace;
pub use self::transport::InvalidAddress;
use self::transport::{Address, escape};
use super::{
    CreateRequest, Details, EngineEvent, EngineEventKind, EngineInfo, Exec, ExecRequest, ImageFacts, Listed,
    LocalImage, LogStream, PullRequest, Runtime, RuntimeError, labels,
};

/// How to reach the engine, and how hard to drive it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DockerConfig {
    /// `unix:///path` or `tcp://host:port`.
    pub host: String,
    /// The agent's namespace: containers of others are neither listed nor heard of.
    pub namespace: Option<String>,
    /// The agent's own container, where it runs in one: it is never taken for a task's.
    pub own: Option<EngineId>,
    /// The runtime that containers with GPUs go by; without it the engine itself is asked for the devices.
    pub gpu_runtime: Option<String>,
    /// Most containers that are made or started at once. Two cores do most with 16.
    pub launches: usize,
    /// Most stops, kills and removals that begin at once.
    pub stops: usize,
}

impl Default for DockerConfig {
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let at_once = 8 * cores;
        Self {
            host: "unix:///var/run/docker.sock".to_owned(),
            namespace: None,
            own: None,
            gpu_runtime: None,
            launches: at_once,
            stops: at_once,
        }
    }
}

/// The engine behind a Docker socket.
pub struct Docker {
    connector: Arc<Connector>,
    namespace: Option<String>,
    own: Option<EngineId>,
    gpu_runtime: Option<String>,
    pace: Arc<Pace>,
}

impl std::fmt::Debug for Docker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Docker").field("namespace", &self.namespace).finish_non_exhaustive()
    }
}

impl Docker {
    /// An engine that is connected to when it is first needed: it need not be there yet.
    ///
    /// # Errors
    /// [`InvalidAddress`] when `config.host` cannot be an engine's address.
    pub fn new(config: DockerConfig) -> Result<Self, InvalidAddress> {
        let address = Address::parse(&config.host)?;
        Ok(Self {
            connector: Arc::new(Connector::new(address, config.host)),
            namespace: config.namespace,
            own: config.own,
            gpu_runtime: config.gpu_runtime,
            pace: Arc::new(Pace::new(config.launches, config.stops)),
        })
    }

    fn is_own(&self, summary: &Summary) -> bool {
        self.own.as_ref().is_some_and(|own| own.as_str() == summary.id)
    }

    /// The labels that all containers of ours have.
    fn our_labels(&self) -> Vec<String> {
        let mut ours = vec![labels::TASK_ARN.to_owned()];
        ours.extend(self.namespace.iter().map(|namespace| format!("{}={namespace}", labels::AGENT)));
        ours
    }

    async fn inspected(&self, link: &Arc<Link>, id_or_name: &str) -> Result<Option<Inspected>, RuntimeError> {
        match link.get::<Inspected>(&format!("/containers/{}/json", escape(id_or_name, ""))).await {
            Ok(inspected) => Ok(Some(inspected)),
            Err(CallError::Answer(Answer { status: 404, .. })) => Ok(None),
            Err(error) => Err(self.connector.failed(link, error).await),
        }
    }

    async fn make(&self, request: CreateRequest) -> Result<EngineId, RuntimeError> {
        let body = create::body(&request, self.namespace.as_deref(), self.gpu_runtime.as_deref())?;
        volumes::must_be_there(&self.connector, &request).await?;
        let link = self.connector.link().await?;
        // Twice at most: the container that has the name may be on its way out.
        for last in [false, true] {
            let options = CreateContainerOptions { name: Some(request.name.clone()), ..Default::default() };
            let id =
                match link.api.create_container(Some(options), body.clone()).await.map_err(CallError::from) {
                    Ok(created) => created.id,
                    Err(CallError::Answer(answer)) if is_name_taken(&answer) => {
                        match self.inspected(&link, &request.name).await? {
                            Some(found) => {
                                create::adopt(&request, &found)?;
                                found.id
                            }
                            None if last => return Err(RuntimeError::Refused(clean(&answer.message))),
                            None => continue,
                        }
                    }
                    Err(CallError::Answer(answer)) if is_image_missing(&answer) => {
                        return Err(RuntimeError::NoSuchImage(request.spec().image.clone()));
                    }
                    Err(error) => return Err(self.connector.failed(&link, error).await),
                };
            return EngineId::new(&id).map_err(|error| RuntimeError::Refused(error.to_string()));
        }
        Err(RuntimeError::Refused(format!("the name {} is not to be had", request.name)))
    }

    async fn begin(&self, id: &EngineId) -> Result<(), RuntimeError> {
        let link = self.connector.link().await?;
        match link
            .api
            .start_container(id.as_str(), None::<StartContainerOptions>)
            .await
            .map_err(CallError::from)
        {
            Ok(()) => Ok(()),
            Err(CallError::Answer(answer)) if is_container_missing(&answer) => {
                Err(RuntimeError::NoSuchContainer(id.to_string()))
            }
            Err(CallError::Answer(answer)) if is_port_taken(&answer.message) => {
                Err(RuntimeError::PortTaken(clean(&answer.message)))
            }
            Err(error) => Err(self.connector.failed(&link, error).await),
        }
    }

    async fn end(&self, id: &EngineId, grace: Millis) -> Result<(), RuntimeError> {
        let link = self.connector.link().await?;
        let seconds = i32::try_from(grace.0.div_ceil(1000)).unwrap_or(i32::MAX);
        let options = StopContainerOptions { signal: None, t: Some(seconds) };
        match link.api.stop_container(id.as_str(), Some(options)).await.map_err(CallError::from) {
            Ok(()) => Ok(()),
            Err(CallError::Answer(answer)) if is_container_missing(&answer) => Ok(()),
            Err(error) => Err(self.connector.failed(&link, error).await),
        }
    }

    async fn cut(&self, id: &EngineId) -> Result<(), RuntimeError> {
        let link = self.connector.link().await?;
        let options = KillContainerOptions { signal: "SIGKILL".to_owned() };
        match link.api.kill_container(id.as_str(), Some(options)).await.map_err(CallError::from) {
            Ok(()) => Ok(()),
            Err(CallError::Answer(answer)) if is_container_missing(&answer) || is_not_running(&answer) => {
                Ok(())
            }
            Err(error) => Err(self.connector.failed(&link, error).await),
        }
    }

    async fn discard(&self, id: &EngineId) -> Result<(), RuntimeError> {
        let link = self.connector.link().await?;
        let options = RemoveContainerOptions { v: true, force: false, link: false };
        match link.api.remove_container(id.as_str(), Some(options)).await.map_err(CallError::from) {
            Ok(()) => Ok(()),
            Err(CallError::Answer(answer)) if is_container_missing(&answer) => Ok(()),
            // Somebody else removes it already: wait for that.
            Err(CallError::Answer(answer))
                if answer.status == 409 && answer.message.contains("in progress") =>
            {
                let path = format!("/containers/{}/wait?condition=removed", escape(id.as_str(), ""));
                match link.request(Method::POST, &path).await {
                    Ok(response) => {
                        // The answer's body comes when the container is gone.
                        let _ = http_body_util::BodyExt::collect(response.into_body()).await;
                        Ok(())
                    }
                    Err(CallError::Answer(answer)) if is_container_missing(&answer) => Ok(()),
                    Err(error) => Err(self.connector.failed(&link, error).await),
                }
            }
            Err(error) => Err(self.connector.failed(&link, error).await),
        }
    }

    async fn ask(&self) -> Result<EngineInfo, RuntimeError> {
        let link = self.connector.link().await?;
        let info: Info = match link.get("/info").await {
            Ok(info) => info,
            Err(error) => return Err(self.connector.failed(&link, error).await),
        };
        let mut volume_drivers = plugins::volume_drivers(&link, self.connector.address()).await;
        volume_drivers.extend(info.plugins.volume);
        Ok(EngineInfo {
            version: info.server_version,
            root: info.docker_root_dir,
            api: link.version,
            cgroup_version: info.cgroup_version.parse().unwrap_or(1),
            cgroup_systemd: info.cgroup_driver == "systemd",
            log_drivers: info.plugins.log,
            volume_drivers: volume_drivers.into_iter().collect(),
            security_options: info.security_options,
            live_restore: info.live_restore_enabled,
        })
    }

    async fn listing(&self) -> Result<Vec<Listed>, RuntimeError> {
        let link = self.connector.link().await?;
        let filters = serde_json::json!({ "label": self.our_labels() }).to_string();
        let summaries: Vec<Summary> =
            match link.get(&format!("/containers/json?all=1&filters={}", escape(&filters, ""))).await {
                Ok(summaries) => summaries,
                Err(error) => return Err(self.connector.failed(&link, error).await),
            };
        let known = |summary: Summary| {
            let id = summary.id.clone();
            let listed = summary.listed();
            if listed.is_none() {
                tracing::warn!(container = %id, "a container has a task's labels, but not such as we write: left alone");
            }
            listed
        };
        Ok(summaries.into_iter().filter(|summary| !self.is_own(summary)).filter_map(known).collect())
    }

    async fn of_others(&self) -> Result<Vec<(EngineId, Timestamp)>, RuntimeError> {
        let link = self.connector.link().await?;
        let stopped = serde_json::json!({ "status": ["created", "exited", "dead"] }).to_string();
        let path = format!("/containers/json?all=1&filters={}", escape(&stopped, ""));
        let summaries: Vec<Summary> = match link.get(&path).await {
            Ok(summaries) => summaries,
            Err(error) => return Err(self.connector.failed(&link, error).await),
        };
        let mut found = Vec::new();
        for summary in summaries.into_iter().filter(|s| is_strange(s) && !self.is_own(s)) {
            let Ok(id) = EngineId::new(&summary.id) else { continue };
            let since = match self.inspect(&id).await? {
                Fact::Created { .. } => Some(Timestamp(summary.created.saturating_mul(1000))),
                Fact::Exited { exit, .. } => exit.finished_at,
                Fact::Running { .. } | Fact::Missing | Fact::Silent { .. } => None,
            };
            found.extend(since.map(|since| (id, since)));
        }
        Ok(found)
    }
}

/// Whether no agent has made it: neither a task's container nor the holder of a task's network. An agent, this
/// one or another that is to be started again, is no stranger either.
fn is_strange(summary: &Summary) -> bool {
    [labels::TASK_ARN, labels::HOLDER, labels::PROGRAM]
        .iter()
        .all(|label| !summary.labels.contains_key(*label))
}

fn mentions(answer: &Answer, text: &str) -> bool {
    answer.message.to_ascii_lowercase().contains(text)
}

fn is_container_missing(answer: &Answer) -> bool {
    answer.status == 404 && mentions(answer, "no such container")
}

fn is_image_missing(answer: &Answer) -> bool {
    answer.status == 404 && mentions(answer, "no such image")
}

fn is_name_taken(answer: &Answer) -> bool {
    answer.status == 409 && mentions(answer, "name") && mentions(answer, "already in use")
}

fn is_not_running(answer: &Answer) -> bool {
    answer.status == 409 && mentions(answer, "is not running")
}

fn is_port_taken(message: &str) -> bool {
    let message = message.to_ascii_lowercase();
    message.contains("port is already allocated")
        || message.contains("ports are not available")
        || (message.contains("bind") && message.contains("already in use"))
        || (message.contains("listen") && message.contains("already in use"))
}

impl Runtime for Docker {
    fn info(&self) -> BoxFuture<'_, Result<EngineInfo, RuntimeError>> {
        self.ask().boxed()
    }

    fn create(&self, request: CreateRequest) -> BoxFuture<'_, Result<EngineId, RuntimeError>> {
        self.pace.launch(self.make(request)).boxed()
    }

    fn start<'a>(&'a self, id: &'a EngineId) -> BoxFuture<'a, Result<(), RuntimeError>> {
        self.pace.launch(self.begin(id)).boxed()
    }

    fn stop<'a>(
        &'a self,
        id: &'a EngineId,
        grace: Millis,
    ) -> BoxFuture<'a, Result<Option<Exit>, RuntimeError>> {
        async move {
            let (ended, exit) = self.pace.stop(id, self.end(id, grace)).await;
            ended.map(|()| exit)
        }
        .boxed()
    }

    fn kill<'a>(&'a self, id: &'a EngineId) -> BoxFuture<'a, Result<(), RuntimeError>> {
        self.pace.end(self.cut(id)).boxed()
    }

    fn remove<'a>(&'a self, id: &'a EngineId) -> BoxFuture<'a, Result<(), RuntimeError>> {
        self.pace.end(self.discard(id)).boxed()
    }

    fn remove_volume<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<(), RuntimeError>> {
        self.pace.end(volumes::remove(&self.connector, name)).boxed()
    }

    fn inspect<'a>(&'a self, id: &'a EngineId) -> BoxFuture<'a, Result<Fact, RuntimeError>> {
        async move {
            let link = self.connector.link().await?;
            match self.inspected(&link, id.as_str()).await? {
                Some(inspected) => inspected
                    .fact()
                    .ok_or_else(|| RuntimeError::Refused(format!("container {id} has no id any more"))),
                None => Ok(Fact::Missing),
            }
        }
        .boxed()
    }

    fn details<'a>(&'a self, id: &'a EngineId) -> BoxFuture<'a, Result<Option<Details>, RuntimeError>> {
        details::of(&self.connector, id).boxed()
    }

    fn images(&self) -> BoxFuture<'_, Result<Vec<LocalImage>, RuntimeError>> {
        image::all(&self.connector).boxed()
    }

    fn remove_image<'a>(&'a self, reference: &'a str) -> BoxFuture<'a, Result<bool, RuntimeError>> {
        image::remove(&self.connector, reference).boxed()
    }

    fn exec<'a>(
        &'a self,
        id: &'a EngineId,
        request: ExecRequest,
    ) -> BoxFuture<'a, Result<Exec, RuntimeError>> {
        exec::start(&self.connector, id, request).boxed()
    }

    fn exec_resize<'a>(
        &'a self,
        exec: &'a str,
        columns: u16,
        rows: u16,
    ) -> BoxFuture<'a, Result<(), RuntimeError>> {
        exec::resize(&self.connector, exec, columns, rows).boxed()
    }

    fn exec_exit<'a>(&'a self, exec: &'a str) -> BoxFuture<'a, Result<Option<i32>, RuntimeError>> {
        exec::exit(&self.connector, exec).boxed()
    }

    fn logs<'a>(
        &'a self,
        id: &'a EngineId,
        tail: Option<u32>,
        follow: bool,
    ) -> BoxFuture<'a, Result<LogStream, RuntimeError>> {
        logs::of(&self.connector, id, tail, follow).boxed()
    }

    fn list(&self) -> BoxFuture<'_, Result<Vec<Listed>, RuntimeError>> {
        self.listing().boxed()
    }

    fn events(
        &self,
        since_ns: Option<i64>,
    ) -> BoxFuture<'_, Result<BoxStream<'static, Result<EngineEvent, RuntimeError>>, RuntimeError>> {
        async move {
            let pace = Arc::clone(&self.pace);
            let events = events::open(Arc::clone(&self.connector), &self.our_labels(), since_ns).await?;
            let told = events.inspect_ok(move |event| match event.kind {
                EngineEventKind::Died { exit_code } => pace.died(&event.id, exit_code, event.time()),
                EngineEventKind::OutOfMemory => pace.out_of_memory(&event.id),
                _ => {}
            });
            Ok(told.boxed())
        }
        .boxed()
    }

    fn remembers(&self, event_ns: i64) -> BoxFuture<'_, Result<bool, RuntimeError>> {
        events::remembered(&self.connector, event_ns).boxed()
    }

    fn image<'a>(&'a self, reference: &'a str) -> BoxFuture<'a, Result<Option<ImageFacts>, RuntimeError>> {
        image::find(&self.connector, reference).boxed()
    }

    fn tag<'a>(&'a self, from: &'a str, to: &'a str) -> BoxFuture<'a, Result<(), RuntimeError>> {
        image::tag(&self.connector, from, to).boxed()
    }

    fn strangers(&self) -> BoxFuture<'_, Result<Vec<(EngineId, Timestamp)>, RuntimeError>> {
        self.of_others().boxed()
    }

    fn pull<'a>(&'a self, request: PullRequest<'a>) -> BoxFuture<'a, Result<ImageFacts, RuntimeError>> {
        image::pull(&self.connector, request).boxed()
    }

    fn now(&self) -> Timestamp {
        let now = jiff::Timestamp::now().as_millisecond();
        Timestamp(u64::try_from(now).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_engines_words_for_a_taken_port_are_known() {
        for text in [
            "driver failed programming external connectivity on endpoint x (id): Bind for 0.0.0.0:8080 failed: port is already allocated",
            "driver failed programming external connectivity on endpoint x: Error starting userland proxy: listen tcp4 0.0.0.0:80: bind: address already in use",
            "failed to bind host port for 0.0.0.0:80:172.17.0.2:80/tcp: address already in use",
        ] {
            assert!(is_port_taken(text), "{text}");
        }
        assert!(!is_port_taken("exec: \"bind\": executable file not found in $PATH"));
    }

    #[test]
    fn a_missing_image_is_not_a_missing_container() {
        let answer = |status, message: &str| Answer { status, message: message.to_owned() };
        assert!(is_image_missing(&answer(404, "No such image: nope:latest")));
        assert!(!is_container_missing(&answer(404, "No such image: nope:latest")));
        assert!(is_container_missing(&answer(404, "No such container: c0ffee")));
        assert!(!is_container_missing(&answer(404, "network x not found")));
    }
}
