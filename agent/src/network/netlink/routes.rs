//! Routes of a network namespace.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;

use berth_core::attachment::Cidr;
use futures_util::TryStreamExt;
use nix::errno::Errno;
use rtnetlink::RouteMessageBuilder;
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteScope, RouteType,
};

use super::{Netlink, cause, unless};

impl Netlink {
    /// A route by a link: to everybody where `to` is absent, directly where `via` is.
    ///
    /// # Errors
    /// What the kernel says.
    pub async fn route(&self, to: Option<Cidr>, via: Option<IpAddr>, name: &str) -> io::Result<()> {
        let index = self.index(name).await?;
        let four = via.map_or_else(|| to.is_some_and(|to| to.address.is_ipv4()), |via| via.is_ipv4());
        let message = if four {
            let mut route = RouteMessageBuilder::<std::net::Ipv4Addr>::new().output_interface(index);
            if let Some(Cidr { address: IpAddr::V4(address), prefix }) = to {
                route = route.destination_prefix(address, prefix);
            }
            match via {
                // A gateway that is not of the subnet is on the link all the same.
                Some(IpAddr::V4(via)) => route.gateway(via).onlink().build(),
                _ => route.scope(RouteScope::Link).build(),
            }
        } else {
            let mut route = RouteMessageBuilder::<std::net::Ipv6Addr>::new().output_interface(index);
            if let Some(Cidr { address: IpAddr::V6(address), prefix }) = to {
                route = route.destination_prefix(address, prefix);
            }
            if let Some(IpAddr::V6(via)) = via {
                route = route.gateway(via).onlink();
            }
            route.build()
        };
        unless(self.handle.route().add(message).execute().await, &[Errno::EEXIST])
    }

    /// All routes of the main table, as text.
    ///
    /// # Errors
    /// What the kernel says.
    pub async fn routes(&self) -> io::Result<Vec<String>> {
        let names: BTreeMap<u32, String> =
            self.links().await?.into_iter().map(|link| (link.index, link.name)).collect();
        let mut texts = Vec::new();
        for asked in [
            RouteMessageBuilder::<std::net::Ipv4Addr>::new().build(),
            RouteMessageBuilder::<std::net::Ipv6Addr>::new().build(),
        ] {
            let all: Vec<RouteMessage> =
                self.handle.route().get(asked).execute().try_collect().await.map_err(cause)?;
            // The kernel's own for its own addresses are in another table.
            let main = all.iter().filter(|route| route.header.table == RouteHeader::RT_TABLE_MAIN);
            texts.extend(main.map(|route| route_text(route, &names)));
        }
        Ok(texts)
    }

    /// Packets to there are thrown away.
    ///
    /// # Errors
    /// What the kernel says.
    pub async fn blackhole(&self, to: Cidr) -> io::Result<()> {
        let IpAddr::V4(address) = to.address else {
            return Ok(()); // There is no instance metadata service beyond IPv4 that has one address.
        };
        let route = RouteMessageBuilder::<std::net::Ipv4Addr>::new()
            .destination_prefix(address, to.prefix)
            .kind(RouteType::BlackHole);
        unless(self.handle.route().add(route.build()).execute().await, &[Errno::EEXIST])
    }
}

fn route_text(route: &RouteMessage, names: &BTreeMap<u32, String>) -> String {
    let ip = |address: &RouteAddress| match address {
        RouteAddress::Inet(address) => address.to_string(),
        RouteAddress::Inet6(address) => address.to_string(),
        other => format!("{other:?}"),
    };
    let (mut to, mut via, mut link) = ("default".to_owned(), String::new(), String::new());
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Destination(address) => {
                to = format!("{}/{}", ip(address), route.header.destination_prefix_length);
            }
            RouteAttribute::Gateway(address) => via = format!(" via {}", ip(address)),
            RouteAttribute::Oif(index) => {
                link = format!(" dev {}", names.get(index).map_or("?", String::as_str));
            }
            _ => {}
        }
    }
    let kind = if route.header.kind == RouteType::BlackHole { "blackhole " } else { "" };
    format!("{kind}{to}{via}{link}")
}
