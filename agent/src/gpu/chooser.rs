//! Which container has which GPU: a device is one container's alone, from the choice until its task is
//! gone.
//!
//! The ledger counts GPUs, so that whoever is granted some finds as many free. Choices that come out of
//! persisted state or labels stand, whatever else is known of their devices.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use berth_core::ids::{ContainerName, GpuId, TaskArn};

/// Why no GPU was chosen.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("GPUs wanted: {wanted}, free: {free} of this host's {all} (BERTH_GPU_INVENTORY)")]
pub struct NoGpus {
    wanted: u32,
    free: usize,
    all: usize,
}

type Owner = (TaskArn, ContainerName);

/// Chooses GPUs, and knows whose they are.
#[derive(Debug, Default)]
pub struct GpuChooser {
    all: Vec<GpuId>,
    held: Mutex<BTreeMap<Owner, Vec<GpuId>>>,
}

impl GpuChooser {
    /// A chooser among these.
    #[must_use]
    pub fn new(all: Vec<GpuId>) -> Self {
        Self { all, held: Mutex::default() }
    }

    /// Chooses so many for a container, in the host's order. One that has as many already keeps them.
    ///
    /// # Errors
    /// [`NoGpus`] when too few are free.
    pub fn choose(
        &self,
        task: &TaskArn,
        container: &ContainerName,
        wanted: u32,
    ) -> Result<Vec<GpuId>, NoGpus> {
        let owner = (task.clone(), container.clone());
        let count = usize::try_from(wanted).unwrap_or(usize::MAX);
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(has) = held.get(&owner).filter(|has| has.len() == count) {
            return Ok(has.clone());
        }
        held.remove(&owner);
        let free: Vec<&GpuId> =
            self.all.iter().filter(|gpu| !held.values().any(|taken| taken.contains(gpu))).collect();
        let Some(chosen) = free.get(..count) else {
            return Err(NoGpus { wanted, free: free.len(), all: self.all.len() });
        };
        let chosen: Vec<GpuId> = chosen.iter().copied().cloned().collect();
        held.insert(owner, chosen.clone());
        Ok(chosen)
    }

    /// Takes note of GPUs that a container has already. What several were seen to have is free once none
    /// of them has it.
    pub fn adopt(&self, task: &TaskArn, container: &ContainerName, gpus: &[GpuId]) {
        if !gpus.is_empty() {
            let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
            held.insert((task.clone(), container.clone()), gpus.to_vec());
        }
    }

    /// Gives back what a container has.
    pub fn give_back(&self, task: &TaskArn, container: &ContainerName) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.remove(&(task.clone(), container.clone()));
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn task(n: u8) -> TaskArn {
        TaskArn::new(format!("arn:aws:ecs:r:1:task/c/{n:032x}")).unwrap()
    }

    fn name(n: u8) -> ContainerName {
        ContainerName::new(format!("c{n}")).unwrap()
    }

    fn gpus(count: u8) -> Vec<GpuId> {
        (0..count).map(|n| GpuId::new(format!("GPU-{n}")).unwrap()).collect()
    }

    #[test]
    fn who_wants_more_than_is_free_gets_none_and_is_told() {
        let chooser = GpuChooser::new(gpus(2));
        assert_eq!(chooser.choose(&task(1), &name(0), 1).unwrap(), gpus(1));
        let refused = chooser.choose(&task(2), &name(0), 2).unwrap_err();
        assert_eq!(refused.to_string(), "GPUs wanted: 2, free: 1 of this host's 2 (BERTH_GPU_INVENTORY)");
        assert_eq!(chooser.choose(&task(2), &name(0), 1).unwrap(), gpus(2)[1..]);
        chooser.give_back(&task(1), &name(0));
        assert_eq!(chooser.choose(&task(3), &name(0), 1).unwrap(), gpus(1));
    }

    #[test]
    fn who_asks_again_keeps_what_it_has() {
        let chooser = GpuChooser::new(gpus(3));
        let first = chooser.choose(&task(1), &name(0), 2).unwrap();
        assert_eq!(chooser.choose(&task(1), &name(0), 2).unwrap(), first);
        assert!(chooser.choose(&task(1), &name(1), 2).is_err());
    }

    #[test]
    fn a_device_that_two_were_seen_to_have_is_free_when_both_have_given_it_back() {
        // One had stopped, and given it back before that was on record; then the agent was killed.
        let chooser = GpuChooser::new(gpus(1));
        chooser.adopt(&task(1), &name(0), &gpus(1));
        chooser.adopt(&task(2), &name(0), &gpus(1));
        chooser.give_back(&task(1), &name(0));
        assert!(chooser.choose(&task(3), &name(0), 1).is_err());
        chooser.give_back(&task(2), &name(0));
        assert!(chooser.choose(&task(3), &name(0), 1).is_ok());
    }

    #[test]
    fn a_device_that_is_no_longer_among_the_hosts_is_still_its_owners() {
        let chooser = GpuChooser::new(gpus(3)[1..].to_vec());
        chooser.adopt(&task(1), &name(0), &gpus(2));
        assert_eq!(chooser.choose(&task(2), &name(0), 1).unwrap(), gpus(3)[2..]);
        assert!(chooser.choose(&task(3), &name(0), 1).is_err());
    }

    #[derive(Debug, Clone)]
    enum Op {
        Choose(u8, u8, u32),
        GiveBack(u8, u8),
        /// The agent starts again, on what was persisted.
        Restart,
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            6 => (0..6u8, 0..2u8, 1..4u32).prop_map(|(task, name, count)| Op::Choose(task, name, count)),
            4 => (0..6u8, 0..2u8).prop_map(|(task, name)| Op::GiveBack(task, name)),
            1 => Just(Op::Restart),
        ]
    }

    proptest! {
        #[test]
        fn no_device_is_two_containers_whatever_happens(host in 0..6u8, ops in vec(op(), 0..60)) {
            let mut chooser = GpuChooser::new(gpus(host));
            let mut held: BTreeMap<(u8, u8), Vec<GpuId>> = BTreeMap::new();
            for op in ops {
                match op {
                    Op::Choose(of, container, count) => {
                        let others = held.iter().filter(|(owner, _)| **owner != (of, container));
                        let taken: usize = others.map(|(_, gpus)| gpus.len()).sum();
                        let chosen = chooser.choose(&task(of), &name(container), count);
                        // Whoever asks for what is left gets it.
                        let fits = taken + usize::try_from(count).unwrap() <= usize::from(host);
                        prop_assert_eq!(chosen.is_ok(), fits);
                        let before = held.remove(&(of, container));
                        if let Ok(chosen) = chosen {
                            let same = before.is_none_or(|before| before.len() != chosen.len() || before == chosen);
                            prop_assert!(same, "it was given others than it had");
                            held.insert((of, container), chosen);
                        }
                    }
                    Op::GiveBack(of, container) => {
                        chooser.give_back(&task(of), &name(container));
                        held.remove(&(of, container));
                    }
                    Op::Restart => {
                        chooser = GpuChooser::new(gpus(host));
                        for ((of, container), gpus) in &held {
                            chooser.adopt(&task(*of), &name(*container), gpus);
                        }
                    }
                }
                let all: Vec<&GpuId> = held.values().flatten().collect();
                prop_assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), all.len(), "one device, two owners");
                prop_assert!(all.iter().all(|gpu| gpus(host).contains(gpu)));
            }
        }
    }
}
