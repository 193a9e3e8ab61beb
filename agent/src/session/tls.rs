//! The host's certificate: enrolment with a join token, renewal before it ends, and the TLS client
//! that uses it.
//!
//! Before it is enrolled, the host knows the control plane by the fingerprint of its CA alone:
//! the chain that the server presents must contain that CA and be signed by it. Afterwards it
//! trusts the CA that it was given, and nobody else.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use berth_core::units::Timestamp;
use ring::digest;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, OtherError, RootCertStore, SignatureScheme};
use x509_parser::prelude::{FromDer, X509Certificate};

/// Why there is no usable certificate.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The host has not joined and cannot.
    #[error(
        "this host has no certificate yet: set BERTH_JOIN_TOKEN and BERTH_CA_FINGERPRINT (see `berth-controlplane token`)"
    )]
    NotEnrolled,
    /// A file cannot be read or written.
    #[error("cannot use {path}: {source}")]
    File {
        /// The file.
        path: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A key, certificate or name is not usable.
    #[error("{what}: {detail}")]
    Unusable {
        /// Which one.
        what: &'static str,
        /// What is wrong with it.
        detail: String,
    },
}

fn unusable(what: &'static str, detail: impl std::fmt::Display) -> TlsError {
    TlsError::Unusable { what, detail: detail.to_string() }
}

/// A private key and the request to certify it.
pub(super) struct Request {
    key_pem: String,
    /// The request in PEM.
    pub(super) csr_pem: String,
}

/// Makes a fresh key and a request for a certificate of it.
pub(super) fn request(host_key: &str) -> Result<Request, TlsError> {
    let wrong = |e: rcgen::Error| unusable("certificate request", e);
    let key = rcgen::KeyPair::generate().map_err(wrong)?;
    let mut params = rcgen::CertificateParams::default();
    params.distinguished_name.push(rcgen::DnType::CommonName, host_key);
    let csr = params.serialize_request(&key).map_err(wrong)?;
    Ok(Request { key_pem: key.serialize_pem(), csr_pem: csr.pem().map_err(wrong)? })
}

/// The host's certificate, its key and the CA, in the data directory.
#[derive(Debug, Clone)]
pub(super) struct Credentials {
    directory: PathBuf,
}

impl Credentials {
    /// Credentials that are, or will be, in `<data directory>/tls`.
    pub(super) fn within(data_dir: &Path) -> Self {
        Self { directory: data_dir.join("tls") }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Keeps a fresh certificate. The three go together in one file, so that none is ever seen
    /// without the others.
    pub(super) fn keep(
        &self,
        request: &Request,
        certificate_pem: &str,
        ca_pem: &str,
    ) -> Result<(), TlsError> {
        let path = self.file("host.pem");
        let wrong = |source| TlsError::File { path: path.display().to_string(), source };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.directory).map_err(wrong)?;
        let fresh = self.file("host.pem.new");
        let text = format!("{}\n{certificate_pem}\n{ca_pem}\n", request.key_pem);
        let write = || -> io::Result<()> {
            let mut file =
                fs::OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&fresh)?;
            io::Write::write_all(&mut file, text.as_bytes())?;
            file.sync_all()?;
            fs::rename(&fresh, &path)?;
            fs::File::open(&self.directory)?.sync_all()
        };
        write().map_err(wrong)
    }

    /// What is kept: `None` before enrolment.
    pub(super) fn load(&self) -> Result<Option<Loaded>, TlsError> {
        let path = self.file("host.pem");
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => {
                return Err(TlsError::File { path: path.display().to_string(), source });
            }
        };
        let wrong = |e| unusable("the host's certificate (tls/host.pem; remove it to enrol anew)", e);
        let key = PrivateKeyDer::from_pem_slice(&text).map_err(wrong)?;
        let mut chain: Vec<CertificateDer<'static>> =
            CertificateDer::pem_slice_iter(&text).collect::<Result<_, _>>().map_err(wrong)?;
        if chain.len() < 2 {
            return Err(unusable(
                "the host's certificate",
                "tls/host.pem does not hold a certificate and its CA; remove it to enrol anew",
            ));
        }
        let ca = chain.split_off(1);
        let (_, parsed) =
            X509Certificate::from_der(&chain[0]).map_err(|e| unusable("the host's certificate", e))?;
        let at = |time: i64| Timestamp(u64::try_from(time).unwrap_or_default().saturating_mul(1000));
        let validity = parsed.validity();
        let (begins, ends) = (at(validity.not_before.timestamp()), at(validity.not_after.timestamp()));
        Ok(Some(Loaded { key, chain, ca, begins, ends }))
    }
}

