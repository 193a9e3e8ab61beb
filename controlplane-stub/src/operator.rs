//! What the command `berth` does: asks a control plane for a session in a container, and talks in it.

pub mod arguments;

use berth_proto::sigv4::{self, Key, Post, sign};
use berth_proto::talk::{self, TalkError};
use reqwest::header::{AUTHORIZATION, CONNECTION, UPGRADE};
use reqwest::{Client, StatusCode, Url};
use serde::Deserialize;
use serde_json::Value;

use crate::clock;
use crate::remote::PROTOCOL;

const TARGET: &str = "AmazonEC2ContainerServiceV20141113.";

/// What went wrong, for people.
#[derive(Debug, thiserror::Error)]
pub enum OperatorError {
    /// The control plane does not answer.
    #[error("{url}: {error}; is the control plane there, and --endpoint right?")]
    Away {
        /// Where it was looked for.
        url: String,
        /// What came of it.
        error: reqwest::Error,
    },
    /// It refuses.
    #[error("{0}")]
    Refused(String),
    /// The conversation broke off.
    #[error(transparent)]
    Talk(#[from] TalkError),
}

/// A control plane, and who asks it.
pub struct Operator {
    url: Url,
    region: String,
    key: Key,
    client: Client,
}

/// A session, as the control plane gives it out.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Session {
    stream_url: String,
    token_value: String,
}

impl Operator {
    /// Asks the control plane at that address.
    #[must_use]
    pub fn new(url: Url, region: String, key: Key) -> Self {
        // Whoever comes first installs it; it is the same for all.
        let _ = rustls::crypto::ring::default_provider().install_default();
        Self { url, region, key, client: Client::new() }
    }

    /// Runs a program in a container, with this program's input and output for its own; its exit code.
    ///
    /// # Errors
    /// [`OperatorError`].
    pub async fn exec(
        &self,
        mut asked: Value,
        command: &[String],
        input: bool,
    ) -> Result<i32, OperatorError> {
        let nul = |_| OperatorError::Refused("the command has a NUL in it".to_owned());
        let command = shlex::try_join(command.iter().map(String::as_str)).map_err(nul)?;
        asked["command"] = command.into();
        asked["interactive"] = true.into();
        let session = self.ask("ExecuteCommand", &asked).await?;
        let tty = input && talk::has_terminal();
        self.sit(session, tty, input).await
    }

    /// Copies what a container says.
    ///
    /// # Errors
    /// [`OperatorError`].
    pub async fn logs(&self, asked: &Value) -> Result<i32, OperatorError> {
        let session = self.ask("StreamLogs", asked).await?;
        self.sit(session, false, false).await
    }

    async fn ask(&self, operation: &str, asked: &Value) -> Result<Session, OperatorError> {
        let (body, target) = (asked.to_string(), format!("{TARGET}{operation}"));
        let host = sigv4::host(self.url.host_str(), self.url.port());
        let post = Post {
            host: &host,
            path: self.url.path(),
            service: "ecs",
            region: &self.region,
            headers: &[("content-type", "application/x-amz-json-1.1"), ("x-amz-target", &target)],
            body: &body,
        };
        let mut request = self.client.post(self.url.clone());
        for (name, value) in sign(&post, &self.key, &clock::signing_date()) {
            request = request.header(name, value);
        }
        let response = request.body(body).send().await.map_err(|error| self.away(error))?;
        let status = response.status();
        let answer: Value = response.json().await.map_err(|error| self.away(error))?;
        if !status.is_success() {
            let text = |member: &str| answer[member].as_str().unwrap_or_default().to_owned();
            return Err(OperatorError::Refused(format!("{}: {}", text("__type"), text("message"))));
        }
        let strange = |_| OperatorError::Refused("the control plane gives out no session".to_owned());
        serde_json::from_value(answer["session"].clone()).map_err(strange)
    }

    async fn sit(&self, session: Session, tty: bool, input: bool) -> Result<i32, OperatorError> {
        // It names itself as it was asked; only the path is news.
        let path = Url::parse(&session.stream_url).map(|url| url.path().to_owned());
        let mut url = self.url.clone();
        url.set_path(path.as_deref().unwrap_or_default());
        url.set_query(tty.then_some("tty"));
        let request = self
            .client
            .get(url)
            .header(CONNECTION, "upgrade")
            .header(UPGRADE, PROTOCOL)
            .header(AUTHORIZATION, format!("Bearer {}", session.token_value));
        let response = request.send().await.map_err(|error| self.away(error))?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            return Err(OperatorError::Refused(response.text().await.unwrap_or_default()));
        }
        let wire = response.upgrade().await.map_err(|error| self.away(error))?;
        Ok(talk::sit(wire, tty, input).await?)
    }

    fn away(&self, error: reqwest::Error) -> OperatorError {
        OperatorError::Away { url: self.url.to_string(), error: error.without_url() }
    }
}
