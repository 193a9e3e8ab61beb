//! What a simulated host does with its tasks: pure, assignments in, state changes out.
//!
//! Every task runs at once and stops at once. The seam to the session is narrow, so that a truer
//! machine can take its place.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use berth_core::units::Timestamp;
use berth_proto::v1;

use crate::arn;
use crate::model::Instance;

/// First host port that is given to mappings without one.
const FIRST_DYNAMIC_PORT: u32 = 49153;
const LAST_DYNAMIC_PORT: u32 = 65535;
/// What a process that SIGTERM ended exits with.
const TERMINATED: i32 = 143;

/// A host that is not there.
pub(super) struct Host {
    pub(super) arn: String,
    pub(super) host_key: String,
    pub(super) epoch: String,
    pub(super) last_manifest: u64,
    total: v1::Resources,
    next_sequence: u64,
    /// State changes that are not acknowledged.
    outbox: VecDeque<v1::TaskStateChange>,
    tasks: BTreeMap<String, SimulatedTask>,
}

struct SimulatedTask {
    spec: v1::TaskSpec,
    /// The last state that was reported.
    state: v1::TaskStateChange,
}

impl Host {
    pub(super) fn new(instance: &Instance) -> Self {
        let total = &instance.total;
        Self {
            arn: instance.arn.clone(),
            host_key: instance.host_key.clone(),
            epoch: arn::new_container_id(),
            last_manifest: 0,
            total: v1::Resources {
                cpu: total.cpu.0,
                memory_mib: total.memory.0,
                tcp_ports: total.ports.tcp.iter().map(|port| u32::from(*port)).collect(),
                udp_ports: total.ports.udp.iter().map(|port| u32::from(*port)).collect(),
                enis: total.enis,
                gpus: total.gpus,
            },
            next_sequence: 1,
            outbox: VecDeque::new(),
            tasks: BTreeMap::new(),
        }
    }

    /// State changes that were not acknowledged, in order.
    pub(super) fn unacknowledged(&self) -> Vec<v1::TaskStateChange> {
        self.outbox.iter().cloned().collect()
    }

    /// Forgets what is durable elsewhere.
    pub(super) fn acknowledged(&mut self, sequence: u64) {
        while self.outbox.front().is_some_and(|change| change.sequence <= sequence) {
            self.outbox.pop_front();
        }
        let waiting: BTreeSet<&String> = self.outbox.iter().map(|change| &change.task_arn).collect();
        let gone = |task: &SimulatedTask| task.state.status() == v1::TaskStatus::Stopped;
        self.tasks.retain(|arn, task| !gone(task) || waiting.contains(arn));
    }

    /// Does what a payload asks, and returns the new state changes.
    pub(super) fn assign(&mut self, assignment: v1::Assignment, now: Timestamp) -> Vec<v1::TaskStateChange> {
        let before = self.next_sequence;
        let stop = assignment.desired() == v1::DesiredStatus::Stopped;
        let known = self.tasks.get(&assignment.task_arn).map(|task| task.state.status());
        match (known, assignment.spec.clone()) {
            (Some(v1::TaskStatus::Stopped), _) => {}
            (Some(_), _) if stop => self.stop(&assignment.task_arn, assignment.stop, now),
            (Some(_), _) => {}
            (None, Some(spec)) if !stop && assignment.last_heard() != v1::TaskStatus::Running => {
                self.start(assignment.task_arn, spec, now);
            }
            (None, spec) => {
                // It ran in a life that this host does not remember: never a second time.
                let lost = v1::StopCause {
                    code: "TaskFailedToStart".to_owned(),
                    reason: "The simulated host does not know the task.".to_owned(),
                };
                let state =
                    v1::TaskStateChange { task_arn: assignment.task_arn.clone(), ..Default::default() };
                let spec = spec.unwrap_or_default();
                self.tasks.insert(assignment.task_arn.clone(), SimulatedTask { spec, state });
                self.stop(&assignment.task_arn, assignment.stop.or(Some(lost)), now);
            }
        }
        self.outbox.iter().filter(|change| change.sequence >= before).cloned().collect()
    }

    fn report(&mut self, mut change: v1::TaskStateChange) {
        change.sequence = self.next_sequence;
        self.next_sequence += 1;
        if let Some(task) = self.tasks.get_mut(&change.task_arn) {
            task.state = change.clone();
        }
        self.outbox.push_back(change);
    }

