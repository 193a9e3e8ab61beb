//! What a fault is in the kernel's words. Decides; touches nothing.
//!
//! What a task has broken is in a table of rules under its name: a chain for each port that swallows packets,
//! and one without rules that remembers by which link packets are held up.

use std::net::IpAddr;

use berth_core::attachment::{Cidr, Direction};
use berth_core::units::Protocol;

use super::{Hole, Impairment, Kind};
use crate::network::guard::{Chain, Line, Match, Named};
use crate::network::netlink::traffic::{Discipline, Filter, Name, Word};

/// How the names of the tables begin.
const PREFIX: &str = "berth-fault";
/// The kernel's names for the link's first discipline and for the one that holds packets up.
pub(super) const FIRST: Name = Name(0xbe, 0);
const IMPAIRING: Name = Name(0xbf, 0);
/// The classes of the first: what is held up, and what is not.
const HELD_UP: Name = Name(0xbe, 1);
const SPARED: Name = Name(0xbe, 3);
const IMPAIRING_KIND: &str = "netem";
/// Packets that may wait at once: the usual number of `tc`.
const WAITING: u32 = 1000;

/// `TCA_NETEM_LATENCY64` and `TCA_NETEM_JITTER64`, in nanoseconds.
const LATENCY: u16 = 10;
const JITTER: u16 = 11;
const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;

/// The table of a task's. `agent` names the agent among those of the host.
pub(super) fn table(agent: &str, id: &str) -> String {
    format!("{}{id}", tables_of(agent))
}

/// How the names of an agent's tables begin.
pub(super) fn tables_of(agent: &str) -> String {
    format!("{PREFIX}-{agent}-")
}

/// The chain of a port that swallows packets.
pub(super) fn chain(table: &str, hole: Hole) -> Named {
    let direction = match hole.direction {
        Direction::Ingress => "ingress",
        Direction::Egress => "egress",
    };
    Named { table: table.to_owned(), chain: format!("{direction}-{}-{}", hole.protocol.as_str(), hole.port) }
}

/// What remembers that packets are held up by that link.
pub(super) fn note(table: &str, kind: Kind, link: &str) -> Named {
    Named { table: table.to_owned(), chain: format!("{}.{link}", kind.as_str()) }
}

/// What a note says.
pub(super) fn noted(name: &Named) -> Option<(Kind, &str)> {
    let (kind, link) = name.chain.split_once('.')?;
    Some((Kind::ALL.into_iter().find(|known| known.as_str() == kind)?, link))
}

/// The rules of a port that swallows packets. Who asks for them at `endpoint` has to reach it, to be rid of them
/// again.
pub(super) fn rules(hole: Hole, spared: &[Cidr], endpoint: Option<IpAddr>) -> Chain {
    let peer = |block: Cidr| match hole.direction {
        Direction::Ingress => Match::Source(block, true),
        Direction::Egress => Match::Destination(block),
    };
    let pass = |block: Cidr, address: Match| Line {
        when: vec![Match::Family { four: block.address.is_ipv4() }, address],
        pass: true,
    };
    let endpoint = endpoint.and_then(|at| Cidr::new(at, if at.is_ipv4() { 32 } else { 128 }));
    let mut lines: Vec<Line> =
        endpoint.into_iter().map(|block| pass(block, Match::Destination(block))).collect();
    lines.extend(spared.iter().map(|block| match block.prefix {
        // All of a family: there is no address to compare.
        0 => Line { when: vec![Match::Family { four: block.address.is_ipv4() }], pass: true },
        _ => pass(*block, peer(*block)),
    }));
    let number = match hole.protocol {
        Protocol::Tcp => 6,
        Protocol::Udp => 17,
    };
    lines.push(Line { when: vec![Match::Protocol(number), Match::Port(hole.port, hole.port)], pass: false });
    Chain { lines, pass: true }
}

/// The disciplines that hold packets up, in order.
pub(super) fn disciplines(how: Impairment) -> [Discipline; 2] {
    [
        Discipline {
            kind: "prio".to_owned(),
            name: FIRST,
            parent: Name::ROOT,
            // `tc_prio_qopt`: three classes; whatever a packet's priority, it goes to the last.
            options: [&3_u32.to_ne_bytes()[..], &[2; 16]].concat(),
        },
        Discipline { kind: IMPAIRING_KIND.to_owned(), name: IMPAIRING, parent: HELD_UP, options: netem(how) },
    ]
}

