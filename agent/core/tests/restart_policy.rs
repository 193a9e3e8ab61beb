//! A container that ended is started again, or left as it is, by its restart policy.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on fails")]

#[allow(dead_code, reason = "each test file uses its part of the world")]
mod support;

use berth_core::spec::{Condition, Dependency, RestartPolicy, TaskFields, TaskSpec};
use berth_core::task::{
    Act, ContainerStatus, Event, Exit, Fact, Outcome, Settings, StopCode, Task, TaskStatus,
};
use berth_core::units::{Millis, Timestamp};

use support::direct::{Direct, id, in_order, words};
use support::specs::{container, fields, name, port};

const MINUTE: Millis = Millis::from_secs(60);
const PATIENCE: Millis = Millis::from_secs(150);
const DAY_MS: i64 = 86_400_000;

fn policy() -> TaskFields {
    let mut app = container("app");
    app.restart_policy = Some(RestartPolicy { ignored_exit_codes: vec![0], attempt_period: MINUTE });
    fields(vec![app])
}

fn exit(code: i32, started_at: Option<Timestamp>, finished_at: Timestamp) -> Exit {
    Exit {
        code,
        oom_killed: false,
        task_memory_peak: None,
        with_engine: false,
        error: None,
        started_at,
        finished_at: Some(finished_at),
    }
}

/// Another waits for its success, for two minutes and a half.
fn followed() -> TaskFields {
    let mut fields = policy();
    let mut other = container("other");
    other.depends_on = vec![Dependency { container: name("app"), condition: Condition::Success }];
    fields.containers[0].essential = false;
    fields.containers[0].start_timeout = Some(PATIENCE);
    fields.containers.push(other);
    fields
}

/// The container ends after it ran for so long.
fn ends(run: &mut Direct, code: i32, after: Millis) -> Vec<Act> {
    let started_at = run.task.state().containers[0].started_at;
    run.now = started_at.unwrap().after(after);
    let exit = exit(code, started_at, run.now);
    run.see("app", Fact::Exited { id: id("app-1"), exit })
}

#[test]
fn one_that_ran_long_enough_is_started_again_and_counts_as_running() {
    let mut run = Direct::up(policy());
    let acts = ends(&mut run, 1, MINUTE);
    assert_eq!(words(&acts), ["start app"]);
    let told = run.told().clone();
    assert_eq!((told.status, told.stop), (TaskStatus::Running, None));
    assert_eq!(told.containers[0].status, ContainerStatus::Running);
    assert_eq!(told.containers[0].exit_code, None);
    assert_eq!(told.containers[0].reason.as_deref(), Some("restarted once, last after exit code 1"));
    run.works(&acts[0]);
    assert_eq!(run.task.state().containers[0].status, ContainerStatus::Running);
    assert_eq!(run.task.state().containers[0].restarts, 1);
}

#[test]
fn one_that_ended_early_stays_ended_and_says_why() {
    let mut run = Direct::up(policy());
    let acts = ends(&mut run, 3, Millis::from_secs(12));
    run.all_work(acts);
    let told = run.told().clone();
    assert_eq!(told.stop.unwrap().code, StopCode::EssentialContainerExited);
    let reason = told.containers[0].reason.clone().unwrap();
    assert!(
        reason.starts_with("exit code 3 after 12 s") && reason.contains("60 s (restartAttemptPeriod)"),
        "{reason}"
    );
}

#[test]
fn an_ignored_exit_code_ends_it() {
    let mut run = Direct::up(policy());
    ends(&mut run, 0, MINUTE);
    assert!(run.task.is_stopping());
}

#[test]
fn a_task_that_stops_starts_nothing_again() {
    let mut run = Direct::up(policy());
    run.later(MINUTE);
    let stop = run.stop();
    let Act::Stop { attempt, .. } = &stop[0] else { panic!("{stop:?}") };
    let started_at = run.task.state().containers[0].started_at;
    let exit = exit(143, started_at, run.now);
    let next = run.done(*attempt, Outcome::Fact(Fact::Exited { id: id("app-1"), exit }));
    assert_eq!(words(&next), ["release cgroup"]);
}

