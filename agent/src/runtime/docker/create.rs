//! From a container's specification to what the engine is asked for.

use std::collections::{BTreeMap, HashMap};

use berth_core::ids::EngineId;
use berth_core::spec::{ContainerSpec, EnvVar, HealthCheck, LogConfiguration, NetworkMode, Sharing, Tmpfs};
use berth_core::task::PortBinding;
use berth_core::units::{CpuUnits, Mebibytes, Millis};
use bollard::models::{
    ContainerCreateBody, DeviceMapping, DeviceRequest, HealthConfig, HostConfig, HostConfigLogConfig,
    PortBinding as HostPort, PortMap, ResourcesUlimits,
};

use super::convert::{Inspected, owner};
use super::volumes;
use crate::runtime::{CreateRequest, Fetched, RuntimeError, labels};

/// The kernel's smallest and largest CPU weight in the scale of shares.
const SHARES: (i64, i64) = (2, 262_144);
/// The least memory that the engine accepts as a bound.
const LEAST_MEMORY: Mebibytes = Mebibytes(6);
/// What the driver's tools, and programs that ask it, go by.
const VISIBLE_GPUS: &str = "NVIDIA_VISIBLE_DEVICES";

/// The body of the request. Containers with GPUs go by `gpu_runtime`, if there is one.
///
/// # Errors
/// [`RuntimeError::Refused`] for what this engine cannot do.
pub(super) fn body(
    request: &CreateRequest,
    namespace: Option<&str>,
    gpu_runtime: Option<&str>,
) -> Result<ContainerCreateBody, RuntimeError> {
    let spec = request.spec();
    let ports = ports(request);
    Ok(ContainerCreateBody {
        image: Some(spec.image.clone()),
        // The engine's rule is ECS's: an entry point without a command drops the image's command,
        // a command alone keeps the image's entry point. An empty list says nothing.
        entrypoint: words(spec.entry_point.as_ref()),
        cmd: words(spec.command.as_ref()),
        env: Some(environment(request)),
        user: spec.user.clone(),
        working_dir: spec.working_directory.clone(),
        hostname: spec.hostname.clone(),
        labels: Some(merged_labels(request, namespace)),
        open_stdin: Some(spec.interactive),
        tty: Some(spec.pseudo_terminal),
        healthcheck: spec.health_check.as_ref().map(health_check),
        exposed_ports: ports.as_ref().map(|ports| ports.keys().cloned().collect()),
        host_config: Some(host_config(request, ports, gpu_runtime)?),
        ..ContainerCreateBody::default()
    })
}

fn host_config(
    request: &CreateRequest,
    ports: Option<PortMap>,
    gpu_runtime: Option<&str>,
) -> Result<HostConfig, RuntimeError> {
    let spec = request.spec();
    let linux = &spec.linux;
    Ok(HostConfig {
        network_mode: Some(network_mode(request)?),
        port_bindings: ports,
        cgroup_parent: request.cgroup_parent.clone(),
        cpu_shares: Some(shares(spec.cpu)),
        memory: spec.memory.map(bytes),
        memory_reservation: spec.memory_reservation.map(bytes),
        readonly_rootfs: Some(spec.readonly_root_filesystem),
        privileged: Some(spec.privileged),
        ulimits: some(spec.ulimits.iter().map(|limit| ResourcesUlimits {
            name: Some(limit.name.clone()),
            soft: Some(limit.soft),
            hard: Some(limit.hard),
        })),
        extra_hosts: some(spec.extra_hosts.iter().map(|(name, address)| format!("{name}:{address}"))),
        links: some(request.links.iter().map(|(container, alias)| format!("{container}:{alias}"))),
        dns: some(spec.dns_servers.iter().cloned()),
        dns_search: some(spec.dns_search_domains.iter().cloned()),
        pid_mode: request.task.pid_mode.map(|mode| sharing(mode, request)).transpose()?,
        ipc_mode: request.task.ipc_mode.map(|mode| sharing(mode, request)).transpose()?,
        cap_add: some(linux.add_capabilities.iter().cloned()),
        cap_drop: some(linux.drop_capabilities.iter().cloned()),
        devices: some(linux.devices.iter().map(|device| DeviceMapping {
            path_on_host: Some(device.host_path.clone()),
            path_in_container: Some(device.container_path.clone()),
            cgroup_permissions: Some(device.permissions.clone()),
        })),
        device_requests: gpu_runtime.is_none().then(|| gpus(request)).flatten(),
        runtime: gpu_runtime.filter(|_| !request.gpus.is_empty()).map(str::to_owned),
        init: linux.init_process.then_some(true),
        shm_size: linux.shared_memory.map(exact_bytes),
        // Beside a bound of memory alone: the engine's figure is of both together.
        memory_swap: spec.memory.zip(linux.max_swap).map(|(memory, swap)| bytes(memory) + exact_bytes(swap)),
        memory_swappiness: linux.max_swap.and(linux.swappiness).map(i64::from),
        tmpfs: map(linux.tmpfs.iter().map(|tmpfs| (tmpfs.path.clone(), tmpfs_options(tmpfs)))),
        sysctls: map(system_controls(spec, request.task.network_mode)),
        security_opt: some(spec.security_options.iter().cloned()),
        log_config: request.log.as_ref().map(|log| log_config(log, &request.fetched)),
        binds: some(volumes::binds(request)),
        mounts: some(volumes::mounts(request)),
        volumes_from: some(
            request.volumes_from.iter().map(|(container, read_only)| {
                format!("{container}:{}", if *read_only { "ro" } else { "rw" })
            }),
        ),
        ..HostConfig::default()
    })
}

