//! Reads and checks every variable; collects what is wrong, so that all of it is told at once.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::PathBuf;

use berth_core::ids::ClusterName;
use berth_core::resources::Ports;
use berth_core::units::{Mebibytes, Millis, PortRange};

use super::{
    Config, InvalidConfig, InvalidValue, LogFile, LogFormat, PullBehavior, Rollover, Secret, Strings,
    TaskLimits, VARIABLES, cleanup, gpus, host_life, logins, secrets,
};

/// Collects what is wrong while values are read, so that all of it is told at once.
pub(super) struct Reader<'a> {
    pub(super) strings: &'a dyn Strings,
    invalid: Vec<InvalidValue>,
}

impl Reader<'_> {
    pub(super) fn read<T>(
        &mut self,
        variable: &'static str,
        expected: &str,
        default: T,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> T {
        let Some(value) = self.strings.get(variable) else {
            return default;
        };
        match parse(&value) {
            Some(parsed) => parsed,
            None => {
                self.invalid.push(InvalidValue { variable, value, expected: expected.to_owned() });
                default
            }
        }
    }

    /// Like [`read`](Self::read) for a value that may not be shown.
    pub(super) fn read_secret<T: Default>(
        &mut self,
        variable: &'static str,
        expected: &str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> T {
        let before = self.invalid.len();
        let read = self.read(variable, expected, T::default(), parse);
        for invalid in self.invalid.iter_mut().skip(before) {
            "***".clone_into(&mut invalid.value);
        }
        read
    }

    pub(super) fn flag(&mut self, variable: &'static str, default: bool) -> bool {
        self.read(variable, "true or false", default, parse_flag)
    }

    pub(super) fn span(&mut self, variable: &'static str, default: Millis, least: Millis) -> Millis {
        let expected = format!("a duration of at least {least}, such as 90s, 5m or 1h30m");
        self.read(variable, &expected, default, |v| parse_span(v).filter(|span| *span >= least))
    }

    fn ports(&mut self, variable: &'static str, default: &[u16]) -> BTreeSet<u16> {
        let default = default.iter().copied().collect();
        self.read(variable, "a JSON list of ports, such as [22,2375]", default, |v| {
            serde_json::from_str(v).ok()
        })
    }
}

impl Config {
    /// Reads and checks everything.
    ///
    /// # Errors
    /// All values that do not do, not the first alone.
    pub fn read(strings: &dyn Strings) -> Result<Self, InvalidConfig> {
        let mut r = Reader { strings, invalid: Vec::new() };
        let tcp = r.ports("ECS_RESERVED_PORTS", &[22, 2375, 2376, 51678, 51679]);
        let udp = r.ports("ECS_RESERVED_PORTS_UDP", &[]);
        let minute = Millis::from_secs(60);
        let pull_behavior = r.read(
            "ECS_IMAGE_PULL_BEHAVIOR",
            "default, always, once or prefer-cached",
            PullBehavior::Default,
            |v| match v {
                "default" => Some(PullBehavior::Default),
                "always" => Some(PullBehavior::Always),
                "once" => Some(PullBehavior::Once),
                "prefer-cached" => Some(PullBehavior::PreferCached),
                _ => None,
            },
        );
        let default_cluster = ClusterName::new("default").map_err(|_| InvalidConfig(Vec::new()))?;
        let config = Self {
            cluster_is_default: strings.get("ECS_CLUSTER").is_none(),
            cluster: r.read(
                "ECS_CLUSTER",
                "1 to 255 letters, digits, hyphens and underscores",
                default_cluster,
                |v| ClusterName::new(v).ok(),
            ),
            backend: r.read(
                "ECS_BACKEND_HOST",
                "https://host:port, http://127.0.0.1:port or unix:/path",
                None,
                |v| Some(Some(v.to_owned())),
            ),
            docker_host: r.read(
                "DOCKER_HOST",
                "unix:///path or tcp://host:port",
                "unix:///var/run/docker.sock".to_owned(),
                |v| {
                    ["unix://", "tcp://", "http://"]
                        .iter()
                        .any(|scheme| v.starts_with(scheme))
                        .then(|| v.to_owned())
                },
            ),
            data_dir: r.read(
                "ECS_DATADIR",
                "an absolute or relative path",
                PathBuf::from("/var/lib/berth"),
                |v| Some(PathBuf::from(v)),
            ),
            checkpoint: r.flag("ECS_CHECKPOINT", true),
            reserved_ports: Ports { tcp, udp },
            reserved_memory: r.read("ECS_RESERVED_MEMORY", "MiB, 0 to 65535", Mebibytes(0), |v| {
                v.parse::<u16>().ok().map(|mib| Mebibytes(mib.into()))
            }),
            stop_timeout: r.span("ECS_CONTAINER_STOP_TIMEOUT", Millis::from_secs(30), Millis::from_secs(1)),
            start_timeout: r.span(
                "ECS_CONTAINER_START_TIMEOUT",
                Millis::from_secs(180),
                Millis::from_secs(45),
            ),
            create_timeout: r.span("ECS_CONTAINER_CREATE_TIMEOUT", Millis::from_secs(240), minute),
            cleanup_wait: r.span(
                "ECS_ENGINE_TASK_CLEANUP_WAIT_DURATION",
                Millis::from_secs(3 * 3600),
                Millis::from_secs(1),
            ),
            cleanup_wait_jitter: r.span("ECS_ENGINE_TASK_CLEANUP_WAIT_DURATION_JITTER", Millis(0), Millis(0)),
            image_cleanup: cleanup::read(&mut r, pull_behavior),
            pull_behavior,
            pull_inactivity_timeout: r.span("ECS_IMAGE_PULL_INACTIVITY_TIMEOUT", minute, minute),
            remote_exec: r.flag("BERTH_REMOTE_EXEC", true),
            pull_begin_timeout: r.span(
                "BERTH_IMAGE_PULL_BEGIN_TIMEOUT",
                Millis::from_secs(300),
                Millis::from_secs(1),
            ),
            registry_mirrors: r.read(
                "BERTH_REGISTRY_MIRRORS",
                "REGISTRY=MIRROR,MIRROR;REGISTRY=MIRROR, such as docker.io=mirror.local:5000/hub",
                BTreeMap::new(),
                cleanup::mirrors,
            ),
            pull_timeout: r.span("ECS_IMAGE_PULL_TIMEOUT", Millis::from_secs(2 * 3600), minute),
            log_level: r.read(
                "ECS_LOGLEVEL",
                "error, warn, info, debug or trace",
                "info".to_owned(),
                parse_level,
            ),
            log_format: r.read(
                "ECS_LOG_OUTPUT_FORMAT",
                "logfmt, json or auto",
                LogFormat::Auto,
                |v| match v {
                    "auto" => Some(LogFormat::Auto),
                    "logfmt" | "text" => Some(LogFormat::Text),
                    "json" => Some(LogFormat::Json),
                    _ => None,
                },
            ),
            log_file: log_file(&mut r),
            log_drivers: r.read(
                "ECS_AVAILABLE_LOGGING_DRIVERS",
                r#"a JSON list of names, such as ["json-file","none"]"#,
                vec!["json-file".to_owned(), "none".to_owned()],
                |v| serde_json::from_str(v).ok(),
            ),
            firelens_async: r.flag("ECS_ENABLE_FIRELENS_ASYNC", true),
            disable_privileged: r.flag("ECS_DISABLE_PRIVILEGED", false),
            selinux: r.flag("ECS_SELINUX_CAPABLE", false),
            apparmor: r.flag("ECS_APPARMOR_CAPABLE", false),
            task_limits: r.read(
                "ECS_ENABLE_TASK_CPU_MEM_LIMIT",
                "true or false",
                TaskLimits::WherePossible,
                |v| parse_flag(v).map(|on| if on { TaskLimits::Required } else { TaskLimits::Off }),
            ),
            cgroup_path: r.read(
                "ECS_CGROUP_PATH",
                "an absolute path",
                PathBuf::from("/sys/fs/cgroup"),
                |v| v.starts_with('/').then(|| PathBuf::from(v)),
            ),
            cgroup_root: r.read(
                "BERTH_CGROUP_ROOT",
                "a name of letters, digits, hyphens and underscores",
                "ecs".to_owned(),
                |v| berth_core::ids::is_resource_name(v).then(|| v.to_owned()),
            ),
            cgroup_cpu_period: r.read("ECS_CGROUP_CPU_PERIOD", "8ms to 100ms", Millis(100), |v| {
                parse_span(v).filter(|span| (8..=100).contains(&span.0))
            }),
            pids_limit: r.read("ECS_TASK_PIDS_LIMIT", "1 to 4194304", None, |v| {
                v.parse().ok().filter(|n| (1..=4_194_304).contains(n)).map(Some)
            }),
            task_eni: r.flag("ECS_ENABLE_TASK_ENI", false),
            block_instance_metadata: r.flag("ECS_AWSVPC_BLOCK_IMDS", false),
            high_density: r.flag("ECS_ENABLE_HIGH_DENSITY_ENI", true),
            instance_type: r.read("BERTH_INSTANCE_TYPE", "a type such as m5.large", None, |v| {
                v.bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b == b'.' || b == b'-')
                    .then(|| Some(v.to_owned()))
            }),
            task_interfaces: r.read("BERTH_TASK_ENIS", "0 to 1000", None, |v| {
                v.parse().ok().filter(|n| *n <= 1000).map(Some)
            }),
            task_interface: r.read("BERTH_TASK_INTERFACE", "the name of a network interface", None, |v| {
                (v.len() < 16 && !v.contains(['/', ' '])).then(|| Some(v.to_owned()))
            }),
            pause_pool: r.read("BERTH_PAUSE_POOL", "0 to 100", 2, |v| v.parse().ok().filter(|n| *n <= 100)),
            attributes: r.read(
                "ECS_INSTANCE_ATTRIBUTES",
                r#"a JSON map of texts, such as {"rack":"a1"}"#,
                BTreeMap::new(),
                |v| serde_json::from_str(v).ok(),
            ),
            dynamic_ports: r.read(
                "ECS_DYNAMIC_HOST_PORT_RANGE",
                "first-last, within 1024 to 65535",
                default_dynamic_ports(),
                |v| PortRange::parse(v).filter(|range| range.first() >= 1024),
            ),
            disable_health_check: r.flag("ECS_DISABLE_DOCKER_HEALTH_CHECK", false),
            gpus: gpus::read(&mut r),
            host_life: host_life::read(&mut r),
            introspection: r.read(
                "BERTH_INTROSPECTION_ADDRESS",
                "address:port or off",
                Some(SocketAddr::from(([127, 0, 0, 1], 51678))),
                |v| {
                    if v == "off" { Some(None) } else { v.parse().ok().map(Some) }
                },
            ),
            runtime_stats: r.flag("ECS_ENABLE_RUNTIME_STATS", false),
            endpoint: r.read(
                "BERTH_ENDPOINT_ADDRESS",
                "address:port or off",
                Some(SocketAddr::from(([169, 254, 170, 2], 80))),
                |v| {
                    if v == "off" { Some(None) } else { v.parse().ok().map(Some) }
                },
            ),
            endpoint_rate: r.read(
                "ECS_TASK_METADATA_RPS_LIMIT",
                "requests in a second and at once, such as 40,60",
                (40, 60),
                |v| {
                    let (steady, burst) = v.split_once(',')?;
                    let number = |text: &str| text.trim().parse::<u32>().ok().filter(|n| *n > 0);
                    Some((number(steady)?, number(burst)?))
                },
            ),
            metadata_files: r.flag("ECS_ENABLE_CONTAINER_METADATA", false),
            task_role: r.flag("ECS_ENABLE_TASK_IAM_ROLE", true),
            task_role_on_host: r.flag("ECS_ENABLE_TASK_IAM_ROLE_NETWORK_HOST", true),
            run_dir: r.read("BERTH_RUN_DIR", "an absolute path", PathBuf::from("/run/berth"), |v| {
                v.starts_with('/').then(|| PathBuf::from(v))
            }),
            join_token: strings.get("BERTH_JOIN_TOKEN").map(Secret::new),
            ca_fingerprint: r.read("BERTH_CA_FINGERPRINT", "sha256:<64 hex digits>", None, |v| {
                let digits = v.strip_prefix("sha256:")?;
                (digits.len() == 64 && digits.bytes().all(|b| b.is_ascii_hexdigit()))
                    .then(|| Some(v.to_ascii_lowercase()))
            }),
            server_name: strings.get("BERTH_SERVER_NAME"),
            secrets: secrets::source(&mut r),
            ecr: logins::ecr(&mut r),
            registry_logins: logins::read(&mut r),
            object_store: r.read(
                "BERTH_OBJECT_STORE",
                "file:///PATH, http://… or https://…",
                None,
                |v| {
                    ["file:///", "http://", "https://"]
                        .iter()
                        .any(|s| v.starts_with(s))
                        .then(|| Some(v.to_owned()))
                },
            ),
        };
        if r.invalid.is_empty() { Ok(config) } else { Err(InvalidConfig(r.invalid)) }
    }

    /// Variables that begin with our prefixes and mean nothing to the agent.
    #[must_use]
    pub fn unknown(strings: &dyn Strings) -> Vec<String> {
        strings
            .names()
            .into_iter()
            .filter(|name| !VARIABLES.iter().any(|(known, ..)| known == name))
            .collect()
    }
}

