//! After a start: what is alive is taken over, what was left over is removed.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;

use berth_core::attachment::Provider;
use berth_core::ids::TaskArn;
use berth_core::spec::TaskSpec;

use super::{Awsvpc, kernel};
use crate::network::holder::{POOLED, task_of};
use crate::network::netlink::Netlink;
use crate::network::netns::Namespace;
use crate::network::{NetworkError, Survivor, plan};

impl Awsvpc {
    pub(super) async fn take_over(&self, alive: &[Survivor]) -> Result<Vec<TaskArn>, NetworkError> {
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
            let ours = link.alias.strip_prefix(&plan::note(&agent, ""));
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
        for subnet in attachments().map(|a| a.subnet_id.as_str()).collect::<BTreeSet<_>>() {
            self.remains.clear_bridge(subnet).await?;
        }
        Ok(())
    }
}
