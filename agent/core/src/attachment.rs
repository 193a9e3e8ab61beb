//! A task's own network interface, as the control plane assigns it: what ECS calls an elastic
//! network interface and its attachment.
//!
//! An [`Attachment`] is part of the task's specification and never changes. The security groups in
//! it are what they were when the task was placed; later changes come beside it.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::units::{Millis, PortRange};

/// A hardware address, written `02:9d:…` in lower case.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MacAddress(pub [u8; 6]);

/// A text that is no hardware address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no hardware address: six hexadecimal bytes with colons between are expected")]
pub struct InvalidMac(pub String);

impl FromStr for MacAddress {
    type Err = InvalidMac;

    fn from_str(text: &str) -> Result<Self, InvalidMac> {
        let wrong = || InvalidMac(text.to_owned());
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().filter(|part| part.len() == 2).ok_or_else(wrong)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| wrong())?;
        }
        if parts.next().is_some() { Err(wrong()) } else { Ok(Self(bytes)) }
    }
}

impl TryFrom<String> for MacAddress {
    type Error = InvalidMac;

    fn try_from(text: String) -> Result<Self, InvalidMac> {
        text.parse()
    }
}

impl From<MacAddress> for String {
    fn from(mac: MacAddress) -> Self {
        mac.to_string()
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, byte) in self.0.iter().enumerate() {
            write!(f, "{}{byte:02x}", if at == 0 { "" } else { ":" })?;
        }
        Ok(())
    }
}

impl fmt::Debug for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// An address with the length of its network's prefix, written `10.0.0.5/24`; also a block of
/// addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Cidr {
    /// The address; of a block its first, or any in it.
    pub address: IpAddr,
    /// Bits of the network's prefix.
    pub prefix: u8,
}

/// A text that is no address with a prefix.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no address with a prefix length, such as 10.0.0.0/24")]
pub struct InvalidCidr(pub String);

impl Cidr {
    /// `None` when the prefix is longer than an address of that family.
    #[must_use]
    pub fn new(address: IpAddr, prefix: u8) -> Option<Self> {
        let longest = if address.is_ipv4() { 32 } else { 128 };
        (prefix <= longest).then_some(Self { address, prefix })
    }

    /// The first address of the block.
    #[must_use]
    pub fn network(&self) -> IpAddr {
        match self.address {
            IpAddr::V4(v4) => {
                let kept = u32::MAX.checked_shl(32 - u32::from(self.prefix)).unwrap_or(0);
                IpAddr::V4((u32::from(v4) & kept).into())
            }
            IpAddr::V6(v6) => {
                let kept = u128::MAX.checked_shl(128 - u32::from(self.prefix)).unwrap_or(0);
                IpAddr::V6((u128::from(v6) & kept).into())
            }
        }
    }

    /// Whether an address is in the block.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        Self::new(address, self.prefix).is_some_and(|other| {
            other.address.is_ipv4() == self.address.is_ipv4() && other.network() == self.network()
        })
    }
}

impl FromStr for Cidr {
    type Err = InvalidCidr;

    fn from_str(text: &str) -> Result<Self, InvalidCidr> {
        let wrong = || InvalidCidr(text.to_owned());
        let (address, prefix) = text.split_once('/').ok_or_else(wrong)?;
        let address = address.parse().map_err(|_| wrong())?;
        Self::new(address, prefix.parse().map_err(|_| wrong())?).ok_or_else(wrong)
    }
}

impl TryFrom<String> for Cidr {
    type Error = InvalidCidr;

    fn try_from(text: String) -> Result<Self, InvalidCidr> {
        text.parse()
    }
}

impl From<Cidr> for String {
    fn from(cidr: Cidr) -> Self {
        cidr.to_string()
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

/// Where a task's interface comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Provider {
    /// Somebody plugs an interface with the announced hardware address into the host.
    HotPlug,
    /// A VLAN of the host's trunk interface.
    Vlan {
        /// The VLAN's number.
        id: u16,
    },
    /// A macvlan child of the host's interface.
    Macvlan,
    /// An ipvlan child of the host's interface. It has that one's hardware address.
    Ipvlan,
    /// A veth pair on a bridge of the agent's own.
    Veth,
}

impl Provider {
    /// Its name in configurations, attributes and logs.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::HotPlug => "hot-plug",
            Self::Vlan { .. } => "vlan",
            Self::Macvlan => "macvlan",
            Self::Ipvlan => "ipvlan",
            Self::Veth => "veth",
        }
    }
}

