//! Where tasks go: ECS's order of checks, then strategies.
//!
//! Candidates are ACTIVE instances. Each is asked in turn: is its agent connected, does the task
//! fit, has it the required attributes, does it satisfy the constraints. Among those that pass the
//! strategies choose; without one, the instance with the fewest tasks. Every copy that is placed
//! counts for the next.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use berth_core::resources::Resources;
use berth_core::units::Timestamp;

use super::candidate::{Candidate, ClusterView};
use super::query::Query;
use crate::model::InstanceStatus;

/// Most copies that one request may ask for.
pub const MAX_COUNT: u32 = 10;

/// An attribute that an instance must have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequiredAttribute {
    /// Its name.
    pub name: String,
    /// Its value; any when `None`.
    pub value: Option<String>,
}

/// A rule that binds.
#[derive(Debug, Clone)]
pub enum Constraint {
    /// No other live task of the same group on the instance.
    DistinctInstance,
    /// The instance satisfies a query.
    MemberOf(Query),
}

/// What `binpack` packs by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PackBy {
    /// CPU units.
    Cpu,
    /// Memory.
    Memory,
}

/// A wish among the instances that would do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Strategy {
    /// Fill the instance with the least left first.
    Binpack(PackBy),
    /// Even over the instances: fewest tasks of the group first.
    SpreadInstances,
    /// Even over the values of an attribute: fewest tasks of the group first, instances without
    /// the attribute last.
    SpreadAttribute(String),
    /// Any.
    Random,
}

/// Where copies may go.
#[derive(Debug, Clone)]
pub enum Target {
    /// Wherever they fit (RunTask).
    Anywhere {
        /// How many copies; 1 to [`MAX_COUNT`].
        count: u32,
        /// Rules that bind.
        constraints: Vec<Constraint>,
        /// Wishes; the first decides, the next among those it finds equal.
        strategies: Vec<Strategy>,
    },
    /// One copy on each of these instances, by ARN (StartTask).
    Instances(Vec<String>),
}

/// What is to be placed.
#[derive(Debug, Clone)]
pub struct PlacementRequest {
    /// What one copy needs.
    pub need: Resources,
    /// Attributes that the instance must have.
    pub required: Vec<RequiredAttribute>,
    /// The group of the tasks.
    pub group: String,
    /// Where.
    pub target: Target,
    /// Decides between equals.
    pub seed: u64,
}

/// Why an instance was not taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The instance.
    pub arn: Option<String>,
    /// ECS's reason, such as `RESOURCE:MEMORY`; or `DRAINING`, for which ECS has none.
    pub reason: String,
}

/// Where the copies go.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PlacementPlan {
    /// The instance of each copy, by ARN.
    pub placed: Vec<String>,
    /// Why instances were not taken; empty when every copy is placed.
    pub failures: Vec<Failure>,
}

/// Chooses instances.
#[must_use]
pub fn place(view: &ClusterView, request: &PlacementRequest, now: Timestamp) -> PlacementPlan {
    let mut candidates = view.candidates.clone();
    match &request.target {
        Target::Instances(arns) => place_on(&mut candidates, request, arns),
        Target::Anywhere { count, constraints, strategies } => {
            candidates.retain(|c| c.instance.status == InstanceStatus::Active);
            let mut random = SplitMix(request.seed);
            let mut plan = PlacementPlan::default();
            for _ in 0..(*count).min(MAX_COUNT) {
                let (mut fitting, mut failures) = (Vec::new(), Vec::new());
                for (at, candidate) in candidates.iter().enumerate() {
                    match refusal(candidate, request, constraints, now) {
                        None => fitting.push(at),
                        Some(reason) => {
                            failures.push(Failure { arn: Some(candidate.instance.arn.clone()), reason });
                        }
                    }
                }
                let chosen = choose(&candidates, fitting, request, strategies, &mut random);
                let Some(candidate) = chosen.and_then(|at| candidates.get_mut(at)) else {
                    plan.failures = failures;
                    break;
                };
                candidate.count(&request.need, &request.group);
                plan.placed.push(candidate.instance.arn.clone());
            }
            plan
        }
    }
}

