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
