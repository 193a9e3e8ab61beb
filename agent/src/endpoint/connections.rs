//! Connections of whoever asks over the network. Each gets so long for the head of a request and for taking an
//! answer, and each address so many, that nobody holds up others by saying nothing.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Sleep, sleep, timeout};
use tower::Service;

use crate::supervise::Tracker;

/// Longest until the head of a connection's next request is there, and longest that the other side may take
/// nothing of an answer: ECS's figure. So an idle connection is closed after that, too.
const PATIENCE: Duration = Duration::from_secs(5);
/// Most connections from one address. Tasks on the host's network share one.
const MOST: usize = 64;
/// How long answers may take that are under way when the agent stops.
const FAREWELL: Duration = Duration::from_secs(1);
/// The pause when no connection can be accepted, as without free file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves until the tracker's token is cancelled; the handlers find the other side's address as
/// [`ConnectInfo`].
pub(super) async fn serve(listener: TcpListener, router: Router, tracker: &Tracker) {
    let counts = Arc::new(Counts::default());
    loop {
        let Some(accepted) = tracker.token().run_until_cancelled(listener.accept()).await else { return };
        match accepted {
            Ok((stream, peer)) => {
                // One too many is closed.
                let Some(place) = Place::take(&counts, peer.ip()) else { continue };
                let connection = connection(stream, peer, router.clone(), tracker.clone());
                tracker.spawn("connection", async move {
                    connection.await;
                    drop(place);
                });
            }
            Err(error) => {
                // A peer that went away, or too many open files: both pass.
                tracing::warn!(%error, "a connection could not be accepted");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn connection(stream: TcpStream, peer: SocketAddr, router: Router, tracker: Tracker) {
    // Small answers are to leave at once.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "TCP_NODELAY was not set");
    }
    let service = service_fn(move |request: Request<Incoming>| {
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(ConnectInfo(peer));
        router.clone().call(request)
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .serve_connection(TokioIo::new(Hasty::new(stream)), service);
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = tracker.token().cancelled() => {
            connection.as_mut().graceful_shutdown();
            timeout(FAREWELL, connection).await.unwrap_or(Ok(()))
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, %peer, "a connection ended early");
    }
}

/// What each address has that has connections.
type Counts = Mutex<HashMap<IpAddr, Count>>;

#[derive(Default)]
struct Count {
    connections: usize,
    /// Whether it is on the log that it had too many.
    told: bool,
}

/// A connection that is counted for as long as this lives.
struct Place {
    counts: Arc<Counts>,
    address: IpAddr,
}

impl Place {
    fn take(counts: &Arc<Counts>, address: IpAddr) -> Option<Self> {
        let address = address.to_canonical();
        let mut all = counts.lock().unwrap_or_else(PoisonError::into_inner);
        let count = all.entry(address).or_default();
        if count.connections >= MOST {
            if !std::mem::replace(&mut count.told, true) {
                tracing::warn!(%address, most = MOST, "an address has as many connections as it may: more are closed");
            }
            return None;
        }
        count.connections += 1;
        Some(Self { counts: Arc::clone(counts), address })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut all = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = all.get_mut(&self.address) {
            count.connections -= 1;
            if count.connections == 0 {
                all.remove(&self.address);
            }
        }
    }
}

/// A stream whose other side has to take what is written, sooner or later.
struct Hasty {
    stream: TcpStream,
    stalled: Option<Pin<Box<Sleep>>>,
}

impl Hasty {
    const fn new(stream: TcpStream) -> Self {
        Self { stream, stalled: None }
    }

    /// The outcome of a write; an error once writes have been pending for too long.
    fn judge<T>(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        ready!(self.stalled.get_or_insert_with(|| Box::pin(sleep(PATIENCE))).as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncRead for Hasty {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Hasty {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.judge(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, bytes);
        self.judge(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::time::Instant;

    use super::*;

    #[test]
    fn an_address_has_so_many_places_and_no_more() {
        let counts = Arc::new(Counts::default());
        let (one, same, other): (IpAddr, IpAddr, IpAddr) =
            ("10.0.0.1".parse().unwrap(), "::ffff:10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap());
        let mut places: Vec<Place> =
            (0..MOST).map(|n| Place::take(&counts, if n % 2 == 0 { one } else { same }).unwrap()).collect();
        assert!(Place::take(&counts, one).is_none());
        assert!(Place::take(&counts, other).is_some());
        places.pop();
        assert!(Place::take(&counts, one).is_some());
        drop(places);
        assert!(counts.lock().unwrap().is_empty());
    }

    #[tokio::test]
    async fn one_that_takes_no_answer_is_let_go() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let tracker = Tracker::new();
        let router = Router::new().route("/", get(|| async { vec![0_u8; 64 << 20] }));
        let serving = tracker.clone();
        tracker.spawn("server", async move { serve(listener, router, &serving).await });
        client.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        let began = Instant::now();
        // A little of it comes, so that the answer is under way.
        client.read_exact(&mut [0; 1024]).await.unwrap();
        sleep(PATIENCE + Duration::from_secs(1)).await;
        let mut rest = Vec::new();
        // What had been sent by then, and then the end.
        let _ = client.read_to_end(&mut rest).await;
        assert!(rest.len() < 64 << 20, "all of it came after {:?}", began.elapsed());
        assert!(tracker.shutdown(PATIENCE).await);
    }
}
