//! Subnets and security groups for a test of its own, and what a host has of networks.

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::cluster::text;
use crate::{Cluster, demo};

/// The subnet of a [`Vpc`].
pub const SUBNET: &str = "subnet-a";

/// One subnet on a bridge of this host that no other test has, and security groups.
#[derive(Debug, Clone)]
pub struct Vpc {
    file: Value,
    /// The first two numbers of its IPv4 addresses and the third.
    prefix: String,
}

impl Vpc {
    /// A subnet of that provider, for this process alone, and one open security group, `sg-open`.
    #[must_use]
    pub fn new(provider: &str) -> Self {
        let pid = std::process::id();
        let prefix = format!("10.{}.{}", 64 + (pid >> 8) % 128, pid % 256);
        let everywhere = json!(["0.0.0.0/0", "::/0"]);
        let file = json!({
            "subnets": [{
                "id": SUBNET, "cidr": format!("{prefix}.0/24"), "ipv6Cidr": format!("fd00:{:x}::/64", pid % 0xffff),
                "availabilityZone": "local-1a", "provider": provider,
            }],
            "securityGroups": [{
                "id": "sg-open",
                "ingress": [{ "protocol": "-1", "cidrs": everywhere }],
                "egress": [{ "protocol": "-1", "cidrs": everywhere }],
            }],
        });
        Self { file, prefix }
    }

    /// The same with that security group, over one of the same id.
    #[must_use]
    pub fn with_group(mut self, group: Value) -> Self {
        if let Some(groups) = self.file["securityGroups"].as_array_mut() {
            groups.retain(|other| other["id"] != group["id"]);
            groups.push(group);
        }
        self
    }

    /// As the control plane reads it.
    #[must_use]
    pub const fn file(&self) -> &Value {
        &self.file
    }

    /// The address of the host in the subnet.
    #[must_use]
    pub fn gateway(&self) -> String {
        format!("{}.1", self.prefix)
    }

    /// Whether an IPv4 address belongs to the subnet.
    #[must_use]
    pub fn has(&self, address: &str) -> bool {
        address.starts_with(&format!("{}.", self.prefix))
    }
}

/// A task definition in `awsvpc` mode.
#[must_use]
pub fn task(family: &str, containers: Value) -> Value {
    demo::task(family, "awsvpc", containers)
}

/// The members of a RunTask that give a task an interface in [`SUBNET`] with those security groups.
#[must_use]
pub fn network(groups: &[&str]) -> Value {
    json!({ "networkConfiguration": { "awsvpcConfiguration": { "subnets": [SUBNET], "securityGroups": groups } } })
}

/// Registers the definition and runs one task of it with those security groups; its ARN.
///
/// # Errors
/// When it is refused or cannot be placed.
pub async fn run(cluster: &Cluster, definition: Value, groups: &[&str]) -> Result<String> {
    let definition = cluster.register(definition).await?;
    cluster.run_with(&definition, network(groups)).await
}

/// A detail of the task's attachment, such as `privateIPv4Address`.
///
/// # Errors
/// When DescribeTasks does not tell.
pub fn detail(task: &Value, name: &str) -> Result<String> {
    let details = task["attachments"][0]["details"].as_array().context("the task has no attachment")?;
    let found = details.iter().find(|detail| detail["name"] == name);
    text(found.with_context(|| format!("no detail {name} in {task}"))?, "value")
}

/// The private IPv4 address of the task.
///
/// # Errors
/// When DescribeTasks does not tell.
pub fn address(task: &Value) -> Result<String> {
    let address = detail(task, "privateIPv4Address")?;
    address.parse::<IpAddr>().with_context(|| address.clone())?;
    Ok(address)
}

/// What this host has of links, namespaces' pins and holders that can be an agent's, to be compared
/// before and after.
///
/// # Errors
/// When the kernel does not tell.
pub fn traces(data_dir: &std::path::Path) -> Result<BTreeSet<String>> {
    let shown = Command::new("ip").args(["-o", "link"]).output().context("ip link")?;
    ensure!(shown.status.success(), "ip link: {}", String::from_utf8_lossy(&shown.stderr));
    let listing = String::from_utf8_lossy(&shown.stdout);
    let links =
        listing.lines().filter_map(|line| Some(line.split(": ").nth(1)?.split('@').next()?.to_owned()));
    let ours = links.filter(|name| ["be", "bv", "bt"].iter().any(|prefix| is_ours(name, prefix)));
    let mut traces: BTreeSet<String> = ours.map(|name| format!("link {name}")).collect();
    for entry in fs::read_dir(data_dir.join("netns")).into_iter().flatten().flatten() {
        traces.insert(format!("namespace {}", entry.path().display()));
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let pins = mounts.lines().filter(|line| line.contains(&*data_dir.to_string_lossy()));
    traces.extend(pins.map(|line| format!("mount {line}")));
    Ok(traces)
}

fn is_ours(name: &str, prefix: &str) -> bool {
    name.strip_prefix(prefix)
        .is_some_and(|rest| rest.len() == 10 && rest.bytes().all(|b| b.is_ascii_hexdigit()))
}
