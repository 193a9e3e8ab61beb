//! The conversation with the control plane, dialled by the agent: enrol if need be, register, then
//! hold the session for as long as the agent runs, and begin anew when it ends.
//!
//! Whatever becomes of the control plane, tasks run on: all that waits is the outbox.

mod account;
mod admit;
mod attach;
mod attachment;
mod channel;
mod conversation;
mod convert;
mod endpoint;
mod enrolment;
mod environment;
mod inquiries;
mod linux;
mod tls;
mod volume;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use berth_core::ids::{ContainerInstanceArn, GpuId};
use berth_core::resources::Resources;
use berth_proto::v1;
use berth_proto::v1::control_plane_client::ControlPlaneClient;
use tokio::sync::{Mutex, watch};
use tokio::time::Instant;
use tonic::Code;

use crate::backoff::Backoff;
use crate::config::Secret;
use crate::engine::Engine;
use crate::random;
use crate::store::{Identity, Store, StoreError, Write};

pub use self::admit::{Admitted, assignment as admit};
pub use self::attach::Attaching;
pub use self::channel::{Dial, Line, LineError};
pub use self::endpoint::{Endpoint, InvalidEndpoint};
pub use self::inquiries::{Answer, Change, Inquiries, NoAnswer, Question};
pub use self::tls::TlsError;

/// The pauses between attempts to reach the control plane.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(15);

/// Longest that the control plane may take to answer a call; one that hangs is dialled anew.
const ANSWER: Duration = Duration::from_secs(30);

/// What the agent says of itself when it registers.
#[derive(Debug, Clone)]
pub struct Registration {
    /// The cluster.
    pub cluster: String,
    /// What the host can hold; ports are the reserved ones.
    pub total: Resources,
    /// Attributes and capabilities.
    pub attributes: BTreeMap<String, String>,
    /// The GPUs that `total` counts.
    pub gpus: Vec<GpuId>,
    /// Version of the agent.
    pub agent_version: String,
    /// Commit of the agent.
    pub agent_hash: String,
    /// Version of the container engine.
    pub engine_version: String,
    /// Name of the host.
    pub hostname: String,
}

/// How the control plane is reached.
#[derive(Debug, Clone)]
pub struct Backend {
    /// Where it is.
    pub endpoint: Endpoint,
    /// Lets a host without a certificate join.
    pub join_token: Option<Secret>,
    /// The control plane's CA.
    pub ca_fingerprint: Option<String>,
    /// Name that the control plane's certificate carries.
    pub server_name: Option<String>,
    /// Where the host's certificate is kept.
    pub data_dir: PathBuf,
}

/// Where the session stands; what health checks and operators are told.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum SessionStatus {
    /// Not there yet, or not any more: why.
    #[default]
    Connecting,
    /// The last attempt failed.
    Disconnected(String),
    /// In conversation.
    Connected,
    /// The control plane deregistered this instance.
    Deregistered,
}

/// Why the agent cannot go on, however often it tries.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The control plane refuses what the agent says of itself, and has never taken it in.
    #[error("the control plane refuses this host: {0}")]
    Refused(String),
    /// The state cannot be kept.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// One failed attempt: told, and tried again.
