//! The host: what it can hold, and what the agent offers on it. What is said at registration.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;

use berth_core::attachment::Provider;
use berth_core::resources::Resources;
use berth_core::spec::FIRELENS_DRIVER;
use berth_core::units::{CPU_UNITS_PER_CPU, CpuUnits, Mebibytes};

use crate::config::Config;
use crate::fault::Kind;
use crate::gpu::Inventory;
use crate::network::{Offers, instance_types};
use crate::runtime::EngineInfo;

/// What keeps the host from being reported.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// A file of the kernel does not say what it should.
    #[error("cannot read {what} from {path}")]
    Unreadable {
        /// What was wanted.
        what: &'static str,
        /// The file.
        path: String,
    },
    /// More is reserved than there is.
    #[error("ECS_RESERVED_MEMORY={reserved}: this host has only {total} MiB of memory")]
    ReservedTooMuch {
        /// What is to be reserved.
        reserved: u32,
        /// What there is.
        total: u32,
    },
}

/// What the host can hold: 1024 CPU units for each logical CPU; its memory, or the limit of the
/// cgroup that it lives in where that is less (`cgroups`), without what is reserved; ports without the
/// reserved ones; so many interfaces and GPUs for tasks.
///
/// # Errors
/// [`HostError`].
pub fn capacity(
    config: &Config,
    cgroups: Option<&Path>,
    interfaces: u32,
    gpus: u32,
) -> Result<Resources, HostError> {
    let total = memory(Path::new("/proc/meminfo"), cgroups)?;
    let left = total
        .0
        .checked_sub(config.reserved_memory.0)
        .ok_or(HostError::ReservedTooMuch { reserved: config.reserved_memory.0, total: total.0 })?;
    Ok(Resources {
        cpu: CpuUnits(logical_cpus().saturating_mul(CPU_UNITS_PER_CPU)),
        memory: Mebibytes(left),
        ports: config.reserved_ports.clone(),
        enis: interfaces,
        gpus,
    })
}

fn logical_cpus() -> u32 {
    let count = nix::unistd::sysconf(nix::unistd::SysconfVar::_NPROCESSORS_ONLN);
    count.ok().flatten().and_then(|n| u32::try_from(n).ok()).unwrap_or(1).max(1)
}

fn memory(meminfo: &Path, cgroups: Option<&Path>) -> Result<Mebibytes, HostError> {
    let unreadable = || HostError::Unreadable { what: "MemTotal", path: meminfo.display().to_string() };
    let text = fs::read_to_string(meminfo).map_err(|_| unreadable())?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:")).ok_or_else(unreadable)?;
    let kib: u64 = line.trim().trim_end_matches("kB").trim().parse().map_err(|_| unreadable())?;
    let limit = ["memory.max", "memory/memory.limit_in_bytes"]
        .into_iter()
        .find_map(|file| fs::read_to_string(cgroups?.join(file)).ok()?.trim().parse::<u64>().ok());
    let bytes = limit.map_or(kib * 1024, |limit| limit.min(kib * 1024));
    Ok(Mebibytes(u32::try_from(bytes / (1024 * 1024)).unwrap_or(u32::MAX)))
}

/// The host's name, for people.
#[must_use]
pub fn hostname() -> String {
    nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok()).unwrap_or_default()
}

/// The kernel's name for this life of the host; another after every boot, empty where it is not to be had.
#[must_use]
pub fn boot() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").map(|id| id.trim().to_owned()).unwrap_or_default()
}

/// How many tasks get an interface: what the operator says, what the instance carries, or so many
/// that a bridge is the limit.
#[must_use]
pub fn task_interfaces(config: &Config, providers: &BTreeSet<&'static str>) -> u32 {
    const ELSEWHERE: u32 = 120;
    let by_type = || {
        let instance_type = instance_type(config)?;
        let vlan = providers.contains(Provider::Vlan { id: 1 }.name());
        let trunk = config.high_density && vlan && config.task_interface.is_some();
        let carried = instance_types::task_interfaces(&instance_type, trunk);
        if carried.is_none() {
            tracing::warn!(
                instance_type,
                "an unknown type: BERTH_TASK_ENIS says how many awsvpc tasks it carries"
            );
        }
        carried
    };
    config.task_interfaces.or_else(by_type).unwrap_or(ELSEWHERE)
}

