//! Rules for ports, links and names in each network mode.

use std::collections::BTreeSet;

use berth_core::units::PortRange;

use super::super::input::{Container, Definition, PortMapping};
use super::{one_of, refuse};
use crate::api::error::{ApiError, ApiResult};

/// The most port ranges of a container (API reference, `PortMapping`).
const MAX_RANGES: usize = 100;
/// The most ports of one range. ECS has no such bound; an agent holds a socket for each port that it
/// chooses until the container starts.
const MAX_RANGE: u16 = 100;

pub(super) fn check(definition: &Definition) -> ApiResult<()> {
    let mode = definition.network_mode();
    let mut host_ports = BTreeSet::new();
    for container in &definition.container_definitions {
        check_members(mode, container)?;
        check_range_count(container)?;
        let mut container_ports: BTreeSet<(&str, u16)> = BTreeSet::new();
        for mapping in &container.port_mappings {
            one_of(
                &format!("PortMapping.protocol of container '{}'", container.name),
                mapping.protocol(),
                &["tcp", "udp"],
            )?;
            if let Some(protocol) = &mapping.app_protocol {
                one_of(
                    &format!("PortMapping.appProtocol of container '{}'", container.name),
                    protocol,
                    &["http", "http2", "grpc"],
                )?;
            }
            let ports = container_ports_of(mode, container, mapping)?;
            for port in ports.ports() {
                if !container_ports.insert((mapping.protocol(), port)) {
                    return Err(ApiError::invalid_parameter(format!(
                        "Container port {port} is used in more than one port mapping for container {}",
                        container.name
                    )));
                }
            }
            check_host_port(mode, container, mapping, ports, &mut host_ports)?;
        }
    }
    Ok(())
}

/// Members that only some network modes have.
fn check_members(mode: &str, container: &Container) -> ApiResult<()> {
    if mode == "none" && !container.port_mappings.is_empty() {
        return refuse("Port mappings are not supported when networkMode=none.");
    }
    if mode != "bridge" && !container.links.is_empty() {
        return refuse(format!("Links are not supported when networkMode={mode}."));
    }
    if mode == "awsvpc" {
        for (member, set) in [
            ("hostname", container.hostname.is_some()),
            ("dnsServers", !container.dns_servers.is_empty()),
            ("dnsSearchDomains", !container.dns_search_domains.is_empty()),
            ("extraHosts", !container.extra_hosts.is_empty()),
        ] {
            if set {
                return refuse(format!("{member} is not supported on container when networkMode=awsvpc."));
            }
        }
    }
    Ok(())
}

fn check_range_count(container: &Container) -> ApiResult<()> {
    let ranges = container.port_mappings.iter().filter(|m| m.container_port_range.is_some()).count();
    if ranges > MAX_RANGES {
        return refuse(format!(
            "Invalid 'containerPortRange' setting for container '{}'. At most {MAX_RANGES} port ranges.",
            container.name
        ));
    }
    Ok(())
}

fn container_ports_of(mode: &str, container: &Container, mapping: &PortMapping) -> ApiResult<PortRange> {
    let name = &container.name;
    if let Some(text) = &mapping.container_port_range {
        let invalid =
            |why: &str| refuse(format!("Invalid 'containerPortRange' setting for container '{name}'. {why}"));
        if mapping.container_port.is_some() || mapping.host_port.is_some() {
            return invalid("It excludes 'containerPort' and 'hostPort'.");
        }
        if !matches!(mode, "bridge" | "awsvpc") {
            return invalid("It needs the network mode bridge or awsvpc.");
        }
        return match PortRange::parse(text) {
            Some(range) if range.is_single() => invalid("The first port must be less than the last one."),
            Some(range) if range.count() > MAX_RANGE => invalid("It may hold at most 100 ports."),
            Some(range) => Ok(range),
            None => invalid("It is written like 8000-8010."),
        };
    }
    let port = mapping.container_port.and_then(|port| u16::try_from(port).ok()).and_then(PortRange::single);
    port.ok_or_else(|| ApiError::client(format!("Invalid 'containerPort' setting for container '{name}'.")))
}

fn check_host_port(
    mode: &str,
    container: &Container,
    mapping: &PortMapping,
    ports: PortRange,
    taken: &mut BTreeSet<(String, u16)>,
) -> ApiResult<()> {
    let given = mapping.host_port.unwrap_or_default();
    let Ok(given) = u16::try_from(given) else {
        return refuse(format!("Invalid 'hostPort' setting for container '{}'.", container.name));
    };
    if matches!(mode, "awsvpc" | "host") && given != 0 && given != ports.first() {
        return refuse(format!(
            "When networkMode={mode}, the host ports and container ports in port mappings must match."
        ));
    }
    let bound = match mode {
        "bridge" => PortRange::single(given),
        // The containers of an awsvpc task share one address as those of a host task do.
        _ => Some(ports),
    };
    for port in bound.into_iter().flat_map(PortRange::ports) {
        if !taken.insert((mapping.protocol().to_owned(), port)) {
            return refuse(format!(
                "{} host port '{port}' is mapped multiple times in task.",
                mapping.protocol().to_ascii_uppercase()
            ));
        }
    }
    Ok(())
}
