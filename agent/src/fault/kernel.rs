//! Faults in the kernel of this host: rules through nf_tables, delays and losses through netem. In `awsvpc` they
//! are in the task's own namespace and go with it; in `host` they are in the host's, under the task's name.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use berth_core::attachment::Cidr;
use berth_core::ids::TaskArn;
use berth_core::spec::{NetworkMode, TaskSpec};
use futures_util::future::{BoxFuture, FutureExt};
use nix::errno::Errno;
use tokio::sync::Mutex as Turn;

use super::{Fault, FaultError, Faults, Hole, Impairment, Kind, Request, Status, Subject, plan};
use crate::host;
use crate::network::guard::{Named, named};
use crate::network::netlink::Netlink;
use crate::network::netns::{Namespace, Pins, on_own_thread};
use crate::network::plan::{INTERFACE, agent_name};
use crate::supervise::Tracker;

/// The networks of this host's tasks.
pub struct Kernel {
    kinds: BTreeSet<Kind>,
    agent: String,
    pins: Pins,
    endpoint: Option<IpAddr>,
    tracker: Tracker,
    /// Who may break its network, and whose turn it is there.
    open: Mutex<BTreeMap<TaskArn, Arc<Turn<()>>>>,
    /// The turn of those who share the host's.
    host: Arc<Turn<()>>,
}

impl Kernel {
    /// The host can do these kinds. `agent` names the agent among those of the host, namespaces are pinned below
    /// `pins`, and requests come to the address `endpoint`.
    #[must_use]
    pub fn new(
        kinds: BTreeSet<Kind>,
        agent: &str,
        pins: &Path,
        endpoint: Option<IpAddr>,
        tracker: Tracker,
    ) -> Self {
        Self {
            kinds,
            agent: agent_name(agent),
            pins: Pins::new(pins),
            endpoint,
            tracker,
            open: Mutex::default(),
            host: Arc::default(),
        }
    }

    fn open(&self) -> MutexGuard<'_, BTreeMap<TaskArn, Arc<Turn<()>>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn turn(&self, task: &TaskSpec) -> Option<Arc<Turn<()>>> {
        self.open().get(&task.arn).map(Arc::clone)
    }

    /// The place of a task's faults; `None` where its namespace is gone, and they with it.
    fn site(&self, task: &TaskSpec) -> Option<Site> {
        let id = task.arn.id();
        let network = match task.network_mode {
            NetworkMode::Host => Network::Host,
            _ => Network::Task(Namespace::pinned(&self.pins.path(id)).ok()?),
        };
        Some(self.site_in(network, id))
    }

    fn site_in(&self, network: Network, id: &str) -> Site {
        Site {
            network,
            table: plan::table(&self.agent, id),
            family: plan::tables_of(&self.agent),
            endpoint: self.endpoint,
            tracker: self.tracker.clone(),
        }
    }

    async fn answer(&self, task: &TaskSpec, request: Request) -> Result<Status, FaultError> {
        self.must_be_possible(&request)?;
        let turn = self.turn(task).ok_or(FaultError::Closed)?;
        let turn = turn.lock_owned().await;
        // While it waited for its turn, the task may have ended.
        if self.turn(task).is_none() {
            return Err(FaultError::Closed);
        }
        let site = self.site(task).ok_or(FaultError::Closed)?;
        let said = format!("{request:?}");
        let status = aside(turn, move || async move { site.answer(request).await }).await?;
        tracing::info!(task = %task.arn, request = said, status = status.as_str(), "a task and its network");
        Ok(status)
    }

    fn must_be_possible(&self, request: &Request) -> Result<(), FaultError> {
        match request {
            Request::Start(Fault::Hole { .. }) if !self.kinds.contains(&Kind::BlackHole) => Err(
                FaultError::Unsupported("this host's kernel cannot do it: it has no nf_tables".to_owned()),
            ),
            Request::Start(Fault::Impairment { how, .. }) if !self.kinds.contains(&how.kind()) => {
                Err(FaultError::Unsupported(format!(
                    "this host's kernel cannot do {}: it has no netem (sch_netem, sch_prio and cls_u32 are needed)",
                    how.kind().as_str()
                )))
            }
            _ => Ok(()),
        }
    }

    async fn shut(&self, task: &TaskSpec) -> Result<(), FaultError> {
        // Whoever waits for a turn finds that there is none any more.
        let turn = self.open().remove(&task.arn);
        let turn = turn.unwrap_or_else(|| match task.network_mode {
            NetworkMode::Host => Arc::clone(&self.host),
            _ => Arc::default(),
        });
        let turn = turn.lock_owned().await;
        let Some(site) = self.site(task) else { return Ok(()) };
        aside(turn, move || async move { site.undo().await }).await
    }
}

