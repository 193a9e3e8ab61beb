//! Security groups, in force inside a task's namespace: which packets may come in and go out, as data.
//! Replaced as a whole in one transaction; what is established goes on, because the kernel's
//! connection tracking outlives the rules.

pub mod frames;
pub mod named;
mod nft;

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use berth_core::attachment::{Attachment, Cidr, Direction, MacAddress, Rule, SecurityGroup, Traffic};

use super::netns::Namespace;
use super::plan::{ENDPOINT, ENDPOINT_LINK, INTERFACE};

pub use self::named::Named;

/// One condition of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Match {
    /// It belongs to a connection that is known, or to one that such a connection caused.
    Known,
    /// It comes in by this link.
    From(&'static str),
    /// It goes out by this link.
    By(&'static str),
    /// It is IPv4, or else IPv6.
    Family {
        /// Whether it is IPv4.
        four: bool,
    },
    /// Its source is in that block, or is not.
    Source(Cidr, bool),
    /// Its destination is in that block.
    Destination(Cidr),
    /// The protocol above IP, by its number.
    Protocol(u8),
    /// The port that it is sent to.
    Port(u16, u16),
    /// The type of an ICMP message.
    IcmpType(u8, u8),
    /// The hardware address that a frame comes from is that one, or is not.
    FrameSource(MacAddress, bool),
    /// What a frame carries.
    EtherType(u16),
    /// An ARP message speaks for that address.
    ArpSender(Ipv4Addr),
    /// An ARP message speaks for that hardware address.
    ArpSenderMac(MacAddress),
    /// What follows the header of an IPv6 packet.
    NextHeader(u8),
    /// The type of an `ICMPv6` message that follows the header of an IPv6 packet.
    Icmp6Type(u8),
    /// A neighbour advertisement speaks for no address of that block.
    NotTarget(Cidr),
}

/// What becomes of a packet for which all conditions hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// The conditions.
    pub when: Vec<Match>,
    /// Whether it passes.
    pub pass: bool,
}

/// The rules of one direction, first match first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Chain {
    /// The rules.
    pub lines: Vec<Line>,
    /// Whether what no rule names passes.
    pub pass: bool,
}

/// Everything that guards a task.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Table {
    /// To the task.
    pub ingress: Chain,
    /// From the task.
    pub egress: Chain,
}

const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMP_V6: u8 = 58;
/// Router and neighbour solicitations and advertisements: without them there is no IPv6.
const NEIGHBOUR_DISCOVERY: (u8, u8) = (133, 136);

fn pass(when: Vec<Match>) -> Line {
    Line { when, pass: true }
}

/// What guards a task with that attachment and those groups; `endpoint` is the port where the agent answers tasks.
#[must_use]
pub fn table(attachment: &Attachment, groups: &[SecurityGroup], endpoint: Option<u16>) -> Table {
    let mut table = Table::default();
    // Nobody speaks under another's address.
    table.egress.lines.extend(spoofs(attachment));
    let open = groups.is_empty();
    for chain in [&mut table.ingress, &mut table.egress] {
        chain.pass = open;
        chain.lines.push(pass(vec![Match::Known]));
        let (first, last) = NEIGHBOUR_DISCOVERY;
        chain.lines.push(pass(vec![Match::Protocol(ICMP_V6), Match::IcmpType(first, last)]));
    }
    table.ingress.lines.push(pass(vec![Match::From("lo")]));
    table.egress.lines.push(pass(vec![Match::By("lo")]));
    if let (Some(address), Some(port)) = (Cidr::new(ENDPOINT.into(), 32), endpoint) {
        table.egress.lines.push(pass(vec![
            Match::By(ENDPOINT_LINK),
            Match::Family { four: true },
            Match::Destination(address),
            Match::Protocol(TCP),
            Match::Port(port, port),
        ]));
    }
    // Nothing else by the link to the agent: the host has more that listens at all of its addresses.
    table.ingress.lines.push(Line { when: vec![Match::From(ENDPOINT_LINK)], pass: false });
    table.egress.lines.push(Line { when: vec![Match::By(ENDPOINT_LINK)], pass: false });
    for rule in groups.iter().flat_map(|group| &group.rules) {
        let chain = match rule.direction {
            Direction::Ingress => &mut table.ingress,
            Direction::Egress => &mut table.egress,
        };
        chain.lines.extend(rule.peers.iter().map(|peer| pass(conditions(rule, *peer))));
    }
    table
}

