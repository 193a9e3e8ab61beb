//! What an agent is told: at first all that its instance is to run, then what has changed since.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use berth_core::attachment::SecurityGroup;
use berth_proto::v1;
use berth_proto::v1::control_plane_message::Message as ToAgent;

use super::{End, Session, inactive};
use crate::agents::adopt::records_point;
use crate::agents::attachment::security_group;
use crate::agents::convert;
use crate::agents::credentials::Keeper;
use crate::model::{InstanceStatus, Task, TaskStatus};
use crate::store::View;

/// Most tasks in one payload: at 64 KiB a definition it stays within what gRPC takes by default.
const TASKS_PER_PAYLOAD: usize = 50;

impl Session<'_> {
    /// Everything that the instance is to run.
    pub(super) async fn greet(&mut self, last_manifest: u64) -> Result<(), End> {
        let view = self.shared.store.view();
        let mut tasks = view.tasks_on(&self.arn);
        tasks.retain(|task| task.value.observed.status != TaskStatus::Stopped);
        let entry = |task: &Task| v1::ManifestEntry {
            task_arn: task.arn.clone(),
            desired: convert::desired(task).into(),
        };
        self.manifest = self.shared.registry.next_sequence(last_manifest);
        let manifest = v1::Manifest {
            sequence: self.manifest,
            tasks: tasks.iter().map(|task| entry(&task.value)).collect(),
            at: self.point(&*view),
        };
        self.send(ToAgent::Manifest(manifest)).await?;
        let holds_back = self.reunion.as_ref().is_some_and(|reunion| reunion.holds_back);
        let mut assignments = Vec::with_capacity(tasks.len());
        for task in &tasks {
            if !holds_back {
                assignments.push(convert::assignment(&task.value, true));
            }
            self.sent.insert(task.value.arn.clone(), !holds_back && task.value.stop_requested.is_some());
        }
        self.payload(&*view, assignments).await?;
        // What is known of these may be older than what the agent has told, and told only once.
        self.inquire(tasks.iter().map(|task| task.value.arn.clone()).collect()).await?;
        self.guard(&*view).await?;
        self.status(&*view).await
    }

    /// That a task is to stop which the agent has.
    pub(super) async fn tell_stop(&mut self, view: &dyn View, task: &Task) -> Result<(), End> {
        self.sent.insert(task.arn.clone(), true);
        self.payload(view, vec![convert::assignment(task, false)]).await
    }

    /// The point of the records that a view shows.
    pub(super) fn point(&self, view: &dyn View) -> Option<v1::RecordsPoint> {
        Some(records_point(self.shared.store.history().at(view.revision())))
    }

    /// Sends the security groups of the instance's tasks whose rules the agent does not have.
    async fn guard(&mut self, view: &dyn View) -> Result<(), End> {
        let vpc = self.shared.vpc.get();
        let tasks = view.tasks_on(&self.arn);
        let live = tasks.iter().filter(|task| task.value.observed.status != TaskStatus::Stopped);
        let groups: BTreeMap<String, SecurityGroup> = live
            .flat_map(|task| vpc.groups_of(&task.value, view))
            .map(|group| (group.id.clone(), group))
            .collect();
        let changed: Vec<v1::SecurityGroup> = groups
            .values()
            .filter(|group| self.guarded.get(&group.id) != Some(&group.rules))
            .map(security_group)
            .collect();
        self.guarded = groups.into_iter().map(|(id, group)| (id, group.rules)).collect();
        if changed.is_empty() {
            return Ok(());
        }
        self.send(ToAgent::SecurityGroups(v1::SecurityGroups { groups: changed })).await
    }

    async fn payload(&self, view: &dyn View, mut tasks: Vec<v1::Assignment>) -> Result<(), End> {
        // Stops first: they give the capacity back that the starts may need.
        tasks.sort_by_key(|task| task.desired() != v1::DesiredStatus::Stopped);
        loop {
            let rest = tasks.split_off(tasks.len().min(TASKS_PER_PAYLOAD));
            let sequence = self.shared.registry.next_sequence(0);
            self.send(ToAgent::Payload(v1::Payload { sequence, tasks, at: self.point(view) })).await?;
            if rest.is_empty() {
                return Ok(());
            }
            tasks = rest;
        }
    }

    /// The instance's tasks that are not gone yet.
    pub(super) fn live(&self, view: &dyn View) -> Vec<Arc<Task>> {
        let tasks = view.tasks_on(&self.arn).into_iter().map(|task| task.value);
        tasks.filter(|task| task.observed.status != TaskStatus::Stopped).collect()
    }

    /// Sends what the agent has not been sent yet.
    pub(super) async fn sync(&mut self, keeper: &mut Keeper) -> Result<(), End> {
        let view = self.shared.store.view();
        let tasks = view.tasks_on(&self.arn);
        let mut assignments = Vec::new();
        let mut live = HashMap::with_capacity(tasks.len());
        for task in
            tasks.iter().map(|task| &task.value).filter(|task| task.observed.status != TaskStatus::Stopped)
        {
            let stop = task.stop_requested.is_some();
            match self.sent.get(&task.arn) {
                None => assignments.push(convert::assignment(task, true)),
                Some(false) if stop => assignments.push(convert::assignment(task, false)),
                Some(_) => {}
            }
            live.insert(task.arn.clone(), stop);
        }
        self.sent = live;
        keeper.sync(self.live(&*view).iter().map(|task| &**task));
        if !assignments.is_empty() {
            self.payload(&*view, assignments).await?;
        }
        self.guard(&*view).await?;
        self.status(&*view).await
    }

    /// Tells the agent whether its instance takes tasks, when that has changed.
    async fn status(&mut self, view: &dyn View) -> Result<(), End> {
        let status = self.instance(view)?.value.status;
        if status == InstanceStatus::Inactive {
            return Err(inactive());
        }
        let draining = status == InstanceStatus::Draining;
        if draining != self.draining {
            self.draining = draining;
            self.send(ToAgent::Drain(v1::Drain { draining })).await?;
        }
        Ok(())
    }
}
