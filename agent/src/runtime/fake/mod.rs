//! An engine in memory: it behaves like one, and fails on demand. Light enough for hundreds.

mod events;
mod state;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use berth_core::ids::EngineId;
use berth_core::task::{Exit, Fact, Health};
use berth_core::units::{Millis, Protocol, Timestamp};
use futures_util::future::{BoxFuture, FutureExt};
use futures_util::stream::{BoxStream, StreamExt};
use tokio::time::sleep;

use self::state::State;
use super::{
    CreateRequest, Details, EngineEvent, EngineInfo, Exec, ExecRequest, ImageFacts, Listed, LocalImage,
    LogStream, PullRequest, Runtime, RuntimeError, labels,
};

/// A call that can be made to fail or to take its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Call {
    /// [`Runtime::info`].
    Info,
    /// [`Runtime::create`].
    Create,
    /// [`Runtime::start`].
    Start,
    /// [`Runtime::stop`].
    Stop,
    /// [`Runtime::kill`].
    Kill,
    /// [`Runtime::remove`].
    Remove,
    /// [`Runtime::inspect`].
    Inspect,
    /// [`Runtime::list`].
    List,
    /// [`Runtime::events`].
    Events,
    /// [`Runtime::image`].
    Image,
    /// [`Runtime::pull`].
    Pull,
}

/// How the containers of an image behave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Behaviour {
    /// After how long it ends by itself, and with what code.
    pub exits: Option<(Millis, i32)>,
    /// Whether the kernel is what ends it, for want of memory.
    pub oom: bool,
    /// Whether it takes no notice of the stop signal.
    pub ignores_stop: bool,
    /// How long it takes to stop.
    pub stops_in: Millis,
    /// The code that it stops with.
    pub stop_code: i32,
    /// What its health check says, and after how long. Only of containers that have one.
    pub health: Option<(Millis, Health)>,
}

impl Default for Behaviour {
    fn default() -> Self {
        Self {
            exits: None,
            oom: false,
            ignores_stop: false,
            stops_in: Millis(0),
            stop_code: 143,
            health: None,
        }
    }
}

/// An engine in memory; clones share it.
#[derive(Debug, Clone)]
pub struct FakeRuntime {
    state: Arc<Mutex<State>>,
    namespace: Option<String>,
}

impl Default for FakeRuntime {
    fn default() -> Self {
        Self::new()
    }
}

/// The exit code of a container that was killed.
const KILLED: i32 = 137;

impl FakeRuntime {
    /// An engine that has every image and no container.
    #[must_use]
    pub fn new() -> Self {
        let now = jiff::Timestamp::now().as_millisecond();
        Self::at(Timestamp(u64::try_from(now).unwrap_or_default()))
    }

    /// The same, with a clock that begins at `start` and goes as the runtime's timers go.
    #[must_use]
    pub fn at(start: Timestamp) -> Self {
        Self { state: Arc::new(Mutex::new(State::new(start))), namespace: None }
    }

    /// The same engine as an agent of that namespace sees it.
    #[must_use]
    pub fn in_namespace(&self, namespace: &str) -> Self {
        Self { state: Arc::clone(&self.state), namespace: Some(namespace.to_owned()) }
    }

    /// Containers of `image` behave so from their next start on.
    pub fn behave(&self, image: &str, behaviour: Behaviour) {
        self.state().behaviours.insert(image.to_owned(), behaviour);
    }

    /// The next such call fails, without effect.
    pub fn fail_next(&self, call: Call, error: RuntimeError) {
        self.state().failures.push_back((call, error));
    }

    /// The next such call has its effect, but its answer is lost.
    pub fn lose_next_answer(&self, call: Call) {
        self.state().lost_answers.push_back(call);
    }

    /// Such calls take this long from now on.
    pub fn delay(&self, call: Call, by: Millis) {
        self.state().delays.insert(call, by);
    }

    /// The engine goes away: calls fail, event streams end. Containers live on.
    pub fn down(&self) {
        self.state().go_down();
    }

    /// The engine is back.
    pub fn up(&self) {
        self.state().down = false;
    }

    /// Whether events are lost from now on.
    pub fn lose_events(&self, lose: bool) {
        self.state().lose_events = lose;
    }

    /// The host's clock is put forward by so many milliseconds, or back where that is negative.
    pub fn put_clock(&self, by: i64) {
        self.state().put_clock(by);
    }

    /// The image is not here, nor in any registry.
    pub fn no_image(&self, reference: &str) {
        self.state().images.insert(reference.to_owned(), state::ImagePlace::Nowhere);
    }

    /// The image is not here, but a pull brings it.
    pub fn remote_image(&self, reference: &str) {
        self.state().images.insert(reference.to_owned(), state::ImagePlace::Registry);
    }

    /// Somebody else on the host takes a port.
    pub fn occupy(&self, port: u16, protocol: Protocol) {
        self.state().occupied.insert((protocol, port));
    }

