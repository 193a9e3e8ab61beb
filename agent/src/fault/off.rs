//! A host on which nothing is broken: its kernel cannot, or nobody could ask for it.

use std::collections::BTreeSet;

use berth_core::spec::TaskSpec;
use futures_util::future::{BoxFuture, FutureExt};

use super::{FaultError, Faults, Kind, Request, Status};

/// Refuses every fault.
#[derive(Debug, Clone, Copy, Default)]
pub struct Off;

impl Faults for Off {
    fn open(&self, _: &TaskSpec) {}

    fn close<'a>(&'a self, _: &'a TaskSpec) -> BoxFuture<'a, Result<(), FaultError>> {
        async { Ok(()) }.boxed()
    }

    fn ask<'a>(&'a self, _: &'a TaskSpec, _: Request) -> BoxFuture<'a, Result<Status, FaultError>> {
        let why = "internal error: the agent cannot break networks on this host (see its log)";
        async move { Err(FaultError::Unsupported(why.to_owned())) }.boxed()
    }

    fn list(&self) -> BoxFuture<'_, Result<Vec<String>, FaultError>> {
        async { Ok(Vec::new()) }.boxed()
    }

    fn undo<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<(), FaultError>> {
        async { Ok(()) }.boxed()
    }

    fn kinds(&self) -> BTreeSet<Kind> {
        BTreeSet::new()
    }
}
