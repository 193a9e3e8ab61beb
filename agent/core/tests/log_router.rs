//! Lives of tasks whose containers log to a log router.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on fails")]

#[allow(dead_code, reason = "each test file uses its part of the world")]
mod support;

use std::sync::Arc;

use berth_core::spec::{NetworkMode, TaskFields, TaskSpec};
use berth_core::task::{Event, FailureKind, Outcome, Settings, Task, TaskStatus};

use support::direct::{Direct, START, attempt, exited, failure, running, words};
use support::specs::{container, fields, name, router, secret, to_router};

/// A log router, and an app that logs to it with a secret option.
fn routed(network_mode: NetworkMode) -> TaskFields {
    let (mut log, mut app) = (container("log"), container("app"));
    log.firelens = Some(router());
    let mut way = to_router();
    way.secret_options = vec![secret("token")];
    app.log = Some(way);
    TaskFields { network_mode, ..fields(vec![app, log]) }
}

#[test]
fn a_log_router_starts_first_and_stops_last() {
    for (mode, expected) in [
        // On the bridge an app is told the router's address, which is known once it runs.
        (NetworkMode::Bridge, ["create log", "start log", "create app", "start app"]),
        (NetworkMode::Host, ["create app", "create log", "start log", "start app"]),
    ] {
        let mut run = Direct::new(routed(mode));
        let acts = run.say(Event::Granted);
        assert!(words(&acts).contains(&"acquire log router".to_owned()), "{acts:?}");
        let acts = words(&run.all_work(acts));
        let made: Vec<_> = acts.iter().filter(|a| !a.starts_with("acquire")).collect();
        assert_eq!(made, expected);
        let acts = run.stop();
        let acts = words(&run.all_work(acts));
        assert_eq!(acts[..2], ["stop app", "stop log"]);
        assert!(acts.contains(&"release log router".to_owned()), "{acts:?}");
    }
}

#[test]
fn a_log_router_waits_for_its_folder_and_for_the_secrets_of_the_others() {
    let mut run = Direct::new(routed(NetworkMode::Bridge));
    let mut acts = run.say(Event::Granted);
    let folder = acts.iter().position(|act| words(std::slice::from_ref(act)) == ["acquire log router"]);
    let folder = acts.remove(folder.unwrap());
    let done = words(&run.all_work(acts));
    assert!(done.iter().all(|act| act.starts_with("acquire")), "{done:?}");
    assert!(run.fails(&folder, FailureKind::TimedOut).is_empty());
    assert_eq!(run.told().waiting_for, failure(FailureKind::TimedOut).detail);
    let again = run.deadline();
    let create = run.works(&again[0]);
    assert_eq!(words(&create), ["create log"]);
    // It cannot be made: neither can what logs to it.
    let acts = run.fails(&create[0], FailureKind::Refused);
    run.all_work(acts);
    assert_eq!(run.told().status, TaskStatus::Stopped);
    assert_eq!(run.container("app").started_at, None);
}

#[test]
fn an_app_is_made_also_after_a_router_that_does_not_matter_has_ended() {
    let mut task = routed(NetworkMode::Bridge);
    task.containers[1].essential = false;
    let mut run = Direct::new(task);
    let mut acts = run.say(Event::Granted);
    let mut start = None;
    while let Some(act) = acts.pop() {
        match words(std::slice::from_ref(&act))[0].as_str() {
            "start log" => start = Some(act),
            _ => acts.extend(run.works(&act)),
        }
    }
    let start = start.unwrap();
    let log = run.container("log").id.clone().unwrap();
    let acts = run.done(attempt(&start), Outcome::Fact(exited(log.as_str(), 1)));
    assert_eq!(words(&acts), ["create app"]);
    run.all_work(acts);
    assert_eq!(run.told().status, TaskStatus::Running);
}

#[test]
fn the_folder_of_an_adopted_log_router_is_released_with_the_task() {
    let spec = Arc::new(TaskSpec::try_from(routed(NetworkMode::Host)).unwrap());
    let mut run =
        Direct::of(Task::adopted(spec, Settings::default(), &[], &std::collections::BTreeMap::new(), START));
    let facts = vec![(name("app"), running("app-1", START)), (name("log"), running("log-1", START))];
    let acts = run.say(Event::Restored(facts));
    assert_eq!(words(&acts), ["acquire cgroup"], "what it has is left as it is");
    run.all_work(acts);
    let acts = run.stop();
    let acts = words(&run.all_work(acts));
    assert!(acts.contains(&"release log router".to_owned()), "{acts:?}");
}
