//! The way up: an interface in the task's namespace, its neighbours asked, its guard in force.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use berth_core::attachment::{Attachment, Provider, SecurityGroup};
use berth_core::spec::TaskSpec;

use tokio::sync::OwnedMutexGuard;

use super::remains::Remains;
use super::{Awsvpc, kernel};
use crate::network::fabric::Fabric;
use crate::network::guard::frames::{self, Wire};
use crate::network::inside::{set_switches, tell};
use crate::network::netlink::{Netlink, Question};
use crate::network::netns::{Namespace, on_own_thread, set_hostname};
use crate::network::plan::{Operation, Place};
use crate::network::{NetworkError, arrival, fabric, guard, plan};

/// How long neighbours on a wire have to say that an address is theirs. They answer within a
/// millisecond or two.
const ANSWER_BY_WIRE: Duration = Duration::from_millis(10);
/// The same on a bridge of this host, where the kernel answers while it is asked.
const ANSWER_BY_BRIDGE: Duration = Duration::from_millis(3);

/// All that is needed to connect one task, on a thread of its own.
struct Way {
    task: Arc<TaskSpec>,
    attachment: Attachment,
    namespace: Namespace,
    /// The process that holds the namespace.
    holder: u32,
    groups: Vec<SecurityGroup>,
    site: plan::Site,
    remains: Remains,
    /// Nothing else is done for the task meanwhile.
    _turn: OwnedMutexGuard<()>,
}

/// Connections to the kernel.
struct Links {
    host: Netlink,
    inside: Netlink,
    fabric: Option<Fabric>,
}

impl Links {
    fn fabric(&self) -> io::Result<&Fabric> {
        self.fabric.as_ref().ok_or_else(|| io::Error::other("the subnet has no bridge"))
    }

    fn at(&self, place: Place) -> io::Result<&Netlink> {
        match place {
            Place::Host => Ok(&self.host),
            Place::Task => Ok(&self.inside),
            Place::Fabric => Ok(&self.fabric()?.links),
        }
    }
}

impl Awsvpc {
    pub(super) async fn connect(&self, task: &Arc<TaskSpec>) -> Result<(), NetworkError> {
        let attachment = task.attachment.clone().ok_or_else(|| {
            NetworkError::Refused("the control plane gave the task no network interface".to_owned())
        })?;
        let (turn, endpoint) = self.know(task)?;
        let turn = turn.lock_owned().await;
        let held = self
            .held(&task.arn)
            .ok_or_else(|| NetworkError::Passing("the task's namespace is not there".to_owned()))?;
        let namespace = Namespace::pinned(&self.pins.path(task.arn.id()))
            .map_err(kernel("opening the task's namespace"))?;
        if attachment.provider == Provider::HotPlug {
            arrival::wait(&self.host, &namespace, &attachment, &self.tracker).await?;
        }
        let way = Way {
            groups: self.tasks().get(&task.arn).map(|known| known.groups.clone()).unwrap_or_default(),
            task: Arc::clone(task),
            attachment,
            namespace,
            holder: held.pid,
            site: self.site(endpoint),
            remains: self.remains.clone(),
            _turn: turn,
        };
        on_own_thread(move || async move { way.go().await }).await.map_err(kernel("connecting the task"))?
    }
}

impl Way {
    async fn go(self) -> Result<(), NetworkError> {
        let began = Instant::now();
        let links = self.links().await?;
        let (mut question, mut waited) = (None, Duration::ZERO);
        for operation in plan::operations(
            self.task.arn.id(),
            &self.attachment,
            plan::network_controls(&self.task),
            &self.site,
        ) {
            let (step, what) = (Instant::now(), operation.to_string());
            match operation {
                Operation::Ask { link, addresses } => {
                    question = self.ask(link, addresses, &links).await.map_err(kernel(&what))?;
                }
                Operation::Claim => {
                    claim(question.take(), &self.attachment).await?;
                    waited = step.elapsed();
                }
                operation => self.carry_out(operation, &links).await.map_err(kernel(&what))?,
            }
            tracing::trace!(
                task = %self.task.arn,
                operation = what,
                took_us = step.elapsed().as_micros(),
                "network"
            );
        }
        let took = began.elapsed().saturating_sub(waited);
        tracing::debug!(
            task = %self.task.arn,
            took_us = took.as_micros(),
            waited_us = waited.as_micros(),
            "interface configured"
        );
        Ok(())
    }

    async fn links(&self) -> Result<Links, NetworkError> {
        let tracker = &self.remains.tracker;
        // First of all: the thread is on the host as yet.
        let host = Netlink::here(tracker).map_err(kernel("speaking of the host's network"))?;
        let fabric = match self.attachment.provider {
            Provider::Veth => {
                let _one = self.remains.bridges.lock().await;
                let name = plan::bridge_name(&self.site.agent, &self.attachment.subnet_id);
                let note = plan::note(&self.site.agent, &self.attachment.subnet_id);
                let made =
                    fabric::ensure(&self.attachment, &name, &note, &host, &self.remains.pins, tracker).await;
                Some(made.map_err(kernel("making the bridge of the subnet"))?)
            }
            _ => None,
        };
        let inside = Netlink::inside(&self.namespace, tracker)
            .await
            .map_err(kernel("entering the task's namespace"))?;
        Ok(Links { host, inside, fabric })
    }