    /// Somebody else gives a port back.
    pub fn vacate(&self, port: u16, protocol: Protocol) {
        self.state().occupied.remove(&(protocol, port));
    }

    /// A container ends by itself.
    pub fn exit(&self, id: &EngineId, code: i32) {
        let mut state = self.state();
        let now = state.clock();
        state.finish(id, code, false, now);
    }

    /// The kernel kills a container for want of memory.
    pub fn oom(&self, id: &EngineId) {
        let mut state = self.state();
        let now = state.clock();
        state.finish(id, KILLED, true, now);
    }

    /// A container's health check says something.
    pub fn health(&self, id: &EngineId, health: Health) {
        let mut state = self.state();
        let now = state.clock();
        state.set_health(id, health, now);
    }

    /// Somebody else removes a container, running or not.
    pub fn remove_behind_your_back(&self, id: &EngineId) {
        let mut state = self.state();
        let now = state.clock();
        state.finish(id, KILLED, false, now);
        state.remove(id, now);
    }

    /// The id of a container by its engine name.
    #[must_use]
    pub fn id_of(&self, name: &str) -> Option<EngineId> {
        self.state().names.get(name).cloned()
    }

    /// All containers: their requests and what is true of them.
    #[must_use]
    pub fn containers(&self) -> Vec<(CreateRequest, Fact)> {
        let state = self.state();
        state
            .containers
            .iter()
            .map(|(id, container)| (container.request.clone(), container.fact(id)))
            .collect()
    }

    /// How often a container was started, by its engine name; also of those that are gone.
    #[must_use]
    pub fn starts(&self) -> BTreeMap<String, u32> {
        self.state().starts.clone()
    }

    /// How often a call was made.
    #[must_use]
    pub fn calls(&self, call: Call) -> usize {
        self.state().calls.get(&call).copied().unwrap_or_default()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A test that panicked elsewhere leaves plain data behind: still good to read.
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let now = state.clock();
        state.settle(now);
        state
    }

    /// One call: counted, delayed, failed on demand, then done.
    async fn call<T>(
        &self,
        call: Call,
        act: impl FnOnce(&mut State, Timestamp) -> Result<T, RuntimeError>,
    ) -> Result<T, RuntimeError> {
        let delay = {
            let mut state = self.state();
            *state.calls.entry(call).or_default() += 1;
            state.delays.get(&call).copied()
        };
        if let Some(by) = delay {
            sleep(by.as_duration()).await;
        }
        let mut state = self.state();
        if state.down {
            return Err(away());
        }
        if let Some(error) = state.planned_failure(call) {
            return Err(error);
        }
        let now = state.clock();
        let output = act(&mut state, now)?;
        if state.answer_is_lost(call) {
            return Err(RuntimeError::Unavailable("the connection was cut before the answer".to_owned()));
        }
        Ok(output)
    }

    fn is_ours(&self, request: &CreateRequest) -> bool {
        self.namespace.as_ref().is_none_or(|ours| request.labels.get(labels::AGENT) == Some(ours))
    }
}

fn away() -> RuntimeError {
    RuntimeError::Unavailable("connection refused".to_owned())
}