/// The EC2 instance type: what the operator says, or what the machine's firmware does.
#[must_use]
pub fn instance_type(config: &Config) -> Option<String> {
    config.instance_type.clone().or_else(|| firmware_type(Path::new("/sys/class/dmi/id")))
}

/// Nitro instances carry their type as the name of the product.
fn firmware_type(dmi: &Path) -> Option<String> {
    let read = |file| Some(fs::read_to_string(dmi.join(file)).ok()?.trim().to_owned());
    (read("sys_vendor")? == "Amazon EC2").then(|| read("product_name")).flatten()
}

/// The interface that the default route goes by (proc(5), `/proc/net/route`).
#[must_use]
pub fn default_interface() -> Option<String> {
    let table = fs::read_to_string("/proc/net/route").ok()?;
    table.lines().skip(1).find_map(|line| {
        let mut fields = line.split_whitespace();
        let name = fields.next()?;
        (fields.next()? == "00000000").then(|| name.to_owned())
    })
}

/// The host's own IPv4 address, on the interface of its default route.
#[must_use]
pub fn address() -> Option<Ipv4Addr> {
    let name = default_interface()?;
    let mut all = nix::ifaddrs::getifaddrs().ok()?.filter(|interface| interface.interface_name == name);
    all.find_map(|interface| interface.address?.as_sockaddr_in().map(|address| address.ip()))
}

/// What every ECS agent can do, and ECS therefore has no name for.
const OFFERED: [&str; 13] = [
    "volumes",
    "volumes-from",
    "system-controls",
    "disable-networking",
    "docker-security-options",
    "log-configuration",
    "host-namespaces",
    "linux-parameters.capabilities",
    "linux-parameters.devices",
    "linux-parameters.init-process",
    "linux-parameters.shared-memory",
    "linux-parameters.swap",
    "linux-parameters.tmpfs",
];

/// What a host that has secrets for tasks can do.
const SECRETS: [&str; 5] = [
    "private-registry-authentication.secretsmanager",
    "secrets.asm.environment-variables",
    "secrets.ssm.environment-variables",
    "secrets.asm.bootstrap.log-driver",
    "secrets.ssm.bootstrap.log-driver",
];

/// What a host can do whose engine speaks to log routers.
const FIRELENS: [&str; 5] = [
    "firelens.fluentbit",
    "firelens.fluentd",
    "firelens.non-root-user",
    "firelens.options.config.file",
    "logging-driver.awsfirelens.log-driver-buffer-limit",
];
/// A volume driver's name in an attribute, where `:` is no letter; none where it has others that are not. The
/// control plane asks for it in the same form.
fn driver_attribute(driver: &str) -> Option<String> {
    let is_letter = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
    let name = driver.replace(':', ".");
    (name.len() <= 128 && name.chars().all(is_letter)).then_some(name)
}

