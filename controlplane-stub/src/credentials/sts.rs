//! Credentials from AWS's Security Token Service, or what speaks like it: `AssumeRole`, signed with the
//! control plane's own key (AWS STS API reference; Signature Version 4).

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use ring::{digest, hmac};

use super::{Credentials, CredentialsError, LIFETIME, Printed, Provider};
use crate::clock;
use crate::hex;

const CONTENT_TYPE: &str = "application/x-www-form-urlencoded; charset=utf-8";
/// Longest name of a session.
const MAX_SESSION: usize = 64;

/// The service, and who asks it.
pub(super) struct Sts {
    url: reqwest::Url,
    region: String,
    key: Key,
    client: reqwest::Client,
}

/// The control plane's own key, from the variables that every AWS program knows.
struct Key {
    id: String,
    secret: String,
    token: Option<String>,
}

impl Sts {
    pub(super) fn new(url: reqwest::Url, region: &str) -> Result<Self, CredentialsError> {
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let needed = |name: &str| {
            variable(name).ok_or_else(|| CredentialsError(format!("{name} is not set, and sts needs a key")))
        };
        let key = Key {
            id: needed("AWS_ACCESS_KEY_ID")?,
            secret: needed("AWS_SECRET_ACCESS_KEY")?,
            token: variable("AWS_SESSION_TOKEN"),
        };
        Ok(Self { url, region: region.to_owned(), key, client: client() })
    }

    async fn ask(&self, role: &str, session: &str) -> Result<Credentials, CredentialsError> {
        let session: String = session.chars().take(MAX_SESSION).collect();
        let seconds = LIFETIME.as_secs().to_string();
        let form = [
            ("Action", "AssumeRole"),
            ("Version", "2011-06-15"),
            ("RoleArn", role),
            ("RoleSessionName", &session),
            ("DurationSeconds", &seconds),
        ];
        let body = form.map(|(name, value)| format!("{name}={}", escape(value))).join("&");
        let date = jiff::Timestamp::now().strftime("%Y%m%dT%H%M%SZ").to_string();
        let mut request = self.client.post(self.url.clone()).header("content-type", CONTENT_TYPE);
        for (name, value) in self.signed(&body, &date) {
            request = request.header(name, value);
        }
        let unreachable = |error: reqwest::Error| CredentialsError(format!("{}: {error}", self.url));
        let response = request.body(body).send().await.map_err(unreachable)?;
        let status = response.status();
        let text = response.text().await.map_err(unreachable)?;
        if !status.is_success() {
            let why = element(&text, "Message").unwrap_or("it gives no reason");
            return Err(CredentialsError(format!("{} answers {status}: {why}", self.url)));
        }
        let read = || {
            Some(Printed {
                access_key_id: element(&text, "AccessKeyId")?.to_owned(),
                secret_access_key: element(&text, "SecretAccessKey")?.to_owned(),
                session_token: element(&text, "SessionToken")?.to_owned(),
                expiration: element(&text, "Expiration")?.parse().ok(),
            })
        };
        let printed =
            read().ok_or_else(|| CredentialsError(format!("{} answered something else", self.url)))?;
        Ok(printed.credentials(clock::now()))
    }

    /// The headers that a request with that body carries.
    fn signed(&self, body: &str, date: &str) -> Vec<(&'static str, String)> {
        let host = match self.url.port() {
            Some(port) => format!("{}:{port}", self.url.host_str().unwrap_or_default()),
            None => self.url.host_str().unwrap_or_default().to_owned(),
        };
        let mut headers =
            vec![("content-type", CONTENT_TYPE.to_owned()), ("host", host), ("x-amz-date", date.to_owned())];
        headers.extend(self.key.token.clone().map(|token| ("x-amz-security-token", token)));
        let names = headers.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(";");
        let lines: String = headers.iter().map(|(name, value)| format!("{name}:{value}\n")).collect();
        let path = if self.url.path().is_empty() { "/" } else { self.url.path() };
        let canonical = format!("POST\n{path}\n\n{lines}\n{names}\n{}", sha256(body));
        let day = date.get(..8).unwrap_or_default();
        let scope = format!("{day}/{}/sts/aws4_request", self.region);
        let to_sign = format!("AWS4-HMAC-SHA256\n{date}\n{scope}\n{}", sha256(&canonical));
        let first = format!("AWS4{}", self.key.secret).into_bytes();
        let key = [day, &self.region, "sts", "aws4_request"].iter().fold(first, |key, step| mac(&key, step));
        let signature = hex::encode(&mac(&key, &to_sign));
        let authorization = format!(
            "AWS4-HMAC-SHA256 Credential={}/{scope}, SignedHeaders={names}, Signature={signature}",
            self.key.id
        );
        headers.retain(|(name, _)| !matches!(*name, "content-type" | "host"));
        headers.push(("authorization", authorization));
        headers
    }
}

impl Provider for Sts {
    fn assume<'a>(
        &'a self,
        role: &'a str,
        session: &'a str,
    ) -> BoxFuture<'a, Result<Credentials, CredentialsError>> {
        self.ask(role, session).boxed()
    }
}

fn client() -> reqwest::Client {
    // Whoever comes first installs it; it is the same for all.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::new()
}

fn mac(key: &[u8], text: &str) -> Vec<u8> {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), text.as_bytes()).as_ref().to_vec()
}

fn sha256(text: &str) -> String {
    hex::encode(digest::digest(&digest::SHA256, text.as_bytes()).as_ref())
}

/// All but the unreserved characters of RFC 3986, as a form and a signature want it.
fn escape(text: &str) -> String {
    let escaped = |byte: u8| match byte {
        b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => char::from(byte).to_string(),
        other => format!("%{other:02X}"),
    };
    text.bytes().map(escaped).collect()
}

/// The text of the first element of that name; the service writes no attributes and escapes nothing here.
fn element<'a>(xml: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = xml.split_once(&format!("<{name}>"))?;
    Some(rest.split_once(&format!("</{name}>"))?.0.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_signed_as_botocore_signs_it() {
        let sts = Sts {
            url: reqwest::Url::parse("https://sts.us-east-1.amazonaws.com/").unwrap(),
            region: "us-east-1".to_owned(),
            key: Key {
                id: "AKIDEXAMPLE".to_owned(),
                secret: "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY".to_owned(),
                token: None,
            },
            client: client(),
        };
        let headers = sts.signed("Action=GetCallerIdentity&Version=2011-06-15", "20150830T123600Z");
        let authorization = &headers.iter().find(|(name, _)| *name == "authorization").unwrap().1;
        assert!(authorization.starts_with(
            "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/sts/aws4_request, \
             SignedHeaders=content-type;host;x-amz-date, Signature="
        ));
        assert!(authorization.ends_with(SIGNATURE), "{authorization}");
    }

    /// Made by botocore's `SigV4Auth` for the same key, date and request.
    const SIGNATURE: &str = "52a8540fea00e731072179f763577cbe2a45eac2c5d32fb4d785f3eefac88165";

    #[test]
    fn an_answer_is_read_by_its_elements() {
        let xml = "<R><Credentials>\n<AccessKeyId>A</AccessKeyId></Credentials></R>";
        assert_eq!(element(xml, "AccessKeyId"), Some("A"));
        assert_eq!(element(xml, "Message"), None);
        assert_eq!(escape("arn:aws:iam::1:role/a b"), "arn%3Aaws%3Aiam%3A%3A1%3Arole%2Fa%20b");
    }
}
