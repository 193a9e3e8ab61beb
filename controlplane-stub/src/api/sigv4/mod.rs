//! Checks AWS signatures, version 4, of requests whose access keys are known here.

use std::collections::BTreeMap;

use axum::http::HeaderMap;
use axum::http::header::AUTHORIZATION;
use berth_core::units::{Millis, Timestamp};
use ring::hmac;

use super::error::{ApiError, ApiResult};
use crate::hex;
use berth_proto::sigv4::{sha256, signing_key};

/// How far a client's clock may be off.
const SKEW: Millis = Millis::from_secs(5 * 60);

const ALGORITHM: &str = "AWS4-HMAC-SHA256";
const SERVICE: &str = "ecs";

/// What a request's `Authorization` says, before anything of it is believed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Authorization<'a> {
    /// The access key.
    pub(super) access_key: &'a str,
    /// Day of the scope, `YYYYMMDD`.
    pub(super) date: &'a str,
    /// Region of the scope.
    pub(super) region: &'a str,
    /// Service of the scope.
    pub(super) service: &'a str,
    signed_headers: &'a str,
    signature: &'a str,
}

impl<'a> Authorization<'a> {
    /// Reads the header's value; `None` when it is not in SigV4's form.
    pub(super) fn parse(value: &'a str) -> Option<Self> {
        let rest = value.strip_prefix(ALGORITHM)?;
        let (mut credential, mut signed_headers, mut signature) = (None, None, None);
        for part in rest.split(',') {
            match part.trim().split_once('=')? {
                ("Credential", value) => credential = Some(value),
                ("SignedHeaders", value) => signed_headers = Some(value),
                ("Signature", value) => signature = Some(value),
                _ => return None,
            }
        }
        // The access key comes first and may hold slashes itself, so the scope is read from the end.
        let mut scope = credential?.rsplitn(5, '/');
        let terminator = scope.next()?;
        let (service, region, date, access_key) =
            (scope.next()?, scope.next()?, scope.next()?, scope.next()?);
        (terminator == "aws4_request").then_some(Self {
            access_key,
            date,
            region,
            service,
            signed_headers: signed_headers?,
            signature: signature?,
        })
    }

    /// Reads it from a request's headers.
    pub(super) fn of(headers: &'a HeaderMap) -> Option<Self> {
        Self::parse(headers.get(AUTHORIZATION)?.to_str().ok()?)
    }
}

/// Checks that one of `keys` (secret by access key) signed the request, and that it did so now.
///
/// # Errors
/// ECS's authentication errors.
pub(super) fn verify(
    keys: &BTreeMap<String, String>,
    headers: &HeaderMap,
    body: &[u8],
    now: Timestamp,
) -> ApiResult<()> {
    if headers.get(AUTHORIZATION).is_none() {
        return Err(ApiError::missing_authentication_token("Missing Authentication Token"));
    }
    let claim = Authorization::of(headers).ok_or_else(|| {
        ApiError::incomplete_signature(
            "Authorization header requires 'AWS4-HMAC-SHA256' with 'Credential', 'SignedHeaders' and 'Signature' parameters.",
        )
    })?;
    let signed: Vec<&str> = claim.signed_headers.split(';').collect();
    for needed in ["host", "x-amz-date"] {
        if !signed.contains(&needed) {
            return Err(ApiError::incomplete_signature(format!(
                "'{needed}' must be a 'SignedHeader' in the AWS Authorization."
            )));
        }
    }
    let date = headers.get("x-amz-date").and_then(|value| value.to_str().ok()).unwrap_or_default();
    let Some(signed_at) = parse_date(date) else {
        return Err(ApiError::incomplete_signature(format!(
            "Date must be in ISO-8601 'basic format'. Got '{date}'. See http://en.wikipedia.org/wiki/ISO_8601"
        )));
    };
    let Some(secret) = keys.get(claim.access_key) else {
        return Err(ApiError::unrecognized_client("The security token included in the request is invalid."));
    };
    if claim.service != SERVICE {
        return Err(ApiError::invalid_signature(format!(
            "Credential should be scoped to correct service: '{SERVICE}'."
        )));
    }
    if !date.starts_with(claim.date) {
        return Err(ApiError::invalid_signature(format!(
            "Date in Credential scope does not match YYYYMMDD from ISO-8601 version of date from HTTP: '{}' != '{date}', from '{date}'.",
            claim.date
        )));
    }
    check_skew(date, signed_at, now)?;
    let canonical = canonical_request(headers, &signed, claim.signed_headers, body);
    let scope = format!("{}/{}/{}/aws4_request", claim.date, claim.region, claim.service);
    let to_sign = format!("{ALGORITHM}\n{date}\n{scope}\n{}", sha256(canonical.as_bytes()));
    let signature = hex::decode(claim.signature).unwrap_or_default();
    let key = signing_key(secret, claim.date, claim.region, claim.service);
    // Compares in constant time.
    hmac::verify(&key, to_sign.as_bytes(), &signature).map_err(|_| {
        ApiError::invalid_signature(
            "The request signature we calculated does not match the signature you provided. Check your AWS Secret \
             Access Key and signing method. Consult the service documentation for details.",
        )
    })
}

