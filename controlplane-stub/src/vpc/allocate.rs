//! Addresses for tasks. Pure: what is in use comes in, an attachment comes out.
//!
//! There is no list of what is free: an address is in use while a task that is not STOPPED has it. So
//! nothing can be lost or handed out twice, whatever crashes, as long as one owner decides.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use berth_core::attachment::{Attachment, Cidr, MacAddress, SecurityGroup};

use super::Subnet;
use crate::model::TaskStatus;
use crate::store::View;

/// The first addresses of a subnet are not for tasks (Amazon VPC guide, "Subnet CIDR reservations").
const RESERVED: u32 = 4;

/// The address of a subnet's gateway, unless it is given.
#[must_use]
pub fn first_usable(cidr: Cidr) -> IpAddr {
    match cidr.network() {
        IpAddr::V4(address) => IpAddr::V4(Ipv4Addr::from(u32::from(address) + 1)),
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from(u128::from(address) + 1)),
    }
}

/// What tasks have of addresses, of all clusters together, and where the search goes on.
#[derive(Debug, Clone, Default)]
pub struct InUse {
    addresses: BTreeSet<(String, IpAddr)>,
    macs: BTreeSet<MacAddress>,
}

impl InUse {
    /// As of a view.
    #[must_use]
    pub fn read(view: &dyn View) -> Self {
        let mut in_use = Self::default();
        for task in view.tasks(None) {
            if task.value.observed.status != TaskStatus::Stopped
                && let Some(attachment) = &task.value.spec.attachment
            {
                in_use.take(attachment);
            }
        }
        in_use
    }

    /// Counts what an attachment has.
    pub fn take(&mut self, attachment: &Attachment) {
        self.macs.insert(attachment.mac);
        for cidr in &attachment.addresses {
            self.addresses.insert((attachment.subnet_id.clone(), cidr.address));
        }
    }

    /// A free IPv4 address of the subnet, the first at or after `from`: one that was given back is
    /// not handed out again at once.
    fn free(&self, subnet: &Subnet, from: u32) -> Option<Ipv4Addr> {
        let IpAddr::V4(network) = subnet.cidr.network() else { return None };
        let size = 1_u32.checked_shl(32 - u32::from(subnet.cidr.prefix))?;
        // The last is for broadcasts.
        let usable = size.checked_sub(RESERVED + 1)?;
        (0..usable)
            .map(|n| Ipv4Addr::from(u32::from(network) + RESERVED + (from.wrapping_add(n)) % usable))
            .find(|address| {
                let address = IpAddr::V4(*address);
                !subnet.gateways.contains(&address) && !self.addresses.contains(&(subnet.id.clone(), address))
            })
    }
}

/// What is random about an attachment, given.
#[derive(Debug, Clone)]
pub struct Chance {
    /// The attachment's id.
    pub attachment_id: String,
    /// Seventeen hexadecimal digits for the interface's id.
    pub interface: String,
    /// For the hardware address.
    pub mac: [u8; 5],
    /// Where the search for a free address begins.
    pub from: u32,
}

/// An attachment in that subnet, counted as in use; `None` when no address is free.
pub fn attach(
    in_use: &mut InUse,
    subnet: &Subnet,
    security_groups: Vec<SecurityGroup>,
    chance: Chance,
) -> Option<Attachment> {
    let four = in_use.free(subnet, chance.from)?;
    let mut addresses = vec![Cidr::new(IpAddr::V4(four), subnet.cidr.prefix)?];
    if let Some(six) = subnet.ipv6_cidr
        && let IpAddr::V6(network) = six.network()
        && let IpAddr::V4(base) = subnet.cidr.network()
    {
        // As far into its block as the IPv4 address into its own: unique for the same reason.
        let offset = u128::from(u32::from(four) - u32::from(base));
        addresses.push(Cidr::new(IpAddr::V6(Ipv6Addr::from(u128::from(network) + offset)), six.prefix)?);
    }
    // Locally administered; counted up where it is taken.
    let [a, b, c, d, e] = chance.mac;
    let mut mac = MacAddress([2, a, b, c, d, e]);
    while in_use.macs.contains(&mac) {
        mac.0[5] = mac.0[5].wrapping_add(1);
        mac.0[4] = mac.0[4].wrapping_add(u8::from(mac.0[5] == 0));
    }
    let attachment = Attachment {
        id: chance.attachment_id,
        interface_id: format!("eni-{}", chance.interface),
        subnet_id: subnet.id.clone(),
        provider: subnet.provider,
        mac,
        hostname: format!("ip-{}", four.to_string().replace('.', "-")),
        addresses,
        gateways: subnet.gateways.clone(),
        dns_servers: subnet.dns_servers.clone(),
        dns_search_domains: subnet.dns_search_domains.clone(),
        mtu: subnet.mtu,
        patience: subnet.patience,
        security_groups,
    };
    in_use.take(&attachment);
    Some(attachment)
}

#[cfg(test)]
mod tests {
    use berth_core::attachment::Provider;
    use berth_core::units::Millis;

    use super::*;

    fn subnet() -> Subnet {
        Subnet {
            id: "subnet-a".to_owned(),
            cidr: "10.0.0.0/28".parse().unwrap(),
            ipv6_cidr: Some("fd00::/64".parse().unwrap()),
            gateways: vec!["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()],
            zone: None,
            provider: Provider::Veth,
            dns_servers: Vec::new(),
            dns_search_domains: Vec::new(),
            mtu: None,
            patience: Millis(1),
        }
    }

    fn chance(from: u32) -> Chance {
        Chance { attachment_id: "a".to_owned(), interface: "0".repeat(17), mac: [1, 2, 3, 4, 255], from }
    }

    #[test]
    fn every_address_is_handed_out_once_and_then_none() {
        let (subnet, mut in_use) = (subnet(), InUse::default());
        let all: Vec<Attachment> =
            std::iter::from_fn(|| attach(&mut in_use, &subnet, Vec::new(), chance(7))).collect();
        // Sixteen, but for the first four and the last.
        assert_eq!(all.len(), 11);
        let addresses: BTreeSet<_> = all.iter().flat_map(|a| a.addresses.clone()).collect();
        let macs: BTreeSet<_> = all.iter().map(|a| a.mac).collect();
        assert_eq!((addresses.len(), macs.len()), (22, 11));
        for reserved in ["10.0.0.0", "10.0.0.1", "10.0.0.3", "10.0.0.15"] {
            assert!(!addresses.iter().any(|a| a.address.to_string() == reserved), "{reserved}");
        }
        assert_eq!(all[0].addresses[0].to_string(), "10.0.0.11/28");
        assert_eq!(all[0].addresses[1].to_string(), "fd00::b/64");
    }

    #[test]
    fn the_gateway_is_nobodys() {
        let mut subnet = subnet();
        subnet.gateways = vec!["10.0.0.6".parse().unwrap()];
        let mut in_use = InUse::default();
        let all = std::iter::from_fn(|| attach(&mut in_use, &subnet, Vec::new(), chance(0)));
        assert!(all.flat_map(|a| a.addresses).all(|a| a.address.to_string() != "10.0.0.6"));
    }
}
