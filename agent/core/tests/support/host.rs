//! The host as it really is: containers, resources and images, with a note of everything that an
//! engine would have to refuse, or that must never be asked of it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use berth_core::ids::{ContainerName, EngineId, GpuId};
use berth_core::spec::{Condition, NetworkMode, TaskSpec};
use berth_core::task::{Acquired, Exit, Fact, Health, PortBinding, ResourceKey};
use berth_core::units::{PortRange, Timestamp};

/// Where a container really is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Life {
    Created,
    Running,
    Exited,
    Removed,
}

/// A container as it really is.
#[derive(Debug, Clone)]
pub(crate) struct Real {
    pub(crate) id: EngineId,
    pub(crate) name: ContainerName,
    pub(crate) life: Life,
    pub(crate) started_at: Option<Timestamp>,
    pub(crate) exit: Option<Exit>,
    pub(crate) health: Option<Health>,
    pub(crate) was_healthy: bool,
    /// How its lives ended: more than one if somebody else started it again.
    pub(crate) ends: Vec<i32>,
    /// Somebody else had a hand in it: what became of it proves nothing.
    pub(crate) meddled: bool,
    pub(crate) bindings: Vec<PortBinding>,
    pub(crate) gpus: Vec<GpuId>,
}

/// Everything outside the agent.
#[derive(Debug, Clone)]
pub(crate) struct Host {
    pub(crate) now: Timestamp,
    spec: Arc<TaskSpec>,
    /// Every container that ever was, oldest first.
    pub(crate) lives: Vec<Real>,
    pub(crate) cgroup: bool,
    /// The holder of the network namespace: another one each time it is made.
    pub(crate) holder: Option<EngineId>,
    pub(crate) interface: bool,
    /// The holder ended by itself, and the engine refuses what needs it.
    pub(crate) namespace_lost: bool,
    pub(crate) bounded: bool,
    /// Values that are kept elsewhere were fetched, and the agent has not been restarted since.
    pub(crate) environment: bool,
    /// The folder of the log router is there.
    pub(crate) log_router: bool,
    /// The credentials of the task's role have come.
    pub(crate) credentials: bool,
    /// The task may break its network.
    pub(crate) faults: bool,
    pub(crate) ports: BTreeMap<ContainerName, Vec<PortBinding>>,
    /// Another device each time one is chosen.
    pub(crate) gpus: BTreeMap<ContainerName, Vec<GpuId>>,
    pub(crate) images: BTreeSet<String>,
    pub(crate) violations: Vec<String>,
    next_port: u16,
}

impl Host {
    pub(crate) fn new(spec: Arc<TaskSpec>) -> Self {
        Self {
            now: Timestamp(1_000_000),
            spec,
            lives: Vec::new(),
            cgroup: false,
            holder: None,
            interface: false,
            namespace_lost: false,
            bounded: false,
            environment: false,
            log_router: false,
            credentials: false,
            faults: false,
            ports: BTreeMap::new(),
            gpus: BTreeMap::new(),
            images: BTreeSet::new(),
            violations: Vec::new(),
            next_port: 32768,
        }
    }

    pub(crate) fn violated(&mut self, what: impl Into<String>) {
        self.violations.push(what.into());
    }

    fn index_of(&self, id: &EngineId) -> Option<usize> {
        let alive = |r: &Real| &r.id == id && r.life != Life::Removed;
        self.lives.iter().position(alive)
    }

    /// The container of that name which exists now.
    pub(crate) fn existing(&self, name: &ContainerName) -> Option<usize> {
        let alive = |r: &Real| &r.name == name && r.life != Life::Removed;
        self.lives.iter().position(alive)
    }

    /// What an inspection by name says.
    pub(crate) fn fact_of(&self, name: &ContainerName) -> Fact {
        self.existing(name).map_or(Fact::Missing, |at| fact(&self.lives[at]))
    }

    pub(crate) fn inspect(&self, id: &EngineId) -> Fact {
        self.index_of(id).map_or(Fact::Missing, |at| fact(&self.lives[at]))
    }

    /// What a listing of the task's containers says.
    pub(crate) fn list(&self) -> Vec<(ContainerName, Fact)> {
        let alive = self.lives.iter().filter(|r| r.life != Life::Removed);
        alive.map(|r| (r.name.clone(), fact(r))).collect()
    }

