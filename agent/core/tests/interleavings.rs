//! Orders of events that once led a task astray, one by one.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on fails")]

#[allow(dead_code, reason = "each test file uses its part of the world")]
mod support;

use berth_core::spec::{Condition, TaskFields};
use berth_core::task::{
    Act, ContainerStatus, Event, Fact, FailureKind, Outcome, ResourceKey, ResourceStatus, StopCode,
    TaskStatus,
};
use berth_core::units::Millis;

use support::direct::{Direct, START, attempt, created, exited, next_acts, running, starting, words};
use support::specs::{after, container, fields, name, port};

/// One essential container.
fn one() -> TaskFields {
    fields(vec![container("app")])
}

/// One essential container with a port that the agent chooses.
fn with_port() -> TaskFields {
    let mut app = container("app");
    app.ports = vec![port(80, None)];
    fields(vec![app])
}

#[test]
fn what_never_ran_is_not_complete() {
    let mut init = container("init");
    init.essential = false;
    let mut app = container("app");
    app.depends_on = vec![after("init", Condition::Complete)];
    let mut run = Direct::new(fields(vec![init, app]));
    let acts = run.say(Event::Granted);
    let pull = acts.iter().find(|a| words(std::slice::from_ref(a)) == ["acquire image init"]);
    run.fails(pull.unwrap(), FailureKind::Refused);
    let stop = run.task.state().stop.clone().unwrap();
    assert_eq!(stop.code, StopCode::TaskFailedToStart);
    assert!(stop.reason.contains("container init was to become COMPLETE"), "{stop:?}");
}

#[test]
fn a_late_created_event_does_not_settle_an_unsure_start() {
    let (mut run, start) = starting(one());
    // The engine went away in the middle of the start: the container may run, or have ended.
    run.fails(&start, FailureKind::EngineAway);
    run.see("app", created("app-1"));
    let acts = next_acts(&mut run, Vec::new());
    assert_eq!(words(&acts), ["inspect app"]);
}

#[test]
fn a_start_that_was_seen_to_work_did_not_fail() {
    for kind in [FailureKind::EngineAway, FailureKind::TimedOut, FailureKind::Refused] {
        let (mut run, start) = starting(one());
        run.see("app", running("app-1", START));
        run.fails(&start, kind);
        assert_eq!(run.task.state().stop, None, "{kind:?}");
        assert_eq!(run.task.state().status, TaskStatus::Running);
        assert_eq!(run.task.waiting_for(), "");
        assert_eq!(run.container("app").failure, None);
        assert_eq!(run.task.next_deadline(), None);
    }
}

#[test]
fn an_end_that_was_seen_is_not_overwritten_by_a_late_failure() {
    let (mut run, start) = starting(one());
    let acts = run.see("app", exited("app-1", 3));
    run.fails(&start, FailureKind::TimedOut);
    run.all_work(acts);
    assert_eq!(run.told().containers[0].exit_code, Some(3));
    assert_eq!(run.told().containers[0].reason, None);
}

#[test]
fn the_event_of_our_own_removal_is_no_loss() {
    let (mut run, start) = starting(with_port());
    let remove = run.fails(&start, FailureKind::PortTaken);
    assert_eq!(words(&remove), ["remove app"]);
    // The engine tells of the removal before it answers.
    let mut acts = run.see("app", Fact::Missing);
    acts.extend(run.works(&remove[0]));
    run.all_work(acts);
    assert_eq!(run.task.state().stop, None);
    assert_eq!(run.task.state().status, TaskStatus::Running);
}

#[test]
fn what_is_heard_of_an_earlier_life_is_not_of_this_one() {
    let (mut run, start) = starting(with_port());
    let remove = run.fails(&start, FailureKind::PortTaken);
    let acts = run.works(&remove[0]);
    // The first life is over; now its events come.
    run.see("app", created("app-1"));
    assert_eq!(run.container("app").status, ContainerStatus::Pending);
    run.all_work(acts);
    assert_eq!(run.container("app").id, Some(support::direct::id("app-2")));
    // That the first one is gone says nothing of the second: it is asked for.
    let acts = run.see("app", Fact::Missing);
    assert_eq!(words(&acts), ["inspect app"]);
    run.done(attempt(&acts[0]), Outcome::Fact(running("app-2", START)));
    assert_eq!(run.task.state().stop, None);
}

#[test]
fn a_container_that_really_vanished_ends_the_task() {
    let mut run = Direct::up(one());
    let acts = run.see("app", Fact::Missing);
    assert_eq!(words(&acts), ["inspect app"]);
    let acts = run.done(attempt(&acts[0]), Outcome::Fact(Fact::Missing));
    run.all_work(acts);
    assert_eq!(run.told().status, TaskStatus::Stopped);
    let reason = run.told().containers[0].reason.clone().unwrap();
    assert_eq!(reason, "ContainerVanishedError: No container matching saved ID found");
}

#[test]
fn ports_are_not_chosen_for_ever() {
    let (mut run, mut start) = starting(with_port());
    for tried in 1..100 {
        let acts = run.fails(&start, FailureKind::PortTaken);
        if run.task.is_stopping() {
            assert_eq!(tried, 6);
            return;
        }
        let mut acts = next_acts(&mut run, acts);
        start = loop {
            let act = acts.pop().unwrap();
            if matches!(act, Act::Start { .. }) {
                break act;
            }
            acts.extend(run.works(&act));
        };
    }
    panic!("ports are still being chosen");
}

