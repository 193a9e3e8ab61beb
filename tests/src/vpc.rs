//! Subnets and security groups for a test of its own, and what a host has of networks.

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::mount::{MntFlags, umount2};
use serde_json::{Value, json};

use crate::cluster::{container, text};
use crate::expect::PATIENCE;
use crate::{Cluster, demo, eventually};

/// What an agent is started with whose tasks have interfaces.
pub const ENV: [(&str, &str); 1] = [("ECS_ENABLE_TASK_ENI", "true")];
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

    /// The same with another member of the subnet.
    #[must_use]
    pub fn with_subnet_member(mut self, member: &str, value: Value) -> Self {
        self.file["subnets"][0][member] = value;
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

    /// The IPv4 address of the subnet that ends so.
    #[must_use]
    pub fn host(&self, number: u8) -> String {
        format!("{}.{number}", self.prefix)
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

/// A definition whose one container serves on that port.
#[must_use]
pub fn server(port: u16) -> Value {
    let port_text = port.to_string();
    let one = demo::container_with(
        "web",
        &["serve", "--port", &port_text],
        json!({ "portMappings": [{ "containerPort": port }] }),
    );
    task("web", json!([one]))
}

/// A definition whose one container fetches `/` there, and ends with 0 if that worked in time.
#[must_use]
pub fn client(host: &str, port: u16, patience_ms: u32) -> Value {
    let (port, patience) = (port.to_string(), patience_ms.to_string());
    let one = demo::container("client", &["connect", host, &port, "--for", &patience]);
    task("client", json!([one]))
}

/// Runs a client to its end: whether it got an answer.
///
/// # Errors
/// When it does not run.
pub async fn reaches(cluster: &Cluster, definition: Value, groups: &[&str]) -> Result<bool> {
    let arn = run(cluster, definition, groups).await?;
    let task = cluster.until(&arn, "STOPPED", PATIENCE).await?;
    let exit = container(&task, "client")?["exitCode"].as_i64();
    Ok(exit.with_context(|| format!("the client did not run: {task}"))? == 0)
}

/// A program in the network of a task, under the same rules as the task.
#[must_use]
pub fn inside(cluster: &Cluster, arn: &str, program: &str) -> Command {
    let pin = cluster.agent.data_dir().join("netns").join(arn.rsplit('/').next().unwrap_or_default());
    let mut command = Command::new("nsenter");
    command.arg(format!("--net={}", pin.display())).arg(program);
    command
}

/// The kernel takes namespaces apart when all who were in them are gone, and takes its time.
///
/// # Errors
/// When something stays.
pub async fn nothing_more_than(before: &BTreeSet<String>, cluster: &Cluster) -> Result<()> {
    eventually(Duration::from_secs(5), "nothing is left", || async {
        let now = traces(cluster.agent.data_dir())?;
        ensure!(now == *before, "left: {:?}", now.difference(before));
        Ok(Some(()))
    })
    .await
}

/// `ip` with those arguments.
///
/// # Errors
/// What it says.
pub fn ip(arguments: &[&str]) -> Result<()> {
    let done = Command::new("ip").args(arguments).output()?;
    ensure!(done.status.success(), "ip {arguments:?}: {}", String::from_utf8_lossy(&done.stderr));
    Ok(())
}

/// A NIC of the test's own: one end of a pair of links, whose far end is a wire with nobody on it.
#[derive(Debug)]
pub struct Nic(String);

impl Nic {
    /// It works, and has no address.
    ///
    /// # Errors
    /// What `ip` says.
    pub fn new() -> Result<Self> {
        let nic = Self(format!("np{}", std::process::id()));
        ip(&["link", "add", &nic.0, "type", "veth", "peer", "name", &nic.far_end()])?;
        ip(&["link", "set", &nic.0, "up"])?;
        ip(&["link", "set", &nic.far_end(), "up"])?;
        Ok(nic)
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0
    }

    fn far_end(&self) -> String {
        format!("{}x", self.0)
    }

    /// Somebody on the wire has that address.
    ///
    /// # Errors
    /// What `ip` says.
    pub fn stranger(&self, address: &str) -> Result<()> {
        ip(&["address", "add", &format!("{address}/32"), "dev", &self.far_end()])
    }
}

impl Drop for Nic {
    fn drop(&mut self) {
        if let Err(why) = ip(&["link", "delete", &self.0]) {
            eprintln!("{} stays: {why:#}", self.0);
        }
    }
}

/// What this host has of an agent's links and pinned namespaces, to be compared before and after. The
/// agent is known by its data folder.
///
/// # Errors
/// When the kernel does not tell.
pub fn traces(data_dir: &Path) -> Result<BTreeSet<String>> {
    let mut traces: BTreeSet<String> =
        links(data_dir)?.into_iter().map(|name| format!("link {name}")).collect();
    traces.extend(pins(data_dir)?.into_iter().map(|pin| format!("mount {pin}")));
    for entry in fs::read_dir(data_dir.join("netns")).into_iter().flatten().flatten() {
        traces.insert(format!("file {}", entry.path().display()));
    }
    Ok(traces)
}

/// Removes what [`traces`] tells of, and the data folder with it.
///
/// # Errors
/// When the kernel does not let go.
pub fn remove_traces(data_dir: &Path) -> Result<()> {
    for link in links(data_dir)? {
        // One goes with its other end.
        Command::new("ip").args(["link", "delete", &link]).stderr(Stdio::null()).status()?;
    }
    for pin in pins(data_dir)? {
        umount2(pin.as_str(), MntFlags::MNT_DETACH).with_context(|| pin.clone())?;
    }
    match fs::remove_dir_all(data_dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}

/// The names of the links that carry the agent's note.
fn links(data_dir: &Path) -> Result<Vec<String>> {
    let note = format!("alias berth:{}:", data_dir.display());
    let shown = Command::new("ip").args(["-o", "link"]).output().context("ip link")?;
    ensure!(shown.status.success(), "ip link: {}", String::from_utf8_lossy(&shown.stderr));
    let listing = String::from_utf8_lossy(&shown.stdout);
    let ours = listing.lines().filter(|line| line.contains(&note));
    Ok(ours.filter_map(|line| Some(line.split(": ").nth(1)?.split('@').next()?.to_owned())).collect())
}

fn pins(data_dir: &Path) -> Result<Vec<String>> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let targets = mounts.lines().filter_map(|line| line.split(' ').nth(4));
    let below = format!("{}/", data_dir.display());
    Ok(targets.filter(|target| target.starts_with(&below)).map(str::to_owned).collect())
}
