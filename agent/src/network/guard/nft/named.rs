//! Chains of rules under names of their own, which come and go one by one in the namespace that the thread is in.

use std::io;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_netfilter::NetfilterProtoFamily;
use netlink_packet_netfilter::nftables::{
    ChainAttribute, ChainMessage, Hook, InetHookNumber, NfTablesMessage, TableMessage,
};

use berth_core::attachment::Direction;

use super::socket::{dump, transact};
use super::{named, with_rules};
use crate::network::guard::{Chain, Named};

const FAMILY: NetfilterProtoFamily = NetfilterProtoFamily::Inet;

/// Adds a chain, and the table for it where that is not there. In force for packets of that direction; for
/// none where there is no direction: it is there for its name.
///
/// # Errors
/// `EEXIST` when the chain is there.
pub(in crate::network::guard) fn add(
    name: &Named,
    direction: Option<Direction>,
    chain: &Chain,
) -> io::Result<()> {
    let table = (NLM_F_CREATE, NfTablesMessage::NewTable(named(&name.table)));
    let hook = direction.map(|direction| match direction {
        Direction::Ingress => InetHookNumber::LocalIn,
        Direction::Egress => InetHookNumber::LocalOut,
    });
    let mut content = match hook {
        Some(hook) => {
            let at = vec![Hook::Number(hook.into()), Hook::Priority(0)];
            with_rules(&name.table, &name.chain, at, chain)
        }
        None => vec![(NLM_F_CREATE, NfTablesMessage::NewChain(identity(name)))],
    };
    if let Some((flags, _)) = content.first_mut() {
        *flags |= NLM_F_EXCL;
    }
    transact(FAMILY, std::iter::once(table).chain(content).collect())
}

/// All chains of all tables.
///
/// # Errors
/// What the kernel says.
pub(in crate::network::guard) fn list() -> io::Result<Vec<Named>> {
    let asked = ChainMessage { attributes: Vec::new() };
    let answers = dump(FAMILY, NfTablesMessage::GetChain(asked))?;
    Ok(answers.into_iter().filter_map(found).collect())
}

fn found(answer: NfTablesMessage) -> Option<Named> {
    let NfTablesMessage::NewChain(chain) = answer else { return None };
    let (mut table, mut name) = (None, None);
    for attribute in chain.attributes {
        match attribute {
            ChainAttribute::Table(text) => table = Some(text),
            ChainAttribute::Name(text) => name = Some(text),
            _ => {}
        }
    }
    Some(Named { table: table?, chain: name? })
}

/// Removes a chain with its rules.
///
/// # Errors
/// `ENOENT` when it is not there.
pub(in crate::network::guard) fn remove(name: &Named) -> io::Result<()> {
    transact(FAMILY, vec![(0, NfTablesMessage::DeleteChain(identity(name)))])
}

/// Removes a table with all that is in it.
///
/// # Errors
/// `ENOENT` when it is not there.
pub(in crate::network::guard) fn remove_table(table: &str) -> io::Result<()> {
    let table: TableMessage = named(table);
    transact(FAMILY, vec![(0, NfTablesMessage::DeleteTable(table))])
}

fn identity(name: &Named) -> ChainMessage {
    ChainMessage {
        attributes: vec![ChainAttribute::Table(name.table.clone()), ChainAttribute::Name(name.chain.clone())],
    }
}
