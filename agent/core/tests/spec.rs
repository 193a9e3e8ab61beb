//! What a specification is refused for: the field and the problem, one by one.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on fails")]

#[allow(dead_code, reason = "each test file uses its part of the world")]
mod support;

use berth_core::spec::{Condition, ContainerSpec, MAX_CONTAINERS, NetworkMode, TaskFields, TaskSpec};
use berth_core::units::{CpuUnits, Mebibytes, PortRange, Protocol};

use support::specs::{after, container, fields, health_check, name, port};

fn refused(fields: TaskFields, field: &str, problem: &str) {
    let text = serde_json::to_string(&fields).unwrap();
    let refusal = TaskSpec::try_from(fields).unwrap_err();
    assert_eq!((refusal.field.as_str(), refusal.problem.as_str()), (field, problem));
    // And by whichever door it comes in.
    let read = serde_json::from_str::<TaskSpec>(&text).unwrap_err().to_string();
    assert!(read.contains(field) && read.contains(problem), "{read}");
}

/// One container, changed.
fn app(change: impl FnOnce(&mut ContainerSpec)) -> TaskFields {
    let mut app = container("app");
    change(&mut app);
    fields(vec![app])
}

#[test]
fn a_set_of_containers_is_refused_for() {
    refused(fields(vec![]), "containers", "a task has at least one container");
    let many = (0..=MAX_CONTAINERS).map(|n| container(&format!("c{n}")));
    refused(fields(many.collect()), "containers", "11 containers, at most 10");
    refused(fields(vec![container("a"), container("a")]), "containers", "two containers have the same name");
    refused(app(|c| c.essential = false), "containers", "no container is essential");
}

#[test]
fn an_image_is_refused_for() {
    refused(app(|c| c.image = " ".to_owned()), "containers[app].image", "is empty");
}

#[test]
fn memory_is_refused_for() {
    refused(
        app(|c| c.memory = None),
        "containers[app].memory",
        "the task has no memory bound, so memory or memoryReservation is needed",
    );
    refused(
        app(|c| c.memory_reservation = Some(Mebibytes(65))),
        "containers[app].memory",
        "64 MiB is less than memoryReservation, 65 MiB",
    );
    let bound = TaskFields { memory: Some(Mebibytes(63)), ..app(|_| {}) };
    refused(bound, "containers[app].memory", "64 MiB is more than the task's 63 MiB");
}

#[test]
fn memory_is_enough_in_any_of_three_places() {
    let bound = TaskFields { memory: Some(Mebibytes(100)), ..app(|c| c.memory = None) };
    assert_eq!(TaskSpec::try_from(bound).unwrap().need().memory, Mebibytes(100));
    let soft = app(|c| {
        c.memory = None;
        c.memory_reservation = Some(Mebibytes(20));
    });
    assert_eq!(TaskSpec::try_from(soft).unwrap().need().memory, Mebibytes(20));
    let both = app(|c| c.memory_reservation = Some(Mebibytes(64)));
    assert_eq!(TaskSpec::try_from(both).unwrap().need().memory, Mebibytes(64));
}

#[test]
fn ports_are_refused_for() {
    let at = "containers[app].portMappings";
    let beyond = app(|c| {
        c.ports = vec![port(80, Some(65535))];
        c.ports[0].container = PortRange::new(80, 81).unwrap();
    });
    refused(beyond, at, "the host ports reach past 65535");
    let none = TaskFields { network_mode: NetworkMode::None, ..app(|c| c.ports = vec![port(80, None)]) };
    refused(none, at, "not possible in network mode none");
    for network_mode in [NetworkMode::Host, NetworkMode::Awsvpc] {
        let other = TaskFields { network_mode, ..app(|c| c.ports = vec![port(80, Some(8080))]) };
        let problem = "host port and container port must be the same in this network mode";
        refused(other, at, problem);
    }
    let twice = app(|c| c.ports = vec![port(80, Some(8080)), port(81, Some(8080))]);
    refused(twice, at, "tcp host port 8080 is used twice in the task");
    let overlapping = app(|c| {
        c.ports = vec![port(80, Some(8000)), port(90, Some(8005))];
        c.ports[0].container = PortRange::new(80, 89).unwrap();
    });
    refused(overlapping, at, "tcp host port 8005 is used twice in the task");
}

