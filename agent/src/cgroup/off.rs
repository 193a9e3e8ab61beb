//! No task cgroups: for hosts where task limits are switched off.

use berth_core::ids::TaskArn;
use berth_core::units::CpuUnits;
use futures_util::future::{self, BoxFuture, FutureExt};

use super::{Bounds, CgroupError, Cgroups, MemoryPast};

/// Bounds nothing and owns nothing; containers go under the engine's default parent.
#[derive(Debug, Clone, Copy, Default)]
pub struct Off;

impl Cgroups for Off {
    fn create<'a>(&'a self, _: &'a TaskArn, _: Bounds) -> BoxFuture<'a, Result<Option<String>, CgroupError>> {
        future::ready(Ok(None)).boxed()
    }

    fn bound<'a>(&'a self, _: &'a TaskArn, _: CpuUnits) -> BoxFuture<'a, Result<(), CgroupError>> {
        future::ready(Ok(())).boxed()
    }

    fn remove<'a>(&'a self, _: &'a TaskArn) -> BoxFuture<'a, Result<(), CgroupError>> {
        future::ready(Ok(())).boxed()
    }

    fn kill<'a>(&'a self, _: &'a TaskArn) -> BoxFuture<'a, Result<(), CgroupError>> {
        future::ready(Ok(())).boxed()
    }

    fn list(&self) -> BoxFuture<'_, Result<Vec<String>, CgroupError>> {
        future::ready(Ok(Vec::new())).boxed()
    }

    fn memory<'a>(&'a self, _: &'a TaskArn) -> BoxFuture<'a, MemoryPast> {
        future::ready(MemoryPast::default()).boxed()
    }

    fn remove_id<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<(), CgroupError>> {
        future::ready(Ok(())).boxed()
    }

    fn enabled(&self) -> bool {
        false
    }
}
