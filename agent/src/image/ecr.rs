//! The logins of Amazon ECR, and of registries that behave as it does: a token that a service gives out for
//! half a day (Amazon ECR API reference, `GetAuthorizationToken`).

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use berth_core::units::{Millis, Timestamp};
use berth_proto::sigv4::{self, Post};
use serde::Deserialize;
use serde_json::json;

use crate::clock;
use crate::config::{EcrAccess, Secret};
use crate::web;

const TARGET: &str = "AmazonEC2ContainerRegistry_V20150921.GetAuthorizationToken";
const CONTENT_TYPE: &str = "application/x-amz-json-1.1";
/// How long before its end a token is not used any more: a pull may last.
const SPARE: Millis = Millis::from_secs(30 * 60);

/// Tokens of registries.
pub(super) struct Ecr {
    access: EcrAccess,
    client: reqwest::Client,
    tokens: Mutex<HashMap<String, Token>>,
}

#[derive(Clone)]
struct Token {
    username: String,
    password: Secret,
    use_until: Timestamp,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    authorization_data: Vec<Authorization>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Authorization {
    authorization_token: String,
    /// In seconds since 1970.
    #[serde(default)]
    expires_at: f64,
}

/// What a service says that refuses.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Refusal {
    #[serde(rename = "__type")]
    kind: String,
    #[serde(alias = "Message")]
    message: String,
}

impl Ecr {
    pub(super) fn new(access: EcrAccess) -> Self {
        Self { access, client: web::client(), tokens: Mutex::default() }
    }

    /// The login of a registry, if it is one of those; or why there is none.
    pub(super) async fn of(&self, registry: &str) -> Option<Result<(String, Secret), String>> {
        let place = self.place(registry)?;
        let tokens = || self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        let known = tokens().get(registry).filter(|token| token.use_until > clock::now()).cloned();
        let token = match known {
            Some(token) => Ok(token),
            None => self.ask(&place).await,
        };
        Some(token.map(|token| {
            tokens().insert(registry.to_owned(), token.clone());
            (token.username, token.password)
        }))
    }

    /// The registry did not take it: the next one is asked for anew.
    pub(super) fn refused(&self, registry: &str) {
        self.tokens.lock().unwrap_or_else(PoisonError::into_inner).remove(registry);
    }

    /// The region of a registry that wants such a token, and the account it belongs to.
    fn place(&self, registry: &str) -> Option<Place> {
        let own = || Place { account: None, region: self.access.region.clone() };
        parse(registry).or_else(|| self.access.registries.iter().any(|name| name == registry).then(own))
    }

    async fn ask(&self, place: &Place) -> Result<Token, String> {
        let url = match &self.access.endpoint {
            Some(url) => url.clone(),
            None => reqwest::Url::parse(&format!("https://api.ecr.{}.amazonaws.com/", place.region))
                .map_err(|error| error.to_string())?,
        };
        let body = match &place.account {
            Some(account) => json!({ "registryIds": [account] }),
            None => json!({}),
        }
        .to_string();
        let host = sigv4::host(url.host_str(), url.port());
        let post = Post {
            host: &host,
            path: url.path(),
            service: "ecr",
            region: &place.region,
            headers: &[("content-type", CONTENT_TYPE), ("x-amz-target", TARGET)],
            body: &body,
        };
        let mut request = self.client.post(url.clone());
        for (name, value) in sigv4::sign(&post, &self.access.key, &date()) {
            request = request.header(name, value);
        }
        let failed = |error: reqwest::Error| format!("{host}: {}", web::explain(&error.without_url()));
        let response = request.body(body).send().await.map_err(failed)?;
        let status = response.status();
        let answer = response.bytes().await.map_err(failed)?;
        if !status.is_success() {
            let refusal: Refusal = serde_json::from_slice(&answer).unwrap_or_default();
            return Err(format!("{host} answers {status}: {} {}", refusal.kind, refusal.message));
        }
        // What it answers is the login: it goes into no message.
        read(&answer).ok_or_else(|| format!("{host} gives out no token that can be read"))
    }
}

fn date() -> String {
    jiff::Timestamp::now().strftime(sigv4::DATE).to_string()
}

fn read(answer: &[u8]) -> Option<Token> {
    let answer: Answer = serde_json::from_slice(answer).ok()?;
    let given = answer.authorization_data.into_iter().next()?;
    let text = String::from_utf8(BASE64_STANDARD.decode(given.authorization_token).ok()?).ok()?;
    let (username, password) = text.split_once(':')?;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a time, and none before 1970"
    )]
    let ends = Timestamp((given.expires_at.max(0.0) * 1000.0) as u64);
    Some(Token {
        username: username.to_owned(),
        password: Secret::new(password.to_owned()),
        use_until: Timestamp(ends.0.saturating_sub(SPARE.0)),
    })
}

#[derive(Debug, PartialEq, Eq)]
struct Place {
    account: Option<String>,
    region: String,
}

/// `<account>.dkr.ecr.<region>.amazonaws.com`, as ECR's registries are named.
fn parse(registry: &str) -> Option<Place> {
    let parts: Vec<&str> = registry.split('.').collect();
    let [account, "dkr", "ecr" | "ecr-fips", region, "amazonaws", "com", rest @ ..] = parts.as_slice() else {
        return None;
    };
    let fits = account.len() == 12
        && account.bytes().all(|b| b.is_ascii_digit())
        && !region.is_empty()
        && matches!(rest, [] | ["cn"]);
    fits.then(|| Place { account: Some((*account).to_owned()), region: (*region).to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registry_of_ecr_is_known_by_its_name() {
        let place = |account: &str, region: &str| {
            Some(Place { account: Some(account.to_owned()), region: region.to_owned() })
        };
        let known = |name: &str| parse(name);
        assert_eq!(known("123456789012.dkr.ecr.eu-west-1.amazonaws.com"), place("123456789012", "eu-west-1"));
        assert_eq!(
            known("123456789012.dkr.ecr.cn-north-1.amazonaws.com.cn"),
            place("123456789012", "cn-north-1")
        );
        for other in
            ["public.ecr.aws", "12.dkr.ecr.eu-west-1.amazonaws.com", "dkr.ecr.amazonaws.com", "r:5000"]
        {
            assert_eq!(known(other), None, "{other}");
        }
    }

    #[test]
    fn a_token_is_used_until_half_an_hour_before_its_end() {
        let answer = json!({ "authorizationData": [{
            "authorizationToken": BASE64_STANDARD.encode("AWS:a:b"), "expiresAt": 7200.5,
        }] });
        let token = read(answer.to_string().as_bytes()).unwrap();
        assert_eq!((token.username.as_str(), token.password.expose()), ("AWS", "a:b"));
        assert_eq!(token.use_until, Timestamp(7_200_500 - SPARE.0));
        assert!(read(b"{}").is_none());
    }
}