#[test]
fn ports_that_only_look_alike_are_not_refused() {
    let protocols = app(|c| {
        c.ports = vec![port(53, Some(53)), port(53, Some(53))];
        c.ports[1].protocol = Protocol::Udp;
    });
    let spec = TaskSpec::try_from(protocols).unwrap();
    assert!(spec.need().ports.tcp.contains(&53) && spec.need().ports.udp.contains(&53));
    let chosen = TaskSpec::try_from(app(|c| c.ports = vec![port(80, None), port(80, None)]));
    let chosen = chosen.unwrap();
    assert!(chosen.has_dynamic_ports() && chosen.need().ports.is_empty());
    let last = TaskSpec::try_from(app(|c| c.ports = vec![port(80, Some(65535))])).unwrap();
    assert!(last.need().ports.tcp.contains(&65535));
}

#[test]
fn a_health_check_is_refused_for() {
    let mut check = health_check();
    check.command.clear();
    refused(app(|c| c.health_check = Some(check)), "containers[app].healthCheck.command", "is empty");
}

#[test]
fn dependencies_are_refused_for() {
    let at = "containers[app].dependsOn";
    let on = |other: ContainerSpec, condition| {
        let mut app = container("app");
        app.depends_on = vec![after(other.name.as_str(), condition)];
        fields(vec![other, app])
    };
    let nobody = app(|c| c.depends_on = vec![after("ghost", Condition::Start)]);
    refused(nobody, at, "there is no container ghost");
    for condition in [Condition::Complete, Condition::Success] {
        let problem = "db is essential and may not end before the task";
        refused(on(container("db"), condition), at, problem);
    }
    refused(on(container("db"), Condition::Healthy), at, "db has no health check");
    let itself = app(|c| c.depends_on = vec![after("app", Condition::Start)]);
    refused(itself, at, "the dependencies form a cycle");
    let mut a = container("a");
    let mut b = container("b");
    a.depends_on = vec![after("b", Condition::Start)];
    b.depends_on = vec![after("a", Condition::Start)];
    let circle = fields(vec![container("free"), a, b]);
    refused(circle, "containers[a].dependsOn", "the dependencies form a cycle");
}

#[test]
fn what_a_task_needs_is_its_own_bound_or_the_sum_of_its_containers() {
    let mut side = container("side");
    side.cpu = CpuUnits(10);
    side.memory_reservation = Some(Mebibytes(32));
    let mut main = container("main");
    main.cpu = CpuUnits(20);
    let sum = TaskSpec::try_from(fields(vec![side.clone(), main.clone()])).unwrap();
    assert_eq!(sum.need().cpu, CpuUnits(30));
    // The reservation counts before the hard limit.
    assert_eq!(sum.need().memory, Mebibytes(96));
    let own = TaskFields {
        cpu: Some(CpuUnits(256)),
        memory: Some(Mebibytes(512)),
        network_mode: NetworkMode::Awsvpc,
        ..fields(vec![side, main])
    };
    let own = TaskSpec::try_from(own).unwrap().need();
    assert_eq!((own.cpu, own.memory, own.enis), (CpuUnits(256), Mebibytes(512), 1));
    let host = TaskFields { network_mode: NetworkMode::Host, ..app(|c| c.ports = vec![port(80, None)]) };
    assert!(TaskSpec::try_from(host).unwrap().need().ports.tcp.contains(&80));
}

#[test]
fn a_specification_reads_back_as_it_was_written() {
    let mut app = container("app");
    app.ports = vec![port(80, None)];
    app.health_check = Some(health_check());
    let spec = TaskSpec::try_from(fields(vec![app])).unwrap();
    let text = serde_json::to_string(&spec).unwrap();
    assert_eq!(serde_json::from_str::<TaskSpec>(&text).unwrap(), spec);
    assert_eq!(spec.container(&name("app")).map(|c| c.image.as_str()), Some("app"));
    assert_eq!(spec.container(&name("none")), None);
}
