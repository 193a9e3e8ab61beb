//! Chains of rules that come and go one by one, beside those that guard a task. Each works in the namespace that
//! the thread is in.

use std::io;

use berth_core::attachment::Direction;

use super::{Chain, nft};

/// A chain and the table that it is in.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Named {
    /// The table's name.
    pub table: String,
    /// The chain's own name, unique in its table.
    pub chain: String,
}

impl Named {
    /// Adds a chain with rules, in force for packets of that direction.
    ///
    /// # Errors
    /// What the kernel says; `EEXIST` when there is one of that name.
    pub fn add(&self, direction: Direction, chain: &Chain) -> io::Result<()> {
        nft::named::add(self, Some(direction), chain)
    }

    /// Adds a chain that no packet comes to: the kernel remembers its name.
    ///
    /// # Errors
    /// What the kernel says; `EEXIST` when there is one of that name.
    pub fn note(&self) -> io::Result<()> {
        nft::named::add(self, None, &Chain::default())
    }

    /// Removes the chain.
    ///
    /// # Errors
    /// What the kernel says; `ENOENT` when there is none.
    pub fn remove(&self) -> io::Result<()> {
        nft::named::remove(self)
    }

    /// All chains of the namespace, whoever made them.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn list() -> io::Result<Vec<Self>> {
        nft::named::list()
    }
}

/// Removes a table with all that is in it.
///
/// # Errors
/// What the kernel says; `ENOENT` when there is none.
pub fn remove_table(table: &str) -> io::Result<()> {
    nft::named::remove_table(table)
}
