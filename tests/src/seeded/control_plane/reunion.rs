//! What it does with a host that knew the one before it, as the real one does: asks for what runs there, and has
//! it on record from then on.

use berth_controlplane::agents::convert::task_spec;
use berth_core::spec::TaskSpec;
use berth_proto::v1;

use super::{ControlPlane, State, Task};
use crate::seeded::store::short;

impl State {
    /// What it says of its records.
    pub(super) fn point(&self) -> v1::RecordsPoint {
        v1::RecordsPoint { life: format!("life {}", self.life), revision: self.version }
    }

    /// Takes note of whether the host that greets knew another.
    pub(super) fn meet(&mut self, hello: &v1::Hello) {
        let here = self.point();
        self.estranged |= hello.last_seen.as_ref().is_some_and(|seen| seen.life != here.life);
        self.asked.clear();
    }

    /// Those of the tasks that are to be asked for.
    pub(super) fn unknown(&mut self, tasks: &[String]) -> Vec<String> {
        if !self.estranged {
            return Vec::new();
        }
        let unknown: Vec<String> =
            tasks.iter().filter(|task| !self.tasks.contains_key(*task)).cloned().collect();
        self.asked.extend(unknown.iter().cloned());
        unknown
    }
}

impl ControlPlane {
    /// Has a task on record of which the host has told.
    pub(super) fn adopt(&self, account: &v1::TaskAccount) {
        let arn = &account.task_arn;
        if !self.state().asked.remove(arn) || account.spec_json.is_empty() {
            return;
        }
        let (spec, told) = match (serde_json::from_str::<TaskSpec>(&account.spec_json), &account.state) {
            (Ok(spec), Some(told)) => (task_spec(&spec), told),
            (spec, told) => return self.world.wrong(format!("an account of {arn}: {spec:?} {told:?}")),
        };
        self.world.note(format_args!("adopted {}:{}", short(arn), told.status().as_str_name()));
        let mut state = self.state();
        // What was told since says more.
        let since = state.last.get(arn).filter(|(epoch, _)| *epoch == state.epoch);
        let since = since.map_or(v1::TaskStatus::Unspecified, |(_, change)| change.status());
        let heard = if i32::from(since) > i32::from(told.status()) { since } else { told.status() };
        state.tasks.entry(arn.clone()).or_insert(Task { spec, stop: None, heard });
    }

    /// The host has taken note of a manifest, its own or another.
    pub(super) fn noted(&self, own: bool) {
        let mut state = self.state();
        state.estranged &= !own || !state.asked.is_empty();
    }
}
