//! What holds of every task, whatever happens in whatever order.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on fails")]

#[allow(dead_code, reason = "each test file uses its part of the world")]
mod support;

use berth_core::task::{Report, StopCode, TaskStatus};
use proptest::collection::vec;
use proptest::prelude::*;

use support::World;
use support::host::Life;
use support::ops::{self, Fate, Op};
use support::specs::{any_task, cases, patient, steady};

/// Stops the task, lets everything work, and sees it go without a trace.
fn goes_without_a_trace(world: &mut World) {
    world.crash = None;
    world.stop();
    world.settle();
    if !world.forgotten {
        let status = world.task.state().status;
        world.check(status == TaskStatus::Stopped, || format!("{:?}", world.task.state()));
        let last = world.reports.last().map(|r| r.status);
        world.check(last == Some(TaskStatus::Stopped), || format!("last told: {last:?}"));
        world.acknowledge();
        world.settle();
    }
    world.check(world.forgotten, || format!("not forgotten: {:?}", world.task.state()));
    world.check(world.ledger.in_use().memory.0 == 0, || "the grant is not back".to_owned());
}

proptest! {
    #![proptest_config(cases(700, "properties"))]

    /// The world checks every step: see `support`.
    #[test]
    fn whatever_happens_a_stop_ends_it(
        spec in any_task(),
        crowded in any::<bool>(),
        ops in vec(ops::anything(), 0..80),
    ) {
        let mut world = World::new(spec.0, crowded);
        for op in &ops {
            world.apply(op);
        }
        goes_without_a_trace(&mut world);
    }
}

proptest! {
    #![proptest_config(cases(300, "properties"))]

    /// An engine that is away, an agent that dies, a host that is full: the task comes up.
    #[test]
    fn no_outage_fails_a_task(
        spec in any_task(),
        crowded in any::<bool>(),
        ops in vec(ops::harmless(), 0..80),
    ) {
        let mut world = World::new(patient(&spec.0), crowded);
        for op in &ops {
            world.apply(op);
        }
        world.settle();
        prop_assert_eq!(world.task.state().status, TaskStatus::Running, "{:?}", world.task.state());
        prop_assert_eq!(world.task.waiting_for(), "");
        let last = world.reports.last().cloned();
        prop_assert_eq!(last, Some(Report::of(&world.task)), "the last report is old");
        for real in &world.host.lives {
            let told = &world.task.state().containers;
            let told = told.iter().find(|c| c.name == real.name).unwrap();
            if real.life != Life::Removed {
                prop_assert_eq!(told.exit.as_ref().filter(|_| told.is_stopped()), real.exit.as_ref());
                prop_assert_eq!(told.health, real.health);
                prop_assert_eq!(told.started_at, real.started_at);
            }
        }
        goes_without_a_trace(&mut world);
    }
}

/// How a run came out, as far as it must not depend on timing.
fn outcome(world: &World) -> (TaskStatus, Option<StopCode>, Vec<Option<i32>>) {
    let state = world.task.state();
    let code = state.stop.as_ref().map(|stop| stop.code);
    let ends = match code {
        None => {
            let exits = state.containers.iter().map(|c| c.exit.as_ref());
            exits.map(|exit| exit.map(|exit| exit.code)).collect()
        }
        Some(_) => Vec::new(),
    };
    (state.status, code, ends)
}

proptest! {
    #![proptest_config(cases(250, "properties"))]

    /// The agent dies anywhere in a run: before it persists, before it acts, between two acts.
    #[test]
    fn a_crash_changes_nothing(
        spec in any_task(),
        fates in vec((0..2i32, any::<bool>()), 4),
        order in any::<u64>(),
        crashes in vec((0..60usize, prop_oneof![
            Just(support::Crash::BeforePersist),
            (0..3u8).prop_map(support::Crash::AfterActs),
        ], any::<u16>()), 1..4),
    ) {
        let fates: Vec<Fate> = fates
            .iter()
            .map(|&(code, healthy)| Fate { code, healthy })
            .collect();
        let order = |n: usize| u8::try_from((order >> (n % 56)) & 0xff).unwrap();
        let mut quiet = World::new(steady(&spec.0), false);
        quiet.fates = fates.clone();
        quiet.settle_with(order);
        let expected = outcome(&quiet);

        let mut world = World::new(steady(&spec.0), false);
        world.fates = fates;
        let mut at = 0;
        while world.steps < 200 {
            if let Some((_, how, effects)) = crashes.iter().find(|(step, ..)| *step == at) {
                world.crash = Some(*how);
                world.crash_effects = *effects;
            }
            at += 1;
            if !world.one_step(order) {
                break;
            }
        }
        world.settle_with(order);
        prop_assert_eq!(outcome(&world), expected);
        goes_without_a_trace(&mut world);
    }
}

proptest! {
    #![proptest_config(cases(200, "properties"))]

    /// All records are lost while containers run: they are found, kept and ended in the end.
    #[test]
    fn lost_records_are_rebuilt_from_labels(
        spec in any_task(),
        ops in vec(ops::harmless(), 0..60),
        more in vec(ops::harmless(), 0..20),
        effects in any::<u16>(),
    ) {
        let mut world = World::new(patient(&spec.0), false);
        for op in &ops {
            world.apply(op);
        }
        world.crash_effects = effects;
        if world.host.list().is_empty() {
            return Ok(());
        }
        world.lose_state();
        for op in &more {
            world.apply(op);
        }
        world.settle();
        prop_assert_eq!(world.task.state().status, TaskStatus::Running);
        goes_without_a_trace(&mut world);
    }
}

proptest! {
    #![proptest_config(cases(100, "properties"))]

    /// An engine that stays away: the task waits, says so, and is asked again ever more rarely.
    #[test]
    fn a_long_outage_is_waited_out(
        spec in any_task(),
        ops in vec(ops::harmless(), 0..20),
    ) {
        let mut world = World::new(patient(&spec.0), false);
        for op in &ops {
            world.apply(op);
        }
        world.crash = None;
        world.away = true;
        for _ in 0..60 {
            for _ in 0..8 {
                world.apply(&Op::Finish(0, ops::End::Works));
            }
            world.apply(&Op::Deadline);
        }
        prop_assert!(world.task.state().stop.is_none());
        if world.task.state().status == TaskStatus::Pending {
            let waits = !world.task.waiting_for().is_empty()
                || !world.task.container_waits(world.now()).is_empty();
            prop_assert!(waits, "it waits and does not say for what");
        }
        world.settle();
        prop_assert_eq!(world.task.state().status, TaskStatus::Running);
    }
}