fn log_file(r: &mut Reader<'_>) -> Option<LogFile> {
    let by_size = r.read("ECS_LOG_ROLLOVER_TYPE", "hourly or size", false, |v| match v {
        "hourly" => Some(false),
        "size" => Some(true),
        _ => None,
    });
    let expected = "MiB, such as 10 or 0.5";
    let most = r.read("ECS_LOG_MAX_FILE_SIZE_MB", expected, 10 << 20, |v| {
        let mib: f64 = v.parse().ok().filter(|mib| (0.001..=1e6).contains(mib))?;
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked to be in range")]
        Some((mib * f64::from(1 << 20)) as u64)
    });
    let keep = r.read("ECS_LOG_MAX_ROLL_COUNT", "a number of files", 24, |v| v.parse().ok());
    let rollover = if by_size { Rollover::Size(most) } else { Rollover::Hourly };
    r.strings.get("ECS_LOGFILE").map(|path| LogFile { path: path.into(), rollover, keep })
}

fn parse_flag(value: &str) -> Option<bool> {
    match value {
        "true" | "1" | "t" | "T" | "TRUE" | "True" => Some(true),
        "false" | "0" | "f" | "F" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

fn parse_level(value: &str) -> Option<String> {
    let level = match value.to_ascii_lowercase().as_str() {
        "crit" | "error" => "error",
        "warn" | "warning" => "warn",
        "info" => "info",
        "debug" => "debug",
        "trace" => "trace",
        _ => return None,
    };
    Some(level.to_owned())
}

/// The kernel's range for outgoing connections is not ours to give away: ECS's fallback instead.
fn default_dynamic_ports() -> PortRange {
    PortRange::parse("49153-65535").unwrap_or_else(|| unreachable!("a constant that parses"))
}

/// Reads a duration in the manner of Go: `90s`, `1m30s`, `100ms`, `1.5h`, `0`.
fn parse_span(text: &str) -> Option<Millis> {
    if text == "0" {
        return Some(Millis(0));
    }
    let mut rest = text;
    let mut total = 0.0_f64;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let unit = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        let millis = match &rest[..unit] {
            "ms" => 1.0,
            "s" => 1000.0,
            "m" => 60_000.0,
            "h" => 3_600_000.0,
            _ => return None,
        };
        total += number * millis;
        rest = &rest[unit..];
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked to be in range")]
    (!text.is_empty() && (0.0..1e15).contains(&total)).then_some(Millis(total.round() as u64))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Variables;

    fn config(pairs: &[(&str, &str)]) -> Result<Config, InvalidConfig> {
        Config::read(&pairs.iter().copied().collect::<Variables>())
    }

    #[test]
    fn without_variables_the_defaults_hold() {
        let config = config(&[]).unwrap();
        assert_eq!(config.cluster.as_str(), "default");
        assert!(config.cluster_is_default);
        assert_eq!(config.stop_timeout, Millis::from_secs(30));
        assert_eq!(config.cleanup_wait, Millis::from_secs(3 * 3600));
        assert!(config.reserved_ports.tcp.contains(&51678));
    }

    #[test]
    fn everything_that_is_wrong_is_told_at_once_with_what_is_accepted() {
        let invalid = config(&[
            ("ECS_RESERVED_MEMORY", "lots"),
            ("ECS_CONTAINER_STOP_TIMEOUT", "500ms"),
            ("ECS_INSTANCE_ATTRIBUTES", "rack=a1"),
            ("ECS_CLUSTER", "no spaces"),
        ])
        .unwrap_err();
        let text = invalid.to_string();
        assert_eq!(invalid.0.len(), 4);
        assert!(text.contains("ECS_RESERVED_MEMORY=\"lots\": expected MiB, 0 to 65535"), "{text}");
        assert!(
            text.contains("ECS_CONTAINER_STOP_TIMEOUT=\"500ms\": expected a duration of at least 1 s"),
            "{text}"
        );
    }

    #[test]
    fn durations_read_as_in_go() {
        for (text, millis) in
            [("90s", 90_000), ("1m30s", 90_000), ("100ms", 100), ("1.5h", 5_400_000), ("0", 0)]
        {
            assert_eq!(parse_span(text), Some(Millis(millis)), "{text}");
        }
        for text in ["", "30", "s", "1x", "-1s"] {
            assert_eq!(parse_span(text), None, "{text}");
        }
    }

    #[test]
    fn unknown_variables_of_ours_are_named() {
        let variables: Variables =
            [("ECS_CLUSTRE", "x"), ("ECS_CLUSTER", "y"), ("PATH", "z")].into_iter().collect();
        assert_eq!(Config::unknown(&variables), ["ECS_CLUSTRE"]);
    }

    #[test]
    fn a_file_gives_way_to_the_environment() {
        let variables: Variables = [("ECS_CLUSTER", "env")].into_iter().collect();
        let variables =
            variables.with_file("# comment\nECS_CLUSTER=file\nECS_LOGLEVEL=\"debug\"\n\n").unwrap();
        assert_eq!(variables.get("ECS_CLUSTER").as_deref(), Some("env"));
        assert_eq!(variables.get("ECS_LOGLEVEL").as_deref(), Some("debug"));
        // What may be secret is not told.
        for (wrong, told) in [
            ("hunter2", ""),
            ("export BERTH_JOIN_TOKEN=hunter2", ": \"export BERTH_JOIN_TOKEN\" names no variable"),
            ("=hunter2", ": \"\" names no variable"),
        ] {
            let why = Variables::default().with_file(wrong).unwrap_err();
            assert_eq!(why, format!("line 1 is not KEY=value{told}"));
        }
        let twice = Variables::default().with_file("ECS_CLUSTER=a\nECS_CLUSTER = b").unwrap();
        assert_eq!(twice.get("ECS_CLUSTER").unwrap(), "b");
    }

    #[test]
    fn a_join_token_shows_itself_to_nobody() {
        let config = config(&[("BERTH_JOIN_TOKEN", "tell-nobody")]).unwrap();
        assert!(!format!("{config:?}").contains("tell-nobody"));
    }
}
