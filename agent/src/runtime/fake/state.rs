//! What the engine in memory holds, and how its containers live and end.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use berth_core::ids::EngineId;
use berth_core::image::familiar;
use berth_core::spec::NetworkMode;
use berth_core::task::{Exit, Fact, Health};
use berth_core::units::{Millis, Protocol, Timestamp};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::{Behaviour, Call, KILLED};
use crate::runtime::{
    CreateRequest, EngineEvent, EngineEventKind, ImageFacts, Listed, LocalImage, RuntimeError, labels,
};

/// As many events as the engine keeps for those who come later.
const KEPT_EVENTS: usize = 1024;

/// Where an image is, if not here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ImagePlace {
    Here,
    Registry,
    Nowhere,
}

/// How far a container has come.
#[derive(Debug, Clone, PartialEq)]
enum Life {
    Created,
    Running { since: Timestamp, health: Option<Health> },
    Exited(Exit),
}

/// A container.
#[derive(Debug)]
pub(super) struct Container {
    pub(super) request: CreateRequest,
    life: Life,
    /// When it ends, with what code, and whether for want of memory.
    ends: Option<(Timestamp, i32, bool)>,
    /// When its health check says what.
    says: Option<(Timestamp, Health)>,
}

impl Container {
    pub(super) fn fact(&self, id: &EngineId) -> Fact {
        let id = id.clone();
        match &self.life {
            Life::Created => Fact::Created { id },
            Life::Running { since, health } => Fact::Running { id, started_at: *since, health: *health },
            Life::Exited(exit) => Fact::Exited { id, exit: exit.clone() },
        }
    }

    pub(super) fn listed(&self, id: &EngineId) -> Listed {
        Listed {
            id: id.clone(),
            task: self.request.task.arn.clone(),
            container: self.request.spec().name.clone(),
            instance: self.request.labels.get(labels::INSTANCE).and_then(|arn| arn.parse().ok()),
            spec: self.request.labels.get(labels::SPEC).cloned(),
            // As with a real engine: a listing is no inspection.
            fact: None,
        }
    }

    fn ports(&self) -> impl Iterator<Item = (Protocol, u16)> {
        let bound = self.request.task.network_mode == NetworkMode::Bridge;
        let bindings =
            self.request.bindings.iter().filter(move |b| bound && b.container == self.request.spec().name);
        bindings.flat_map(|binding| binding.host_ports.ports().map(|port| (binding.protocol, port)))
    }
}

/// An event and the namespace of the container that it is about.
#[derive(Debug, Clone)]
pub(super) struct Logged {
    pub(super) event: EngineEvent,
    pub(super) namespace: Option<String>,
}

/// Where a reader of events is.
#[derive(Debug)]
pub(super) struct Subscription {
    /// The number of the next event.
    pub(super) next: u64,
    /// The connection: another one means that this one was cut.
    pub(super) connection: u64,
    pub(super) news: Arc<Notify>,
}

#[derive(Debug)]
pub(super) struct State {
    began: (Instant, Timestamp),
    pub(super) containers: BTreeMap<EngineId, Container>,
    pub(super) names: HashMap<String, EngineId>,
    pub(super) images: HashMap<String, ImagePlace>,
    pub(super) behaviours: HashMap<String, Behaviour>,
    pub(super) occupied: BTreeSet<(Protocol, u16)>,
    pub(super) failures: VecDeque<(Call, RuntimeError)>,
    pub(super) lost_answers: VecDeque<Call>,
    pub(super) delays: BTreeMap<Call, Millis>,
    pub(super) calls: BTreeMap<Call, usize>,
    pub(super) down: bool,
    pub(super) lose_events: bool,
    /// How often each name was started, also of containers that are gone.
    pub(super) starts: BTreeMap<String, u32>,
    made: u64,
    events: VecDeque<Logged>,
    /// The number of the first event kept.
    first_event: u64,
    last_ns: i64,
    connection: u64,
    news: Arc<Notify>,
}

