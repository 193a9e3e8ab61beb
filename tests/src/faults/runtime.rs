//! The container engine, watched.

use berth_agent::runtime::{
    CreateRequest, Details, EngineEvent, EngineInfo, Exec, ExecRequest, ImageFacts, Listed, LocalImage,
    LogStream, PullRequest, Runtime, RuntimeError,
};
use berth_core::ids::EngineId;
use berth_core::task::{Exit, Fact};
use berth_core::units::{Millis, Timestamp};
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;

use super::Watched;
use super::points::RUNTIME;

type Answer<'a, T> = BoxFuture<'a, Result<T, RuntimeError>>;

impl Watched<dyn Runtime> {
    fn call<'a, T: Send + 'a>(&'a self, effect: &'static str, call: Answer<'a, T>) -> Answer<'a, T> {
        self.effects.around(effect, RuntimeError::Unavailable, call).boxed()
    }
}

impl Runtime for Watched<dyn Runtime> {
    fn info(&self) -> Answer<'_, EngineInfo> {
        self.call(RUNTIME[0], self.inner.info())
    }

    fn create(&self, request: CreateRequest) -> Answer<'_, EngineId> {
        self.call(RUNTIME[1], self.inner.create(request))
    }

    fn start<'a>(&'a self, id: &'a EngineId) -> Answer<'a, ()> {
        self.call(RUNTIME[2], self.inner.start(id))
    }

    fn stop<'a>(&'a self, id: &'a EngineId, grace: Millis) -> Answer<'a, Option<Exit>> {
        self.call(RUNTIME[3], self.inner.stop(id, grace))
    }

    fn kill<'a>(&'a self, id: &'a EngineId) -> Answer<'a, ()> {
        self.call(RUNTIME[4], self.inner.kill(id))
    }

    fn remove<'a>(&'a self, id: &'a EngineId) -> Answer<'a, ()> {
        self.call(RUNTIME[5], self.inner.remove(id))
    }

    fn remove_volume<'a>(&'a self, name: &'a str) -> Answer<'a, ()> {
        self.call(RUNTIME[6], self.inner.remove_volume(name))
    }

    fn inspect<'a>(&'a self, id: &'a EngineId) -> Answer<'a, Fact> {
        self.call(RUNTIME[7], self.inner.inspect(id))
    }

    fn details<'a>(&'a self, id: &'a EngineId) -> Answer<'a, Option<Details>> {
        self.call(RUNTIME[8], self.inner.details(id))
    }

    fn logs<'a>(&'a self, id: &'a EngineId, tail: Option<u32>, follow: bool) -> Answer<'a, LogStream> {
        self.call(RUNTIME[9], self.inner.logs(id, tail, follow))
    }

    // A program in a container is an operator's matter, and leaves nothing of the agent's behind.
    fn exec<'a>(&'a self, id: &'a EngineId, request: ExecRequest) -> Answer<'a, Exec> {
        self.inner.exec(id, request)
    }

    fn exec_resize<'a>(&'a self, exec: &'a str, columns: u16, rows: u16) -> Answer<'a, ()> {
        self.inner.exec_resize(exec, columns, rows)
    }

    fn exec_exit<'a>(&'a self, exec: &'a str) -> Answer<'a, Option<i32>> {
        self.inner.exec_exit(exec)
    }

    fn list(&self) -> Answer<'_, Vec<Listed>> {
        self.call(RUNTIME[10], self.inner.list())
    }

    fn events(
        &self,
        since_ns: Option<i64>,
    ) -> Answer<'_, BoxStream<'static, Result<EngineEvent, RuntimeError>>> {
        self.call(RUNTIME[11], self.inner.events(since_ns))
    }

    fn image<'a>(&'a self, reference: &'a str) -> Answer<'a, Option<ImageFacts>> {
        self.call(RUNTIME[12], self.inner.image(reference))
    }

    fn images(&self) -> Answer<'_, Vec<LocalImage>> {
        self.call(RUNTIME[13], self.inner.images())
    }

    fn remove_image<'a>(&'a self, reference: &'a str) -> Answer<'a, bool> {
        self.call(RUNTIME[14], self.inner.remove_image(reference))
    }

    fn tag<'a>(&'a self, from: &'a str, to: &'a str) -> Answer<'a, ()> {
        self.call(RUNTIME[15], self.inner.tag(from, to))
    }

    fn strangers(&self) -> Answer<'_, Vec<(EngineId, Timestamp)>> {
        self.call(RUNTIME[16], self.inner.strangers())
    }

    fn pull<'a>(&'a self, request: PullRequest<'a>) -> Answer<'a, ImageFacts> {
        self.call(RUNTIME[17], self.inner.pull(request))
    }

    fn now(&self) -> Timestamp {
        self.inner.now()
    }
}
