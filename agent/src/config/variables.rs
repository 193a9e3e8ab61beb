//! Variables by name, and the table of those that the agent minds.

use std::collections::BTreeMap;

/// Where variables come from.
pub trait Strings {
    /// The value of a variable; `None` when it is unset or empty.
    fn get(&self, name: &str) -> Option<String>;
    /// The names of all variables that begin with `ECS_` or `BERTH_`.
    fn names(&self) -> Vec<String>;
}

/// Variables by name: the process environment, or a file of `KEY=value` lines under it.
#[derive(Debug, Clone, Default)]
pub struct Variables(BTreeMap<String, String>);

impl Variables {
    /// The environment of the process.
    #[must_use]
    pub fn from_env() -> Self {
        Self(
            std::env::vars_os()
                .filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?)))
                .collect(),
        )
    }

    /// Adds what a file of `KEY=value` lines says for variables that are not set yet. Of two lines for one, the
    /// later counts, as in systemd's `EnvironmentFile`.
    ///
    /// # Errors
    /// The number of the first line that is neither `KEY=value`, a comment nor empty, and what it has for a name. The
    /// rest of it may be secret.
    pub fn with_file(mut self, text: &str) -> Result<Self, String> {
        let mut said = BTreeMap::new();
        for (at, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let Some((key, value)) = line.split_once('=') else {
                return Err(format!("line {} is not KEY=value", at + 1));
            };
            let key = key.trim_end();
            if key.is_empty() || !key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
                return Err(format!("line {} is not KEY=value: {key:?} names no variable", at + 1));
            }
            let value = value.trim();
            let unquoted = value
                .strip_prefix('"')
                .and_then(|v| v.strip_suffix('"'))
                .or_else(|| value.strip_prefix('\'').and_then(|v| v.strip_suffix('\'')))
                .unwrap_or(value);
            said.insert(key.to_owned(), unquoted.to_owned());
        }
        said.append(&mut self.0);
        Ok(Self(said))
    }
}

impl<K: Into<String>, V: Into<String>> FromIterator<(K, V)> for Variables {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(iter: I) -> Self {
        Self(iter.into_iter().map(|(k, v)| (k.into(), v.into())).collect())
    }
}

impl Strings for Variables {
    fn get(&self, name: &str) -> Option<String> {
        self.0.get(name).map(|v| v.trim().to_owned()).filter(|v| !v.is_empty())
    }

    fn names(&self) -> Vec<String> {
        self.0.keys().filter(|k| k.starts_with("ECS_") || k.starts_with("BERTH_")).cloned().collect()
    }
}

/// Variables whose values are shown to nobody.
pub const SECRET_VARIABLES: &[&str] = &["BERTH_JOIN_TOKEN", "BERTH_VAULT_TOKEN", "ECS_ENGINE_AUTH_DATA"];

/// Starts a program of the operator's without the agent's own secrets: they are none of its business.
pub fn without_secrets(command: &mut tokio::process::Command) {
    for name in SECRET_VARIABLES {
        command.env_remove(name);
    }
}

