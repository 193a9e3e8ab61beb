//! The link to the engine: made on first use, with the API version that both sides speak, and
//! made anew after the engine was away.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bollard::errors::Error as BollardError;
use bollard::{API_DEFAULT_VERSION, BollardRequest, ClientVersion};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::http::uri::{PathAndQuery, Uri};
use hyper::{HeaderMap, Method, Request, Response, StatusCode};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::sync::{RwLock, watch};
use tokio::time::{sleep, timeout};

use super::transport::{Address, MUTE, Transport, empty};
use crate::runtime::RuntimeError;

/// The oldest API that has all that is needed: the one of Docker 20.10.
const OLDEST: (u32, u32) = (1, 41);
/// The newest API whose shapes are known here.
const NEWEST: (u32, u32) = (1, 53);
/// Largest answer that is read into memory: the listing of some thousand containers.
const MAX_ANSWER: usize = 64 * 1024 * 1024;
/// Longest that the answer to a ping may take, which costs the engine nothing; a busy host may be slow.
const PING: Duration = Duration::from_secs(10);
/// The pause between two pings while nothing else shows that the engine lives.
const PULSE: Duration = Duration::from_secs(5);
/// Bollard's own limit on the wait for an answer, in seconds. Deadlines are the caller's, and a
/// stop may be granted hours; so this is as good as none.
const NO_TIMEOUT_SECS: u64 = 30 * 24 * 3600;

/// The engine's answer when it is an error.
#[derive(Debug)]
pub(super) struct Answer {
    /// The HTTP status.
    pub(super) status: u16,
    /// The engine's text.
    pub(super) message: String,
}

/// Why a call has no result.
#[derive(Debug)]
pub(super) enum CallError {
    /// The engine did not answer.
    Away(String),
    /// The engine answered with an error.
    Answer(Answer),
    /// The answer makes no sense to us.
    Strange(String),
}

impl From<BollardError> for CallError {
    fn from(error: BollardError) -> Self {
        match error {
            BollardError::DockerResponseServerError { status_code, message } => {
                Self::Answer(Answer { status: status_code, message })
            }
            BollardError::DockerStreamError { error } => Self::Answer(Answer { status: 500, message: error }),
            BollardError::IOError { err } => Self::Away(err.to_string()),
            BollardError::RequestTimeoutError => Self::Away("no answer in time".to_owned()),
            error @ (BollardError::HyperResponseError { .. } | BollardError::HyperLegacyError { .. }) => {
                Self::Away(error.to_string())
            }
            other => Self::Strange(other.to_string()),
        }
    }
}

/// A link with a version agreed on.
pub(super) struct Link {
    /// The typed client.
    pub(super) api: bollard::Docker,
    /// The version in use.
    pub(super) version: (u32, u32),
    raw: Transport<Full<Bytes>>,
}

impl Link {
    /// Asks; returns once the headers of a good answer are there. Used for what is read often or
    /// in bulk: the shapes here are our own, so that a value that a newer engine introduces cannot
    /// spoil a whole listing.
    pub(super) async fn request(&self, method: Method, path: &str) -> Result<Response<Incoming>, CallError> {
        send(&self.raw, self.version, method, path).await
    }

    /// Asks and takes the answer as it is.
    pub(super) async fn text(&self, path: &str) -> Result<Bytes, CallError> {
        read(self.request(Method::GET, path).await?.into_body()).await
    }

    /// Asks and reads the answer.
    pub(super) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, CallError> {
        let body = self.text(path).await?;
        serde_json::from_slice(&body).map_err(|error| CallError::Strange(format!("{path}: {error}")))
    }
}

async fn read(body: Incoming) -> Result<Bytes, CallError> {
    let body = Limited::new(body, MAX_ANSWER).collect().await;
    body.map(http_body_util::Collected::to_bytes).map_err(|error| CallError::Away(error.to_string()))
}

async fn send(
    raw: &Transport<Full<Bytes>>,
    version: (u32, u32),
    method: Method,
    path: &str,
) -> Result<Response<Incoming>, CallError> {
    let request = Request::builder()
        .method(method)
        .uri(format!("http://engine{}{path}", prefix(version)))
        .body(empty())
        .map_err(|error| CallError::Strange(format!("{path}: {error}")))?;
    let response = raw.send(request).await.map_err(|error| CallError::Away(error.to_string()))?;
    let status = response.status();
    if status.is_success() || status == StatusCode::NOT_MODIFIED {
        return Ok(response);
    }
    let body = read(response.into_body()).await?;
    Err(CallError::Answer(Answer { status: status.as_u16(), message: message(&body) }))
}