/// The devices by their ids, as `docker run --gpus device=…` asks for them.
fn gpus(request: &CreateRequest) -> Option<Vec<DeviceRequest>> {
    let devices = DeviceRequest {
        driver: Some("nvidia".to_owned()),
        device_ids: Some(gpu_ids(request)),
        capabilities: Some(vec![vec!["gpu".to_owned()]]),
        ..DeviceRequest::default()
    };
    (!request.gpus.is_empty()).then(|| vec![devices])
}

fn gpu_ids(request: &CreateRequest) -> Vec<String> {
    request.gpus.iter().map(ToString::to_string).collect()
}

fn network_mode(request: &CreateRequest) -> Result<String, RuntimeError> {
    if request.spec().disable_networking {
        return Ok(NetworkMode::None.as_str().to_owned());
    }
    match (request.task.network_mode, &request.holder) {
        (NetworkMode::Awsvpc, Some(holder)) => Ok(format!("container:{holder}")),
        (NetworkMode::Awsvpc, None) => Err(RuntimeError::Refused(format!(
            "container {}: the task's network namespace is not there",
            request.spec().name
        ))),
        (mode, _) => Ok(mode.as_str().to_owned()),
    }
}

fn sharing(sharing: Sharing, request: &CreateRequest) -> Result<String, RuntimeError> {
    match sharing {
        Sharing::Host => Ok("host".to_owned()),
        Sharing::Task => of_holder(request),
        Sharing::None => Ok("none".to_owned()),
    }
}

/// The namespace of the container that holds it for the task.
fn of_holder(request: &CreateRequest) -> Result<String, RuntimeError> {
    let holder = request.holder.as_ref().map(|holder| format!("container:{holder}"));
    holder.ok_or_else(|| RuntimeError::Refused("no container holds the task's namespaces".to_owned()))
}

fn tmpfs_options(tmpfs: &Tmpfs) -> String {
    let size = format!("size={}", tmpfs.size.bytes());
    tmpfs.options.iter().chain([&size]).cloned().collect::<Vec<_>>().join(",")
}

/// In `awsvpc` the controls of the network are the task's, which shares one: the agent sets them.
fn system_controls(
    spec: &ContainerSpec,
    network: NetworkMode,
) -> impl Iterator<Item = (String, String)> + '_ {
    let ours = move |name: &str| network == NetworkMode::Awsvpc && name.starts_with("net.");
    spec.system_controls.iter().filter(move |(name, _)| !ours(name)).cloned()
}

fn log_config(log: &LogConfiguration, fetched: &Fetched) -> HostConfigLogConfig {
    let secret = fetched.log_options.iter().map(|option| (option.name.clone(), option.value.clone()));
    HostConfigLogConfig {
        typ: Some(log.driver.clone()),
        config: map(log.options.clone().into_iter().chain(secret)),
    }
}

pub(super) fn map(pairs: impl IntoIterator<Item = (String, String)>) -> Option<HashMap<String, String>> {
    let pairs: HashMap<String, String> = pairs.into_iter().collect();
    (!pairs.is_empty()).then_some(pairs)
}

fn some<T>(items: impl Iterator<Item = T>) -> Option<Vec<T>> {
    let items: Vec<T> = items.collect();
    (!items.is_empty()).then_some(items)
}

fn words(list: Option<&Vec<String>>) -> Option<Vec<String>> {
    list.filter(|words| !words.is_empty()).cloned()
}

