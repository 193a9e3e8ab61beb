//! Credentials from AWS's Security Token Service, or what speaks like it: `AssumeRole`, signed with the
//! control plane's own key (AWS STS API reference; Signature Version 4).

use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use super::{Credentials, CredentialsError, LIFETIME, Printed, Provider};
use crate::clock;
use berth_proto::sigv4::{self, Key, Post};

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

impl Sts {
    pub(super) fn new(url: reqwest::Url, region: &str) -> Result<Self, CredentialsError> {
        let key = Key::from_env()
            .map_err(|name| CredentialsError(format!("{name} is not set, and sts needs a key")))?;
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
        let mut request = self.client.post(self.url.clone());
        for (name, value) in self.signed(&body, &clock::signing_date()) {
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
        let headers = &[("content-type", CONTENT_TYPE)];
        let host = sigv4::host(self.url.host_str(), self.url.port());
        let path = self.url.path();
        let post = Post { host: &host, path, service: "sts", region: &self.region, headers, body };
        sigv4::sign(&post, &self.key, date)
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
