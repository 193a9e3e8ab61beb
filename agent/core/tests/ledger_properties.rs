//! What holds of the ledger, whoever asks for what in whatever order.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on fails")]

#[allow(dead_code, reason = "each test file uses its part of the world")]
mod support;

use std::collections::BTreeMap;

use berth_core::ids::TaskArn;
use berth_core::ledger::{Ledger, MAX_BYPASS, Verdict};
use berth_core::resources::{Ports, Resources, Shortfall, describe};
use berth_core::units::{CpuUnits, Mebibytes, Protocol};
use proptest::collection::vec;
use proptest::prelude::*;

use support::specs::{arn, cases};

/// A ledger beside what it has said so far.
struct Host {
    ledger: Ledger,
    needs: BTreeMap<TaskArn, Resources>,
    granted: BTreeMap<TaskArn, Resources>,
    /// Who waits, in order, with how many later ones were granted meanwhile.
    line: Vec<(TaskArn, u32)>,
}

impl Host {
    fn new() -> Self {
        Self {
            ledger: Ledger::new(total()),
            needs: BTreeMap::new(),
            granted: BTreeMap::new(),
            line: Vec::new(),
        }
    }

    fn request(&mut self, task: &TaskArn, need: &Resources) {
        let (line, before) = (self.ledger.waiting(), self.set_aside());
        let held = self.granted.contains_key(task);
        let need = self.needs.entry(task.clone()).or_insert_with(|| need.clone()).clone();
        match self.ledger.request(task, &need) {
            Verdict::Granted if held => assert_eq!(self.ledger.waiting(), line),
            Verdict::Granted => self.grant(task, &before),
            Verdict::Waiting(missing) => {
                assert!(!held);
                assert_eq!(self.ledger.missing(task), Some(missing));
                if !self.line.iter().any(|(t, _)| t == task) {
                    self.line.push((task.clone(), 0));
                }
            }
            Verdict::Never(missing) => {
                assert_eq!(missing, total().shortfalls(&Resources::default(), &need));
                assert!(!missing.is_empty() && self.ledger.missing(task).is_none());
                self.needs.remove(task);
            }
        }
    }

    fn release(&mut self, task: &TaskArn) {
        self.granted.remove(task);
        self.needs.remove(task);
        self.line.retain(|(t, _)| t != task);
        let before = self.set_aside();
        for served in self.ledger.release(task) {
            self.grant(&served, &before);
        }
        assert_eq!(self.ledger.release(task), [], "a second release");
    }

    fn adopt(&mut self, task: &TaskArn, need: &Resources) {
        self.line.retain(|(t, _)| t != task);
        self.needs.insert(task.clone(), need.clone());
        self.granted.insert(task.clone(), need.clone());
        self.ledger.adopt(task, need);
    }

    /// Who was passed over so often that what it needs is set aside, with what it lacks.
    fn set_aside(&self) -> Vec<(TaskArn, Vec<Shortfall>)> {
        let often = self.line.iter().filter(|(_, n)| *n >= MAX_BYPASS);
        often.map(|(task, _)| (task.clone(), self.ledger.missing(task).unwrap())).collect()
    }

    /// It is granted: only once, only what is left, and to nobody's lasting loss.
    fn grant(&mut self, task: &TaskArn, before: &[(TaskArn, Vec<Shortfall>)]) {
        let need = self.needs[task].clone();
        let in_use = Resources::sum(self.granted.values());
        assert!(total().fits(&in_use, &need), "{need:?} beside {in_use:?}");
        assert!(self.granted.insert(task.clone(), need).is_none(), "granted twice");
        let at = self.line.iter().position(|(t, _)| t == task);
        let passed = at.unwrap_or(self.line.len());
        for (_, bypassed) in &mut self.line[..passed] {
            *bypassed += 1;
        }
        for (other, was) in before.iter().filter(|(other, _)| other != task) {
            // What set others free may have helped it too; nothing may have hurt it.
            let lacks = |missing: &[Shortfall]| missing.iter().map(amount).sum::<u32>();
            let is = self.ledger.missing(other).unwrap_or_default();
            assert!(lacks(&is) <= lacks(was), "{other} was passed over");
        }
        if let Some(at) = at {
            self.line.remove(at);
        }
    }