/// The engine's text in the body of an error.
fn message(body: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Message {
        message: String,
    }
    serde_json::from_slice::<Message>(body)
        .map_or_else(|_| String::from_utf8_lossy(body).trim().to_owned(), |parsed| parsed.message)
}

fn prefix(version: (u32, u32)) -> String {
    if version == (0, 0) { String::new() } else { format!("/v{}.{}", version.0, version.1) }
}

/// Keeps the link to one engine.
pub(super) struct Connector {
    address: Address,
    name: String,
    link: RwLock<Option<Arc<Link>>>,
    /// Whether the engine accepts connections and says nothing. No call waits for such a one.
    mute: watch::Sender<bool>,
}

impl Connector {
    pub(super) fn new(address: Address, name: String) -> Self {
        Self { address, name, link: RwLock::new(None), mute: watch::Sender::new(false) }
    }

    /// Where the engine listens.
    pub(super) const fn address(&self) -> &Address {
        &self.address
    }

    /// The link, made now if there is none.
    pub(super) async fn link(&self) -> Result<Arc<Link>, RuntimeError> {
        if *self.mute.borrow() {
            return Err(self.away(MUTE));
        }
        if let Some(link) = &*self.link.read().await {
            return Ok(Arc::clone(link));
        }
        let mut slot = self.link.write().await;
        if let Some(link) = &*slot {
            return Ok(Arc::clone(link));
        }
        let link = Arc::new(self.connect().await?);
        *slot = Some(Arc::clone(&link));
        Ok(link)
    }

    /// The same, for the one who finds out whether an engine that was mute answers again.
    pub(super) async fn awake(&self) -> Result<Arc<Link>, RuntimeError> {
        if *self.mute.borrow() {
            self.ping().await?;
            self.mute.send_replace(false);
        }
        self.link().await
    }

    /// Asks from time to time whether the engine lives, and returns once it does not. If it is mute, all calls
    /// that are under way end.
    pub(super) async fn last_breath(&self) -> CallError {
        loop {
            sleep(PULSE).await;
            if let Err(error) = self.ping().await {
                return CallError::Away(match error {
                    RuntimeError::Unavailable(why) if why.ends_with(MUTE) => {
                        self.mute.send_replace(true);
                        MUTE.to_owned()
                    }
                    other => other.to_string(),
                });
            }
        }
    }

    /// The answer to a ping names the newest version that the engine speaks, and costs a tenth of a version
    /// question, for which the engine runs its helpers.
    async fn ping(&self) -> Result<Response<Incoming>, RuntimeError> {
        let raw = Transport::new(self.address.clone(), None);
        match timeout(PING, send(&raw, (0, 0), Method::GET, "/_ping")).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(CallError::Away(why))) => Err(self.away(&why)),
            Ok(Err(CallError::Answer(answer))) => Err(self.away(&answer.message)),
            Ok(Err(CallError::Strange(why))) => Err(RuntimeError::Refused(why)),
            Err(_) => Err(self.away(MUTE)),
        }
    }

    async fn connect(&self) -> Result<Link, RuntimeError> {
        let response = self.ping().await?;
        let version = agree(&self.name, response.headers())?;
        let raw = Transport::new(self.address.clone(), Some(self.mute.subscribe()));
        let api = typed(self.address.clone(), self.mute.subscribe(), version)
            .map_err(|error| RuntimeError::Refused(error.to_string()))?;
        tracing::debug!(engine = %self.name, api = %format_args!("{}.{}", version.0, version.1), "connected");
        Ok(Link { api, version, raw })
    }

    /// What a failed call means where nothing more particular is known; forgets the link when the
    /// engine was away or came back with other versions.
    pub(super) async fn failed(&self, link: &Arc<Link>, error: CallError) -> RuntimeError {
        match error {
            CallError::Away(why) => {
                self.forget(link).await;
                self.away(&why)
            }
            CallError::Answer(answer) if speaks_other_versions(&answer) => {
                self.forget(link).await;
                self.away(&answer.message)
            }
            CallError::Answer(answer) if lacks_containerd(&answer) => self.away(&clean(&answer.message)),
            CallError::Answer(answer) => RuntimeError::Refused(clean(&answer.message)),
            CallError::Strange(why) => {
                RuntimeError::Refused(format!("the engine's answer is not understood: {why}"))
            }
        }
    }

    /// Forgets a link, so that the next call makes a new one.
    pub(super) async fn forget(&self, link: &Arc<Link>) {
        let mut slot = self.link.write().await;
        if slot.as_ref().is_some_and(|current| Arc::ptr_eq(current, link)) {
            *slot = None;
        }
    }

    pub(super) fn away(&self, why: &str) -> RuntimeError {
        RuntimeError::Unavailable(format!("{}: {why}", self.name))
    }
}