/// Credentials in memory.
pub(super) struct Loaded {
    key: PrivateKeyDer<'static>,
    chain: Vec<CertificateDer<'static>>,
    ca: Vec<CertificateDer<'static>>,
    begins: Timestamp,
    /// When the certificate ends.
    pub(super) ends: Timestamp,
}

impl Loaded {
    /// Whether the authority of that fingerprint gave the certificate.
    pub(super) fn is_of(&self, fingerprint: &str) -> bool {
        self.ca.iter().any(|ca| fingerprint_of(ca) == fingerprint)
    }

    /// When to renew: once two thirds of its life are over.
    pub(super) fn renew_at(&self) -> Timestamp {
        let life = self.ends.since(self.begins);
        Timestamp(self.begins.0 + life.0 / 3 * 2)
    }

    /// A TLS client that presents the certificate and trusts its CA alone.
    pub(super) fn client(self) -> Result<ClientConfig, TlsError> {
        let mut roots = RootCertStore::empty();
        for ca in self.ca {
            roots.add(ca).map_err(|e| unusable("the control plane's CA", e))?;
        }
        let builder = builder()?;
        let mut config = builder
            .with_root_certificates(roots)
            .with_client_auth_cert(self.chain, self.key)
            .map_err(|e| unusable("the host's certificate", e))?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(config)
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn builder() -> Result<rustls::ConfigBuilder<ClientConfig, rustls::WantsVerifier>, TlsError> {
    ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|e| unusable("TLS", e))
}

/// A TLS client for enrolment: trusts whatever the CA of that fingerprint signed.
pub(super) fn enrolment_client(fingerprint: &str) -> Result<ClientConfig, TlsError> {
    let verifier = PinnedCa { fingerprint: fingerprint.to_owned(), provider: provider() };
    let mut config =
        builder()?.dangerous().with_custom_certificate_verifier(Arc::new(verifier)).with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

/// The server is not the one that the operator meant.
#[derive(Debug, thiserror::Error)]
#[error(
    "the server's CA is not that of BERTH_CA_FINGERPRINT: the address is wrong, somebody is in between, or the fingerprint is (see `berth-controlplane token`)"
)]
struct OtherCa;

/// Accepts a server whose chain holds the CA of a known fingerprint and is signed by it.
#[derive(Debug)]
struct PinnedCa {
    fingerprint: String,
    provider: Arc<CryptoProvider>,
}

/// The fingerprint of a certificate: `sha256:` and 64 hex digits over its DER form.
fn fingerprint_of(certificate: &CertificateDer<'_>) -> String {
    let hash = digest::digest(&digest::SHA256, certificate);
    hash.as_ref().iter().fold("sha256:".to_owned(), |text, byte| format!("{text}{byte:02x}"))
}

impl ServerCertVerifier for PinnedCa {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let other = || rustls::Error::Other(OtherError(Arc::new(OtherCa)));
        let ca = intermediates.iter().find(|c| fingerprint_of(c) == self.fingerprint).ok_or_else(other)?;
        let mut roots = RootCertStore::empty();
        roots.add(ca.clone().into_owned())?;
        let verifier =
            WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&self.provider))
                .build()
                .map_err(|e| rustls::Error::General(e.to_string()))?;
        verifier.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(
            message,
            cert,
            dss,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(
            message,
            cert,
            dss,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
