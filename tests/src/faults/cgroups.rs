//! The cgroups of tasks, watched.

use std::io;

use berth_agent::cgroup::{Bounds, CgroupError, Cgroups, MemoryPast};
use berth_core::ids::TaskArn;
use berth_core::units::CpuUnits;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;

use super::Watched;
use super::points::CGROUPS;

type Answer<'a, T> = BoxFuture<'a, Result<T, CgroupError>>;

impl Watched<dyn Cgroups> {
    fn call<'a, T: Send + 'a>(
        &'a self,
        effect: &'static str,
        task: &'a str,
        call: Answer<'a, T>,
    ) -> Answer<'a, T> {
        let failed = move |why: String| CgroupError {
            task: task.to_owned(),
            what: effect.to_owned(),
            source: io::Error::new(io::ErrorKind::ResourceBusy, why),
        };
        self.effects.around(effect, failed, call).boxed()
    }
}

impl Cgroups for Watched<dyn Cgroups> {
    fn create<'a>(&'a self, task: &'a TaskArn, bounds: Bounds) -> Answer<'a, Option<String>> {
        self.call(CGROUPS[0], task.id(), self.inner.create(task, bounds))
    }

    fn bound<'a>(&'a self, task: &'a TaskArn, cpu: CpuUnits) -> Answer<'a, ()> {
        self.call(CGROUPS[1], task.id(), self.inner.bound(task, cpu))
    }

    fn remove<'a>(&'a self, task: &'a TaskArn) -> Answer<'a, ()> {
        self.call(CGROUPS[2], task.id(), self.inner.remove(task))
    }

    fn kill<'a>(&'a self, task: &'a TaskArn) -> Answer<'a, ()> {
        self.call(CGROUPS[3], task.id(), self.inner.kill(task))
    }

    fn list(&self) -> Answer<'_, Vec<String>> {
        self.call(CGROUPS[4], "*", self.inner.list())
    }

    fn memory<'a>(&'a self, task: &'a TaskArn) -> BoxFuture<'a, MemoryPast> {
        let call = async move { Ok::<_, String>(self.inner.memory(task).await) };
        // One that cannot fail knows nothing then.
        async move { self.effects.around(CGROUPS[5], |why| why, call).await.unwrap_or_default() }.boxed()
    }

    fn remove_id<'a>(&'a self, task_id: &'a str) -> Answer<'a, ()> {
        self.call(CGROUPS[6], task_id, self.inner.remove_id(task_id))
    }

    fn enabled(&self) -> bool {
        self.inner.enabled()
    }
}
