//! The kernel's links, addresses and routes in one network namespace: a thin layer over rtnetlink,
//! one method for each verb. What is there already is made, and what is not there is removed.

mod neighbours;
mod routes;
pub mod traffic;

use std::io;
use std::os::fd::AsRawFd;

use berth_core::attachment::{Cidr, MacAddress};
use futures_util::TryStreamExt;
use nix::errno::Errno;
use rtnetlink::packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage};
use rtnetlink::packet_route::link::{
    InfoData, InfoKind, InfoVeth, IpVlanMode, LinkAttribute, LinkFlags, LinkInfo, LinkMessage, MacVlanMode,
};
use rtnetlink::{
    Handle, LinkBridge, LinkIpVlan, LinkMacVlan, LinkMessageBuilder, LinkUnspec, LinkVeth, LinkVlan,
};

pub use self::neighbours::{Neighbour, Question};

use super::netns::Namespace;
use super::plan::Child;
use crate::supervise::Tracker;

/// A link as the kernel shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Its index, which changes when it moves to another namespace.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its hardware address.
    pub mac: Option<MacAddress>,
    /// What the agent, or somebody else, noted on it.
    pub alias: String,
    /// Whether it is a child of another: its address may be that of its parent.
    pub is_child: bool,
    /// The bridge that it is a port of.
    pub controller: Option<u32>,
    /// Whether it works.
    pub is_up: bool,
}

/// A connection to the kernel that speaks of one namespace, wherever it is used.
#[derive(Debug, Clone)]
pub struct Netlink {
    handle: Handle,
}

/// The kernel's answer, as an error of the system.
fn cause(error: rtnetlink::Error) -> io::Error {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.to_io(),
        other => io::Error::other(other.to_string()),
    }
}

fn is(error: &io::Error, wanted: &[Errno]) -> bool {
    error.raw_os_error().is_some_and(|code| wanted.iter().any(|errno| *errno as i32 == code))
}

/// Passes over the errors that say it is so already.
fn unless(done: Result<(), rtnetlink::Error>, already: &[Errno]) -> io::Result<()> {
    match done.map_err(cause) {
        Err(error) if !is(&error, already) => Err(error),
        _ => Ok(()),
    }
}

impl Netlink {
    /// Speaks of the agent's own network.
    ///
    /// # Errors
    /// When the kernel gives no socket.
    pub fn here(tracker: &Tracker) -> io::Result<Self> {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        tracker.spawn_droppable("netlink", connection);
        Ok(Self { handle })
    }

    /// Speaks of that namespace.
    ///
    /// # Errors
    /// When the agent may not enter it.
    pub async fn inside(namespace: &Namespace, tracker: &Tracker) -> io::Result<Self> {
        let runtime = tokio::runtime::Handle::current();
        let made = namespace.enter(move || {
            let _guard = runtime.enter();
            rtnetlink::new_connection()
        });
        // The third part would keep the connection alive for ever.
        let (connection, handle, _) = made.await?;
        tracker.spawn_droppable("netlink", connection);
        Ok(Self { handle })
    }

    /// All links.
    ///
    /// # Errors
    /// What the kernel says.
    pub async fn links(&self) -> io::Result<Vec<Link>> {
        let all: Vec<LinkMessage> = self.handle.link().get().execute().try_collect().await.map_err(cause)?;
        Ok(all.into_iter().map(link).collect())
    }

    /// The link of that name.
    ///
    /// # Errors
    /// What the kernel says.
    pub async fn link(&self, name: &str) -> io::Result<Option<Link>> {
        let asked = self.handle.link().get().match_name(name).execute().try_next().await.map_err(cause);
        match asked {
            Ok(found) => Ok(found.map(link)),
            Err(error) if is(&error, &[Errno::ENODEV]) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn index(&self, name: &str) -> io::Result<u32> {
        let found = self.link(name).await?;
        found
            .map(|link| link.index)
            .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("there is no link {name}")))
    }

    /// A bridge of that name.
    ///
    /// # Errors
    /// What the kernel says.
    pub async fn bridge(&self, name: &str) -> io::Result<()> {
        unless(self.handle.link().add(LinkBridge::new(name).build()).execute().await, &[Errno::EEXIST])?;
        self.up(name).await
    }

