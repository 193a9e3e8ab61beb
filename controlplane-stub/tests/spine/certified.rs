//! Over TLS an instance is the host's whose certificate it was registered with.

use berth_controlplane::arn;
use berth_controlplane::model::Instance;
use berth_controlplane::store::{Key, Record, Txn};
use berth_proto::v1;
use berth_proto::v1::control_plane_client::ControlPlaneClient;
use berth_proto::v1::enrollment_client::EnrollmentClient;
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::client::{Agent, Site, registration};
use crate::enrolment::{channel, request, secure, token};

type Client = ControlPlaneClient<Channel>;

/// A host that has enrolled, with that key of its own.
async fn enrolled(site: &Site, host_key: &str) -> Client {
    let (csr_pem, key) = request();
    let mut client = EnrollmentClient::new(channel(site, None).await.unwrap());
    let request = v1::EnrollRequest { join_token: token(site), csr_pem, host_key: host_key.to_owned() };
    let given = client.enroll(request).await.unwrap().into_inner();
    ControlPlaneClient::new(channel(site, Some((&given.certificate_pem, &key))).await.unwrap())
}

/// Registers by a key, remembering an instance or none.
async fn register(client: &Client, host_key: &str, previous: &str) -> Result<String, Status> {
    let request =
        v1::RegisterRequest { previous_instance_arn: previous.to_owned(), ..registration(host_key) };
    Ok({ client.clone() }.register(request).await?.into_inner().container_instance_arn)
}

/// What the control plane says to a first message that names the instance.
async fn greeted(client: &Client, arn: &str, host_key: &str) -> Result<(), Status> {
    let hello = v1::Hello {
        container_instance_arn: arn.to_owned(),
        host_key: host_key.to_owned(),
        outbox_epoch: "epoch-of-a-stranger".to_owned(),
        last_manifest_sequence: 0,
        last_seen: None,
    };
    let first = v1::AgentMessage { message: Some(v1::agent_message::Message::Hello(hello)) };
    let (_open, messages) = {
        let (sender, receiver) = tokio::sync::mpsc::channel(1);
        sender.send(first).await.unwrap();
        (sender, tokio_stream::wrappers::ReceiverStream::new(receiver))
    };
    let mut answers = { client.clone() }.session(messages).await?.into_inner();
    answers.message().await.map(drop)
}

fn denied<T: std::fmt::Debug>(answer: Result<T, Status>, arn: &str) {
    let status = answer.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied, "{status}");
    for text in [arn, "aws ecs deregister-container-instance", arn::id_of(arn)] {
        assert!(status.message().contains(text), "{status}");
    }
}

fn instance(site: &Site, arn: &str) -> Instance {
    let view = site.running.state.store.view();
    Instance::clone(&view.instance("default", arn::id_of(arn)).unwrap().value)
}

/// Puts the record as a version that knew nothing of certificates left it, or as one that named hosts by chance.
async fn bound_to(site: &Site, arn: &str, host_id: &str) {
    let changed = Instance { host_id: host_id.to_owned(), ..instance(site, arn) };
    let key = Key::Instance("default".to_owned(), arn::id_of(arn).to_owned());
    let put = Txn { puts: vec![(key, Record::Instance(changed.into()))], ..Txn::default() };
    site.running.state.store.commit(put).await.unwrap();
}

#[tokio::test]
async fn whoever_has_another_certificate_gets_at_it_by_no_name() {
    let site = secure().await;
    let (first, second) = (enrolled(&site, "host-a").await, enrolled(&site, "host-b").await);
    let arn = register(&first, "host-a", "").await.unwrap();
    assert!(!instance(&site, &arn).host_id.is_empty());
    // The ARN is known to everybody; the key might be.
    denied(register(&second, "host-b", &arn).await, &arn);
    denied(register(&second, "host-a", "").await, &arn);
    denied(greeted(&second, &arn, "host-a").await, &arn);
    assert_eq!(greeted(&second, &arn, "host-b").await.unwrap_err().code(), Code::PermissionDenied);

    // While the host is connected, too, which notices nothing of it.
    let mut agent = Agent::connect(first.clone(), &arn, "host-a", "epoch-1").await;
    agent.greeting().await;
    denied(register(&second, "host-b", &arn).await, &arn);
    denied(greeted(&second, &arn, "host-a").await, &arn);
    let tasks = site.launch(1).await;
    assert_eq!(agent.payload().await.tasks[0].task_arn, tasks[0]);

    // What it does not claim it may have.
    assert_ne!(register(&second, "host-b", "").await.unwrap(), arn);
    assert_eq!(register(&first, "host-a", "").await.unwrap(), arn);
}

#[tokio::test]
async fn a_host_keeps_its_instance_without_its_key_or_without_its_certificate() {
    let site = secure().await;
    let host = enrolled(&site, "host-a").await;
    let arn = register(&host, "host-a", "").await.unwrap();
    // Its state was lost, but for the certificate.
    assert_eq!(register(&host, "host-a2", &arn).await.unwrap(), arn);
    assert_eq!(register(&host, "host-a2", "").await.unwrap(), arn);
    // The certificate was lost, or has ended.
    let anew = enrolled(&site, "host-a2").await;
    assert_eq!(register(&anew, "host-a2", &arn).await.unwrap(), arn);
    // All of it was: deregistered, the instance is in nobody's way.
    let other = enrolled(&site, "host-a3").await;
    denied(register(&other, "host-a3", &arn).await, &arn);
    site.running.state.controller.deregister_instance("default", arn::id_of(&arn), true).await.unwrap();
    assert_ne!(register(&other, "host-a3", &arn).await.unwrap(), arn);
}

#[tokio::test]
async fn an_instance_that_is_nobodys_yet_becomes_the_hosts_that_has_its_key() {
    let site = secure().await;
    let (first, second) = (enrolled(&site, "").await, enrolled(&site, "").await);
    let arn = register(&first, "host-a", "").await.unwrap();
    bound_to(&site, &arn, "").await;
    denied(register(&second, "host-b", &arn).await, &arn);
    denied(greeted(&second, &arn, "host-a").await, &arn);
    assert_eq!(register(&first, "host-a", &arn).await.unwrap(), arn);
    assert!(!instance(&site, &arn).host_id.is_empty());
    denied(register(&second, "host-a", &arn).await, &arn);

    // One that was named by chance when it enrolled, and enrols anew by its key.
    bound_to(&site, &arn, "by-chance").await;
    denied(register(&first, "host-a", &arn).await, &arn);
    let anew = enrolled(&site, "host-a").await;
    assert_eq!(register(&anew, "host-a", &arn).await.unwrap(), arn);
}
