//! A host that goes, and one that came back: what its tasks make of it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on fails")]

#[allow(dead_code, reason = "each test file uses its part of the world")]
mod support;

use berth_core::spec::{Condition, ContainerSpec};
use berth_core::task::{Act, Event, Fact, StopCause, StopCode, TaskStatus};
use berth_core::units::{Millis, Timestamp};

use support::direct::{Direct, START, exited, words};
use support::specs::{after, container, fields, name};

fn host_goes(run: &mut Direct, in_millis: u64) -> Vec<Act> {
    let cause = StopCause::new(StopCode::TerminationNotice, "the host is shutting down");
    let by = run.now.after(Millis(in_millis));
    run.say(Event::HostGoes { cause, by })
}

fn graces(acts: &[Act]) -> Vec<(String, u64)> {
    let grace = |act: &Act| match act {
        Act::Stop { container, grace, .. } => Some((container.to_string(), grace.0)),
        _ => None,
    };
    acts.iter().filter_map(grace).collect()
}

/// db ← app: app stops first.
fn pair(db: u64, app: u64) -> Vec<ContainerSpec> {
    let (mut first, mut second) = (container("db"), container("app"));
    first.stop_timeout = Some(Millis(db));
    second.stop_timeout = Some(Millis(app));
    second.depends_on = vec![after("db", Condition::Start)];
    vec![first, second]
}

#[test]
fn with_time_enough_every_container_has_its_own() {
    let mut run = Direct::up(fields(pair(30_000, 10_000)));
    assert_eq!(run.task.longest_stop(), Millis(40_000));
    let acts = host_goes(&mut run, 120_000);
    assert_eq!(graces(&acts), [("app".to_owned(), 10_000)]);
    let acts = run.works(&acts[0]);
    assert_eq!(graces(&acts), [("db".to_owned(), 30_000)]);
    run.all_work(acts);
    let told = run.told();
    assert_eq!(told.status, TaskStatus::Stopped);
    assert_eq!(told.stop.clone().unwrap().code, StopCode::TerminationNotice);
    assert_eq!(run.task.longest_stop(), Millis(0));
}

#[test]
fn with_too_little_they_share_what_there_is_in_order() {
    let mut run = Direct::up(fields(pair(30_000, 10_000)));
    let acts = host_goes(&mut run, 5_000);
    assert_eq!(graces(&acts), [("app".to_owned(), 1_000)], "a quarter of four seconds");
    run.now = run.now.after(Millis(1_000));
    let acts = run.works(&acts[0]);
    let (name, left) = graces(&acts).remove(0);
    assert!(name == "db" && (2_900..=3_000).contains(&left), "{name} {left}");
}

#[test]
fn with_none_left_they_are_killed_and_told_so() {
    let mut run = Direct::up(fields(pair(30_000, 10_000)));
    let acts = host_goes(&mut run, 0);
    assert_eq!(graces(&acts), [("app".to_owned(), 0)]);
    run.all_work(acts);
    assert_eq!(run.told().status, TaskStatus::Stopped);
}

#[test]
fn a_stop_that_is_under_way_is_hurried_and_keeps_its_cause() {
    let mut run = Direct::up(fields(pair(30_000, 120_000)));
    let stop = run.stop();
    assert_eq!(graces(&stop), [("app".to_owned(), 120_000)]);
    run.now = run.now.after(Millis(2_000));
    let acts = host_goes(&mut run, 11_000);
    assert!(matches!(acts[0], Act::Abandon { .. }), "{acts:?}");
    assert_eq!(graces(&acts), [("app".to_owned(), 8_000)]);
    // A second notice of the same, or of a later moment, changes nothing.
    assert!(host_goes(&mut run, 11_000).is_empty());
    assert!(host_goes(&mut run, 60_000).is_empty());
    run.all_work(acts);
    assert_ne!(run.told().stop.clone().unwrap().code, StopCode::TerminationNotice);
}

#[test]
fn the_time_that_is_left_is_as_long_as_it_is_whatever_the_clock_is_told() {
    for by in [86_400_000, -86_400_000] {
        let mut run = Direct::new(fields(pair(30_000, 10_000)));
        run.now = Timestamp(1_000_000_000);
        let acts = run.say(Event::Granted);
        run.all_work(acts);
        let acts = host_goes(&mut run, 120_000);
        assert_eq!(graces(&acts), [("app".to_owned(), 10_000)]);
        run.now = run.now.moved(by);
        run.task.clock_moved(by);
        // Told once more of an end that is as far as before, it goes on as it was.
        assert!(host_goes(&mut run, 120_000).is_empty(), "{by}");
        let acts = run.works(&acts[0]);
        assert_eq!(graces(&acts), [("db".to_owned(), 30_000)], "{by}");
    }
}

#[test]
fn what_ran_when_the_power_went_has_ended_also_where_the_engine_forgot_that_it_ran() {
    let mut run = Direct::up(fields(vec![container("app")]));
    assert_eq!(run.told().status, TaskStatus::Running);
    let made = Fact::Created { id: run.container("app").id.clone().unwrap() };
    let acts = run.say(Event::Rebooted(vec![(name("app"), made)]));
    run.all_work(acts);
    let told = run.told();
    assert_eq!(
        (told.status, told.stop.clone().unwrap()),
        (TaskStatus::Stopped, StopCause::new(StopCode::EssentialContainerExited, StopCause::CUT_OFF))
    );
}

#[test]
fn a_task_that_does_not_run_yet_never_does() {
    let mut run = Direct::new(fields(vec![container("app")]));
    let pulling = run.say(Event::Granted);
    assert!(words(&pulling).iter().any(|word| word.starts_with("acquire")), "{pulling:?}");
    let acts = host_goes(&mut run, 60_000);
    run.all_work(acts);
    for act in pulling {
        run.all_work(vec![act]);
    }
    assert_eq!(run.told().status, TaskStatus::Stopped);
    assert!(run.container("app").started_at.is_none());
}

#[test]
fn what_a_reboot_cut_off_says_so_and_what_had_not_begun_begins() {
    let mut run = Direct::up(fields(vec![container("app")]));
    let id = run.container("app").id.clone().unwrap();
    let acts = run.say(Event::Rebooted(vec![(name("app"), exited(id.as_str(), 255))]));
    run.all_work(acts);
    let stop = run.told().stop.clone().unwrap();
    assert_eq!(stop.code, StopCode::EssentialContainerExited);
    assert_eq!(stop.reason, "Essential container in task exited: its host was restarted");

    let mut run = Direct::new(fields(vec![container("app")]));
    let _lost = run.say(Event::Granted);
    let acts = run.say(Event::Rebooted(vec![(name("app"), Fact::Missing)]));
    run.all_work(acts);
    assert_eq!(run.task.state().status, TaskStatus::Running);
}

#[test]
fn what_was_being_stopped_when_the_host_went_keeps_that_reason() {
    let mut run = Direct::up(fields(vec![container("app")]));
    let id = run.container("app").id.clone().unwrap();
    drop(host_goes(&mut run, 60_000));
    let acts = run.say(Event::Rebooted(vec![(name("app"), exited(id.as_str(), 137))]));
    run.all_work(acts);
    let told = run.told();
    assert_eq!(told.status, TaskStatus::Stopped);
    assert_eq!(told.stop.clone().unwrap().reason, "the host is shutting down");
    assert_eq!(run.now, START);
}