    fn start(&mut self, task_arn: String, spec: v1::TaskSpec, now: Timestamp) {
        let mut taken = self.ports_in_use();
        let containers = spec.containers.iter().map(|container| v1::ContainerState {
            name: container.name.clone(),
            status: v1::ContainerStatus::Running.into(),
            runtime_id: format!("{}{}", arn::new_id(), arn::new_id()),
            network_bindings: bindings(&spec.network_mode, container, &mut taken),
            health: match container.health_check {
                Some(_) => v1::HealthStatus::Healthy,
                None => v1::HealthStatus::Unspecified,
            }
            .into(),
            ..Default::default()
        });
        let containers = containers.collect();
        let pending = v1::TaskStateChange {
            task_arn: task_arn.clone(),
            status: v1::TaskStatus::Pending.into(),
            pull_started_at_ms: now.0,
            pull_stopped_at_ms: now.0,
            ..Default::default()
        };
        let running = v1::TaskStateChange {
            status: v1::TaskStatus::Running.into(),
            containers,
            started_at_ms: now.0,
            ..pending.clone()
        };
        self.tasks.insert(task_arn, SimulatedTask { spec, state: pending.clone() });
        self.report(pending);
        self.report(running);
    }

    fn stop(&mut self, task_arn: &str, cause: Option<v1::StopCause>, now: Timestamp) {
        let Some(task) = self.tasks.get(task_arn) else { return };
        let mut change = task.state.clone();
        change.status = v1::TaskStatus::Stopped.into();
        change.stop = cause;
        change.execution_stopped_at_ms = now.0;
        change.stopped_at_ms = now.0;
        for container in &mut change.containers {
            container.status = v1::ContainerStatus::Stopped.into();
            container.exit_code = Some(TERMINATED);
        }
        self.report(change);
    }

    fn running(&self) -> impl Iterator<Item = &SimulatedTask> {
        self.tasks.values().filter(|task| task.state.status() != v1::TaskStatus::Stopped)
    }

    fn ports_in_use(&self) -> BTreeSet<(u32, i32)> {
        let bindings =
            self.running().flat_map(|task| &task.state.containers).flat_map(|c| &c.network_bindings);
        bindings.flat_map(ports_of).collect()
    }

    /// What the host holds now.
    pub(super) fn heartbeat(&self, sequence: u64) -> v1::Heartbeat {
        let mut in_use = v1::Resources::default();
        for task in self.running() {
            let containers = &task.spec.containers;
            let or = |bound: u32, sum: u32| if bound == 0 { sum } else { bound };
            let memory = |c: &v1::ContainerSpec| or(c.memory_reservation_mib, c.memory_mib);
            in_use.cpu += or(task.spec.cpu, containers.iter().map(|c| c.cpu).sum());
            in_use.memory_mib += or(task.spec.memory_mib, containers.iter().map(memory).sum());
            in_use.enis += u32::from(task.spec.network_mode == "awsvpc");
            in_use.gpus += containers.iter().map(|c| c.gpus).sum::<u32>();
        }
        for (port, protocol) in self.ports_in_use() {
            if protocol == i32::from(v1::Protocol::Udp) {
                &mut in_use.udp_ports
            } else {
                &mut in_use.tcp_ports
            }
            .push(port);
        }
        let both = |reserved: &[u32], used: &[u32]| [reserved, used].concat();
        let remaining = v1::Resources {
            cpu: self.total.cpu.saturating_sub(in_use.cpu),
            memory_mib: self.total.memory_mib.saturating_sub(in_use.memory_mib),
            tcp_ports: both(&self.total.tcp_ports, &in_use.tcp_ports),
            udp_ports: both(&self.total.udp_ports, &in_use.udp_ports),
            enis: self.total.enis.saturating_sub(in_use.enis),
            gpus: self.total.gpus.saturating_sub(in_use.gpus),
        };
        v1::Heartbeat {
            sequence,
            in_use: Some(in_use),
            remaining: Some(remaining),
            engine_healthy: true,
            waiting: Vec::new(),
        }
    }
}

fn ports_of(binding: &v1::NetworkBinding) -> impl Iterator<Item = (u32, i32)> + use<> {
    let count = binding.container_port_last.saturating_sub(binding.container_port);
    let (first, protocol) = (binding.host_port, binding.protocol);
    (first..=first.saturating_add(count)).map(move |port| (port, protocol))
}

/// Where a container's ports are; mappings without a host port get the lowest free ones.
fn bindings(
    mode: &str,
    container: &v1::ContainerSpec,
    taken: &mut BTreeSet<(u32, i32)>,
) -> Vec<v1::NetworkBinding> {
    if mode == "none" {
        return Vec::new();
    }
    let mut bindings = Vec::new();
    for mapping in &container.port_mappings {
        let count = mapping.container_port_last.saturating_sub(mapping.container_port);
        let host_port = match mapping.host_port {
            0 if mode == "bridge" => {
                let free = |first: &u32| {
                    (*first..=first + count).all(|port| !taken.contains(&(port, mapping.protocol)))
                };
                (FIRST_DYNAMIC_PORT..=LAST_DYNAMIC_PORT - count).find(free).unwrap_or_default()
            }
            0 => mapping.container_port,
            port => port,
        };
        let binding = v1::NetworkBinding {
            bind_ip: "0.0.0.0".to_owned(),
            container_port: mapping.container_port,
            container_port_last: mapping.container_port_last,
            host_port,
            protocol: mapping.protocol,
        };
        taken.extend(ports_of(&binding));
        bindings.push(binding);
    }
    bindings
}
