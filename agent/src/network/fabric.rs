//! The bridges of subnets that need no NIC: each in a network namespace of its own, with the host
//! as one of its ports.
//!
//! In a namespace of its own a bridge is out of reach of the host's packet filter, which the
//! container engine sets to drop what is forwarded, bridged frames included.

use std::collections::BTreeSet;
use std::io;

use berth_core::attachment::{Attachment, Cidr};

use super::guard::frames;
use super::netlink::Netlink;
use super::netns::{Namespace, Pins};
use super::plan;
use crate::supervise::Tracker;

/// The port of the bridge that leads to the host, by its name inside.
const UPLINK: &str = "uplink";

/// The namespace of a subnet's bridge.
pub(super) struct Fabric {
    /// The namespace itself.
    pub(super) namespace: Namespace,
    /// Its links.
    pub(super) links: Netlink,
}

impl Fabric {
    /// The one of that name, if it is there.
    pub(super) async fn find(name: &str, pins: &Pins, tracker: &Tracker) -> Option<Self> {
        let namespace = Namespace::pinned(&pins.path(name)).ok()?;
        let links = Netlink::inside(&namespace, tracker).await.ok()?;
        Some(Self { namespace, links })
    }

    /// Removes ports other than those, and the rules at them.
    ///
    /// # Errors
    /// What the kernel says.
    pub(super) async fn sweep(&self, ports: &BTreeSet<String>) -> io::Result<()> {
        let is_left_over = |name: &str| plan::is_port(name) && !ports.contains(name);
        for link in self.links.links().await? {
            if is_left_over(&link.name) {
                self.links.remove(&link.name).await?;
            }
        }
        let tables = frames::list(&self.namespace).await?;
        frames::remove(&self.namespace, tables.into_iter().filter(|table| is_left_over(table)).collect())
            .await
    }
}

/// Makes sure that the bridge of the attachment's subnet is there, with the host as its gateway.
///
/// # Errors
/// What the kernel says.
pub(super) async fn ensure(
    attachment: &Attachment,
    name: &str,
    note: &str,
    host: &Netlink,
    pins: &Pins,
    tracker: &Tracker,
) -> io::Result<Fabric> {
    let namespace = match Namespace::pinned(&pins.path(name)) {
        Ok(namespace) => namespace,
        Err(_) => {
            let made = pins.make(name).await?;
            made.enter(past_the_packet_filter).await?;
            made
        }
    };
    let links = Netlink::inside(&namespace, tracker).await?;
    links.bridge(name).await?;
    host.pair(name, note, UPLINK, None, &namespace).await?;
    links.port(UPLINK, name).await?;
    links.up(UPLINK).await?;
    for gateway in &attachment.gateways {
        let prefix =
            attachment.addresses.iter().find(|a| a.address.is_ipv4() == gateway.is_ipv4()).map(|a| a.prefix);
        if let Some(address) = prefix.and_then(|prefix| Cidr::new(*gateway, prefix)) {
            match host.address(name, address).await {
                // A host without IPv6 is no gateway for it; the tasks have it among themselves.
                Err(error) if gateway.is_ipv6() => {
                    tracing::warn!(%error, %address, "the host is no gateway for IPv6 here");
                }
                done => done?,
            }
        }
    }
    host.up(name).await?;
    Ok(Fabric { namespace, links })
}

/// Where the kernel has frames on bridges pass by the packet filter, it does not in the namespace of the
/// thread.
fn past_the_packet_filter() -> io::Result<()> {
    for family in ["iptables", "ip6tables", "arptables"] {
        match std::fs::write(format!("/proc/sys/net/bridge/bridge-nf-call-{family}"), "0") {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// Removes the bridge of a subnet, with everything on it.
///
/// # Errors
/// What the kernel says.
pub(super) async fn remove(name: &str, host: &Netlink, pins: &Pins) -> io::Result<()> {
    host.remove(name).await?;
    pins.unpin(name)
}
