//! Signs requests as AWS wants them signed (Signature Version 4).

use std::fmt;

use ring::{digest, hmac};

/// A key that requests are signed with. `Debug` shows its id alone.
#[derive(Clone, PartialEq, Eq)]
pub struct Key {
    /// The public id.
    pub id: String,
    /// The secret.
    pub secret: String,
    /// What belongs to a key that holds for a while only.
    pub token: Option<String>,
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({})", self.id)
    }
}

impl Key {
    /// The key of the variables that every AWS program knows.
    ///
    /// # Errors
    /// The variable that is not set.
    pub fn from_variables(variable: impl Fn(&str) -> Option<String>) -> Result<Self, &'static str> {
        let variable = |name: &str| variable(name).filter(|value| !value.is_empty());
        Ok(Self {
            id: variable("AWS_ACCESS_KEY_ID").ok_or("AWS_ACCESS_KEY_ID")?,
            secret: variable("AWS_SECRET_ACCESS_KEY").ok_or("AWS_SECRET_ACCESS_KEY")?,
            token: variable("AWS_SESSION_TOKEN"),
        })
    }

    /// The key of this program's environment.
    ///
    /// # Errors
    /// The variable that is not set.
    pub fn from_env() -> Result<Self, &'static str> {
        Self::from_variables(|name| std::env::var(name).ok())
    }
}

/// A POST to be signed.
pub struct Post<'a> {
    /// Who gets it: the name, and the port where it is not the usual one.
    pub host: &'a str,
    /// The path.
    pub path: &'a str,
    /// The service that is asked.
    pub service: &'a str,
    /// The region it is asked in.
    pub region: &'a str,
    /// Headers to be signed, beside those that every signature has; in the order of their names.
    pub headers: &'a [(&'static str, &'a str)],
    /// The body.
    pub body: &'a str,
}

/// All headers that a request carries beside `host`, its signature among them. `date` is such as
/// `20150830T123600Z`.
#[must_use]
pub fn sign(post: &Post<'_>, key: &Key, date: &str) -> Vec<(&'static str, String)> {
    let mut headers: Vec<(&str, String)> =
        post.headers.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
    headers.extend([("host", post.host.to_owned()), ("x-amz-date", date.to_owned())]);
    headers.extend(key.token.clone().map(|token| ("x-amz-security-token", token)));
    headers.sort();
    let names = headers.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(";");
    let lines: String = headers.iter().map(|(name, value)| format!("{name}:{value}\n")).collect();
    let path = if post.path.is_empty() { "/" } else { post.path };
    let canonical = format!("POST\n{path}\n\n{lines}\n{names}\n{}", sha256(post.body.as_bytes()));
    let day = date.get(..8).unwrap_or_default();
    let scope = format!("{day}/{}/{}/aws4_request", post.region, post.service);
    let to_sign = format!("AWS4-HMAC-SHA256\n{date}\n{scope}\n{}", sha256(canonical.as_bytes()));
    let signed = hmac::sign(&signing_key(&key.secret, day, post.region, post.service), to_sign.as_bytes());
    let authorization = format!(
        "AWS4-HMAC-SHA256 Credential={}/{scope}, SignedHeaders={names}, Signature={}",
        key.id,
        hex(signed.as_ref())
    );
    headers.retain(|(name, _)| *name != "host");
    headers.push(("authorization", authorization));
    headers
}

/// The key that signs for a day, a region and a service.
#[must_use]
pub fn signing_key(secret: &str, day: &str, region: &str, service: &str) -> hmac::Key {
    let first = hmac::Key::new(hmac::HMAC_SHA256, format!("AWS4{secret}").as_bytes());
    [day, region, service, "aws4_request"].iter().fold(first, |key, step| {
        hmac::Key::new(hmac::HMAC_SHA256, hmac::sign(&key, step.as_bytes()).as_ref())
    })
}

/// The digest of some bytes, in lower-case hex.
#[must_use]
pub fn sha256(bytes: &[u8]) -> String {
    hex(digest::digest(&digest::SHA256, bytes).as_ref())
}

/// The value of the header `host`: the port is left out where it is the usual one.
#[must_use]
pub fn host(name: Option<&str>, port: Option<u16>) -> String {
    let name = name.unwrap_or_default();
    port.map_or_else(|| name.to_owned(), |port| format!("{name}:{port}"))
}

/// The form of `date`, for `strftime`.
pub const DATE: &str = "%Y%m%dT%H%M%SZ";

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
