//! Admission: the core's ledger, shared by all tasks, and who is to be told when it changes.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use berth_core::ids::TaskArn;
use berth_core::ledger::{Ledger, Verdict};
use berth_core::resources::{Resources, Shortfall};
use tokio::sync::watch;

/// What is granted, what is left, and who waits: what heartbeats and operators are told.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Usage {
    /// What the host can hold.
    pub total: Resources,
    /// The sum of all grants.
    pub in_use: Resources,
    /// Tasks that wait, with what they lack, in order.
    pub waiting: Vec<(TaskArn, Vec<Shortfall>)>,
}

/// The ledger of the host.
#[derive(Debug)]
pub(super) struct Admission {
    inner: Mutex<Inner>,
    usage: watch::Sender<Usage>,
}

#[derive(Debug)]
struct Inner {
    ledger: Ledger,
    tasks: BTreeMap<TaskArn, watch::Sender<Verdict>>,
}

impl Admission {
    pub(super) fn new(total: Resources) -> Self {
        let usage = Usage { total: total.clone(), ..Usage::default() };
        Self {
            inner: Mutex::new(Inner { ledger: Ledger::new(total), tasks: BTreeMap::new() }),
            usage: watch::Sender::new(usage),
        }
    }

    /// Asks for what a task needs; the receiver tells of every change of the answer.
    pub(super) fn request(&self, task: &TaskArn, need: &Resources) -> (Verdict, watch::Receiver<Verdict>) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let verdict = inner.ledger.request(task, need);
        let sender = watch::Sender::new(verdict.clone());
        let receiver = sender.subscribe();
        inner.tasks.insert(task.clone(), sender);
        self.tell(&inner);
        (verdict, receiver)
    }

    /// Takes note of a task that holds its grant already.
    pub(super) fn adopt(&self, task: &TaskArn, need: &Resources) -> watch::Receiver<Verdict> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.ledger.adopt(task, need);
        let sender = watch::Sender::new(Verdict::Granted);
        let receiver = sender.subscribe();
        inner.tasks.insert(task.clone(), sender);
        self.tell(&inner);
        receiver
    }

    /// Takes back what a task has, and tells those who wait.
    pub(super) fn release(&self, task: &TaskArn) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.tasks.remove(task);
        for granted in inner.ledger.release(task) {
            if let Some(sender) = inner.tasks.get(&granted) {
                sender.send_replace(Verdict::Granted);
            }
        }
        self.tell(&inner);
    }

    /// What is granted, left and waited for; changes with every grant.
    pub(super) fn usage(&self) -> watch::Receiver<Usage> {
        self.usage.subscribe()
    }

    fn tell(&self, inner: &Inner) {
        let waiting = inner.ledger.waiting();
        for (task, missing) in &waiting {
            if let Some(sender) = inner.tasks.get(task) {
                let verdict = Verdict::Waiting(missing.clone());
                sender.send_if_modified(|old| {
                    let changed = *old != verdict;
                    old.clone_from(&verdict);
                    changed
                });
            }
        }
        let usage =
            Usage { total: inner.ledger.total().clone(), in_use: inner.ledger.in_use().clone(), waiting };
        self.usage.send_if_modified(|old| {
            let changed = *old != usage;
            *old = usage;
            changed
        });
    }
}