/// Every variable that the agent minds, with what it means and what holds without it.
pub const VARIABLES: &[(&str, &str, &str)] = &[
    ("ECS_CLUSTER", "default", "cluster to join"),
    (
        "ECS_BACKEND_HOST",
        "(required)",
        "control plane: https://host:port, http://127.0.0.1:port or unix:/path",
    ),
    ("DOCKER_HOST", "unix:///var/run/docker.sock", "the engine's socket"),
    ("ECS_DATADIR", "/var/lib/berth", "where the agent keeps its state"),
    ("ECS_CHECKPOINT", "true", "whether state is kept across restarts"),
    ("ECS_RESERVED_PORTS", "[22,2375,2376,51678,51679]", "TCP ports that tasks may not have"),
    ("ECS_RESERVED_PORTS_UDP", "[]", "UDP ports that tasks may not have"),
    ("ECS_RESERVED_MEMORY", "0", "MiB of memory that tasks may not have"),
    ("ECS_CONTAINER_STOP_TIMEOUT", "30s", "SIGTERM to SIGKILL where the definition gives none (at least 1s)"),
    (
        "ECS_CONTAINER_START_TIMEOUT",
        "3m",
        "longest that the engine may take to start a container (at least 45s)",
    ),
    (
        "ECS_CONTAINER_CREATE_TIMEOUT",
        "4m",
        "longest that the engine may take to make a container (at least 1m)",
    ),
    ("ECS_ENGINE_TASK_CLEANUP_WAIT_DURATION", "3h", "how long stopped containers are kept (at least 1s)"),
    ("ECS_ENGINE_TASK_CLEANUP_WAIT_DURATION_JITTER", "0", "how much longer, at most, by chance"),
    ("ECS_IMAGE_PULL_BEHAVIOR", "default", "default, always, once or prefer-cached"),
    ("ECS_IMAGE_PULL_INACTIVITY_TIMEOUT", "1m", "longest silence of a pull (at least 1m)"),
    ("BERTH_REMOTE_EXEC", "true", "let the control plane start programs in containers for operators"),
    ("BERTH_IMAGE_PULL_BEGIN_TIMEOUT", "5m", "longest time until a registry says anything"),
    (
        "BERTH_REGISTRY_MIRRORS",
        "none",
        "where images are looked for first, REGISTRY=MIRROR,MIRROR;..., such as docker.io=mirror.local:5000/hub",
    ),
    ("ECS_IMAGE_PULL_TIMEOUT", "2h", "longest that a pull may take"),
    ("ECS_ENGINE_AUTH_TYPE", "(none)", "form of ECS_ENGINE_AUTH_DATA: docker or dockercfg"),
    ("ECS_ENGINE_AUTH_DATA", "(none)", "logins of registries, a JSON object by registry"),
    (
        "AWS_ACCESS_KEY_ID",
        "(none)",
        "with AWS_SECRET_ACCESS_KEY, and AWS_SESSION_TOKEN: the host's own key, for tokens of Amazon ECR",
    ),
    ("AWS_ENDPOINT_URL_ECR", "by the registry's region", "where these tokens are asked for"),
    (
        "BERTH_ECR_REGISTRIES",
        "(none)",
        "registries that want such tokens, beside Amazon's own: names with commas between",
    ),
    ("ECS_DISABLE_IMAGE_CLEANUP", "false", "keep all images; prefer-cached does, too"),
    ("ECS_IMAGE_CLEANUP_INTERVAL", "30m", "how often images that nobody uses are removed (at least 10m)"),
    ("ECS_IMAGE_MINIMUM_CLEANUP_AGE", "1h", "how long ago they must have been pulled"),
    ("ECS_NUM_IMAGES_DELETE_PER_CYCLE", "5", "how many at a time"),
    (
        "BERTH_IMAGE_CLEANUP_DISK",
        "85,80",
        "percent of the engine's disk above which they go whatever their age, until it is below the second",
    ),
    (
        "ECS_ENABLE_UNTRACKED_IMAGE_CLEANUP",
        "false",
        "remove images of somebody else, and stopped containers, too",
    ),
    ("NON_ECS_IMAGE_MINIMUM_CLEANUP_AGE", "1h", "how long ago these must have been made, or have ended"),
    ("ECS_EXCLUDE_UNTRACKED_IMAGE", "(none)", "which of these stay: names with commas between"),
    ("ECS_LOGLEVEL", "info", "error, warn, info, debug or trace"),
    ("ECS_LOG_OUTPUT_FORMAT", "auto", "logfmt, json, or auto: by where the log goes"),
    ("ECS_LOGFILE", "(none)", "file that the log goes to, instead of standard error"),
    ("ECS_LOG_ROLLOVER_TYPE", "hourly", "when that file is rolled over: hourly or size"),
    ("ECS_LOG_MAX_FILE_SIZE_MB", "10", "with size: MiB that it may grow to"),
    ("ECS_LOG_MAX_ROLL_COUNT", "24", "older log files that are kept"),
    ("ECS_AVAILABLE_LOGGING_DRIVERS", r#"["json-file","none"]"#, "log drivers that tasks may use"),
    (
        "ECS_ENABLE_FIRELENS_ASYNC",
        "true",
        "containers that log to awsfirelens start, and run on, while their log router does not answer",
    ),
    ("ECS_DISABLE_PRIVILEGED", "false", "refuse privileged containers"),
    ("ECS_SELINUX_CAPABLE", "false", "offer SELinux labels in dockerSecurityOptions"),
    ("ECS_APPARMOR_CAPABLE", "false", "offer AppArmor profiles in dockerSecurityOptions"),
    (
        "ECS_ENABLE_TASK_ENI",
        "false",
        "offer network mode awsvpc; true: do not start where that is impossible",
    ),
    ("ECS_AWSVPC_BLOCK_IMDS", "false", "hide 169.254.169.254 from awsvpc tasks"),
    (
        "ECS_ENABLE_HIGH_DENSITY_ENI",
        "true",
        "where BERTH_TASK_INTERFACE names a trunk of the instance: count its branch interfaces",
    ),
    (
        "BERTH_INSTANCE_TYPE",
        "what an EC2 instance says of itself",
        "says how many interfaces the host carries, such as m5.large",
    ),
    ("BERTH_TASK_ENIS", "by the instance type, else 120", "how many awsvpc tasks the host carries"),
    (
        "BERTH_TASK_INTERFACE",
        "the one of the default route",
        "host interface that macvlan, ipvlan and VLAN interfaces of tasks are made of",
    ),
    ("BERTH_PAUSE_POOL", "2", "how many network namespaces are kept ready for awsvpc tasks; 0: none"),
    (
        "ECS_ENABLE_TASK_CPU_MEM_LIMIT",
        "true",
        "give each task a cgroup; if set to true, the agent does not start without",
    ),
    ("ECS_CGROUP_PATH", "/sys/fs/cgroup", "where cgroups are mounted"),
    ("ECS_CGROUP_CPU_PERIOD", "100ms", "CPU period of task cgroups (8ms to 100ms)"),
    ("ECS_TASK_PIDS_LIMIT", "(none)", "most processes in a task (1 to 4194304)"),
    ("ECS_INSTANCE_ATTRIBUTES", "{}", "JSON map of custom attributes"),
    ("ECS_DYNAMIC_HOST_PORT_RANGE", "49153-65535", "host ports that the agent chooses from"),
    ("ECS_DISABLE_DOCKER_HEALTH_CHECK", "false", "do not offer container health checks"),
    ("ECS_ENABLE_GPU_SUPPORT", "false", "offer the host's NVIDIA GPUs to tasks"),
    (
        "BERTH_GPU_INVENTORY",
        "/var/lib/ecs/gpu/nvidia-gpu-info.json",
        "file that says which there are; where it is not there, nvidia-smi is asked",
    ),
    (
        "ECS_NVIDIA_RUNTIME",
        "(none)",
        "runtime of the engine that containers with GPUs go by, such as nvidia; without it the engine is asked for the devices",
    ),
    ("BERTH_CGROUP_ROOT", "ecs", "name of the cgroup above those of the tasks"),
    ("BERTH_INTROSPECTION_ADDRESS", "127.0.0.1:51678", "where operators ask, or off"),
    (
        "ECS_ENABLE_RUNTIME_STATS",
        "false",
        "tell how the agent itself is: /debug/pprof/ there, and a line in the log every two minutes",
    ),
    ("BERTH_ENDPOINT_ADDRESS", "169.254.170.2:80", "where tasks ask about themselves, or off"),
    (
        "ECS_TASK_METADATA_RPS_LIMIT",
        "40,60",
        "how often a task may ask there: requests in a second, requests at once",
    ),
    ("ECS_ENABLE_CONTAINER_METADATA", "false", "tell each container what it is in a file, too"),
    ("ECS_ENABLE_TASK_IAM_ROLE", "true", "offer credentials of roles to tasks"),
    ("ECS_ENABLE_TASK_IAM_ROLE_NETWORK_HOST", "true", "also to tasks on the host's network"),
    (
        "BERTH_SHUTDOWN_TIMEOUT",
        "2m",
        "longest that tasks have to stop in order when the host shuts down; 0s: they are left to the engine",
    ),
    ("BERTH_TERMINATION_NOTICE_FILE", "(none)", "file whose appearance says that the host is taken back"),
    (
        "ECS_ENABLE_SPOT_INSTANCE_DRAINING",
        "false",
        "drain the instance when EC2 takes it back: its metadata is asked each second",
    ),
    ("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://169.254.169.254", "where that metadata is"),
    ("BERTH_RUN_DIR", "/run/berth", "where the key is that seals credentials; gone after a reboot"),
    ("BERTH_JOIN_TOKEN", "(none)", "token that lets this host join over TLS"),
    ("BERTH_CA_FINGERPRINT", "(none)", "sha256 fingerprint of the control plane's CA"),
    (
        "BERTH_SERVER_NAME",
        "(host of ECS_BACKEND_HOST)",
        "name that the control plane's certificate must carry",
    ),
    (
        "BERTH_SECRETS",
        "(none)",
        "where secrets of tasks are kept: directory:/PATH, command:/PROGRAM ARGUMENTS or vault:https://HOST:PORT/MOUNT",
    ),
    ("BERTH_VAULT_TOKEN", "(none)", "token for the vault"),
    ("BERTH_VAULT_TOKEN_FILE", "(none)", "file with the token for the vault, read each time"),
    ("BERTH_VAULT_NAMESPACE", "(none)", "namespace of the vault"),
    (
        "BERTH_OBJECT_STORE",
        "(none)",
        "where environment files and configurations of log routers with an S3 ARN are: what BUCKET/KEY is appended to, file:///PATH or https://…",
    ),
    ("BERTH_CONFIG_FILE", "(none)", "KEY=value file to read before the environment has its say"),
];
