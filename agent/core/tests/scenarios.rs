//! Lives of tasks to read: what is done and what is reported, step by step.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on fails")]

#[allow(dead_code, reason = "each test file uses its part of the world")]
mod support;

use std::collections::BTreeMap;
use std::sync::Arc;

use berth_core::resources::Shortfall;
use berth_core::spec::{Condition, Link, NetworkMode, SecretRef, TaskFields, TaskSpec};
use berth_core::task::{
    Act, ContainerStatus, Event, Exit, Fact, FailureKind, Health, Outcome, PortBinding, Settings, StopCode,
    Task, TaskStatus,
};
use berth_core::units::{CpuUnits, Mebibytes, Millis, PortRange, Protocol};

use support::direct::{Direct, START, attempt, exited, failure, gpu, id, running, with_health, word, words};
use support::specs::{after, container, fields, health_check, name, port};

#[test]
fn one_container_from_the_payload_to_oblivion() {
    let mut run = Direct::new(TaskFields { cpu: Some(CpuUnits(256)), ..fields(vec![container("app")]) });
    let missing = vec![Shortfall::Memory { short_by: Mebibytes(412) }];
    assert!(run.say(Event::Waiting(missing)).is_empty());
    assert_eq!(run.told().status, TaskStatus::Pending);
    assert_eq!(run.told().waiting_for, "memory, 412 MiB short");

    let acts = run.say(Event::Granted);
    assert_eq!(words(&acts), ["acquire cgroup", "acquire image app"]);
    assert_eq!(run.told().waiting_for, "");
    assert!(run.works(&acts[0]).is_empty());
    let create = run.works(&acts[1]);
    assert_eq!(words(&create), ["create app"]);
    let Act::Create { cgroup_parent, .. } = &create[0] else { panic!("{create:?}") };
    assert_eq!(cgroup_parent.as_deref(), Some("/berth/1"));
    let start = run.works(&create[0]);
    assert_eq!(words(&start), ["start app"]);
    // The CPU bound comes after the start, and before RUNNING.
    let bound = run.works(&start[0]);
    assert_eq!(words(&bound), ["acquire cpu bound"]);
    assert_eq!(run.task.state().status, TaskStatus::Pending);
    assert!(run.works(&bound[0]).is_empty());
    let told = run.told().clone();
    assert_eq!((told.status, told.started_at), (TaskStatus::Running, Some(START)));
    assert_eq!(told.containers[0].status, ContainerStatus::Running);
    assert_eq!(told.containers[0].id, Some(id("app-1")));
    assert_eq!(told.containers[0].digest.as_deref(), Some("sha256:app"));
    assert_eq!(run.task.next_deadline(), None);

    run.later(Millis::from_secs(60));
    let stop = run.stop();
    assert_eq!(words(&stop), ["stop app"]);
    let Act::Stop { grace, failed_before, .. } = &stop[0] else { panic!("{stop:?}") };
    assert_eq!((*grace, *failed_before), (Millis::from_secs(30), 0));
    let release = run.works(&stop[0]);
    assert_eq!(words(&release), ["release cgroup"]);
    assert_eq!(words(&run.works(&release[0])), ["return the grant"]);
    let told = run.told().clone();
    assert_eq!(told.status, TaskStatus::Stopped);
    assert_eq!(told.stop.unwrap().code, StopCode::UserInitiated);
    assert_eq!(told.stopped_at, Some(run.now));
    assert_eq!(told.containers[0].exit_code, Some(143));
    let statuses: Vec<_> = run.reports.iter().map(|r| r.status).collect();
    let expected = [
        TaskStatus::Pending,
        TaskStatus::Pending,
        TaskStatus::Running,
        TaskStatus::Running, // It is stopping.
        TaskStatus::Stopped,
    ];
    assert_eq!(statuses, expected);

    // It is kept until the control plane has it and its time is over.
    assert_eq!(run.task.next_deadline(), None);
    assert!(run.say(Event::Acknowledged).is_empty());
    assert_eq!(run.task.next_deadline(), Some(run.now.after(Settings::default().retention)));
    let remove = run.deadline();
    assert_eq!(words(&remove), ["remove app"]);
    assert_eq!(words(&run.works(&remove[0])), ["forget"]);
    assert_eq!(run.task.next_deadline(), None);
}

