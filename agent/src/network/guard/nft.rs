//! A table in the words of nf_tables, and its one transaction with the kernel of the namespace that
//! the thread is in.

use std::io;
use std::net::IpAddr;

use berth_core::attachment::Cidr;
use netlink_packet_core::{
    DefaultNla, NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_DUMP, NLM_F_REQUEST, NetlinkBuffer,
    NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_netfilter::nftables::{
    Bitwise, ChainAttribute, ChainMessage, Cmp, DataAttribute, ExpressionAttribute, Expressions, Hook,
    Immediate, InetHookNumber, ListAttribute, Meta, MetaKey, NfTablesMessage, Operator, Payload, Register,
    RuleAttribute, RuleMessage, TableAttribute, TableMessage, Verdict, VerdictAttribute,
};
use netlink_packet_netfilter::none::ControlMessage;
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};

use super::{Chain, Line, Match, Table};

/// The name of the table; no other program's.
const TABLE: &str = "berth";
/// nf_tables' own number among the subsystems of netfilter.
const NFTABLES: u16 = 10;
const NF_DROP: u32 = 0;
const NF_ACCEPT: u32 = 1;
/// The bits of `ct state`: established and related.
const KNOWN: u32 = 2 | 4;
const NFTA_CT_DREG: u16 = 1;
const NFTA_CT_KEY: u16 = 2;
const NFT_CT_STATE: u32 = 0;
const NETWORK_HEADER: u32 = 1;
const TRANSPORT_HEADER: u32 = 2;
/// A link's name in the kernel, padded with zeros.
const NAME: usize = 16;

/// Replaces what is in force in the thread's namespace.
pub(super) fn replace(table: &Table) -> io::Result<()> {
    transact(messages(table))
}

type Expression = ListAttribute<ExpressionAttribute>;

fn messages(table: &Table) -> Vec<(u16, NfTablesMessage)> {
    let named = || TableMessage { attributes: vec![TableAttribute::Name(TABLE.to_owned())] };
    // Made so that it can be deleted, deleted so that it is empty, made.
    let mut messages = vec![
        (NLM_F_CREATE, NfTablesMessage::NewTable(named())),
        (0, NfTablesMessage::DeleteTable(named())),
        (NLM_F_CREATE, NfTablesMessage::NewTable(named())),
    ];
    for (name, hook, chain) in [
        ("ingress", InetHookNumber::LocalIn, &table.ingress),
        ("egress", InetHookNumber::LocalOut, &table.egress),
    ] {
        messages.push((NLM_F_CREATE, chain_message(name, hook, chain)));
        for line in &chain.lines {
            messages.push((NLM_F_CREATE | NLM_F_APPEND, rule_message(name, line)));
        }
    }
    messages
}

fn chain_message(name: &str, hook: InetHookNumber, chain: &Chain) -> NfTablesMessage {
    NfTablesMessage::NewChain(ChainMessage {
        attributes: vec![
            ChainAttribute::Table(TABLE.to_owned()),
            ChainAttribute::Name(name.to_owned()),
            ChainAttribute::Hook(vec![Hook::Number(hook.into()), Hook::Priority(0)]),
            ChainAttribute::Policy(if chain.pass { NF_ACCEPT } else { NF_DROP }),
            ChainAttribute::Type("filter".to_owned()),
        ],
    })
}

fn rule_message(chain: &str, line: &Line) -> NfTablesMessage {
    let mut expressions: Vec<Expression> = line.when.iter().flat_map(expressions).collect();
    let verdict = Verdict::Other(if line.pass { NF_ACCEPT } else { NF_DROP });
    expressions.push(
        Expressions::Immediate(vec![
            Immediate::DestinationRegister(Register::Verdict),
            Immediate::Data(DataAttribute::Verdict(vec![VerdictAttribute::Code(verdict)])),
        ])
        .into(),
    );
    NfTablesMessage::NewRule(RuleMessage {
        attributes: vec![
            RuleAttribute::Table(TABLE.to_owned()),
            RuleAttribute::Chain(chain.to_owned()),
            RuleAttribute::Expressions(expressions),
        ],
    })
}

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
    let (offset, bytes) = match block.network() {
        IpAddr::V4(address) => (if source { 12 } else { 16 }, address.octets().to_vec()),
        IpAddr::V6(address) => (if source { 8 } else { 24 }, address.octets().to_vec()),
    };
    let length = bytes.len();
    let mut expressions = vec![payload(NETWORK_HEADER, offset, u32::try_from(length).unwrap_or_default())];
    if usize::from(block.prefix) < length * 8 {
        expressions.push(mask(prefix_mask(block.prefix, length)));
    }
    expressions.push(compare(if within { Operator::Equal } else { Operator::NotEqual }, bytes));
    expressions
}