/// Whether the engine was replaced by one that does not speak the agreed version any more.
fn speaks_other_versions(answer: &Answer) -> bool {
    answer.status == 400 && answer.message.contains("client version")
}

/// Whether the engine is there, and its containerd, which runs its containers, is not: its client ends so what it
/// says of that.
fn lacks_containerd(answer: &Answer) -> bool {
    answer.status >= 500 && answer.message.trim_end().ends_with(": unavailable")
}

/// The newest version that both sides speak.
fn agree(name: &str, headers: &HeaderMap) -> Result<(u32, u32), RuntimeError> {
    let text = headers.get("api-version").and_then(|value| value.to_str().ok()).unwrap_or_default();
    let theirs =
        text.split_once('.').and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)));
    let Some(theirs) = theirs else {
        return Err(RuntimeError::Refused(format!(
            "{name} does not name its API version ({text:?}): is it a container engine?"
        )));
    };
    if theirs < OLDEST {
        return Err(RuntimeError::Refused(format!(
            "the container engine at {name} speaks API {text}; {}.{} (Docker 20.10) or newer is needed",
            OLDEST.0, OLDEST.1
        )));
    }
    Ok(theirs.min(NEWEST))
}

/// The typed client over our own transport, which puts right what the client gets wrong: it leaves
/// the version out of the path, and writes credentials in the wrong alphabet of base64.
fn typed(
    address: Address,
    mute: watch::Receiver<bool>,
    version: (u32, u32),
) -> Result<bollard::Docker, BollardError> {
    let transport = Transport::new(address, Some(mute));
    let prefix = prefix(version);
    let version = ClientVersion {
        major_version: usize::try_from(version.0).unwrap_or(API_DEFAULT_VERSION.major_version),
        minor_version: usize::try_from(version.1).unwrap_or(API_DEFAULT_VERSION.minor_version),
    };
    let transport = move |request: BollardRequest| {
        let transport = transport.clone();
        let request = amend(request, &prefix);
        async move {
            let request = request.map_err(|error| BollardError::IOError { err: io::Error::other(error) })?;
            transport.send(request).await.map_err(|err| BollardError::IOError { err })
        }
    };
    bollard::Docker::connect_with_custom_transport(
        transport,
        Some("http://engine"),
        NO_TIMEOUT_SECS,
        &version,
    )
}

fn amend(mut request: BollardRequest, prefix: &str) -> Result<BollardRequest, hyper::http::Error> {
    let path = request.uri().path_and_query().map_or("/", PathAndQuery::as_str);
    let uri = Uri::builder()
        .scheme("http")
        .authority("engine")
        .path_and_query(format!("{prefix}{path}"))
        .build()?;
    *request.uri_mut() = uri;
    for name in ["x-registry-auth", "x-registry-config"] {
        if let Some(value) = request.headers_mut().get_mut(name) {
            let url_safe: Vec<u8> = value
                .as_bytes()
                .iter()
                .map(|byte| match byte {
                    b'+' => b'-',
                    b'/' => b'_',
                    other => *other,
                })
                .collect();
            *value = hyper::http::HeaderValue::from_bytes(&url_safe)?;
            value.set_sensitive(true);
        }
    }
    Ok(request)
}

