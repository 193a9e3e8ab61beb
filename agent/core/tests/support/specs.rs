//! Task specifications: plain ones to read, and random ones.

use std::fmt;
use std::sync::Arc;

use berth_core::ids::{ContainerName, Family, TaskArn};
use berth_core::spec::{
    Condition, ContainerSpec, Dependency, FIRELENS_DRIVER, Firelens, HealthCheck, LogConfiguration,
    NetworkMode, PortMapping, RestartPolicy, RouterKind, SecretRef, TaskFields, TaskSpec,
};
use berth_core::units::{CpuUnits, Mebibytes, Millis, PortRange, Protocol};
use proptest::collection::vec;
use proptest::prelude::{Just, ProptestConfig, Strategy, any, prop_oneof};
use proptest::test_runner::FileFailurePersistence;

/// So many cases, unless PROPTEST_CASES says otherwise; what failed once is tried first.
pub(crate) fn cases(count: u32, file: &str) -> ProptestConfig {
    const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/proptest-regressions");
    let given = ProptestConfig::default();
    let asked = std::env::var_os("PROPTEST_CASES").is_some();
    let file: &'static str = format!("{FOLDER}/{file}.txt").leak();
    ProptestConfig {
        cases: if asked { given.cases } else { count },
        failure_persistence: Some(Box::new(FileFailurePersistence::Direct(file))),
        max_shrink_iters: 20_000,
        ..given
    }
}

pub(crate) fn arn(n: u32) -> TaskArn {
    TaskArn::new(format!("arn:aws:ecs:eu-west-1:1:task/blue/{n:032x}")).unwrap()
}

pub(crate) fn name(text: &str) -> ContainerName {
    ContainerName::new(text).unwrap()
}

/// An essential container with 64 MiB, its image named like itself.
pub(crate) fn container(text: &str) -> ContainerSpec {
    ContainerSpec::minimal(name(text), text, Mebibytes(64))
}

pub(crate) fn fields(containers: Vec<ContainerSpec>) -> TaskFields {
    TaskFields {
        arn: arn(1),
        family: Family::new("web").unwrap(),
        revision: 1,
        network_mode: NetworkMode::Bridge,
        cpu: None,
        memory: None,
        containers,
        attachment: None,
        pid_mode: None,
        ipc_mode: None,
        volumes: Vec::new(),
        task_role: None,
        fault_injection: false,
    }
}

pub(crate) fn after(text: &str, condition: Condition) -> Dependency {
    Dependency { container: name(text), condition }
}

pub(crate) fn port(container: u16, host: Option<u16>) -> PortMapping {
    PortMapping { container: PortRange::single(container).unwrap(), host, protocol: Protocol::Tcp }
}

/// How a container is a log router.
pub(crate) fn router() -> Firelens {
    Firelens { kind: RouterKind::Fluentbit, metadata: true, config: None }
}

/// Output that goes to the log router.
pub(crate) fn to_router() -> LogConfiguration {
    LogConfiguration {
        driver: FIRELENS_DRIVER.to_owned(),
        options: [("Name".to_owned(), "http".to_owned())].into(),
        secret_options: Vec::new(),
    }
}

/// A secret of that name.
pub(crate) fn secret(text: &str) -> SecretRef {
    SecretRef { name: text.to_owned(), value_from: "db".to_owned() }
}

pub(crate) fn health_check() -> HealthCheck {
    HealthCheck {
        command: vec!["CMD".to_owned(), "true".to_owned()],
        interval: Millis(1_000),
        timeout: Millis(1_000),
        retries: 3,
        start_period: Millis(0),
    }
}

#[derive(Debug, Clone)]
struct Draft {
    essential: bool,
    image: u8,
    checked: bool,
    start_timeout: Option<u64>,
    stop_timeout: Option<u64>,
    ports: u8,
    secret: bool,
    logs: bool,
    gpus: u32,
    restarts: Option<u64>,
    depends_on: Vec<Option<Condition>>,
}

fn condition() -> impl Strategy<Value = Condition> {
    prop_oneof![
        Just(Condition::Start),
        Just(Condition::Complete),
        Just(Condition::Success),
        Just(Condition::Healthy),
    ]
}

fn draft() -> impl Strategy<Value = Draft> {
    (
        any::<bool>(),
        0..2u8,
        any::<bool>(),
        proptest::option::of(500..5_000u64),
        proptest::option::of(1_000..60_000u64),
        0..4u8,
        any::<bool>(),
        any::<bool>(),
        prop_oneof![4 => Just(0u32), 1 => 1..3u32],
        proptest::option::weighted(0.2, 0..3u64),
        vec(proptest::option::of(condition()), 3),
    )
        .prop_map(
            |(
                essential,
                image,
                checked,
                start_timeout,
                stop_timeout,
                ports,
                secret,
                logs,
                gpus,
                restarts,
                depends_on,
            )| Draft {
                essential,
                image,
                checked,
                start_timeout,
                stop_timeout,
                ports,
                secret,
                logs,
                gpus,
                restarts,
                depends_on,
            },
        )
}

/// A task that shows in a few lines what matters of it.
#[derive(Clone)]
pub(crate) struct Short(pub(crate) Arc<TaskSpec>);

