//! Tasks and containers in the shapes of ECS's task metadata.

use std::collections::BTreeMap;
use std::net::IpAddr;

use berth_core::ids::ContainerName;
use berth_core::spec::{ContainerSpec, NetworkMode, TaskSpec};
use berth_core::task::{Container, ContainerStatus, Health, ResourceKey, Task};
use serde::Serialize;

use crate::clock::rfc3339;
use crate::runtime::{Details, labels};

use super::{TaskEndpoint, Version};

/// What ECS calls the container that holds a task's network.
const PAUSE: &str = "~internal~ecs~pause";

/// A task.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct TaskMetadata {
    cluster: String,
    #[serde(rename = "TaskARN")]
    task_arn: String,
    family: String,
    revision: String,
    desired_status: &'static str,
    known_status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    limits: Option<TaskLimits>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pull_started_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pull_stopped_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    execution_stopped_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    availability_zone: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    launch_type: Option<&'static str>,
    containers: Vec<ContainerMetadata>,
    #[serde(skip_serializing_if = "Option::is_none")]
    fault_injection_enabled: Option<bool>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct TaskLimits {
    #[serde(rename = "CPU", skip_serializing_if = "Option::is_none")]
    cpu: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    memory: Option<u32>,
}

/// A container.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct ContainerMetadata {
    docker_id: String,
    name: String,
    docker_name: String,
    image: String,
    #[serde(rename = "ImageID")]
    image_id: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    ports: Vec<Port>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    labels: BTreeMap<String, String>,
    desired_status: &'static str,
    known_status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    exit_code: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    limits: Option<ContainerLimits>,
    #[serde(skip_serializing_if = "Option::is_none")]
    created_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    started_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    finished_at: Option<String>,
    #[serde(rename = "Type")]
    kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    health: Option<HealthStatus>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    volumes: Vec<Volume>,
    #[serde(skip_serializing_if = "Option::is_none")]
    log_driver: Option<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    log_options: BTreeMap<String, String>,
    #[serde(rename = "ContainerARN", skip_serializing_if = "String::is_empty")]
    container_arn: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    restart_count: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    snapshotter: Option<String>,
    networks: Vec<Network>,
}

