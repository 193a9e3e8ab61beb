//! Who asks: the secret name in the path is a container's, and the address that the request comes from
//! is that container's task's. Either alone is not enough.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use berth_core::ids::{ContainerName, TaskArn};
use berth_core::spec::NetworkMode;
use berth_core::task::{Container, ContainerStatus, Task};
use tokio::time::sleep;

use crate::endpoint::readings::Readings;
use crate::engine::Engine;
use crate::runtime::Details;

use super::limit::{Limits, Rate};

/// How long a refusal takes for one that asks too often. An address has few connections, and so a flood from it
/// costs next to nothing.
const SLOWED: Duration = Duration::from_millis(50);

/// Why a request is not answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    /// The name is nobody's, or somebody else's.
    Unknown,
    /// It asks too often.
    TooMany,
    /// The engine, which knows the address, does not answer.
    Away,
}

/// The container that asks.
#[derive(Debug)]
pub(super) struct Caller {
    pub(super) task: Arc<Task>,
    pub(super) container: ContainerName,
}

/// Who pays for a request.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Payer {
    /// Whoever has the address: it is one task's.
    Address(IpAddr),
    /// A task that shares the host's address.
    Task(TaskArn),
}

/// Knows callers.
pub(super) struct Callers {
    engine: Engine,
    /// The endpoint's own address: the one that the host's own requests come from, too.
    own: IpAddr,
    limits: Limits<Payer>,
    readings: Arc<Readings>,
}

impl Callers {
    pub(super) fn new(engine: Engine, own: IpAddr, rate: Rate, readings: Arc<Readings>) -> Self {
        Self { engine, own, limits: Limits::new(rate), readings }
    }

    /// The container of that name, if the request comes from its task.
    pub(super) async fn named(&self, id: &str, from: IpAddr) -> Result<Caller, Refusal> {
        let of_host = self.pays_by_address(from).await?;
        let (task, container) = self.engine.asked_by(id).ok_or(Refusal::Unknown)?;
        self.must_be(&task, from, of_host).await?;
        Ok(Caller { task, container })
    }

    /// The task whose credentials have that name, if the request comes from it.
    pub(super) async fn for_credentials(&self, id: &str, from: IpAddr) -> Result<Arc<Task>, Refusal> {
        let of_host = self.pays_by_address(from).await?;
        let task = self.engine.credentials_asked_by(id).ok_or(Refusal::Unknown)?;
        self.must_be(&task, from, of_host).await?;
        Ok(task)
    }

    /// Takes a request from whoever has the address; tells whether that is the host, where a task pays.
    async fn pays_by_address(&self, from: IpAddr) -> Result<bool, Refusal> {
        let of_host = self.is_host(from);
        if !of_host {
            self.pays(Payer::Address(from)).await?;
        }
        Ok(of_host)
    }

    /// Takes a request; one too many is refused, and not at once.
    async fn pays(&self, payer: Payer) -> Result<(), Refusal> {
        if self.limits.take(payer, Instant::now()) {
            return Ok(());
        }
        sleep(SLOWED).await;
        Err(Refusal::TooMany)
    }

    /// Sees to it that a request under a task's name comes from that task.
    async fn must_be(&self, task: &Task, from: IpAddr, of_host: bool) -> Result<(), Refusal> {
        if of_host {
            self.pays(Payer::Task(task.spec().arn.clone())).await?;
        }
        let own = match task.spec().network_mode {
            NetworkMode::Host => of_host,
            NetworkMode::Awsvpc => {
                self.engine.endpoint_address(&task.spec().arn).is_some_and(|own| own == from)
            }
            NetworkMode::Bridge => self.has_address(task, from).await?,
            NetworkMode::None => false,
        };
        if own { Ok(()) } else { Err(Refusal::Unknown) }
    }

    /// The task in `awsvpc` mode with that address.
    pub(super) async fn by_address(&self, from: IpAddr) -> Result<Arc<Task>, Refusal> {
        self.pays(Payer::Address(from)).await?;
        let is_it =
            |task: &Arc<Task>| self.engine.endpoint_address(&task.spec().arn).is_some_and(|own| own == from);
        self.engine.tasks().into_iter().find(is_it).ok_or(Refusal::Unknown)
    }

    /// A container in detail.
    pub(super) async fn details(&self, container: &Container) -> Result<Option<Arc<Details>>, Refusal> {
        self.readings.details(container).await.map_err(|_| Refusal::Away)
    }

    /// Whether the request is the host's own: it comes from an address that no container has.
    fn is_host(&self, from: IpAddr) -> bool {
        from == self.own || from.is_loopback()
    }

    async fn has_address(&self, task: &Task, from: IpAddr) -> Result<bool, Refusal> {
        for container in task.state().containers.iter().filter(|c| c.status == ContainerStatus::Running) {
            let details = self.details(container).await?;
            let has =
                |details: &Details| details.networks.iter().any(|network| network.addresses.contains(&from));
            if details.is_some_and(|details| has(&details)) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}