    pub(crate) fn acquire(&mut self, key: &ResourceKey) -> Acquired {
        match key {
            ResourceKey::Cgroup => {
                self.cgroup = true;
                Acquired::Cgroup { parent: Some("/berth/task".to_owned()) }
            }
            ResourceKey::CpuBound => {
                self.bounded = true;
                Acquired::Plain
            }
            ResourceKey::Environment => {
                self.environment = true;
                Acquired::Plain
            }
            ResourceKey::LogRouter => {
                self.log_router = true;
                Acquired::Plain
            }
            ResourceKey::Credentials => {
                self.credentials = true;
                Acquired::Plain
            }
            ResourceKey::Faults => {
                self.faults = true;
                Acquired::Plain
            }
            ResourceKey::Namespace => {
                let made = EngineId::new(format!("holder-{}", self.next_port)).expect("an id");
                self.next_port += 1;
                Acquired::Namespace { holder: self.holder.get_or_insert(made).clone() }
            }
            ResourceKey::Interface => {
                if self.holder.is_none() && !self.namespace_lost {
                    self.violated("an interface without a namespace");
                }
                self.interface = true;
                Acquired::Plain
            }
            ResourceKey::Image(image) => {
                self.images.insert(image.clone());
                Acquired::Image { digest: Some(format!("sha256:{image}")), pulled_bytes: 0 }
            }
            ResourceKey::Ports(name) => {
                let chosen = self.choose_ports(name);
                self.ports.insert(name.clone(), chosen.clone());
                Acquired::Ports(chosen)
            }
            ResourceKey::Gpus(name) => {
                let count = self.spec.container(name).expect("a container of the task").gpus;
                let chosen: Vec<GpuId> = (0..count).map(|_| self.next_gpu()).collect();
                self.gpus.insert(name.clone(), chosen.clone());
                Acquired::Gpus(chosen)
            }
        }
    }

    fn next_gpu(&mut self) -> GpuId {
        self.next_port += 1;
        GpuId::new(format!("GPU-{}", self.next_port)).expect("an id")
    }

    fn choose_ports(&mut self, name: &ContainerName) -> Vec<PortBinding> {
        let spec = self.spec.container(name).expect("a container of the task");
        let open = spec.ports.iter().filter(|p| p.host.is_none());
        let mut chosen = Vec::new();
        for mapping in open {
            let last = self.next_port + mapping.container.count() - 1;
            chosen.push(PortBinding {
                container: name.clone(),
                container_ports: mapping.container,
                host_ports: PortRange::new(self.next_port, last).expect("a range"),
                protocol: mapping.protocol,
            });
            self.next_port = last + 1;
        }
        chosen
    }

    pub(crate) fn release(&mut self, key: &ResourceKey) {
        if let Some(still) = self.lives.iter().find(|r| is_running(r)) {
            let what = format!("{key:?} released while {} runs", still.name);
            self.violated(what);
        }
        match key {
            ResourceKey::Cgroup => {
                self.cgroup = false;
                self.bounded = false;
            }
            ResourceKey::Ports(name) => {
                self.ports.remove(name);
            }
            ResourceKey::Gpus(name) => {
                self.gpus.remove(name);
            }
            ResourceKey::Namespace => {
                if self.interface {
                    self.violated("the namespace went before its interface");
                }
                self.holder = None;
            }
            ResourceKey::Interface => self.interface = false,
            ResourceKey::Environment => self.environment = false,
            ResourceKey::LogRouter => self.log_router = false,
            ResourceKey::Credentials => self.credentials = false,
            ResourceKey::Faults => self.faults = false,
            ResourceKey::CpuBound | ResourceKey::Image(_) => {
                self.violated(format!("{key:?} needs no releasing"));
            }
        }
    }