#[test]
fn a_stop_while_pulling_does_not_wait_for_the_pull() {
    let mut run = Direct::new(fields(vec![container("app")]));
    let acts = run.say(Event::Granted);
    run.works(&acts[0]);
    let pull = attempt(&acts[1]);
    let acts = run.stop();
    assert_eq!(words(&acts), [format!("abandon {pull}"), "release cgroup".to_owned()]);
    assert_eq!(words(&run.works(&acts[1])), ["return the grant"]);
    assert_eq!(run.told().status, TaskStatus::Stopped);
    assert_eq!(run.told().started_at, None);
    // What the pull says in the end does not matter any more.
    let before = run.task.clone();
    let late = Outcome::Acquired(berth_core::task::Acquired::Image { digest: None, pulled_bytes: 0 });
    assert!(run.done(pull, late).is_empty());
    assert_eq!(run.task, before);
}

/// db ← app ← proxy: each waits for the one before to start.
fn chain() -> Vec<berth_core::spec::ContainerSpec> {
    let db = container("db");
    let mut app = container("app");
    app.depends_on = vec![after("db", Condition::Start)];
    let mut proxy = container("proxy");
    proxy.depends_on = vec![after("app", Condition::Start)];
    vec![db, app, proxy]
}

#[test]
fn containers_start_in_order_and_stop_in_reverse() {
    let mut run = Direct::new(fields(chain()));
    let acts = run.say(Event::Granted);
    let acts = words(&run.all_work(acts));
    let starts: Vec<_> = acts.iter().filter(|a| a.starts_with("start")).collect();
    assert_eq!(starts, ["start db", "start app", "start proxy"]);
    let acts = run.stop();
    let stops = words(&run.all_work(acts));
    assert_eq!(stops[..3], ["stop proxy", "stop app", "stop db"]);
}

#[test]
fn the_end_of_an_essential_container_stops_the_others_in_reverse() {
    let mut run = Direct::up(fields(chain()));
    let ended = run.container("proxy").id.clone().unwrap();
    let acts = run.see("proxy", exited(ended.as_str(), 7));
    assert_eq!(words(&acts), ["stop app"]);
    let acts = run.works(&acts[0]);
    assert_eq!(words(&acts), ["stop db"]);
    run.all_work(acts);
    let told = run.told();
    let stop = told.stop.clone().unwrap();
    assert_eq!(stop.code, StopCode::EssentialContainerExited);
    assert_eq!(stop.reason, "Essential container in task exited");
    let codes: Vec<_> = told.containers.iter().map(|c| c.exit_code).collect();
    assert_eq!(codes, [Some(143), Some(143), Some(7)]);
    assert_eq!(told.execution_stopped_at, Some(START.after(Millis(1))));
}

#[test]
fn a_port_that_is_taken_is_another_port_next_time() {
    let mut app = container("app");
    app.ports = vec![port(80, None)];
    let mut run = Direct::new(fields(vec![app]));
    let mut acts = run.say(Event::Granted);
    assert_eq!(words(&acts)[2], "acquire ports of app");
    let start = loop {
        let act = acts.remove(0);
        if matches!(act, Act::Start { .. }) {
            break act;
        }
        acts.extend(run.works(&act));
    };
    let remove = run.fails(&start, FailureKind::PortTaken);
    assert_eq!(words(&remove), ["remove app"]);
    let ports = run.works(&remove[0]);
    assert_eq!(words(&ports), ["acquire ports of app"]);
    let create = run.works(&ports[0]);
    let Act::Create { bindings, .. } = &create[0] else { panic!("{create:?}") };
    assert_eq!(bindings[0].host_ports, PortRange::single(32770).unwrap());
    run.all_work(create.clone());
    assert_eq!(run.told().status, TaskStatus::Running);
    assert_eq!(&run.told().containers[0].bindings, bindings);
}

