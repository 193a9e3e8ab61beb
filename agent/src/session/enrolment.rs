//! The host's certificate: had for the join token, renewed before it ends, and what the connection goes by.

use berth_proto::v1;
use berth_proto::v1::control_plane_client::ControlPlaneClient;
use berth_proto::v1::enrollment_client::EnrollmentClient;
use tonic::transport::Channel;

use super::tls::{self, Credentials, TlsError};
use super::{Endpoint, Failed, Line, Session, answered, called, channel};
use crate::clock;

const RENEWAL: &str = "renewal of the certificate";

impl Session {
    /// A connection, over TLS with the host's certificate; one that has none enrols first.
    pub(super) async fn connect(&self) -> Result<Channel, Failed> {
        let backend = &self.backend;
        let config = match &backend.endpoint {
            Endpoint::Tls { .. } => {
                let credentials = Credentials::within(&backend.data_dir);
                let loaded = match credentials.load()? {
                    Some(loaded) if loaded.ends > clock::now() && !self.is_superseded(&loaded) => loaded,
                    kept => {
                        self.enrol(&credentials).await?;
                        match kept.filter(|kept| self.is_superseded(kept)) {
                            Some(_) => tracing::info!(
                                "enrolled anew: BERTH_CA_FINGERPRINT names another authority than the certificate's was"
                            ),
                            None => tracing::info!("enrolled with the control plane"),
                        }
                        credentials.load()?.ok_or(TlsError::NotEnrolled)?
                    }
                };
                Some(loaded.client()?)
            }
            Endpoint::Loopback { .. } | Endpoint::Unix(_) => None,
        };
        channel::connect(&backend.endpoint, config, backend.server_name.as_deref())
            .await
            .map_err(Failed::Connect)
    }

    /// Whether the operator means another authority than the certificate's, and gave what it takes to join it.
    fn is_superseded(&self, kept: &tls::Loaded) -> bool {
        let meant = self.backend.ca_fingerprint.as_deref().filter(|_| self.backend.join_token.is_some());
        meant.is_some_and(|fingerprint| !kept.is_of(fingerprint))
    }

    /// Exchanges the join token for a certificate. What is kept stays until there is one.
    async fn enrol(&self, credentials: &Credentials) -> Result<(), Failed> {
        let (Some(token), Some(fingerprint)) = (&self.backend.join_token, &self.backend.ca_fingerprint)
        else {
            return Err(TlsError::NotEnrolled.into());
        };
        let host_key = self.identity.lock().await.host_key.clone();
        let request = tls::request(&host_key)?;
        let config = tls::enrolment_client(fingerprint)?;
        let channel =
            channel::connect(&self.backend.endpoint, Some(config), self.backend.server_name.as_deref());
        let mut client = EnrollmentClient::new(channel.await.map_err(Failed::Connect)?);
        let call = client.enroll(v1::EnrollRequest {
            join_token: token.expose().to_owned(),
            csr_pem: request.csr_pem.clone(),
            host_key,
        });
        let reply =
            answered("enrolment", call).await?.map_err(|status| called("enrolment", status))?.into_inner();
        credentials.keep(&request, &reply.certificate_pem, &reply.ca_pem)?;
        Ok(())
    }

    /// Renews the certificate when it is time; the next connection uses it.
    pub(super) async fn renew_if_due(&self, client: &mut ControlPlaneClient<Line>) -> Result<(), Failed> {
        if !matches!(self.backend.endpoint, Endpoint::Tls { .. }) {
            return Ok(());
        }
        let credentials = Credentials::within(&self.backend.data_dir);
        if credentials.load()?.is_some_and(|loaded| loaded.renew_at() > clock::now()) {
            return Ok(());
        }
        let host_key = self.identity.lock().await.host_key.clone();
        let request = tls::request(&host_key)?;
        let call = client.renew(v1::RenewRequest { csr_pem: request.csr_pem.clone() });
        let reply = answered(RENEWAL, call).await?.map_err(|status| called(RENEWAL, status))?.into_inner();
        credentials.keep(&request, &reply.certificate_pem, &reply.ca_pem)?;
        tracing::info!("renewed the host's certificate");
        Ok(())
    }
}
