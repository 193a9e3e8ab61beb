//! The file: what may stand in it, and everything that is wrong with it at once.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::net::IpAddr;
use std::path::Path;

use berth_core::attachment::{Cidr, Direction, Provider, Traffic};
use berth_core::units::{Millis, PortRange};
use serde::Deserialize;

use super::allocate::first_usable;
use super::{GroupRule, Subnet, Vpc};

/// How long an agent waits for an interface, unless the subnet says otherwise: as long as ECS does.
const PATIENCE: u64 = 180;

/// What is wrong with the file: one line each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InvalidVpc(pub Vec<String>);

impl std::error::Error for InvalidVpc {}

impl fmt::Display for InvalidVpc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("; "))
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct File {
    #[serde(default)]
    subnets: Vec<SubnetEntry>,
    #[serde(default)]
    security_groups: Vec<GroupEntry>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct SubnetEntry {
    id: String,
    cidr: Cidr,
    ipv6_cidr: Option<Cidr>,
    gateway: Option<IpAddr>,
    ipv6_gateway: Option<IpAddr>,
    availability_zone: Option<String>,
    provider: String,
    vlan_id: Option<u16>,
    #[serde(default)]
    dns_servers: Vec<IpAddr>,
    #[serde(default)]
    dns_search_domains: Vec<String>,
    mtu: Option<u32>,
    attach_timeout_seconds: Option<u64>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct GroupEntry {
    id: String,
    #[serde(default)]
    ingress: Vec<RuleEntry>,
    #[serde(default)]
    egress: Vec<RuleEntry>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RuleEntry {
    protocol: String,
    from_port: Option<u16>,
    to_port: Option<u16>,
    #[serde(default)]
    cidrs: BTreeSet<Cidr>,
    #[serde(default)]
    groups: BTreeSet<String>,
}

/// Reads and checks a file.
pub(super) fn read(path: &Path) -> Result<Vpc, InvalidVpc> {
    let wrong = |why: String| InvalidVpc(vec![format!("{}: {why}", path.display())]);
    let text = fs::read_to_string(path).map_err(|error| wrong(error.to_string()))?;
    parse(&text).map_err(|InvalidVpc(all)| {
        InvalidVpc(all.into_iter().map(|why| format!("{}: {why}", path.display())).collect())
    })
}

pub(super) fn parse(text: &str) -> Result<Vpc, InvalidVpc> {
    let file: File = serde_json::from_str(text).map_err(|error| InvalidVpc(vec![error.to_string()]))?;
    let mut wrong = Vec::new();
    let mut subnets = BTreeMap::new();
    for entry in file.subnets {
        let id = entry.id.clone();
        if !id.starts_with("subnet-") {
            wrong.push(format!("subnet {id:?}: an id begins with subnet-"));
        }
        match subnet(entry) {
            Ok(subnet) if subnets.contains_key(&subnet.id) => {
                wrong.push(format!("subnet {id}: stands there twice"));
            }
            Ok(subnet) => {
                subnets.insert(id, subnet);
            }
            Err(why) => wrong.push(format!("subnet {id}: {why}")),
        }
    }
    let names: BTreeSet<String> = file.security_groups.iter().map(|group| group.id.clone()).collect();
    let mut groups = BTreeMap::new();
    for entry in file.security_groups {
        if !entry.id.starts_with("sg-") {
            wrong.push(format!("security group {:?}: an id begins with sg-", entry.id));
        }
        let both = [(Direction::Ingress, entry.ingress), (Direction::Egress, entry.egress)];
        let mut rules = Vec::new();
        for (direction, entry_rules) in both {
            for rule in entry_rules {
                match group_rule(direction, rule, &names) {
                    Ok(rule) => rules.push(rule),
                    Err(why) => wrong.push(format!("security group {}: {why}", entry.id)),
                }
            }
        }
        if groups.insert(entry.id.clone(), rules).is_some() {
            wrong.push(format!("security group {}: stands there twice", entry.id));
        }
    }
    if wrong.is_empty() { Ok(Vpc { subnets, groups, reading: 0 }) } else { Err(InvalidVpc(wrong)) }
}

fn subnet(entry: SubnetEntry) -> Result<Subnet, String> {
    let provider = match (entry.provider.as_str(), entry.vlan_id) {
        ("hot-plug", None) => Provider::HotPlug,
        ("macvlan", None) => Provider::Macvlan,
        ("ipvlan", None) => Provider::Ipvlan,
        ("veth", None) => Provider::Veth,
        ("vlan", Some(id @ 1..=4094)) => Provider::Vlan { id },
        ("vlan", _) => return Err("provider vlan needs a vlanId of 1 to 4094".to_owned()),
        ("hot-plug" | "macvlan" | "ipvlan" | "veth", Some(_)) => {
            return Err(format!("provider {} has no vlanId", entry.provider));
        }
        (other, _) => {
            return Err(format!("{other:?} is no provider: hot-plug, vlan, macvlan, ipvlan or veth"));
        }
    };
    if !entry.cidr.address.is_ipv4() || !(8..=28).contains(&entry.cidr.prefix) {
        return Err(format!("cidr {}: IPv4 with a prefix of 8 to 28 is needed", entry.cidr));
    }
    if let Some(cidr) = entry.ipv6_cidr.filter(|cidr| !cidr.address.is_ipv6() || cidr.prefix > 112) {
        return Err(format!("ipv6Cidr {cidr}: IPv6 with a prefix of at most 112 is needed"));
    }
    let mut gateways = Vec::new();
    for (given, cidr) in [(entry.gateway, Some(entry.cidr)), (entry.ipv6_gateway, entry.ipv6_cidr)] {
        let Some(cidr) = cidr else {
            if let Some(gateway) = given {
                return Err(format!("ipv6Gateway {gateway}: the subnet has no ipv6Cidr"));
            }
            continue;
        };
        let gateway = given.unwrap_or_else(|| first_usable(cidr));
        if !cidr.contains(gateway) {
            return Err(format!("gateway {gateway} is not in {cidr}"));
        }
        gateways.push(gateway);
    }
    if entry.mtu.is_some_and(|mtu| !(1280..=65535).contains(&mtu)) {
        return Err("mtu: 1280 to 65535 is needed".to_owned());
    }
    Ok(Subnet {
        id: entry.id,
        cidr: entry.cidr,
        ipv6_cidr: entry.ipv6_cidr,
        gateways,
        zone: entry.availability_zone,
        provider,
        dns_servers: entry.dns_servers,
        dns_search_domains: entry.dns_search_domains,
        mtu: entry.mtu,
        patience: Millis::from_secs(entry.attach_timeout_seconds.unwrap_or(PATIENCE)),
    })
}

fn group_rule(direction: Direction, entry: RuleEntry, names: &BTreeSet<String>) -> Result<GroupRule, String> {
    let ports = || {
        let first = entry.from_port.ok_or("a rule for tcp or udp needs fromPort")?;
        let last = entry.to_port.unwrap_or(first);
        PortRange::new(first, last).ok_or_else(|| format!("{first} to {last} is no range of ports"))
    };
    let traffic = match entry.protocol.as_str() {
        "-1" | "all" => Traffic::All,
        "tcp" => Traffic::Tcp(ports()?),
        "udp" => Traffic::Udp(ports()?),
        "icmp" | "icmpv6" => Traffic::Icmp,
        other => return Err(format!("{other:?} is no protocol: tcp, udp, icmp or -1")),
    };
    if let Some(unknown) = entry.groups.iter().find(|group| !names.contains(*group)) {
        return Err(format!("a rule names the group {unknown}, which is not there"));
    }
    if entry.cidrs.is_empty() && entry.groups.is_empty() {
        return Err("a rule names neither cidrs nor groups".to_owned());
    }
    Ok(GroupRule { direction, traffic, cidrs: entry.cidrs, groups: entry.groups })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_whole_file_is_read() {
        let vpc = parse(
            r#"{"subnets": [{"id": "subnet-a", "cidr": "10.0.0.0/24", "ipv6Cidr": "fd00::/64",
                "availabilityZone": "z", "provider": "vlan", "vlanId": 7}],
                "securityGroups": [{"id": "sg-a", "ingress": [
                    {"protocol": "tcp", "fromPort": 80, "cidrs": ["0.0.0.0/0"], "groups": ["sg-a"]}]}]}"#,
        )
        .unwrap();
        let subnet = &vpc.subnets["subnet-a"];
        assert_eq!(subnet.gateways, ["10.0.0.1".parse::<IpAddr>().unwrap(), "fd00::1".parse().unwrap()]);
        assert_eq!(subnet.provider, Provider::Vlan { id: 7 });
        assert_eq!(vpc.groups["sg-a"][0].traffic, Traffic::Tcp(PortRange::single(80).unwrap()));
    }

    #[test]
    fn everything_that_is_wrong_is_told_at_once() {
        let InvalidVpc(wrong) = parse(
            r#"{"subnets": [{"id": "a", "cidr": "10.0.0.0/30", "provider": "veth"},
                {"id": "subnet-b", "cidr": "10.0.0.0/24", "provider": "pigeon"},
                {"id": "subnet-c", "cidr": "10.0.0.0/24", "gateway": "10.1.0.1", "provider": "veth"}],
                "securityGroups": [{"id": "sg-a", "ingress": [{"protocol": "tcp", "cidrs": ["::/0"]},
                    {"protocol": "-1", "groups": ["sg-z"]}, {"protocol": "-1"}]}]}"#,
        )
        .unwrap_err();
        assert_eq!(wrong.len(), 7, "{wrong:?}");
        for part in ["subnet-", "8 to 28", "pigeon", "10.1.0.1", "fromPort", "sg-z", "neither"] {
            assert!(wrong.iter().any(|why| why.contains(part)), "{part}: {wrong:?}");
        }
        assert!(parse(r#"{"subnet": []}"#).unwrap_err().to_string().contains("subnet"));
    }
}
