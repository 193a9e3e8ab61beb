//! The networks of `awsvpc` tasks on a Linux host: brings together holders, namespaces, interfaces
//! and guards. One thing at a time for each task.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Write as _};
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use berth_core::attachment::{Attachment, Provider, SecurityGroup};
use berth_core::ids::{EngineId, TaskArn};
use berth_core::spec::TaskSpec;
use futures_util::future::{BoxFuture, FutureExt};
use tokio::sync::mpsc;

use super::guard;
use super::holder::{Held, POOLED, Pool, task_of};
use super::netlink::Netlink;
use super::netns::{Namespace, Pins, set_hostname};
use super::plan::{self, Operation, Place, Site, Undo};
use super::{NetworkError, Offers, Survivor, TaskNetwork, arrival, fabric};
use crate::runtime::holder::Holders;
use crate::supervise::Tracker;

/// The addresses of tasks on their links to the endpoint: 169.254.172.0/22, but for the first and
/// the last (ECS's ecs-bridge has the same).
const ENDPOINT_NETWORK: u32 = u32::from_be_bytes([169, 254, 172, 0]);
const ENDPOINT_ADDRESSES: u32 = 1024;

/// How tasks are connected here.
#[derive(Debug, Clone)]
pub struct AwsvpcConfig {
    /// The agent's data folder, where namespaces are pinned.
    pub data_dir: std::path::PathBuf,
    /// The interface that children are made of.
    pub parent: String,
    /// How many holders are kept ready.
    pub pool: usize,
    /// What is offered.
    pub offers: Offers,
}

/// What is known of a task's network.
#[derive(Debug)]
struct Known {
    task: Arc<TaskSpec>,
    held: Option<Held>,
    endpoint: Ipv4Addr,
    groups: Vec<SecurityGroup>,
    turn: Arc<tokio::sync::Mutex<()>>,
}

/// The networks of tasks in namespaces of the agent's.
pub struct Awsvpc {
    config: AwsvpcConfig,
    pool: Arc<Pool>,
    pins: Pins,
    home: Namespace,
    host: Netlink,
    tracker: Tracker,
    tasks: Mutex<BTreeMap<TaskArn, Known>>,
    /// Bridges are made and removed one at a time: a task may come while the last one goes.
    bridges: tokio::sync::Mutex<()>,
    lost: tokio::sync::Mutex<mpsc::Receiver<(TaskArn, EngineId)>>,
}

/// A failure of the kernel's while something was done for a task.
fn kernel(what: &str) -> impl Fn(io::Error) -> NetworkError + '_ {
    move |error| match error.raw_os_error() {
        Some(code) if code == nix::errno::Errno::EOPNOTSUPP as i32 => NetworkError::Refused(format!(
            "{what}: this kernel has no such kind of link; use another provider for the subnet"
        )),
        _ => NetworkError::Passing(format!("{what}: {error}")),
    }
}

impl Awsvpc {
    /// The networks of tasks, none of which is known yet.
    ///
    /// # Errors
    /// When the agent may not speak with the kernel about networks.
    pub fn new(config: AwsvpcConfig, engine: Arc<dyn Holders>, tracker: Tracker) -> io::Result<Self> {
        let (pool, lost) = Pool::new(engine, config.pool, tracker.clone());
        Ok(Self {
            pins: Pins::new(&config.data_dir),
            home: Namespace::of_process(std::process::id())?,
            host: Netlink::here(&tracker)?,
            pool,
            config,
            tracker,
            tasks: Mutex::default(),
            bridges: tokio::sync::Mutex::default(),
            lost: tokio::sync::Mutex::new(lost),
        })
    }

    fn tasks(&self) -> MutexGuard<'_, BTreeMap<TaskArn, Known>> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The note on links of a task's: whose they are, so that only what is ours is ever removed.
    fn note(&self, task_id: &str) -> String {
        format!("berth:{}:{task_id}", self.config.data_dir.display())
    }

