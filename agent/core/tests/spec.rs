//! What a specification is refused for: the field and the problem, one by one.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on fails")]

#[allow(dead_code, reason = "each test file uses its part of the world")]
mod support;

use berth_core::spec::{
    Condition, ContainerSpec, Firelens, MAX_CONTAINERS, NetworkMode, PortMapping, RouterConfig, RouterKind,
    TaskFields, TaskSpec, router_owner,
};
use berth_core::units::{CpuUnits, Mebibytes, PortRange, Protocol};

use proptest::collection::{btree_set, vec};
use proptest::prelude::*;
use support::specs::{after, cases, container, fields, health_check, name, port, router, secret, to_router};

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

proptest! {
    #![proptest_config(cases(500, "spec"))]

    /// Each port on its own says the same as ranges that are compared.
    #[test]
    fn host_ports_are_refused_for_being_used_twice_and_for_nothing_else(
        bounds in vec((btree_set(1_u16..40, 2), any::<bool>()), 1..6),
    ) {
        let ranges = || bounds.iter().map(|(ends, udp)| (ends.first().unwrap(), ends.last().unwrap(), udp));
        let mut ports = std::collections::BTreeSet::new();
        let twice = ranges().find_map(|(first, last, udp)| (*first..=*last).find(|port| !ports.insert((*port, udp))));
        let mapping = |(first, last, udp): (&u16, &u16, &bool)| {
            let protocol = if *udp { Protocol::Udp } else { Protocol::Tcp };
            PortMapping { container: PortRange::new(*first, *last).unwrap(), protocol, ..port(1, None) }
        };
        let host = TaskFields {
            network_mode: NetworkMode::Host,
            ..app(|c| c.ports = ranges().map(mapping).collect())
        };
        match (TaskSpec::try_from(host), twice) {
            (Ok(spec), None) => {
                let need = spec.need().ports;
                prop_assert_eq!(need.tcp.len() + need.udp.len(), ports.len());
            }
            (Err(refusal), Some(port)) => {
                let said = format!("host port {port} is used twice in the task");
                prop_assert!(refusal.problem.ends_with(&said), "{} for {}", refusal, said);
            }
            (found, expected) => prop_assert!(false, "{:?}, {:?}", found.map(|_| ()), expected),
        }
    }
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

/// A log router, and an app that logs to it, both changed.
fn routed(change: impl FnOnce(&mut ContainerSpec, &mut ContainerSpec)) -> TaskFields {
    let (mut log, mut app) = (container("log"), container("app"));
    log.firelens = Some(router());
    app.log = Some(to_router());
    change(&mut log, &mut app);
    fields(vec![app, log])
}

#[test]
fn a_log_router_is_refused_for() {
    let nowhere = routed(|log, _| log.firelens = None);
    let problem = "awsfirelens needs a container with a firelensConfiguration in the task";
    refused(nowhere, "containers[app].logConfiguration", problem);
    let two = routed(|_, app| app.firelens = Some(router()));
    refused(two, "containers[log].firelensConfiguration", "app is the log router of the task, which has one");
    let waits = routed(|log, _| log.depends_on = vec![after("app", Condition::Start)]);
    refused(waits, "containers[log].dependsOn", "app logs to it and so starts after it");
    let named = routed(|log, _| log.user = Some("fluent".to_owned()));
    let problem = "\"fluent\" is neither root nor a number: a log router has UID, UID:GID or UID:GROUP";
    refused(named, "containers[log].user", problem);
    let own = RouterConfig::File("/fluent-bit/etc/fluent-bit.conf".to_owned());
    let inside_itself = routed(|log, _| log.firelens = Some(Firelens { config: Some(own), ..router() }));
    let problem = "options: /fluent-bit/etc/fluent-bit.conf is where the generated configuration is; \
                   have your own elsewhere";
    refused(inside_itself, "containers[log].firelensConfiguration", problem);
}

#[test]
fn the_way_to_a_log_router_is_refused_for() {
    let with = |name: &str, value: &str| {
        let (name, value) = (name.to_owned(), value.to_owned());
        routed(|_, app| app.log.as_mut().unwrap().options = [(name, value)].into())
    };
    for (fields, problem) in [
        (
            with("region", "r"),
            "missing output key Name which is required for firelens configuration of type fluentbit",
        ),
        (with("Name", "x\n[OUTPUT]"), "option \"Name\": a value is one line"),
        (with("Na me", "x"), "option \"Na me\": a name has no spaces"),
        (
            with("log-driver-buffer-limit", "536870912"),
            "option log-driver-buffer-limit is \"536870912\", no number below 536870912",
        ),
    ] {
        refused(fields, "containers[app].logConfiguration", problem);
    }
    for (name, value) in [("include-pattern", "^a"), ("log-driver-buffer-limit", "0"), ("Name", "")] {
        TaskSpec::try_from(with(name, value)).unwrap();
    }
}

#[test]
fn what_logs_to_the_router_depends_on_it_unless_it_is_the_router() {
    let spec = TaskSpec::try_from(routed(|log, _| log.log = Some(to_router()))).unwrap();
    assert_eq!(spec.container(&name("app")).unwrap().depends_on, [after("log", Condition::Start)]);
    assert_eq!(spec.container(&name("log")).unwrap().depends_on, []);
    let healthy = TaskSpec::try_from(routed(|log, app| {
        log.health_check = Some(health_check());
        app.depends_on = vec![after("log", Condition::Healthy)];
    }));
    assert_eq!(healthy.unwrap().containers[0].depends_on, [after("log", Condition::Healthy)]);
}

#[test]
fn options_of_a_log_router_are_what_ecs_has() {
    let parse = |kind: &str, pairs: &[(&str, &str)]| {
        let pairs = pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Firelens::parse(kind, &pairs.collect())
    };
    assert_eq!(parse("fluentbit", &[]).unwrap(), router());
    let arn = "arn:aws:s3:::bucket/fluent.conf";
    let own = parse(
        "fluentd",
        &[("enable-ecs-log-metadata", "false"), ("config-file-type", "s3"), ("config-file-value", arn)],
    )
    .unwrap();
    assert_eq!((own.kind, own.metadata), (RouterKind::Fluentd, false));
    assert_eq!(own.config, Some(RouterConfig::Object(arn.to_owned())));
    assert_eq!(Firelens::parse(own.kind.as_str(), &own.options()).unwrap(), own);
    let file = parse("fluentbit", &[("config-file-type", "file"), ("config-file-value", "/extra.conf")]);
    assert_eq!(file.unwrap().config, Some(RouterConfig::File("/extra.conf".to_owned())));
    for (kind, options, problem) in [
        ("logstash", &[][..], "\"logstash\" is neither"),
        ("fluentd", &[("config-file", "x")], "\"config-file\" is none of"),
        ("fluentd", &[("enable-ecs-log-metadata", "maybe")], "neither true nor false"),
        ("fluentd", &[("config-file-type", "file")], "needs config-file-value"),
        ("fluentd", &[("config-file-value", "/x")], "needs config-file-type"),
        ("fluentd", &[("config-file-type", "http"), ("config-file-value", "/x")], "neither file nor s3"),
        ("fluentd", &[("config-file-type", "s3"), ("config-file-value", "s3://b/k")], "not the ARN"),
        ("fluentd", &[("config-file-type", "file"), ("config-file-value", "/x\n@include /y")], "no path"),
    ] {
        let refused = parse(kind, options).unwrap_err();
        assert!(refused.contains(problem), "{refused}");
    }
}

#[test]
fn a_secret_option_has_a_variable_of_its_own() {
    let spec = TaskSpec::try_from(routed(|_, app| {
        app.log.as_mut().unwrap().secret_options =
            vec![secret("apikey"), secret("tls.key-passwd"), secret("tls_key_passwd")];
    }))
    .unwrap();
    let variables: Vec<_> = spec.router_secrets().into_iter().map(|secret| secret.variable).collect();
    assert_eq!(variables, ["apikey_0", "tls_key_passwd_0", "tls_key_passwd_0_"]);
    // The values are the router's.
    assert!(!spec.has_values_elsewhere(&spec.containers[0]));
    assert!(spec.has_values_elsewhere(&spec.containers[1]));
}

#[test]
fn the_owner_of_a_log_router_is_a_number() {
    for (user, owner) in [
        ("root", Some((0, None))),
        ("0", Some((0, None))),
        ("1000", Some((1000, None))),
        ("1000:2000", Some((1000, Some(2000)))),
        ("1000:adm", Some((1000, None))),
        ("1000:", None),
        ("1000:1:1", None),
        ("nobody", None),
        ("-1", None),
    ] {
        assert_eq!(router_owner(user), owner, "{user}");
    }
}
