//! The way up: an interface in the task's namespace, its neighbours asked, its guard in force.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use berth_core::attachment::{Attachment, Provider};
use berth_core::spec::TaskSpec;

use super::{Awsvpc, kernel};
use crate::network::fabric::Fabric;
use crate::network::guard::frames::{self, Wire};
use crate::network::inside::{set_switches, tell};
use crate::network::netlink::{Netlink, Question};
use crate::network::netns::{Namespace, set_hostname};
use crate::network::plan::{Operation, Place};
use crate::network::{NetworkError, arrival, fabric, guard, plan};

/// How long neighbours on a wire have to say that an address is theirs. They answer within a
/// millisecond or two.
const ANSWER_BY_WIRE: Duration = Duration::from_millis(10);
/// The same on a bridge of this host, where the kernel answers while it is asked.
const ANSWER_BY_BRIDGE: Duration = Duration::from_millis(3);

/// What the operations for one task work with.
struct Site<'a> {
    task: &'a TaskSpec,
    attachment: &'a Attachment,
    namespace: &'a Namespace,
    /// The process that holds the namespace.
    holder: u32,
    inside: Netlink,
    fabric: Option<Fabric>,
}

impl Site<'_> {
    fn fabric(&self) -> io::Result<&Fabric> {
        self.fabric.as_ref().ok_or_else(|| io::Error::other("the subnet has no bridge"))
    }

    fn links<'a>(&'a self, place: Place, host: &'a Netlink) -> io::Result<&'a Netlink> {
        match place {
            Place::Host => Ok(host),
            Place::Task => Ok(&self.inside),
            Place::Fabric => Ok(&self.fabric()?.links),
        }
    }
}

impl Awsvpc {
    pub(super) async fn connect(&self, task: &Arc<TaskSpec>) -> Result<(), NetworkError> {
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
        if attachment.provider == Provider::HotPlug {
            arrival::wait(&self.host, &inside, attachment, &self.tracker).await?;
        }
        let began = Instant::now();
        let fabric = match attachment.provider {
            Provider::Veth => Some(self.bridge(attachment).await?),
            _ => None,
        };
        let site = Site { task, attachment, namespace: &namespace, holder: held.pid, inside, fabric };
        let (mut question, mut waited) = (None, Duration::ZERO);
        for operation in plan::operations(id, attachment, &self.site(endpoint)) {
            let (step, what) = (Instant::now(), format!("{operation:?}"));
            match operation {
                Operation::Ask { link, addresses } => {
                    question = self.ask(link, addresses, &site).await.map_err(kernel(&what))?;
                }
                Operation::Claim => {
                    claim(question.take(), attachment).await?;
                    waited = step.elapsed();
                }
                operation => self.carry_out(operation, &site).await.map_err(kernel(&what))?,
            }
            tracing::trace!(task = %task.arn, operation = what, took_us = step.elapsed().as_micros(), "network");
        }
        let took = began.elapsed().saturating_sub(waited);
        tracing::debug!(
            task = %task.arn,
            took_us = took.as_micros(),
            waited_us = waited.as_micros(),
            "interface configured"
        );
        Ok(())
    }

    /// Asks the neighbours. Addresses that the link has since an earlier attempt are nobody else's.
    async fn ask(&self, link: &str, addresses: Vec<IpAddr>, site: &Site<'_>) -> io::Result<Option<Question>> {
        let has = site.inside.addresses(link).await?;
        let is_new = |address: &IpAddr| !has.iter().any(|cidr| cidr.address == *address);
        let asked: Vec<IpAddr> = addresses.into_iter().filter(is_new).collect();
        if asked.is_empty() {
            return Ok(None);
        }
        site.inside.ask(site.namespace, link, asked, &self.tracker).await.map(Some)
    }

    async fn bridge(&self, attachment: &Attachment) -> Result<Fabric, NetworkError> {
        let _one = self.remains.bridges.lock().await;
        let (name, note) = (self.bridge_name(&attachment.subnet_id), self.note(&attachment.subnet_id));
        fabric::ensure(attachment, &name, &note, &self.host, &self.pins, &self.tracker)
            .await
            .map_err(kernel("making the bridge of the subnet"))
    }

    async fn carry_out(&self, operation: Operation, site: &Site<'_>) -> io::Result<()> {
        let (inside, namespace) = (&site.inside, site.namespace);
        let id = site.task.arn.id();
        match operation {
            Operation::Switches { ipv6 } => namespace.enter(move || set_switches(ipv6)).await,
            Operation::Pair { outside, outer, bridge, inner, mac } => {
                let outside = site.links(outside, &self.host)?;
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
            Operation::Frames { place, link } => watch_frames(place, &link, site).await,
            Operation::Guard => {
                let known = self.tasks().get(&site.task.arn).map(|known| known.groups.clone());
                guard::apply(namespace, guard::table(site.attachment, &known.unwrap_or_default())).await
            }
            Operation::Mtu { link, bytes } => inside.mtu(link, bytes).await,
            Operation::Up { place, link } => site.links(place, &self.host)?.up(&link).await,
            Operation::Files => {
                tell(site.holder, site.attachment)?;
                match site.attachment.hostname.as_str() {
                    "" => Ok(()),
                    hostname => set_hostname(site.holder, hostname.to_owned()).await,
                }
            }
            // What lies between the two is the caller's.
            Operation::Ask { .. } | Operation::Claim => Ok(()),
            Operation::Address { link, address } => inside.address(link, address).await,
            Operation::Route { place, to, via, link } => {
                site.links(place, &self.host)?.route(to, via, &link).await
            }
            Operation::Announce { link } => {
                if let Err(error) = inside.announce(link).await {
                    // Neighbours will ask when what they remember is too old.
                    tracing::debug!(task = %site.task.arn, %error, "the neighbours were not told of the task's addresses");
                }
                Ok(())
            }
            Operation::Blackhole { to } => inside.blackhole(to).await,
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

/// A kernel that cannot look at frames as they leave (before 5.16) is no reason to run no task: the
/// security groups look at packets.
async fn watch_frames(place: Place, link: &str, site: &Site<'_>) -> io::Result<()> {
    let chain = frames::chain(site.attachment);
    match place {
        Place::Fabric => frames::apply(&site.fabric()?.namespace, link, Wire::In, chain).await,
        Place::Task | Place::Host => {
            if let Err(error) = frames::apply(site.namespace, link, Wire::Out, chain).await {
                tracing::warn!(task = %site.task.arn, %error, "this kernel does not look at what a task sends raw");
            }
            Ok(())
        }
    }
}
