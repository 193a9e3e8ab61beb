//! The neighbours on a link: whether one of them has an address already.

use std::io;
use std::net::IpAddr;
use std::time::Duration;

use berth_core::attachment::MacAddress;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use nix::errno::Errno;
use rtnetlink::MulticastGroup;
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::DropGuard;

use super::{Netlink, is, unless};
use crate::network::netns::Namespace;
use crate::supervise::Tracker;

/// One who has an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Neighbour {
    /// The address.
    pub address: IpAddr,
    /// Its hardware address.
    pub mac: MacAddress,
}

/// A question that the neighbours were asked: who has these addresses?
pub struct Question {
    netlink: Netlink,
    index: u32,
    addresses: Vec<IpAddr>,
    asked_at: Instant,
    answers: BoxStream<'static, NetlinkMessage<RouteNetlinkMessage>>,
    _listening: DropGuard,
}

impl Netlink {
    /// Asks the neighbours on a link of this namespace who has these addresses, which the link itself
    /// has not got: the kernel asks (by ARP, by neighbour solicitation), and keeps what it is told.
    ///
    /// # Errors
    /// What the kernel says.
    pub async fn ask(
        &self,
        namespace: &Namespace,
        name: &str,
        addresses: Vec<IpAddr>,
        tracker: &Tracker,
    ) -> io::Result<Question> {
        let runtime = tokio::runtime::Handle::current();
        let made = namespace.enter(move || {
            let _guard = runtime.enter();
            rtnetlink::new_multicast_connection(&[MulticastGroup::Neigh])
        });
        let (connection, _, answers) = made.await?;
        let answers = answers.map(|(message, _)| message).boxed();
        let listening = tracker.child();
        listening.spawn_droppable("neighbours", connection);
        let index = self.index(name).await?;
        for address in &addresses {
            let ask = || {
                let neighbours = self.handle.neighbours();
                neighbours
                    .add(index, *address)
                    .state(NeighbourState::None)
                    .flags(NeighbourFlags::Use)
                    .execute()
            };
            match unless(ask().await, &[]) {
                // It was asked before, by an agent that was not left to hear the answer: that is not told again.
                Err(error) if is(&error, &[Errno::EEXIST]) => {
                    self.forget(index, std::slice::from_ref(address)).await;
                    unless(ask().await, &[])?;
                }
                asked => asked?,
            }
        }
        let netlink = self.clone();
        let _listening = listening.token().clone().drop_guard();
        Ok(Question { netlink, index, addresses, asked_at: Instant::now(), answers, _listening })
    }

    /// The kernel would go on asking, and remember those who do not answer.
    async fn forget(&self, index: u32, addresses: &[IpAddr]) {
        for address in addresses {
            let mut message = NeighbourMessage::default();
            message.header.ifindex = index;
            let (family, destination) = match address {
                IpAddr::V4(v4) => (AddressFamily::Inet, NeighbourAddress::Inet(*v4)),
                IpAddr::V6(v6) => (AddressFamily::Inet6, NeighbourAddress::Inet6(*v6)),
            };
            message.header.family = family;
            message.attributes.push(NeighbourAttribute::Destination(destination));
            if let Err(error) = self.handle.neighbours().del(message).execute().await {
                tracing::debug!(%error, %address, "a question to the neighbours stays in the kernel");
            }
        }
    }
}

impl Question {
    /// Who has said, that long after the question, that one of the addresses is his. Nobody, where the
    /// addresses are free.
    ///
    /// # Errors
    /// What the kernel says.
    pub async fn answer(mut self, patience: Duration) -> io::Result<Option<Neighbour>> {
        let until = self.asked_at + patience;
        let mut found = None;
        while found.is_none() {
            match timeout_at(until, self.answers.next()).await {
                Ok(Some(message)) => {
                    found = neighbour(message, self.index).filter(|n| self.addresses.contains(&n.address));
                }
                Ok(None) => return Err(io::Error::other("the kernel tells of neighbours no more")),
                Err(_) => break,
            }
        }
        self.netlink.forget(self.index, &self.addresses).await;
        Ok(found)
    }
}

/// The neighbour on that link that the kernel tells of, if it has heard of him.
fn neighbour(message: NetlinkMessage<RouteNetlinkMessage>, index: u32) -> Option<Neighbour> {
    let NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewNeighbour(message)) = message.payload else {
        return None;
    };
    let known =
        [NeighbourState::Reachable, NeighbourState::Stale, NeighbourState::Delay, NeighbourState::Probe];
    if message.header.ifindex != index || !known.contains(&message.header.state) {
        return None;
    }
    let (mut address, mut mac) = (None, None);
    for attribute in message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => address = Some(IpAddr::V4(v4)),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => address = Some(IpAddr::V6(v6)),
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = bytes.try_into().ok().map(MacAddress),
            _ => {}
        }
    }
    Some(Neighbour { address: address?, mac: mac? })
}
