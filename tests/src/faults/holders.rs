//! The containers that hold namespaces, watched.

use std::time::Duration;

use berth_agent::runtime::RuntimeError;
use berth_agent::runtime::holder::{Holder, Holders};
use berth_core::ids::EngineId;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;

use super::Watched;
use super::points::HOLDERS;

type Answer<'a, T> = BoxFuture<'a, Result<T, RuntimeError>>;

impl Watched<dyn Holders> {
    fn call<'a, T: Send + 'a>(&'a self, effect: &'static str, call: Answer<'a, T>) -> Answer<'a, T> {
        self.effects.around(effect, RuntimeError::Unavailable, call).boxed()
    }
}

impl Holders for Watched<dyn Holders> {
    fn have_image<'a>(
        &'a self,
        reference: &'a str,
        archive: &'a (dyn Fn() -> Vec<u8> + Send + Sync),
    ) -> Answer<'a, ()> {
        self.call(HOLDERS[0], self.inner.have_image(reference, archive))
    }

    fn hold<'a>(
        &'a self,
        name: &'a str,
        image: &'a str,
        hostname: &'a str,
        shares_ipc: bool,
    ) -> Answer<'a, EngineId> {
        self.call(HOLDERS[1], self.inner.hold(name, image, hostname, shares_ipc))
    }

    fn rename<'a>(&'a self, id: &'a EngineId, name: &'a str) -> Answer<'a, ()> {
        self.call(HOLDERS[2], self.inner.rename(id, name))
    }

    fn pid<'a>(&'a self, id: &'a EngineId) -> Answer<'a, Option<u32>> {
        self.call(HOLDERS[3], self.inner.pid(id))
    }

    fn holders(&self) -> Answer<'_, Vec<Holder>> {
        self.call(HOLDERS[4], self.inner.holders())
    }

    fn quiet(&self, pause: Duration) -> BoxFuture<'_, ()> {
        self.inner.quiet(pause)
    }

    fn release<'a>(&'a self, id: &'a EngineId) -> Answer<'a, ()> {
        self.call(HOLDERS[5], self.inner.release(id))
    }
}
