//! The container engine as a process of its own: what it was asked for it does, also when whoever asked has died
//! or lost patience meanwhile. It takes a moment for everything, and can hang.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use berth_agent::runtime::fake::FakeRuntime;
use berth_agent::runtime::{
    CreateRequest, Details, EngineEvent, EngineInfo, Exec, ExecRequest, ImageFacts, Listed, LocalImage,
    LogStream, PullRequest, Runtime, RuntimeError,
};
use berth_core::ids::EngineId;
use berth_core::task::{Exit, Fact};
use berth_core::units::{Millis, Timestamp};
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use tokio::sync::oneshot;
use tokio::time::sleep;

use super::store::short;
use super::world::World;

/// What a call takes on its way, and now and then.
const USUAL: Duration = Duration::from_millis(8);
const SLOW: Duration = Duration::from_millis(900);
/// What making a container takes whose volume or network is long in coming.
const LATE: Duration = Duration::from_secs(240);

type Answer<'a, T> = BoxFuture<'a, Result<T, RuntimeError>>;

/// The engine, at the other end of a socket.
pub struct Remote(pub Arc<World>);

impl Remote {
    fn latency(&self) -> Duration {
        let slow = self.0.once_in(40);
        self.0.span(if slow { SLOW } else { USUAL })
    }

    /// Nothing is on its way before the call is first polled: who dies before it has asked for nothing.
    fn ask<T, F>(&self, what: &str, act: impl FnOnce(FakeRuntime) -> F + Send + 'static) -> Answer<'static, T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, RuntimeError>> + Send,
    {
        let (remote, what) = (Self(Arc::clone(&self.0)), what.to_owned());
        async move {
            let late = what.starts_with("create") && remote.0.once_in(60);
            let there = if late { remote.0.span(LATE) } else { remote.latency() };
            let back = remote.latency();
            let (tell, told) = oneshot::channel();
            let world = Arc::clone(&remote.0);
            remote.0.tasks.spawn(async move {
                sleep(there).await;
                world.engine_hangs.pass().await;
                world.note(format_args!("engine: {what}"));
                let done = act(world.engine.clone()).await;
                sleep(back).await;
                // Whoever asked may have gone away.
                drop(tell.send(done));
            });
            told.await.unwrap_or_else(|_| Err(RuntimeError::Unavailable("cut".to_owned())))
        }
        .boxed()
    }
}

/// A start that is on its way. The engine does what it was asked for by whom it answers no more, too: where another
/// start of the same container is on its way already, the container may run, end and be started again.
struct Starting {
    world: Arc<World>,
    id: EngineId,
}

impl Starting {
    fn of(world: &Arc<World>, id: &EngineId) -> Self {
        let of_id = |fact: &Fact| match fact {
            Fact::Created { id } | Fact::Running { id, .. } | Fact::Exited { id, .. } => Some(id.clone()),
            Fact::Silent { .. } | Fact::Missing => None,
        };
        let containers = world.engine.containers();
        let task = containers.into_iter().find(|(_, fact)| of_id(fact).as_ref() == Some(id));
        let mut known = world.known();
        let others = known.starting.entry(id.clone()).or_default();
        *others += 1;
        if *others > 1
            && let Some((request, _)) = task
            && let Some(asked) = known.tasks.get_mut(request.task.arn.as_str())
        {
            asked.may_start_again = true;
        }
        Self { world: Arc::clone(world), id: id.clone() }
    }
}

impl Drop for Starting {
    fn drop(&mut self) {
        if let Some(others) = self.world.known().starting.get_mut(&self.id) {
            *others -= 1;
        }
    }
}

fn named(call: &str, of: &str) -> String {
    format!("{call} {}", short(of))
}

impl Runtime for Remote {
    fn info(&self) -> Answer<'_, EngineInfo> {
        self.ask("info", |engine| async move { engine.info().await })
    }

