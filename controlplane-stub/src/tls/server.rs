//! The TLS side of the agents' listener: its certificate, renewed while it runs, and the check of
//! the hosts' certificates.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use berth_core::units::{Millis, Timestamp};
use tokio_rustls::rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use tokio_rustls::rustls::sign::CertifiedKey;
use tokio_rustls::rustls::{RootCertStore, ServerConfig, crypto};

use super::{Authority, TlsError};
use crate::clock;

const LIFETIME: Millis = Millis::from_secs(90 * 24 * 60 * 60);
const RENEW_AFTER: Millis = Millis::from_secs(30 * 24 * 60 * 60);

/// TLS for a listener that agents dial under these names and addresses. A client certificate is
/// not demanded, but must be of the authority if it is shown.
///
/// # Errors
/// [`TlsError`] when a name is none or nothing can be signed.
pub fn server_config(authority: &Arc<Authority>, names: Vec<String>) -> Result<Arc<ServerConfig>, TlsError> {
    let failed = |error: &dyn fmt::Display| TlsError::Certificate(error.to_string());
    let provider = Arc::new(crypto::ring::default_provider());
    let mut roots = RootCertStore::empty();
    roots.add(authority.certificate().clone()).map_err(|error| failed(&error))?;
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
        .allow_unauthenticated()
        .build()
        .map_err(|error| failed(&error))?;
    let resolver = Resolver { authority: Arc::clone(authority), names, current: Mutex::new(None) };
    // A name that is none is told now, not at the first handshake.
    resolver.key(clock::now())?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| failed(&error))?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::new(resolver));
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(config))
}

struct Resolver {
    authority: Arc<Authority>,
    names: Vec<String>,
    /// The certificate in use, and when it is to be renewed.
    current: Mutex<Option<(Arc<CertifiedKey>, Timestamp)>>,
}

impl fmt::Debug for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Resolver({:?})", self.names)
    }
}

impl Resolver {
    fn key(&self, now: Timestamp) -> Result<Arc<CertifiedKey>, TlsError> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((key, _)) = current.as_ref().filter(|(_, renew_at)| now < *renew_at) {
            return Ok(Arc::clone(key));
        }
        let identity = self.authority.server_identity(&self.names, now, LIFETIME)?;
        let signer = crypto::ring::sign::any_supported_type(&identity.key)
            .map_err(|error| TlsError::Certificate(error.to_string()))?;
        let key = Arc::new(CertifiedKey::new(identity.chain, signer));
        *current = Some((Arc::clone(&key), now.after(RENEW_AFTER)));
        Ok(key)
    }
}

impl ResolvesServerCert for Resolver {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        match self.key(clock::now()) {
            Ok(key) => Some(key),
            Err(error) => {
                tracing::error!(%error, "there is no certificate for the agents' listener");
                None
            }
        }
    }
}