impl State {
    pub(super) fn new(start: Timestamp) -> Self {
        Self {
            began: (Instant::now(), start),
            containers: BTreeMap::new(),
            names: HashMap::new(),
            images: HashMap::new(),
            behaviours: HashMap::new(),
            occupied: BTreeSet::new(),
            failures: VecDeque::new(),
            lost_answers: VecDeque::new(),
            delays: BTreeMap::new(),
            calls: BTreeMap::new(),
            down: false,
            lose_events: false,
            starts: BTreeMap::new(),
            made: 0,
            events: VecDeque::new(),
            first_event: 0,
            last_ns: 0,
            connection: 0,
            news: Arc::new(Notify::new()),
        }
    }

    /// The time, by the runtime's timers.
    pub(super) fn clock(&self) -> Timestamp {
        let elapsed = u64::try_from(self.began.0.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.began.1.after(Millis(elapsed))
    }

    /// Puts the clock forward by so many milliseconds, or back where that is negative. What goes on takes as long as
    /// it takes.
    pub(super) fn put_clock(&mut self, by: i64) {
        self.began.1 = self.began.1.moved(by);
        self.last_ns = 0;
        for container in self.containers.values_mut() {
            container.ends = container.ends.map(|(at, code, oom)| (at.moved(by), code, oom));
            container.says = container.says.map(|(at, health)| (at.moved(by), health));
        }
    }

    /// The id of a container, by its id or its name: an engine takes both.
    pub(super) fn resolve(&self, id: &EngineId) -> EngineId {
        self.names.get(id.as_str()).unwrap_or(id).clone()
    }

    pub(super) fn planned_failure(&mut self, call: Call) -> Option<RuntimeError> {
        let at = self.failures.iter().position(|(of, _)| *of == call)?;
        self.failures.remove(at).map(|(_, error)| error)
    }

    pub(super) fn answer_is_lost(&mut self, call: Call) -> bool {
        let at = self.lost_answers.iter().position(|of| *of == call);
        at.and_then(|at| self.lost_answers.remove(at)).is_some()
    }

    pub(super) fn go_down(&mut self) {
        self.down = true;
        self.connection += 1;
        self.news.notify_waiters();
    }

    pub(super) fn create(&mut self, request: CreateRequest) -> Result<EngineId, RuntimeError> {
        if let Some(id) = self.names.get(&request.name) {
            let ours = self.containers.get(id).filter(|found| {
                found.request.task.arn == request.task.arn && found.request.spec().name == request.spec().name
            });
            match ours.map(|found| &found.life) {
                Some(Life::Created) => return Ok(id.clone()),
                Some(_) => return Err(RuntimeError::StartedBefore(id.clone())),
                None => {}
            }
            return Err(RuntimeError::Refused(format!(
                "the name {} belongs to container {id}",
                request.name
            )));
        }
        if self.image(&request.spec().image).is_none() {
            return Err(RuntimeError::NoSuchImage(request.spec().image.clone()));
        }
        self.made += 1;
        let id =
            EngineId::new(format!("{:064x}", self.made)).map_err(|e| RuntimeError::Refused(e.to_string()))?;
        self.names.insert(request.name.clone(), id.clone());
        self.containers
            .insert(id.clone(), Container { request, life: Life::Created, ends: None, says: None });
        Ok(id)
    }

    pub(super) fn start(&mut self, id: &EngineId, now: Timestamp) -> Result<(), RuntimeError> {
        let taken = self.ports_taken();
        let Some(container) = self.containers.get_mut(id) else {
            return Err(RuntimeError::NoSuchContainer(id.to_string()));
        };
        if matches!(container.life, Life::Running { .. }) {
            return Ok(());
        }
        if let Some((_, port)) = container.ports().find(|port| taken.contains(port)) {
            return Err(RuntimeError::PortTaken(format!(
                "Bind for 0.0.0.0:{port} failed: port is already allocated"
            )));
        }
        let spec = container.request.spec();
        let behaviour = self.behaviours.get(&spec.image).copied().unwrap_or_default();
        let checked = spec.health_check.is_some();
        container.life = Life::Running { since: now, health: checked.then_some(Health::Unknown) };
        container.ends = behaviour.exits.map(|(after, code)| (now.after(after), code, behaviour.oom));
        container.says =
            behaviour.health.filter(|_| checked).map(|(after, health)| (now.after(after), health));
        *self.starts.entry(container.request.name.clone()).or_default() += 1;
        self.emit(id, EngineEventKind::Started, now);
        self.settle(now);
        Ok(())
    }

    fn ports_taken(&self) -> BTreeSet<(Protocol, u16)> {
        let running = self.containers.values().filter(|c| matches!(c.life, Life::Running { .. }));
        running.flat_map(Container::ports).chain(self.occupied.iter().copied()).collect()
    }

    pub(super) fn is_running(&self, id: &EngineId) -> bool {
        self.containers.get(id).is_some_and(|container| matches!(container.life, Life::Running { .. }))
    }

    /// Plans the end of a container that was told to stop; tells how long that takes.
    pub(super) fn plan_stop(&mut self, id: &EngineId, grace: Millis, now: Timestamp) -> Millis {
        let Some(container) = self.containers.get_mut(id) else {
            return Millis(0);
        };
        if !matches!(container.life, Life::Running { .. }) {
            return Millis(0);
        }
        let behaviour = self.behaviours.get(&container.request.spec().image).copied().unwrap_or_default();
        let (wait, code) = if behaviour.ignores_stop || behaviour.stops_in > grace {
            (grace, KILLED)
        } else {
            (behaviour.stops_in, behaviour.stop_code)
        };
        let at = now.after(wait);
        if container.ends.is_none_or(|(earlier, ..)| earlier > at) {
            container.ends = Some((at, code, false));
        }
        self.settle(now);
        // Somebody who reads events has to know when to look again.
        self.news.notify_waiters();
        wait
    }

    /// Lets everything happen that was due.
    pub(super) fn settle(&mut self, now: Timestamp) {
        while let Some((at, id)) = self.next_due().filter(|(at, _)| *at <= now) {
            let Some(container) = self.containers.get_mut(&id) else {
                return;
            };
            if let Some((says_at, health)) = container.says.filter(|(says_at, _)| *says_at == at) {
                container.says = None;
                self.set_health(&id, health, says_at);
            } else if let Some((_, code, oom)) = container.ends.take() {
                self.finish(&id, code, oom, at);
            }
        }
    }

    fn next_due(&self) -> Option<(Timestamp, EngineId)> {
        let running = self.containers.iter().filter(|(_, c)| matches!(c.life, Life::Running { .. }));
        let due = running.filter_map(|(id, container)| {
            let ends = container.ends.map(|(at, ..)| at);
            let says = container.says.map(|(at, _)| at);
            Some((ends.into_iter().chain(says).min()?, id))
        });
        due.min().map(|(at, id)| (at, id.clone()))
    }

    /// When something is due next.
    pub(super) fn due(&self) -> Option<Instant> {
        let (at, _) = self.next_due()?;
        Some(self.began.0 + at.since(self.began.1).as_duration())
    }

    /// Ends a container that runs.
    pub(super) fn finish(&mut self, id: &EngineId, code: i32, oom: bool, at: Timestamp) {
        let Some(container) = self.containers.get_mut(id) else {
            return;
        };
        let Life::Running { since, .. } = container.life else {
            return;
        };
        (container.ends, container.says) = (None, None);
        container.life = Life::Exited(Exit {
            code,
            oom_killed: oom,
            task_memory_peak: None,
            with_engine: false,
            error: None,
            started_at: Some(since),
            finished_at: Some(at),
        });
        if oom {
            self.emit(id, EngineEventKind::OutOfMemory, at);
        }
        self.emit(id, EngineEventKind::Died { exit_code: Some(code) }, at);
    }

    pub(super) fn set_health(&mut self, id: &EngineId, said: Health, at: Timestamp) {
        let Some(container) = self.containers.get_mut(id) else {
            return;
        };
        let Life::Running { health, .. } = &mut container.life else {
            return;
        };
        if health.replace(said) != Some(said) {
            self.emit(id, EngineEventKind::Health, at);
        }
    }

    pub(super) fn remove(&mut self, id: &EngineId, at: Timestamp) {
        if let Some(container) = self.containers.get(id) {
            self.names.remove(&container.request.name);
            self.emit(id, EngineEventKind::Removed, at);
            self.containers.remove(id);
        }
    }

    pub(super) fn image(&self, reference: &str) -> Option<ImageFacts> {
        match self.images.get(reference).copied().unwrap_or(ImagePlace::Here) {
            ImagePlace::Here => Some(facts(reference)),
            ImagePlace::Registry | ImagePlace::Nowhere => None,
        }
    }

    pub(super) fn pull(&mut self, reference: &str) -> Result<ImageFacts, RuntimeError> {
        if self.images.get(reference) == Some(&ImagePlace::Nowhere) {
            return Err(RuntimeError::Refused(format!(
                "manifest for {reference} not found: manifest unknown"
            )));
        }
        self.images.insert(reference.to_owned(), ImagePlace::Here);
        Ok(facts(reference))
    }

    /// Those that a pull has brought, in order of their names.
    pub(super) fn local_images(&self) -> Vec<LocalImage> {
        let here = self.images.iter().filter(|(_, place)| **place == ImagePlace::Here);
        let names: BTreeSet<&String> = here.map(|(name, _)| name).collect();
        let image = |name: &String| LocalImage {
            name: familiar(name),
            made_at: Timestamp::default(),
            bytes: 0,
            of_agent: false,
        };
        names.into_iter().map(image).collect()
    }

    /// As an engine: not one that a container has. Another pull brings it back.
    pub(super) fn remove_image(&mut self, reference: &str) -> Result<bool, RuntimeError> {
        let wanted = familiar(reference);
        let mut used = self.containers.values().map(|container| familiar(&container.request.spec().image));
        if used.any(|image| image == wanted) {
            return Err(RuntimeError::Refused(format!("conflict: a container has image {reference}")));
        }
        let here = self.images.iter_mut().filter(|(name, _)| familiar(name) == wanted);
        let place = here.map(|(_, place)| place).find(|place| **place == ImagePlace::Here);
        Ok(place.is_some_and(|place| {
            *place = ImagePlace::Registry;
            true
        }))
    }

    fn emit(&mut self, id: &EngineId, kind: EngineEventKind, at: Timestamp) {
        let Some(container) = self.containers.get(id) else {
            return;
        };
        // Times tell events apart, as an engine's nanoseconds do.
        let ns = i64::try_from(at.0).unwrap_or(i64::MAX).saturating_mul(1_000_000);
        self.last_ns = ns.max(self.last_ns.saturating_add(1));
        if self.lose_events {
            return;
        }
        let event = EngineEvent {
            time_ns: self.last_ns,
            id: id.clone(),
            task: container.request.task.arn.clone(),
            container: container.request.spec().name.clone(),
            kind,
        };
        let namespace = container.request.labels.get(labels::AGENT).cloned();
        self.events.push_back(Logged { event, namespace });
        if self.events.len() > KEPT_EVENTS {
            self.events.pop_front();
            self.first_event += 1;
        }
        self.news.notify_waiters();
    }

    pub(super) fn subscribe(&self, since_ns: Option<i64>) -> Subscription {
        // Back to the first that is older, as an engine goes: what came before a clock was put back is not replayed.
        let is_new = |logged: &&Logged| since_ns.is_some_and(|since| logged.event.time_ns > since);
        let known = self.events.len() - self.events.iter().rev().take_while(is_new).count();
        Subscription {
            next: self.first_event + u64::try_from(known).unwrap_or_default(),
            connection: self.connection,
            news: Arc::clone(&self.news),
        }
    }

    /// The next event for a reader: an error when its connection was cut or it fell behind.
    pub(super) fn read(&self, subscription: &mut Subscription) -> Result<Option<Logged>, RuntimeError> {
        if self.connection != subscription.connection {
            return Err(RuntimeError::Unavailable("the engine ended the stream of events".to_owned()));
        }
        let Some(at) = subscription.next.checked_sub(self.first_event) else {
            return Err(RuntimeError::Unavailable("the reader of events fell behind".to_owned()));
        };
        let logged = usize::try_from(at).ok().and_then(|at| self.events.get(at)).cloned();
        if logged.is_some() {
            subscription.next += 1;
        }
        Ok(logged)
    }
}

fn facts(reference: &str) -> ImageFacts {
    ImageFacts { id: format!("sha256:{reference}"), digest: Some(format!("sha256:{:064x}", reference.len())) }
}
