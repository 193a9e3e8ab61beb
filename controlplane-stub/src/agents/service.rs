//! The gRPC services: who may call what, and the way to the code that answers.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use berth_proto::v1;
use berth_proto::v1::control_plane_server::{ControlPlane, ControlPlaneServer};
use berth_proto::v1::enrollment_server::{Enrollment, EnrollmentServer};
use berth_proto::v1::frame::Kind;
use futures_util::Stream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::listener::Peer;
use super::streams::AgentSide;
use super::{MAX_MESSAGE, Shared, identity, register, session};
use crate::tls::{Certificate, Certifier, CertifyError};

/// How many messages may wait for an agent to read them.
const OUTGOING: usize = 64;
/// How long an agent may take to say what a stream is for.
const FIRST_FRAME: Duration = Duration::from_secs(10);

pub(super) fn control_plane(shared: Arc<Shared>) -> ControlPlaneServer<Service> {
    ControlPlaneServer::new(Service(shared)).max_decoding_message_size(MAX_MESSAGE)
}

pub(super) fn enrollment(shared: Arc<Shared>) -> EnrollmentServer<Service> {
    EnrollmentServer::new(Service(shared)).max_decoding_message_size(MAX_MESSAGE)
}

pub(super) struct Service(Arc<Shared>);

/// Who calls; an error unless it is a host that is known, or one on this machine.
fn known_peer<T>(request: &Request<T>) -> Result<Peer, Status> {
    match request.extensions().get::<Peer>() {
        Some(peer @ (Peer::Local | Peer::Host(_))) => Ok(peer.clone()),
        Some(Peer::Stranger) | None => Err(Status::unauthenticated(
            "a client certificate is needed: enrol this host with a join token first",
        )),
    }
}

fn no_certificates() -> Status {
    Status::failed_precondition("this control plane listens without TLS: no certificate is needed or given")
}

impl From<CertifyError> for Status {
    fn from(error: CertifyError) -> Self {
        let text = error.to_string();
        match error {
            CertifyError::UnknownToken => Self::unauthenticated(text),
            CertifyError::InvalidRequest(_) => Self::invalid_argument(text),
            CertifyError::Unavailable(_) => Self::unavailable(text),
        }
    }
}

impl From<Certificate> for v1::CertificateResponse {
    fn from(certificate: Certificate) -> Self {
        Self {
            certificate_pem: certificate.pem,
            ca_pem: certificate.ca_pem,
            not_after_ms: certificate.not_after.0,
        }
    }
}

impl Service {
    fn certifier(&self) -> Result<&Certifier, Status> {
        self.0.certifier.as_ref().ok_or_else(no_certificates)
    }
}

#[tonic::async_trait]
impl Enrollment for Service {
    async fn enroll(
        &self,
        request: Request<v1::EnrollRequest>,
    ) -> Result<Response<v1::CertificateResponse>, Status> {
        let v1::EnrollRequest { join_token, csr_pem, host_key } = request.into_inner();
        let certificate = self.certifier()?.enroll(join_token, csr_pem, &host_key).await?;
        Ok(Response::new(certificate.into()))
    }
}

#[tonic::async_trait]
impl ControlPlane for Service {
    async fn register(
        &self,
        request: Request<v1::RegisterRequest>,
    ) -> Result<Response<v1::RegisterResponse>, Status> {
        let host = identity::proved(known_peer(&request)?);
        let shared = &self.0;
        let request = request.into_inner();
        let instance =
            register::register(&*shared.store, &shared.registry, &shared.arns, host.as_ref(), request)
                .await?;
        let attribute =
            |(name, value): (&String, &String)| v1::Attribute { name: name.clone(), value: value.clone() };
        Ok(Response::new(v1::RegisterResponse {
            container_instance_arn: instance.arn.clone(),
            attributes: instance.attributes.iter().map(attribute).collect(),
        }))
    }

    async fn renew(
        &self,
        request: Request<v1::RenewRequest>,
    ) -> Result<Response<v1::CertificateResponse>, Status> {
        let Peer::Host(host) = known_peer(&request)? else { return Err(no_certificates()) };
        let certificate = self.certifier()?.renew(&host, &request.into_inner().csr_pem)?;
        Ok(Response::new(certificate.into()))
    }

    type AttachStream = Pin<Box<dyn Stream<Item = Result<v1::Frame, Status>> + Send>>;

    async fn attach(
        &self,
        request: Request<Streaming<v1::Frame>>,
    ) -> Result<Response<Self::AttachStream>, Status> {
        known_peer(&request)?;
        let mut incoming = request.into_inner();
        let first = tokio::time::timeout(FIRST_FRAME, incoming.message()).await;
        let first = first.map_err(|_| Status::deadline_exceeded("no first frame came"))??;
        let Some(v1::Frame { kind: Some(Kind::AttachId(id)) }) = first else {
            return Err(Status::invalid_argument("the first frame is to be attach_id"));
        };
        let (outgoing, stream) = mpsc::channel(OUTGOING);
        self.0.streams.arrive(&id, AgentSide { incoming, outgoing })?;
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    type SessionStream = Pin<Box<dyn Stream<Item = Result<v1::ControlPlaneMessage, Status>> + Send>>;

    async fn session(
        &self,
        request: Request<Streaming<v1::AgentMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let host = identity::proved(known_peer(&request)?);
        let (outgoing, stream) = mpsc::channel(OUTGOING);
        let tracker = &self.0.tracker;
        let stop = tracker.token().clone();
        // The agent's call returns only when it has the response: the conversation is held beside it.
        let shared = Arc::clone(&self.0);
        tracker.spawn("session", session::run(shared, host, request.into_inner(), outgoing, stop));
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }
}
