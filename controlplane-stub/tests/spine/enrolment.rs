//! Certificates: who gets one, and what is possible without.

use std::time::Duration;

use berth_controlplane::clock;
use berth_controlplane::daemon::AgentTls;
use berth_controlplane::model::TaskStatus;
use berth_controlplane::tls::{Authority, create_token};
use berth_core::units::{Millis, Timestamp};
use berth_proto::v1;
use berth_proto::v1::control_plane_client::ControlPlaneClient;
use berth_proto::v1::enrollment_client::EnrollmentClient;
use tonic::Code;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

use crate::client::{Agent, Site, registration, site, site_with};

pub(crate) async fn secure() -> Site {
    site_with(|config| {
        config.agent_tls = AgentTls::On;
        config.agent_names = vec!["plane.example".to_owned()];
        config.certificate_lifetime = Millis::from_secs(3600);
        config.dev = true;
    })
    .await
}

pub(crate) fn token(site: &Site) -> String {
    create_token(site.directory.path(), Millis::from_secs(60), clock::now()).unwrap()
}

fn ca(site: &Site) -> String {
    std::fs::read_to_string(site.directory.path().join("ca.pem")).unwrap()
}

pub(crate) async fn channel(
    site: &Site,
    identity: Option<(&str, &str)>,
) -> Result<Channel, tonic::transport::Error> {
    let mut tls =
        ClientTlsConfig::new().ca_certificate(Certificate::from_pem(ca(site))).domain_name("plane.example");
    if let Some((certificate, key)) = identity {
        tls = tls.identity(Identity::from_pem(certificate, key));
    }
    let uri = format!("https://{}", site.running.agent_addr);
    Endpoint::from_shared(uri)
        .unwrap()
        .connect_timeout(Duration::from_secs(10))
        .tls_config(tls)
        .unwrap()
        .connect()
        .await
}

pub(crate) fn request() -> (String, String) {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::default();
    // What a request asks for beyond its key is ignored.
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    (params.serialize_request(&key).unwrap().pem().unwrap(), key.serialize_pem())
}

async fn enroll(
    site: &Site,
    join_token: String,
    csr_pem: String,
) -> Result<v1::CertificateResponse, tonic::Status> {
    let mut client = EnrollmentClient::new(channel(site, None).await.unwrap());
    let request = v1::EnrollRequest { join_token, csr_pem, host_key: String::new() };
    Ok(client.enroll(request).await?.into_inner())
}

#[tokio::test]
async fn a_host_enrols_registers_talks_and_renews() {
    let site = secure().await;
    let (csr, key) = request();
    let given = enroll(&site, token(&site), csr).await.unwrap();
    assert_eq!(given.ca_pem, ca(&site));
    let left = Timestamp(given.not_after_ms).since(clock::now());
    assert!(left > Millis::from_secs(3500) && left <= Millis::from_secs(3600), "{left}");

    let channel_with = channel(&site, Some((&given.certificate_pem, &key))).await.unwrap();
    let mut client = ControlPlaneClient::new(channel_with);
    let arn = client.register(registration("host-a")).await.unwrap().into_inner().container_instance_arn;
    let mut agent = Agent::connect(client.clone(), &arn, "host-a", "epoch-1").await;
    agent.greeting().await;
    let tasks = site.launch(1).await;
    assert_eq!(agent.payload().await.tasks[0].task_arn, tasks[0]);

    // A renewal is for a new key, and as good as the first.
    let (csr, new_key) = request();
    let renewed = client.renew(v1::RenewRequest { csr_pem: csr }).await.unwrap().into_inner();
    let mut client =
        ControlPlaneClient::new(channel(&site, Some((&renewed.certificate_pem, &new_key))).await.unwrap());
    assert_eq!(
        client.register(registration("host-a")).await.unwrap().into_inner().container_instance_arn,
        arn
    );
    let host = |pem: &str| {
        use tokio_rustls::rustls::pki_types::{CertificateDer, pem::PemObject};
        berth_controlplane::tls::HostId::of_certificate(
            &CertificateDer::from_pem_slice(pem.as_bytes()).unwrap(),
        )
        .unwrap()
    };
    assert_eq!(host(&given.certificate_pem), host(&renewed.certificate_pem), "the host stays the same");
    assert!(!given.certificate_pem.contains(&renewed.certificate_pem));
}