impl Runtime for FakeRuntime {
    fn info(&self) -> BoxFuture<'_, Result<EngineInfo, RuntimeError>> {
        self.call(Call::Info, |_, _| {
            Ok(EngineInfo {
                root: String::new(),
                version: "20.10.24".to_owned(),
                api: (1, 41),
                cgroup_version: 1,
                cgroup_systemd: false,
                log_drivers: vec!["json-file".to_owned()],
                volume_drivers: vec!["local".to_owned()],
                security_options: Vec::new(),
                live_restore: false,
            })
        })
        .boxed()
    }

    fn create(&self, mut request: CreateRequest) -> BoxFuture<'_, Result<EngineId, RuntimeError>> {
        if let Some(namespace) = &self.namespace {
            request.labels.insert(labels::AGENT.to_owned(), namespace.clone());
        }
        self.call(Call::Create, move |state, _| state.create(request)).boxed()
    }

    fn start<'a>(&'a self, id: &'a EngineId) -> BoxFuture<'a, Result<(), RuntimeError>> {
        self.call(Call::Start, |state, now| state.start(id, now)).boxed()
    }

    fn stop<'a>(
        &'a self,
        id: &'a EngineId,
        grace: Millis,
    ) -> BoxFuture<'a, Result<Option<Exit>, RuntimeError>> {
        async move {
            // The end is planned at once: it comes even if nobody waits for the answer.
            let wait = self.call(Call::Stop, |state, now| Ok(state.plan_stop(id, grace, now))).await?;
            sleep(wait.as_duration()).await;
            if self.state().down { Err(away()) } else { Ok(None) }
        }
        .boxed()
    }

    fn kill<'a>(&'a self, id: &'a EngineId) -> BoxFuture<'a, Result<(), RuntimeError>> {
        self.call(Call::Kill, move |state, now| {
            let id = &state.resolve(id);
            state.finish(id, KILLED, false, now);
            Ok(())
        })
        .boxed()
    }

    fn remove<'a>(&'a self, id: &'a EngineId) -> BoxFuture<'a, Result<(), RuntimeError>> {
        self.call(Call::Remove, move |state, now| {
            let id = &state.resolve(id);
            if state.is_running(id) {
                return Err(RuntimeError::Refused(format!("You cannot remove a running container {id}")));
            }
            state.remove(id, now);
            Ok(())
        })
        .boxed()
    }

    fn remove_volume<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<(), RuntimeError>> {
        // There are none here.
        self.call(Call::Remove, |_, _| Ok(())).boxed()
    }

    fn inspect<'a>(&'a self, id: &'a EngineId) -> BoxFuture<'a, Result<Fact, RuntimeError>> {
        self.call(Call::Inspect, |state, _| {
            let id = &state.resolve(id);
            Ok(state.containers.get(id).map_or(Fact::Missing, |container| container.fact(id)))
        })
        .boxed()
    }

    fn details<'a>(&'a self, id: &'a EngineId) -> BoxFuture<'a, Result<Option<Details>, RuntimeError>> {
        self.call(Call::Inspect, |state, _| {
            Ok(state
                .containers
                .get(id)
                .map(|container| Details { name: container.request.name.clone(), ..Details::default() }))
        })
        .boxed()
    }

    fn images(&self) -> BoxFuture<'_, Result<Vec<LocalImage>, RuntimeError>> {
        self.call(Call::Image, |state, _| Ok(state.local_images())).boxed()
    }

    fn remove_image<'a>(&'a self, reference: &'a str) -> BoxFuture<'a, Result<bool, RuntimeError>> {
        self.call(Call::Image, |state, _| state.remove_image(reference)).boxed()
    }

    fn exec<'a>(&'a self, id: &'a EngineId, _: ExecRequest) -> BoxFuture<'a, Result<Exec, RuntimeError>> {
        // There are no programs here.
        self.call(Call::Inspect, move |_, _| Err(RuntimeError::NoSuchContainer(id.to_string()))).boxed()
    }

    fn exec_resize<'a>(&'a self, _: &'a str, _: u16, _: u16) -> BoxFuture<'a, Result<(), RuntimeError>> {
        self.call(Call::Inspect, |_, _| Ok(())).boxed()
    }

    fn exec_exit<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<Option<i32>, RuntimeError>> {
        self.call(Call::Inspect, |_, _| Ok(None)).boxed()
    }

    fn logs<'a>(
        &'a self,
        _: &'a EngineId,
        _: Option<u32>,
        _: bool,
    ) -> BoxFuture<'a, Result<LogStream, RuntimeError>> {
        // Nobody says anything here.
        self.call(Call::Inspect, |_, _| Ok(futures_util::stream::empty().boxed())).boxed()
    }

    fn list(&self) -> BoxFuture<'_, Result<Vec<Listed>, RuntimeError>> {
        self.call(Call::List, |state, _| {
            let ours = state.containers.iter().filter(|(_, container)| self.is_ours(&container.request));
            Ok(ours.map(|(id, container)| container.listed(id)).collect())
        })
        .boxed()
    }

    fn events(
        &self,
        since_ns: Option<i64>,
    ) -> BoxFuture<'_, Result<BoxStream<'static, Result<EngineEvent, RuntimeError>>, RuntimeError>> {
        async move {
            let subscription = self.call(Call::Events, |state, _| Ok(state.subscribe(since_ns))).await?;
            Ok(events::stream(Arc::clone(&self.state), subscription, self.namespace.clone()))
        }
        .boxed()
    }

    fn image<'a>(&'a self, reference: &'a str) -> BoxFuture<'a, Result<Option<ImageFacts>, RuntimeError>> {
        self.call(Call::Image, |state, _| Ok(state.image(reference))).boxed()
    }

    fn tag<'a>(&'a self, _: &'a str, _: &'a str) -> BoxFuture<'a, Result<(), RuntimeError>> {
        self.call(Call::Image, |_, _| Ok(())).boxed()
    }

    fn strangers(&self) -> BoxFuture<'_, Result<Vec<(EngineId, Timestamp)>, RuntimeError>> {
        // Nobody else uses this engine.
        self.call(Call::List, |_, _| Ok(Vec::new())).boxed()
    }

    fn pull<'a>(&'a self, request: PullRequest<'a>) -> BoxFuture<'a, Result<ImageFacts, RuntimeError>> {
        self.call(Call::Pull, move |state, _| state.pull(request.reference)).boxed()
    }

    fn now(&self) -> Timestamp {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).clock()
    }
}