fn prefix_mask(prefix: u8, length: usize) -> Vec<u8> {
    let bits = |byte: usize| usize::from(prefix).saturating_sub(byte * 8).min(8);
    (0..length)
        .map(|byte| u8::MAX.checked_shl(u32::try_from(8 - bits(byte)).unwrap_or(8)).unwrap_or(0))
        .collect()
}

fn expressions(condition: &Match) -> Vec<Expression> {
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
    }
}

fn message(
    sequence: u32,
    flags: u16,
    header: NetfilterHeader,
    inner: impl Into<NetfilterMessageInnerOf>,
) -> Vec<u8> {
    let body = match inner.into() {
        NetfilterMessageInnerOf::Control(control) => NetfilterMessage::new(header, control),
        NetfilterMessageInnerOf::Tables(tables) => NetfilterMessage::new(header, *tables),
    };
    let mut head = NetlinkHeader::default();
    head.flags = NLM_F_REQUEST | flags;
    head.sequence_number = sequence;
    let mut message = NetlinkMessage::new(head, NetlinkPayload::from(body));
    message.finalize();
    let mut bytes = vec![0; message.buffer_len().next_multiple_of(4)];
    message.serialize(&mut bytes);
    bytes
}

/// What a message is about.
enum NetfilterMessageInnerOf {
    Control(ControlMessage),
    Tables(Box<NfTablesMessage>),
}

impl From<ControlMessage> for NetfilterMessageInnerOf {
    fn from(control: ControlMessage) -> Self {
        Self::Control(control)
    }
}

impl From<NfTablesMessage> for NetfilterMessageInnerOf {
    fn from(tables: NfTablesMessage) -> Self {
        Self::Tables(Box::new(tables))
    }
}

/// How many rules the chains of the table have: ingress, egress.
pub(super) fn count() -> io::Result<(usize, usize)> {
    let asked = RuleMessage { attributes: vec![RuleAttribute::Table(TABLE.to_owned())] };
    let header = NetfilterHeader::new(NetfilterProtoFamily::Inet, 0, 0);
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    socket.send(&message(1, NLM_F_DUMP, header, NfTablesMessage::GetRule(asked)), 0)?;
    let (mut ingress, mut egress) = (0, 0);
    loop {
        let (bytes, _) = socket.recv_from_full()?;
        for answer in split(&bytes) {
            match answer {
                NetlinkPayload::Done(_) => return Ok((ingress, egress)),
                NetlinkPayload::Error(error) if error.code.is_some() => return Err(error.to_io()),
                NetlinkPayload::InnerMessage(NetfilterMessage {
                    inner: NetfilterMessageInner::NfTables(NfTablesMessage::NewRule(rule)),
                    ..
                }) => {
                    let is = |name: &str| rule.attributes.contains(&RuleAttribute::Chain(name.to_owned()));
                    ingress += usize::from(is("ingress"));
                    egress += usize::from(is("egress"));
                }
                _ => {}
            }
        }
    }
}

/// The messages in what the kernel sent at once.
fn split(bytes: &[u8]) -> Vec<NetlinkPayload<NetfilterMessage>> {
    let mut payloads = Vec::new();
    let mut rest = bytes;
    while rest.len() >= 16 {
        let length = usize::try_from(NetlinkBuffer::new(rest).length()).unwrap_or_default();
        if length < 16 || length > rest.len() {
            break;
        }
        if let Ok(message) = NetlinkMessage::<NetfilterMessage>::deserialize(&rest[..length]) {
            payloads.push(message.payload);
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    payloads
}

/// Sends all of it in one piece, and hears what the kernel says to each.
fn transact(messages: Vec<(u16, NfTablesMessage)>) -> io::Result<()> {
    let control = || NetfilterHeader::new(NetfilterProtoFamily::Unspec, 0, NFTABLES);
    let mut batch = message(0, 0, control(), ControlMessage::BatchBegin);
    let mut expected = 0;
    for (flags, inner) in messages {
        expected += 1;
        let header = NetfilterHeader::new(NetfilterProtoFamily::Inet, 0, 0);
        batch.extend(message(expected, NLM_F_ACK | flags, header, inner));
    }
    batch.extend(message(expected + 1, 0, control(), ControlMessage::BatchEnd));

    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    socket.send(&batch, 0)?;
    let mut heard = 0;
    while heard < expected {
        let (bytes, _) = socket.recv_from_full()?;
        for answer in split(&bytes) {
            if let NetlinkPayload::Error(answer) = answer {
                if answer.code.is_some() {
                    return Err(answer.to_io());
                }
                heard += 1;
            }
        }
    }
    Ok(())
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
