//! What holds packets up as they leave by a link: queueing disciplines, and filters that choose between them.

use std::io;

use futures_util::{StreamExt, TryStreamExt};
use nix::errno::Errno;
use rtnetlink::packet_core::{
    DefaultNla, NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload, Nla,
};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::tc::{
    TcAttribute, TcFilterU32Option, TcHandle, TcMessage, TcOption, TcU32Key, TcU32Selector,
    TcU32SelectorFlags,
};

use super::{Netlink, cause, unless};

/// `TCA_OPTIONS`.
const OPTIONS: u16 = 2;

/// A name that the kernel gives to a discipline (`MAJOR:`) or to a class of one (`MAJOR:MINOR`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Name(pub u16, pub u16);

impl Name {
    /// What a link's first discipline belongs to.
    pub const ROOT: Self = Self(u16::MAX, u16::MAX);

    fn handle(self) -> TcHandle {
        u32::from(self).into()
    }
}

impl From<Name> for u32 {
    fn from(name: Name) -> Self {
        (Self::from(name.0) << 16) | Self::from(name.1)
    }
}

/// A queueing discipline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Discipline {
    /// The kernel's name for its kind, such as `netem`.
    pub kind: String,
    /// Its own name.
    pub name: Name,
    /// The class that it is for.
    pub parent: Name,
    /// What its kind takes, as it takes it.
    pub options: Vec<u8>,
}

/// What goes to a class: packets in which each of these words is so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter {
    /// The discipline whose class it is.
    pub of: Name,
    /// Filters of a lower number come first. Those of one number are for one protocol.
    pub priority: u16,
    /// The `EtherType` of the packets.
    pub protocol: u16,
    /// The words: at so many bytes into the packet, under that mask, that value.
    pub words: Vec<Word>,
    /// The class.
    pub class: Name,
}

/// Four bytes of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Word {
    /// Where they are.
    pub at: i32,
    /// Which of their bits count.
    pub mask: u32,
    /// What these are.
    pub value: u32,
}

impl Netlink {
    /// Adds a discipline to a link.
    ///
    /// # Errors
    /// `ENOENT` when the kernel has no such kind; `EEXIST` when there is one in that place which is not the
    /// kernel's own choice.
    pub async fn discipline(&self, link: &str, discipline: &Discipline) -> io::Result<()> {
        let mut message = TcMessage::with_index(self.signed_index(link).await?);
        message.header.handle = discipline.name.handle();
        message.header.parent = discipline.parent.handle();
        message.attributes = vec![
            TcAttribute::Kind(discipline.kind.clone()),
            TcAttribute::Other(DefaultNla::new(OPTIONS, discipline.options.clone())),
        ];
        let mut request = NetlinkMessage::from(RouteNetlinkMessage::NewQueueDiscipline(message));
        request.header.flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL;
        let mut handle = self.handle.clone();
        let mut answers = handle.request(request).map_err(cause)?;
        while let Some(answer) = answers.next().await {
            if let NetlinkPayload::Error(error) = answer.payload
                && error.code.is_some()
            {
                return Err(error.to_io());
            }
        }
        Ok(())
    }

    /// Adds a filter to a link.
    ///
    /// # Errors
    /// What the kernel says.
    pub async fn filter(&self, link: &str, filter: &Filter) -> io::Result<()> {
        let mut selector = TcU32Selector::default();
        selector.flags = TcU32SelectorFlags::Terminal;
        selector.nkeys = u8::try_from(filter.words.len()).unwrap_or(u8::MAX);
        selector.keys = filter.words.iter().map(key).collect();
        let options =
            [TcFilterU32Option::ClassId(filter.class.handle()), TcFilterU32Option::Selector(selector)];
        let index = self.signed_index(link).await?;
        let request = self.handle.traffic_filter(index).add().parent(filter.of.into());
        let request = request.priority(filter.priority).protocol(filter.protocol.to_be());
        unless(request.u32(&options).map_err(cause)?.execute().await, &[])
    }

    /// The disciplines of a link; none where it is not there.
    ///
    /// # Errors
    /// What the kernel says.
    pub async fn disciplines(&self, link: &str) -> io::Result<Vec<Discipline>> {
        let Some(link) = self.link(link).await? else {
            return Ok(Vec::new());
        };
        let index = i32::try_from(link.index).map_err(io::Error::other)?;
        let request = self.handle.qdisc().get().index(index).execute();
        let all: Vec<TcMessage> = request.try_collect().await.map_err(cause)?;
        // A kernel that is asked of one link tells of all.
        Ok(all.into_iter().filter(|message| message.header.index == index).map(discipline).collect())
    }

    /// Removes the first discipline of a link, with all that belongs to it, where it has that name.
    ///
    /// # Errors
    /// What the kernel says.
    pub async fn remove_discipline(&self, link: &str, name: Name) -> io::Result<()> {
        let first = |one: &Discipline| one.parent == Name::ROOT && one.name == name;
        if !self.disciplines(link).await?.iter().any(first) {
            return Ok(());
        }
        let mut message = TcMessage::with_index(self.signed_index(link).await?);
        message.header.handle = name.handle();
        message.header.parent = Name::ROOT.handle();
        let mut request = self.handle.qdisc().del(message.header.index);
        *request.message_mut() = message;
        unless(request.execute().await, &[Errno::ENOENT, Errno::ENODEV])
    }

    async fn signed_index(&self, link: &str) -> io::Result<i32> {
        i32::try_from(self.index(link).await?).map_err(io::Error::other)
    }
}

fn key(word: &Word) -> TcU32Key {
    let mut key = TcU32Key::default();
    key.mask = word.mask;
    key.val = word.value;
    key.off = word.at;
    key
}

fn discipline(message: TcMessage) -> Discipline {
    let name = |handle: TcHandle| Name(handle.major, handle.minor);
    let mut seen = Discipline {
        kind: String::new(),
        name: name(message.header.handle),
        parent: name(message.header.parent),
        options: Vec::new(),
    };
    for attribute in message.attributes {
        match attribute {
            TcAttribute::Kind(kind) => seen.kind = kind,
            TcAttribute::Options(options) => {
                if let Some(TcOption::Other(raw)) = options.first() {
                    seen.options = vec![0; raw.value_len()];
                    raw.emit_value(&mut seen.options);
                }
            }
            _ => {}
        }
    }
    seen
}