    /// Makes a container, or finds the one that an earlier request made.
    pub(crate) fn create(
        &mut self,
        name: &ContainerName,
        bindings: &[PortBinding],
        gpus: &[GpuId],
        holder: Option<&EngineId>,
    ) -> Option<EngineId> {
        if let Some(at) = self.existing(name) {
            if self.lives[at].life != Life::Created && !self.lives[at].meddled {
                self.violated(format!("{name} was to be made again after it ran"));
            }
            return Some(self.lives[at].id.clone());
        }
        let spec = self.spec.container(name).expect("a container of the task").clone();
        let mode = self.spec.network_mode;
        let wanted = match mode {
            NetworkMode::Bridge | NetworkMode::Host => spec.ports.len(),
            NetworkMode::None | NetworkMode::Awsvpc => 0,
        };
        let image = spec.image.clone();
        if bindings.len() != wanted {
            self.violated(format!("{name} was made with {} ports", bindings.len()));
        }
        let held = self.ports.get(name).cloned().unwrap_or_default();
        if held.iter().any(|port| !bindings.contains(port)) {
            self.violated(format!("{name} was made with ports that are not held"));
        }
        if gpus.len() != spec.gpus as usize || gpus != self.gpus.get(name).map_or(&[][..], Vec::as_slice) {
            self.violated(format!("{name} was made with {gpus:?}, which are not the ones that are held"));
        }
        if !self.cgroup {
            self.violated(format!("{name} was made outside its cgroup"));
        }
        if self.spec.has_values_elsewhere(&spec) && !self.environment {
            self.violated(format!("{name} was made without its secrets"));
        }
        if spec.firelens.is_some() && !self.log_router {
            self.violated(format!("{name} was made without its folder"));
        }
        let waits = mode == NetworkMode::Bridge && spec.logs_to_router();
        let router = self.spec.router().map(|(router, _)| router.name.clone()).filter(|_| waits);
        if let Some(router) = router.filter(|router| router != name)
            && !self.lives.iter().any(|real| real.name == router && real.started_at.is_some())
        {
            self.violated(format!("{name} was made before {router} had an address"));
        }
        if (mode == NetworkMode::Awsvpc) != holder.is_some()
            || holder != self.holder.as_ref() && !self.namespace_lost
        {
            self.violated(format!("{name} was made with the network of {holder:?}"));
        }
        if self.spec.task_role.is_some() && mode != NetworkMode::None && !self.credentials {
            self.violated(format!("{name} was made without the credentials of its role"));
        }
        if !self.images.contains(&image) {
            return None;
        }
        Some(self.make(name, bindings, gpus))
    }

    fn make(&mut self, name: &ContainerName, bindings: &[PortBinding], gpus: &[GpuId]) -> EngineId {
        let id = EngineId::new(format!("{name}-{}", self.lives.len())).expect("an id");
        self.lives.push(Real {
            id: id.clone(),
            name: name.clone(),
            life: Life::Created,
            started_at: None,
            exit: None,
            health: None,
            was_healthy: false,
            ends: Vec::new(),
            meddled: false,
            bindings: bindings.to_vec(),
            gpus: gpus.to_vec(),
        });
        id
    }

    /// Starts a container that never ran; starting a running one changes nothing.
    pub(crate) fn start(&mut self, id: &EngineId) -> Option<Fact> {
        let at = self.index_of(id)?;
        let name = self.lives[at].name.clone();
        match self.lives[at].life {
            Life::Running => {}
            Life::Created => {
                for what in self.unmet(&name) {
                    self.violated(what);
                }
                if self.spec.network_mode == NetworkMode::Awsvpc && !self.interface && !self.namespace_lost {
                    self.violated(format!("{name} was started without a network"));
                }
                self.run(at);
            }
            Life::Exited | Life::Removed => {
                if !self.lives[at].meddled && !self.may_restart(at) {
                    self.violated(format!("{name} was started again after it ran"));
                }
                self.run(at);
            }
        }
        Some(fact(&self.lives[at]))
    }

    /// Whether a policy allows that a container which ended is started again.
    fn may_restart(&self, at: usize) -> bool {
        let real = &self.lives[at];
        let policy = self.spec.container(&real.name).and_then(|spec| spec.restart_policy.as_ref());
        let (Some(policy), Some(exit)) = (policy, &real.exit) else { return false };
        let (from, to) = (exit.started_at.unwrap_or_default().0, exit.finished_at.unwrap_or_default().0);
        to - from >= policy.attempt_period.0 && !policy.ignored_exit_codes.contains(&exit.code)
    }

    fn run(&mut self, at: usize) {
        self.now.0 += 1;
        let name = self.lives[at].name.clone();
        let checked = self.spec.container(&name).is_some_and(|c| c.health_check.is_some());
        let real = &mut self.lives[at];
        real.life = Life::Running;
        real.started_at = Some(self.now);
        real.exit = None;
        real.health = checked.then_some(Health::Unknown);
    }