    fn check(&self) {
        let in_use = Resources::sum(self.granted.values());
        assert_eq!(self.ledger.in_use(), &in_use, "what was granted and not told");
        assert_eq!(self.ledger.remaining(), total().remaining(&in_use));
        let line: Vec<_> = self.line.iter().map(|(t, _)| t.clone()).collect();
        let waiting = self.ledger.waiting();
        assert_eq!(waiting.iter().map(|(t, _)| t.clone()).collect::<Vec<_>>(), line);
        if self.line.iter().any(|(_, bypassed)| *bypassed >= MAX_BYPASS) {
            return; // Something is set aside: more is missing than what is in use tells.
        }
        for (task, missing) in waiting {
            assert_eq!(missing, total().shortfalls(&in_use, &self.needs[&task]));
            self.check_text(&missing, &in_use, &self.needs[&task]);
        }
    }

    /// With what is said to be missing it would fit, and with one less it would not.
    fn check_text(&self, missing: &[Shortfall], in_use: &Resources, need: &Resources) {
        let mut enough = total();
        let mut in_use = in_use.clone();
        for shortfall in missing {
            match shortfall {
                Shortfall::Cpu { short_by } => enough.cpu.0 += short_by.0,
                Shortfall::Memory { short_by } => enough.memory.0 += short_by.0,
                Shortfall::Enis { short_by } => enough.enis += short_by,
                Shortfall::Gpus { short_by } => enough.gpus += short_by,
                Shortfall::Ports { protocol, taken } => {
                    in_use.ports.of_mut(*protocol).retain(|p| !taken.contains(p));
                    enough.ports.of_mut(*protocol).retain(|p| !taken.contains(p));
                }
            }
        }
        let text = describe(missing);
        assert!(enough.fits(&in_use, need), "with {text} it should fit");
        for shortfall in missing {
            let mut less = enough.clone();
            match shortfall {
                Shortfall::Cpu { .. } => less.cpu.0 -= 1,
                Shortfall::Memory { .. } => less.memory.0 -= 1,
                Shortfall::Enis { .. } => less.enis -= 1,
                Shortfall::Gpus { .. } => less.gpus -= 1,
                Shortfall::Ports { protocol, taken } => {
                    less.ports.of_mut(*protocol).insert(taken[0]);
                }
            }
            assert!(!less.fits(&in_use, need), "{text} is more than is missing");
            assert!(text.contains(&shortfall.to_string()));
        }
    }
}

fn amount(shortfall: &Shortfall) -> u32 {
    match shortfall {
        Shortfall::Cpu { short_by } => short_by.0,
        Shortfall::Memory { short_by } => short_by.0,
        Shortfall::Ports { taken, .. } => u32::try_from(taken.len()).unwrap(),
        Shortfall::Enis { short_by } | Shortfall::Gpus { short_by } => *short_by,
    }
}

/// What the host can hold; port 22 is its own.
fn total() -> Resources {
    let mut ports = Ports::default();
    ports.of_mut(Protocol::Tcp).insert(22);
    Resources { cpu: CpuUnits(100), memory: Mebibytes(100), ports, enis: 2, gpus: 1 }
}

fn need() -> impl Strategy<Value = Resources> {
    let port = prop_oneof![6 => Just(0u16), 3 => 80..83u16, 1 => Just(22u16)];
    (0..120u32, 0..120u32, port, 0..4u8).prop_map(|(cpu, memory, port, kind)| {
        let mut ports = Ports::default();
        if port > 0 {
            ports.of_mut(Protocol::Tcp).insert(port);
        }
        Resources {
            cpu: CpuUnits(if kind == 0 { 0 } else { cpu }),
            memory: Mebibytes(memory / if kind == 3 { 1 } else { 4 }),
            ports,
            enis: u32::from(kind == 2),
            gpus: u32::from(kind == 1 && cpu % 4 == 0),
        }
    })
}

#[derive(Debug, Clone)]
enum Op {
    Request(u32, Resources),
    Adopt(u32, Resources),
    Release(u32),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => (0..24u32, need()).prop_map(|(n, need)| Op::Request(n, need)),
        1 => (0..24u32, need()).prop_map(|(n, need)| Op::Adopt(n, need)),
        4 => (0..24u32).prop_map(Op::Release),
    ]
}

