//! A line to the control plane that carries gRPC, over whatever the endpoint calls for.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tonic::body::Body;
use tonic::codegen::http::{Request, Response};
use tonic::transport::{Channel, Endpoint as Builder, Uri};
use tower::util::BoxCloneSyncService;
use tower::{ServiceExt, service_fn};

use super::endpoint::Endpoint;

const CONNECT: Duration = Duration::from_secs(10);
const KEEPALIVE: Duration = Duration::from_secs(20);
const KEEPALIVE_ANSWER: Duration = Duration::from_secs(10);

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// What carries calls to the control plane.
pub type Line = BoxCloneSyncService<Request<Body>, Response<Body>, LineError>;

/// Why there is no line, or not any more.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct LineError(#[source] pub BoxError);

/// Another way to the control plane than the endpoint: for simulations, which have no network.
pub trait Dial: Send + Sync + 'static {
    /// A new line.
    fn dial(&self) -> BoxFuture<'_, Result<Line, LineError>>;
}

/// A line over a channel.
pub(super) fn over(channel: Channel) -> Line {
    BoxCloneSyncService::new(channel.map_err(|error| LineError(error.into())))
}

/// Connects. `tls` is needed for [`Endpoint::Tls`] alone; `server_name` is what its certificate
/// must carry instead of the host.
pub(super) async fn connect(
    endpoint: &Endpoint,
    tls: Option<ClientConfig>,
    server_name: Option<&str>,
) -> Result<Channel, tonic::transport::Error> {
    match endpoint {
        Endpoint::Loopback { authority } => builder(format!("http://{authority}"))?.connect().await,
        Endpoint::Unix(path) => {
            let path = path.clone();
            let connector = service_fn(move |_: Uri| {
                let path = path.clone();
                async move { UnixStream::connect(path).await.map(TokioIo::new) }
            });
            builder("http://localhost".to_owned())?.connect_with_connector(connector).await
        }
        Endpoint::Tls { host, port } => {
            let (host, port) = (host.clone(), *port);
            let name = server_name.map_or_else(|| host.clone(), ToOwned::to_owned);
            let config = tls.map(Arc::new);
            let connector = service_fn(move |_: Uri| {
                let (host, name, config) = (host.clone(), name.clone(), config.clone());
                async move {
                    let config = config.ok_or("TLS without a configuration")?;
                    let tcp = TcpStream::connect((host, port)).await?;
                    tcp.set_nodelay(true)?;
                    let name = ServerName::try_from(name)?;
                    let stream = TlsConnector::from(config).connect(name, tcp).await?;
                    Ok::<_, BoxError>(TokioIo::new(stream))
                }
            });
            // The connector speaks TLS itself; the URI only names the peer.
            builder("http://controlplane".to_owned())?.connect_with_connector(connector).await
        }
    }
}

fn builder(uri: String) -> Result<Builder, tonic::transport::Error> {
    Ok(Builder::from_shared(uri)?
        .connect_timeout(CONNECT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE_ANSWER)
        .keep_alive_while_idle(true))
}
