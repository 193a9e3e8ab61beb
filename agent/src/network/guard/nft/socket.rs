//! Questions and transactions: what goes to the kernel in one piece, and what it answers.

use std::io;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkBuffer, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_netfilter::nftables::NfTablesMessage;
use netlink_packet_netfilter::none::ControlMessage;
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};

use super::Messages;

/// nf_tables' own number among the subsystems of netfilter.
const NFTABLES: u16 = 10;

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

/// Everything that the kernel says to a question.
pub(super) fn dump(
    family: NetfilterProtoFamily,
    question: NfTablesMessage,
) -> io::Result<Vec<NfTablesMessage>> {
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    socket.send(&message(1, NLM_F_DUMP, NetfilterHeader::new(family, 0, 0), question), 0)?;
    let mut answers = Vec::new();
    loop {
        let (bytes, _) = socket.recv_from_full()?;
        for answer in split(&bytes) {
            match answer {
                NetlinkPayload::Done(_) => return Ok(answers),
                NetlinkPayload::Error(error) if error.code.is_some() => return Err(error.to_io()),
                NetlinkPayload::InnerMessage(NetfilterMessage {
                    inner: NetfilterMessageInner::NfTables(answer),
                    ..
                }) => answers.push(answer),
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
pub(super) fn transact(family: NetfilterProtoFamily, messages: Messages) -> io::Result<()> {
    let control = || NetfilterHeader::new(NetfilterProtoFamily::Unspec, 0, NFTABLES);
    let mut batch = message(0, 0, control(), ControlMessage::BatchBegin);
    let mut expected = 0;
    for (flags, inner) in messages {
        expected += 1;
        let header = NetfilterHeader::new(family, 0, 0);
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
