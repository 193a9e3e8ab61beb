//! The address of the task's endpoint on this host: a link-local one on loopback. Containers reach it by
//! their default route and keep their own address on the way, so that it tells who asks.

use std::io;
use std::net::{IpAddr, SocketAddr};

use berth_core::attachment::Cidr;
use tokio::net::{TcpListener, TcpSocket};

use crate::network::netlink::Netlink;
use crate::supervise::Tracker;

const LOOPBACK: &str = "lo";
/// What `ip address` shows of an address that is the agent's. One that somebody else gave the host has it not, and
/// is never taken away.
const LABEL: &str = "lo:berth";
/// How many connections may wait to be accepted: the kernel's own limit, so that a task which opens them by the
/// thousand does not make another's wait for its next try, a second later.
const BACKLOG: u32 = 4096;

/// Listens there; gives the host the address first where it is link-local and the host has it not.
///
/// # Errors
/// When the host may not have the address, or somebody listens there already.
pub async fn listen(at: SocketAddr, tracker: &Tracker) -> io::Result<TcpListener> {
    if let Some(address) = given(at) {
        let added = async { Netlink::here(tracker)?.lend(LOOPBACK, address, LABEL).await }.await;
        if let Err(error) = added {
            // Somebody who may has perhaps given it to the host.
            return open(at).map_err(|_| {
                io::Error::new(error.kind(), format!("giving {LOOPBACK} the address {}: {error}", at.ip()))
            });
        }
    }
    open(at).map_err(|error| io::Error::new(error.kind(), format!("listening at {at}: {error}")))
}

fn open(at: SocketAddr) -> io::Result<TcpListener> {
    let socket = if at.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // As the standard library does, so that a new agent need not wait for the connections of the last.
    socket.set_reuseaddr(true)?;
    socket.bind(at)?;
    socket.listen(BACKLOG)
}

/// Takes the address from the host again, where it is the agent's: nobody listens there, and nobody will ask.
pub async fn withdraw(at: SocketAddr, tracker: &Tracker) {
    if let Some(address) = given(at)
        && let Err(error) = async { Netlink::here(tracker)?.withdraw(LOOPBACK, address, LABEL).await }.await
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