#[test]
fn an_engine_that_is_away_is_waited_for() {
    let mut run = Direct::new(fields(vec![container("app")]));
    let acts = run.say(Event::Granted);
    run.works(&acts[0]);
    let mut pull = acts[1].clone();
    let mut pauses = Vec::new();
    for _ in 0..8 {
        assert!(run.fails(&pull, FailureKind::EngineAway).is_empty());
        pauses.push(run.task.next_deadline().unwrap().since(run.now).0);
        pull = run.deadline().remove(0);
    }
    assert_eq!(pauses, [100, 200, 400, 800, 1600, 3200, 5000, 5000]);
    assert_eq!(run.told().waiting_for, "the container engine, which does not answer");
    assert_eq!(run.told().containers[0].reason, None, "it waits; nothing is wrong with it");
    run.all_work(vec![pull]);
    assert_eq!(run.told().status, TaskStatus::Running);
    assert_eq!(run.told().containers[0].reason, None);
}

#[test]
fn a_dependency_has_so_long_to_become_healthy() {
    let mut db = container("db");
    db.health_check = Some(health_check());
    db.start_timeout = Some(Millis::from_secs(5));
    let mut app = container("app");
    app.depends_on = vec![after("db", Condition::Healthy)];
    let mut run = Direct::up(fields(vec![db, app]));
    let waits = run.task.container_waits(run.now);
    assert_eq!(waits, [(name("app"), "container db to become HEALTHY".to_owned())]);
    assert_eq!(run.task.next_deadline(), Some(START.after(Millis::from_secs(5))));
    let db = run.container("db").id.clone().unwrap();
    run.see("db", with_health(db.as_str(), Health::Unhealthy));
    let acts = run.deadline();
    assert_eq!(words(&acts), ["stop db"]);
    run.all_work(acts);
    let reason = "TaskDependencyError: container db did not become HEALTHY within 5 s";
    assert_eq!(run.told().containers[1].reason.as_deref(), Some(reason));
    let stop = run.told().stop.clone().unwrap();
    let of_app = reason.replace(": ", ": container app: ");
    assert_eq!((stop.code, stop.reason), (StopCode::TaskFailedToStart, of_app));
}

#[test]
fn a_dependency_that_becomes_healthy_in_time_lets_the_other_start() {
    let mut db = container("db");
    db.health_check = Some(health_check());
    db.start_timeout = Some(Millis::from_secs(5));
    let mut app = container("app");
    app.depends_on = vec![after("db", Condition::Healthy)];
    let mut run = Direct::up(fields(vec![db, app]));
    let db = run.container("db").id.clone().unwrap();
    let acts = run.see("db", with_health(db.as_str(), Health::Healthy));
    assert_eq!(words(&acts), ["start app"]);
    run.all_work(acts);
    assert_eq!(run.task.next_deadline(), None);
    assert_eq!(run.told().containers[0].health, Some(Health::Healthy));
}

#[test]
fn a_container_killed_for_memory_says_so() {
    let mut run = Direct::up(fields(vec![container("app")]));
    let app = run.container("app").id.clone().unwrap();
    let exit = Exit {
        code: 137,
        oom_killed: true,
        task_memory_peak: None,
        with_engine: false,
        error: None,
        started_at: Some(START),
        finished_at: Some(START.after(Millis(9))),
    };
    let acts = run.see("app", Fact::Exited { id: app, exit });
    run.all_work(acts);
    let told = &run.told().containers[0];
    let reason = "OutOfMemoryError: Container killed due to memory usage (limit 64 MiB)";
    assert_eq!((told.exit_code, told.reason.as_deref()), (Some(137), Some(reason)));
}

#[test]
fn a_stop_that_does_not_work_becomes_a_kill() {
    let mut run = Direct::up(fields(vec![container("app")]));
    let stop = run.stop();
    let app = run.container("app").id.clone().unwrap();
    let still = Outcome::Fact(running(app.as_str(), START));
    assert!(run.done(attempt(&stop[0]), still).is_empty());
    let again = run.deadline();
    let Act::Stop { failed_before, .. } = &again[0] else { panic!("{again:?}") };
    assert_eq!(*failed_before, 1);
    run.all_work(again);
    assert_eq!(run.told().status, TaskStatus::Stopped);
}

