//! What placement promises, for any cluster and any request.

use std::collections::BTreeMap;
use std::sync::Arc;

use berth_core::resources::{Ports, Resources};
use berth_core::units::{CpuUnits, Mebibytes, Timestamp};
use proptest::prelude::*;

use super::{Constraint, PackBy, PlacementRequest, RequiredAttribute, Strategy as Wish, Target, place};
use crate::model::{Instance, InstanceStatus, OutboxCursor};
use crate::scheduler::candidate::{Candidate, ClusterView};
use crate::scheduler::query::Query;

fn amount(cpu: u32, memory: u32, ports: &[u16]) -> Resources {
    Resources {
        cpu: CpuUnits(cpu),
        memory: Mebibytes(memory),
        ports: Ports { tcp: ports.iter().copied().collect(), ..Ports::default() },
        ..Resources::default()
    }
}

fn candidate(name: &str, total: Resources) -> Candidate {
    let instance = Instance {
        arn: name.to_owned(),
        cluster: "default".to_owned(),
        host_key: name.to_owned(),
        host_id: String::new(),
        status: InstanceStatus::Active,
        drained_by_host: false,
        version: 1,
        total,
        attributes: BTreeMap::new(),
        agent_version: String::new(),
        agent_hash: String::new(),
        engine_version: String::new(),
        hostname: String::new(),
        tags: BTreeMap::new(),
        registered_at: Timestamp(0),
        gpu_ids: Vec::new(),
        outbox: OutboxCursor::default(),
        estranged: false,
    };
    Candidate {
        instance: Arc::new(instance),
        connected: true,
        in_use: Resources::default(),
        live: 0,
        running: 0,
        groups: BTreeMap::new(),
    }
}

fn with(mut candidate: Candidate, change: impl FnOnce(&mut Instance)) -> Candidate {
    change(Arc::make_mut(&mut candidate.instance));
    candidate
}

fn request(need: Resources, count: u32) -> PlacementRequest {
    PlacementRequest {
        need,
        required: Vec::new(),
        group: "family:web".to_owned(),
        target: Target::Anywhere { count, constraints: Vec::new(), strategies: Vec::new() },
        seed: 1,
    }
}

fn wishing(count: u32, constraints: Vec<Constraint>, strategies: Vec<Wish>) -> PlacementRequest {
    PlacementRequest {
        target: Target::Anywhere { count, constraints, strategies },
        ..request(amount(100, 100, &[]), count)
    }
}

fn counts(placed: &[String]) -> BTreeMap<&str, usize> {
    let mut counts = BTreeMap::new();
    for arn in placed {
        *counts.entry(arn.as_str()).or_default() += 1;
    }
    counts
}

#[test]
fn without_a_strategy_copies_spread() {
    let view =
        ClusterView { candidates: ["a", "b", "c"].map(|n| candidate(n, amount(4096, 4096, &[]))).into() };
    let plan = place(&view, &request(amount(100, 100, &[]), 9), Timestamp(0));
    assert_eq!(counts(&plan.placed), BTreeMap::from([("a", 3), ("b", 3), ("c", 3)]));
    assert!(plan.failures.is_empty());
}

#[test]
fn the_seed_alone_decides_between_equals() {
    let view = ClusterView {
        candidates: ["a", "b", "c", "d"].map(|n| candidate(n, amount(4096, 4096, &[]))).into(),
    };
    let first =
        |seed| place(&view, &PlacementRequest { seed, ..request(amount(1, 1, &[]), 1) }, Timestamp(0)).placed;
    assert_eq!(first(7), first(7));
    let chosen: std::collections::BTreeSet<_> = (0..64).map(first).collect();
    assert_eq!(chosen.len(), 4, "every one is chosen by some seed");
}

