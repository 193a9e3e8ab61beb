//! The configurations as they are generated, and how containers get to their router.

use berth_core::ids::{ContainerName, Family, TaskArn};
use berth_core::spec::{FIRELENS_DRIVER, Firelens, SecretRef, TaskFields};
use berth_core::units::Mebibytes;

use super::*;

const ID: &str = "0123456789abcdef0123456789abcdef";

fn container(name: &str) -> ContainerSpec {
    ContainerSpec::minimal(ContainerName::new(name).unwrap(), name, Mebibytes(64))
}

fn logger(name: &str, options: &[(&str, &str)], secrets: &[&str]) -> ContainerSpec {
    let options = options.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    let secret =
        |name: &&str| SecretRef { name: (*name).to_owned(), value_from: "kept/elsewhere".to_owned() };
    let log = LogConfiguration {
        driver: FIRELENS_DRIVER.to_owned(),
        options: options.collect(),
        secret_options: secrets.iter().map(secret).collect(),
    };
    ContainerSpec { log: Some(log), ..container(name) }
}

fn task(
    mode: NetworkMode,
    kind: RouterKind,
    config: Option<RouterConfig>,
    loggers: Vec<ContainerSpec>,
) -> TaskSpec {
    let firelens = Some(Firelens { kind, metadata: true, config });
    let router = ContainerSpec { firelens, memory_reservation: Some(Mebibytes(50)), ..container("router") };
    TaskSpec::try_from(TaskFields {
        arn: TaskArn::new(format!("arn:aws:ecs:r:1:task/blue/{ID}")).unwrap(),
        family: Family::new("web").unwrap(),
        revision: 3,
        network_mode: mode,
        cpu: None,
        memory: None,
        containers: loggers.into_iter().chain([router]).collect(),
        attachment: None,
        pid_mode: None,
        ipc_mode: None,
        volumes: Vec::new(),
        task_role: None,
        fault_injection: false,
    })
    .unwrap()
}

fn changed(spec: TaskSpec, change: impl FnOnce(&mut TaskFields)) -> TaskSpec {
    let mut fields = TaskFields::from(spec);
    change(&mut fields);
    TaskSpec::try_from(fields).unwrap()
}

fn routers(data_dir: &str) -> LogRouters {
    LogRouters::new(Path::new(data_dir), Arc::new(Objects::new(None)), true)
}

fn file() -> Option<RouterConfig> {
    Some(RouterConfig::File("/extra.conf".to_owned()))
}

#[test]
fn fluent_bit_on_the_bridge() {
    let own = Some(RouterConfig::Object("arn:aws:s3:::bucket/fluent.conf".to_owned()));
    let loggers = vec![
        logger(
            "app",
            &[
                ("Name", "http"),
                ("Host", "logs.example"),
                ("include-pattern", "^GET"),
                ("exclude-pattern", "health"),
                ("log-driver-buffer-limit", "1000"),
            ],
            &["Http_Passwd"],
        ),
        logger("quiet", &[], &[]),
        logger("side", &[("Name", "stdout")], &[]),
    ];
    let expected = "\
[INPUT]
    Name forward
    Mem_Buf_Limit 25MB
    unix_path /var/run/fluent.sock

[INPUT]
    Name forward
    Listen 0.0.0.0
    Port 24224

[INPUT]
    Name tcp
    Tag firelens-healthcheck
    Listen 127.0.0.1
    Port 8877

[FILTER]
    Name grep
    Match app-firelens*
    Regex log ^GET

[FILTER]
    Name grep
    Match app-firelens*
    Exclude log health

[FILTER]
    Name record_modifier
    Match *
    Record ecs_cluster blue
    Record ecs_task_arn arn:aws:ecs:r:1:task/blue/0123456789abcdef0123456789abcdef
    Record ecs_task_definition web:3

@INCLUDE /fluent-bit/etc/external.conf

[OUTPUT]
    Name null
    Match firelens-healthcheck

[OUTPUT]
    Name http
    Match app-firelens*
    Host logs.example
    Http_Passwd ${Http_Passwd_0}

[OUTPUT]
    Name stdout
    Match side-firelens*
";
    let spec = task(NetworkMode::Bridge, RouterKind::Fluentbit, own, loggers);
    assert_eq!(configuration(&spec).unwrap(), expected);
}

