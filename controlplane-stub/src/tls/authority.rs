//! The control plane's own certificate authority: made once, kept in the data directory.

use std::fmt;
use std::net::IpAddr;
use std::path::Path;

use berth_core::units::{Millis, Timestamp};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType, DnValue,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use super::{Certificate, CertifyError, HostId, TlsError, files};
use crate::clock;

const KEY_FILE: &str = "ca.key";
const CERTIFICATE_FILE: &str = "ca.pem";
/// Hosts know the control plane by this certificate; it is not meant to change.
const LIFETIME: Millis = Millis::from_secs(20 * 365 * 24 * 60 * 60);
/// Clocks of hosts may be behind by this much.
const SKEW: Millis = Millis::from_secs(5 * 60);

/// Signs certificates.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    pem: String,
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Authority({})", self.fingerprint())
    }
}

/// A certificate for the control plane's own listener, with its chain and key.
pub(super) struct ServerIdentity {
    pub(super) chain: Vec<CertificateDer<'static>>,
    pub(super) key: PrivateKeyDer<'static>,
}

fn params(name: &str, now: Timestamp, lifetime: Millis) -> CertificateParams {
    let at = |time: Timestamp| rcgen::date_time_ymd(1970, 1, 1) + Millis(time.0).as_duration();
    let mut params = CertificateParams::default();
    params.not_before = at(Timestamp(now.0.saturating_sub(SKEW.0)));
    params.not_after = at(now.after(lifetime));
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, DnValue::Utf8String(name.to_owned()));
    params
}

impl Authority {
    /// Reads the authority of a data directory, and makes it when there is none. Blocks.
    ///
    /// # Errors
    /// [`TlsError`], naming the file.
    pub fn open(directory: &Path) -> Result<Self, TlsError> {
        let _lock = files::lock(directory)?;
        let (key_path, certificate_path) = (directory.join(KEY_FILE), directory.join(CERTIFICATE_FILE));
        for path in [&key_path, &certificate_path] {
            files::settle(path)?;
        }
        let key = match files::read(&key_path)? {
            Some(pem) => KeyPair::from_pem(&pem).map_err(|error| files::failed(&key_path, &error))?,
            None => {
                if files::read(&certificate_path)?.is_some() {
                    // A new key would make every enrolled host a stranger without a word.
                    let why = format!(
                        "is missing beside {}; restore it, or remove that file to begin anew",
                        certificate_path.display()
                    );
                    return Err(files::failed(&key_path, &why));
                }
                let key = KeyPair::generate().map_err(certificate)?;
                files::write_private(&key_path, key.serialize_pem().as_bytes())?;
                key
            }
        };
        let pem = match files::read(&certificate_path)? {
            Some(pem) => pem,
            None => {
                let mut params = params("Berth control plane CA", clock::now(), LIFETIME);
                params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
                params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
                let pem = params.self_signed(&key).map_err(certificate)?.pem();
                files::write_private(&certificate_path, pem.as_bytes())?;
                pem
            }
        };
        let der = CertificateDer::from_pem_slice(pem.as_bytes())
            .map_err(|error| files::failed(&certificate_path, &error))?;
        let issuer =
            Issuer::from_ca_cert_der(&der, key).map_err(|error| files::failed(&certificate_path, &error))?;
        Ok(Self { issuer, certificate: der, pem })
    }

    /// The SHA-256 of the certificate, as `sha256:<hex>`: what hosts know the control plane by.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        let digest = ring::digest::digest(&ring::digest::SHA256, &self.certificate);
        format!("sha256:{}", crate::hex::encode(digest.as_ref()))
    }

    /// The certificate in PEM.
    #[must_use]
    pub fn pem(&self) -> &str {
        &self.pem
    }

    pub(super) const fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// Signs a host's request. Of the request only the key counts.
    pub(super) fn certify(
        &self,
        host: &HostId,
        csr_pem: &str,
        now: Timestamp,
        lifetime: Millis,
    ) -> Result<Certificate, CertifyError> {
        let unavailable = |error: rcgen::Error| CertifyError::Unavailable(error.to_string());
        let request = CertificateSigningRequestParams::from_pem(csr_pem)
            .map_err(|error| CertifyError::InvalidRequest(error.to_string()))?;
        let mut params = params(&format!("Berth host {host}"), now, lifetime);
        params.subject_alt_names = vec![SanType::URI(host.uri().try_into().map_err(unavailable)?)];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let signed = params.signed_by(&request.public_key, &self.issuer).map_err(unavailable)?;
        Ok(Certificate { pem: signed.pem(), ca_pem: self.pem.clone(), not_after: now.after(lifetime) })
    }

    /// A certificate and its key, both in PEM, for a simulated host of this process.
    pub(crate) fn identity_for_simulation(&self, host_key: &str) -> Result<(String, String), TlsError> {
        let key = KeyPair::generate().map_err(certificate)?;
        let request = CertificateParams::default().serialize_request(&key).map_err(certificate)?;
        let request = request.pem().map_err(certificate)?;
        let signed = self
            .certify(&HostId::of_key(host_key), &request, clock::now(), super::DEFAULT_CERTIFICATE_LIFETIME)
            .map_err(|error| TlsError::Certificate(error.to_string()))?;
        Ok((signed.pem, key.serialize_pem()))
    }

    /// A certificate for the names and addresses that agents dial.
    pub(super) fn server_identity(
        &self,
        names: &[String],
        now: Timestamp,
        lifetime: Millis,
    ) -> Result<ServerIdentity, TlsError> {
        let mut params = params("Berth control plane", now, lifetime);
        for name in names {
            params.subject_alt_names.push(match name.parse::<IpAddr>() {
                Ok(address) => SanType::IpAddress(address),
                Err(_) => {
                    SanType::DnsName(name.as_str().try_into().map_err(|_| TlsError::Name(name.clone()))?)
                }
            });
        }
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate().map_err(certificate)?;
        let signed = params.signed_by(&key, &self.issuer).map_err(certificate)?;
        Ok(ServerIdentity {
            chain: vec![signed.der().clone(), self.certificate.clone()],
            key: PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
        })
    }
}

fn certificate(error: rcgen::Error) -> TlsError {
    TlsError::Certificate(error.to_string())
}