#[test]
fn the_first_reason_in_order_is_told() {
    let lacking = |name, change: fn(&mut Candidate)| {
        let mut candidate = candidate(name, amount(100, 100, &[22]));
        change(&mut candidate);
        candidate
    };
    let view = ClusterView {
        candidates: vec![
            lacking("agent", |c| c.connected = false),
            lacking("cpu", |c| c.in_use = amount(60, 90, &[80])),
            lacking("memory", |c| c.in_use = amount(0, 60, &[80])),
            lacking("ports", |c| c.in_use = amount(0, 0, &[80])),
            lacking("attribute", |_| {}),
            with(candidate("member", amount(100, 100, &[])), |i| {
                drop(i.attributes.insert("ssd".to_owned(), String::new()));
            }),
            with(candidate("draining", amount(100, 100, &[])), |i| i.status = InstanceStatus::Draining),
        ],
    };
    let mut wanted =
        wishing(1, vec![Constraint::MemberOf(Query::parse("attribute:stack == prod").unwrap())], Vec::new());
    wanted.need = amount(50, 50, &[80]);
    wanted.required = vec![RequiredAttribute { name: "ssd".to_owned(), value: None }];
    let plan = place(&view, &wanted, Timestamp(0));
    let reasons: Vec<(&str, &str)> =
        plan.failures.iter().map(|f| (f.arn.as_deref().unwrap_or_default(), f.reason.as_str())).collect();
    assert_eq!(
        reasons,
        [
            ("agent", "AGENT"),
            ("cpu", "RESOURCE:CPU"),
            ("memory", "RESOURCE:MEMORY"),
            ("ports", "RESOURCE:PORTS"),
            ("attribute", "ATTRIBUTE"),
            ("member", "MemberOf placement constraint unsatisfied"),
        ]
    );
}

#[test]
fn a_host_port_holds_one_copy_for_each_instance() {
    let view = ClusterView { candidates: ["a", "b"].map(|n| candidate(n, amount(4096, 4096, &[]))).into() };
    let plan = place(&view, &request(amount(1, 1, &[80]), 3), Timestamp(0));
    assert_eq!(counts(&plan.placed), BTreeMap::from([("a", 1), ("b", 1)]));
    assert!(plan.failures.iter().all(|f| f.reason == "RESOURCE:PORTS"));
    assert_eq!(plan.failures.len(), 2);
}

#[test]
fn distinct_instances_hold_one_of_the_group_each() {
    let mut first = candidate("a", amount(4096, 4096, &[]));
    first.groups.insert("family:web".to_owned(), 1);
    let view = ClusterView {
        candidates: vec![
            first,
            candidate("b", amount(4096, 4096, &[])),
            candidate("c", amount(4096, 4096, &[])),
        ],
    };
    let plan = place(&view, &wishing(3, vec![Constraint::DistinctInstance], Vec::new()), Timestamp(0));
    assert_eq!(counts(&plan.placed), BTreeMap::from([("b", 1), ("c", 1)]));
    assert_eq!(plan.failures.len(), 3);
}

#[test]
fn binpack_fills_the_fullest_that_still_fits() {
    let mut fuller = candidate("b", amount(4096, 1000, &[]));
    fuller.in_use = amount(0, 750, &[]);
    let view = ClusterView { candidates: vec![candidate("a", amount(4096, 1000, &[])), fuller] };
    let plan = place(&view, &wishing(4, Vec::new(), vec![Wish::Binpack(PackBy::Memory)]), Timestamp(0));
    assert_eq!(plan.placed, ["b", "b", "a", "a"]);
}

#[test]
fn spreading_over_zones_counts_the_group_and_leaves_the_zoneless_last() {
    let zone = |name, zone: &str| {
        with(candidate(name, amount(4096, 4096, &[])), |i| {
            drop(i.attributes.insert("zone".to_owned(), zone.to_owned()));
        })
    };
    let mut busy = zone("a1", "a");
    busy.groups.insert("family:web".to_owned(), 2);
    let view = ClusterView {
        candidates: vec![busy, zone("a2", "a"), zone("b1", "b"), candidate("none", amount(4096, 4096, &[]))],
    };
    let wishes = vec![Wish::SpreadAttribute("zone".to_owned()), Wish::SpreadInstances];
    let plan = place(&view, &wishing(4, Vec::new(), wishes), Timestamp(0));
    let counts = counts(&plan.placed);
    assert_eq!((counts.get("b1"), counts.get("none")), (Some(&3), None), "{counts:?}");
    assert_eq!(counts.get("a2"), Some(&1), "inside the zone the emptier one: {counts:?}");
}

#[test]
fn random_goes_anywhere() {
    let view =
        ClusterView { candidates: ["a", "b", "c"].map(|n| candidate(n, amount(40960, 40960, &[]))).into() };
    let chosen: std::collections::BTreeSet<String> = (0..32)
        .flat_map(|seed| {
            place(
                &view,
                &PlacementRequest { seed, ..wishing(1, Vec::new(), vec![Wish::Random]) },
                Timestamp(0),
            )
            .placed
        })
        .collect();
    assert_eq!(chosen.len(), 3);
}

