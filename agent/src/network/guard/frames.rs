//! What a task may put on the wire: frames under its own hardware address that carry packets under
//! its own addresses, and claim no neighbour's. In force below the sockets, so that it holds for raw
//! ones as well.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use berth_core::attachment::{Attachment, Cidr, MacAddress, Provider};

use super::{Chain, Line, Match, nft, pass};
use crate::network::netns::Namespace;

/// `EtherType` values (IEEE 802 Numbers, IANA).
const IPV4: u16 = 0x0800;
const ARP: u16 = 0x0806;
const IPV6: u16 = 0x86dd;
const ICMP_V6: u8 = 58;
/// `ICMPv6` messages of routers alone: advertisements and redirects (RFC 4861, section 4).
const ROUTER_ADVERTISEMENT: u8 = 134;
const REDIRECT: u8 = 137;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;

/// Where the frames pass by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wire {
    /// They come in by that link: the far end of the task's own.
    In,
    /// They go out by that link: the task's own.
    Out,
}

/// Which frames of a task with that attachment pass; all others do not.
#[must_use]
pub fn chain(attachment: &Attachment) -> Chain {
    let mut lines = Vec::new();
    // Children of the ipvlan kind have the hardware address of their parent, which is not known here.
    let mac = (attachment.provider != Provider::Ipvlan).then_some(attachment.mac);
    lines.extend(mac.map(|mac| Line { when: vec![Match::FrameSource(mac, false)], pass: false }));
    let own = || attachment.addresses.iter().map(|cidr| cidr.address);
    for address in own() {
        match address {
            IpAddr::V4(address) => lines.extend(of_ipv4(address, mac)),
            IpAddr::V6(_) => {}
        }
    }
    // Who asks whether an address is taken has none yet.
    lines.extend(arp(Ipv4Addr::UNSPECIFIED, mac));
    lines.extend(of_ipv6(own().filter(IpAddr::is_ipv6).collect()));
    Chain { lines, pass: false }
}

fn arp(sender: Ipv4Addr, mac: Option<MacAddress>) -> Option<Line> {
    let mut when = vec![Match::EtherType(ARP), Match::ArpSender(sender)];
    when.extend(mac.map(Match::ArpSenderMac));
    Some(pass(when))
}

fn of_ipv4(address: Ipv4Addr, mac: Option<MacAddress>) -> Vec<Line> {
    let packets =
        Cidr::new(address.into(), 32).map(|own| pass(vec![Match::EtherType(IPV4), Match::Source(own, true)]));
    arp(address, mac).into_iter().chain(packets).collect()
}

fn of_ipv6(own: Vec<IpAddr>) -> Vec<Line> {
    let icmp = |kind| vec![Match::EtherType(IPV6), Match::NextHeader(ICMP_V6), Match::Icmp6Type(kind)];
    let refuse = |when| Line { when, pass: false };
    let link_local = Cidr::new(IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0)), 10);
    let unspecified = Cidr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), 128);
    let own: Vec<Cidr> =
        own.into_iter().filter_map(|address| Cidr::new(address, 128)).chain(link_local).collect();

    let mut lines = vec![refuse(icmp(ROUTER_ADVERTISEMENT)), refuse(icmp(REDIRECT))];
    let mut claims_another = icmp(NEIGHBOUR_ADVERTISEMENT);
    claims_another.extend(own.iter().map(|address| Match::NotTarget(*address)));
    lines.push(refuse(claims_another));
    lines.extend(
        own.into_iter()
            .chain(unspecified)
            .map(|address| pass(vec![Match::EtherType(IPV6), Match::Source(address, true)])),
    );
    lines
}

/// Puts the chain in force at a link of that namespace, in place of the one before.
///
/// # Errors
/// `EOPNOTSUPP` and its like where the kernel cannot look at frames there (before 5.16: [`Wire::Out`]).
pub async fn apply(namespace: &Namespace, link: &str, wire: Wire, chain: Chain) -> io::Result<()> {
    let link = link.to_owned();
    namespace.enter(move || nft::replace_frames(&link, wire, &chain)).await
}

/// Removes what is in force at links of that namespace.
///
/// # Errors
/// What the kernel says.
pub async fn remove(namespace: &Namespace, links: Vec<String>) -> io::Result<()> {
    if links.is_empty() {
        return Ok(());
    }
    namespace.enter(move || nft::remove_frames(&links)).await
}

/// The links of that namespace at which rules are in force, or were while they were there.
///
/// # Errors
/// What the kernel says.
pub async fn list(namespace: &Namespace) -> io::Result<Vec<String>> {
    namespace.enter(nft::framed_links).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::guard::tests::attachment;

    #[test]
    fn what_is_not_the_tasks_own_does_not_pass() {
        let chain = chain(&attachment());
        assert!(!chain.pass);
        assert_eq!(
            chain.lines[0],
            Line { when: vec![Match::FrameSource(MacAddress([2, 0, 0, 0, 0, 1]), false)], pass: false }
        );
        let own = Match::Source("10.0.0.5/32".parse().unwrap(), true);
        let sources: Vec<&Match> = chain
            .lines
            .iter()
            .filter(|line| line.pass && line.when.contains(&Match::EtherType(IPV4)))
            .flat_map(|line| &line.when[1..])
            .collect();
        assert_eq!(sources, [&own]);
    }

    #[test]
    fn an_ipvlan_child_speaks_under_its_parents_hardware_address() {
        let chain = chain(&Attachment { provider: Provider::Ipvlan, ..attachment() });
        assert!(
            !chain
                .lines
                .iter()
                .flat_map(|line| &line.when)
                .any(|m| matches!(m, Match::FrameSource(..) | Match::ArpSenderMac(_)))
        );
    }
}