#[test]
fn a_stop_that_the_engine_may_not_have_heard_is_asked_for_anew_with_all_its_grace() {
    let mut run = Direct::up(fields(vec![container("app")]));
    let mut stop = run.stop();
    for _ in 0..3 {
        assert!(run.fails(&stop[0], FailureKind::EngineAway).is_empty());
        stop = run.deadline();
        let Act::Stop { failed_before, .. } = &stop[0] else { panic!("{stop:?}") };
        assert_eq!(*failed_before, 0, "the next one must not be a kill");
    }
    run.all_work(stop);
    assert_eq!(run.told().status, TaskStatus::Stopped);
    assert_eq!(run.told().containers[0].exit_code, Some(143));
}

#[test]
fn a_running_task_is_adopted_from_its_labels() {
    let mut app = container("app");
    app.ports = vec![port(80, None)];
    let task = TaskFields { cpu: Some(CpuUnits(256)), ..fields(vec![app]) };
    let spec = Arc::new(TaskSpec::try_from(task).unwrap());
    let binding = PortBinding {
        container: name("app"),
        container_ports: PortRange::single(80).unwrap(),
        host_ports: PortRange::single(40000).unwrap(),
        protocol: Protocol::Tcp,
    };
    let labels = std::slice::from_ref(&binding);
    let mut run = Direct::of(Task::adopted(spec, Settings::default(), labels, &BTreeMap::new(), START));
    assert!(run.task.holds_grant());
    let acts = run.say(Event::Restored(vec![(name("app"), running("app-1", START))]));
    // Its cgroup is held anew; nothing is pulled, made or started.
    assert_eq!(words(&acts), ["acquire cgroup", "acquire cpu bound"]);
    run.all_work(acts);
    assert_eq!(run.told().status, TaskStatus::Running);
    assert_eq!(run.told().containers[0].bindings, [binding]);
    let acts = run.stop();
    let acts = words(&run.all_work(acts));
    let expected = ["stop app", "release cgroup", "release ports of app", "return the grant"];
    assert_eq!(acts, expected);
}

#[test]
fn gpus_are_chosen_before_a_container_is_made_and_are_its_until_the_task_is_gone() {
    let mut app = container("app");
    app.gpus = 2;
    let mut run = Direct::new(fields(vec![app, container("side")]));
    assert_eq!(run.task.spec().need().gpus, 2);
    let acts = run.say(Event::Granted);
    assert_eq!(
        words(&acts),
        ["acquire cgroup", "acquire image app", "acquire gpus of app", "acquire image side"]
    );
    assert!(run.works(&acts[0]).is_empty() && run.works(&acts[1]).is_empty());
    // Which they are is told at once: an image for them takes its time.
    let create = run.works(&acts[2]);
    let chosen = [gpu("app", 0), gpu("app", 1)];
    assert_eq!((run.told().status, &run.told().containers[0].gpus[..]), (TaskStatus::Pending, &chosen[..]));
    let Act::Create { gpus, .. } = &create[0] else { panic!("{create:?}") };
    assert_eq!(gpus[..], chosen);
    run.all_work(create.into_iter().chain(acts.into_iter().skip(3)).collect());
    assert_eq!(run.told().status, TaskStatus::Running);
    assert!(run.told().containers[1].gpus.is_empty());

    // The agent starts again: what was persisted says which they are, and nothing is chosen anew.
    let state = serde_json::from_str(&serde_json::to_string(run.task.state()).unwrap()).unwrap();
    let mut run = Direct::of(Task::restored(Arc::clone(run.task.spec()), Settings::default(), state));
    let facts = run
        .task
        .state()
        .containers
        .iter()
        .map(|c| (c.name.clone(), running(c.id.as_ref().unwrap().as_str(), START)));
    let facts = facts.collect();
    assert!(run.say(Event::Restored(facts)).is_empty());
    assert_eq!(run.task.gpus(&name("app")), chosen);
    let acts = run.stop();
    let acts = words(&run.all_work(acts));
    assert_eq!(acts[2..], ["release cgroup", "release gpus of app", "return the grant"]);
    // Who looks later still sees which it had.
    assert_eq!(run.told().containers[0].gpus[..], chosen);
}

