//! Tables of rules in nf_tables, in the namespace that the thread is in: put in force in one
//! transaction each.

pub(super) mod named;
mod socket;
mod words;

use std::io;

use netlink_packet_core::{NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_netfilter::NetfilterProtoFamily;
use netlink_packet_netfilter::nftables::{
    ChainAttribute, ChainMessage, DataAttribute, DevHookNumber, Expressions, Hook, Immediate, InetHookNumber,
    NfTablesMessage, Register, RuleAttribute, RuleMessage, TableAttribute, TableMessage, Verdict,
    VerdictAttribute,
};

use self::socket::{dump, transact};
use self::words::{Expression, expressions};
use super::frames::Wire;
use super::{Chain, Line, Table};

/// The name of the table; no other program's.
const TABLE: &str = "berth";
const NF_DROP: u32 = 0;
const NF_ACCEPT: u32 = 1;

/// What goes to the kernel: flags and message.
type Messages = Vec<(u16, NfTablesMessage)>;

/// Puts security groups in force in the thread's namespace, in place of those before.
pub(super) fn replace(table: &Table) -> io::Result<()> {
    let chains = || {
        [
            ("ingress", InetHookNumber::LocalIn, &table.ingress),
            ("egress", InetHookNumber::LocalOut, &table.egress),
        ]
        .into_iter()
        .flat_map(|(name, hook, chain)| {
            let at = vec![Hook::Number(hook.into()), Hook::Priority(0)];
            with_rules(TABLE, name, at, chain)
        })
        .collect()
    };
    put(NetfilterProtoFamily::Inet, TABLE, chains)
}

/// Puts rules for frames in force at a link of the thread's namespace, in place of those before: a
/// table for each link, under its name.
pub(super) fn replace_frames(link: &str, wire: Wire, chain: &Chain) -> io::Result<()> {
    let hook = match wire {
        Wire::In => DevHookNumber::Ingress,
        Wire::Out => DevHookNumber::Egress,
    };
    let rules = || {
        let device = Hook::NetDeviceName(link.to_owned());
        with_rules(link, "frames", vec![Hook::Number(hook.into()), Hook::Priority(0), device], chain)
    };
    put(NetfilterProtoFamily::NetDev, link, rules)
}

/// A table with that content. To take one away makes the kernel wait for all processors (some 10 ms),
/// so that the first is tried without.
fn put(family: NetfilterProtoFamily, table: &str, content: impl Fn() -> Messages) -> io::Result<()> {
    let create = |flags| vec![(NLM_F_CREATE | flags, NfTablesMessage::NewTable(named(table)))];
    let first = create(NLM_F_EXCL).into_iter().chain(content()).collect();
    match transact(family, first) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            // There is one, which the same transaction takes away.
            let mut messages = vec![(0, NfTablesMessage::DeleteTable(named(table)))];
            messages.extend(create(0));
            messages.extend(content());
            transact(family, messages)
        }
        done => done,
    }
}

/// Removes the rules for frames at these links.
pub(super) fn remove_frames(links: &[String]) -> io::Result<()> {
    let delete = links.iter().map(|link| (0, NfTablesMessage::DeleteTable(named(link)))).collect();
    transact(NetfilterProtoFamily::NetDev, delete)
}

fn named(table: &str) -> TableMessage {
    TableMessage { attributes: vec![TableAttribute::Name(table.to_owned())] }
}

fn with_rules(table: &str, name: &str, at: Vec<Hook>, chain: &Chain) -> Messages {
    let rules = chain.lines.iter().map(|line| (NLM_F_CREATE | NLM_F_APPEND, rule_message(table, name, line)));
    std::iter::once((NLM_F_CREATE, chain_message(table, name, at, chain.pass))).chain(rules).collect()
}

fn chain_message(table: &str, name: &str, at: Vec<Hook>, passes: bool) -> NfTablesMessage {
    NfTablesMessage::NewChain(ChainMessage {
        attributes: vec![
            ChainAttribute::Table(table.to_owned()),
            ChainAttribute::Name(name.to_owned()),
            ChainAttribute::Hook(at),
            ChainAttribute::Policy(if passes { NF_ACCEPT } else { NF_DROP }),
            ChainAttribute::Type("filter".to_owned()),
        ],
    })
}

fn rule_message(table: &str, chain: &str, line: &Line) -> NfTablesMessage {
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
            RuleAttribute::Table(table.to_owned()),
            RuleAttribute::Chain(chain.to_owned()),
            RuleAttribute::Expressions(expressions),
        ],
    })
}

/// How many rules the chains of the table have: ingress, egress.
pub(super) fn count() -> io::Result<(usize, usize)> {
    let asked = RuleMessage { attributes: vec![RuleAttribute::Table(TABLE.to_owned())] };
    let (mut ingress, mut egress) = (0, 0);
    for answer in dump(NetfilterProtoFamily::Inet, NfTablesMessage::GetRule(asked))? {
        if let NfTablesMessage::NewRule(rule) = answer {
            let is = |name: &str| rule.attributes.contains(&RuleAttribute::Chain(name.to_owned()));
            ingress += usize::from(is("ingress"));
            egress += usize::from(is("egress"));
        }
    }
    Ok((ingress, egress))
}

/// The links that have a table of rules for frames.
pub(super) fn framed_links() -> io::Result<Vec<String>> {
    let asked = TableMessage { attributes: Vec::new() };
    let tables = dump(NetfilterProtoFamily::NetDev, NfTablesMessage::GetTable(asked))?;
    let name = |answer| match answer {
        NfTablesMessage::NewTable(table) => {
            table.attributes.into_iter().find_map(|attribute| match attribute {
                TableAttribute::Name(name) => Some(name),
                _ => None,
            })
        }
        _ => None,
    };
    Ok(tables.into_iter().filter_map(name).collect())
}
