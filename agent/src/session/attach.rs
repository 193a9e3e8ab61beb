//! What the control plane asks for in the name of an operator: a program in a container, or what a container
//! says. Each has a stream of its own, so that neither holds up the conversation.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use berth_core::ids::{ContainerName, EngineId, TaskArn};
use berth_proto::talk::Kind;
use berth_proto::v1;
use berth_proto::v1::attach_request::What;
use berth_proto::v1::control_plane_client::ControlPlaneClient;
use futures_util::{SinkExt, StreamExt};
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::PollSender;

use super::Line;
use crate::engine::{Engine, recite};
use crate::runtime::{ExecRequest, RuntimeError};
use crate::supervise::Tracker;

/// Most of them at a time.
const AT_ONCE: usize = 32;
/// Frames that may wait for the wire.
const QUEUE: usize = 16;
/// Longest that the control plane may take to read what was said last.
const LAST: Duration = Duration::from_secs(30);
/// Longest that the control plane may take to open a stream.
const OPEN: Duration = Duration::from_secs(10);

/// Talks in the name of operators who are elsewhere.
pub struct Attaching {
    engine: Engine,
    tracker: Tracker,
    room: Arc<Semaphore>,
    /// Whether programs may be started.
    allowed: bool,
}

impl Attaching {
    /// With the containers of that engine; `allowed` is whether programs may be started.
    #[must_use]
    pub fn new(engine: Engine, tracker: Tracker, allowed: bool) -> Self {
        Self { engine, tracker, room: Arc::new(Semaphore::new(AT_ONCE)), allowed }
    }

    /// Answers beside the conversation.
    pub(super) fn begin(&self, mut client: ControlPlaneClient<Line>, request: v1::AttachRequest) {
        let (engine, room, allowed) = (self.engine.clone(), Arc::clone(&self.room), self.allowed);
        self.tracker.spawn_droppable("attach", async move {
            let id = request.attach_id.clone();
            let (to, outbound) = mpsc::channel(QUEUE);
            // The queue is empty.
            let _ = to.try_send(frame(Kind::AttachId(id)));
            let opened = tokio::time::timeout(OPEN, client.attach(ReceiverStream::new(outbound))).await;
            let inbound = match opened {
                Ok(Ok(reply)) => reply.into_inner(),
                Ok(Err(status)) => return tracing::warn!(%status, "an operator's stream was not opened"),
                Err(_) => return tracing::warn!("an operator's stream was not opened in time"),
            };
            let from = inbound.filter_map(|received| async move {
                received.map(|frame| frame.kind).map_err(io::Error::other).transpose()
            });
            let mut to = PollSender::new(to)
                .sink_map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))
                .with(|kind| std::future::ready(io::Result::Ok(frame(kind))));
            let Ok(_place) = room.try_acquire() else {
                let why = "too many programs and logs of this host are looked at; try again soon";
                let _ = to.send(Kind::Failure(why.to_owned())).await;
                return;
            };
            tokio::pin!(from);
            // Whoever asked has gone where this fails.
            let _ = answer(&engine, allowed, request, from.as_mut(), to).await;
            // Hung up on at once, the other side would lose what it has not read yet.
            let heard_out = async { while from.next().await.is_some() {} };
            let _ = tokio::time::timeout(LAST, heard_out).await;
        });
    }
}

const fn frame(kind: Kind) -> v1::Frame {
    v1::Frame { kind: Some(kind) }
}

async fn answer(
    engine: &Engine,
    allowed: bool,
    request: v1::AttachRequest,
    from: impl futures_util::Stream<Item = io::Result<Kind>>,
    to: impl futures_util::Sink<Kind, Error = io::Error>,
) -> io::Result<()> {
    tokio::pin!(to);
    let (task, who) = (request.task_arn.clone(), request.who.clone());
    let id = match container(engine, &request) {
        Ok(id) => id,
        Err(why) => return to.send(Kind::Failure(why)).await,
    };
    let failed = |error: RuntimeError| Kind::Failure(error.to_string());
    match request.what {
        Some(What::Exec(exec)) => {
            if !allowed {
                let why = "this host lets nobody start programs from afar (BERTH_REMOTE_EXEC)";
                return to.send(Kind::Failure(why.to_owned())).await;
            }
            let program = exec.command.first().cloned().unwrap_or_default();
            let started = engine.exec(&id, ExecRequest { command: exec.command, tty: exec.tty }).await;
            let exec = match started {
                Ok(exec) => exec,
                Err(error) => return to.send(failed(error)).await,
            };
            tracing::info!(target: "berth::audit", task, container = %id, program, who, "a program was started in a container from afar");
            let exec_id = exec.id.clone();
            let talked = engine.talk(exec, from, to).await;
            let exit = engine.exec_exit(&exec_id).await.ok().flatten();
            tracing::info!(target: "berth::audit", task, container = %id, exit, "a program in a container was left");
            talked
        }
        Some(What::Logs(logs)) => match engine.logs(&id, logs.tail, logs.follow).await {
            Ok(lines) => recite(lines, from, to).await,
            Err(error) => to.send(failed(error)).await,
        },
        None => to.send(Kind::Failure("this agent does not know what is asked of it".to_owned())).await,
    }
}

/// The engine's id of the container that is asked for.
fn container(engine: &Engine, request: &v1::AttachRequest) -> Result<EngineId, String> {
    let task = TaskArn::new(&request.task_arn).map_err(|error| error.to_string())?;
    let name = ContainerName::new(&request.container).map_err(|error| error.to_string())?;
    let task = engine.task(&task).ok_or_else(|| format!("task {} is not on this host", task.id()))?;
    let found = task.state().containers.iter().find(|container| container.name == name);
    let found = found.ok_or_else(|| format!("the task has no container {name}"))?;
    found.id.clone().ok_or_else(|| format!("container {name} was not made yet"))
}
