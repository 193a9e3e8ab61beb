//! A host becomes an instance, and stays that one.

use berth_controlplane::arn;
use berth_controlplane::model::{Instance, InstanceStatus};
use berth_controlplane::store::{Key, Record, Txn};
use berth_proto::v1;
use tonic::Code;

use crate::client::{Site, registration, site};

fn instance(site: &Site, arn: &str) -> Instance {
    let view = site.running.state.store.view();
    Instance::clone(&view.instance("default", arn::id_of(arn)).unwrap().value)
}

#[tokio::test]
async fn the_same_key_is_the_same_instance_with_what_the_host_says_now() {
    let site = site().await;
    let arn = site.register("host-a").await;
    assert_eq!(site.register("host-a").await, arn);
    assert_eq!(instance(&site, &arn).version, 1, "nothing has changed");
    assert_ne!(site.register("host-b").await, arn);

    // A GPU is plugged in.
    let mut request = registration("host-a");
    request.total.as_mut().unwrap().gpus = 1;
    request.gpu_ids = vec!["GPU-1".to_owned()];
    request.attributes.push(v1::Attribute { name: "berth.capability.gpu".to_owned(), value: String::new() });
    site.client().await.register(request).await.unwrap();
    assert_eq!(instance(&site, &arn).gpu_ids, ["GPU-1"]);

    // An operator sets an attribute; the host grows, and loses capabilities.
    let view = site.running.state.store.view();
    let found = view.instance("default", arn::id_of(&arn)).unwrap();
    let mut changed = Instance::clone(&found.value);
    changed.attributes.insert("stack".to_owned(), "prod".to_owned());
    let key = Key::Instance("default".to_owned(), arn::id_of(&arn).to_owned());
    let put = Txn { puts: vec![(key, Record::Instance(changed.into()))], ..Txn::default() };
    site.running.state.store.commit(put).await.unwrap();
    let mut request = registration("host-a");
    request.total.as_mut().unwrap().memory_mib = 8192;
    request.attributes.retain(|a| !a.name.starts_with("ecs.capability."));
    let reply = site.client().await.register(request).await.unwrap().into_inner();
    assert_eq!(reply.container_instance_arn, arn);
    let names: Vec<&str> = reply.attributes.iter().map(|a| a.name.as_str()).collect();
    assert_eq!(names, ["ecs.os-type", "stack"]);
    let now = instance(&site, &arn);
    assert_eq!((now.total.memory.0, now.total.gpus, now.version), (8192, 0, 3));
    assert!(now.gpu_ids.is_empty());
}

#[tokio::test]
async fn many_registrations_at_once_make_one_instance() {
    let site = site().await;
    let client = site.client().await;
    let attempts =
        (0..20).map(|_| {
            let mut client = client.clone();
            async move {
                client.register(registration("host-a")).await.unwrap().into_inner().container_instance_arn
            }
        });
    let arns = futures_util::future::join_all(attempts).await;
    assert!(arns.iter().all(|arn| *arn == arns[0]), "{arns:?}");
    assert_eq!(site.running.state.store.view().instances(None).len(), 1);
}

#[tokio::test]
async fn a_deregistered_host_comes_back_as_a_new_instance() {
    let site = site().await;
    let arn = site.register("host-a").await;
    site.running.state.controller.deregister_instance("default", arn::id_of(&arn), false).await.unwrap();
    let again = site.register("host-a").await;
    assert_ne!(again, arn);
    assert_eq!(instance(&site, &arn).status, InstanceStatus::Inactive);
    assert_eq!(site.register("host-a").await, again);
}

#[tokio::test]
async fn a_host_that_lost_its_key_keeps_its_instance_unless_another_holds_it() {
    let site = site().await;
    let agent = site.agent("host-a").await;
    let arn = agent.arn.clone();
    let remembering =
        |key: &str| v1::RegisterRequest { previous_instance_arn: arn.clone(), ..registration(key) };
    let mut client = site.client().await;
    // Somebody is connected as that instance: whoever asks is another host.
    let other = client.register(remembering("thief")).await.unwrap().into_inner().container_instance_arn;
    assert_ne!(other, arn);
    drop(agent);
    site.until_connected(&arn, false).await;
    let kept = client.register(remembering("new-key")).await.unwrap().into_inner().container_instance_arn;
    assert_eq!(kept, arn);
    assert_eq!(site.register("new-key").await, arn);
    assert_ne!(site.register("host-a").await, arn, "the old key is nobody's any more");
}

#[tokio::test]
async fn what_is_wrong_is_refused_by_name() {
    let site = site().await;
    let mut client = site.client().await;
    type Change = fn(&mut v1::RegisterRequest);
    let cases: [(Change, Code, &str); 8] = [
        (|r| r.cluster = "nowhere".to_owned(), Code::NotFound, "Cluster not found."),
        (|r| r.cluster = "a/b".to_owned(), Code::InvalidArgument, "cluster:"),
        (|r| r.host_key.clear(), Code::InvalidArgument, "host_key:"),
        (|r| r.total = None, Code::InvalidArgument, "total:"),
        (
            |r| r.total.as_mut().unwrap().udp_ports = vec![70_000],
            Code::InvalidArgument,
            "total.udp_ports: 70000",
        ),
        (|r| r.attributes.push(v1::Attribute::default()), Code::InvalidArgument, "attributes:"),
        (|r| r.gpu_ids.push(String::new()), Code::InvalidArgument, "gpu_ids:"),
        (|r| r.protocol_version = 99, Code::InvalidArgument, "protocol_version:"),
    ];
    for (change, code, text) in cases {
        let mut request = registration("host-a");
        change(&mut request);
        let status = client.register(request).await.unwrap_err();
        assert_eq!(status.code(), code, "{status}");
        assert!(status.message().starts_with(text), "{status}");
    }
}