/// The weight that the kernel is given: 0 and 1 mean the least.
fn shares(cpu: CpuUnits) -> i64 {
    i64::from(cpu.0).clamp(SHARES.0, SHARES.1)
}

fn bytes(memory: Mebibytes) -> i64 {
    i64::try_from(memory.max(LEAST_MEMORY).bytes()).unwrap_or(i64::MAX)
}

fn exact_bytes(amount: Mebibytes) -> i64 {
    i64::try_from(amount.bytes()).unwrap_or(i64::MAX)
}

fn nanoseconds(span: Millis) -> i64 {
    i64::try_from(span.0.saturating_mul(1_000_000)).unwrap_or(i64::MAX)
}

fn health_check(check: &HealthCheck) -> HealthConfig {
    HealthConfig {
        test: Some(check.command.clone()),
        interval: Some(nanoseconds(check.interval)),
        timeout: Some(nanoseconds(check.timeout)),
        retries: Some(i64::from(check.retries)),
        start_period: Some(nanoseconds(check.start_period)),
        ..HealthConfig::default()
    }
}

/// Each name once: secrets over the definition's own values, these over those of environment files. Which
/// GPUs a container sees is nobody's to say but the agent's.
fn environment(request: &CreateRequest) -> Vec<String> {
    let mut merged: Vec<(&str, &str)> = Vec::new();
    let (fetched, own) = (&request.fetched, &request.spec().environment);
    let gpus = (!request.gpus.is_empty())
        .then(|| EnvVar { name: VISIBLE_GPUS.to_owned(), value: gpu_ids(request).join(",") });
    let all = fetched.below.iter().chain(own).chain(&fetched.above).chain(&gpus);
    for (name, value) in all.map(|var| (var.name.as_str(), var.value.as_str())) {
        match merged.iter_mut().find(|(known, _)| *known == name) {
            Some(entry) => entry.1 = value,
            None => merged.push((name, value)),
        }
    }
    merged.into_iter().map(|(name, value)| format!("{name}={value}")).collect()
}

fn merged_labels(request: &CreateRequest, namespace: Option<&str>) -> HashMap<String, String> {
    let user = request.spec().docker_labels.iter();
    let agent = request.labels.iter();
    let mut merged: HashMap<String, String> =
        user.chain(agent).map(|(k, v)| (k.clone(), v.clone())).collect();
    // Whose container it is must not hang on the caller's care: events and listings go by these.
    merged.insert(labels::TASK_ARN.to_owned(), request.task.arn.to_string());
    merged.insert(labels::CONTAINER_NAME.to_owned(), request.spec().name.to_string());
    if let Some(namespace) = namespace {
        merged.insert(labels::AGENT.to_owned(), namespace.to_owned());
    }
    merged
}

/// The port bindings, where the network mode has any: ranges pair by pair.
fn ports(request: &CreateRequest) -> Option<PortMap> {
    if request.task.network_mode != NetworkMode::Bridge || request.spec().disable_networking {
        return None;
    }
    let mut map: BTreeMap<String, Vec<HostPort>> = BTreeMap::new();
    let ours = |binding: &&PortBinding| binding.container == request.spec().name;
    for binding in request.bindings.iter().filter(ours) {
        for (inside, outside) in binding.container_ports.ports().zip(binding.host_ports.ports()) {
            map.entry(format!("{inside}/{}", binding.protocol))
                .or_default()
                .push(HostPort { host_ip: None, host_port: Some(outside.to_string()) });
        }
    }
    (!map.is_empty()).then(|| map.into_iter().map(|(port, hosts)| (port, Some(hosts))).collect())
}

