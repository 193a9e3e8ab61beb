//! The address of the task's endpoint on this host: a link-local one on loopback. Containers reach it by
//! their default route and keep their own address on the way, so that it tells who asks.

use std::io;
use std::net::{IpAddr, SocketAddr};

use berth_core::attachment::Cidr;
use tokio::net::TcpListener;

use crate::network::netlink::Netlink;
use crate::supervise::Tracker;

const LOOPBACK: &str = "lo";

/// Listens there; gives the host the address first where it is link-local and the host has it not.
///
/// # Errors
/// When the host may not have the address, or somebody listens there already.
pub async fn listen(at: SocketAddr, tracker: &Tracker) -> io::Result<TcpListener> {
    if let Some(address) = given(at) {
        let added = async { Netlink::here(tracker)?.address(LOOPBACK, address).await }.await;
        added.map_err(|error| {
            io::Error::new(error.kind(), format!("giving {LOOPBACK} the address {}: {error}", at.ip()))
        })?;
    }
    TcpListener::bind(at)
        .await
        .map_err(|error| io::Error::new(error.kind(), format!("listening at {at}: {error}")))
}

/// Takes the address from the host again: nobody listens there any more.
pub async fn withdraw(at: SocketAddr, tracker: &Tracker) {
    if let Some(address) = given(at)
        && let Err(error) = async { Netlink::here(tracker)?.withdraw(LOOPBACK, address).await }.await
    {
        tracing::warn!(%error, "{LOOPBACK} keeps the address {}", at.ip());
    }
}

/// The address where it is one that the agent gives the host: link-local ones are nobody else's.
fn given(at: SocketAddr) -> Option<Cidr> {
    match at.ip() {
        IpAddr::V4(address) if address.is_link_local() => Cidr::new(address.into(), 32),
        _ => None,
    }
}