    /// A pair of links: the outer end here, with a note on it, the inner end born in that namespace.
    ///
    /// # Errors
    /// What the kernel says.
    pub async fn pair(
        &self,
        outer: &str,
        note: &str,
        inner: &str,
        mac: Option<MacAddress>,
        namespace: &Namespace,
    ) -> io::Result<()> {
        let mut peer =
            LinkMessageBuilder::<LinkUnspec>::new().name(inner).setns_by_fd(namespace.file().as_raw_fd());
        if let Some(mac) = mac {
            peer = peer.address(mac.0.to_vec());
        }
        let pair = LinkVeth::new(outer, inner)
            .set_info_data(InfoData::Veth(InfoVeth::Peer(peer.build())))
            .append_extra_attribute(LinkAttribute::IfAlias(note.to_owned()));
        unless(self.handle.link().add(pair.build()).execute().await, &[Errno::EEXIST])?;
        // The kernel takes the note when a link is changed, not when it is made.
        self.note(outer, note).await
    }

    /// A child of that interface, born in the namespace under that name.
    ///
    /// # Errors
    /// `EOPNOTSUPP` when the kernel has no such kind of link.
    pub async fn child(
        &self,
        parent: &str,
        child: Child,
        inner: &str,
        namespace: &Namespace,
    ) -> io::Result<()> {
        let parent = self.index(parent).await?;
        let message = child_message(parent, child, inner, namespace.file().as_raw_fd());
        unless(self.handle.link().add(message).execute().await, &[Errno::EEXIST])
    }

    /// A VLAN of that interface, beside it.
    ///
    /// # Errors
    /// `EOPNOTSUPP` when the kernel has no VLANs.
    pub async fn vlan(&self, parent: &str, id: u16, name: &str) -> io::Result<()> {
        let parent = self.index(parent).await?;
        let vlan = LinkVlan::new(name, parent, id).build();
        unless(self.handle.link().add(vlan).execute().await, &[Errno::EEXIST])
    }

    /// Notes something on a link.
    ///
    /// # Errors
    /// What the kernel says.
    pub async fn note(&self, name: &str, note: &str) -> io::Result<()> {
        let change =
            LinkUnspec::new_with_name(name).append_extra_attribute(LinkAttribute::IfAlias(note.to_owned()));
        unless(self.handle.link().set(change.build()).execute().await, &[])
    }

    /// Tells the neighbours of a link's addresses, where the namespace is set to: the kernel does so
    /// when a link gets a hardware address, the one that it has included.
    ///
    /// # Errors
    /// What the kernel says, also where such a link cannot be given an address.
    pub async fn announce(&self, name: &str) -> io::Result<()> {
        let Some(Link { index, mac: Some(mac), .. }) = self.link(name).await? else {
            return Ok(());
        };
        let change = LinkUnspec::new_with_index(index).address(mac.0.to_vec());
        unless(self.handle.link().set(change.build()).execute().await, &[])
    }

    /// Makes a link a port of a bridge.
    ///
    /// # Errors
    /// What the kernel says.
    pub async fn port(&self, name: &str, bridge: &str) -> io::Result<()> {
        let bridge = self.index(bridge).await?;
        let change = LinkUnspec::new_with_name(name).controller(bridge);
        unless(self.handle.link().set(change.build()).execute().await, &[])
    }

    /// Moves a link into another namespace under another name.
    ///
    /// # Errors
    /// What the kernel says.
    pub async fn give(&self, index: u32, name: &str, namespace: &Namespace) -> io::Result<()> {
        // A link that works can be neither renamed nor moved.
        let down = LinkUnspec::new_with_index(index).down();
        unless(self.handle.link().set(down.build()).execute().await, &[])?;
        let moved = LinkUnspec::new_with_index(index).name(name).setns_by_fd(namespace.file().as_raw_fd());
        unless(self.handle.link().set(moved.build()).execute().await, &[])
    }

    /// A link begins to work.
    ///
    /// # Errors
    /// What the kernel says.
    pub async fn up(&self, name: &str) -> io::Result<()> {
        let change = LinkUnspec::new_with_name(name).up();
        unless(self.handle.link().set(change.build()).execute().await, &[])
    }

    /// The largest packet of a link.
    ///
    /// # Errors
    /// What the kernel says.
    pub async fn mtu(&self, name: &str, bytes: u32) -> io::Result<()> {
        let change = LinkUnspec::new_with_name(name).mtu(bytes);
        unless(self.handle.link().set(change.build()).execute().await, &[])
    }

    /// An address of a link, in use at once: the neighbours were asked before.
    ///
    /// # Errors
    /// What the kernel says.
    pub async fn address(&self, name: &str, address: Cidr) -> io::Result<()> {
        let index = self.index(name).await?;
        let mut request = self.handle.address().add(index, address.address, address.prefix);
        if address.address.is_ipv6() {
            request.message_mut().header.flags |= AddressHeaderFlags::Nodad;
        }
        unless(request.execute().await, &[Errno::EEXIST])
    }

