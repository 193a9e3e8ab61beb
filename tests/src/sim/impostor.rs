//! Servers that sit at the control plane's port and are none.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Result;
use berth_proto::v1;
use berth_proto::v1::control_plane_message::Message;
use berth_proto::v1::control_plane_server::{ControlPlane, ControlPlaneServer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;
use tonic::transport::Server;
use tonic::{Request, Response, Status, Streaming};

/// What the impostor says.
#[derive(Debug, Clone)]
pub enum Manner {
    /// Bytes that are no protocol at all.
    Nonsense,
    /// The right protocol, and nothing but errors.
    Errors,
    /// Takes the host for that instance, and tells it lies: an empty manifest, tasks that are none.
    Lies(String),
}

/// A server that answers so. Ends with its value, or with [`stop`](Self::stop).
#[derive(Debug)]
pub struct Impostor {
    asked: watch::Receiver<u64>,
    stop: DropGuard,
    tracker: TaskTracker,
}

impl Impostor {
    /// Listens at that address.
    ///
    /// # Errors
    /// When it is taken.
    pub async fn start(address: SocketAddr, manner: Manner) -> Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let (count, asked) = watch::channel(0);
        let (tracker, stop) = (TaskTracker::new(), CancellationToken::new());
        let serve = serve(listener, manner, Arc::new(count));
        tracker.spawn(stop.clone().run_until_cancelled_owned(serve));
        tracker.close();
        Ok(Self { asked, stop: stop.drop_guard(), tracker })
    }

    /// Waits until it was asked that often and has answered in its manner.
    ///
    /// # Errors
    /// When it has ended.
    pub async fn asked(&self, often: u64) -> Result<()> {
        self.asked.clone().wait_for(|count| *count >= often).await?;
        Ok(())
    }

    /// Leaves the port to others.
    pub async fn stop(self) {
        drop(self.stop);
        self.tracker.wait().await;
    }
}

async fn serve(listener: TcpListener, manner: Manner, count: Arc<watch::Sender<u64>>) {
    if matches!(manner, Manner::Nonsense) {
        while let Ok((stream, _)) = listener.accept().await {
            // A peer that breaks off first is as good.
            drop(babble(stream).await);
            count.send_modify(|count| *count += 1);
        }
        return;
    }
    let liar = Liar { manner, count, sequence: AtomicU64::new(0) };
    let server = Server::builder().add_service(ControlPlaneServer::new(liar));
    if let Err(why) = server.serve_with_incoming(TcpListenerStream::new(listener)).await {
        eprintln!("the impostor ended: {why}");
    }
}

async fn babble(mut stream: TcpStream) -> Result<()> {
    let mut heard = [0; 256];
    stream.write_all(b"SSH-2.0-nonsense\r\n\x00\xff\xfe\x00\x16\x03\x01 220 hello\r\n").await?;
    if stream.read(&mut heard).await? == 0 {
        return Ok(());
    }
    stream.write_all(&[0x5a; 4096]).await?;
    Ok(())
}

struct Liar {
    manner: Manner,
    count: Arc<watch::Sender<u64>>,
    sequence: AtomicU64,
}

impl Liar {
    /// A different error every time.
    fn error(&self) -> Status {
        self.count.send_modify(|count| *count += 1);
        match self.sequence.fetch_add(1, Ordering::Relaxed) % 5 {
            0 => Status::permission_denied("not for you"),
            1 => Status::invalid_argument("another version"),
            2 => Status::internal("nothing works here"),
            3 => Status::unimplemented("what is that?"),
            _ => Status::unauthenticated("who are you?"),
        }
    }
}

#[tonic::async_trait]
impl ControlPlane for Liar {
    type AttachStream = ReceiverStream<Result<v1::Frame, Status>>;

    async fn attach(&self, _: Request<Streaming<v1::Frame>>) -> Result<Response<Self::AttachStream>, Status> {
        Err(Status::not_found("nobody asked for it"))
    }

    type SessionStream = ReceiverStream<Result<v1::ControlPlaneMessage, Status>>;

    async fn register(
        &self,
        request: Request<v1::RegisterRequest>,
    ) -> Result<Response<v1::RegisterResponse>, Status> {
        match &self.manner {
            Manner::Lies(instance) => Ok(Response::new(v1::RegisterResponse {
                container_instance_arn: instance.clone(),
                attributes: request.into_inner().attributes,
            })),
            _ => Err(self.error()),
        }
    }

    async fn renew(&self, _: Request<v1::RenewRequest>) -> Result<Response<v1::CertificateResponse>, Status> {
        Err(self.error())
    }

    async fn session(
        &self,
        request: Request<Streaming<v1::AgentMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        if !matches!(self.manner, Manner::Lies(_)) {
            return Err(self.error());
        }
        let mut incoming = request.into_inner();
        let Some(v1::agent_message::Message::Hello(hello)) =
            incoming.message().await?.and_then(|m| m.message)
        else {
            return Err(Status::invalid_argument("not even a greeting"));
        };
        let lies = [
            Message::Manifest(v1::Manifest {
                sequence: hello.last_manifest_sequence + 1,
                ..Default::default()
            }),
            Message::Payload(v1::Payload {
                sequence: 1,
                tasks: vec![v1::Assignment::default(), nameless()],
                at: None,
            }),
            // Acknowledges what was never sent, and answers what was never asked.
            Message::StateChangeAck(v1::StateChangeAck { sequence: u64::MAX, at: None }),
            Message::HeartbeatAck(v1::HeartbeatAck { sequence: u64::MAX }),
        ];
        let (outgoing, stream) = tokio::sync::mpsc::channel(lies.len() + 1);
        for lie in lies {
            let message = v1::ControlPlaneMessage { message: Some(lie) };
            outgoing.try_send(Ok(message)).map_err(|why| Status::internal(why.to_string()))?;
        }
        outgoing
            .try_send(Ok(v1::ControlPlaneMessage { message: None }))
            .map_err(|why| Status::internal(why.to_string()))?;
        self.count.send_modify(|count| *count += 1);
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

/// An assignment that names a task of nobody's, and says nothing that could be run.
fn nameless() -> v1::Assignment {
    v1::Assignment {
        task_arn: "arn:aws:ecs:us-east-1:123456789012:task/nobody/00000000000000000000000000000000"
            .to_owned(),
        desired: v1::DesiredStatus::Running.into(),
        spec: Some(v1::TaskSpec { network_mode: "carrier-pigeon".to_owned(), ..v1::TaskSpec::default() }),
        ..v1::Assignment::default()
    }
}
