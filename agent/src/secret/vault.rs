//! Values of a key-value engine, version 2, of `HashiCorp` Vault or what speaks like it (`OpenBao`):
//! `GET /v1/MOUNT/data/NAME`.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use reqwest::StatusCode;
use serde::Deserialize;
use serde_json::Value;

use super::{Provider, Reference, SecretError};
use crate::config::{Secret, VaultSource, VaultToken};
use crate::web;

/// A mount of a key-value engine.
pub(super) struct Vault {
    source: VaultSource,
    client: OnceLock<reqwest::Client>,
}

#[derive(Deserialize)]
struct Answer {
    data: Data,
}

#[derive(Deserialize)]
struct Data {
    data: Option<BTreeMap<String, Value>>,
}

#[derive(Deserialize)]
struct Complaint {
    #[serde(default)]
    errors: Vec<String>,
}

impl Vault {
    pub(super) fn new(source: VaultSource) -> Self {
        Self { source, client: OnceLock::new() }
    }

    async fn get(&self, reference: &Reference) -> Result<Secret, SecretError> {
        let token = self.token(reference).await?;
        for name in reference.names() {
            if let Some(data) = self.data(reference, name, &token).await? {
                return Ok(whole(data));
            }
        }
        Err(SecretError::Refused(format!(
            "{}: there is no such secret in {}",
            reference.text, self.source.url
        )))
    }

    /// Read anew each time: whoever renews the token writes it there.
    async fn token(&self, reference: &Reference) -> Result<Secret, SecretError> {
        match &self.source.token {
            VaultToken::Given(token) => Ok(token.clone()),
            VaultToken::File(path) => match tokio::fs::read_to_string(path).await {
                Ok(text) => Ok(Secret::new(text.trim().to_owned())),
                Err(error) => {
                    Err(SecretError::Away(format!("{}: {}: {error}", reference.text, path.display())))
                }
            },
        }
    }

    /// What is kept under the name; `None` when there is nothing.
    async fn data(
        &self,
        reference: &Reference,
        name: &str,
        token: &Secret,
    ) -> Result<Option<BTreeMap<String, Value>>, SecretError> {
        let away = |error: reqwest::Error| {
            SecretError::Away(format!("{}: {}", reference.text, web::explain(&error)))
        };
        let mut url = self.source.url.clone();
        // The mount is the URL's path: https://vault:8200/secret.
        let mount = url.path().trim_matches('/').to_owned();
        url.set_path(&format!("/v1/{mount}/data/{name}"));
        if let Some(version) = &reference.version {
            url.query_pairs_mut().append_pair("version", version);
        }
        let mut request =
            self.client.get_or_init(web::client).get(url).header("X-Vault-Token", token.expose());
        if let Some(namespace) = &self.source.namespace {
            request = request.header("X-Vault-Namespace", namespace);
        }
        let response = request.send().await.map_err(away)?;
        match response.status() {
            StatusCode::OK => {
                // What does not parse may hold the value: it goes into no message.
                let answer: Answer = response.json().await.map_err(|_| {
                    SecretError::Refused(format!(
                        "{}: the answer is not that of a key-value engine, version 2",
                        reference.text
                    ))
                })?;
                Ok(answer.data.data)
            }
            StatusCode::NOT_FOUND => Ok(None),
            status => {
                let complaint: Option<Complaint> = response.json().await.ok();
                let said = complaint.map(|c| c.errors.join("; ")).unwrap_or_default();
                let text = format!("{}: the vault answers {status} {said}", reference.text);
                Err(if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS {
                    SecretError::Away(text)
                } else {
                    SecretError::Refused(text)
                })
            }
        }
    }
}

/// A secret with one member `value` is that text; every other is the JSON object.
fn whole(data: BTreeMap<String, Value>) -> Secret {
    if let (1, Some(Value::String(text))) = (data.len(), data.get("value")) {
        return Secret::new(text.clone());
    }
    Secret::new(Value::Object(data.into_iter().collect()).to_string())
}

impl Provider for Vault {
    fn fetch<'a>(&'a self, reference: &'a Reference) -> BoxFuture<'a, Result<Secret, SecretError>> {
        self.get(reference).boxed()
    }
}
