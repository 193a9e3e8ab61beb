//! The socket that agents connect to, and who is at the other end of a connection.
//!
//! Plaintext is for this machine alone: loopback addresses and unix sockets. Everything else
//! speaks TLS, where a client certificate is asked for but not demanded: a host that enrols has none yet.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::str::FromStr;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;

use crate::supervise::Tracker;
use crate::tls::HostId;

/// How long a handshake may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How many handshakes are worked on at a time.
const HANDSHAKES: usize = 256;
/// How many connections may wait for the server.
const BACKLOG: usize = 64;
/// How long to wait after the system refused a connection, for example for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Where agents connect to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AgentAddress {
    /// An address and a port.
    Tcp(SocketAddr),
    /// A unix socket.
    Unix(PathBuf),
}

/// A text is no address for agents.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is neither <ip>:<port> nor unix:/<path>")]
pub struct InvalidAddress(String);

impl FromStr for AgentAddress {
    type Err = InvalidAddress;

    fn from_str(text: &str) -> Result<Self, InvalidAddress> {
        match text.strip_prefix("unix:") {
            Some(path) if path.starts_with('/') => Ok(Self::Unix(PathBuf::from(path))),
            Some(_) => Err(InvalidAddress(text.to_owned())),
            None => text.parse().map(Self::Tcp).map_err(|_| InvalidAddress(text.to_owned())),
        }
    }
}

impl fmt::Display for AgentAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "{address}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl AgentAddress {
    /// Whether only this machine reaches it.
    #[must_use]
    pub fn is_local(&self) -> bool {
        match self {
            Self::Tcp(address) => address.ip().is_loopback(),
            Self::Unix(_) => true,
        }
    }
}

/// Who is at the other end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Peer {
    /// Somebody on this machine, in plaintext.
    Local,
    /// Somebody without a certificate.
    Stranger,
    /// A host that has enrolled.
    Host(HostId),
}

/// A listening socket.
#[derive(Debug)]
pub struct Listener {
    socket: Socket,
    address: AgentAddress,
}

#[derive(Debug)]
enum Socket {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listener {
    /// Listens at an address.
    ///
    /// # Errors
    /// What the system says.
    pub async fn bind(address: &AgentAddress) -> io::Result<Self> {
        match address {
            AgentAddress::Tcp(address) => {
                let listener = TcpListener::bind(address).await?;
                let address = AgentAddress::Tcp(listener.local_addr()?);
                Ok(Self { socket: Socket::Tcp(listener), address })
            }
            AgentAddress::Unix(path) => {
                remove_stale(path).await?;
                let listener = UnixListener::bind(path)?;
                tokio::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).await?;
                Ok(Self { socket: Socket::Unix(listener), address: address.clone() })
            }
        }
    }

    /// Where it listens really: with the port that the system chose.
    #[must_use]
    pub fn address(&self) -> &AgentAddress {
        &self.address
    }

    /// Accepts connections until the tracker stops. With `tls` all of them are encrypted.
    #[must_use]
    pub fn accept(
        self,
        tls: Option<Arc<ServerConfig>>,
        tracker: &Tracker,
    ) -> mpsc::Receiver<io::Result<Connected>> {
        let (connections, accepted) = mpsc::channel(BACKLOG);
        let acceptor = Acceptor {
            tls: tls.map(TlsAcceptor::from),
            handshakes: Arc::new(Semaphore::new(HANDSHAKES)),
            connections,
            tracker: tracker.clone(),
        };
        let stop = tracker.token().clone();
        tracker.spawn("agent-listener", async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = acceptor.run(self.socket) => {}
            }
            if let AgentAddress::Unix(path) = &self.address
                && let Err(error) = tokio::fs::remove_file(path).await
            {
                tracing::debug!(%error, path = %path.display(), "the socket was not removed");
            }
        });
        accepted
    }
}

/// A socket file that nobody listens at was left by a crash.
async fn remove_stale(path: &Path) -> io::Result<()> {
    match UnixStream::connect(path).await {
        Ok(_) => Err(io::Error::new(io::ErrorKind::AddrInUse, "another process listens there")),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => tokio::fs::remove_file(path).await,
        // Nothing there, or no socket: binding says what is wrong.
        Err(_) => Ok(()),
    }
}

struct Acceptor {
    tls: Option<TlsAcceptor>,
    handshakes: Arc<Semaphore>,
    connections: mpsc::Sender<io::Result<Connected>>,
    tracker: Tracker,
}

impl Acceptor {
    async fn run(self, socket: Socket) {
        loop {
            let accepted = match &socket {
                Socket::Tcp(listener) => match listener.accept().await {
                    Ok((stream, from)) => self.tcp(stream, from).await,
                    Err(error) => Err(error),
                },
                Socket::Unix(listener) => match listener.accept().await {
                    Ok((stream, _)) => self.pass(Connected { io: Box::pin(stream), peer: Peer::Local }).await,
                    Err(error) => Err(error),
                },
            };
            if let Err(error) = accepted {
                if self.connections.is_closed() {
                    return;
                }
                tracing::warn!(%error, "a connection of an agent could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }

    async fn pass(&self, connected: Connected) -> io::Result<()> {
        self.connections.send(Ok(connected)).await.map_err(|_| io::ErrorKind::BrokenPipe.into())
    }

    async fn tcp(&self, stream: TcpStream, from: SocketAddr) -> io::Result<()> {
        // Messages are small and each is waited for.
        stream.set_nodelay(true)?;
        let Some(tls) = self.tls.clone() else {
            return self.pass(Connected { io: Box::pin(stream), peer: Peer::Local }).await;
        };
        let Ok(permit) = Arc::clone(&self.handshakes).acquire_owned().await else { return Ok(()) };
        let (connections, stop) = (self.connections.clone(), self.tracker.token().clone());
        self.tracker.spawn("handshake", async move {
            let shaken = tokio::select! {
                () = stop.cancelled() => return,
                shaken = tokio::time::timeout(HANDSHAKE_TIMEOUT, tls.accept(stream)) => shaken,
            };
            drop(permit);
            let stream = match shaken {
                Ok(Ok(stream)) => stream,
                Ok(Err(error)) => {
                    tracing::debug!(%from, %error, "a TLS handshake failed");
                    return;
                }
                Err(_) => {
                    tracing::debug!(%from, "a TLS handshake took too long");
                    return;
                }
            };
            let certificate = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
            let peer = certificate.and_then(HostId::of_certificate).map_or(Peer::Stranger, Peer::Host);
            // A server that has gone needs no connection.
            let _ = connections.send(Ok(Connected { io: Box::pin(stream), peer })).await;
        });
        Ok(())
    }
}

trait Io: AsyncRead + AsyncWrite + Send {}
impl<T: AsyncRead + AsyncWrite + Send> Io for T {}

/// An accepted connection; the requests that come over it carry its [`Peer`].
pub struct Connected {
    io: Pin<Box<dyn Io>>,
    peer: Peer,
}

impl fmt::Debug for Connected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Connected({:?})", self.peer)
    }
}

impl tonic::transport::server::Connected for Connected {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Connected {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.io.as_mut().poll_read(cx, buf)
    }
}

impl AsyncWrite for Connected {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.io.as_mut().poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.io.as_mut().poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.io.as_mut().poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.io.as_mut().poll_shutdown(cx)
    }
}