/// What a rule of a security group lets pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Traffic {
    /// Everything.
    All,
    /// TCP to these ports.
    Tcp(PortRange),
    /// UDP to these ports.
    Udp(PortRange),
    /// ICMP and ICMPv6.
    Icmp,
}

/// Which way a rule is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// To the task.
    Ingress,
    /// From the task.
    Egress,
}

/// A rule of a security group: what it names may pass, and the answers to it. There are no rules
/// that deny. Peers that a rule names by their group are addresses by the time it comes here.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Rule {
    /// Which way.
    pub direction: Direction,
    /// What.
    pub traffic: Traffic,
    /// From or to whom.
    pub peers: BTreeSet<Cidr>,
}

/// A security group with its rules.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecurityGroup {
    /// Its id, `sg-…`.
    pub id: String,
    /// Counts its changes: an older one never replaces a newer one.
    pub version: u64,
    /// Its rules; what none of a task's groups names does not pass.
    pub rules: Vec<Rule>,
}

/// A task's own network interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// Names the attachment: the last part of its ARN.
    pub id: String,
    /// Names the interface, `eni-…`.
    pub interface_id: String,
    /// The subnet, `subnet-…`.
    pub subnet_id: String,
    /// Where the interface comes from.
    pub provider: Provider,
    /// Its hardware address.
    pub mac: MacAddress,
    /// Its addresses with the prefix of the subnet, the primary one first.
    pub addresses: Vec<Cidr>,
    /// The gateways of the subnet, at most one of each family.
    #[serde(default)]
    pub gateways: Vec<IpAddr>,
    /// DNS servers; the host's own where there is none.
    #[serde(default)]
    pub dns_servers: Vec<IpAddr>,
    /// DNS search domains.
    #[serde(default)]
    pub dns_search_domains: Vec<String>,
    /// The task's host name: the interface's private DNS name.
    #[serde(default)]
    pub hostname: String,
    /// Largest packet in bytes; the provider's own where absent.
    #[serde(default)]
    pub mtu: Option<u32>,
    /// How long the agent waits for an interface that somebody else plugs in.
    pub patience: Millis,
    /// The task's security groups as they were when it was placed. Without any, everything passes.
    #[serde(default)]
    pub security_groups: Vec<SecurityGroup>,
}

impl Attachment {
    /// The primary IPv4 address.
    #[must_use]
    pub fn private_ipv4(&self) -> Option<IpAddr> {
        self.addresses.iter().map(|cidr| cidr.address).find(IpAddr::is_ipv4)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hardware_addresses_are_read_and_written() {
        let mac: MacAddress = "02:9D:00:00:00:fF".parse().unwrap();
        assert_eq!(mac.to_string(), "02:9d:00:00:00:ff");
        for wrong in [
            "",
            "02:9d:00:00:00",
            "02:9d:00:00:00:00:00",
            "2:9d:0:0:0:0",
            "02-9d-00-00-00-00",
            "gg:00:00:00:00:00",
        ] {
            assert!(wrong.parse::<MacAddress>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn blocks_know_their_network_and_who_is_in_it() {
        let cidr: Cidr = "10.1.2.3/20".parse().unwrap();
        assert_eq!(cidr.network().to_string(), "10.1.0.0");
        assert!(cidr.contains("10.1.15.255".parse().unwrap()));
        assert!(!cidr.contains("10.1.16.0".parse().unwrap()));
        assert!(!cidr.contains("fd00::1".parse().unwrap()));
        let all: Cidr = "0.0.0.0/0".parse().unwrap();
        assert!(all.contains("255.1.2.3".parse().unwrap()));
        let six: Cidr = "fd00:1::/64".parse().unwrap();
        assert!(six.contains("fd00:1::ffff".parse().unwrap()) && !six.contains("fd00:2::1".parse().unwrap()));
        for wrong in ["10.0.0.0", "10.0.0.0/33", "fd00::/129", "x/1", "10.0.0.0/-1"] {
            assert!(wrong.parse::<Cidr>().is_err(), "{wrong}");
        }
    }
}
