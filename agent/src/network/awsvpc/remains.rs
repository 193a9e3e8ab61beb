//! What is left of tasks' networks outside their namespaces when these are gone: the far ends of
//! links, the rules at them, bridges and VLANs that nobody is on. Nobody waits for it. The kernel
//! removes the links of a namespace that ends, those of many in one go, and takes some 10 ms over each
//! that it is told to; so it is left alone with it for a moment.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use berth_core::attachment::{Attachment, Provider};
use berth_core::spec::TaskSpec;
use tokio::sync::mpsc;

use super::Tasks;
use crate::network::fabric::{self, Fabric};
use crate::network::netlink::Netlink;
use crate::network::netns::Pins;
use crate::network::plan;
use crate::supervise::Tracker;

/// Tasks whose remains are not cleared away yet; with more, who ends one waits.
const WAITING: usize = 256;
/// How long the kernel is left alone.
const LEFT_ALONE: Duration = Duration::from_millis(50);

/// Clears remains away. Cloning shares everything.
#[derive(Clone)]
pub(super) struct Remains {
    pub(super) agent: Arc<str>,
    pub(super) host: Netlink,
    pub(super) pins: Pins,
    pub(super) tasks: Tasks,
    /// Bridges are made and removed one at a time: a task may come while the last one goes.
    pub(super) bridges: Arc<tokio::sync::Mutex<()>>,
    pub(super) tracker: Tracker,
}

impl Remains {
    /// Where tasks are handed in that are gone. What the agent does not get to is removed at its next
    /// start.
    pub(super) fn clear_soon(&self) -> mpsc::Sender<Arc<TaskSpec>> {
        let (gone, mut handed_in) = mpsc::channel::<Arc<TaskSpec>>(WAITING);
        let this = self.clone();
        self.tracker.spawn_droppable("remains of tasks", async move {
            while let Some(first) = handed_in.recv().await {
                tokio::time::sleep(LEFT_ALONE).await;
                let mut tasks = vec![first];
                while let Ok(next) = handed_in.try_recv() {
                    tasks.push(next);
                }
                if let Err(error) = this.clear(&tasks).await {
                    tracing::warn!(%error, "something is left of a task's network until the next start");
                }
            }
        });
        gone
    }

    async fn clear(&self, tasks: &[Arc<TaskSpec>]) -> io::Result<()> {
        let there: BTreeSet<String> = self.host.links().await?.into_iter().map(|link| link.name).collect();
        for link in tasks.iter().map(|task| plan::endpoint_name(task.arn.id())) {
            if there.contains(&link) {
                self.host.remove(&link).await?;
            }
        }
        let attachments = || tasks.iter().filter_map(|task| task.attachment.as_ref());
        let on_bridges = attachments().filter(|a| a.provider == Provider::Veth);
        for subnet in on_bridges.map(|a| a.subnet_id.as_str()).collect::<BTreeSet<_>>() {
            self.clear_bridge(subnet).await?;
        }
        for attachment in attachments() {
            if let Provider::Vlan { id } = attachment.provider
                && !self.wanted(|other| other.provider == attachment.provider)
            {
                self.host.remove(&plan::vlan_name(&self.agent, id)).await?;
            }
        }
        Ok(())
    }

    /// Removes what belongs to no task from the bridge of a subnet, and the bridge if there is none.
    pub(super) async fn clear_bridge(&self, subnet_id: &str) -> io::Result<()> {
        let _one = self.bridges.lock().await;
        let name = plan::bridge_name(&self.agent, subnet_id);
        let on_it = |a: &Attachment| a.provider == Provider::Veth && a.subnet_id == subnet_id;
        if !self.wanted(on_it) {
            return fabric::remove(&name, &self.host, &self.pins).await;
        }
        let Some(fabric) = Fabric::find(&name, &self.pins, &self.tracker).await else {
            return Ok(());
        };
        let ports = super::lock(&self.tasks).keys().map(|task| plan::port_name(task.id())).collect();
        fabric.sweep(&ports).await
    }

    /// Whether a task that is there has such an attachment.
    fn wanted(&self, such: impl Fn(&Attachment) -> bool) -> bool {
        super::lock(&self.tasks).values().filter_map(|known| known.task.attachment.as_ref()).any(such)
    }
}