    /// Takes note of a task; its turn, and its address on the link to the endpoint.
    fn know(&self, task: &Arc<TaskSpec>) -> Result<(Arc<tokio::sync::Mutex<()>>, Ipv4Addr), NetworkError> {
        let mut tasks = self.tasks();
        if let Some(known) = tasks.get(&task.arn) {
            return Ok((Arc::clone(&known.turn), known.endpoint));
        }
        let taken: BTreeSet<Ipv4Addr> = tasks.values().map(|known| known.endpoint).collect();
        let mut free = (2..ENDPOINT_ADDRESSES - 1).map(|n| Ipv4Addr::from(ENDPOINT_NETWORK + n));
        let endpoint = free.find(|address| !taken.contains(address)).ok_or_else(|| {
            NetworkError::Passing("every address of 169.254.172.0/22 is in use by a task".to_owned())
        })?;
        let groups = task.attachment.as_ref().map(|a| a.security_groups.clone()).unwrap_or_default();
        let known = Known { task: Arc::clone(task), held: None, endpoint, groups, turn: Arc::default() };
        let turn = Arc::clone(&known.turn);
        tasks.insert(task.arn.clone(), known);
        Ok((turn, endpoint))
    }

    fn bridge_name(&self, subnet_id: &str) -> String {
        plan::bridge_name(&self.config.data_dir.display().to_string(), subnet_id)
    }

    fn held(&self, task: &TaskArn) -> Option<Held> {
        self.tasks().get(task).and_then(|known| known.held.clone())
    }

    fn site(&self, endpoint: Ipv4Addr) -> Site {
        Site {
            agent: self.config.data_dir.display().to_string(),
            parent: self.config.parent.clone(),
            endpoint_address: endpoint,
            blocks_instance_metadata: self.config.offers.blocks_instance_metadata,
        }
    }

    async fn hold(&self, task: &Arc<TaskSpec>) -> Result<EngineId, NetworkError> {
        let (turn, _) = self.know(task)?;
        let _turn = turn.lock().await;
        if let Some(held) = self.held(&task.arn)
            && let Some(held) = self.pool.running(&held.id).await?
        {
            return Ok(held.id);
        }
        let hostname = task.attachment.as_ref().map(|a| a.hostname.clone()).unwrap_or_default();
        let held = self.pool.take(task, &hostname).await?;
        self.adopt(task, &held)?;
        Ok(held.id)
    }

    fn adopt(&self, task: &Arc<TaskSpec>, held: &Held) -> Result<(), NetworkError> {
        self.pins.pin(task.arn.id(), held.pid).map_err(kernel("pinning the task's namespace"))?;
        self.pool.watch(task.arn.clone(), held);
        if let Some(known) = self.tasks().get_mut(&task.arn) {
            known.held = Some(held.clone());
        }
        Ok(())
    }

    async fn connect(&self, task: &Arc<TaskSpec>) -> Result<(), NetworkError> {
        let attachment = task.attachment.as_ref().ok_or_else(|| {
            NetworkError::Refused("the control plane gave the task no network interface".to_owned())
        })?;
        let (turn, endpoint) = self.know(task)?;
        let _turn = turn.lock().await;
        let held = self
            .held(&task.arn)
            .ok_or_else(|| NetworkError::Passing("the task's namespace is not there".to_owned()))?;
        let id = task.arn.id();
        let namespace =
            Namespace::pinned(&self.pins.path(id)).map_err(kernel("opening the task's namespace"))?;
        let inside = Netlink::inside(&namespace, &self.tracker)
            .await
            .map_err(kernel("entering the task's namespace"))?;
        let fabric = match attachment.provider {
            Provider::Veth => Some(self.bridge(attachment).await?),
            Provider::HotPlug => {
                arrival::wait(&self.host, &inside, attachment, &self.tracker).await?;
                None
            }
            _ => None,
        };
        let began = Instant::now();
        for operation in plan::operations(id, attachment, &self.site(endpoint)) {
            let what = format!("{operation:?}");
            self.carry_out(operation, id, fabric.as_ref(), &inside, &namespace)
                .await
                .map_err(kernel(&what))?;
        }
        let groups = self.tasks().get(&task.arn).map(|known| known.groups.clone()).unwrap_or_default();
        guard::apply(&namespace, guard::table(attachment, &groups))
            .await
            .map_err(kernel("putting the security groups in force"))?;
        tell(held.pid, attachment).map_err(kernel("writing the task's /etc/hosts and /etc/resolv.conf"))?;
        if !attachment.hostname.is_empty() {
            set_hostname(held.pid, attachment.hostname.clone())
                .await
                .map_err(kernel("setting the task's host name"))?;
        }
        tracing::debug!(task = %task.arn, took_us = began.elapsed().as_micros(), "interface configured");
        Ok(())
    }

