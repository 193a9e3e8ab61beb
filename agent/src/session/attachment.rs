//! The door for a task's own network interface: the protocol's words become types that cannot be
//! wrong, or a refusal that names the field.

use std::net::IpAddr;
use std::str::FromStr;

use berth_core::attachment::{Attachment, Cidr, Direction, Provider, Rule, SecurityGroup, Traffic};
use berth_core::spec::InvalidSpec;
use berth_core::units::{Millis, PortRange};
use berth_proto::v1;

fn wrong(field: &str, problem: impl Into<String>) -> InvalidSpec {
    InvalidSpec { field: format!("attachment.{field}"), problem: problem.into() }
}

/// Checks an attachment.
pub(super) fn attachment(message: v1::Attachment) -> Result<Attachment, InvalidSpec> {
    let named = |field: &str, value: &str| {
        if value.is_empty() { Err(wrong(field, "is empty")) } else { Ok(value.to_owned()) }
    };
    let provider = match (message.provider.as_str(), u16::try_from(message.vlan_id)) {
        ("hot-plug", _) => Provider::HotPlug,
        ("vlan", Ok(id @ 1..=4094)) => Provider::Vlan { id },
        ("vlan", _) => return Err(wrong("vlanId", format!("{} is not within 1 to 4094", message.vlan_id))),
        ("macvlan", _) => Provider::Macvlan,
        ("ipvlan", _) => Provider::Ipvlan,
        ("veth", _) => Provider::Veth,
        (other, _) => return Err(wrong("provider", format!("{other:?} is no provider of interfaces"))),
    };
    let addresses: Vec<Cidr> = all("addresses", &message.addresses)?;
    if addresses.is_empty() {
        return Err(wrong("addresses", "is empty"));
    }
    Ok(Attachment {
        id: named("id", &message.id)?,
        interface_id: named("interfaceId", &message.interface_id)?,
        subnet_id: named("subnetId", &message.subnet_id)?,
        provider,
        mac: message.mac.parse().map_err(|error| wrong("mac", format!("{error}")))?,
        addresses,
        gateways: all::<IpAddr>("gateways", &message.gateways)?,
        dns_servers: all::<IpAddr>("dnsServers", &message.dns_servers)?,
        dns_search_domains: message.dns_search_domains,
        hostname: message.hostname,
        mtu: (message.mtu > 0).then_some(message.mtu),
        patience: Millis(message.patience_ms),
        security_groups: message.security_groups.into_iter().map(security_group).collect::<Result<_, _>>()?,
    })
}

/// Checks a security group.
pub(super) fn security_group(message: v1::SecurityGroup) -> Result<SecurityGroup, InvalidSpec> {
    if message.id.is_empty() {
        return Err(wrong("securityGroups", "a group has no id"));
    }
    let rules = message.rules.iter().map(rule).collect::<Result<_, _>>()?;
    Ok(SecurityGroup { id: message.id, version: message.version, rules })
}

fn rule(message: &v1::SecurityRule) -> Result<Rule, InvalidSpec> {
    const FIELD: &str = "securityGroups.rules";
    let ports = || {
        let port = |port: u32| u16::try_from(port).ok();
        port(message.first_port)
            .zip(port(message.last_port))
            .and_then(|(first, last)| PortRange::new(first, last))
            .ok_or_else(|| {
                wrong(FIELD, format!("{}-{} is no range of ports", message.first_port, message.last_port))
            })
    };
    Ok(Rule {
        direction: if message.egress { Direction::Egress } else { Direction::Ingress },
        traffic: match message.traffic.as_str() {
            "all" => Traffic::All,
            "tcp" => Traffic::Tcp(ports()?),
            "udp" => Traffic::Udp(ports()?),
            "icmp" => Traffic::Icmp,
            other => return Err(wrong(FIELD, format!("{other:?} is no kind of traffic"))),
        },
        peers: all::<Cidr>(FIELD, &message.peers)?.into_iter().collect(),
    })
}

fn all<T: FromStr>(field: &str, texts: &[String]) -> Result<Vec<T>, InvalidSpec>
where
    T::Err: std::fmt::Display,
{
    texts
        .iter()
        .map(|text| text.parse().map_err(|error| wrong(field, format!("{text:?}: {error}"))))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message() -> v1::Attachment {
        v1::Attachment {
            id: "a-1".into(),
            interface_id: "eni-1".into(),
            subnet_id: "subnet-1".into(),
            provider: "vlan".into(),
            vlan_id: 101,
            mac: "02:00:00:00:00:01".into(),
            addresses: vec!["10.0.0.5/24".into(), "fd00::5/64".into()],
            gateways: vec!["10.0.0.1".into()],
            patience_ms: 60_000,
            security_groups: vec![v1::SecurityGroup {
                id: "sg-1".into(),
                version: 3,
                rules: vec![v1::SecurityRule {
                    traffic: "tcp".into(),
                    first_port: 80,
                    last_port: 90,
                    peers: vec!["10.0.0.0/8".into()],
                    ..Default::default()
                }],
            }],
            ..Default::default()
        }
    }

    #[test]
    fn what_is_well_formed_comes_in() {
        let attachment = attachment(message()).unwrap();
        assert_eq!(attachment.provider, Provider::Vlan { id: 101 });
        assert_eq!(attachment.private_ipv4().unwrap().to_string(), "10.0.0.5");
        let rule = &attachment.security_groups[0].rules[0];
        assert_eq!((rule.direction, rule.peers.len()), (Direction::Ingress, 1));
        assert_eq!(rule.traffic, Traffic::Tcp(PortRange::new(80, 90).unwrap()));
    }

    #[test]
    fn what_is_not_is_refused_with_its_field() {
        type Change = fn(&mut v1::Attachment);
        let cases: [(Change, &str); 7] = [
            (|m| m.id.clear(), "attachment.id"),
            (|m| m.vlan_id = 4095, "attachment.vlanId"),
            (|m| m.provider = "carrier-pigeon".into(), "attachment.provider"),
            (|m| m.mac = "02".into(), "attachment.mac"),
            (|m| m.addresses.clear(), "attachment.addresses"),
            (|m| m.addresses[0] = "10.0.0.5".into(), "attachment.addresses"),
            (|m| m.security_groups[0].rules[0].first_port = 0, "attachment.securityGroups.rules"),
        ];
        for (change, field) in cases {
            let mut message = message();
            change(&mut message);
            assert_eq!(attachment(message).unwrap_err().field, field);
        }
    }
}
