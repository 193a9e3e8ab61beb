//! The way down: the interface is taken away, then the namespace and its holder.

use std::io;
use std::sync::Arc;

use berth_core::attachment::Provider;
use berth_core::spec::TaskSpec;

use super::{Awsvpc, kernel};
use crate::network::holder::task_of;
use crate::network::netlink::Netlink;
use crate::network::netns::Namespace;
use crate::network::plan::{Place, Undo};
use crate::network::{NetworkError, arrival, fabric, plan};

impl Awsvpc {
    pub(super) async fn disconnect(&self, task: &Arc<TaskSpec>) -> Result<(), NetworkError> {
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

    pub(super) async fn let_go(&self, task: &Arc<TaskSpec>) -> Result<(), NetworkError> {
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
}