    /// A name that does not come is no reason to fail a task that runs.
    async fn name(&self, task: &TaskSpec, container: &EngineId) {
        let Some(hostname) = task.attachment.as_ref().map(|a| a.hostname.clone()).filter(|h| !h.is_empty())
        else {
            return;
        };
        let named = match self.pool.running(container).await {
            Ok(Some(process)) => set_hostname(process.pid, hostname).await,
            // It has ended already.
            Ok(None) => Ok(()),
            Err(error) => Err(io::Error::other(error)),
        };
        if let Err(error) = named {
            tracing::warn!(task = %task.arn, %container, %error, "the container has not got the task's host name");
        }
    }

    async fn bridge(&self, attachment: &Attachment) -> Result<Netlink, NetworkError> {
        let _one = self.bridges.lock().await;
        let (name, note) = (self.bridge_name(&attachment.subnet_id), self.note(&attachment.subnet_id));
        fabric::ensure(attachment, &name, &note, &self.host, &self.pins, &self.tracker)
            .await
            .map_err(kernel("making the bridge of the subnet"))
    }

    async fn carry_out(
        &self,
        operation: Operation,
        id: &str,
        fabric: Option<&Netlink>,
        inside: &Netlink,
        namespace: &Namespace,
    ) -> io::Result<()> {
        let at = |place| match place {
            Place::Host => Ok(&self.host),
            Place::Task => Ok(inside),
            Place::Fabric => fabric.ok_or_else(|| io::Error::other("the subnet has no bridge")),
        };
        match operation {
            Operation::Pair { outside, outer, bridge, inner, mac } => {
                let outside = at(outside)?;
                if inside.link(inner).await?.is_none() {
                    outside.pair(&outer, &self.note(id), inner, mac, namespace).await?;
                }
                match bridge {
                    Some(bridge) => outside.port(&outer, &bridge).await,
                    None => Ok(()),
                }
            }
            Operation::Vlan { parent, id, name } => {
                self.host.vlan(&parent, id, &name).await?;
                self.host.note(&name, &self.note(&name)).await
            }
            Operation::Child { parent, child } => {
                if inside.link(plan::INTERFACE).await?.is_some() {
                    return Ok(());
                }
                self.host.child(&parent, child, plan::INTERFACE, namespace).await
            }
            Operation::Take { mac } => {
                if inside.link(plan::INTERFACE).await?.is_some() {
                    return Ok(());
                }
                match arrival::find(&self.host, mac).await? {
                    Some(link) => self.host.give(link.index, plan::INTERFACE, namespace).await,
                    None => {
                        Err(io::Error::new(io::ErrorKind::NotFound, format!("no link has the address {mac}")))
                    }
                }
            }
            Operation::EnableIpv6 => namespace.enter(enable_ipv6).await,
            Operation::Mtu { link, bytes } => inside.mtu(link, bytes).await,
            Operation::Up { place, link } => at(place)?.up(&link).await,
            Operation::Address { link, address } => inside.address(link, address).await,
            Operation::Route { place, to, via, link } => at(place)?.route(to, via, &link).await,
            Operation::Blackhole { to } => inside.blackhole(to).await,
        }
    }

