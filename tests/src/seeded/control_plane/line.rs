//! The service, and the way to it: calls reach it without a connection, until the line is cut.

use std::convert::Infallible;
use std::future::Future;

use berth_agent::session::{Dial, Line, LineError};
use berth_proto::v1;
use berth_proto::v1::control_plane_server::{ControlPlane as Service, ControlPlaneServer};
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use tokio::sync::mpsc;
use tokio::time::sleep;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tonic::codegen::Service as _;
use tonic::codegen::http::Request as HttpRequest;
use tonic::{Request, Response, Status, Streaming};

use super::talk::Conversation;
use super::{ControlPlane, Manner, WIRE};

/// Messages that may wait for the agent.
const QUEUE: usize = 64;

/// The way to it of one life of the agent.
pub struct Way {
    control_plane: ControlPlane,
    dead: CancellationToken,
}

impl Way {
    /// For a life that is over when `dead` is cancelled.
    #[must_use]
    pub const fn new(control_plane: ControlPlane, dead: CancellationToken) -> Self {
        Self { control_plane, dead }
    }
}

impl Dial for Way {
    fn dial(&self) -> BoxFuture<'_, Result<Line, LineError>> {
        async {
            let world = &self.control_plane.world;
            sleep(world.span(WIRE)).await;
            if self.dead.is_cancelled() || self.control_plane.manner() == Manner::Away {
                world.note(format_args!("nobody answers"));
                return Err(LineError("connection refused".into()));
            }
            let cut = self.dead.child_token();
            self.control_plane.state().lines.push(cut.clone());
            let end = LineEnd { control_plane: self.control_plane.clone(), cut };
            let server = ControlPlaneServer::new(end);
            let line = tower_line(server);
            Ok(line)
        }
        .boxed()
    }
}

fn tower_line(server: ControlPlaneServer<LineEnd>) -> Line {
    Line::new(tower::service_fn(move |request: HttpRequest<Body>| {
        let mut server = server.clone();
        async move { server.call(request).await.map_err(|never: Infallible| -> LineError { match never {} }) }
    }))
}

/// One line's end.
#[derive(Clone)]
pub(super) struct LineEnd {
    pub(super) control_plane: ControlPlane,
    pub(super) cut: CancellationToken,
}

pub(super) fn lost() -> Status {
    Status::unavailable("the line was cut")
}

impl LineEnd {
    /// What a call comes to: its answer, or the end of the line.
    async fn answer<T>(&self, answer: impl Future<Output = Result<T, Status>>) -> Result<T, Status> {
        let heard = async {
            if !self.control_plane.listen().await {
                // It has died, or was replaced: what it was asked is lost, and nobody will ever answer.
                std::future::pending::<()>().await;
            }
            self.control_plane.dawdle().await;
            answer.await
        };
        self.cut.run_until_cancelled(heard).await.unwrap_or_else(|| Err(lost()))
    }
}

#[tonic::async_trait]
impl Service for LineEnd {
    type AttachStream = ReceiverStream<Result<v1::Frame, Status>>;
    type SessionStream = ReceiverStream<Result<v1::ControlPlaneMessage, Status>>;

    async fn attach(&self, _: Request<Streaming<v1::Frame>>) -> Result<Response<Self::AttachStream>, Status> {
        Err(Status::not_found("nobody asked for it"))
    }

    async fn renew(&self, _: Request<v1::RenewRequest>) -> Result<Response<v1::CertificateResponse>, Status> {
        Err(Status::unimplemented("there are no certificates"))
    }

    async fn register(
        &self,
        request: Request<v1::RegisterRequest>,
    ) -> Result<Response<v1::RegisterResponse>, Status> {
        self.answer(async {
            if self.control_plane.manner() == Manner::Lying && self.control_plane.world.once_in(2) {
                return Err(Status::internal("nothing works here"));
            }
            let mut state = self.control_plane.state();
            let arn = match state.instance.clone() {
                Some(arn) => arn,
                None => {
                    state.instances += 1;
                    let id = state.instances;
                    format!("arn:aws:ecs:eu-west-1:123456789012:container-instance/story/{id:032x}")
                }
            };
            state.instance = Some(arn.clone());
            let attributes = request.into_inner().attributes;
            Ok(Response::new(v1::RegisterResponse { container_instance_arn: arn, attributes }))
        })
        .await
    }

    async fn session(
        &self,
        request: Request<Streaming<v1::AgentMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let inbound = request.into_inner();
        self.answer(async {
            let (outgoing, stream) = mpsc::channel(QUEUE);
            let with_liar = self.control_plane.manner() == Manner::Lying;
            let conversation = Conversation { end: self.clone(), outgoing, with_liar };
            self.control_plane.world.tasks.spawn(async move { conversation.hold(inbound).await });
            Ok(Response::new(ReceiverStream::new(stream)))
        })
        .await
    }
}
