//! Conditions in the words of nf_tables: bytes of a packet are loaded, masked, compared.

use std::net::IpAddr;

use berth_core::attachment::Cidr;
use netlink_packet_core::DefaultNla;
use netlink_packet_netfilter::NetfilterProtoFamily;
use netlink_packet_netfilter::nftables::{
    Bitwise, Cmp, DataAttribute, ExpressionAttribute, Expressions, ListAttribute, Meta, MetaKey, Operator,
    Payload, Register,
};

use crate::network::guard::Match;

/// The bits of `ct state`: established and related.
const KNOWN: u32 = 2 | 4;
const NFTA_CT_DREG: u16 = 1;
const NFTA_CT_KEY: u16 = 2;
const NFT_CT_STATE: u32 = 0;
const FRAME_HEADER: u32 = 0;
const NETWORK_HEADER: u32 = 1;
const TRANSPORT_HEADER: u32 = 2;
/// A link's name in the kernel, padded with zeros.
const NAME: usize = 16;

pub(super) type Expression = ListAttribute<ExpressionAttribute>;

fn compare(operator: Operator, data: Vec<u8>) -> Expression {
    Expressions::Cmp(vec![
        Cmp::SourceRegister(Register::Reg1),
        Cmp::Op(operator),
        Cmp::Data(DataAttribute::Value(data)),
    ])
    .into()
}

fn meta(key: MetaKey) -> Expression {
    Expressions::Meta(vec![Meta::Key(key), Meta::DestinationRegister(Register::Reg1)]).into()
}

fn payload(base: u32, offset: u32, length: u32) -> Expression {
    Expressions::Payload(vec![
        Payload::DestinationRegister(Register::Reg1),
        Payload::Base(base),
        Payload::Offset(offset),
        Payload::Len(length),
    ])
    .into()
}

fn mask(mask: Vec<u8>) -> Expression {
    Expressions::Bitwise(vec![
        Bitwise::SourceRegister(Register::Reg1),
        Bitwise::DestinationRegister(Register::Reg1),
        Bitwise::Length(u32::try_from(mask.len()).unwrap_or_default()),
        Bitwise::Xor(DataAttribute::Value(vec![0; mask.len()])),
        Bitwise::Mask(DataAttribute::Value(mask)),
    ])
    .into()
}

fn link_name(name: &str) -> Vec<u8> {
    let mut bytes = name.as_bytes().to_vec();
    bytes.resize(NAME, 0);
    bytes
}

/// The source of a packet begins 12 bytes into an IPv4 header and 8 into one of IPv6; the destination
/// follows it.
fn address(block: Cidr, source: bool, within: bool) -> Vec<Expression> {
    let offset = match (block.address, source) {
        (IpAddr::V4(_), true) => 12,
        (IpAddr::V4(_), false) => 16,
        (IpAddr::V6(_), true) => 8,
        (IpAddr::V6(_), false) => 24,
    };
    address_at(offset, block, within)
}

/// An address in the packet, as many bytes into its header, is of that block, or is not.
fn address_at(offset: u32, block: Cidr, within: bool) -> Vec<Expression> {
    let bytes = match block.network() {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    let length = bytes.len();
    let mut expressions = vec![payload(NETWORK_HEADER, offset, u32::try_from(length).unwrap_or_default())];
    if usize::from(block.prefix) < length * 8 {
        expressions.push(mask(prefix_mask(block.prefix, length)));
    }
    expressions.push(compare(if within { Operator::Equal } else { Operator::NotEqual }, bytes));
    expressions
}

/// Bytes of a header are those.
fn bytes(base: u32, offset: u32, wanted: &[u8], equal: bool) -> Vec<Expression> {
    let length = u32::try_from(wanted.len()).unwrap_or_default();
    let operator = if equal { Operator::Equal } else { Operator::NotEqual };
    vec![payload(base, offset, length), compare(operator, wanted.to_vec())]
}

fn prefix_mask(prefix: u8, length: usize) -> Vec<u8> {
    let bits = |byte: usize| usize::from(prefix).saturating_sub(byte * 8).min(8);
    (0..length)
        .map(|byte| u8::MAX.checked_shl(u32::try_from(8 - bits(byte)).unwrap_or(8)).unwrap_or(0))
        .collect()
}

pub(super) fn expressions(condition: &Match) -> Vec<Expression> {
    match condition {
        Match::Known => vec![
            Expressions::Other {
                expression_type: "ct".to_owned(),
                attributes: vec![
                    DefaultNla::new(NFTA_CT_DREG, u32::from(Register::Reg1).to_be_bytes().to_vec()),
                    DefaultNla::new(NFTA_CT_KEY, NFT_CT_STATE.to_be_bytes().to_vec()),
                ],
            }
            .into(),
            mask(KNOWN.to_ne_bytes().to_vec()),
            compare(Operator::NotEqual, vec![0; 4]),
        ],
        Match::From(link) => vec![meta(MetaKey::Iifname), compare(Operator::Equal, link_name(link))],
        Match::By(link) => vec![meta(MetaKey::Oifname), compare(Operator::Equal, link_name(link))],
        Match::Family { four } => {
            let family = if *four { NetfilterProtoFamily::IPv4 } else { NetfilterProtoFamily::IPv6 };
            vec![meta(MetaKey::Nfproto), compare(Operator::Equal, vec![family.into()])]
        }
        Match::Source(block, within) => address(*block, true, *within),
        Match::Destination(block) => address(*block, false, true),
        Match::Protocol(number) => vec![meta(MetaKey::L4Proto), compare(Operator::Equal, vec![*number])],
        Match::Port(first, last) => vec![
            payload(TRANSPORT_HEADER, 2, 2),
            compare(Operator::GreatherThanEqual, first.to_be_bytes().to_vec()),
            compare(Operator::LessThanEqual, last.to_be_bytes().to_vec()),
        ],
        Match::IcmpType(first, last) => vec![
            payload(TRANSPORT_HEADER, 0, 1),
            compare(Operator::GreatherThanEqual, vec![*first]),
            compare(Operator::LessThanEqual, vec![*last]),
        ],
        // Six bytes of destination, six of source, the type; what is sent raw may lie to the kernel
        // about its type, but not to who receives it.
        Match::FrameSource(mac, equal) => bytes(FRAME_HEADER, 6, &mac.0, *equal),
        Match::EtherType(kind) => bytes(FRAME_HEADER, 12, &kind.to_be_bytes(), true),
        // RFC 826: eight bytes, then the sender's hardware address and address.
        Match::ArpSenderMac(mac) => bytes(NETWORK_HEADER, 8, &mac.0, true),
        Match::ArpSender(address) => bytes(NETWORK_HEADER, 14, &address.octets(), true),
        // RFC 8200: the next header's kind is byte 6 of 40; RFC 4861: the target is 8 bytes on.
        Match::NextHeader(kind) => bytes(NETWORK_HEADER, 6, &[*kind], true),
        Match::Icmp6Type(kind) => bytes(NETWORK_HEADER, 40, &[*kind], true),
        Match::NotTarget(block) => address_at(48, *block, false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_have_as_many_bits_as_the_prefix() {
        assert_eq!(prefix_mask(20, 4), [255, 255, 240, 0]);
        assert_eq!(prefix_mask(0, 4), [0; 4]);
        assert_eq!(prefix_mask(64, 16)[7..9], [255, 0]);
    }
}
