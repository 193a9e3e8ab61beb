//! A task's own network interface in the protocol's words.

use berth_core::attachment::{Attachment, Direction, Provider, Rule, SecurityGroup, Traffic};
use berth_proto::v1;

/// An attachment for the wire.
pub(super) fn attachment(attachment: &Attachment) -> v1::Attachment {
    let texts = |addresses: &[std::net::IpAddr]| addresses.iter().map(ToString::to_string).collect();
    v1::Attachment {
        id: attachment.id.clone(),
        interface_id: attachment.interface_id.clone(),
        subnet_id: attachment.subnet_id.clone(),
        provider: attachment.provider.name().to_owned(),
        vlan_id: match attachment.provider {
            Provider::Vlan { id } => id.into(),
            _ => 0,
        },
        mac: attachment.mac.to_string(),
        addresses: attachment.addresses.iter().map(ToString::to_string).collect(),
        gateways: texts(&attachment.gateways),
        dns_servers: texts(&attachment.dns_servers),
        dns_search_domains: attachment.dns_search_domains.clone(),
        hostname: attachment.hostname.clone(),
        mtu: attachment.mtu.unwrap_or_default(),
        patience_ms: attachment.patience.0,
        security_groups: attachment.security_groups.iter().map(security_group).collect(),
    }
}

/// A security group for the wire.
pub(super) fn security_group(group: &SecurityGroup) -> v1::SecurityGroup {
    v1::SecurityGroup {
        id: group.id.clone(),
        version: group.version,
        rules: group.rules.iter().map(rule).collect(),
    }
}

fn rule(rule: &Rule) -> v1::SecurityRule {
    let (traffic, ports) = match rule.traffic {
        Traffic::All => ("all", None),
        Traffic::Tcp(ports) => ("tcp", Some(ports)),
        Traffic::Udp(ports) => ("udp", Some(ports)),
        Traffic::Icmp => ("icmp", None),
    };
    v1::SecurityRule {
        egress: rule.direction == Direction::Egress,
        traffic: traffic.to_owned(),
        first_port: ports.map_or(0, |ports| ports.first().into()),
        last_port: ports.map_or(0, |ports| ports.last().into()),
        peers: rule.peers.iter().map(ToString::to_string).collect(),
    }
}
