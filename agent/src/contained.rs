//! The agent in a container of the engine that it drives: which one it is, where the host has what it sees, and
//! what it cannot reach from there. Everything that is missing is told with what to add to `docker run`.

use std::fs;
use std::path::{Component, Path, PathBuf};

use berth_core::ids::EngineId;
use nix::unistd::{AccessFlags, access};

use crate::runtime::{Details, Mounted};

/// Files that every engine mounts from a folder of the container's own, whose name is the container's id.
const FROM_THE_ENGINE: [&str; 3] = ["/etc/hostname", "/etc/hosts", "/etc/resolv.conf"];
const NET_ADMIN: u32 = 12;
const SYS_ADMIN: u32 = 21;
const DBUS: &str = "/run/dbus/system_bus_socket";
/// One of the switches that the kernel has for networks, which whoever may set any may set.
const SWITCH: &str = "/proc/sys/net/ipv4/ip_forward";

/// The container that the agent runs in.
#[derive(Debug, Clone)]
pub struct Contained {
    /// The engine's id of it.
    pub id: EngineId,
    mounts: Vec<Mounted>,
    /// Whether it sees the processes of the engine's host.
    processes: bool,
    /// As capabilities(7) numbers them.
    capabilities: u64,
    /// The mounts from which what is mounted below reaches the host.
    shared: Vec<PathBuf>,
    /// Whether a profile of AppArmor is in force: those that engines give forbid mounts to whoever may else mount.
    confined: bool,
    /// Whether the kernel's switches under `/proc/sys` may be set: engines mount them read-only.
    switches: bool,
}

/// The id that this process's container would have; none where nothing tells of a container.
#[must_use]
pub fn own_id() -> Option<EngineId> {
    id_in(&fs::read_to_string("/proc/self/mountinfo").ok()?)
}

/// proc(5): the root of a mount is the fourth field, the mount point the fifth.
fn id_in(mountinfo: &str) -> Option<EngineId> {
    let is_id = |part: &str| part.len() == 64 && part.bytes().all(|b| b.is_ascii_hexdigit());
    mountinfo.lines().find_map(|line| {
        let mut fields = line.split_whitespace().skip(3);
        let (root, point) = (fields.next()?, fields.next()?);
        let id = FROM_THE_ENGINE.contains(&point).then(|| root.split('/').find(|part| is_id(part)))??;
        EngineId::new(id).ok()
    })
}

/// Whether that text of `/proc/PID/attr` names a profile of AppArmor that is in force (apparmor(7)).
fn confined_in(attribute: &str) -> bool {
    attribute.trim_end_matches(['\n', '\0']).ends_with(" (enforce)")
}

/// The mount points that pass mounts on.
fn shared_in(mountinfo: &str) -> Vec<PathBuf> {
    let shared = |line: &&str| line.split_whitespace().skip(6).any(|field| field.starts_with("shared:"));
    mountinfo.lines().filter(shared).filter_map(|l| Some(l.split_whitespace().nth(4)?.into())).collect()
}

impl Contained {
    /// What the engine tells of the container, and the kernel of this process.
    #[must_use]
    pub fn new(id: EngineId, details: Details) -> Self {
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let attribute = ["/proc/self/attr/apparmor/current", "/proc/self/attr/current"];
        let attribute = attribute.into_iter().find_map(|file| fs::read_to_string(file).ok());
        let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
        Self {
            id,
            mounts: details.mounts,
            // The same number for both: the same view.
            processes: details.pid == std::process::id(),
            capabilities: effective
                .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
                .unwrap_or_default(),
            shared: shared_in(&fs::read_to_string("/proc/self/mountinfo").unwrap_or_default()),
            confined: attribute.is_some_and(|attribute| confined_in(&attribute)),
            switches: access(SWITCH, AccessFlags::W_OK).is_ok(),
        }
    }