/// Does it where it may enter namespaces, to its end: also when nobody waits for it any more, it is done before
/// the next has his turn.
async fn aside<T, F>(
    turn: tokio::sync::OwnedMutexGuard<()>,
    work: impl FnOnce() -> F + Send + 'static,
) -> Result<T, FaultError>
where
    T: Send + 'static,
    F: Future<Output = Result<T, FaultError>>,
{
    let done = on_own_thread(move || async move {
        let _turn = turn;
        work().await
    });
    done.await.map_err(kernel("a thread for it"))?
}

fn kernel(what: &str) -> impl FnOnce(io::Error) -> FaultError + '_ {
    move |source| FaultError::Kernel { what: what.to_owned(), source }
}

fn unless(done: io::Result<()>, already: Errno) -> io::Result<()> {
    match done {
        Err(error) if error.raw_os_error() == Some(already as i32) => Ok(()),
        done => done,
    }
}

/// Whose network it is.
enum Network {
    Host,
    Task(Namespace),
}

/// Where the faults of one task are.
struct Site {
    network: Network,
    /// The task's table.
    table: String,
    /// How the names of the agent's tables begin.
    family: String,
    endpoint: Option<IpAddr>,
    tracker: Tracker,
}

impl Site {
    async fn answer(&self, request: Request) -> Result<Status, FaultError> {
        match request {
            Request::Start(Fault::Hole { hole, spared }) => self.dig(hole, &spared).await,
            Request::Stop(Subject::Hole(hole)) => {
                let chain = plan::chain(&self.table, hole);
                if self.own().await?.contains(&chain) {
                    self.remove(chain).await?;
                }
                Ok(Status::Stopped)
            }
            Request::Status(Subject::Hole(hole)) => {
                let there = self.own().await?.contains(&plan::chain(&self.table, hole));
                Ok(if there { Status::Running } else { Status::NotRunning })
            }
            Request::Start(Fault::Impairment { how, to, spared }) => self.impair(how, &to, &spared).await,
            Request::Stop(Subject::Impairment(kind)) => {
                if let Some((note, link)) = self.impaired(kind).await? {
                    self.relieve(&link).await?;
                    self.remove(note).await?;
                }
                Ok(Status::Stopped)
            }
            Request::Status(Subject::Impairment(kind)) => {
                let Some((_, link)) = self.impaired(kind).await? else { return Ok(Status::NotRunning) };
                let there = self.held_up(&link).await? == Some(kind);
                Ok(if there { Status::Running } else { Status::NotRunning })
            }
        }
    }

    async fn rules<T: Send + 'static>(
        &self,
        what: &str,
        work: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> Result<T, FaultError> {
        let done = match &self.network {
            Network::Host => work(),
            Network::Task(namespace) => namespace.enter(work).await,
        };
        done.map_err(kernel(what))
    }

    async fn links(&self) -> Result<Netlink, FaultError> {
        let made = match &self.network {
            Network::Host => Netlink::here(&self.tracker),
            Network::Task(namespace) => Netlink::inside(namespace, &self.tracker).await,
        };
        made.map_err(kernel("asking for links"))
    }

    /// The chains of this agent's tasks in this network.
    async fn all(&self) -> Result<Vec<Named>, FaultError> {
        let mut all = self.rules("looking at its rules", Named::list).await?;
        all.retain(|chain| chain.table.starts_with(&self.family));
        Ok(all)
    }

    async fn own(&self) -> Result<Vec<Named>, FaultError> {
        let mut own = self.all().await?;
        own.retain(|chain| chain.table == self.table);
        Ok(own)
    }

    async fn remove(&self, chain: Named) -> Result<(), FaultError> {
        let last = self.own().await?.iter().all(|other| *other == chain);
        let remove = move || if last { named::remove_table(&chain.table) } else { chain.remove() };
        self.rules("removing a rule", move || unless(remove(), Errno::ENOENT)).await
    }

    async fn dig(&self, hole: Hole, spared: &[Cidr]) -> Result<Status, FaultError> {
        let (chain, rules) = (plan::chain(&self.table, hole), plan::rules(hole, spared, self.endpoint));
        // One that is there stays as it is, as ECS has it.
        self.rules("adding a rule", move || unless(chain.add(hole.direction, &rules), Errno::EEXIST)).await?;
        Ok(Status::Running)
    }