impl fmt::Debug for Short {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} cpu {:?}", self.0.network_mode.as_str(), self.0.cpu)?;
        for c in &self.0.containers {
            let needs: Vec<_> = c.depends_on.iter().map(short).collect();
            write!(
                f,
                "\n  {} {} essential {} checked {} restarts {:?} startTimeout {:?} ports {:?} router {} logs {} after {needs:?}",
                c.name,
                c.image,
                c.essential,
                c.health_check.is_some(),
                c.restart_policy.as_ref().map(|policy| policy.attempt_period),
                c.start_timeout,
                c.ports.iter().map(|p| p.host).collect::<Vec<_>>(),
                c.firelens.is_some(),
                c.logs_to_router(),
            )?;
        }
        Ok(())
    }
}

fn short(dependency: &Dependency) -> String {
    format!("{} {:?}", dependency.container, dependency.condition)
}

/// Any task of one to four containers.
pub(crate) fn any_task() -> impl Strategy<Value = Short> {
    let mode = prop_oneof![
        3 => Just(NetworkMode::Bridge),
        1 => Just(NetworkMode::Host),
        1 => Just(NetworkMode::None),
        2 => Just(NetworkMode::Awsvpc),
    ];
    let cpu = proptest::option::of(Just(CpuUnits(256)));
    (vec(draft(), 1..=4), mode, cpu, vec(any::<bool>(), 4)).prop_map(|(drafts, mode, cpu, flags)| {
        let &[backwards, role, router, fault_injection] = &flags[..] else { panic!("four flags") };
        Short(build(&drafts, mode, cpu, Flags { backwards, role, router, fault_injection }))
    })
}

#[derive(Debug, Clone, Copy)]
struct Flags {
    backwards: bool,
    role: bool,
    fault_injection: bool,
    /// Whether the first container is the log router.
    router: bool,
}

fn build(drafts: &[Draft], mode: NetworkMode, cpu: Option<CpuUnits>, flags: Flags) -> Arc<TaskSpec> {
    let mut containers: Vec<ContainerSpec> = Vec::new();
    let last = drafts.len() - 1;
    let nobody = !drafts.iter().any(|d| d.essential);
    for (at, draft) in drafts.iter().enumerate() {
        let mut spec = container(&format!("c{at}"));
        spec.essential = draft.essential || (nobody && at == last);
        spec.image = format!("image{}", draft.image);
        spec.health_check = draft.checked.then(health_check);
        spec.start_timeout = draft.start_timeout.map(Millis);
        spec.stop_timeout = draft.stop_timeout.map(Millis);
        spec.ports = ports(draft.ports, at, mode);
        if draft.secret {
            spec.secrets = vec![secret("PASSWORD")];
        }
        if flags.router && at == 0 {
            spec.firelens = Some(router());
        }
        if flags.router && draft.logs {
            let secret_options = draft.secret.then(|| secret("token")).into_iter().collect();
            spec.log = Some(LogConfiguration { secret_options, ..to_router() });
        }
        spec.gpus = draft.gpus;
        spec.restart_policy = draft
            .restarts
            .map(|period| RestartPolicy { ignored_exit_codes: vec![0], attempt_period: Millis(period) });
        let wanted = containers.iter().zip(&draft.depends_on);
        spec.depends_on = wanted
            .filter_map(|(other, condition)| {
                let condition = match (*condition)? {
                    Condition::Complete | Condition::Success if other.essential => Condition::Start,
                    Condition::Healthy if other.health_check.is_none() => Condition::Start,
                    possible => possible,
                };
                Some(after(other.name.as_str(), condition))
            })
            .collect();
        containers.push(spec);
    }
    if flags.backwards {
        containers.reverse();
    }
    let task_role = flags.role.then(|| "arn:aws:iam::1:role/web".to_owned());
    let fault_injection = flags.fault_injection;
    let task = TaskFields { network_mode: mode, cpu, task_role, fault_injection, ..fields(containers) };
    Arc::new(TaskSpec::try_from(task).expect("a specification that holds"))
}

fn ports(kind: u8, at: usize, mode: NetworkMode) -> Vec<PortMapping> {
    let own = 1000 + 10 * u16::try_from(at).unwrap();
    match (mode, kind) {
        (NetworkMode::None, _) | (_, 0) => Vec::new(),
        (NetworkMode::Bridge, 1) => vec![port(80, None), port(own, Some(own))],
        (NetworkMode::Bridge, _) => vec![port(80, None)],
        _ => vec![port(own, Some(own))],
    }
}

/// The same task, where nobody is to be both healthy and at its end, or ends again and again.
pub(crate) fn steady(spec: &TaskSpec) -> Arc<TaskSpec> {
    changed(spec, |container| container.restart_policy = None)
}

/// The same, and without limits on how long a dependency may take.
pub(crate) fn patient(spec: &TaskSpec) -> Arc<TaskSpec> {
    changed(spec, |container| container.start_timeout = None)
}

fn changed(spec: &TaskSpec, change: impl Fn(&mut ContainerSpec)) -> Arc<TaskSpec> {
    let mut fields = TaskFields::from(spec.clone());
    let needs = fields.containers.iter().flat_map(|c| c.depends_on.clone());
    let healthy: Vec<_> = needs.filter(|d| d.condition == Condition::Healthy).map(|d| d.container).collect();
    for container in &mut fields.containers {
        for dependency in &mut container.depends_on {
            let ends = matches!(dependency.condition, Condition::Complete | Condition::Success);
            if ends && healthy.contains(&dependency.container) {
                dependency.condition = Condition::Start;
            }
        }
        change(container);
    }
    Arc::new(TaskSpec::try_from(fields).expect("still holds"))
}
