//! Subnets and security groups: what a VPC is to the tasks in it. Read from a file, checked whole,
//! read again when the operator asks for it.

pub mod allocate;
mod file;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use berth_core::attachment::{Cidr, Direction, Provider, Rule, SecurityGroup, Traffic};
use tokio::sync::watch;

pub use self::file::InvalidVpc;
use crate::model::{Task, TaskStatus};
use crate::store::View;

/// A subnet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subnet {
    /// Its id, `subnet-…`.
    pub id: String,
    /// Its IPv4 addresses.
    pub cidr: Cidr,
    /// Its IPv6 addresses.
    pub ipv6_cidr: Option<Cidr>,
    /// Its gateways, at most one of each family.
    pub gateways: Vec<IpAddr>,
    /// Where it is.
    pub zone: Option<String>,
    /// Where interfaces in it come from.
    pub provider: Provider,
    /// DNS servers of tasks in it; the host's where there is none.
    pub dns_servers: Vec<IpAddr>,
    /// DNS search domains.
    pub dns_search_domains: Vec<String>,
    /// Largest packet in bytes.
    pub mtu: Option<u32>,
    /// How long an agent waits for an interface that somebody else plugs in.
    pub patience: berth_core::units::Millis,
}

/// Whom a rule lets pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupRule {
    /// Which way.
    pub direction: Direction,
    /// What.
    pub traffic: Traffic,
    /// Blocks of addresses.
    pub cidrs: BTreeSet<Cidr>,
    /// Members of these groups.
    pub groups: BTreeSet<String>,
}

/// Everything that the file says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Vpc {
    /// Subnets by id.
    pub subnets: BTreeMap<String, Subnet>,
    /// The rules of security groups, by id.
    pub groups: BTreeMap<String, Vec<GroupRule>>,
    /// Counts the readings of the file.
    pub reading: u64,
}

impl Vpc {
    /// A group with its rules as of a view: members of groups are addresses. Its version rises with
    /// every commit and every reading of the file, so that an agent never takes an older one.
    #[must_use]
    pub fn security_group(&self, id: &str, view: &dyn View) -> Option<SecurityGroup> {
        let rules = self.groups.get(id)?;
        let rules = rules.iter().map(|rule| {
            let members = rule.groups.iter().flat_map(|group| members(view, group));
            Rule {
                direction: rule.direction,
                traffic: rule.traffic,
                peers: rule.cidrs.iter().copied().chain(members).collect(),
            }
        });
        let rules = rules.collect();
        Some(SecurityGroup { id: id.to_owned(), version: view.revision() + self.reading, rules })
    }

    /// The groups that a task has.
    #[must_use]
    pub fn groups_of(&self, task: &Task, view: &dyn View) -> Vec<SecurityGroup> {
        let attachment = task.spec.attachment.iter();
        attachment
            .flat_map(|attachment| &attachment.security_groups)
            .filter_map(|group| self.security_group(&group.id, view))
            .collect()
    }
}

/// The addresses of the tasks that have a security group.
fn members(view: &dyn View, group: &str) -> Vec<Cidr> {
    let live = view.tasks(None).into_iter().map(|task| task.value);
    live.filter(|task| task.observed.status != TaskStatus::Stopped)
        .filter_map(|task| task.spec.attachment.clone())
        .filter(|attachment| attachment.security_groups.iter().any(|own| own.id == group))
        .flat_map(|attachment| attachment.addresses)
        .filter_map(|own| Cidr::new(own.address, if own.address.is_ipv4() { 32 } else { 128 }))
        .collect()
}

/// The VPC as it is now, read from a file or empty.
#[derive(Debug, Clone)]
pub struct CurrentVpc {
    path: Option<PathBuf>,
    now: Arc<watch::Sender<Arc<Vpc>>>,
}

impl CurrentVpc {
    /// Without a file there are no subnets.
    ///
    /// # Errors
    /// Everything that is wrong with the file.
    pub fn open(path: Option<&Path>) -> Result<Self, InvalidVpc> {
        let mut vpc = match path {
            Some(path) => file::read(path)?,
            None => Vpc::default(),
        };
        vpc.reading = now_ms();
        Ok(Self { path: path.map(Path::to_owned), now: Arc::new(watch::Sender::new(Arc::new(vpc))) })
    }

    /// What a text of the file's form says.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn of(text: &str) -> Result<Self, InvalidVpc> {
        let vpc = file::parse(text)?;
        Ok(Self { path: None, now: Arc::new(watch::Sender::new(Arc::new(vpc))) })
    }

    /// As it is now.
    #[must_use]
    pub fn get(&self) -> Arc<Vpc> {
        Arc::clone(&self.now.borrow())
    }

    /// Hears of changes.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<Arc<Vpc>> {
        self.now.subscribe()
    }

    /// Reads the file again. What is wrong changes nothing.
    ///
    /// # Errors
    /// Everything that is wrong with the file.
    pub fn reload(&self) -> Result<(), InvalidVpc> {
        let Some(path) = &self.path else { return Ok(()) };
        let mut vpc = file::read(path)?;
        vpc.reading = now_ms().max(self.get().reading + 1);
        self.now.send_replace(Arc::new(vpc));
        Ok(())
    }
}

/// Rises also over a restart, whatever the store's revision is by then.
fn now_ms() -> u64 {
    crate::clock::now().0
}