/// Whether the container that has the wanted name already is the one that an earlier request of
/// the same kind made.
///
/// # Errors
/// [`RuntimeError::StartedBefore`] where it ran since; [`RuntimeError::Refused`] naming the container of others that
/// is in the way.
pub(super) fn adopt(request: &CreateRequest, found: &Inspected) -> Result<(), RuntimeError> {
    let name = &request.name;
    let in_the_way = found.name.trim_start_matches('/');
    match owner(&found.config.labels) {
        Some((task, container)) if task == request.task.arn && container == request.spec().name => {
            if found.state.was_started() {
                let id =
                    EngineId::new(&found.id).map_err(|error| RuntimeError::Refused(error.to_string()))?;
                return Err(RuntimeError::StartedBefore(id));
            }
            Ok(())
        }
        Some((task, container)) => Err(RuntimeError::Refused(format!(
            "the name {name} belongs to container {container} of task {task} ({in_the_way}, {})",
            found.id
        ))),
        None => Err(RuntimeError::Refused(format!(
            "the name {name} belongs to a container of somebody else ({in_the_way}, {})",
            found.id
        ))),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use berth_core::ids::{ContainerName, EngineId, Family, GpuId, TaskArn};
    use berth_core::spec::{ContainerSpec, TaskFields, TaskSpec};
    use berth_core::units::{PortRange, Protocol};

    use super::*;
    use crate::runtime::HostMount;

    const ARN: &str = "arn:aws:ecs:eu-west-1:123456789012:task/blue/0123456789abcdef0123456789abcdef";

    fn request(mode: NetworkMode, change: impl FnOnce(&mut ContainerSpec)) -> CreateRequest {
        let mut spec = ContainerSpec::minimal(ContainerName::new("web").unwrap(), "nginx", Mebibytes(4));
        change(&mut spec);
        let task = TaskSpec::try_from(TaskFields {
            arn: TaskArn::new(ARN).unwrap(),
            family: Family::new("f").unwrap(),
            revision: 1,
            network_mode: mode,
            cpu: None,
            memory: None,
            containers: vec![spec],
            attachment: None,
            pid_mode: None,
            ipc_mode: None,
            volumes: Vec::new(),
            task_role: None,
            fault_injection: false,
        })
        .unwrap();
        CreateRequest {
            name: "n".to_owned(),
            task: Arc::new(task),
            container: 0,
            bindings: Vec::new(),
            gpus: Vec::new(),
            links: Vec::new(),
            volumes: BTreeMap::new(),
            volumes_from: Vec::new(),
            host_mounts: Vec::new(),
            log: None,
            cgroup_parent: Some("/ecs/x".to_owned()),
            holder: None,
            labels: BTreeMap::from([("both".to_owned(), "agent".to_owned())]),
            fetched: Fetched {
                below: vec![var("A", "file"), var("B", "file")],
                above: vec![var("D", "secret")],
                log_options: Vec::new(),
            },
        }
    }

    fn var(name: &str, value: &str) -> EnvVar {
        EnvVar { name: name.to_owned(), value: value.to_owned() }
    }

    #[test]
    fn secrets_win_over_the_definition_and_that_over_files_and_the_agents_labels_over_all() {
        let request = request(NetworkMode::Bridge, |spec| {
            spec.environment = vec![var("B", "user"), var("C", "1"), var("C", "2"), var("D", "user")];
            spec.docker_labels = BTreeMap::from([("both".to_owned(), "user".to_owned())]);
        });
        let body = body(&request, Some("ns"), None).unwrap();
        assert_eq!(body.env.unwrap(), ["A=file", "B=user", "C=2", "D=secret"]);
        let made = body.labels.unwrap();
        assert_eq!(made["both"], "agent");
        assert_eq!(made[labels::AGENT], "ns");
        assert_eq!(made[labels::TASK_ARN], ARN);
    }

    #[test]
    fn limits_keep_to_what_kernel_and_engine_accept() {
        let body = body(&request(NetworkMode::Host, |spec| spec.cpu = CpuUnits(1)), None, None).unwrap();
        let host = body.host_config.unwrap();
        assert_eq!((host.cpu_shares, host.memory, host.memory_swap), (Some(2), Some(6 << 20), None));
        assert_eq!(host.network_mode.as_deref(), Some("host"));
        assert_eq!(shares(CpuUnits(1_000_000)), 262_144);
    }

    #[test]
    fn empty_lists_say_nothing() {
        let body = body(
            &request(NetworkMode::None, |spec| {
                spec.entry_point = Some(Vec::new());
                spec.command = Some(vec!["run".to_owned()]);
            }),
            None,
            None,
        )
        .unwrap();
        assert_eq!((body.entrypoint, body.cmd.unwrap().len()), (None, 1));
    }

    #[test]
    fn gpus_are_asked_for_by_their_ids_and_nobody_else_says_which_are_seen() {
        let mut request = request(NetworkMode::Bridge, |spec| {
            spec.gpus = 2;
            spec.environment = vec![var("NVIDIA_VISIBLE_DEVICES", "all")];
        });
        request.fetched.above = vec![var("NVIDIA_VISIBLE_DEVICES", "all")];
        request.gpus = ["GPU-1", "GPU-2"].map(|id| GpuId::new(id).unwrap()).to_vec();
        let made = body(&request, None, None).unwrap();
        assert!(made.env.unwrap().contains(&"NVIDIA_VISIBLE_DEVICES=GPU-1,GPU-2".to_owned()));
        let host = serde_json::to_value(made.host_config.unwrap()).unwrap();
        let devices = serde_json::json!([{"Driver": "nvidia", "DeviceIDs": ["GPU-1", "GPU-2"], "Capabilities": [["gpu"]]}]);
        assert_eq!((&host["DeviceRequests"], &host["Runtime"]), (&devices, &serde_json::Value::Null));
        // A runtime that goes by the variable is not to meet with a request for the same devices.
        let made = body(&request, None, Some("nvidia")).unwrap();
        assert!(made.env.unwrap().contains(&"NVIDIA_VISIBLE_DEVICES=GPU-1,GPU-2".to_owned()));
        let host = made.host_config.unwrap();
        assert_eq!((host.device_requests, host.runtime.as_deref()), (None, Some("nvidia")));
        // Without GPUs a container is as ever.
        request.gpus.clear();
        let host = body(&request, None, Some("nvidia")).unwrap().host_config.unwrap();
        assert_eq!((host.device_requests, host.runtime), (None, None));
    }

    #[test]
    fn ranges_are_bound_pair_by_pair_and_only_on_the_bridge() {
        let binding = |container: &str| PortBinding {
            container: ContainerName::new(container).unwrap(),
            container_ports: PortRange::new(80, 81).unwrap(),
            host_ports: PortRange::new(8080, 8081).unwrap(),
            protocol: Protocol::Udp,
        };
        let mut request = request(NetworkMode::Bridge, |_| ());
        request.bindings = vec![binding("web"), binding("other")];
        let made = body(&request, None, None).unwrap();
        let bound = made.host_config.unwrap().port_bindings.unwrap();
        assert_eq!(bound.len(), 2);
        assert_eq!(bound["81/udp"].as_ref().unwrap()[0].host_port.as_deref(), Some("8081"));
        assert_eq!(made.exposed_ports.unwrap().len(), 2);
    }

    #[test]
    fn folders_of_the_agent_are_seen_and_not_changed() {
        let mut request = request(NetworkMode::None, |_| ());
        let (host_path, path) = ("/data".to_owned(), "/opt".to_owned());
        let mount = HostMount { host_path, path, read_only: true, relabel: false };
        request.host_mounts = vec![mount.clone(), HostMount { relabel: true, ..mount }];
        let host = body(&request, None, None).unwrap().host_config.unwrap();
        assert_eq!(host.binds.unwrap(), ["/data:/opt:ro,Z"]);
        let mounts = host.mounts.unwrap();
        assert_eq!(
            (mounts.len(), mounts[0].read_only, mounts[0].target.as_deref()),
            (1, Some(true), Some("/opt"))
        );
    }

    #[test]
    fn containers_of_awsvpc_tasks_join_the_namespace_of_another() {
        let mut request = request(NetworkMode::Awsvpc, |_| ());
        let refused = body(&request, None, None).unwrap_err().to_string();
        assert!(refused.contains("web") && refused.contains("namespace"), "{refused}");
        request.holder = Some(EngineId::new("c0ffee").unwrap());
        let joined = body(&request, None, None).unwrap().host_config.unwrap().network_mode;
        assert_eq!(joined.as_deref(), Some("container:c0ffee"));
    }

    #[test]
    fn a_container_of_the_same_name_is_adopted_only_when_it_is_ours_and_new() {
        let found = |task: &str, started: &str| -> Inspected {
            serde_json::from_value(serde_json::json!({
                "Id": "c0ffee", "Name": "/n", "State": {"Status": "created", "StartedAt": started},
                "Config": {"Labels": {labels::TASK_ARN: task, labels::CONTAINER_NAME: "web"}},
            }))
            .unwrap()
        };
        let request = request(NetworkMode::Bridge, |_| ());
        let never = "0001-01-01T00:00:00Z";
        assert!(adopt(&request, &found(ARN, never)).is_ok());
        let started = adopt(&request, &found(ARN, "2026-01-02T03:04:05Z")).unwrap_err().to_string();
        assert!(started.contains("started before"), "{started}");
        let other = ARN.replace("0123456789abcdef0123456789abcdef", "ffffffffffffffffffffffffffffffff");
        let refused = adopt(&request, &found(&other, never)).unwrap_err().to_string();
        assert!(refused.contains(&other) && refused.contains("c0ffee"), "{refused}");
    }
}
