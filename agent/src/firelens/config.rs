//! What a task's log router is told: its configuration, in the form of Fluent Bit or of Fluentd. Pure.
//!
//! Inputs, filters and outputs are those that ECS's agent gives a router, so that a configuration of the
//! user's own can rely on the same tags and the same order. A secret option is never in it: it names a
//! variable of the router's environment.

use std::collections::BTreeMap;
use std::fmt::Write;

use berth_core::spec::{
    BUFFER_LIMIT, ContainerSpec, EXCLUDE_PATTERN, Firelens, INCLUDE_PATTERN, NetworkMode, RouterConfig,
    RouterKind, TaskSpec,
};

use super::{PORT, SOCKET};

/// Where the router of a bridge listens, and where that of a task that has a network of its own.
const EVERYWHERE: &str = "0.0.0.0";
const LOCAL: &str = "127.0.0.1";
/// What health checks of the router in ECS's examples talk to, and the tag of what they say.
const HEALTH_PORT: &str = "8877";
const HEALTH_TAG: &str = "firelens-healthcheck";
/// What Fluent Bit may hold in memory, in MiB, where the container has no bound to halve.
const DEFAULT_BUFFER: u32 = 25;

/// The configuration of the task's log router; `None` where it has none.
pub(super) fn configuration(spec: &TaskSpec) -> Option<String> {
    let (router, firelens) = spec.router()?;
    let plan = Plan::of(spec, router, firelens);
    Some(match firelens.kind {
        RouterKind::Fluentbit => plan.fluent_bit(),
        RouterKind::Fluentd => plan.fluentd(),
    })
}

/// A plugin with its options.
struct Plugin {
    name: String,
    tag: String,
    options: BTreeMap<String, String>,
}

impl Plugin {
    fn new(name: &str, tag: &str, options: &[(&str, &str)]) -> Self {
        let options = options.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Self { name: name.to_owned(), tag: tag.to_owned(), options: options.collect() }
    }
}

/// What a container's output is filtered by: (tag, pattern).
type Pattern = (String, String);

#[derive(Default)]
struct Plan {
    inputs: Vec<Plugin>,
    includes: Vec<Pattern>,
    excludes: Vec<Pattern>,
    fields: Vec<(&'static str, String)>,
    own: Option<String>,
    outputs: Vec<Plugin>,
}

impl Plan {
    fn of(spec: &TaskSpec, router: &ContainerSpec, firelens: &Firelens) -> Self {
        let mut plan = Self::default();
        plan.listen(spec.network_mode, router, firelens.kind);
        if firelens.metadata {
            plan.fields = vec![
                ("ecs_cluster", spec.arn.cluster().to_owned()),
                ("ecs_task_arn", spec.arn.to_string()),
                ("ecs_task_definition", format!("{}:{}", spec.family, spec.revision)),
            ];
        }
        plan.own = firelens.config.as_ref().map(|config| match config {
            RouterConfig::File(path) => path.clone(),
            RouterConfig::Object(_) => firelens.kind.fetched_path().to_owned(),
        });
        for container in spec.containers.iter().filter(|container| container.logs_to_router()) {
            plan.route(spec, container, firelens.kind);
        }
        plan
    }

    fn listen(&mut self, mode: NetworkMode, router: &ContainerSpec, kind: RouterKind) {
        self.inputs.push(match kind {
            RouterKind::Fluentd => Plugin::new("unix", "", &[("path", SOCKET)]),
            RouterKind::Fluentbit => {
                let memory = router.memory_reservation.or(router.memory).map(|memory| memory.0 / 2);
                let most = format!("{}MB", memory.filter(|half| *half > 0).unwrap_or(DEFAULT_BUFFER));
                Plugin::new("forward", "", &[("unix_path", SOCKET), ("Mem_Buf_Limit", &most)])
            }
        });
        let address = match mode {
            NetworkMode::Bridge => EVERYWHERE,
            NetworkMode::Awsvpc => LOCAL,
            // Everybody on the host would reach it there, or nobody.
            NetworkMode::Host | NetworkMode::None => return,
        };
        let port = PORT.to_string();
        match kind {
            RouterKind::Fluentd => {
                self.inputs.push(Plugin::new("forward", "", &[("bind", address), ("port", &port)]));
            }
            RouterKind::Fluentbit => {
                self.inputs.push(Plugin::new("forward", "", &[("Listen", address), ("Port", &port)]));
                let health = [("Listen", LOCAL), ("Port", HEALTH_PORT)];
                self.inputs.push(Plugin::new("tcp", HEALTH_TAG, &health));
                self.outputs.push(Plugin::new("null", HEALTH_TAG, &[]));
            }
        }
    }