fn conditions(rule: &Rule, peer: Cidr) -> Vec<Match> {
    let four = peer.address.is_ipv4();
    let mut when = vec![Match::Family { four }];
    if peer.prefix > 0 {
        when.push(match rule.direction {
            Direction::Ingress => Match::Source(peer, true),
            Direction::Egress => Match::Destination(peer),
        });
    }
    match rule.traffic {
        Traffic::All => {}
        Traffic::Tcp(ports) => when.extend([Match::Protocol(TCP), Match::Port(ports.first(), ports.last())]),
        Traffic::Udp(ports) => when.extend([Match::Protocol(UDP), Match::Port(ports.first(), ports.last())]),
        Traffic::Icmp => when.push(Match::Protocol(if four { ICMP } else { ICMP_V6 })),
    }
    when
}

fn spoofs(attachment: &Attachment) -> Vec<Line> {
    let spoof = |four: bool| {
        let bits = if four { 32 } else { 128 };
        let own = attachment.addresses.iter().map(|a| a.address).filter(move |a| a.is_ipv4() == four);
        let mut honest: Vec<Cidr> = own.filter_map(|address| Cidr::new(address, bits)).collect();
        if !four {
            // What a link has for itself: its own address, and none yet.
            honest.extend(Cidr::new(IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0)), 10));
            honest.extend(Cidr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), 128));
        }
        let mut when = vec![Match::By(INTERFACE), Match::Family { four }];
        when.extend(honest.into_iter().map(|address| Match::Source(address, false)));
        Line { when, pass: false }
    };
    vec![spoof(true), spoof(false)]
}

/// Puts a table in force in that namespace, in place of the one before.
///
/// # Errors
/// What the kernel says.
pub async fn apply(namespace: &Namespace, table: Table) -> io::Result<()> {
    namespace.enter(move || nft::replace(&table)).await
}

/// How many rules are in force in that namespace: to the task, and from it.
///
/// # Errors
/// What the kernel says.
pub async fn count(namespace: &Namespace) -> io::Result<(usize, usize)> {
    namespace.enter(nft::count).await
}

#[cfg(test)]
pub(super) mod tests {
    use berth_core::attachment::Provider;
    use berth_core::units::{Millis, PortRange};

    use super::*;

    pub(in crate::network::guard) fn attachment() -> Attachment {
        Attachment {
            id: "a".to_owned(),
            interface_id: "eni-1".to_owned(),
            subnet_id: "subnet-1".to_owned(),
            provider: Provider::Veth,
            mac: MacAddress([2, 0, 0, 0, 0, 1]),
            addresses: vec!["10.0.0.5/24".parse().unwrap()],
            gateways: Vec::new(),
            dns_servers: Vec::new(),
            dns_search_domains: Vec::new(),
            hostname: String::new(),
            mtu: None,
            patience: Millis(0),
            security_groups: Vec::new(),
        }
    }

    #[test]
    fn without_groups_everything_passes_but_what_is_spoofed() {
        let table = table(&attachment(), &[], None);
        assert!(table.ingress.pass && table.egress.pass);
        let first = &table.egress.lines[0];
        assert!(!first.pass && first.when.contains(&Match::Source("10.0.0.5/32".parse().unwrap(), false)));
    }

    #[test]
    fn with_a_group_only_what_it_names_comes_in() {
        let rule = Rule {
            direction: Direction::Ingress,
            traffic: Traffic::Tcp(PortRange::new(80, 90).unwrap()),
            peers: ["10.0.0.0/8".parse().unwrap()].into(),
        };
        let group = SecurityGroup { id: "sg".to_owned(), version: 1, rules: vec![rule] };
        let table = table(&attachment(), &[group], Some(80));
        assert!(!table.ingress.pass && !table.egress.pass);
        let last = table.ingress.lines.last().unwrap();
        assert_eq!(
            last.when,
            [
                Match::Family { four: true },
                Match::Source("10.0.0.0/8".parse().unwrap(), true),
                Match::Protocol(TCP),
                Match::Port(80, 90)
            ]
        );
    }
}