/// The engine's text on one line, without what says nothing.
pub(super) fn clean(message: &str) -> String {
    let mut text = message.split_whitespace().collect::<Vec<_>>().join(" ");
    for noise in ["Error response from daemon: ", "error from daemon: "] {
        if let Some(rest) = text.strip_prefix(noise) {
            text = rest.to_owned();
        }
    }
    while let Some(rest) = text.strip_suffix(": unknown") {
        text.truncate(rest.trim_end().len());
    }
    if text.is_empty() { "the engine gave no reason".to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(version: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert("api-version", version.parse().unwrap());
        headers
    }

    #[test]
    fn both_sides_speak_the_older_version() {
        assert_eq!(agree("e", &headers("1.41")).unwrap(), (1, 41));
        assert_eq!(agree("e", &headers("1.99")).unwrap(), NEWEST);
        let old = agree("e", &headers("1.40")).unwrap_err().to_string();
        assert!(old.contains("1.40") && old.contains("1.41"), "{old}");
        assert!(agree("e", &HeaderMap::new()).is_err());
    }

    #[test]
    fn requests_carry_the_version_and_credentials_are_url_safe() {
        let request = Request::builder()
            .uri("http://engine/images/create?fromImage=a%2Fb")
            .header("X-Registry-Auth", "a+b/c==")
            .body(bollard::body_full(Bytes::new()))
            .unwrap();
        let request = amend(request, "/v1.41").unwrap();
        assert_eq!(request.uri().path_and_query().unwrap(), "/v1.41/images/create?fromImage=a%2Fb");
        assert_eq!(request.headers()["x-registry-auth"], "a-b_c==");
    }

    #[test]
    fn an_engine_without_its_containerd_is_away_and_one_without_a_plugin_is_not() {
        let answer = |status, message: &str| Answer { status, message: message.to_owned() };
        let dialing = "connection error: desc = \"transport: Error while dialing dial unix /run/containerd/\
                       containerd.sock: connect: connection refused\": unavailable";
        assert!(lacks_containerd(&answer(500, dialing)));
        assert!(lacks_containerd(&answer(500, "connection closed: unavailable\n")));
        let plugin = "error looking up logging plugin x: dial unix /run/docker/plugins/x.sock: connect: \
                      connection refused";
        assert!(!lacks_containerd(&answer(500, plugin)));
        assert!(!lacks_containerd(&answer(404, dialing)));
    }

    #[test]
    fn noise_is_cut_and_the_cause_is_kept() {
        assert_eq!(
            clean(
                "Error response from daemon: failed to create shim task: exec: \"x\": not found\n: unknown"
            ),
            "failed to create shim task: exec: \"x\": not found"
        );
        assert_eq!(clean(" "), "the engine gave no reason");
    }

    /// Takes connections; answers each that asks `answers` for it, and keeps the others open.
    async fn engine(listener: tokio::net::UnixListener, answers: watch::Receiver<bool>) {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let mut kept = Vec::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut asked = [0; 1024];
            let read = stream.read(&mut asked).await.unwrap();
            if *answers.borrow() && asked[..read].windows(6).any(|part| part == b"/_ping") {
                let ok = b"HTTP/1.1 200 OK\r\napi-version: 1.41\r\ncontent-length: 2\r\n\r\nOK";
                stream.write_all(ok).await.unwrap();
            } else {
                kept.push(stream);
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_mute_engine_ends_the_calls_that_are_under_way_and_is_found_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("engine.sock");
        let (answers, asked) = watch::channel(true);
        let listener = tokio::net::UnixListener::bind(&path).unwrap();
        let connector = Connector::new(Address::Unix(path), "engine".to_owned());
        let asks = async {
            let link = connector.link().await.unwrap();
            answers.send_replace(false);
            let (call, last) =
                tokio::join!(link.request(Method::GET, "/containers/x/json"), connector.last_breath());
            for end in [call.err(), Some(last)] {
                assert!(matches!(&end, Some(CallError::Away(why)) if why == MUTE), "{end:?}");
            }
            // Nobody waits for it, but for the one who finds out.
            let Err(RuntimeError::Unavailable(why)) = connector.link().await else { panic!("it is mute") };
            assert_eq!(why, format!("engine: {MUTE}"));
            assert!(connector.awake().await.is_err());
            answers.send_replace(true);
            assert!(connector.awake().await.is_ok() && connector.link().await.is_ok());
        };
        tokio::select! {
            () = engine(listener, asked) => panic!("the engine has ended"),
            () = asks => {}
        }
    }

    #[tokio::test]
    async fn an_absent_socket_is_away_and_not_an_obstacle_to_construction() {
        let address = Address::parse("unix:///nonexistent/engine.sock").unwrap();
        let connector = Connector::new(address, "unix:///nonexistent/engine.sock".to_owned());
        let Err(RuntimeError::Unavailable(why)) = connector.link().await else {
            panic!("it cannot be there")
        };
        assert!(why.contains("/nonexistent/engine.sock") && why.contains("No such file"), "{why}");
    }
}