#[test]
fn a_container_of_a_lost_state_keeps_the_gpus_of_its_labels() {
    let mut app = container("app");
    app.gpus = 1;
    let spec = Arc::new(TaskSpec::try_from(fields(vec![app])).unwrap());
    let labels = BTreeMap::from([(name("app"), vec![gpu("app", 7)])]);
    let mut run = Direct::of(Task::adopted(spec, Settings::default(), &[], &labels, START));
    let acts = run.say(Event::Restored(vec![(name("app"), running("app-1", START))]));
    assert_eq!(words(&acts), ["acquire cgroup"]);
    run.all_work(acts);
    assert_eq!(run.told().containers[0].gpus, [gpu("app", 7)]);
    let acts = run.stop();
    let acts = words(&run.all_work(acts));
    assert_eq!(acts, ["stop app", "release cgroup", "release gpus of app", "return the grant"]);
}

#[test]
fn a_stopped_container_that_somebody_starts_is_stopped_again() {
    let mut side = container("side");
    side.essential = false;
    let mut run = Direct::up(fields(vec![container("app"), side]));
    let side = run.container("side").id.clone().unwrap();
    assert!(run.see("side", exited(side.as_str(), 0)).is_empty());
    // A late look at the life that ended is nothing new.
    assert!(run.see("side", running(side.as_str(), START)).is_empty());
    let acts = run.see("side", running(side.as_str(), START.after(Millis(500))));
    assert_eq!(words(&acts), ["stop side"]);
    run.all_work(acts);
    assert_eq!(run.container("side").status, ContainerStatus::Stopped);
    assert_eq!(run.task.state().status, TaskStatus::Running);
    assert_eq!(run.told().containers[1].exit_code, Some(0));
}

#[test]
fn a_task_that_the_host_can_never_hold_ends_at_once() {
    let mut run = Direct::new(fields(vec![container("app")]));
    let missing = vec![Shortfall::Memory { short_by: Mebibytes(12) }];
    assert_eq!(words(&run.say(Event::Never(missing))), ["return the grant"]);
    assert_eq!(run.told().status, TaskStatus::Stopped);
    let stop = run.told().stop.clone().unwrap();
    assert_eq!(stop.code, StopCode::TaskFailedToStart);
    assert!(stop.reason.ends_with("can never hold the task: memory, 12 MiB short"), "{stop:?}");
}

#[test]
fn what_is_kept_elsewhere_and_does_not_come_is_told_as_what_is_waited_for() {
    let mut app = container("app");
    app.secrets = vec![SecretRef { name: "PASSWORD".to_owned(), value_from: "db".to_owned() }];
    let mut run = Direct::new(fields(vec![app]));
    let acts = run.say(Event::Granted);
    assert_eq!(run.task.waiting_for(), "");
    let fetch = acts.iter().find(|act| words(std::slice::from_ref(act)) == ["acquire environment"]).unwrap();
    assert!(run.fails(fetch, FailureKind::TimedOut).is_empty());
    assert_eq!(run.told().waiting_for, failure(FailureKind::TimedOut).detail);
    let again = run.deadline();
    assert_eq!(words(&again), ["acquire environment"]);
    run.works(&again[0]);
    assert_eq!(run.told().waiting_for, "");
}

#[test]
fn a_link_to_a_container_that_has_ended_is_not_waited_for() {
    let mut job = container("job");
    job.essential = false;
    let mut app = container("app");
    app.image = "slow".to_owned();
    app.links = vec![Link { container: name("job"), alias: "job".to_owned() }];
    let mut task = fields(vec![job, app]);
    task.network_mode = NetworkMode::Bridge;
    let mut run = Direct::new(task);
    let acts = run.say(Event::Granted);
    // The job is through before the other's image has come.
    let (slow, rest): (Vec<Act>, Vec<Act>) = acts.into_iter().partition(|act| word(act).contains("slow"));
    run.all_work(rest);
    run.see("job", exited("job-1", 0));
    let acts = run.works(&slow[0]);
    assert_eq!(words(&acts), ["create app"]);
}