#[derive(Debug, thiserror::Error)]
enum Failed {
    #[error("cannot reach the control plane")]
    Connect(#[source] tonic::transport::Error),
    #[error("cannot reach the control plane")]
    Dial(#[source] LineError),
    #[error("{what}: {} ({:?})", .status.message(), .status.code())]
    Call { what: &'static str, status: Box<tonic::Status> },
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("{0}")]
    Protocol(String),
    #[error("deregistered: {0}")]
    Deregistered(String),
    #[error(transparent)]
    ForGood(SessionError),
}

/// The session.
pub struct Session {
    backend: Backend,
    registration: Registration,
    engine: Engine,
    store: Arc<dyn Store>,
    identity: Mutex<Identity>,
    attaching: Attaching,
    status: watch::Sender<SessionStatus>,
    instance: watch::Sender<Option<ContainerInstanceArn>>,
    draining: watch::Sender<bool>,
    inquiries: Inquiries,
    way: Option<Arc<dyn Dial>>,
}

impl Session {
    /// A session that has not begun.
    #[must_use]
    pub fn new(
        backend: Backend,
        registration: Registration,
        engine: Engine,
        store: Arc<dyn Store>,
        identity: Identity,
        attaching: Attaching,
    ) -> Self {
        Self {
            attaching,
            backend,
            registration,
            engine,
            store,
            instance: watch::Sender::new(identity.instance.clone()),
            // The engine that is given has taken up what was on the host.
            identity: Mutex::new(Identity { settled: true, ..identity }),
            status: watch::Sender::default(),
            draining: watch::Sender::new(false),
            inquiries: Inquiries::default(),
            way: None,
        }
    }

    /// The same, but for the way to the control plane.
    #[must_use]
    pub fn by_way_of(self, way: Arc<dyn Dial>) -> Self {
        Self { way: Some(way), ..self }
    }

    /// Where it stands.
    #[must_use]
    pub fn status(&self) -> watch::Receiver<SessionStatus> {
        self.status.subscribe()
    }

    /// Which instance this is, once it is known.
    #[must_use]
    pub fn instance(&self) -> watch::Receiver<Option<ContainerInstanceArn>> {
        self.instance.subscribe()
    }

    /// Whether the control plane drains it: nothing new is placed here.
    #[must_use]
    pub fn draining(&self) -> watch::Receiver<bool> {
        self.draining.subscribe()
    }

    /// Where questions to the control plane are asked.
    #[must_use]
    pub fn inquiries(&self) -> Inquiries {
        self.inquiries.clone()
    }

    /// Holds the conversation until it is dropped, or cannot go on.
    ///
    /// # Errors
    /// [`SessionError`] when trying again would not help.
    pub async fn run(&self) -> Result<(), SessionError> {
        let mut backoff = Backoff::new(random::number(), FIRST_PAUSE, LONGEST_PAUSE);
        loop {
            let began = Instant::now();
            let Err(failed) = self.once().await;
            match failed {
                Failed::Deregistered(reason) => {
                    // Coming back at once would undo what the operator did. Tasks that are here run on.
                    tracing::error!(
                        reason,
                        "this container instance was deregistered; restart the agent to register it anew"
                    );
                    self.status.send_replace(SessionStatus::Deregistered);
                    return std::future::pending().await;
                }
                Failed::ForGood(error) => return Err(error),
                failed => {
                    let text = with_causes(&failed);
                    tracing::warn!(reason = text, "not connected to the control plane; running tasks go on");
                    self.status.send_replace(SessionStatus::Disconnected(text));
                }
            }
            backoff.lasted(began);
            tokio::time::sleep(backoff.pause()).await;
        }
    }

    /// Connects, registers, converses: until something fails.
    async fn once(&self) -> Result<std::convert::Infallible, Failed> {
        let line = match &self.way {
            Some(way) => way.dial().await.map_err(Failed::Dial)?,
            None => channel::over(self.connect().await?),
        };
        let mut client = ControlPlaneClient::new(line).max_decoding_message_size(16 * 1024 * 1024);
        let instance = self.register(&mut client).await?;
        conversation::converse(self, &mut client, &instance).await
    }

    async fn register(&self, client: &mut ControlPlaneClient<Line>) -> Result<ContainerInstanceArn, Failed> {
        let registration = &self.registration;
        let mut identity = self.identity.lock().await.clone();
        let request = v1::RegisterRequest {
            cluster: registration.cluster.clone(),
            host_key: identity.host_key.clone(),
            previous_instance_arn: identity.instance.as_ref().map(ToString::to_string).unwrap_or_default(),
            total: Some(convert::resources(&registration.total)),
            attributes: registration
                .attributes
                .iter()
                .map(|(name, value)| v1::Attribute { name: name.clone(), value: value.clone() })
                .collect(),
            versions: Some(v1::Versions {
                agent: registration.agent_version.clone(),
                agent_hash: registration.agent_hash.clone(),
                engine: registration.engine_version.clone(),
            }),
            protocol_version: berth_proto::PROTOCOL_VERSION,
            hostname: registration.hostname.clone(),
            gpu_ids: registration.gpus.iter().map(ToString::to_string).collect(),
        };
        let known = identity.instance.is_some();
        let reply = answered("registration", client.register(request)).await?.map_err(|status| {
            // A host that was taken in once has tasks to look after, whatever it is told now.
            if !known && is_for_good(&status) {
                Failed::ForGood(SessionError::Refused(status.message().to_owned()))
            } else {
                called("registration", status)
            }
        })?;
        let arn = &reply.get_ref().container_instance_arn;
        let instance = ContainerInstanceArn::new(arn).map_err(|e| Failed::Protocol(e.to_string()))?;
        if identity.instance.as_ref() != Some(&instance) {
            identity.instance = Some(instance.clone());
            self.keep(identity).await?;
            tracing::info!(container_instance = %instance, "registered");
        }
        self.engine.set_instance(instance.clone());
        self.instance.send_replace(Some(instance.clone()));
        Ok(instance)
    }

    /// Keeps what was seen of the control plane's records; durable with whatever is committed after it.
    async fn keep_seen(&self, identity: Identity) -> Result<(), StoreError> {
        self.store.commit(vec![Write::Seen(identity.clone())]).await?;
        *self.identity.lock().await = identity;
        Ok(())
    }

    /// Makes a change of identity durable.
    async fn keep(&self, identity: Identity) -> Result<(), StoreError> {
        self.store.commit(vec![Write::Identity(identity.clone())]).await?;
        *self.identity.lock().await = identity;
        Ok(())
    }
}

/// The answer to a call, if there is one in time.
async fn answered<T>(what: &'static str, call: impl Future<Output = T>) -> Result<T, Failed> {
    let late = |_| Failed::Protocol(format!("{what}: no answer within {} s", ANSWER.as_secs()));
    tokio::time::timeout(ANSWER, call).await.map_err(late)
}

/// Whether a control plane says that it will not have this host. What a proxy says in its place, without a status of
/// the protocol, may be otherwise the next time.
fn is_for_good(status: &tonic::Status) -> bool {
    matches!(status.code(), Code::InvalidArgument | Code::PermissionDenied)
        && !status.message().starts_with("grpc-status header missing")
}

fn called(what: &'static str, status: tonic::Status) -> Failed {
    Failed::Call { what, status: Box::new(status) }
}

/// An error and what is behind it, in one line.
fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.contains(&next) {
            text = format!("{text}: {next}");
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use tonic::{Code, Status};

    use super::is_for_good;

    #[test]
    fn a_refusal_counts_where_it_is_the_control_planes_own() {
        for (code, text, counts) in [
            (Code::InvalidArgument, "protocol_version: the agent speaks 2", true),
            (Code::PermissionDenied, "this host may not join", true),
            (Code::NotFound, "Cluster not found.", false),
            (Code::PermissionDenied, "grpc-status header missing, mapped from HTTP status code 403", false),
        ] {
            assert_eq!(is_for_good(&Status::new(code, text)), counts, "{text}");
        }
    }
}