    /// Where the output of a container goes. Without an output of its own, that is for the user's own
    /// configuration to say.
    fn route(&mut self, spec: &TaskSpec, container: &ContainerSpec, kind: RouterKind) {
        let any = match kind {
            RouterKind::Fluentd => "**",
            RouterKind::Fluentbit => "*",
        };
        let tag = format!("{}-firelens{any}", container.name);
        let mut options = container.log.as_ref().map(|log| log.options.clone()).unwrap_or_default();
        options.remove(BUFFER_LIMIT);
        for secret in spec.router_secrets().iter().filter(|secret| secret.container.name == container.name) {
            let value = match kind {
                RouterKind::Fluentd => format!("\"#{{ENV['{}']}}\"", secret.variable),
                RouterKind::Fluentbit => format!("${{{}}}", secret.variable),
            };
            options.insert(secret.option.name.clone(), value);
        }
        self.includes.extend(options.remove(INCLUDE_PATTERN).map(|pattern| (tag.clone(), pattern)));
        self.excludes.extend(options.remove(EXCLUDE_PATTERN).map(|pattern| (tag.clone(), pattern)));
        if let Some(name) = options.remove(kind.output_option()) {
            self.outputs.push(Plugin { name, tag, options });
        }
    }

    fn fluent_bit(&self) -> String {
        let mut text = Text::default();
        for input in &self.inputs {
            let tag = (!input.tag.is_empty()).then(|| format!("Tag {}", input.tag));
            let rest: Vec<_> = tag.into_iter().chain(lines(&input.options)).collect();
            text.section("INPUT", &input.name, &rest);
        }
        for (patterns, rule) in [(&self.includes, "Regex"), (&self.excludes, "Exclude")] {
            for (tag, pattern) in patterns {
                text.section("FILTER", "grep", &[format!("Match {tag}"), format!("{rule} log {pattern}")]);
            }
        }
        if !self.fields.is_empty() {
            let records = self.fields.iter().map(|(name, value)| format!("Record {name} {value}"));
            let rest: Vec<_> = ["Match *".to_owned()].into_iter().chain(records).collect();
            text.section("FILTER", "record_modifier", &rest);
        }
        if let Some(path) = &self.own {
            text.paragraph(&[format!("@INCLUDE {path}")]);
        }
        for output in &self.outputs {
            let matched = [format!("Match {}", output.tag)];
            let rest: Vec<_> = matched.into_iter().chain(lines(&output.options)).collect();
            text.section("OUTPUT", &output.name, &rest);
        }
        text.0
    }

    fn fluentd(&self) -> String {
        let mut text = Text::default();
        for input in &self.inputs {
            text.element("source", "", &input.name, &lines(&input.options));
        }
        for (patterns, rule) in [(&self.includes, "regexp"), (&self.excludes, "exclude")] {
            for (tag, pattern) in patterns {
                let rule = [
                    format!("<{rule}>"),
                    "    key log".to_owned(),
                    format!("    pattern {pattern}"),
                    format!("</{rule}>"),
                ];
                text.element("filter", tag, "grep", &rule);
            }
        }
        if !self.fields.is_empty() {
            let fields = self.fields.iter().map(|(name, value)| format!("    {name} {value}"));
            let record: Vec<_> =
                ["<record>".to_owned()].into_iter().chain(fields).chain(["</record>".to_owned()]).collect();
            text.element("filter", "**", "record_transformer", &record);
        }
        if let Some(path) = &self.own {
            text.paragraph(&[format!("@include {path}")]);
        }
        for output in &self.outputs {
            text.element("match", &output.tag, &output.name, &lines(&output.options));
        }
        text.0
    }
}

fn lines(options: &BTreeMap<String, String>) -> Vec<String> {
    options.iter().map(|(name, value)| format!("{name} {value}")).collect()
}

/// Paragraphs with an empty line between two.
#[derive(Default)]
struct Text(String);

impl Text {
    fn paragraph(&mut self, lines: &[String]) {
        if !self.0.is_empty() {
            self.0.push('\n');
        }
        for line in lines {
            // A text takes everything.
            let _ = writeln!(self.0, "{line}");
        }
    }

    /// A section of Fluent Bit's.
    fn section(&mut self, kind: &str, plugin: &str, rest: &[String]) {
        let head = [format!("[{kind}]"), format!("    Name {plugin}")];
        let rest = rest.iter().map(|line| format!("    {line}"));
        self.paragraph(&head.into_iter().chain(rest).collect::<Vec<_>>());
    }

    /// An element of Fluentd's.
    fn element(&mut self, kind: &str, argument: &str, plugin: &str, inside: &[String]) {
        let space = if argument.is_empty() { "" } else { " " };
        let head = [format!("<{kind}{space}{argument}>"), format!("    @type {plugin}")];
        let inside = inside.iter().map(|line| format!("    {line}"));
        self.paragraph(&head.into_iter().chain(inside).chain([format!("</{kind}>")]).collect::<Vec<_>>());
    }
}