/// Attributes and capabilities, under ECS's names. Placement offers the host no task that asks for
/// one that is missing.
#[must_use]
pub fn attributes(
    config: &Config,
    engine: &EngineInfo,
    task_limits: bool,
    network: &Offers,
    faults: &BTreeSet<Kind>,
    gpus: &Inventory,
) -> BTreeMap<String, String> {
    const LEGACY: &str = "com.amazonaws.ecs.capability";
    let mut names: Vec<String> = [
        "container-ordering",
        "container-restart-policy",
        "env-files.s3",
        "full-sync",
        "network.container-port-range",
        "pid-ipc-namespace-sharing",
    ]
    .map(|name| format!("ecs.capability.{name}"))
    .to_vec();
    let (major, minor) = engine.api;
    if major == 1 {
        names.extend((17..=minor).map(|n| format!("{LEGACY}.docker-remote-api.1.{n}")));
    }
    for (offered, name) in [(config.selinux, "selinux"), (config.apparmor, "apparmor")] {
        if offered {
            names.push(format!("{LEGACY}.{name}"));
        }
    }
    if config.secrets.is_some() {
        names.extend(SECRETS.iter().map(|name| format!("ecs.capability.{name}")));
    }
    if config.task_role && config.endpoint.is_some() {
        names.push(format!("{LEGACY}.task-iam-role"));
        if config.task_role_on_host {
            names.push(format!("{LEGACY}.task-iam-role-network-host"));
        }
    }
    if config.remote_exec {
        names.push("ecs.capability.execute-command".to_owned());
    }
    if !config.disable_privileged {
        names.push(format!("{LEGACY}.privileged-container"));
    }
    if task_limits {
        names.extend(
            ["task-cpu-mem-limit", "increased-task-cpu-limit"].map(|name| format!("ecs.capability.{name}")),
        );
    }
    if !network.providers.is_empty() {
        names.push("ecs.capability.task-eni".to_owned());
        if network.blocks_instance_metadata {
            names.push("ecs.capability.task-eni-block-instance-metadata".to_owned());
        }
        names.extend(network.providers.iter().map(|provider| format!("berth.eni-provider.{provider}")));
    }
    // Without their endpoint tasks cannot ask for any.
    if config.endpoint.is_some() {
        if faults.contains(&Kind::BlackHole) {
            names.push("ecs.capability.fault-injection".to_owned());
        }
        names.extend(faults.iter().map(|kind| format!("berth.fault.{}", kind.as_str())));
    }
    let drivers = engine.volume_drivers.iter().filter_map(|driver| driver_attribute(driver));
    names.extend(drivers.map(|driver| format!("{LEGACY}.docker-plugin.{driver}")));
    names.extend(OFFERED.iter().map(|name| format!("berth.capability.{name}")));
    if !gpus.ids.is_empty() {
        names.push("berth.capability.gpu".to_owned());
        names.extend(gpus.driver.iter().map(|v| format!("ecs.capability.nvidia-driver-version.{v}")));
    }
    if !config.disable_health_check {
        names.push("ecs.capability.container-health-check".to_owned());
    }
    // The router is spoken to by this driver, whatever drivers the operator lists: ECS offers it unasked.
    if engine.log_drivers.iter().any(|driver| driver == "fluentd") {
        names.push(format!("{LEGACY}.logging-driver.{FIRELENS_DRIVER}"));
        names.extend(FIRELENS.iter().map(|name| format!("ecs.capability.{name}")));
        if config.object_store.is_some() {
            names.push("ecs.capability.firelens.options.config.s3".to_owned());
        }
    }
    // Drivers that need no configuration of their own work as the engine's default.
    let usable = |driver: &&String| driver.as_str() == "none" || engine.log_drivers.contains(driver);
    names.extend(
        config.log_drivers.iter().filter(usable).map(|driver| format!("{LEGACY}.logging-driver.{driver}")),
    );

    let mut attributes: BTreeMap<String, String> =
        names.into_iter().map(|name| (name, String::new())).collect();
    attributes.insert("ecs.os-type".to_owned(), "linux".to_owned());
    attributes.insert("ecs.os-family".to_owned(), "LINUX".to_owned());
    let architecture = match std::env::consts::ARCH {
        "aarch64" => "arm64",
        other => other,
    };
    attributes.insert("ecs.cpu-architecture".to_owned(), architecture.to_owned());
    if let Some(version) = gpus.driver.as_ref().filter(|_| !gpus.ids.is_empty()) {
        attributes.insert("ecs.capability.gpu-driver-version".to_owned(), version.clone());
    }
    attributes.extend(instance_type(config).map(|name| ("ecs.instance-type".to_owned(), name)));
    attributes.extend(config.attributes.clone());
    attributes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Variables;

    #[test]
    fn an_ec2_instance_tells_its_type() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("product_name"), "m5.large\n").unwrap();
        assert_eq!(firmware_type(dir.path()), None);
        fs::write(dir.path().join("sys_vendor"), "QEMU\n").unwrap();
        assert_eq!(firmware_type(dir.path()), None);
        fs::write(dir.path().join("sys_vendor"), "Amazon EC2\n").unwrap();
        assert_eq!(firmware_type(dir.path()).as_deref(), Some("m5.large"));
    }

    #[test]
    fn a_host_with_gpus_says_so_and_names_their_driver() {
        let config = Config::read(&Variables::default()).unwrap();
        let offered = |gpus: &Inventory| {
            let all = attributes(
                &config,
                &EngineInfo::default(),
                false,
                &Offers::default(),
                &BTreeSet::new(),
                gpus,
            );
            all.into_iter()
                .filter(|(name, _)| name.contains("gpu") || name.contains("nvidia"))
                .collect::<Vec<_>>()
        };
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let ids = vec![berth_core::ids::GpuId::new("GPU-1").unwrap()];
        let driver = Some("535.104.05".to_owned());
        assert_eq!(
            offered(&Inventory { driver: driver.clone(), ids: ids.clone() }),
            [
                pair("berth.capability.gpu", ""),
                pair("ecs.capability.gpu-driver-version", "535.104.05"),
                pair("ecs.capability.nvidia-driver-version.535.104.05", ""),
            ]
        );
        assert_eq!(offered(&Inventory { driver: None, ids }), [pair("berth.capability.gpu", "")]);
        assert!(offered(&Inventory { driver, ids: Vec::new() }).is_empty(), "a driver without a device");
    }

    #[test]
    fn a_plug_in_that_has_a_tag_has_an_attribute_and_one_with_a_strange_name_has_none() {
        assert_eq!(driver_attribute("vieux/sshfs:latest").as_deref(), Some("vieux/sshfs.latest"));
        assert_eq!(driver_attribute("local").as_deref(), Some("local"));
        assert_eq!(driver_attribute("what is this?"), None);
        assert_eq!(driver_attribute(&"x".repeat(129)), None);
    }

    #[test]
    fn memory_is_the_lesser_of_the_hosts_and_its_cgroups() {
        let dir = tempfile::tempdir().unwrap();
        let meminfo = dir.path().join("meminfo");
        fs::write(&meminfo, "MemTotal:       4194304 kB\nMemFree: 1 kB\n").unwrap();
        assert_eq!(memory(&meminfo, Some(dir.path())).unwrap(), Mebibytes(4096));
        fs::write(dir.path().join("memory.max"), "max\n").unwrap();
        assert_eq!(memory(&meminfo, Some(dir.path())).unwrap(), Mebibytes(4096));
        fs::write(dir.path().join("memory.max"), "1073741824\n").unwrap();
        assert_eq!(memory(&meminfo, Some(dir.path())).unwrap(), Mebibytes(1024));
        fs::remove_file(dir.path().join("memory.max")).unwrap();
        fs::create_dir(dir.path().join("memory")).unwrap();
        fs::write(dir.path().join("memory/memory.limit_in_bytes"), "9223372036854771712\n").unwrap();
        assert_eq!(memory(&meminfo, Some(dir.path())).unwrap(), Mebibytes(4096));
    }

    #[test]
    fn log_routers_are_offered_where_the_engine_speaks_to_them_whatever_the_operator_lists() {
        let offered = |drivers: &[&str], variables: &[(&str, &str)]| {
            let config = Config::read(&variables.iter().copied().collect::<Variables>()).unwrap();
            let drivers = drivers.iter().map(|driver| (*driver).to_owned()).collect();
            let engine = EngineInfo { log_drivers: drivers, ..EngineInfo::default() };
            let names = attributes(
                &config,
                &engine,
                true,
                &Offers::default(),
                &BTreeSet::new(),
                &Inventory::default(),
            );
            let names = names.into_keys();
            names.filter(|name| name.contains("firelens")).collect::<Vec<_>>()
        };
        let usual = [
            "com.amazonaws.ecs.capability.logging-driver.awsfirelens",
            "ecs.capability.firelens.fluentbit",
            "ecs.capability.firelens.fluentd",
            "ecs.capability.firelens.non-root-user",
            "ecs.capability.firelens.options.config.file",
            "ecs.capability.logging-driver.awsfirelens.log-driver-buffer-limit",
        ];
        assert_eq!(offered(&["json-file", "fluentd"], &[]), usual);
        let listed = [("ECS_AVAILABLE_LOGGING_DRIVERS", "[\"awsfirelens\"]")];
        assert_eq!(offered(&["json-file"], &listed), Vec::<String>::new());
        let objects = offered(&["fluentd"], &[("BERTH_OBJECT_STORE", "file:///srv")]);
        assert!(objects.contains(&"ecs.capability.firelens.options.config.s3".to_owned()), "{objects:?}");
    }
}