#[test]
fn an_outage_uses_up_no_tries() {
    let (mut run, mut start) = starting(with_port());
    for _ in 0..10 {
        let acts = run.fails(&start, FailureKind::EngineAway);
        let inspect = next_acts(&mut run, acts);
        let seen = Outcome::Fact(created("app-1"));
        start = run.done(attempt(&inspect[0]), seen).pop().unwrap();
    }
    let acts = run.fails(&start, FailureKind::PortTaken);
    assert_eq!(words(&next_acts(&mut run, acts)), ["remove app"]);
    assert_eq!(run.task.state().stop, None);
}

#[test]
fn nothing_begins_once_an_essential_container_has_ended() {
    let first = container("first");
    let mut second = container("second");
    second.depends_on = vec![after("first", Condition::Start)];
    let mut run = Direct::new(fields(vec![first, second]));
    let mut acts = run.say(Event::Granted);
    let mut start = None;
    while let Some(act) = acts.pop() {
        match act {
            Act::Start { .. } => start = Some(act),
            act => acts.extend(run.works(&act)),
        }
    }
    // It ran and ended before its start returned.
    let id = run.container("first").id.clone().unwrap();
    let over = Outcome::Fact(exited(id.as_str(), 1));
    let acts = run.done(attempt(&start.unwrap()), over);
    assert_eq!(words(&acts), ["release cgroup"]);
}

#[test]
fn nothing_begins_once_an_essential_container_can_never_start() {
    let mut init = container("init");
    init.essential = false;
    let mut side = container("side");
    side.essential = false;
    side.depends_on = vec![after("init", Condition::Complete)];
    let mut app = container("app");
    app.depends_on = vec![after("init", Condition::Success)];
    let mut run = Direct::up(fields(vec![init, side, app]));
    let id = run.container("init").id.clone().unwrap();
    assert_eq!(words(&run.see("init", exited(id.as_str(), 1))), ["release cgroup"]);
}

#[test]
fn a_container_started_by_others_can_be_stopped_even_if_we_never_knew_its_id() {
    let mut run = Direct::new(one());
    let acts = run.say(Event::Granted);
    run.works(&acts[0]);
    let create = run.works(&acts[1]);
    // The answer never came, the container was made, and somebody started it.
    let acts = run.fails(&create[0], FailureKind::TimedOut);
    run.all_work(acts);
    let listed = vec![(name("app"), running("app-1", START))];
    let acts = run.say(Event::Restored(listed));
    assert_eq!(words(&acts), ["stop app"]);
}

#[test]
fn a_container_started_by_others_is_stopped_when_it_is_heard_of_though_we_never_knew_its_id() {
    let mut run = Direct::new(one());
    let acts = run.say(Event::Granted);
    run.works(&acts[0]);
    let create = run.works(&acts[1]);
    let acts = run.fails(&create[0], FailureKind::TimedOut);
    run.all_work(acts);
    let acts = run.see("app", running("app-1", START));
    assert_eq!(words(&acts), ["stop app"]);
}

#[test]
fn an_old_end_does_not_hide_a_new_life() {
    let mut run = Direct::up(one());
    run.see("app", exited("app-1", 0));
    let stop = run.see("app", running("app-1", START.after(Millis(50))));
    assert_eq!(words(&stop), ["stop app"]);
    // The event of the first end comes once more, and the stop fails.
    run.see("app", exited("app-1", 0));
    let acts = run.fails(&stop[0], FailureKind::EngineAway);
    assert_eq!(words(&next_acts(&mut run, acts)), ["stop app"]);
}

#[test]
fn what_vanished_in_an_outage_vanished() {
    let (mut run, start) = starting(one());
    run.fails(&start, FailureKind::EngineAway);
    let acts = run.say(Event::Restored(Vec::new()));
    run.all_work(acts);
    let stop = run.told().stop.clone().unwrap();
    assert!(stop.reason.starts_with("ContainerVanishedError"), "{stop:?}");
}

#[test]
fn a_task_whose_forgetting_was_lost_is_forgotten_again() {
    let mut run = Direct::up(one());
    let acts = run.stop();
    run.all_work(acts);
    run.say(Event::Acknowledged);
    let acts = run.deadline();
    assert_eq!(words(&run.works(&acts[0])), ["forget"]);
    let acts = run.say(Event::Restored(Vec::new()));
    assert_eq!(words(&acts), ["forget"]);
}

#[test]
fn what_tells_that_a_task_ended_is_removed_last() {
    let mut side = container("side");
    side.essential = false;
    let mut run = Direct::up(fields(vec![container("app"), side]));
    let acts = run.stop();
    run.all_work(acts);
    run.say(Event::Acknowledged);
    // Should the records be lost now: the essential container's end is what forbids a restart.
    let acts = run.deadline();
    assert_eq!(words(&acts), ["remove side"]);
    let acts = run.works(&acts[0]);
    assert_eq!(words(&run.all_work(acts)), ["remove app", "forget"]);
}

#[test]
fn the_wait_for_the_engine_ends_with_its_answer() {
    let mut run = Direct::new(one());
    let acts = run.say(Event::Granted);
    run.fails(&acts[1], FailureKind::EngineAway);
    assert_eq!(run.task.waiting_for(), "the container engine, which does not answer");
    let pull = run.deadline();
    run.works(&pull[0]);
    assert_eq!(run.task.waiting_for(), "");
    let image = run.task.resource(&ResourceKey::Image("app".to_owned()));
    assert_eq!(image.map(|r| r.status), Some(ResourceStatus::Ready));
}
#[test]
fn the_end_of_execution_does_not_wait_for_another_event() {
    let mut run = Direct::new(one());
    run.stop();
    assert_eq!(run.told().status, TaskStatus::Stopped);
    assert_eq!(run.told().execution_stopped_at, Some(START));
}