    /// Where the host has what is at that path in the container; none where it is the container's own.
    #[must_use]
    pub fn on_host(&self, path: &Path) -> Option<PathBuf> {
        let below = |mount: &Mounted| {
            let rest = path.strip_prefix(&mount.destination).ok()?;
            let depth = Path::new(&mount.destination).components().count();
            let whole = rest.components().all(|part| matches!(part, Component::Normal(_)));
            let source = Path::new(&mount.source);
            let found = if rest.as_os_str().is_empty() { source.to_owned() } else { source.join(rest) };
            (whole && source.is_absolute()).then_some((depth, found))
        };
        self.mounts.iter().filter_map(below).max_by_key(|(depth, _)| *depth).map(|(_, found)| found)
    }

    /// Whether it sees the processes of the engine's host.
    #[must_use]
    pub const fn sees_processes(&self) -> bool {
        self.processes
    }

    fn may(&self, capability: u32) -> bool {
        self.capabilities & (1 << capability) != 0
    }

    /// What to add so that tasks can have cgroups; nothing where they can.
    #[must_use]
    pub fn for_cgroups(&self, mount: &Path, systemd: bool) -> Vec<String> {
        let mut missing = Vec::new();
        if !self.processes {
            missing.push("--pid=host".to_owned());
        }
        if !self.sees_cgroups(mount) {
            missing.push(format!("--volume={0}:{0}", mount.display()));
        }
        if systemd && !Path::new(DBUS).exists() {
            missing.push(format!("--volume={DBUS}:{DBUS}"));
        }
        missing
    }

    /// Whether the engine's own hierarchy is there, and not this container's part of it, and may be changed.
    fn sees_cgroups(&self, mount: &Path) -> bool {
        let given = self.on_host(mount).is_some();
        // The root of a hierarchy has a file of its own in v1, and lacks one in v2.
        let memory = mount.join("memory");
        let (root, changed) = if memory.is_dir() {
            (memory.join("cgroup.sane_behavior").exists(), memory)
        } else {
            (!mount.join("cgroup.type").exists(), mount.to_owned())
        };
        (given || root) && access(&changed, AccessFlags::W_OK).is_ok()
    }

    /// What to add so that tasks can have interfaces of their own; nothing where they can.
    #[must_use]
    pub fn for_interfaces(&self, data_dir: &Path) -> Vec<String> {
        let mut missing = self.for_endpoint();
        if !self.may(SYS_ADMIN) {
            missing.push("--cap-add=SYS_ADMIN".to_owned());
        }
        if !self.switches {
            missing.push("--security-opt=systempaths=unconfined".to_owned());
        }
        if self.confined {
            missing.push("--security-opt=apparmor=unconfined".to_owned());
        }
        if !self.processes {
            missing.push("--pid=host".to_owned());
        }
        // Namespaces are held open by mounts, which have to outlive the agent's container.
        let holding = self.shared.iter().any(|at| data_dir.starts_with(at) && at.as_os_str() != "/");
        if !holding {
            let source = self.on_host(data_dir).unwrap_or_else(|| PathBuf::from("/var/lib/ecs/data"));
            missing.push(format!("--volume={}:{}:shared", source.display(), data_dir.display()));
        }
        missing
    }

    /// What to add so that tasks can ask about themselves.
    #[must_use]
    pub fn for_endpoint(&self) -> Vec<String> {
        if self.may(NET_ADMIN) { Vec::new() } else { vec!["--cap-add=NET_ADMIN".to_owned()] }
    }

    /// What to add so that the agent keeps credentials across its own restarts. Their key may be in a folder of
    /// the host's that a reboot empties, and not in the container's, which is on the disk.
    #[must_use]
    pub fn for_credentials(&self, run_dir: &Path) -> Vec<String> {
        let given = self.on_host(run_dir).is_some();
        if given { Vec::new() } else { vec![format!("--volume=/run/berth:{}", run_dir.display())] }
    }

    /// What to add so that the engine's disk is looked at.
    #[must_use]
    pub fn for_disk(&self, root: &str) -> Vec<String> {
        let seen = root.is_empty() || Path::new(root).is_dir();
        if seen { Vec::new() } else { vec![format!("--volume={root}:{root}:ro")] }
    }
}

