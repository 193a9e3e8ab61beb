//! What holds of the ledger, whoever asks for what in whatever order.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that cannot go on fails"
)]

#[allow(dead_code, reason = "each test file uses its part of the world")]
mod support;

use berth_core::ledger::{Ledger, Verdict};
use berth_core::resources::{Ports, Resources, describe};
use berth_core::units::{CpuUnits, Mebibytes, Protocol};

use support::specs::arn;

/// What the host can hold; port 22 is its own.
fn total() -> Resources {
    let mut ports = Ports::default();
    ports.of_mut(Protocol::Tcp).insert(22);
    Resources {
        cpu: CpuUnits(100),
        memory: Mebibytes(100),
        ports,
        enis: 2,
        gpus: 1,
    }
}

#[test]
fn a_second_adoption_is_counted_as_the_task_is_now() {
    let mib = |memory| Resources {
        memory: Mebibytes(memory),
        ..Resources::default()
    };
    let mut ledger = Ledger::new(total());
    ledger.adopt(&arn(1), &mib(80));
    ledger.adopt(&arn(1), &mib(30));
    assert_eq!(ledger.in_use(), &mib(30));
}

#[test]
fn only_who_asks_is_granted_by_asking() {
    let mib = |memory| Resources {
        memory: Mebibytes(memory),
        ..Resources::default()
    };
    let mut ledger = Ledger::new(total());
    ledger.adopt(&arn(1), &mib(80));
    assert!(matches!(
        ledger.request(&arn(2), &mib(50)),
        Verdict::Waiting(_)
    ));
    // The first one turns out to be smaller: now the second one fits, but nobody would tell it.
    ledger.adopt(&arn(1), &mib(20));
    assert_eq!(ledger.request(&arn(3), &mib(10)), Verdict::Granted);
    assert_eq!(ledger.in_use(), &mib(30));
    assert_eq!(ledger.release(&arn(3)), [arn(2)]);
}

#[test]
fn beside_an_adopted_surplus_the_whole_distance_is_told() {
    let mib = |memory| Resources {
        memory: Mebibytes(memory),
        ..Resources::default()
    };
    let mut ledger = Ledger::new(total());
    ledger.adopt(&arn(1), &mib(150));
    let Verdict::Waiting(missing) = ledger.request(&arn(2), &mib(10)) else {
        panic!("there is no room");
    };
    // 50 beyond what the host holds, and 10 more.
    assert_eq!(describe(&missing), "memory, 60 MiB short");
}