fn check_skew(date: &str, signed_at: Timestamp, now: Timestamp) -> ApiResult<()> {
    let shown = |at: Timestamp| format_date(at).unwrap_or_default();
    if now.since(signed_at) > SKEW {
        return Err(ApiError::invalid_signature(format!(
            "Signature expired: {date} is now earlier than {} ({} - 5 min.)",
            shown(Timestamp(now.0.saturating_sub(SKEW.0))),
            shown(now)
        )));
    }
    if signed_at.since(now) > SKEW {
        return Err(ApiError::invalid_signature(format!(
            "Signature not yet current: {date} is still later than {} ({} + 5 min.)",
            shown(now.after(SKEW)),
            shown(now)
        )));
    }
    Ok(())
}

/// The canonical form of `POST /` without a query, the only request there is.
fn canonical_request(headers: &HeaderMap, signed: &[&str], list: &str, body: &[u8]) -> String {
    let mut canonical = String::from("POST\n/\n\n");
    for name in signed {
        let values: Vec<String> = headers
            .get_all(*name)
            .iter()
            .map(|value| {
                String::from_utf8_lossy(value.as_bytes()).split_whitespace().collect::<Vec<_>>().join(" ")
            })
            .collect();
        canonical.push_str(name);
        canonical.push(':');
        canonical.push_str(&values.join(","));
        canonical.push('\n');
    }
    canonical.push('\n');
    canonical.push_str(list);
    canonical.push('\n');
    canonical.push_str(&sha256(body));
    canonical
}

fn parse_date(text: &str) -> Option<Timestamp> {
    let at = jiff::civil::DateTime::strptime("%Y%m%dT%H%M%SZ", text).ok()?;
    let at = at.to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp().as_millisecond();
    u64::try_from(at).ok().map(Timestamp)
}

fn format_date(at: Timestamp) -> Option<String> {
    let at = jiff::Timestamp::from_millisecond(i64::try_from(at.0).ok()?).ok()?;
    Some(at.strftime("%Y%m%dT%H%M%SZ").to_string())
}

#[cfg(test)]
mod tests {
    use axum::http::{HeaderName, HeaderValue};
    use serde::Deserialize;

    use super::*;

    /// Requests signed by botocore.
    #[derive(Deserialize)]
    struct Vector {
        name: String,
        access_key: String,
        secret: String,
        when: String,
        region: String,
        headers: BTreeMap<String, String>,
        body: String,
    }