/// Tells in one line what there is not in this container, and what to add for it. Whether there was anything.
pub fn tell(what: &str, missing: &[String]) -> bool {
    if !missing.is_empty() {
        tracing::warn!("in this container: {what}; to have that, add {}", missing.join(" "));
    }
    !missing.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "3f4e5d6c7b8a99887766554433221100ffeeddccbbaa99887766554433221100";

    fn contained(mounts: &[(&str, &str)]) -> Contained {
        let mounts = mounts.iter().map(|(source, destination)| Mounted {
            volume: String::new(),
            source: (*source).to_owned(),
            destination: (*destination).to_owned(),
        });
        Contained {
            id: EngineId::new(ID).unwrap(),
            mounts: mounts.collect(),
            processes: false,
            capabilities: 0,
            shared: Vec::new(),
            confined: false,
            switches: false,
        }
    }

    #[test]
    fn a_container_is_known_by_what_its_engine_mounts() {
        let line =
            |root: &str, point: &str| format!("36 35 98:0 {root} {point} rw,noatime - ext4 /dev/root rw\n");
        let own = line(&format!("/var/lib/docker/containers/{ID}/hostname"), "/etc/hostname");
        assert_eq!(id_in(&own).unwrap().as_str(), ID);
        let podman = line(&format!("/overlay-containers/{ID}/userdata/resolv.conf"), "/etc/resolv.conf");
        assert_eq!(id_in(&podman).unwrap().as_str(), ID);
        let others = line(&format!("/var/lib/docker/containers/{ID}/hostname"), "/mnt/hostname");
        assert_eq!(id_in(&others), None);
        assert_eq!(id_in(&line("/etc/hostname", "/etc/hostname")), None);
        assert_eq!(id_in(""), None);
    }

    #[test]
    fn a_profile_that_is_in_force_is_known() {
        assert!(confined_in("docker-default (enforce)\n"));
        for free in ["unconfined\n", "docker-default (complain)\n", "system_u:system_r:container_t:s0\0", ""]
        {
            assert!(!confined_in(free), "{free:?}");
        }
    }

    #[test]
    fn paths_are_the_hosts_where_the_host_gave_them() {
        let contained =
            contained(&[("/var/lib/ecs/data", "/data"), ("/srv/deep", "/data/deep"), ("", "/shm")]);
        let on_host = |path: &str| contained.on_host(Path::new(path)).map(|p| p.display().to_string());
        assert_eq!(on_host("/data").as_deref(), Some("/var/lib/ecs/data"));
        assert_eq!(on_host("/data/metadata/x").as_deref(), Some("/var/lib/ecs/data/metadata/x"));
        assert_eq!(on_host("/data/deep/x").as_deref(), Some("/srv/deep/x"));
        assert_eq!(on_host("/database"), None);
        assert_eq!(on_host("/shm"), None);
        assert_eq!(on_host("/data/../etc"), None);
    }

    #[test]
    fn what_is_missing_is_named_as_docker_run_has_it() {
        let bare = contained(&[("/var/lib/ecs/data", "/data")]);
        assert_eq!(bare.for_endpoint(), ["--cap-add=NET_ADMIN"]);
        assert_eq!(
            bare.for_interfaces(Path::new("/data")),
            [
                "--cap-add=NET_ADMIN",
                "--cap-add=SYS_ADMIN",
                "--security-opt=systempaths=unconfined",
                "--pid=host",
                "--volume=/var/lib/ecs/data:/data:shared"
            ]
        );
        let confined = Contained { confined: true, ..bare.clone() };
        let flags = confined.for_interfaces(Path::new("/data"));
        assert!(flags.contains(&"--security-opt=apparmor=unconfined".to_owned()), "{flags:?}");
        assert_eq!(bare.for_credentials(Path::new("/run/berth")), ["--volume=/run/berth:/run/berth"]);
        let full = Contained {
            processes: true,
            switches: true,
            capabilities: 1 << NET_ADMIN | 1 << SYS_ADMIN,
            shared: shared_in("36 35 98:0 /var/lib/ecs/data /data rw shared:7 - ext4 /dev/root rw"),
            ..contained(&[("/var/lib/ecs/data", "/data"), ("/run/berth", "/run/berth")])
        };
        assert!(full.for_interfaces(Path::new("/data")).is_empty());
        assert!(full.for_endpoint().is_empty());
        assert!(full.for_credentials(Path::new("/run/berth")).is_empty());
    }
}