    /// An address of a link, by a label that says whose it is; one that the link has already stays as it is.
    ///
    /// # Errors
    /// What the kernel says.
    pub async fn lend(&self, name: &str, address: Cidr, label: &str) -> io::Result<()> {
        let index = self.index(name).await?;
        let mut request = self.handle.address().add(index, address.address, address.prefix);
        request.message_mut().attributes.push(AddressAttribute::Label(label.to_owned()));
        unless(request.execute().await, &[Errno::EEXIST])
    }

    /// Takes one address away from a link where it has that label; one that is not there is away already.
    ///
    /// # Errors
    /// What the kernel says.
    pub async fn withdraw(&self, name: &str, address: Cidr, label: &str) -> io::Result<()> {
        let Some(link) = self.link(name).await? else {
            return Ok(());
        };
        let request = self.handle.address().get().set_link_index_filter(link.index).execute();
        let all: Vec<AddressMessage> = request.try_collect().await.map_err(cause)?;
        let is_ours = |message: &AddressMessage| {
            cidr(message) == Some(address)
                && message
                    .attributes
                    .iter()
                    .any(|is| matches!(is, AddressAttribute::Label(is) if is == label))
        };
        for message in all.into_iter().filter(is_ours) {
            unless(self.handle.address().del(message).execute().await, &[Errno::EADDRNOTAVAIL])?;
        }
        Ok(())
    }

    /// Takes all addresses away from a link; one that is not there has none.
    ///
    /// # Errors
    /// What the kernel says.
    pub async fn unassign(&self, name: &str) -> io::Result<()> {
        let Some(link) = self.link(name).await? else {
            return Ok(());
        };
        let request = self.handle.address().get().set_link_index_filter(link.index).execute();
        let all: Vec<AddressMessage> = request.try_collect().await.map_err(cause)?;
        for address in all {
            unless(self.handle.address().del(address).execute().await, &[Errno::EADDRNOTAVAIL])?;
        }
        Ok(())
    }

    /// The addresses of a link; none where it is not there.
    ///
    /// # Errors
    /// What the kernel says.
    pub async fn addresses(&self, name: &str) -> io::Result<Vec<Cidr>> {
        let Some(link) = self.link(name).await? else {
            return Ok(Vec::new());
        };
        let request = self.handle.address().get().set_link_index_filter(link.index).execute();
        let all: Vec<AddressMessage> = request.try_collect().await.map_err(cause)?;
        Ok(all.iter().filter_map(cidr).collect())
    }

    /// Removes a link; one that is not there is removed already.
    ///
    /// # Errors
    /// What the kernel says.
    pub async fn remove(&self, name: &str) -> io::Result<()> {
        let Some(link) = self.link(name).await? else {
            return Ok(());
        };
        unless(self.handle.link().del(link.index).execute().await, &[Errno::ENODEV])
    }
}

fn child_message(parent: u32, child: Child, inner: &str, namespace: std::os::fd::RawFd) -> LinkMessage {
    match child {
        Child::Macvlan(mac) => LinkMacVlan::new(inner, parent, MacVlanMode::Bridge)
            .address(mac.0.to_vec())
            .setns_by_fd(namespace)
            .build(),
        Child::Ipvlan => LinkIpVlan::new(inner, parent, IpVlanMode::L2).setns_by_fd(namespace).build(),
    }
}

fn link(message: LinkMessage) -> Link {
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        mac: None,
        alias: String::new(),
        is_child: false,
        controller: None,
        is_up: message.header.flags.contains(LinkFlags::Up),
    };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::IfAlias(alias) => link.alias = alias,
            LinkAttribute::Address(bytes) => link.mac = bytes.try_into().ok().map(MacAddress),
            LinkAttribute::Controller(index) => link.controller = Some(index),
            LinkAttribute::LinkInfo(infos) => {
                link.is_child = infos.iter().any(|info| {
                    matches!(
                        info,
                        LinkInfo::Kind(
                            InfoKind::MacVlan | InfoKind::IpVlan | InfoKind::Vlan | InfoKind::MacVtap
                        )
                    )
                });
            }
            _ => {}
        }
    }
    link
}

/// The address that the kernel tells of.
fn cidr(message: &AddressMessage) -> Option<Cidr> {
    let prefix = message.header.prefix_len;
    message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Address(address) => Cidr::new(*address, prefix),
        _ => None,
    })
}
