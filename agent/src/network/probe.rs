//! What this kernel and this host can do for tasks that want an interface of their own.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;

use berth_core::attachment::{MacAddress, Provider};

use super::netlink::Netlink;
use super::netns::Pins;
use super::plan::Child;
use crate::supervise::Tracker;

/// The names of the probe's own namespaces.
const OUTER: &str = "probe-outer";
const INNER: &str = "probe-inner";

/// The providers that work: each kind of link is made once, in namespaces that are thrown away.
///
/// # Errors
/// When the agent may not make namespaces at all: it lacks `CAP_SYS_ADMIN` or `CAP_NET_ADMIN`.
pub async fn providers(data_dir: &Path, tracker: &Tracker) -> io::Result<BTreeSet<&'static str>> {
    let pins = Pins::new(data_dir);
    let tried = try_all(&pins, tracker).await;
    for name in [OUTER, INNER] {
        pins.unpin(name)?;
    }
    tried
}

async fn try_all(pins: &Pins, tracker: &Tracker) -> io::Result<BTreeSet<&'static str>> {
    let (outer, inner) = (pins.make(OUTER).await?, pins.make(INNER).await?);
    let netlink = Netlink::inside(&outer, tracker).await?;
    netlink.pair("parent", "", "peer", None, &inner).await?;
    // Any interface can be moved.
    let mut working = BTreeSet::from([Provider::HotPlug.name()]);
    let mac = MacAddress([2, 0, 0, 0, 0, 1]);
    let attempts =
        [(Provider::Macvlan.name(), Child::Macvlan(mac)), (Provider::Ipvlan.name(), Child::Ipvlan)];
    for (name, child) in attempts {
        match netlink.child("parent", child, name, &inner).await {
            Ok(()) => {
                working.insert(name);
                // A parent has children of one kind alone.
                Netlink::inside(&inner, tracker).await?.remove(name).await?;
            }
            Err(error) => tracing::info!(provider = name, %error, "this kernel does not offer it"),
        }
    }
    let vlan = Provider::Vlan { id: 1 }.name();
    match netlink.vlan("parent", 1, "vlan").await {
        Ok(()) => {
            working.insert(vlan);
        }
        Err(error) => tracing::info!(provider = vlan, %error, "this kernel does not offer it"),
    }
    match netlink.bridge("bridge").await {
        Ok(()) => {
            working.insert(Provider::Veth.name());
        }
        Err(error) => {
            tracing::info!(provider = Provider::Veth.name(), %error, "this kernel does not offer it");
        }
    }
    Ok(working)
}
