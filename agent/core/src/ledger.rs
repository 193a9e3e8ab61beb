//! The ledger: what the host can hold, who was granted what, and who waits for what.
//!
//! A task that does not fit is skipped, not a barrier: whoever behind it fits is granted at once.
//! So that it does not starve, it is passed over at most [`MAX_BYPASS`] times; from then on what
//! it needs is set aside for it, and others are granted only out of the rest.
//!
//! Invariants, held by `tests/ledger_properties.rs`: what is granted by [`Ledger::request`] and
//! [`Ledger::release`] never exceeds the total; a grant is returned once; a task that the host can
//! never hold does not wait.

use std::collections::BTreeMap;

use crate::ids::TaskArn;
use crate::resources::{Resources, Shortfall};

/// How many later tasks may be granted before one that waits.
pub const MAX_BYPASS: u32 = 64;

/// What the ledger says to a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Granted.
    Granted,
    /// Not now: what is missing.
    Waiting(Vec<Shortfall>),
    /// Not on this host: what is missing even when it is empty.
    Never(Vec<Shortfall>),
}

#[derive(Debug, Clone)]
struct Waiting {
    task: TaskArn,
    need: Resources,
    bypassed: u32,
}

/// Grants of one host.
#[derive(Debug, Clone)]
pub struct Ledger {
    total: Resources,
    grants: BTreeMap<TaskArn, Resources>,
    in_use: Resources,
    line: Vec<Waiting>,
}

impl Ledger {
    /// A ledger without grants. The ports of `total` are those reserved from tasks.
    #[must_use]
    pub fn new(total: Resources) -> Self {
        Self { total, grants: BTreeMap::new(), in_use: Resources::default(), line: Vec::new() }
    }

    /// Asks for what a task needs. Asking again changes nothing.
    pub fn request(&mut self, task: &TaskArn, need: &Resources) -> Verdict {
        if self.grants.contains_key(task) {
            return Verdict::Granted;
        }
        let never = self.total.shortfalls(&Resources::default(), need);
        if !never.is_empty() {
            return Verdict::Never(never);
        }
        if !self.line.iter().any(|w| &w.task == task) {
            self.line.push(Waiting { task: task.clone(), need: need.clone(), bypassed: 0 });
        }
        let missing = self.missing(task).unwrap_or_default();
        if !missing.is_empty() {
            return Verdict::Waiting(missing);
        }
        // Only who asks is granted here: nobody would tell the others.
        if let Some(at) = self.line.iter().position(|w| &w.task == task) {
            self.grant(at);
        }
        Verdict::Granted
    }

    /// Takes note of a task that already runs, whatever the host can hold.
    pub fn adopt(&mut self, task: &TaskArn, need: &Resources) {
        self.line.retain(|w| &w.task != task);
        self.grants.insert(task.clone(), need.clone());
        self.in_use = Resources::sum(self.grants.values());
    }

    /// Takes back what a task was granted, or its place in the line. Returns the tasks that are
    /// granted now, in the order in which they waited.
    pub fn release(&mut self, task: &TaskArn) -> Vec<TaskArn> {
        self.line.retain(|w| &w.task != task);
        if self.grants.remove(task).is_some() {
            self.in_use = Resources::sum(self.grants.values());
        }
        self.serve()
    }

    /// What a waiting task lacks now; `None` when it does not wait.
    #[must_use]
    pub fn missing(&self, task: &TaskArn) -> Option<Vec<Shortfall>> {
        let at = self.line.iter().position(|w| &w.task == task)?;
        Some(self.total.shortfalls(&self.taken_before(at), &self.line[at].need))
    }

    /// Everything that waits, with what it lacks, in order.
    #[must_use]
    pub fn waiting(&self) -> Vec<(TaskArn, Vec<Shortfall>)> {
        let lacks = |(at, w): (usize, &Waiting)| {
            (w.task.clone(), self.total.shortfalls(&self.taken_before(at), &w.need))
        };
        self.line.iter().enumerate().map(lacks).collect()
    }