    fn create(&self, request: CreateRequest) -> Answer<'_, EngineId> {
        self.ask(&named("create", &request.name), |engine| async move { engine.create(request).await })
    }

    fn start<'a>(&'a self, id: &'a EngineId) -> Answer<'a, ()> {
        let (id, world) = (id.clone(), Arc::clone(&self.0));
        let starting = Starting::of(&world, &id);
        self.ask(&named("start", id.as_str()), |engine| async move {
            let started = engine.start(&id).await;
            drop(starting);
            started
        })
    }

    fn stop<'a>(&'a self, id: &'a EngineId, grace: Millis) -> Answer<'a, Option<Exit>> {
        let id = id.clone();
        self.ask(&named("stop", id.as_str()), move |engine| async move { engine.stop(&id, grace).await })
    }

    fn kill<'a>(&'a self, id: &'a EngineId) -> Answer<'a, ()> {
        let id = id.clone();
        self.ask(&named("kill", id.as_str()), |engine| async move { engine.kill(&id).await })
    }

    fn remove<'a>(&'a self, id: &'a EngineId) -> Answer<'a, ()> {
        let id = id.clone();
        self.ask(&named("remove", id.as_str()), |engine| async move { engine.remove(&id).await })
    }

    fn remove_volume<'a>(&'a self, name: &'a str) -> Answer<'a, ()> {
        let name = name.to_owned();
        self.ask(&named("remove_volume", &name), |engine| async move { engine.remove_volume(&name).await })
    }

    fn inspect<'a>(&'a self, id: &'a EngineId) -> Answer<'a, Fact> {
        let id = id.clone();
        self.ask(&named("inspect", id.as_str()), |engine| async move { engine.inspect(&id).await })
    }

    fn details<'a>(&'a self, id: &'a EngineId) -> Answer<'a, Option<Details>> {
        let id = id.clone();
        self.ask(&named("details", id.as_str()), |engine| async move { engine.details(&id).await })
    }

    fn logs<'a>(&'a self, id: &'a EngineId, tail: Option<u32>, follow: bool) -> Answer<'a, LogStream> {
        let id = id.clone();
        self.ask(
            &named("logs", id.as_str()),
            move |engine| async move { engine.logs(&id, tail, follow).await },
        )
    }

    fn exec<'a>(&'a self, id: &'a EngineId, request: ExecRequest) -> Answer<'a, Exec> {
        let id = id.clone();
        self.ask(&named("exec", id.as_str()), |engine| async move { engine.exec(&id, request).await })
    }

    fn exec_resize<'a>(&'a self, exec: &'a str, columns: u16, rows: u16) -> Answer<'a, ()> {
        let exec = exec.to_owned();
        self.ask(&named("exec_resize", &exec), move |engine| async move {
            engine.exec_resize(&exec, columns, rows).await
        })
    }

    fn exec_exit<'a>(&'a self, exec: &'a str) -> Answer<'a, Option<i32>> {
        let exec = exec.to_owned();
        self.ask(&named("exec_exit", &exec), |engine| async move { engine.exec_exit(&exec).await })
    }

    fn list(&self) -> Answer<'_, Vec<Listed>> {
        self.ask("list", |engine| async move { engine.list().await })
    }

    fn events(
        &self,
        since_ns: Option<i64>,
    ) -> Answer<'_, BoxStream<'static, Result<EngineEvent, RuntimeError>>> {
        self.ask("events", move |engine| async move { engine.events(since_ns).await })
    }

    fn image<'a>(&'a self, reference: &'a str) -> Answer<'a, Option<ImageFacts>> {
        let reference = reference.to_owned();
        self.ask(&named("image", &reference), |engine| async move { engine.image(&reference).await })
    }

    fn images(&self) -> Answer<'_, Vec<LocalImage>> {
        self.ask("images", |engine| async move { engine.images().await })
    }

    fn remove_image<'a>(&'a self, reference: &'a str) -> Answer<'a, bool> {
        let reference = reference.to_owned();
        self.ask(
            &named("remove_image", &reference),
            |engine| async move { engine.remove_image(&reference).await },
        )
    }

    fn tag<'a>(&'a self, from: &'a str, to: &'a str) -> Answer<'a, ()> {
        let (from, to) = (from.to_owned(), to.to_owned());
        self.ask(&named("tag", &from), |engine| async move { engine.tag(&from, &to).await })
    }

    fn strangers(&self) -> Answer<'_, Vec<(EngineId, Timestamp)>> {
        self.ask("strangers", |engine| async move { engine.strangers().await })
    }

    fn pull<'a>(&'a self, request: PullRequest<'a>) -> Answer<'a, ImageFacts> {
        let (reference, begin, inactivity) =
            (request.reference.to_owned(), request.begin, request.inactivity);
        self.ask(&named("pull", &reference), move |engine| async move {
            let request =
                PullRequest { reference: &reference, auth: None, begin, inactivity, progress: &|_| () };
            engine.pull(request).await
        })
    }

    fn now(&self) -> Timestamp {
        self.0.engine.now()
    }
}