#[test]
fn pauses_grow_while_it_keeps_ending_and_end_with_a_steady_run() {
    let mut run = Direct::up(policy());
    let mut pauses = Vec::new();
    for ran in [MINUTE, MINUTE, MINUTE, MINUTE, Millis::from_secs(600)] {
        let mut acts = ends(&mut run, 1, ran);
        let ended = run.now;
        if acts.is_empty() {
            acts = run.deadline();
        }
        assert_eq!(words(&acts), ["start app"]);
        pauses.push((run.now.0 - ended.0) / 1000);
        run.works(&acts[0]);
    }
    assert_eq!(pauses, [0, 1, 2, 4, 0]);
}

#[test]
fn an_end_that_is_told_twice_counts_once() {
    let mut run = Direct::up(policy());
    let acts = ends(&mut run, 1, MINUTE);
    let exit = run.task.state().containers[0].exit.clone().unwrap();
    assert!(run.see("app", Fact::Exited { id: id("app-1"), exit }).is_empty());
    assert_eq!(run.task.state().containers[0].restarts, 1);
    run.works(&acts[0]);
    assert_eq!(run.task.state().containers[0].status, ContainerStatus::Running);
}

#[test]
fn an_end_before_its_beginning_is_no_reason_to_refuse_a_restart() {
    let mut run = at_noon(policy());
    let began = run.task.state().containers[0].started_at;
    // It ran for a day; then the clock was put back by two, while the agent was down, and it ended.
    run.now = began.unwrap().moved(-DAY_MS);
    let gone = Fact::Exited { id: id("app-1"), exit: exit(1, began, run.now.moved(-1000)) };
    let acts = run.say(Event::Restored(vec![(name("app"), gone)]));
    assert_eq!(words(&acts), ["start app"]);
}

#[test]
fn a_restart_of_the_agent_goes_on_where_it_was() {
    let mut run = Direct::up(policy());
    ends(&mut run, 1, MINUTE);
    let exit = run.task.state().containers[0].exit.clone().unwrap();
    let gone = Fact::Exited { id: id("app-1"), exit };
    let acts = run.say(Event::Restored(vec![(name("app"), gone)]));
    assert_eq!(words(&acts), ["start app"]);
    // It was started before the crash, and ran since.
    let now = Timestamp(run.now.0 + 1);
    let runs = Fact::Running { id: id("app-1"), started_at: now, health: None };
    let acts = run.say(Event::Restored(vec![(name("app"), runs)]));
    assert_eq!(words(&acts), Vec::<String>::new());
    assert_eq!(run.task.state().containers[0].started_at, Some(now));
}

#[test]
fn a_task_of_which_every_container_has_run_runs_though_one_is_about_to_run_again() {
    let mut fields = policy();
    fields.containers.push(container("other"));
    let mut run = Direct::new(fields);
    let (mut acts, mut starts) = (run.say(Event::Granted), Vec::new());
    while !acts.is_empty() {
        let act = acts.remove(0);
        match act {
            Act::Start { .. } => starts.push(act),
            act => acts.extend(run.works(&act)),
        }
    }
    assert_eq!(words(&starts), ["start app", "start other"]);
    run.works(&starts[0]);
    let again = ends(&mut run, 1, MINUTE);
    assert_eq!(words(&again), ["start app"]);
    assert_eq!(run.task.state().status, TaskStatus::Pending);
    run.works(&starts[1]);
    assert_eq!(run.told().status, TaskStatus::Running);
}

#[test]
fn who_waits_for_one_that_keeps_ending_has_its_patience_once() {
    let mut run = Direct::up(followed());
    for _ in 0..2 {
        let mut acts = ends(&mut run, 1, MINUTE);
        if acts.is_empty() {
            acts = run.deadline();
        }
        assert_eq!(words(&acts), ["start app"]);
        run.works(&acts[0]);
    }
    assert!(!run.task.is_stopping());
    run.deadline();
    let why = run.container("other").failure.clone().unwrap().detail;
    assert_eq!(why, "container app did not become SUCCESS within 150 s");
}

#[test]
fn a_pause_is_as_long_as_it_is_whatever_the_clock_is_told() {
    for by in [DAY_MS, -DAY_MS] {
        let mut run = Direct::new(policy());
        run.now = Timestamp(1_000_000_000);
        let acts = run.say(Event::Granted);
        run.all_work(acts);
        let acts = ends(&mut run, 1, MINUTE);
        run.works(&acts[0]);
        assert!(ends(&mut run, 1, MINUTE).is_empty());
        let told = run.reports.len();
        run.now = run.now.moved(by);
        run.task.clock_moved(by);
        assert!(run.say(Event::Deadline).is_empty(), "{by}: too early");
        assert_eq!(run.task.next_deadline(), Some(run.now.after(Millis::from_secs(1))), "{by}");
        // The engine says once more what it said of the end.
        let exit = run.task.state().containers[0].exit.clone().unwrap();
        assert!(run.see("app", Fact::Exited { id: id("app-1"), exit }).is_empty());
        assert_eq!(words(&run.deadline()), ["start app"], "{by}");
        assert_eq!((run.task.state().containers[0].restarts, run.reports.len()), (2, told), "{by}");
    }
}