    impl Vector {
        fn headers(&self) -> HeaderMap {
            self.headers
                .iter()
                .map(|(name, value)| {
                    (name.parse::<HeaderName>().unwrap(), HeaderValue::from_bytes(value.as_bytes()).unwrap())
                })
                .collect()
        }

        fn keys(&self) -> BTreeMap<String, String> {
            BTreeMap::from([(self.access_key.clone(), self.secret.clone())])
        }

        fn now(&self) -> Timestamp {
            parse_date(&self.when).unwrap()
        }
    }

    fn vectors() -> Vec<Vector> {
        serde_json::from_str(include_str!("botocore.json")).unwrap()
    }

    #[test]
    fn what_botocore_signs_is_accepted() {
        for vector in vectors() {
            verify(&vector.keys(), &vector.headers(), vector.body.as_bytes(), vector.now())
                .unwrap_or_else(|error| panic!("{}: {error}", vector.name));
            let headers = vector.headers();
            assert_eq!(Authorization::of(&headers).unwrap().region, vector.region);
        }
    }

    #[test]
    fn any_change_after_signing_is_refused() {
        for vector in vectors() {
            let refused = |keys: &BTreeMap<String, String>, headers: &HeaderMap, body: &[u8]| {
                verify(keys, headers, body, vector.now()).unwrap_err().code
            };
            let body = format!("{} ", vector.body);
            assert_eq!(
                refused(&vector.keys(), &vector.headers(), body.as_bytes()),
                "InvalidSignatureException"
            );
            let mut headers = vector.headers();
            headers.insert("host", HeaderValue::from_static("elsewhere"));
            assert_eq!(
                refused(&vector.keys(), &headers, vector.body.as_bytes()),
                "InvalidSignatureException"
            );
            let keys = BTreeMap::from([(vector.access_key.clone(), "another".to_owned())]);
            assert_eq!(
                refused(&keys, &vector.headers(), vector.body.as_bytes()),
                "InvalidSignatureException"
            );
            let keys = BTreeMap::from([("AKIDOTHER".to_owned(), vector.secret.clone())]);
            assert_eq!(
                refused(&keys, &vector.headers(), vector.body.as_bytes()),
                "UnrecognizedClientException"
            );
        }
    }

    #[test]
    fn clocks_may_be_five_minutes_apart_and_no_more() {
        let vector = &vectors()[0];
        let check =
            |now: u64| verify(&vector.keys(), &vector.headers(), vector.body.as_bytes(), Timestamp(now));
        let at = vector.now().0;
        assert!(check(at + 300_000).is_ok());
        assert!(check(at - 300_000).is_ok());
        assert_eq!(
            check(at + 301_000).unwrap_err().message,
            "Signature expired: 20260102T030405Z is now earlier than 20260102T030406Z (20260102T030906Z - 5 min.)"
        );
        assert!(check(at - 301_000).unwrap_err().message.starts_with("Signature not yet current: "));
    }

    #[test]
    fn requests_without_a_whole_signature_are_refused() {
        let vector = &vectors()[0];
        let mut headers = vector.headers();
        headers.remove(AUTHORIZATION);
        let code =
            |headers: &HeaderMap| verify(&vector.keys(), headers, b"{}", vector.now()).unwrap_err().code;
        assert_eq!(code(&headers), "MissingAuthenticationTokenException");
        for value in [
            "Basic x",
            "AWS4-HMAC-SHA256 Credential=a/b, SignedHeaders=host;x-amz-date, Signature=00",
            "AWS4-HMAC-SHA256 Credential=A/20260102/r/ecs/aws4_request, SignedHeaders=host, Signature=00",
            "AWS4-HMAC-SHA256 Credential=A/20260102/r/ecs/aws4_request, SignedHeaders=x-amz-date, Signature=00",
        ] {
            headers.insert(AUTHORIZATION, HeaderValue::from_static(value));
            assert_eq!(code(&headers), "IncompleteSignatureException", "{value}");
        }
    }
}
