//! Interfaces that somebody else plugs into the host: found by their hardware address, waited for by
//! the kernel's own messages.

use std::io;

use berth_core::attachment::{Attachment, MacAddress};
use futures_util::StreamExt;
use rtnetlink::MulticastGroup;
use tokio::time::timeout;

use super::NetworkError;
use super::netlink::{Link, Netlink};
use super::netns::Namespace;
use super::plan::INTERFACE;
use crate::supervise::Tracker;

/// The link with that hardware address. A child that shares the address of its parent is not meant.
pub(super) async fn find(netlink: &Netlink, mac: MacAddress) -> io::Result<Option<Link>> {
    Ok(netlink.links().await?.into_iter().find(|link| link.mac == Some(mac) && !link.is_child))
}

/// The name of an interface that is given back to the host.
pub(super) fn spare_name(mac: MacAddress) -> String {
    let hex: String = mac.0.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("eni{hex}")
}

/// Waits until the attachment's interface is on the host, or in the task's namespace already.
pub(super) async fn wait(
    host: &Netlink,
    namespace: &Namespace,
    attachment: &Attachment,
    tracker: &Tracker,
) -> Result<(), NetworkError> {
    let failed = |error: io::Error| NetworkError::Passing(format!("looking for interfaces: {error}"));
    let inside = Netlink::inside(namespace, tracker).await.map_err(failed)?;
    if inside.link(INTERFACE).await.map_err(failed)?.is_some() {
        return Ok(());
    }
    // Listening first: what comes after the look is heard of.
    let (connection, _handle, mut messages) =
        rtnetlink::new_multicast_connection(&[MulticastGroup::Link]).map_err(failed)?;
    let listening = tracker.child();
    listening.spawn_droppable("link events", connection);
    let waiting = async {
        loop {
            if find(host, attachment.mac).await?.is_some() {
                return Ok(());
            }
            // Any message is a reason to look again, one that says that some were missed most of all.
            if messages.next().await.is_none() {
                return Err(io::Error::other("the kernel tells of links no more"));
            }
        }
    };
    let came = timeout(attachment.patience.as_duration(), waiting).await;
    listening.token().cancel();
    match came {
        Ok(found) => found.map_err(failed),
        Err(_) => Err(NetworkError::Refused(format!(
            "no network interface with the address {} was plugged in within {}",
            attachment.mac, attachment.patience
        ))),
    }
}