/// `tc_netem_qopt` (latency, limit, loss, gap, duplicate, jitter), then attributes.
fn netem(how: Impairment) -> Vec<u8> {
    let (delay, jitter, percent) = match how {
        Impairment::Delay(delay, jitter) => (delay, jitter, 0),
        Impairment::Loss(percent) => (0, 0, u64::from(percent)),
    };
    // A chance is a part of the largest number.
    let chance = u32::try_from(u64::from(u32::MAX) * percent / 100).unwrap_or(u32::MAX);
    let mut bytes: Vec<u8> =
        [0, WAITING, chance, 0, 0, 0].iter().flat_map(|word: &u32| word.to_ne_bytes()).collect();
    for (kind, nanos) in [(LATENCY, delay), (JITTER, jitter)] {
        bytes.extend(12_u16.to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(nanos.to_ne_bytes());
    }
    bytes
}

/// What holds packets up by a link with those disciplines.
pub(super) fn seen(disciplines: &[Discipline]) -> Option<Kind> {
    let netem = disciplines.iter().find(|one| one.kind == IMPAIRING_KIND)?;
    let word = |at: usize| netem.options.get(at..at + 4).is_some_and(|bytes| bytes != [0; 4]);
    // Its latency, or else its chance of loss.
    if !word(0) && word(8) { Some(Kind::PacketLoss) } else { Some(Kind::Latency) }
}

/// Which packets are held up: those that go there, but for those that go to who is spared.
pub(super) fn filters(to: &[Cidr], spared: &[Cidr]) -> Vec<Filter> {
    let of = |blocks: &[Cidr], first: u16, class: Name| {
        let filter = move |block: &Cidr| {
            let four = block.address.is_ipv4();
            // One priority has one protocol.
            let (priority, protocol) = if four { (first, IPV4) } else { (first + 1, IPV6) };
            Filter { of: FIRST, priority, protocol, words: words(*block), class }
        };
        blocks.iter().map(filter).collect::<Vec<_>>()
    };
    [of(spared, 1, SPARED), of(to, 3, HELD_UP)].concat()
}

/// The destination of a packet, word by word; a word of which nothing counts is not looked at.
fn words(block: Cidr) -> Vec<Word> {
    let (start, address) = match block.network() {
        IpAddr::V4(address) => (16, address.octets().to_vec()),
        IpAddr::V6(address) => (24, address.octets().to_vec()),
    };
    let words = address.chunks_exact(4).zip(0_u8..).map(|(bytes, at)| {
        let bits = u32::from(block.prefix).saturating_sub(u32::from(at) * 32).min(32);
        let value = bytes.iter().fold(0, |value, byte| (value << 8) | u32::from(*byte));
        Word { at: start + i32::from(at) * 4, mask: u32::MAX.checked_shl(32 - bits).unwrap_or(0), value }
    });
    let mut counting: Vec<Word> = words.filter(|word| word.mask != 0).collect();
    if counting.is_empty() {
        // Everything: a filter has to look at something.
        counting.push(Word { at: start, mask: 0, value: 0 });
    }
    counting
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOLE: Hole = Hole { direction: Direction::Egress, protocol: Protocol::Tcp, port: 5432 };

    fn block(text: &str) -> Cidr {
        text.parse().unwrap()
    }

    #[test]
    fn names_tell_what_is_broken() {
        let table = table("00ff", "abc");
        assert_eq!(table, "berth-fault-00ff-abc");
        assert_eq!(table.strip_prefix(&tables_of("00ff")), Some("abc"));
        assert_eq!(table.strip_prefix(&tables_of("00fe")), None);
        assert_eq!(chain(&table, HOLE).chain, "egress-tcp-5432");
        assert_eq!(noted(&chain(&table, HOLE)), None);
        let note = note(&table, Kind::Latency, "eth0.5");
        assert_eq!(noted(&note), Some((Kind::Latency, "eth0.5")));
    }

    #[test]
    fn a_hole_swallows_all_but_the_endpoint_and_who_is_spared() {
        let endpoint = "169.254.170.2".parse().unwrap();
        let chain = rules(HOLE, &[block("10.0.0.0/8"), block("::/0")], Some(endpoint));
        assert!(chain.pass);
        let passes: Vec<&Vec<Match>> = chain.lines.iter().filter(|l| l.pass).map(|l| &l.when).collect();
        let four = |four| Match::Family { four };
        assert_eq!(
            passes,
            [
                &vec![four(true), Match::Destination(block("169.254.170.2/32"))],
                &vec![four(true), Match::Destination(block("10.0.0.0/8"))],
                &vec![four(false)],
            ]
        );
        let last = chain.lines.last().unwrap();
        assert_eq!((last.pass, &last.when), (false, &vec![Match::Protocol(6), Match::Port(5432, 5432)]));
        let incoming = rules(Hole { direction: Direction::Ingress, ..HOLE }, &[block("10.0.0.1/32")], None);
        assert_eq!(incoming.lines[0].when[1], Match::Source(block("10.0.0.1/32"), true));
    }

    #[test]
    fn what_the_kernel_shows_is_what_it_was_told() {
        // The kernel shows a latency in its ticks of 64 ns, and in the first word.
        let mut late = disciplines(Impairment::Delay(200_000_000, 10_000_000));
        assert_eq!(late[1].options.len(), 24 + 2 * 12);
        late[1].options[..4].copy_from_slice(&3_125_000_u32.to_ne_bytes());
        assert_eq!(seen(&late), Some(Kind::Latency));
        let lossy = disciplines(Impairment::Loss(50));
        assert_eq!(seen(&lossy), Some(Kind::PacketLoss));
        assert_eq!(lossy[1].options[8..12], (u32::MAX / 2).to_ne_bytes());
        let all = disciplines(Impairment::Loss(100));
        assert_eq!(all[1].options[8..12], u32::MAX.to_ne_bytes());
        assert_eq!(seen(&lossy[..1]), None);
    }

    #[test]
    fn filters_look_at_destinations_and_spare_first() {
        let filters = filters(&[block("0.0.0.0/0"), block("fd00::/40")], &[block("10.1.2.3/20")]);
        let short: Vec<(u16, u16, Name)> =
            filters.iter().map(|f| (f.priority, f.protocol, f.class)).collect();
        assert_eq!(short, [(1, IPV4, SPARED), (3, IPV4, HELD_UP), (4, IPV6, HELD_UP)]);
        assert_eq!(filters[0].words, [Word { at: 16, mask: 0xffff_f000, value: 0x0a01_0000 }]);
        assert_eq!(filters[1].words, [Word { at: 16, mask: 0, value: 0 }]);
        assert_eq!(
            filters[2].words,
            [
                Word { at: 24, mask: u32::MAX, value: 0xfd00_0000 },
                Word { at: 28, mask: 0xff00_0000, value: 0 }
            ]
        );
    }
}