    async fn disconnect(&self, task: &Arc<TaskSpec>) -> Result<(), NetworkError> {
        let Some(attachment) = &task.attachment else {
            return Ok(());
        };
        let (turn, endpoint) = self.know(task)?;
        let _turn = turn.lock().await;
        let id = task.arn.id();
        let inside = match Namespace::pinned(&self.pins.path(id)) {
            Ok(namespace) => Some(
                Netlink::inside(&namespace, &self.tracker)
                    .await
                    .map_err(kernel("entering the task's namespace"))?,
            ),
            Err(_) => None,
        };
        let bridge = self.bridge_name(&attachment.subnet_id);
        let fabric = match Namespace::pinned(&self.pins.path(&bridge)) {
            Ok(namespace) if attachment.provider == Provider::Veth => {
                Netlink::inside(&namespace, &self.tracker).await.ok()
            }
            _ => None,
        };
        let mut first_failure = None;
        for undo in plan::undoing(&plan::operations(id, attachment, &self.site(endpoint))) {
            let what = format!("{undo:?}");
            if let Err(error) = self.undo(undo, fabric.as_ref(), inside.as_ref()).await {
                // All are tried.
                first_failure.get_or_insert_with(|| kernel(&what)(error));
            }
        }
        if attachment.provider == Provider::Veth {
            let _one = self.bridges.lock().await;
            fabric::remove_if_unused(&bridge, &self.host, &self.pins, &self.tracker)
                .await
                .map_err(kernel("removing the bridge of the subnet"))?;
        }
        if let Provider::Vlan { id } = attachment.provider
            && self.is_last_of(task, attachment.provider)
        {
            let name = plan::vlan_name(&self.config.data_dir.display().to_string(), id);
            self.host.remove(&name).await.map_err(kernel("removing the VLAN of the subnet"))?;
        }
        first_failure.map_or(Ok(()), Err)
    }

    /// Whether no other task has an interface of that provider.
    fn is_last_of(&self, task: &TaskSpec, provider: Provider) -> bool {
        !self.tasks().iter().any(|(arn, known)| {
            *arn != task.arn && known.task.attachment.as_ref().is_some_and(|a| a.provider == provider)
        })
    }

    async fn undo(&self, undo: Undo, fabric: Option<&Netlink>, inside: Option<&Netlink>) -> io::Result<()> {
        match undo {
            Undo::Remove { place, link } => {
                let place = match place {
                    Place::Host => Some(&self.host),
                    Place::Fabric => fabric,
                    Place::Task => inside,
                };
                match place {
                    Some(place) => place.remove(&link).await,
                    None => Ok(()),
                }
            }
            Undo::GiveBack { mac } => {
                let Some(inside) = inside else { return Ok(()) };
                match arrival::find(inside, mac).await? {
                    Some(link) => inside.give(link.index, &arrival::spare_name(mac), &self.home).await,
                    None => Ok(()),
                }
            }
        }
    }

    async fn let_go(&self, task: &Arc<TaskSpec>) -> Result<(), NetworkError> {
        let (turn, _) = self.know(task)?;
        let _turn = turn.lock().await;
        let id = task.arn.id();
        self.pins.unpin(id).map_err(kernel("unpinning the task's namespace"))?;
        let held = match self.held(&task.arn) {
            Some(held) => Some(held.id),
            None => {
                let all = self.pool.all().await?;
                all.into_iter().find(|holder| task_of(&holder.name) == Some(id)).map(|holder| holder.id)
            }
        };
        if let Some(held) = held {
            self.pool.release(&held).await?;
        }
        self.tasks().remove(&task.arn);
        Ok(())
    }