#[derive(Debug, Serialize)]
struct ContainerLimits {
    #[serde(rename = "CPU")]
    cpu: u32,
    #[serde(rename = "Memory")]
    memory: u32,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Port {
    container_port: u16,
    protocol: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    host_port: Option<u16>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct HealthStatus {
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    status_since: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    exit_code: Option<i64>,
    #[serde(skip_serializing_if = "String::is_empty")]
    output: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Volume {
    #[serde(skip_serializing_if = "String::is_empty")]
    docker_name: String,
    source: String,
    destination: String,
}

#[derive(Debug, Default, Serialize)]
struct Network {
    #[serde(rename = "NetworkMode")]
    mode: &'static str,
    #[serde(rename = "IPv4Addresses", skip_serializing_if = "Vec::is_empty")]
    four: Vec<String>,
    #[serde(rename = "IPv6Addresses", skip_serializing_if = "Vec::is_empty")]
    six: Vec<String>,
    #[serde(rename = "AttachmentIndex", skip_serializing_if = "Option::is_none")]
    attachment_index: Option<u32>,
    #[serde(rename = "MACAddress", skip_serializing_if = "Option::is_none")]
    mac: Option<String>,
    #[serde(rename = "IPv4SubnetCIDRBlock", skip_serializing_if = "Option::is_none")]
    subnet_four: Option<String>,
    #[serde(rename = "IPv6SubnetCIDRBlock", skip_serializing_if = "Option::is_none")]
    subnet_six: Option<String>,
    #[serde(rename = "DomainNameServers", skip_serializing_if = "Vec::is_empty")]
    dns_servers: Vec<String>,
    #[serde(rename = "DomainNameSearchList", skip_serializing_if = "Vec::is_empty")]
    dns_search_domains: Vec<String>,
    #[serde(rename = "PrivateDNSName", skip_serializing_if = "Option::is_none")]
    private_dns_name: Option<String>,
    #[serde(rename = "SubnetGatewayIpv4Address", skip_serializing_if = "Option::is_none")]
    gateway: Option<String>,
}

/// A task with its containers.
pub(super) async fn task(endpoint: &TaskEndpoint, task: &Task, version: Version) -> TaskMetadata {
    let (spec, state) = (task.spec(), task.state());
    let mut containers = Vec::new();
    for container in &spec.containers {
        containers.extend(self::container(endpoint, task, &container.name, version).await);
    }
    containers.extend(pause(task));
    let bounded = spec.cpu.is_some() || spec.memory.is_some();
    TaskMetadata {
        cluster: spec.arn.cluster().to_owned(),
        task_arn: spec.arn.to_string(),
        family: spec.family.to_string(),
        revision: spec.revision.to_string(),
        desired_status: if task.is_stopping() { "STOPPED" } else { "RUNNING" },
        known_status: state.status.as_str(),
        limits: bounded.then(|| TaskLimits {
            cpu: spec.cpu.map(|cpu| f64::from(cpu.0) / 1024.0),
            memory: spec.memory.map(|memory| memory.0),
        }),
        pull_started_at: state.pull_started_at.and_then(rfc3339),
        pull_stopped_at: state.pull_stopped_at.and_then(rfc3339),
        execution_stopped_at: state.execution_stopped_at.and_then(rfc3339),
        availability_zone: endpoint.zone.clone(),
        launch_type: (version == Version::Four).then_some("EC2"),
        containers,
        fault_injection_enabled: (version == Version::Four).then_some(spec.fault_injection),
    }
}

/// One container; `None` for one that the task has not.
pub(super) async fn container(
    endpoint: &TaskEndpoint,
    task: &Task,
    name: &ContainerName,
    version: Version,
) -> Option<ContainerMetadata> {
    let spec = task.spec().container(name)?;
    let container = task.state().containers.iter().find(|c| &c.name == name)?;
    // Without the engine the rest is still true.
    let details = endpoint.callers.details(container).await.ok().flatten();
    let health = health(endpoint, container).await;
    let details = details.as_deref();
    let mut told = ContainerMetadata {
        docker_id: container.id.as_ref().map(ToString::to_string).unwrap_or_default(),
        name: name.to_string(),
        docker_name: crate::engine::engine_name(task.spec(), name),
        image: spec.image.clone(),
        image_id: details.map(|d| d.image_id.clone()).unwrap_or_default(),
        ports: ports(task, spec),
        labels: labels(task.spec(), spec),
        desired_status: if task.is_stopping() || container.is_stopped() { "STOPPED" } else { "RUNNING" },
        known_status: status(container),
        exit_code: container.exit_code(),
        limits: Some(ContainerLimits { cpu: spec.cpu.0.max(2), memory: spec.memory.unwrap_or_default().0 }),
        created_at: details.and_then(|d| d.created_at).or(container.created_at).and_then(rfc3339),
        started_at: container.started_at.and_then(rfc3339),
        finished_at: container.finished_at.and_then(rfc3339),
        kind: "NORMAL",
        health,
        volumes: details.map(volumes).unwrap_or_default(),
        networks: networks(task.spec(), details, version),
        ..ContainerMetadata::default()
    };
    if version == Version::Four {
        // The engine knows the way to a log router by another name.
        let given = spec.log.as_ref().filter(|_| spec.logs_to_router()).map(|log| log.driver.clone());
        told.log_driver = given.or_else(|| details.map(|d| d.log_driver.clone()));
        told.log_options = spec.log.as_ref().map(|log| log.options.clone()).unwrap_or_default();
        told.container_arn.clone_from(&spec.arn);
        told.restart_count = spec.restart_policy.as_ref().map(|_| container.restarts);
        told.snapshotter = details.map(|d| d.storage_driver.clone());
    }
    Some(told)
}

/// The container that holds the task's network, as ECS shows it.
fn pause(task: &Task) -> Option<ContainerMetadata> {
    let holder = task.resource(&ResourceKey::Namespace)?.yielded.holder.as_ref()?;
    Some(ContainerMetadata {
        docker_id: holder.to_string(),
        name: PAUSE.to_owned(),
        docker_name: PAUSE.to_owned(),
        desired_status: "RESOURCES_PROVISIONED",
        known_status: "RESOURCES_PROVISIONED",
        kind: "CNI_PAUSE",
        networks: networks(task.spec(), None, Version::Three),
        ..ContainerMetadata::default()
    })
}

const fn status(container: &Container) -> &'static str {
    match container.status {
        ContainerStatus::Pending => "NONE",
        other => other.as_str(),
    }
}

async fn health(endpoint: &TaskEndpoint, container: &Container) -> Option<HealthStatus> {
    let health = container.health?;
    // The last check is not one of the things that stay.
    let id = container.id.as_ref()?;
    let checked = endpoint.engine.details(id).await.ok().flatten().and_then(|details| details.health);
    Some(HealthStatus {
        status: match health {
            Health::Healthy => "HEALTHY",
            Health::Unhealthy => "UNHEALTHY",
            Health::Unknown => "UNKNOWN",
        },
        status_since: checked.as_ref().and_then(|checked| checked.at).and_then(rfc3339),
        exit_code: checked.as_ref().map(|checked| checked.exit_code),
        output: checked.map(|checked| checked.output).unwrap_or_default(),
    })
}

fn ports(task: &Task, spec: &ContainerSpec) -> Vec<Port> {
    let bound = task.bindings(&spec.name);
    if bound.is_empty() {
        let open = spec.ports.iter().flat_map(|port| {
            port.container.ports().map(|number| Port {
                container_port: number,
                protocol: port.protocol.as_str(),
                host_port: None,
            })
        });
        return open.collect();
    }
    let pairs = bound.iter().flat_map(|binding| {
        binding.container_ports.ports().zip(binding.host_ports.ports()).map(|(inside, outside)| Port {
            container_port: inside,
            protocol: binding.protocol.as_str(),
            host_port: Some(outside),
        })
    });
    pairs.collect()
}

/// Those of the user, and ECS's own. What the agent writes for itself is not for the task: it has the
/// environment of every container.
fn labels(task: &TaskSpec, container: &ContainerSpec) -> BTreeMap<String, String> {
    let own = [
        (labels::CLUSTER, task.arn.cluster().to_owned()),
        (labels::CONTAINER_NAME, container.name.to_string()),
        (labels::TASK_ARN, task.arn.to_string()),
        (labels::FAMILY, task.family.to_string()),
        (labels::REVISION, task.revision.to_string()),
    ];
    let own = own.into_iter().map(|(name, value)| (name.to_owned(), value));
    container.docker_labels.clone().into_iter().chain(own).collect()
}

fn volumes(details: &Details) -> Vec<Volume> {
    let volume = |mount: &crate::runtime::Mounted| Volume {
        docker_name: mount.volume.clone(),
        source: mount.source.clone(),
        destination: mount.destination.clone(),
    };
    details.mounts.iter().map(volume).collect()
}

fn networks(task: &TaskSpec, details: Option<&Details>, version: Version) -> Vec<Network> {
    let mode = task.network_mode.as_str();
    if let (NetworkMode::Awsvpc, Some(attachment)) = (task.network_mode, &task.attachment) {
        let of = |four: bool| attachment.addresses.iter().filter(move |a| a.address.is_ipv4() == four);
        let texts = |four: bool| of(four).map(|cidr| cidr.address.to_string()).collect();
        let mut network = Network { mode, four: texts(true), six: texts(false), ..Network::default() };
        if version == Version::Four {
            network.attachment_index = Some(0);
            network.mac = Some(attachment.mac.to_string());
            network.subnet_four = of(true).next().map(|cidr| format!("{}/{}", cidr.network(), cidr.prefix));
            network.subnet_six = of(false).next().map(|cidr| format!("{}/{}", cidr.network(), cidr.prefix));
            network.dns_servers = attachment.dns_servers.iter().map(ToString::to_string).collect();
            network.dns_search_domains.clone_from(&attachment.dns_search_domains);
            network.private_dns_name = Some(attachment.hostname.clone()).filter(|name| !name.is_empty());
            let prefix = of(true).next().map(|cidr| cidr.prefix);
            network.gateway = attachment
                .gateways
                .iter()
                .find(|gateway| gateway.is_ipv4())
                .zip(prefix)
                .map(|(gateway, prefix)| format!("{gateway}/{prefix}"));
        }
        return vec![network];
    }
    let own = details.map(|details| details.networks.as_slice()).unwrap_or_default();
    if own.is_empty() {
        return vec![Network { mode, ..Network::default() }];
    }
    let network = |interface: &crate::runtime::Interface| {
        let texts = |four: bool| {
            let of = |address: &&IpAddr| address.is_ipv4() == four;
            interface.addresses.iter().filter(of).map(ToString::to_string).collect()
        };
        let mac = Some(interface.mac.clone()).filter(|mac| version == Version::Four && !mac.is_empty());
        Network { mode, four: texts(true), six: texts(false), mac, ..Network::default() }
    };
    own.iter().map(network).collect()
}