    /// The note of the task's that packets are held up, and by which link.
    async fn impaired(&self, kind: Kind) -> Result<Option<(Named, String)>, FaultError> {
        let own = self.own().await?;
        Ok(own.into_iter().find_map(|name| {
            let link = plan::noted(&name).filter(|(noted, _)| *noted == kind)?.1.to_owned();
            Some((name, link))
        }))
    }

    async fn held_up(&self, link: &str) -> Result<Option<Kind>, FaultError> {
        let disciplines = self.links().await?.disciplines(link).await;
        Ok(plan::seen(&disciplines.map_err(kernel("looking at its queueing disciplines"))?))
    }

    async fn relieve(&self, link: &str) -> Result<(), FaultError> {
        let removed = self.links().await?.remove_discipline(link, plan::FIRST).await;
        removed.map_err(kernel("removing a queueing discipline"))
    }

    async fn impair(&self, how: Impairment, to: &[Cidr], spared: &[Cidr]) -> Result<Status, FaultError> {
        let link = match &self.network {
            Network::Task(_) => INTERFACE.to_owned(),
            Network::Host => host::default_interface().ok_or_else(|| {
                FaultError::Unsupported("the host has no interface with a default route (IPv4)".to_owned())
            })?,
        };
        if let Some(kind) = self.held_up(&link).await? {
            return Err(FaultError::Running(kind));
        }
        // Whoever was interrupted left a note of what is not, or is not any more.
        for stale in self.all().await? {
            if plan::noted(&stale).is_some_and(|(_, of)| of == link) {
                self.rules("removing a note", move || unless(stale.remove(), Errno::ENOENT)).await?;
            }
        }
        let note = plan::note(&self.table, how.kind(), &link);
        let noting = note.clone();
        self.rules("adding a note", move || noting.note()).await?;
        let links = self.links().await?;
        if let Err(error) = hold_up(&links, &link, how, to, spared).await {
            self.relieve(&link).await?;
            self.remove(note).await?;
            return Err(refused(error, &link));
        }
        Ok(Status::Running)
    }

    /// Nothing is left of what the task broke.
    async fn undo(&self) -> Result<(), FaultError> {
        let own = self.own().await?;
        for (_, link) in own.iter().filter_map(plan::noted) {
            self.relieve(link).await?;
        }
        if own.is_empty() {
            return Ok(());
        }
        let table = self.table.clone();
        self.rules("removing its rules", move || unless(named::remove_table(&table), Errno::ENOENT)).await
    }
}

async fn hold_up(
    links: &Netlink,
    link: &str,
    how: Impairment,
    to: &[Cidr],
    spared: &[Cidr],
) -> io::Result<()> {
    for discipline in plan::disciplines(how) {
        links.discipline(link, &discipline).await?;
    }
    for filter in plan::filters(to, spared) {
        links.filter(link, &filter).await?;
    }
    Ok(())
}

fn refused(error: io::Error, link: &str) -> FaultError {
    if error.raw_os_error() == Some(Errno::EEXIST as i32) {
        return FaultError::Unsupported(format!(
            "internal error: {link} has a queueing discipline of its own, which is left alone; tc qdisc del dev {link} root"
        ));
    }
    kernel("adding a queueing discipline")(error)
}

impl Faults for Kernel {
    fn open(&self, task: &TaskSpec) {
        let turn = match task.network_mode {
            NetworkMode::Host => Arc::clone(&self.host),
            _ => Arc::default(),
        };
        self.open().entry(task.arn.clone()).or_insert(turn);
    }

    fn close<'a>(&'a self, task: &'a TaskSpec) -> BoxFuture<'a, Result<(), FaultError>> {
        self.shut(task).boxed()
    }

    fn ask<'a>(&'a self, task: &'a TaskSpec, request: Request) -> BoxFuture<'a, Result<Status, FaultError>> {
        self.answer(task, request).boxed()
    }

    fn list(&self) -> BoxFuture<'_, Result<Vec<String>, FaultError>> {
        async {
            let turn = Arc::clone(&self.host).lock_owned().await;
            let site = self.site_in(Network::Host, "");
            let all = aside(turn, move || async move { site.all().await }).await?;
            let family = plan::tables_of(&self.agent);
            let ids: BTreeSet<String> =
                all.iter().filter_map(|chain| Some(chain.table.strip_prefix(&family)?.to_owned())).collect();
            Ok(ids.into_iter().collect())
        }
        .boxed()
    }

    fn undo<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<(), FaultError>> {
        async {
            let turn = Arc::clone(&self.host).lock_owned().await;
            let site = self.site_in(Network::Host, id);
            aside(turn, move || async move { site.undo().await }).await
        }
        .boxed()
    }

    fn kinds(&self) -> BTreeSet<Kind> {
        self.kinds.clone()
    }
}
