//! Who a host is, as its certificate says: an id in a URI among the subject's alternative names.

use std::fmt;

use ring::digest::{SHA256, digest};
use tokio_rustls::rustls::pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

const SCHEME: &str = "berth://host/";

/// The id that a host was given when it enrolled. It stays over renewals, and for a host that enrols anew with the
/// same key of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostId(String);

impl fmt::Display for HostId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl HostId {
    pub(super) fn generate() -> Self {
        Self(uuid::Uuid::new_v4().hyphenated().to_string())
    }

    /// The id of the host that has this key. The key is that host's and the control plane's secret, and does not
    /// follow from the id.
    #[must_use]
    pub fn of_key(host_key: &str) -> Self {
        let digest = digest(&SHA256, format!("{SCHEME}{host_key}").as_bytes());
        Self(crate::hex::encode(&digest.as_ref()[..16]))
    }

    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The URI that stands in the certificate.
    pub(super) fn uri(&self) -> String {
        format!("{SCHEME}{}", self.0)
    }

    /// Reads the id out of a certificate that was verified.
    #[must_use]
    pub fn of_certificate(der: &CertificateDer<'_>) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        let names = certificate.subject_alternative_name().ok()??;
        names.value.general_names.iter().find_map(|name| match name {
            GeneralName::URI(uri) => {
                uri.strip_prefix(SCHEME).filter(|id| !id.is_empty()).map(|id| Self(id.to_owned()))
            }
            _ => None,
        })
    }
}
