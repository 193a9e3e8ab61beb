//! Identity: the control plane's own certificate authority, its server certificate, join tokens,
//! and certificates for hosts.

mod authority;
mod files;
mod host;
mod server;
mod tokens;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use berth_core::units::{Millis, Timestamp};

pub use authority::Authority;
pub use host::HostId;
pub use server::server_config;
pub use tokens::{DEFAULT_TOKEN_LIFETIME, create_token};

use crate::clock;

/// How long a host's certificate holds unless configured.
pub const DEFAULT_CERTIFICATE_LIFETIME: Millis = Millis::from_secs(30 * 24 * 60 * 60);

/// What went wrong with the identity of the control plane itself.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file of the data directory.
    #[error("{}: {why}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said, or what is wrong with it.
        why: String,
    },
    /// A certificate could not be made.
    #[error("a certificate could not be made: {0}")]
    Certificate(String),
    /// A name that agents dial is none.
    #[error("{0:?} is neither a DNS name nor an IP address that agents could dial")]
    Name(String),
}

/// Why a host got no certificate.
#[derive(Debug, thiserror::Error)]
pub enum CertifyError {
    /// The token was never given, or has expired.
    #[error("the join token is unknown or has expired; make another with `berth-controlplane token`")]
    UnknownToken,
    /// The request is no CSR.
    #[error("csr_pem: {0}")]
    InvalidRequest(String),
    /// The tokens can't be read, or nothing can be signed.
    #[error("{0}")]
    Unavailable(String),
}

/// A host's certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    /// In PEM.
    pub pem: String,
    /// The authority's, in PEM.
    pub ca_pem: String,
    /// When it ends.
    pub not_after: Timestamp,
}

/// Gives certificates to hosts. Cloning yields another handle on the same.
#[derive(Debug, Clone)]
pub struct Certifier {
    authority: Arc<Authority>,
    directory: Arc<Path>,
    lifetime: Millis,
}

impl Certifier {
    /// With the tokens of a data directory, for certificates that hold so long.
    #[must_use]
    pub fn new(authority: Arc<Authority>, directory: &Path, lifetime: Millis) -> Self {
        Self { authority, directory: directory.into(), lifetime }
    }

    /// A certificate for a host that has a join token: for the one that has this key, or without one for a new host.
    ///
    /// # Errors
    /// [`CertifyError`] when the token or the request is not good.
    pub async fn enroll(
        &self,
        token: String,
        csr_pem: String,
        host_key: &str,
    ) -> Result<Certificate, CertifyError> {
        let directory = Arc::clone(&self.directory);
        let known = tokio::task::spawn_blocking(move || tokens::is_known(&directory, &token, clock::now()))
            .await
            .map_err(|error| CertifyError::Unavailable(error.to_string()))?
            .map_err(|error| CertifyError::Unavailable(error.to_string()))?;
        if !known {
            return Err(CertifyError::UnknownToken);
        }
        let host = if host_key.is_empty() { HostId::generate() } else { HostId::of_key(host_key) };
        let certificate = self.renew(&host, &csr_pem)?;
        tracing::info!(%host, "a host enrolled");
        Ok(certificate)
    }

    /// A fresh certificate for a host that has one.
    ///
    /// # Errors
    /// [`CertifyError`] when the request is not good.
    pub fn renew(&self, host: &HostId, csr_pem: &str) -> Result<Certificate, CertifyError> {
        self.authority.certify(host, csr_pem, clock::now(), self.lifetime)
    }
}
