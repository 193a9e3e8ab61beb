//! The road to the engine: a unix socket or TCP, one HTTP request at a time.

use std::error::Error as _;
use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_util::future::{BoxFuture, FutureExt};
use http_body_util::Full;
use hyper::Uri;
use hyper::body::{Body, Bytes, Incoming};
use hyper::{Request, Response};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::watch;

/// Where the engine listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Address {
    /// A unix socket.
    Unix(PathBuf),
    /// `host:port`, without TLS.
    Tcp(String),
}

/// Why an address is not one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the container engine's address {0:?} is not understood: unix:///path/to/socket or tcp://127.0.0.1:2375 is expected"
)]
pub struct InvalidAddress(String);

impl Address {
    /// Reads what `DOCKER_HOST` may hold.
    pub(super) fn parse(text: &str) -> Result<Self, InvalidAddress> {
        let invalid = || InvalidAddress(text.to_owned());
        match text.split_once("://") {
            Some(("unix", path)) if path.starts_with('/') => Ok(Self::Unix(PathBuf::from(path))),
            Some(("tcp" | "http", authority)) => {
                let authority = authority.trim_end_matches('/');
                let (host, port) = authority.rsplit_once(':').ok_or_else(invalid)?;
                if host.is_empty() || host.contains('/') || port.parse::<u16>().is_err() {
                    return Err(invalid());
                }
                Ok(Self::Tcp(authority.to_owned()))
            }
            _ => Err(invalid()),
        }
    }
}

/// A connection of either kind.
pub(super) enum Stream {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Stream {
    fn either(self: Pin<&mut Self>) -> Pin<&mut (dyn Duplex + Send + Unpin)> {
        match self.get_mut() {
            Self::Unix(stream) => Pin::new(stream as &mut (dyn Duplex + Send + Unpin)),
            Self::Tcp(stream) => Pin::new(stream as &mut (dyn Duplex + Send + Unpin)),
        }
    }
}

/// What both kinds of connection are.
trait Duplex: AsyncRead + AsyncWrite {}
impl<T: AsyncRead + AsyncWrite> Duplex for T {}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.either().poll_read(cx, buf)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.either().poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.either().poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.either().poll_shutdown(cx)
    }
}

impl Connection for Stream {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl tower::Service<Uri> for Address {
    type Response = TokioIo<Stream>;
    type Error = io::Error;
    type Future = BoxFuture<'static, io::Result<TokioIo<Stream>>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let address = self.clone();
        async move {
            Ok(TokioIo::new(match address {
                Self::Unix(path) => Stream::Unix(UnixStream::connect(path).await?),
                Self::Tcp(authority) => Stream::Tcp(TcpStream::connect(authority).await?),
            }))
        }
        .boxed()
    }
}

/// What is said of an engine that is there and mute: stopped by a signal, or in a knot.
pub(super) const MUTE: &str = "it accepts connections and does not answer";

/// Sends requests whose bodies are of type `B`.
#[derive(Debug)]
pub(super) struct Transport<B> {
    client: Client<Address, B>,
    mute: Option<watch::Receiver<bool>>,
}

impl<B> Clone for Transport<B> {
    fn clone(&self) -> Self {
        Self { client: self.client.clone(), mute: self.mute.clone() }
    }
}

impl<B> Transport<B>
where
    B: Body + Send + Unpin + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    /// One whose requests end once the engine is known to be `mute`; where that is absent, they wait.
    pub(super) fn new(address: Address, mute: Option<watch::Receiver<bool>>) -> Self {
        // One connection for each request: connecting to a unix socket costs some 50 us, and no
        // request can fall on a connection that the engine closed when it restarted.
        let client = Client::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build(address);
        Self { client, mute }
    }

    /// Sends a request; returns once the headers of the answer are there. The error tells the
    /// cause alone.
    pub(super) async fn send(&self, request: Request<B>) -> io::Result<Response<Incoming>> {
        let mut mute = self.mute.clone();
        let falls_mute = async {
            if let Some(mute) = &mut mute
                && mute.wait_for(|mute| *mute).await.is_ok()
            {
                return;
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            answer = self.client.request(request) => {
                answer.map_err(|error| io::Error::other(root_cause(&error)))
            }
            () = falls_mute => Err(io::Error::other(MUTE)),
        }
    }
}

/// The innermost error: the outer ones only say that a request failed.
fn root_cause(error: &hyper_util::client::legacy::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    if error.source().is_none() {
        return error.to_string();
    }
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}

/// An empty body.
pub(super) fn empty() -> Full<Bytes> {
    Full::new(Bytes::new())
}

/// Text for a path or a query: everything but letters, digits and `-._~` is escaped, and `keep`
/// is kept as it is.
pub(super) fn escape(text: &str, keep: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) || keep.as_bytes().contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push('%');
            for nibble in [byte >> 4, byte & 15] {
                out.push(char::from_digit(u32::from(nibble), 16).unwrap_or('0').to_ascii_uppercase());
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_nonsense_is_named() {
        assert_eq!(Address::parse("unix:///run/x.sock").unwrap(), Address::Unix("/run/x.sock".into()));
        assert_eq!(Address::parse("tcp://127.0.0.1:2375").unwrap(), Address::Tcp("127.0.0.1:2375".into()));
        for bad in
            ["", "/run/x.sock", "unix://x.sock", "tcp://host", "ssh://host:22", "tcp://:1", "tcp://h:99999"]
        {
            assert!(Address::parse(bad).unwrap_err().to_string().contains("is expected"), "{bad}");
        }
    }

    #[test]
    fn queries_are_escaped() {
        assert_eq!(escape("{\"a\":[\"b c\"]}", ""), "%7B%22a%22%3A%5B%22b%20c%22%5D%7D");
        assert_eq!(escape("host:5000/a/b:1@sha256:x", "/:@"), "host:5000/a/b:1@sha256:x");
    }
}