fn place_on(candidates: &mut [Candidate], request: &PlacementRequest, arns: &[String]) -> PlacementPlan {
    let mut plan = PlacementPlan::default();
    for arn in arns {
        let found = candidates.iter_mut().find(|c| &c.instance.arn == arn);
        let reason = match &found {
            None => Some("MISSING".to_owned()),
            // One that is drained starts nothing, by name either.
            Some(c) if c.instance.status != InstanceStatus::Active => {
                Some(c.instance.status.as_str().to_owned())
            }
            Some(c) => refusal(c, request, &[], Timestamp::default()),
        };
        match (found, reason) {
            (Some(candidate), None) => {
                candidate.count(&request.need, &request.group);
                plan.placed.push(arn.clone());
            }
            (_, reason) => {
                plan.failures.push(Failure { arn: Some(arn.clone()), reason: reason.unwrap_or_default() });
            }
        }
    }
    plan
}

/// Why an instance can't take a copy, in ECS's order; `None` when it can.
fn refusal(
    candidate: &Candidate,
    request: &PlacementRequest,
    constraints: &[Constraint],
    now: Timestamp,
) -> Option<String> {
    if !candidate.connected {
        return Some("AGENT".to_owned());
    }
    if let Some(short) = candidate.instance.total.shortfalls(&candidate.in_use, &request.need).first() {
        return Some(short.failure_reason().to_owned());
    }
    let attributes = &candidate.instance.attributes;
    let has = |required: &RequiredAttribute| {
        attributes
            .get(&required.name)
            .is_some_and(|value| required.value.as_ref().is_none_or(|wanted| wanted == value))
    };
    if !request.required.iter().all(has) {
        return Some("ATTRIBUTE".to_owned());
    }
    for constraint in constraints {
        match constraint {
            Constraint::DistinctInstance => {
                if candidate.groups.get(&request.group).is_some_and(|count| *count > 0) {
                    return Some("DistinctInstance placement constraint unsatisfied".to_owned());
                }
            }
            Constraint::MemberOf(query) => {
                if !query.matches(candidate, now) {
                    return Some("MemberOf placement constraint unsatisfied".to_owned());
                }
            }
        }
    }
    None
}

/// The best of those that fit.
fn choose(
    candidates: &[Candidate],
    fitting: Vec<usize>,
    request: &PlacementRequest,
    strategies: &[Strategy],
    random: &mut SplitMix,
) -> Option<usize> {
    let mut best: Vec<(usize, &Candidate)> =
        fitting.into_iter().filter_map(|at| candidates.get(at).map(|c| (at, c))).collect();
    let of_group = |c: &Candidate| c.groups.get(&request.group).copied().unwrap_or_default();
    if strategies.is_empty() {
        keep_least(&mut best, |c| c.live);
    }
    for strategy in strategies {
        match strategy {
            Strategy::Binpack(PackBy::Cpu) => {
                keep_least(&mut best, |c| c.instance.total.remaining(&c.in_use).cpu);
            }
            Strategy::Binpack(PackBy::Memory) => {
                keep_least(&mut best, |c| c.instance.total.remaining(&c.in_use).memory);
            }
            Strategy::SpreadInstances => keep_least(&mut best, of_group),
            Strategy::SpreadAttribute(name) => {
                let mut counts: BTreeMap<&str, u32> = BTreeMap::new();
                for candidate in candidates {
                    if let Some(value) = candidate.instance.attributes.get(name) {
                        let count = counts.entry(value).or_default();
                        *count = count.saturating_add(of_group(candidate));
                    }
                }
                keep_least(&mut best, |c| {
                    let value = c.instance.attributes.get(name);
                    (value.is_none(), value.and_then(|v| counts.get(v.as_str())).copied())
                });
            }
            Strategy::Random => {
                let chosen = random.below(best.len());
                best = best.get(chosen).copied().into_iter().collect();
            }
        }
    }
    best.get(random.below(best.len())).map(|(at, _)| *at)
}

/// Keeps those of the least key.
fn keep_least<K: Ord>(best: &mut Vec<(usize, &Candidate)>, key: impl Fn(&Candidate) -> K) {
    let Some(least) = best.iter().map(|(_, c)| Reverse(key(c))).max() else { return };
    best.retain(|(_, c)| key(c) == least.0);
}

/// A small generator of chance, given its seed.
struct SplitMix(u64);

impl SplitMix {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`; 0 when that is 0.
    fn below(&mut self, bound: usize) -> usize {
        let bound = u64::try_from(bound).unwrap_or(u64::MAX);
        self.next().checked_rem(bound).and_then(|n| usize::try_from(n).ok()).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests;