    /// Asks the neighbours. Addresses that the link has since an earlier attempt are nobody else's.
    async fn ask(&self, link: &str, addresses: Vec<IpAddr>, links: &Links) -> io::Result<Option<Question>> {
        let has = links.inside.addresses(link).await?;
        let is_new = |address: &IpAddr| !has.iter().any(|cidr| cidr.address == *address);
        let asked: Vec<IpAddr> = addresses.into_iter().filter(is_new).collect();
        if asked.is_empty() {
            return Ok(None);
        }
        links.inside.ask(&self.namespace, link, asked, &self.remains.tracker).await.map(Some)
    }

    async fn carry_out(&self, operation: Operation, links: &Links) -> io::Result<()> {
        let (inside, namespace) = (&links.inside, &self.namespace);
        let id = self.task.arn.id();
        match operation {
            Operation::Switches { ipv6, controls } => {
                namespace.enter(move || set_switches(ipv6, &controls)).await
            }
            Operation::Pair { outside, outer, bridge, inner, mac } => {
                let outside = links.at(outside)?;
                if inside.link(inner).await?.is_none() {
                    outside.pair(&outer, &plan::note(&self.site.agent, id), inner, mac, namespace).await?;
                }
                match bridge {
                    Some(bridge) => outside.port(&outer, &bridge).await,
                    None => Ok(()),
                }
            }
            Operation::Vlan { parent, id, name } => {
                links.host.vlan(&parent, id, &name).await?;
                links.host.note(&name, &plan::note(&self.site.agent, &name)).await
            }
            Operation::Child { parent, child } => {
                if inside.link(plan::INTERFACE).await?.is_some() {
                    return Ok(());
                }
                links.host.child(&parent, child, plan::INTERFACE, namespace).await
            }
            Operation::Take { mac } => {
                if inside.link(plan::INTERFACE).await?.is_some() {
                    return Ok(());
                }
                match arrival::find(&links.host, mac).await? {
                    Some(link) => links.host.give(link.index, plan::INTERFACE, namespace).await,
                    None => {
                        Err(io::Error::new(io::ErrorKind::NotFound, format!("no link has the address {mac}")))
                    }
                }
            }
            Operation::Frames { place, link } => self.watch_frames(place, &link, links).await,
            Operation::Guard => {
                guard::apply(namespace, guard::table(&self.attachment, &self.groups, self.site.endpoint_port))
                    .await
            }
            Operation::Mtu { link, bytes } => inside.mtu(link, bytes).await,
            Operation::Up { place, link } => links.at(place)?.up(&link).await,
            Operation::Files => {
                tell(self.holder, &self.attachment)?;
                match self.attachment.hostname.as_str() {
                    "" => Ok(()),
                    hostname => set_hostname(self.holder, hostname.to_owned()).await,
                }
            }
            // What lies between the two is the caller's.
            Operation::Ask { .. } | Operation::Claim => Ok(()),
            Operation::Address { link, address } => inside.address(link, address).await,
            Operation::Route { place, to, via, link } => links.at(place)?.route(to, via, &link).await,
            Operation::Announce { link } => {
                if let Err(error) = inside.announce(link).await {
                    // Neighbours will ask when what they remember is too old.
                    tracing::debug!(task = %self.task.arn, %error, "the neighbours were not told of the task's addresses");
                }
                Ok(())
            }
            Operation::Blackhole { to } => inside.blackhole(to).await,
        }
    }

    /// A kernel that cannot look at frames as they leave (before 5.16) is no reason to run no task: the
    /// security groups look at packets.
    async fn watch_frames(&self, place: Place, link: &str, links: &Links) -> io::Result<()> {
        let chain = frames::chain(&self.attachment);
        match place {
            Place::Fabric => frames::apply(&links.fabric()?.namespace, link, Wire::In, chain).await,
            Place::Task | Place::Host => {
                if let Err(error) = frames::apply(&self.namespace, link, Wire::Out, chain).await {
                    tracing::warn!(task = %self.task.arn, %error, "this kernel does not look at what a task sends raw");
                }
                Ok(())
            }
        }
    }
}

/// The addresses are the task's, unless a neighbour says otherwise.
async fn claim(question: Option<Question>, attachment: &Attachment) -> Result<(), NetworkError> {
    let Some(question) = question else {
        return Ok(());
    };
    let patience = if attachment.provider == Provider::Veth { ANSWER_BY_BRIDGE } else { ANSWER_BY_WIRE };
    match question.answer(patience).await.map_err(kernel("asking the neighbours"))? {
        None => Ok(()),
        Some(neighbour) => Err(NetworkError::Refused(format!(
            "the address {} is in use already, by an interface with the hardware address {}; subnet {} needs a \
             range of its own",
            neighbour.address, neighbour.mac, attachment.subnet_id
        ))),
    }
}