#[test]
fn fluentd_in_a_network_of_the_tasks_own() {
    let loggers = vec![logger(
        "app",
        &[("@type", "http"), ("endpoint", "http://x"), ("include-pattern", "^GET"), ("exclude-pattern", "h")],
        &["token"],
    )];
    let expected = "\
<source>
    @type unix
    path /var/run/fluent.sock
</source>

<source>
    @type forward
    bind 127.0.0.1
    port 24224
</source>

<filter app-firelens**>
    @type grep
    <regexp>
        key log
        pattern ^GET
    </regexp>
</filter>

<filter app-firelens**>
    @type grep
    <exclude>
        key log
        pattern h
    </exclude>
</filter>

<filter **>
    @type record_transformer
    <record>
        ecs_cluster blue
        ecs_task_arn arn:aws:ecs:r:1:task/blue/0123456789abcdef0123456789abcdef
        ecs_task_definition web:3
    </record>
</filter>

@include /extra.conf

<match app-firelens**>
    @type http
    endpoint http://x
    token \"#{ENV['token_0']}\"
</match>
";
    let spec = task(NetworkMode::Awsvpc, RouterKind::Fluentd, file(), loggers);
    assert_eq!(configuration(&spec).unwrap(), expected);
}

#[test]
fn nobody_but_the_task_reaches_the_router_of_one_on_the_hosts_network() {
    let expected = "\
[INPUT]
    Name forward
    Mem_Buf_Limit 25MB
    unix_path /var/run/fluent.sock

@INCLUDE /extra.conf
";
    for mode in [NetworkMode::Host, NetworkMode::None] {
        let spec = task(mode, RouterKind::Fluentbit, file(), vec![logger("app", &[], &[])]);
        let spec = changed(spec, |task| task.containers[1].firelens.as_mut().unwrap().metadata = false);
        assert_eq!(configuration(&spec).unwrap(), expected, "{mode:?}");
    }
}

#[test]
fn a_router_holds_half_of_its_memory() {
    for (soft, hard, most) in [(Some(50), Some(64), 25), (None, Some(300), 150), (None, None, 25)] {
        let spec = task(NetworkMode::Host, RouterKind::Fluentbit, None, vec![logger("app", &[], &[])]);
        let spec = changed(spec, |task| {
            task.memory = Some(Mebibytes(512));
            task.containers[1].memory_reservation = soft.map(Mebibytes);
            task.containers[1].memory = hard.map(Mebibytes);
        });
        let config = configuration(&spec).unwrap();
        assert!(config.contains(&format!("Mem_Buf_Limit {most}MB\n")), "{config}");
    }
}

#[test]
fn output_goes_to_the_socket_under_a_tag_of_its_own() {
    let app = logger("app", &[("Name", "http"), ("log-driver-buffer-limit", "7")], &["token"]);
    let mut plain = container("plain");
    plain.log = Some(LogConfiguration {
        driver: "json-file".to_owned(),
        options: [("max-size".to_owned(), "1m".to_owned())].into(),
        secret_options: Vec::new(),
    });
    let spec = task(NetworkMode::Bridge, RouterKind::Fluentbit, None, vec![app, plain.clone()]);
    let log = routers("/data #1").log(&spec, &spec.containers[0]).unwrap();
    let options: Vec<_> = log.options.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    assert_eq!((log.driver.as_str(), log.secret_options.len()), ("fluentd", 0));
    assert_eq!(
        options,
        [
            ("fluentd-address", &*format!("unix:///data%20%231/firelens/{ID}/socket/fluent.sock")),
            ("fluentd-async", "true"),
            ("fluentd-buffer-limit", "7"),
            ("fluentd-sub-second-precision", "true"),
            ("tag", &*format!("app-firelens-{ID}")),
        ]
    );
    let waiting = LogRouters::new(Path::new("/data"), Arc::new(Objects::new(None)), false);
    assert_eq!(waiting.log(&spec, &spec.containers[0]).unwrap().options["fluentd-async"], "false");
    assert_eq!(routers("/data").log(&spec, &spec.containers[1]), plain.log);
    assert_eq!(routers("/data").log(&spec, &container("none")), None);
}

