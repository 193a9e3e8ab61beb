//! Faults that chance picks: of engines, cgroups, disks, lines and agents of a fleet.

use std::io::ErrorKind;

use anyhow::Result;
use berth_agent::cgroup::fake::Call as CgroupCall;
use berth_agent::runtime::RuntimeError;
use berth_agent::runtime::fake::Call;
use berth_agent::store::StoreError;
use berth_core::units::Millis;

use super::{Chance, Fleet, Host, Orders};

/// Calls that a fault may hit.
const CALLS: [Call; 7] =
    [Call::Create, Call::Start, Call::Stop, Call::Remove, Call::Inspect, Call::Image, Call::List];
/// Longest that a slow call takes.
const SLOW: u64 = 80;

/// One fault on one host. Those that last end with [`calm`].
///
/// # Errors
/// When an agent that was killed does not start again.
pub async fn strike(fleet: &mut Fleet, chance: &mut Chance, orders: &mut Orders) -> Result<()> {
    let at = usize::try_from(chance.below(fleet.hosts.len() as u64))?;
    let host = &mut fleet.hosts[at];
    let call = *chance.pick(&CALLS).unwrap_or(&Call::Start);
    match chance.below(9) {
        0 => host.runtime.down(),
        1 => host.runtime.lose_next_answer(call),
        2 => host.runtime.fail_next(call, RuntimeError::Unavailable("a fault of the test".to_owned())),
        3 => host.runtime.delay(call, Millis(chance.below(SLOW))),
        4 => host.cgroups.fail_next(CgroupCall::Create, ErrorKind::ResourceBusy),
        5 => host.store.fail_with(Some(full())),
        6 => host.hang_up(),
        7 => end_one(host, chance, orders)?,
        _ => {
            // An agent that cannot read its world waits for it; here it has to start at once.
            calm_host(host);
            host.crash().await?;
        }
    }
    Ok(())
}

/// A container ends, and the engine tells nobody; its next connection makes up for that.
fn end_one(host: &Host, chance: &mut Chance, orders: &mut Orders) -> Result<()> {
    let running: Vec<_> = host.running().into_iter().collect();
    if let Some(((task, _), id)) = chance.pick(&running) {
        host.runtime.lose_events(true);
        host.runtime.exit(&id.parse()?, 1);
        host.runtime.down();
        host.runtime.lose_events(false);
        orders.stopped(task);
    }
    Ok(())
}

/// The end of all faults that last, on every host.
pub fn calm(fleet: &mut Fleet) {
    for host in &mut fleet.hosts {
        calm_host(host);
        host.hang_up();
        host.dial();
    }
}

fn calm_host(host: &Host) {
    host.runtime.up();
    host.store.fail_with(None);
    for call in CALLS {
        host.runtime.delay(call, Millis(0));
    }
}

fn full() -> StoreError {
    StoreError::Io { what: "write", path: "memory".to_owned(), detail: "no space left".to_owned() }
}