    /// What the host can hold.
    #[must_use]
    pub const fn total(&self) -> &Resources {
        &self.total
    }

    /// The sum of all grants.
    #[must_use]
    pub const fn in_use(&self) -> &Resources {
        &self.in_use
    }

    /// What is left.
    #[must_use]
    pub fn remaining(&self) -> Resources {
        self.total.remaining(&self.in_use)
    }

    /// Grants whatever fits, in order.
    fn serve(&mut self) -> Vec<TaskArn> {
        let mut granted = Vec::new();
        let mut at = 0;
        while at < self.line.len() {
            if !self.total.fits(&self.taken_before(at), &self.line[at].need) {
                at += 1;
                continue;
            }
            granted.push(self.grant(at));
        }
        granted
    }

    /// Grants what the place `at` in the line needs; all before it are passed over.
    fn grant(&mut self, at: usize) -> TaskArn {
        let served = self.line.remove(at);
        for passed_over in &mut self.line[..at] {
            passed_over.bypassed = passed_over.bypassed.saturating_add(1);
        }
        self.in_use.add(&served.need);
        self.grants.insert(served.task.clone(), served.need);
        served.task
    }

    /// What is not to be had for the place `at` in the line: all grants, and what is set aside
    /// for those before it that were passed over often enough.
    fn taken_before(&self, at: usize) -> Resources {
        let mut taken = self.in_use.clone();
        for before in self.line[..at].iter().filter(|w| w.bypassed >= MAX_BYPASS) {
            taken.add(&before.need);
        }
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::{CpuUnits, Mebibytes};

    fn task(n: u32) -> TaskArn {
        TaskArn::new(format!("arn:aws:ecs:r:1:task/c/{n:032x}")).unwrap()
    }

    fn mib(n: u32) -> Resources {
        Resources { memory: Mebibytes(n), ..Resources::default() }
    }

    fn host(memory: u32) -> Ledger {
        Ledger::new(Resources { cpu: CpuUnits(2048), memory: Mebibytes(memory), ..Resources::default() })
    }

    #[test]
    fn a_wait_says_what_is_missing() {
        let mut ledger = host(1000);
        assert_eq!(ledger.request(&task(1), &mib(800)), Verdict::Granted);
        let Verdict::Waiting(missing) = ledger.request(&task(2), &mib(612)) else { panic!("has to wait") };
        assert_eq!(crate::resources::describe(&missing), "memory, 412 MiB short");
    }

    #[test]
    fn what_does_not_fit_holds_up_nobody() {
        let mut ledger = host(1000);
        ledger.request(&task(1), &mib(500));
        assert!(matches!(ledger.request(&task(2), &mib(900)), Verdict::Waiting(_)));
        for n in 3..13 {
            assert_eq!(ledger.request(&task(n), &mib(50)), Verdict::Granted);
        }
    }

    #[test]
    fn a_task_is_passed_over_a_bounded_number_of_times() {
        let mut ledger = host(1000);
        ledger.request(&task(0), &mib(100));
        assert!(matches!(ledger.request(&task(1), &mib(950)), Verdict::Waiting(_)));
        let mut served = 0;
        for n in 2..1000 {
            if ledger.request(&task(n), &mib(60)) == Verdict::Granted {
                served += 1;
            }
            // Small tasks come and go for ever; only the first one stays.
            ledger.release(&task(n));
        }
        assert_eq!(served, MAX_BYPASS);
        assert_eq!(ledger.release(&task(0)), vec![task(1)]);
    }

    #[test]
    fn a_task_that_can_never_fit_does_not_wait() {
        let mut ledger = host(1000);
        let Verdict::Never(missing) = ledger.request(&task(1), &mib(1001)) else { panic!("never") };
        assert_eq!(missing.len(), 1);
        assert!(ledger.waiting().is_empty());
    }
}
