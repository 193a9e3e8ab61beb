//! The way down: the task gives its addresses back, or its interface; then its namespace ends.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use berth_core::attachment::{Attachment, Provider};
use berth_core::spec::TaskSpec;

use super::{Awsvpc, kernel};
use crate::network::holder::task_of;
use crate::network::netlink::Netlink;
use crate::network::netns::{Namespace, on_own_thread};
use crate::network::{NetworkError, arrival, plan};

impl Awsvpc {
    /// Nobody answers for the task's addresses any more, and an interface that was plugged in is the
    /// host's again. What else there is goes with the namespace.
    pub(super) async fn disconnect(&self, task: &Arc<TaskSpec>) -> Result<(), NetworkError> {
        let Some(attachment) = &task.attachment else {
            return Ok(());
        };
        let (turn, _) = self.know(task)?;
        let turn = turn.lock_owned().await;
        let began = Instant::now();
        let Ok(namespace) = Namespace::pinned(&self.pins.path(task.arn.id())) else {
            return Ok(());
        };
        let away = kernel("taking the task's interface away");
        let (attachment, tracker) = (attachment.clone(), self.tracker.clone());
        let home = self.home.try_clone().map_err(&away)?;
        let done = on_own_thread(move || async move {
            let _turn = turn;
            let inside = Netlink::inside(&namespace, &tracker).await?;
            give_back(&inside, &attachment, &home).await
        });
        done.await.flatten().map_err(&away)?;
        tracing::debug!(task = %task.arn, took_us = began.elapsed().as_micros(), "interface taken away");
        Ok(())
    }

    pub(super) async fn let_go(&self, task: &Arc<TaskSpec>) -> Result<(), NetworkError> {
        let (turn, _) = self.know(task)?;
        let _turn = turn.lock().await;
        let began = Instant::now();
        let id = task.arn.id();
        self.pins.unpin(id).map_err(kernel("unpinning the task's namespace"))?;
        if let Some(held) = self.held(&task.arn) {
            self.pool.end(&held).await?;
        } else {
            let all = self.pool.all().await?;
            if let Some(holder) = all.into_iter().find(|holder| task_of(&holder.name) == Some(id)) {
                self.pool.release(&holder.id).await?;
            }
        }
        self.tasks().remove(&task.arn);
        // Nobody clears away when the agent stops.
        let _ = self.gone.send(Arc::clone(task)).await;
        tracing::debug!(task = %task.arn, took_us = began.elapsed().as_micros(), "namespace let go");
        Ok(())
    }
}

async fn give_back(inside: &Netlink, attachment: &Attachment, home: &Namespace) -> io::Result<()> {
    if attachment.provider != Provider::HotPlug {
        return inside.unassign(plan::INTERFACE).await;
    }
    match arrival::find(inside, attachment.mac).await? {
        Some(link) => inside.give(link.index, &arrival::spare_name(attachment.mac), home).await,
        None => Ok(()),
    }
}