#[test]
fn a_container_ran_as_long_as_it_did_whatever_the_clock_was_told_meanwhile() {
    for (by, ran, expected) in [
        (-DAY_MS, MINUTE, true),
        (DAY_MS, MINUTE, true),
        (-DAY_MS, Millis::from_secs(1), false),
        (DAY_MS, Millis::from_secs(1), false),
    ] {
        let mut run = at_noon(policy());
        let started_at = run.container("app").started_at;
        run.now = run.now.moved(by);
        run.task.clock_moved(by);
        // It is looked at, and the engine says of its start what it always said.
        let seen = Fact::Running { id: id("app-1"), started_at: started_at.unwrap(), health: None };
        assert!(run.see("app", seen).is_empty());
        run.now = started_at.unwrap().moved(by).after(ran);
        let exit = exit(1, started_at, run.now);
        let acts = words(&run.see("app", Fact::Exited { id: id("app-1"), exit }));
        assert_eq!(acts == ["start app"], expected, "moved by {by}, ran for {ran}: {acts:?}");
    }
}

/// One that came up long after the beginning of time, so that there is a time before it.
fn at_noon(fields: TaskFields) -> Direct {
    let mut run = Direct::new(fields);
    run.now = Timestamp(1_000_000_000);
    let acts = run.say(Event::Granted);
    run.all_work(acts);
    run
}

#[test]
fn whoever_waits_does_so_for_as_long_whatever_the_clock_is_told() {
    for by in [-DAY_MS, DAY_MS] {
        for restarts in [0, 1] {
            let mut run = at_noon(followed());
            let due = run.task.next_deadline().unwrap();
            for _ in 0..restarts {
                let acts = ends(&mut run, 1, MINUTE);
                run.works(&acts[0]);
            }
            run.now = run.now.moved(by);
            run.task.clock_moved(by);
            assert_eq!(run.task.next_deadline(), Some(due.moved(by)), "{by}, {restarts} restarts");
        }
    }
}

#[test]
fn a_wait_is_as_long_where_the_clock_was_moved_before_the_engine_told_of_the_start() {
    for by in [-DAY_MS, DAY_MS] {
        let mut run = Direct::new(followed());
        run.now = Timestamp(1_000_000_000);
        let mut acts = run.say(Event::Granted);
        let mut start = None;
        while let Some(act) = acts.pop() {
            match act {
                Act::Start { attempt, id, .. } => start = Some((attempt, id)),
                act => acts.extend(run.works(&act)),
            }
        }
        let (attempt, id) = start.unwrap();
        let started_at = run.now;
        run.now = run.now.moved(by);
        run.task.clock_moved(by);
        let acts = run.done(attempt, Outcome::Fact(Fact::Running { id, started_at, health: None }));
        run.all_work(acts);
        assert_eq!(run.task.next_deadline(), Some(run.now.after(PATIENCE)), "{by}");
        assert_eq!(run.container("app").started_at, Some(started_at), "{by}: by which it is known again");
    }
}

#[test]
fn after_a_clock_was_put_back_unseen_waits_begin_anew_and_no_longer() {
    let mut run = at_noon(followed());
    let started_at = run.container("app").started_at.unwrap();
    run.now = run.now.moved(-DAY_MS);
    let id_of = |name: &str| run.container(name).id.clone().unwrap();
    let runs = Fact::Running { id: id_of("app"), started_at, health: None };
    let made = Fact::Created { id: id_of("other") };
    let acts = run.say(Event::Restored(vec![(name("app"), runs), (name("other"), made)]));
    run.all_work(acts);
    assert_eq!(run.task.next_deadline(), Some(run.now.after(PATIENCE)));
    // It runs for its period from then on, by the engine's clock.
    run.now = run.now.after(MINUTE);
    let exit = exit(1, Some(started_at), run.now);
    assert_eq!(words(&run.see("app", Fact::Exited { id: id("app-1"), exit })), ["start app"]);
}

