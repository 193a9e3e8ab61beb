//! Orders of events that once led a task astray with its resources, one by one.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on fails")]

#[allow(dead_code, reason = "each test file uses its part of the world")]
mod support;

use berth_core::spec::TaskFields;
use berth_core::task::{Act, ContainerStatus, Event, FailureKind, Settings, Task, TaskStatus};

use support::direct::{Direct, created, in_order, next_acts, starting, words};
use support::specs::{container, fields, name, port};

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
fn what_may_be_held_is_released() {
    // The call timed out, and the cgroup may be there.
    let mut run = Direct::new(one());
    let acts = run.say(Event::Granted);
    run.fails(&acts[0], FailureKind::TimedOut);
    let acts = run.stop();
    assert!(words(&acts).contains(&"release cgroup".to_owned()), "{acts:?}");

    // The agent died while it was being made.
    let mut run = Direct::new(one());
    run.say(Event::Granted);
    run.task = Task::restored(run.task.spec().clone(), Settings::default(), run.task.state().clone());
    run.stop();
    let acts = run.say(Event::Restored(Vec::new()));
    assert!(words(&acts).contains(&"release cgroup".to_owned()), "{acts:?}");

    // Other ports were to be chosen; the first ones are still ours.
    let (mut run, start) = starting(with_port());
    run.stop();
    let acts = run.fails(&start, FailureKind::PortTaken);
    assert!(words(&acts).contains(&"release ports of app".to_owned()), "{acts:?}");
    let acts = run.all_work(acts);
    assert_eq!(acts.last(), Some(&Act::ReturnGrant));
}

#[test]
fn failures_to_acquire_do_not_count_against_releasing() {
    let mut run = Direct::new(one());
    let mut acts = run.say(Event::Granted);
    for _ in 0..5 {
        let failed = run.fails(&acts[0], FailureKind::TimedOut);
        acts = next_acts(&mut run, failed);
    }
    assert_eq!(words(&acts)[1..], ["release cgroup"]);
    run.fails(&acts[1], FailureKind::TimedOut);
    assert_eq!(words(&run.deadline()), ["release cgroup"]);
}

#[test]
fn an_image_that_one_could_not_have_may_be_needed_again() {
    // Two containers of one image; the second finds it gone and cannot have it again.
    let mut first = container("first");
    first.ports = vec![port(80, None)];
    first.image = "shared".to_owned();
    let mut second = container("second");
    second.essential = false;
    second.image = "shared".to_owned();
    let mut run = Direct::new(fields(vec![first, second]));
    let acts = run.say(Event::Granted);
    let creates: Vec<Act> = acts.iter().flat_map(|act| run.works(act)).collect();
    assert_eq!(words(&creates), ["create second", "create first"]);
    let start = run.works(&creates[1]);
    let pull = run.fails(&creates[0], FailureKind::NoSuchImage);
    run.fails(&pull[0], FailureKind::Refused);
    // The first one needs other ports, and so the image.
    let acts = run.fails(&start[0], FailureKind::PortTaken);
    let acts = next_acts(&mut run, acts);
    let acts = run.works(&acts[0]);
    assert!(words(&acts).contains(&"acquire image shared".to_owned()), "{acts:?}");
}

#[test]
fn an_image_that_an_outage_took_along_is_pulled_again() {
    let mut run = Direct::new(one());
    let acts = run.say(Event::Granted);
    run.works(&acts[0]);
    let mut create = run.works(&acts[1]);
    for _ in 0..10 {
        let acts = run.fails(&create[0], FailureKind::EngineAway);
        create = next_acts(&mut run, acts);
    }
    let acts = run.fails(&create[0], FailureKind::NoSuchImage);
    assert_eq!(words(&acts), ["acquire image app"]);
}

#[test]
fn a_failed_pull_does_not_give_up_a_container_that_is_being_made() {
    let of_one_image = |text: &str, essential| {
        let mut spec = container(text);
        spec.image = "shared".to_owned();
        spec.essential = essential;
        spec
    };
    let both = vec![of_one_image("first", false), of_one_image("second", true)];
    let mut run = Direct::new(fields(both));
    let acts = run.say(Event::Granted);
    let creates: Vec<Act> = acts.iter().flat_map(|act| run.works(act)).collect();
    assert_eq!(words(&creates), ["create first", "create second"]);
    // The first finds the image gone, and it cannot be had again; the second is on its way.
    let pull = run.fails(&creates[0], FailureKind::NoSuchImage);
    assert_eq!(run.fails(&pull[0], FailureKind::Refused), []);
    let of = |run: &Direct, text: &str| run.container(text).status;
    assert_eq!(of(&run, "first"), ContainerStatus::Stopped);
    assert_eq!(of(&run, "second"), ContainerStatus::Pending);
    run.all_work(creates[1..].to_vec());
    assert_eq!(run.told().status, TaskStatus::Running);
}

#[test]
fn a_container_of_a_forgotten_life_is_not_started_with_what_others_may_have_by_now() {
    let mut run = Direct::new(with_port());
    let mut acts = run.say(Event::Restored(vec![(name("app"), created("app-0"))]));
    acts.extend(run.say(Event::Granted));
    let seen = run.until_runs("app", acts);
    assert!(in_order(&seen, &["remove app", "create app", "start app"]), "{seen:?}");
    assert!(in_order(&seen, &["acquire ports of app", "create app"]), "{seen:?}");
}