proptest! {
    #![proptest_config(cases(150, "ledger_properties"))]

    /// No grant beyond what is left, none twice, none untold; who fits alone comes to it.
    #[test]
    fn grants_are_sound_and_everybody_who_can_gets_one(ops in vec(op(), 0..120)) {
        let mut host = Host::new();
        for op in &ops {
            match op {
                Op::Request(n, need) => host.request(&arn(*n), need),
                Op::Adopt(n, need) => host.adopt(&arn(*n), need),
                Op::Release(n) => host.release(&arn(*n)),
            }
            host.check();
        }
        // Everybody who runs ends, and whoever follows too.
        let mut bound = 200;
        while let Some(task) = host.granted.keys().next().cloned() {
            host.release(&task);
            host.check();
            bound -= 1;
            prop_assert!(bound > 0);
        }
        prop_assert_eq!(host.ledger.waiting(), []);
        prop_assert_eq!(host.ledger.in_use(), &Resources::default());
    }

    /// Whoever waits is passed over a bounded number of times, whatever comes and goes.
    #[test]
    fn nobody_is_passed_over_for_ever(
        stays in 1..60u32,
        waits in 50..100u32,
        comers in vec((1..40u32, 0..40u32, 0..6usize), 300),
    ) {
        let mib = |cpu: u32, memory: u32| Resources {
            cpu: CpuUnits(cpu),
            memory: Mebibytes(memory),
            ..Resources::default()
        };
        let mut host = Host::new();
        host.request(&arn(0), &mib(1, stays));
        host.request(&arn(1), &mib(1, waits));
        let mut here: Vec<TaskArn> = Vec::new();
        for (at, (cpu, memory, leave)) in comers.iter().enumerate() {
            let task = arn(2 + u32::try_from(at).unwrap());
            host.request(&task, &mib(*cpu, *memory));
            here.push(task);
            if let Some(gone) = here.get(*leave).cloned() {
                host.release(&gone);
                here.remove(*leave);
            }
            host.check();
        }
        // The first one ends, and so do those that were granted before the second one's turn.
        host.release(&arn(0));
        let passed = host.line.iter().find(|(t, _)| *t == arn(1)).map(|(_, n)| *n);
        if passed.is_some_and(|n| n >= MAX_BYPASS) {
            let running: Vec<_> = host.granted.keys().cloned().collect();
            for task in running {
                host.release(&task);
            }
            prop_assert!(host.granted.contains_key(&arn(1)));
        }
    }

    /// A task that the host can never hold stands in nobody's way, and one that has to wait
    /// stands in the way of no later one that fits.
    #[test]
    fn what_cannot_be_granted_holds_up_nobody(big in 101..1000u32, waits in 61..=100u32, small in 1..=10u32) {
        let mib = |memory| Resources { memory: Mebibytes(memory), ..Resources::default() };
        let mut ledger = Ledger::new(total());
        prop_assert_eq!(ledger.request(&arn(1), &mib(40)), Verdict::Granted);
        let never = ledger.request(&arn(2), &mib(big));
        prop_assert_eq!(never, Verdict::Never(vec![Shortfall::Memory { short_by: Mebibytes(big - 100) }]));
        let waiting = ledger.request(&arn(3), &mib(waits));
        prop_assert_eq!(waiting, Verdict::Waiting(vec![Shortfall::Memory { short_by: Mebibytes(waits - 60) }]));
        for n in 4..10 {
            prop_assert_eq!(ledger.request(&arn(n), &mib(small)), Verdict::Granted);
        }
    }
}

#[test]
fn a_second_adoption_is_counted_as_the_task_is_now() {
    let mib = |memory| Resources { memory: Mebibytes(memory), ..Resources::default() };
    let mut ledger = Ledger::new(total());
    ledger.adopt(&arn(1), &mib(80));
    ledger.adopt(&arn(1), &mib(30));
    assert_eq!(ledger.in_use(), &mib(30));
}

#[test]
fn beside_an_adopted_surplus_the_whole_distance_is_told() {
    let mib = |memory| Resources { memory: Mebibytes(memory), ..Resources::default() };
    let mut ledger = Ledger::new(total());
    ledger.adopt(&arn(1), &mib(150));
    let Verdict::Waiting(missing) = ledger.request(&arn(2), &mib(10)) else {
        panic!("there is no room");
    };
    // 50 beyond what the host holds, and 10 more.
    assert_eq!(describe(&missing), "memory, 60 MiB short");
}

#[test]
fn only_who_asks_is_granted_by_asking() {
    let mib = |memory| Resources { memory: Mebibytes(memory), ..Resources::default() };
    let mut ledger = Ledger::new(total());
    ledger.adopt(&arn(1), &mib(80));
    assert!(matches!(ledger.request(&arn(2), &mib(50)), Verdict::Waiting(_)));
    // The first one turns out to be smaller: now the second one fits, but nobody would tell it.
    ledger.adopt(&arn(1), &mib(20));
    assert_eq!(ledger.request(&arn(3), &mib(10)), Verdict::Granted);
    assert_eq!(ledger.in_use(), &mib(30));
    assert_eq!(ledger.release(&arn(3)), [arn(2)]);
}
