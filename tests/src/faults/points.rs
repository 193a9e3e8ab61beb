//! The names of everything that the agent does to the world.

use berth_agent::effects::{Side, UNPORTED};

/// Of the container engine.
pub(super) const RUNTIME: [&str; 18] = [
    "runtime.info",
    "runtime.create",
    "runtime.start",
    "runtime.stop",
    "runtime.kill",
    "runtime.remove",
    "runtime.remove-volume",
    "runtime.inspect",
    "runtime.details",
    "runtime.logs",
    "runtime.list",
    "runtime.events",
    "runtime.image",
    "runtime.images",
    "runtime.remove-image",
    "runtime.tag",
    "runtime.strangers",
    "runtime.pull",
];
/// Of the containers that hold namespaces.
pub(super) const HOLDERS: [&str; 6] = [
    "holders.have-image",
    "holders.hold",
    "holders.rename",
    "holders.pid",
    "holders.holders",
    "holders.release",
];
/// Of the networks of tasks.
pub(super) const NETWORK: [&str; 7] = [
    "network.prepare",
    "network.attach",
    "network.started",
    "network.detach",
    "network.dismiss",
    "network.guard",
    "network.restore",
];
/// Of the cgroups of tasks.
pub(super) const CGROUPS: [&str; 7] = [
    "cgroups.create",
    "cgroups.bound",
    "cgroups.remove",
    "cgroups.kill",
    "cgroups.list",
    "cgroups.memory",
    "cgroups.remove-id",
];
/// Of the state.
pub(super) const STORE: [&str; 2] = ["store.load", "store.commit"];

/// All of them.
pub fn all() -> impl Iterator<Item = &'static str> {
    RUNTIME.into_iter().chain(HOLDERS).chain(NETWORK).chain(CGROUPS).chain(STORE).chain(UNPORTED)
}

/// The name of one side of an effect, such as `runtime.create.before`.
#[must_use]
pub fn point(effect: &str, side: Side) -> String {
    match side {
        Side::Before => format!("{effect}.before"),
        Side::After => format!("{effect}.after"),
    }
}
