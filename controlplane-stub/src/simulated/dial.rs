//! How a simulated agent reaches the listener of its own control plane.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity, Uri};

use crate::agents::listener::AgentAddress;
use crate::tls::Authority;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Where to dial, and with whose certificates.
#[derive(Debug, Clone)]
pub enum Dial {
    /// In plaintext.
    Plain(AgentAddress),
    /// With a certificate that the authority gives for the purpose.
    Tls(SocketAddr, Arc<Authority>),
}

impl Dial {
    /// Connects, as the host that has this key.
    pub(super) async fn connect(&self, host_key: &str) -> Result<Channel, String> {
        let text = |error: &dyn std::fmt::Display| error.to_string();
        match self {
            Self::Plain(AgentAddress::Tcp(address)) => endpoint(&format!("http://{}", dialable(*address)))?
                .connect()
                .await
                .map_err(|error| text(&error)),
            Self::Plain(AgentAddress::Unix(path)) => {
                let path: Arc<PathBuf> = Arc::new(path.clone());
                let connector = tower::service_fn(move |_: Uri| {
                    let path = Arc::clone(&path);
                    async move { UnixStream::connect(&*path).await.map(TokioIo::new) }
                });
                endpoint("http://localhost")?
                    .connect_with_connector(connector)
                    .await
                    .map_err(|error| text(&error))
            }
            Self::Tls(address, authority) => {
                let (certificate, key) =
                    authority.identity_for_simulation(host_key).map_err(|error| text(&error))?;
                let tls = ClientTlsConfig::new()
                    .ca_certificate(Certificate::from_pem(authority.pem()))
                    .identity(Identity::from_pem(certificate, key))
                    .domain_name("localhost");
                let endpoint = endpoint(&format!("https://{}", dialable(*address)))?;
                let endpoint = endpoint.tls_config(tls).map_err(|error| text(&error))?;
                endpoint.connect().await.map_err(|error| text(&error))
            }
        }
    }
}

fn endpoint(uri: &str) -> Result<Endpoint, String> {
    let endpoint = Endpoint::from_shared(uri.to_owned()).map_err(|error| error.to_string())?;
    Ok(endpoint.connect_timeout(CONNECT_TIMEOUT).tcp_nodelay(true))
}

/// An address that listens everywhere is reached at loopback.
fn dialable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}
