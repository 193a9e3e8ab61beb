//! What placement sees of a cluster: its instances, and what their tasks need.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use berth_core::resources::Resources;

use crate::model::{Instance, TaskStatus};
use crate::store::View;

/// One instance as placement sees it.
#[derive(Debug, Clone)]
pub struct Candidate {
    /// The record.
    pub instance: Arc<Instance>,
    /// Whether its agent is connected.
    pub connected: bool,
    /// What its tasks that are not STOPPED need together.
    pub in_use: Resources,
    /// How many of its tasks are not STOPPED.
    pub live: u32,
    /// How many of its tasks are RUNNING.
    pub running: u32,
    /// Live tasks by group.
    pub groups: BTreeMap<String, u32>,
}

/// The instances of one cluster, by ARN.
#[derive(Debug, Clone, Default)]
pub struct ClusterView {
    /// All of them, whatever their status.
    pub candidates: Vec<Candidate>,
}

impl ClusterView {
    /// Reads a cluster out of the store; `connected` are the ARNs of the instances whose agents
    /// are connected.
    #[must_use]
    pub fn read(view: &dyn View, connected: &BTreeSet<String>, cluster: &str) -> Self {
        let candidates = view.instances(Some(cluster)).into_iter().map(|instance| {
            let instance = instance.value;
            let mut candidate = Candidate {
                connected: connected.contains(&instance.arn),
                in_use: Resources::default(),
                live: 0,
                running: 0,
                groups: BTreeMap::new(),
                instance,
            };
            for task in view.tasks_on(&candidate.instance.arn) {
                let task = task.value;
                if task.observed.status != TaskStatus::Stopped {
                    candidate.count(&task.spec.need(), &task.group);
                    candidate.running += u32::from(task.observed.status == TaskStatus::Running);
                }
            }
            candidate
        });
        Self { candidates: candidates.collect() }
    }

    /// Counts a copy of that need and group that was placed on an instance.
    pub fn take(&mut self, instance_arn: &str, need: &Resources, group: &str) {
        if let Some(candidate) = self.candidates.iter_mut().find(|c| c.instance.arn == instance_arn) {
            candidate.count(need, group);
        }
    }
}

impl Candidate {
    /// Counts one more live task.
    pub fn count(&mut self, need: &Resources, group: &str) {
        self.in_use.add(need);
        self.live = self.live.saturating_add(1);
        let count = self.groups.entry(group.to_owned()).or_default();
        *count = count.saturating_add(1);
    }
}