#[tokio::test]
async fn without_a_good_token_there_is_no_certificate() {
    let site = secure().await;
    let (csr, _) = request();
    let status = enroll(&site, "berth-guess".to_owned(), csr.clone()).await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated, "{status}");
    let good = token(&site);
    let expired = create_token(site.directory.path(), Millis(1), Timestamp(1)).unwrap();
    let status = enroll(&site, expired, csr.clone()).await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated, "{status}");
    let status = enroll(&site, good.clone(), "nonsense".to_owned()).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument, "{status}");
    // A token may be used until it expires, and is kept as a hash alone.
    enroll(&site, good.clone(), csr.clone()).await.unwrap();
    enroll(&site, good.clone(), csr).await.unwrap();
    let kept = std::fs::read_to_string(site.directory.path().join("join-tokens.json")).unwrap();
    assert!(!kept.contains(good.trim_start_matches("berth-")));
}

#[tokio::test]
async fn without_a_certificate_of_ours_nothing_but_enrolment_is_possible() {
    let site = secure().await;
    let mut client = ControlPlaneClient::new(channel(&site, None).await.unwrap());
    let status = client.register(registration("host-a")).await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated, "{status}");
    let (csr, _) = request();
    assert_eq!(
        client.renew(v1::RenewRequest { csr_pem: csr }).await.unwrap_err().code(),
        Code::Unauthenticated
    );
    let empty = tokio_stream::iter(Vec::<v1::AgentMessage>::new());
    assert_eq!(client.session(empty).await.unwrap_err().code(), Code::Unauthenticated);

    // A certificate of somebody else's authority does not get through the handshake.
    let elsewhere = tempfile::tempdir().unwrap();
    let stranger = Authority::open(elsewhere.path()).unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
    let own = rcgen::CertificateParams::new(vec!["x".to_owned()]).unwrap().self_signed(&key).unwrap();
    let refused = match channel(&site, Some((&own.pem(), &key.serialize_pem()))).await {
        Ok(channel) => ControlPlaneClient::new(channel).register(registration("host-a")).await.is_err(),
        Err(_) => true,
    };
    assert!(refused);
    assert_ne!(stranger.fingerprint(), site.running.ca_fingerprint.clone().unwrap());

    // Nor does plaintext.
    let uri = format!("http://{}", site.running.agent_addr);
    let plain = Endpoint::from_shared(uri).unwrap().connect().await;
    let refused = match plain {
        Ok(channel) => ControlPlaneClient::new(channel).register(registration("host-a")).await.is_err(),
        Err(_) => true,
    };
    assert!(refused);
}

#[tokio::test]
async fn the_authority_is_made_once_and_is_private() {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::tempdir().unwrap();
    let first = Authority::open(directory.path()).unwrap().fingerprint();
    assert!(first.starts_with("sha256:") && first.len() == 7 + 64, "{first}");
    assert_eq!(Authority::open(directory.path()).unwrap().fingerprint(), first);
    for file in ["ca.key", "ca.pem"] {
        let mode = std::fs::metadata(directory.path().join(file)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{file}");
    }
    std::fs::remove_file(directory.path().join("ca.key")).unwrap();
    let error = Authority::open(directory.path()).unwrap_err().to_string();
    assert!(error.contains("ca.key") && error.contains("ca.pem"), "{error}");
}

#[tokio::test]
async fn plaintext_needs_no_certificate_and_gives_none() {
    let site = site().await;
    let (csr, _) = request();
    let mut client = site.client().await;
    assert_eq!(
        client.renew(v1::RenewRequest { csr_pem: csr.clone() }).await.unwrap_err().code(),
        Code::FailedPrecondition
    );
    let mut enrollment = EnrollmentClient::new(site.channel().await);
    let request = v1::EnrollRequest { join_token: "x".to_owned(), csr_pem: csr, ..Default::default() };
    let refused = enrollment.enroll(request).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
}

#[tokio::test]
async fn simulated_agents_speak_tls_too() {
    let site = secure().await;
    let (csr, key) = request();
    let given = enroll(&site, token(&site), csr).await.unwrap();
    let mut client =
        ControlPlaneClient::new(channel(&site, Some((&given.certificate_pem, &key))).await.unwrap());
    let arn = client.register(registration("host-a")).await.unwrap().into_inner().container_instance_arn;
    site.running.state.simulated.as_ref().unwrap().attach("default", &arn).await.unwrap();
    let tasks = site.launch(1).await;
    site.until_status(&tasks[0], TaskStatus::Running).await;
}