    async fn take_over(&self, alive: &[Survivor]) -> Result<Vec<TaskArn>, NetworkError> {
        let holders = self.pool.all().await?;
        let mut lost = Vec::new();
        for (task, _) in alive {
            self.know(task)?;
            let holder =
                holders.iter().find(|h| task_of(&h.name) == Some(task.arn.id())).filter(|h| h.running);
            let held = match holder {
                Some(holder) => self.pool.running(&holder.id).await?,
                None => None,
            };
            match held {
                Some(held) => {
                    self.adopt(task, &held)?;
                    self.remember_endpoint(task).await;
                }
                None => lost.push(task.arn.clone()),
            }
        }
        let ids: BTreeSet<&str> = alive.iter().map(|(task, _)| task.arn.id()).collect();
        for holder in &holders {
            let of_task = task_of(&holder.name).is_some_and(|id| ids.contains(id));
            if !of_task && (holder.name.starts_with(POOLED) || task_of(&holder.name).is_some()) {
                self.pool.release(&holder.id).await?;
            }
        }
        self.sweep(&ids, alive).await.map_err(kernel("sweeping what was left over"))?;
        self.pool.fill();
        Ok(lost)
    }

    /// The address that a task has on its link to the endpoint since before the restart.
    async fn remember_endpoint(&self, task: &Arc<TaskSpec>) {
        let Ok(namespace) = Namespace::pinned(&self.pins.path(task.arn.id())) else { return };
        let Ok(inside) = Netlink::inside(&namespace, &self.tracker).await else { return };
        let addresses = inside.addresses(plan::ENDPOINT_LINK).await.unwrap_or_default();
        if let Some(std::net::IpAddr::V4(address)) = addresses.first().map(|cidr| cidr.address)
            && let Some(known) = self.tasks().get_mut(&task.arn)
        {
            known.endpoint = address;
        }
    }

    /// Removes links and pins of this agent's that belong to no task.
    async fn sweep(&self, ids: &BTreeSet<&str>, alive: &[Survivor]) -> io::Result<()> {
        let attachments = || alive.iter().filter_map(|(task, _)| task.attachment.as_ref());
        let bridges: BTreeSet<String> = attachments().map(|a| self.bridge_name(&a.subnet_id)).collect();
        let agent = self.config.data_dir.display().to_string();
        let vlans: BTreeSet<String> = attachments()
            .filter_map(|a| match a.provider {
                Provider::Vlan { id } => Some(plan::vlan_name(&agent, id)),
                _ => None,
            })
            .collect();
        for link in self.host.links().await? {
            let ours = link.alias.strip_prefix(&self.note(""));
            if ours.is_some_and(|whose| {
                !ids.contains(whose) && !bridges.contains(&link.name) && !vlans.contains(&link.name)
            }) {
                tracing::info!(link = link.name, "removed a link that was left over");
                self.host.remove(&link.name).await?;
            }
        }
        for name in self.pins.names() {
            if !ids.contains(name.as_str()) && !bridges.contains(&name) {
                self.pins.unpin(&name)?;
            }
        }
        for bridge in bridges {
            fabric::remove_if_unused(&bridge, &self.host, &self.pins, &self.tracker).await?;
        }
        Ok(())
    }

    async fn guard_anew(&self, groups: Vec<SecurityGroup>) {
        let changed: Vec<(Arc<TaskSpec>, Vec<SecurityGroup>)> = {
            let mut tasks = self.tasks();
            let mut changed = Vec::new();
            for known in tasks.values_mut() {
                let before = known.groups.clone();
                for own in &mut known.groups {
                    let newer = groups.iter().find(|group| group.id == own.id && group.version > own.version);
                    if let Some(newer) = newer {
                        *own = newer.clone();
                    }
                }
                if known.groups != before {
                    changed.push((Arc::clone(&known.task), known.groups.clone()));
                }
            }
            changed
        };
        for (task, groups) in changed {
            let Some(attachment) = &task.attachment else { continue };
            let Ok(namespace) = Namespace::pinned(&self.pins.path(task.arn.id())) else { continue };
            match guard::apply(&namespace, guard::table(attachment, &groups)).await {
                Ok(()) => tracing::info!(task = %task.arn, "security groups changed"),
                Err(error) => {
                    tracing::error!(task = %task.arn, %error, "the changed security groups are not in force");
                }
            }
        }
    }
}

