//! The bridges of subnets that need no NIC: each in a network namespace of its own, with the host
//! as one of its ports.
//!
//! In a namespace of its own a bridge is out of reach of the host's packet filter, which the
//! container engine sets to drop what is forwarded, bridged frames included.

use std::io;

use berth_core::attachment::{Attachment, Cidr};

use super::netlink::Netlink;
use super::netns::{Namespace, Pins};
use crate::supervise::Tracker;

/// The port of the bridge that leads to the host, by its name inside.
const UPLINK: &str = "uplink";

/// Makes sure that the bridge of the attachment's subnet is there, with the host as its gateway.
/// Speaks of the bridge's namespace from then on.
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
) -> io::Result<Netlink> {
    let namespace = match Namespace::pinned(&pins.path(name)) {
        Ok(namespace) => namespace,
        Err(_) => pins.make(name).await?,
    };
    let inside = Netlink::inside(&namespace, tracker).await?;
    inside.bridge(name).await?;
    host.pair(name, note, UPLINK, None, &namespace).await?;
    inside.port(UPLINK, name).await?;
    inside.up(UPLINK).await?;
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
    Ok(inside)
}

/// Removes the bridge of a subnet if no task is left on it.
///
/// # Errors
/// What the kernel says.
pub(super) async fn remove_if_unused(
    name: &str,
    host: &Netlink,
    pins: &Pins,
    tracker: &Tracker,
) -> io::Result<()> {
    if let Ok(namespace) = Namespace::pinned(&pins.path(name)) {
        let inside = Netlink::inside(&namespace, tracker).await?;
        let bridge = inside.link(name).await?.map(|bridge| bridge.index);
        let ports = inside.links().await?;
        if ports
            .iter()
            .any(|link| link.controller.is_some() && link.controller == bridge && link.name != UPLINK)
        {
            return Ok(());
        }
    }
    host.remove(name).await?;
    pins.unpin(name)
}