    /// The dependencies of a container that do not hold.
    fn unmet(&self, name: &ContainerName) -> Vec<String> {
        let spec = self.spec.container(name).expect("a container of the task");
        let holds = |dependency: &&berth_core::spec::Dependency| {
            self.lives.iter().any(|other| {
                other.name == dependency.container
                    && match dependency.condition {
                        Condition::Start => other.started_at.is_some(),
                        Condition::Complete => !other.ends.is_empty(),
                        Condition::Success => other.ends.contains(&0),
                        Condition::Healthy => other.was_healthy,
                    }
            })
        };
        let broken = spec.depends_on.iter().filter(|d| !holds(d));
        broken.map(|d| format!("{name} started before {d:?} held")).collect()
    }

    pub(crate) fn stop(&mut self, id: &EngineId) -> Fact {
        if let Some(at) = self.index_of(id)
            && self.lives[at].life == Life::Running
        {
            self.end(at, 143, false);
        }
        self.inspect(id)
    }

    /// A container comes to be that was given up, while nobody is there to remove it again.
    pub(crate) fn come_late(&mut self, name: &ContainerName) {
        if self.existing(name).is_none() {
            self.make(name, &[], &[]);
        }
    }

    pub(crate) fn remove(&mut self, name: &ContainerName, id: Option<&EngineId>) {
        let at = id.map_or_else(|| self.existing(name), |id| self.index_of(id));
        if let Some(at) = at {
            if is_running(&self.lives[at]) {
                self.violated(format!("{name} was removed while it ran"));
            }
            self.lives[at].life = Life::Removed;
        }
    }

    /// A running container ends.
    pub(crate) fn end(&mut self, at: usize, code: i32, oom_killed: bool) {
        self.now.0 += 1;
        let real = &mut self.lives[at];
        real.life = Life::Exited;
        real.ends.push(code);
        real.exit = Some(Exit {
            task_memory_peak: None,
            with_engine: false,
            code,
            oom_killed,
            error: None,
            started_at: real.started_at,
            finished_at: Some(self.now),
        });
    }

    pub(crate) fn set_health(&mut self, at: usize, health: Health) {
        self.lives[at].health = Some(health);
        self.lives[at].was_healthy |= health == Health::Healthy;
    }

    /// The holder of the namespace ends by itself, and the network with it.
    pub(crate) fn lose_namespace(&mut self) -> Option<EngineId> {
        let holder = self.holder.take()?;
        self.interface = false;
        self.namespace_lost = true;
        Some(holder)
    }

    /// Somebody else starts a container that exists.
    pub(crate) fn meddle_start(&mut self, at: usize) {
        self.lives[at].meddled = true;
        self.run(at);
    }

    /// Somebody else removes a container.
    pub(crate) fn meddle_remove(&mut self, at: usize) {
        self.lives[at].meddled = true;
        self.lives[at].life = Life::Removed;
    }

    /// What is left of the task: should be nothing once it is forgotten.
    pub(crate) fn remains(&self) -> Vec<String> {
        let alive = self.lives.iter().filter(|r| r.life != Life::Removed);
        let mut left: Vec<String> = alive.map(|r| format!("{} {:?}", r.id, r.life)).collect();
        if self.cgroup {
            left.push("the cgroup".to_owned());
        }
        left.extend(self.holder.iter().map(|holder| format!("{holder} holds the namespace")));
        if self.interface {
            left.push("the interface".to_owned());
        }
        if self.log_router {
            left.push("the folder of the log router".to_owned());
        }
        if self.faults {
            left.push("what the task broke".to_owned());
        }
        left.extend(self.ports.keys().map(|name| format!("ports of {name}")));
        left.extend(self.gpus.keys().map(|name| format!("GPUs of {name}")));
        left
    }
}

/// Whether a process runs that the agent has to answer for.
pub(crate) fn is_running(real: &Real) -> bool {
    real.life == Life::Running && !real.meddled
}

fn fact(real: &Real) -> Fact {
    let id = real.id.clone();
    match (real.life, real.started_at, &real.exit) {
        (Life::Created, ..) => Fact::Created { id },
        (Life::Running, Some(started_at), _) => Fact::Running { id, started_at, health: real.health },
        (Life::Exited, _, Some(exit)) => Fact::Exited { id, exit: exit.clone() },
        _ => Fact::Missing,
    }
}