#[test]
fn a_router_has_its_configuration_read_only_and_its_socket() {
    let folder = format!("/data/firelens/{ID}");
    let of = |kind, config| {
        let spec = task(NetworkMode::Bridge, kind, config, vec![logger("app", &[], &[])]);
        assert_eq!(routers("/data").mounts(&spec, &spec.containers[0]), []);
        let mounts = routers("/data").mounts(&spec, &spec.containers[1]);
        mounts.into_iter().map(|m| (m.host_path, m.path, m.read_only)).collect::<Vec<_>>()
    };
    let socket = (format!("{folder}/socket"), "/var/run".to_owned(), false);
    let at = |file: &str, path: &str| (format!("{folder}/config/{file}"), path.to_owned(), true);
    let config = at("fluent.conf", "/fluent-bit/etc/fluent-bit.conf");
    assert_eq!(of(RouterKind::Fluentbit, file()), [config, socket.clone()]);
    let own = Some(RouterConfig::Object("arn:aws:s3:::bucket/fluent.conf".to_owned()));
    assert_eq!(
        of(RouterKind::Fluentd, own),
        [
            at("fluent.conf", "/fluentd/etc/fluent.conf"),
            socket,
            at("external.conf", "/fluentd/etc/external.conf")
        ]
    );
}

#[test]
fn a_container_is_told_where_its_router_listens() {
    let loggers = || vec![logger("app", &[], &[]), container("plain")];
    let told = |mode, kind, at: usize, router_at: Option<[u8; 4]>| {
        let spec = task(mode, kind, None, loggers());
        let found = variables(&spec, &spec.containers[at], router_at.map(IpAddr::from));
        found.into_iter().map(|var| format!("{}={}", var.name, var.value)).collect::<Vec<_>>()
    };
    let (bit, d) = (RouterKind::Fluentbit, RouterKind::Fluentd);
    let at = |host: &str| vec![format!("FLUENT_HOST={host}"), "FLUENT_PORT=24224".to_owned()];
    assert_eq!(told(NetworkMode::Bridge, bit, 0, Some([172, 17, 0, 2])), at("172.17.0.2"));
    assert_eq!(told(NetworkMode::Awsvpc, bit, 0, None), at("127.0.0.1"));
    for (mode, at, router_at) in [
        (NetworkMode::Bridge, 0, None),
        (NetworkMode::Bridge, 1, Some([172, 17, 0, 2])),
        (NetworkMode::Bridge, 2, Some([172, 17, 0, 2])),
        (NetworkMode::Host, 0, None),
    ] {
        assert_eq!(told(mode, bit, at, router_at), Vec::<String>::new(), "{mode:?} {at}");
    }
    assert_eq!(told(NetworkMode::Host, d, 2, None), ["FLUENT_UID=0"]);
}

#[tokio::test]
async fn a_socket_with_too_long_a_path_is_refused_before_the_engine_fails_on_it() {
    let data = tempfile::tempdir().unwrap();
    let spec = task(NetworkMode::Host, RouterKind::Fluentbit, None, vec![logger("app", &[], &[])]);
    let long = data.path().join("x".repeat(60));
    let refused = LogRouters::new(&long, Arc::new(Objects::new(None)), true).prepare(&spec).await;
    let refused = refused.unwrap_err();
    assert!(matches!(&refused, FirelensError::Refused(text) if text.contains("ECS_DATADIR")), "{refused}");
    assert!(!long.exists());
}

#[tokio::test]
async fn what_is_fetched_is_beside_what_is_generated() {
    let data = tempfile::tempdir().unwrap();
    std::fs::create_dir(data.path().join("bucket")).unwrap();
    std::fs::write(data.path().join("bucket/fluent.conf"), "[OUTPUT]\n").unwrap();
    let objects = Arc::new(Objects::new(Some(format!("file://{}", data.path().display()))));
    let routers = LogRouters::new(data.path(), objects, true);
    let of = |object: &str| {
        let own = Some(RouterConfig::Object(format!("arn:aws:s3:::bucket/{object}")));
        task(NetworkMode::Host, RouterKind::Fluentbit, own, vec![logger("app", &[], &[])])
    };
    let refused = routers.prepare(&of("absent.conf")).await.unwrap_err().to_string();
    assert!(
        refused.contains("container router, config-file-value arn:aws:s3:::bucket/absent.conf"),
        "{refused}"
    );
    let spec = of("fluent.conf");
    routers.prepare(&spec).await.unwrap();
    for mount in routers.mounts(&spec, &spec.containers[1]).iter().filter(|mount| mount.read_only) {
        assert!(!std::fs::read_to_string(&mount.host_path).unwrap().is_empty(), "{}", mount.path);
    }
    assert_eq!(routers.list().await.unwrap(), [ID]);
    routers.dismiss(&spec.arn).await.unwrap();
    assert_eq!(routers.list().await.unwrap(), Vec::<String>::new());
}
