//! One vector of everything that a host can hold and a task can need, with the one rule of what fits.
//!
//! The control plane's placement and the agent's admission both ask [`Resources::shortfalls`].

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::units::{CpuUnits, Mebibytes, Protocol};

/// Ports by protocol: of a host, those that are reserved; of a task, those that it binds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ports {
    /// TCP ports.
    pub tcp: BTreeSet<u16>,
    /// UDP ports.
    pub udp: BTreeSet<u16>,
}

impl Ports {
    /// The set of one protocol.
    #[must_use]
    pub const fn of(&self, protocol: Protocol) -> &BTreeSet<u16> {
        match protocol {
            Protocol::Tcp => &self.tcp,
            Protocol::Udp => &self.udp,
        }
    }

    /// The set of one protocol, to change it.
    pub const fn of_mut(&mut self, protocol: Protocol) -> &mut BTreeSet<u16> {
        match protocol {
            Protocol::Tcp => &mut self.tcp,
            Protocol::Udp => &mut self.udp,
        }
    }

    /// Whether there is no port at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tcp.is_empty() && self.udp.is_empty()
    }
}

/// An amount of everything countable. As a host's total, `ports` are the ones reserved from
/// tasks; as a task's need or a sum of grants, the ones in use.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    /// CPU units, 1024 for each logical CPU.
    pub cpu: CpuUnits,
    /// Memory in MiB.
    pub memory: Mebibytes,
    /// Host ports.
    pub ports: Ports,
    /// Elastic network interfaces for tasks.
    #[serde(default)]
    pub enis: u32,
    /// Whole GPUs.
    #[serde(default)]
    pub gpus: u32,
}

impl Resources {
    /// What `need` lacks on a host with `self` in total, of which `in_use` is granted already.
    /// Empty when it fits.
    #[must_use]
    pub fn shortfalls(&self, in_use: &Self, need: &Self) -> Vec<Shortfall> {
        let mut missing = Vec::new();
        if let Some(short) = short(self.cpu.0, in_use.cpu.0, need.cpu.0) {
            missing.push(Shortfall::Cpu { short_by: CpuUnits(short) });
        }
        if let Some(short) = short(self.memory.0, in_use.memory.0, need.memory.0) {
            missing.push(Shortfall::Memory { short_by: Mebibytes(short) });
        }
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let taken: Vec<u16> = need
                .ports
                .of(protocol)
                .iter()
                .copied()
                .filter(|p| self.ports.of(protocol).contains(p) || in_use.ports.of(protocol).contains(p))
                .collect();
            if !taken.is_empty() {
                missing.push(Shortfall::Ports { protocol, taken });
            }
        }
        if let Some(short) = short(self.enis, in_use.enis, need.enis) {
            missing.push(Shortfall::Enis { short_by: short });
        }
        if let Some(short) = short(self.gpus, in_use.gpus, need.gpus) {
            missing.push(Shortfall::Gpus { short_by: short });
        }
        missing
    }

    /// Whether `need` fits beside `in_use` on a host with `self` in total.
    #[must_use]
    pub fn fits(&self, in_use: &Self, need: &Self) -> bool {
        self.shortfalls(in_use, need).is_empty()
    }

    /// Adds `other`; amounts saturate, ports unite.
    pub fn add(&mut self, other: &Self) {
        self.cpu.0 = self.cpu.0.saturating_add(other.cpu.0);
        self.memory.0 = self.memory.0.saturating_add(other.memory.0);
        self.ports.tcp.extend(&other.ports.tcp);
        self.ports.udp.extend(&other.ports.udp);
        self.enis = self.enis.saturating_add(other.enis);
        self.gpus = self.gpus.saturating_add(other.gpus);
    }

    /// The sum of many.
    #[must_use]
    pub fn sum<'a>(all: impl IntoIterator<Item = &'a Self>) -> Self {
        let mut sum = Self::default();
        for one in all {
            sum.add(one);
        }
        sum
    }

    /// What is left of `self` as a host's total beside `in_use`: amounts never below zero, ports
    /// the reserved ones and the ones in use together.
    #[must_use]
    pub fn remaining(&self, in_use: &Self) -> Self {
        let mut ports = self.ports.clone();
        ports.tcp.extend(&in_use.ports.tcp);
        ports.udp.extend(&in_use.ports.udp);
        Self {
            cpu: CpuUnits(self.cpu.0.saturating_sub(in_use.cpu.0)),
            memory: Mebibytes(self.memory.0.saturating_sub(in_use.memory.0)),
            ports,
            enis: self.enis.saturating_sub(in_use.enis),
            gpus: self.gpus.saturating_sub(in_use.gpus),
        }
    }
}

fn short(total: u32, in_use: u32, need: u32) -> Option<u32> {
    // Where more than everything is in use, that surplus has to go as well.
    let wanted = u64::from(in_use) + u64::from(need);
    let missing = wanted.saturating_sub(u64::from(total));
    // A need of nothing fits even there.
    (need > 0 && missing > 0).then(|| u32::try_from(missing).unwrap_or(u32::MAX))
}

/// One thing that is missing, and how much of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Shortfall {
    /// Too little CPU.
    Cpu {
        /// What is missing.
        short_by: CpuUnits,
    },
    /// Too little memory.
    Memory {
        /// What is missing.
        short_by: Mebibytes,
    },
    /// Host ports that are reserved or in use.
    Ports {
        /// Their protocol.
        protocol: Protocol,
        /// The ports.
        taken: Vec<u16>,
    },
    /// Too few network interfaces.
    Enis {
        /// What is missing.
        short_by: u32,
    },
    /// Too few GPUs.
    Gpus {
        /// What is missing.
        short_by: u32,
    },
}

impl Shortfall {
    /// ECS's reason in a RunTask or StartTask failure, such as `RESOURCE:MEMORY`.
    #[must_use]
    pub const fn failure_reason(&self) -> &'static str {
        match self {
            Self::Cpu { .. } => "RESOURCE:CPU",
            Self::Memory { .. } => "RESOURCE:MEMORY",
            Self::Ports { .. } => "RESOURCE:PORTS",
            Self::Enis { .. } => "RESOURCE:ENI",
            Self::Gpus { .. } => "RESOURCE:GPU",
        }
    }
}

impl fmt::Display for Shortfall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu { short_by } => write!(f, "cpu, {} units short", short_by.0),
            Self::Memory { short_by } => write!(f, "memory, {short_by} short"),
            Self::Ports { protocol, taken } => {
                write!(f, "{protocol} port{} ", if taken.len() == 1 { "" } else { "s" })?;
                for (i, port) in taken.iter().enumerate() {
                    write!(f, "{}{port}", if i == 0 { "" } else { ", " })?;
                }
                f.write_str(" in use")
            }
            Self::Enis { short_by } => write!(f, "network interfaces, {short_by} short"),
            Self::Gpus { short_by } => write!(f, "GPUs, {short_by} short"),
        }
    }
}

/// Several shortfalls in one line: `memory, 412 MiB short; tcp port 80 in use`.
#[must_use]
pub fn describe(missing: &[Shortfall]) -> String {
    missing.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}