#[test]
fn one_that_is_found_running_since_a_time_to_come_is_waited_for_no_longer_than_any_other() {
    let mut run = Direct::new(followed());
    run.now = Timestamp(1_000_000_000);
    let runs = Fact::Running { id: id("app-1"), started_at: run.now.moved(DAY_MS), health: None };
    let made = Fact::Created { id: id("other-1") };
    let acts = run.say(Event::Restored(vec![(name("app"), runs), (name("other"), made)]));
    run.all_work(acts);
    assert_eq!(run.task.next_deadline(), Some(run.now.after(PATIENCE)));
}

#[test]
fn one_that_is_found_ended_is_made_anew_with_what_nobody_else_has_once_there_is_room() {
    let mut fields = policy();
    fields.containers[0].ports = vec![port(80, None)];
    let spec = TaskSpec::try_from(fields).unwrap();
    let now = Timestamp(1_000_000_000);
    let mut run = Direct::of(Task::found_at_rest(spec.into(), Settings::default(), now));
    run.now = now;
    let end = exit(1, Some(now.moved(-120_000)), now.moved(-1000));
    let acts = run.say(Event::Restored(vec![(name("app"), Fact::Exited { id: id("app-0"), exit: end })]));
    assert_eq!((words(&acts), run.task.state().status), (vec![], TaskStatus::Pending));
    let acts = run.say(Event::Granted);
    let seen = run.until_runs("app", acts);
    assert!(in_order(&seen, &["remove app", "create app", "start app"]), "{seen:?}");
    assert!(in_order(&seen, &["acquire ports of app", "create app"]), "{seen:?}");
}

#[test]
fn one_that_ran_when_the_power_went_is_started_again_also_where_the_engine_forgot_that_it_ran() {
    let mut run = at_noon(policy());
    let made = Fact::Created { id: run.container("app").id.clone().unwrap() };
    run.now = run.now.after(MINUTE);
    let acts = run.say(Event::Rebooted(vec![(name("app"), made)]));
    run.all_work(acts);
    assert_eq!((run.told().status, run.container("app").restarts), (TaskStatus::Running, 1));
}

/// The container ends with the engine after it ran for so long.
fn ends_with_engine(run: &mut Direct, after: Millis) -> Vec<Act> {
    let started_at = run.task.state().containers[0].started_at;
    run.now = started_at.unwrap().after(after);
    let exit = Exit {
        code: 137,
        oom_killed: false,
        task_memory_peak: None,
        with_engine: true,
        error: None,
        started_at,
        finished_at: Some(run.now),
    };
    run.see("app", Fact::Exited { id: id("app-1"), exit })
}

#[test]
fn one_that_ended_with_the_engine_is_started_again_like_any_other() {
    let mut run = Direct::up(policy());
    let acts = ends_with_engine(&mut run, MINUTE);
    assert_eq!(words(&acts), ["start app"]);
    let told = run.told().clone();
    let reason = "restarted once, last after exit code 137 (the container engine was restarted)";
    assert_eq!(told.containers[0].reason.as_deref(), Some(reason));
    // The same end, seen again without what was found out about it.
    run.works(&acts[0]);
    let (started_at, finished_at) = {
        let known = run.task.state().containers[0].exit.clone().unwrap();
        (known.started_at, known.finished_at)
    };
    let late = Exit {
        code: 137,
        oom_killed: false,
        task_memory_peak: None,
        with_engine: false,
        error: None,
        started_at,
        finished_at,
    };
    assert!(run.see("app", Fact::Exited { id: id("app-1"), exit: late }).is_empty());
    assert_eq!(run.task.state().containers[0].restarts, 1);
}

#[test]
fn a_task_that_ended_with_the_engine_says_so() {
    let mut run = Direct::up(fields(vec![container("app")]));
    let acts = ends_with_engine(&mut run, MINUTE);
    run.all_work(acts);
    let told = run.told().clone();
    assert_eq!(told.stop.as_ref().unwrap().code, StopCode::EssentialContainerExited);
    assert!(
        told.stop
            .unwrap()
            .reason
            .ends_with(": the container engine was restarted, which ends containers without live-restore")
    );
    assert_eq!(
        told.containers[0].reason.as_deref(),
        Some("it ended with the container engine, which was restarted")
    );
}