/// In the network namespace of the thread.
fn enable_ipv6() -> io::Result<()> {
    for which in ["all", "default", "lo"] {
        fs::write(format!("/proc/sys/net/ipv6/conf/{which}/disable_ipv6"), "0")?;
    }
    Ok(())
}

/// Writes the task's own `/etc/hosts`, `/etc/resolv.conf` and `/etc/hostname`. The engine gives a
/// container that joins another's network those of the holder, so they are changed in place.
fn tell(holder: u32, attachment: &Attachment) -> io::Result<()> {
    let etc = Path::new("/proc").join(holder.to_string()).join("root/etc");
    let mut hosts = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n".to_owned();
    if !attachment.hostname.is_empty() {
        for address in &attachment.addresses {
            hosts.push_str(&format!("{}\t{}\n", address.address, attachment.hostname));
        }
        overwrite(&etc.join("hostname"), &format!("{}\n", attachment.hostname))?;
    }
    overwrite(&etc.join("hosts"), &hosts)?;
    overwrite(&etc.join("resolv.conf"), &resolver(attachment))
}

fn resolver(attachment: &Attachment) -> String {
    if attachment.dns_servers.is_empty() {
        return fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    }
    let mut text = String::new();
    for server in &attachment.dns_servers {
        text.push_str(&format!("nameserver {server}\n"));
    }
    if !attachment.dns_search_domains.is_empty() {
        text.push_str(&format!("search {}\n", attachment.dns_search_domains.join(" ")));
    }
    text
}

/// The same file with another content: it is mounted in several places.
fn overwrite(path: &Path, text: &str) -> io::Result<()> {
    let mut file = fs::OpenOptions::new().write(true).truncate(true).open(path)?;
    file.write_all(text.as_bytes())
}

impl TaskNetwork for Awsvpc {
    fn prepare<'a>(&'a self, task: &'a Arc<TaskSpec>) -> BoxFuture<'a, Result<EngineId, NetworkError>> {
        self.hold(task).boxed()
    }

    fn attach<'a>(&'a self, task: &'a Arc<TaskSpec>) -> BoxFuture<'a, Result<(), NetworkError>> {
        self.connect(task).boxed()
    }

    fn started<'a>(&'a self, task: &'a Arc<TaskSpec>, container: &'a EngineId) -> BoxFuture<'a, ()> {
        self.name(task, container).boxed()
    }

    fn detach<'a>(&'a self, task: &'a Arc<TaskSpec>) -> BoxFuture<'a, Result<(), NetworkError>> {
        self.disconnect(task).boxed()
    }

    fn dismiss<'a>(&'a self, task: &'a Arc<TaskSpec>) -> BoxFuture<'a, Result<(), NetworkError>> {
        self.let_go(task).boxed()
    }

    fn guard(&self, groups: Vec<SecurityGroup>) -> BoxFuture<'_, ()> {
        self.guard_anew(groups).boxed()
    }

    fn restore<'a>(&'a self, alive: &'a [Survivor]) -> BoxFuture<'a, Result<Vec<TaskArn>, NetworkError>> {
        self.take_over(alive).boxed()
    }

    fn lost(&self) -> BoxFuture<'_, (TaskArn, EngineId)> {
        async move {
            match self.lost.lock().await.recv().await {
                Some(lost) => lost,
                None => std::future::pending().await,
            }
        }
        .boxed()
    }

    fn offers(&self) -> Offers {
        self.config.offers.clone()
    }
}