fn any_candidates() -> impl Strategy<Value = Vec<Candidate>> {
    let one = (
        0_u32..400,
        0_u32..400,
        proptest::collection::btree_set(80_u16..84, 0..3),
        any::<bool>(),
        0_u8..3,
        0_u32..300,
    );
    proptest::collection::vec(one, 0..6).prop_map(|all| {
        all.into_iter()
            .enumerate()
            .map(|(n, (cpu, memory, ports, connected, status, used))| {
                let mut candidate =
                    candidate(&format!("i{n}"), amount(cpu, memory, &ports.into_iter().collect::<Vec<_>>()));
                candidate.connected = connected;
                candidate.in_use = amount(used, used, &[]);
                with(candidate, |i| {
                    i.status = match status {
                        0 => InstanceStatus::Inactive,
                        1 => InstanceStatus::Draining,
                        _ => InstanceStatus::Active,
                    };
                })
            })
            .collect()
    })
}

fn any_wishes() -> impl Strategy<Value = Vec<Wish>> {
    let wish = proptest::sample::select(vec![
        Wish::Binpack(PackBy::Cpu),
        Wish::Binpack(PackBy::Memory),
        Wish::SpreadInstances,
        Wish::SpreadAttribute("zone".to_owned()),
        Wish::Random,
    ]);
    proptest::collection::vec(wish, 0..3)
}

proptest! {
    #[test]
    fn what_is_placed_fits_and_what_is_not_does_not(
        candidates in any_candidates(),
        need in (0_u32..150, 0_u32..150, proptest::collection::btree_set(80_u16..84, 0..2)),
        count in 1_u32..=10,
        wishes in any_wishes(),
        seed in any::<u64>(),
    ) {
        let need = amount(need.0, need.1, &need.2.into_iter().collect::<Vec<_>>());
        let view = ClusterView { candidates };
        let wanted = PlacementRequest { seed, need: need.clone(), ..wishing(count, Vec::new(), wishes) };
        let plan = place(&view, &wanted, Timestamp(0));
        prop_assert_eq!(&plan, &place(&view, &wanted, Timestamp(0)), "the same question has the same answer");

        // Put back one after the other, every copy fits on an instance that takes tasks.
        let mut after = view;
        for arn in &plan.placed {
            let at = after.candidates.iter().find(|c| &c.instance.arn == arn).unwrap();
            prop_assert!(at.connected && at.instance.status == InstanceStatus::Active);
            prop_assert!(at.instance.total.fits(&at.in_use, &need));
            after.take(arn, &wanted.need, &wanted.group);
        }
        let active: Vec<&Candidate> =
            after.candidates.iter().filter(|c| c.instance.status == InstanceStatus::Active).collect();
        if plan.placed.len() < count as usize {
            // One reason for each active instance, and it is true.
            prop_assert_eq!(plan.failures.len(), active.len());
            for (failure, candidate) in plan.failures.iter().zip(active) {
                prop_assert_eq!(failure.arn.as_deref(), Some(candidate.instance.arn.as_str()));
                let short = candidate.instance.total.shortfalls(&candidate.in_use, &need);
                match failure.reason.as_str() {
                    "AGENT" => prop_assert!(!candidate.connected),
                    reason => prop_assert_eq!(Some(reason), short.first().map(|s| s.failure_reason())),
                }
            }
        } else {
            prop_assert!(plan.failures.is_empty());
        }
    }

    #[test]
    fn every_named_instance_gets_a_task_or_a_reason(
        candidates in any_candidates(),
        names in proptest::collection::vec(0_usize..8, 1..10),
        seed in any::<u64>(),
    ) {
        let arns: Vec<String> = names.iter().map(|n| format!("i{n}")).collect();
        let view = ClusterView { candidates };
        let wanted = PlacementRequest { seed, target: Target::Instances(arns.clone()), ..request(amount(50, 50, &[]), 1) };
        let plan = place(&view, &wanted, Timestamp(0));
        prop_assert_eq!(plan.placed.len() + plan.failures.len(), arns.len());
        for arn in &plan.placed {
            let found = view.candidates.iter().find(|c| &c.instance.arn == arn);
            prop_assert!(found.is_some_and(|c| c.instance.status == InstanceStatus::Active));
        }
        for failure in &plan.failures {
            let arn = failure.arn.as_deref().unwrap_or_default();
            let found = view.candidates.iter().find(|c| c.instance.arn == arn);
            match failure.reason.as_str() {
                "MISSING" => prop_assert!(found.is_none()),
                "INACTIVE" => prop_assert!(found.is_some_and(|c| c.instance.status == InstanceStatus::Inactive)),
                "DRAINING" => prop_assert!(found.is_some_and(|c| c.instance.status == InstanceStatus::Draining)),
                "AGENT" => prop_assert!(found.is_some_and(|c| !c.connected)),
                reason => prop_assert!(reason.starts_with("RESOURCE:"), "{}", reason),
            }
        }
    }
}
