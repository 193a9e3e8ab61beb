//! What stands in the file, in ECS's shape.

use std::net::IpAddr;

use berth_core::spec::{NetworkMode, TaskSpec};
use berth_core::task::PortBinding;
use serde::Serialize;

use crate::runtime::Details;

/// A file as it is written.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Metadata {
    pub(super) cluster: String,
    #[serde(rename = "ContainerInstanceARN", skip_serializing_if = "Option::is_none")]
    pub(super) instance: Option<String>,
    #[serde(rename = "TaskARN")]
    pub(super) task: String,
    #[serde(rename = "TaskDefinitionFamily")]
    pub(super) family: String,
    #[serde(rename = "TaskDefinitionRevision")]
    pub(super) revision: String,
    #[serde(rename = "ContainerID", skip_serializing_if = "Option::is_none")]
    pub(super) id: Option<String>,
    pub(super) container_name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) docker_container_name: Option<String>,
    #[serde(rename = "ImageID", skip_serializing_if = "Option::is_none")]
    pub(super) image_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) image_name: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) port_mappings: Vec<PortMapping>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) networks: Vec<Network>,
    pub(super) metadata_file_status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) availability_zone: Option<String>,
    #[serde(rename = "HostPrivateIPv4Address", skip_serializing_if = "Option::is_none")]
    pub(super) host_address: Option<String>,
    /// These two go beyond ECS's file, under the names of its metadata endpoint: one life of a container is
    /// told from the next by them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) created_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) started_at: Option<String>,
}

/// A port of the container, and where it is on the host.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct PortMapping {
    container_port: u16,
    host_port: u16,
    bind_ip: &'static str,
    protocol: &'static str,
}

/// A network of the container.
#[derive(Debug, Serialize)]
pub(super) struct Network {
    #[serde(rename = "NetworkMode")]
    mode: &'static str,
    #[serde(rename = "IPv4Addresses")]
    four: Vec<String>,
    #[serde(rename = "IPv6Addresses", skip_serializing_if = "Vec::is_empty")]
    six: Vec<String>,
}

/// Port by port, also of ranges. On the host's own network nothing is bound for the container.
pub(super) fn mappings(mode: NetworkMode, bindings: &[PortBinding]) -> Vec<PortMapping> {
    let bind_ip = if mode == NetworkMode::Bridge { "0.0.0.0" } else { "" };
    let each = |binding: &PortBinding| {
        let (protocol, pairs) =
            (binding.protocol, binding.container_ports.ports().zip(binding.host_ports.ports()));
        pairs.map(move |(container_port, host_port)| PortMapping {
            container_port,
            host_port,
            bind_ip,
            protocol: protocol.as_str(),
        })
    };
    bindings.iter().flat_map(each).collect()
}

/// The network of a container: its own addresses, or those of its task's interface.
pub(super) fn network(task: &TaskSpec, details: &Details) -> Network {
    let attached = task.attachment.iter().flat_map(|a| a.addresses.iter().map(|cidr| cidr.address));
    let own = details.networks.iter().flat_map(|network| network.addresses.iter().copied());
    let (four, six): (Vec<IpAddr>, Vec<IpAddr>) = attached.chain(own).partition(IpAddr::is_ipv4);
    let texts = |all: Vec<IpAddr>| all.iter().map(ToString::to_string).collect();
    Network { mode: task.network_mode.as_str(), four: texts(four), six: texts(six) }
}
