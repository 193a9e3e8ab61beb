//! The gRPC side: enrolment, registration and sessions of agents. Writes observed state only; what a task
//! wants is the controller's to change.
//!
//! | module | its one job |
//! | --- | --- |
//! | `service` | the services, and who may call what |
//! | `register` | a host becomes an instance, or is found again |
//! | `identity` | whose an instance is |
//! | `session` | one conversation with one agent |
//! | [`streams`] | what operators ask of agents, and the streams that answer |
//! | `apply` | what state changes do to the records |
//! | `adopt` | tasks of a host that knew other records than these |
//! | `protection` | tasks that ask for protection from scale-in |
//! | `wake` | tells sessions that their tasks changed |
//! | [`registry`] | who is connected, and what they said last |
//! | [`convert`] | messages to records and back |
//! | [`listener`] | the listening socket, and who is at the other end |

mod adopt;
mod apply;
mod attachment;
pub mod convert;
mod credentials;
mod identity;
mod linux;
pub mod listener;
mod protection;
mod register;
pub mod registry;
mod service;
mod session;
pub mod streams;
mod volume;
mod wake;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures_util::Stream;
use tonic::transport::Server;

pub use session::HEARTBEAT_INTERVAL;

use crate::arn::Arns;
use crate::controller::Controller;
use crate::credentials::Provider;
use crate::store::Store;
use crate::supervise::Tracker;
use crate::tls::Certifier;
use crate::vpc::CurrentVpc;
use listener::Connected;
use registry::Registry;
use streams::Streams;

/// HTTP/2 pings find a dead connection.
const PING_INTERVAL: Duration = Duration::from_secs(20);
/// How long a ping may stay unanswered.
const PING_TIMEOUT: Duration = Duration::from_secs(10);
/// Largest message that an agent may send.
const MAX_MESSAGE: usize = 4 * 1024 * 1024;

/// What all services and sessions work with.
struct Shared {
    store: Arc<dyn Store>,
    controller: Controller,
    registry: Registry,
    streams: Streams,
    arns: Arns,
    vpc: CurrentVpc,
    certifier: Option<Certifier>,
    /// Agents are heard at least so often; one that misses some counts as dead.
    heartbeat_interval: Duration,
    /// Who gives credentials for the roles of tasks.
    credentials: Option<Arc<dyn Provider>>,
    tracker: Tracker,
}

/// What the agents' side is made of.
pub struct Parts {
    /// Records.
    pub store: Arc<dyn Store>,
    /// Changes what is wanted.
    pub controller: Controller,
    /// The sessions that are open.
    pub registry: Registry,
    /// What operators wait for.
    pub streams: Streams,
    /// Names.
    pub arns: Arns,
    /// Subnets and security groups.
    pub vpc: CurrentVpc,
    /// Who gives hosts their certificates; without one no host can enrol.
    pub certifier: Option<Certifier>,
    /// Agents are heard at least so often.
    pub heartbeat_interval: Duration,
    /// Who gives credentials for the roles of tasks.
    pub credentials: Option<Arc<dyn Provider>>,
}

/// The agents' side of the control plane.
pub struct Agents(Arc<Shared>);

impl fmt::Debug for Agents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Agents({:?})", self.0.registry)
    }
}

impl Agents {
    /// The agents' side, which wakes sessions from now on.
    #[must_use]
    pub fn start(parts: Parts, tracker: &Tracker) -> Self {
        let Parts {
            store,
            controller,
            registry,
            streams,
            arns,
            vpc,
            certifier,
            heartbeat_interval,
            credentials,
        } = parts;
        let commits = store.watch();
        let wake =
            wake::run(Arc::clone(&store), commits, registry.clone(), arns.clone(), tracker.token().clone());
        tracker.spawn("wake", wake);
        tracker
            .spawn("wake for groups", wake::follow(vpc.changes(), registry.clone(), tracker.token().clone()));
        let tracker = tracker.clone();
        Self(Arc::new(Shared {
            store,
            controller,
            registry,
            streams,
            arns,
            vpc,
            certifier,
            heartbeat_interval,
            credentials,
            tracker,
        }))
    }

    /// Serves connections until the tracker stops.
    ///
    /// # Errors
    /// When the server fails as a whole; a failing connection is not that.
    pub async fn serve(
        &self,
        connections: impl Stream<Item = Result<Connected, std::io::Error>> + Send + 'static,
    ) -> Result<(), tonic::transport::Error> {
        let stop = self.0.tracker.token().clone();
        Server::builder()
            .http2_keepalive_interval(Some(PING_INTERVAL))
            .http2_keepalive_timeout(Some(PING_TIMEOUT))
            .add_service(service::control_plane(Arc::clone(&self.0)))
            .add_service(service::enrollment(Arc::clone(&self.0)))
            .serve_with_incoming_shutdown(connections, stop.cancelled_owned())
            .await
    }
}
