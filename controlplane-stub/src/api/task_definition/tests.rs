//! Tests of registering, looking up and ending task definitions.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use serde_json::{Value, json};
use tokio::sync::broadcast;

use crate::api::testing::{Api, text};
use crate::store::{Commit, CommitError, History, Key, Revision, Store, Txn, View};

const CLIENT: &str = "ClientException";

/// One small container, changed by `members`.
fn container(members: &Value) -> Value {
    let mut container = json!({"name": "app", "image": "busybox", "memory": 64});
    for (name, value) in members.as_object().unwrap() {
        container[name] = value.clone();
    }
    container.as_object_mut().unwrap().retain(|_, value| !value.is_null());
    container
}

#[tokio::test]
async fn what_is_described_can_be_registered_again() {
    let api = Api::start().await;
    let body = json!({
        "family": "web", "cpu": "1 vCPU", "memory": "2 GB", "taskRoleArn": "arn:aws:iam::123456789012:role/r",
        "volumes": [{"name": "v", "host": {"sourcePath": "/s"}}], "tags": [{"key": "k", "value": "v"}],
        "runtimePlatform": {"cpuArchitecture": "X86_64", "operatingSystemFamily": "LINUX"},
        "placementConstraints": [{"type": "memberOf", "expression": "attribute:stack == prod"}],
        "containerDefinitions": [container(&json!({
            "links": [], "secrets": [{"name": "S", "valueFrom": "p"}], "dockerLabels": {"a": "b"},
            "mountPoints": [{"sourceVolume": "v", "containerPath": "/v", "readOnly": true}],
            "linuxParameters": {"initProcessEnabled": true, "tmpfs": [{"containerPath": "/t", "size": 4, "mountOptions": ["rw"]}]},
            "logConfiguration": {"logDriver": "json-file", "options": {"max-size": "1m"}}
        }))]
    });
    let first = api.ok("RegisterTaskDefinition", body).await;
    assert_eq!(first["tags"], json!([{"key": "k", "value": "v"}]));
    let mut first = first["taskDefinition"].clone();
    assert_eq!((&first["cpu"], &first["memory"]), (&json!("1024"), &json!("2048")));
    assert_eq!(first["compatibilities"], json!(["EXTERNAL", "EC2"]));
    assert_eq!(
        first["containerDefinitions"][0]["linuxParameters"]["tmpfs"][0]["mountOptions"],
        json!(["rw"])
    );
    let mut second = api.ok("RegisterTaskDefinition", first.clone()).await["taskDefinition"].clone();
    assert_eq!(second["revision"], 2);
    for shown in [&mut first, &mut second] {
        let shown = shown.as_object_mut().unwrap();
        shown.retain(|member, _| {
            !["taskDefinitionArn", "revision", "registeredAt"].contains(&member.as_str())
        });
    }
    assert_eq!(first, second);
}

#[tokio::test]
async fn revisions_rise_one_by_one_however_many_register_at_once() {
    let api = Api::start().await;
    let body = json!({"family": "f", "containerDefinitions": [container(&json!({}))]});
    let all = (0..40).map(|_| api.ok("RegisterTaskDefinition", body.clone()));
    let mut revisions: Vec<u64> = futures_util::future::join_all(all)
        .await
        .iter()
        .map(|reply| reply["taskDefinition"]["revision"].as_u64().unwrap())
        .collect();
    revisions.sort_unstable();
    assert_eq!(revisions, (1..=40).collect::<Vec<u64>>());
}

/// A store in which somebody else is always faster.
struct Contended(Arc<dyn Store>);

impl Store for Contended {
    fn view(&self) -> Arc<dyn View> {
        self.0.view()
    }

    fn history(&self) -> &History {
        self.0.history()
    }

    fn commit(&self, _: Txn) -> BoxFuture<'_, Result<Revision, CommitError>> {
        Box::pin(async { Err(CommitError::Conflict(Key::Family("f".to_owned()))) })
    }

    fn watch(&self) -> broadcast::Receiver<Arc<Commit>> {
        self.0.watch()
    }

    fn reset(&self) -> BoxFuture<'_, Result<Revision, CommitError>> {
        self.0.reset()
    }
}

#[tokio::test]
async fn a_revision_that_others_always_take_first_is_given_up() {
    let mut api = Api::start().await;
    api.context.state.store = Arc::new(Contended(Arc::clone(&api.context.state.store)));
    let body = json!({"family": "f", "containerDefinitions": [container(&json!({}))]});
    let message = "Too many concurrent attempts to create a new revision of the specified family.";
    let refused = api.refused("RegisterTaskDefinition", body).await;
    assert_eq!(refused, (CLIENT.to_owned(), message.to_owned()));
}

#[tokio::test]
async fn a_family_means_its_latest_active_revision() {
    let api = Api::start().await;
    for _ in 0..3 {
        api.definition("web").await;
    }
    let revision = |reply: Value| reply["taskDefinition"]["revision"].clone();
    assert_eq!(revision(api.ok("DescribeTaskDefinition", json!({"taskDefinition": "web"})).await), 3);
    let gone = api.ok("DeregisterTaskDefinition", json!({"taskDefinition": "web:3"})).await;
    assert_eq!(gone["taskDefinition"]["status"], "INACTIVE");
    assert!(gone["taskDefinition"]["deregisteredAt"].is_f64());
    assert_eq!(revision(api.ok("DescribeTaskDefinition", json!({"taskDefinition": "web"})).await), 2);
    let arn = text(&gone["taskDefinition"]["taskDefinitionArn"]);
    assert_eq!(revision(api.ok("DescribeTaskDefinition", json!({"taskDefinition": arn})).await), 3);
    for (operation, named, code, message) in [
        ("DescribeTaskDefinition", "web:9", CLIENT, "Unable to describe task definition."),
        ("DescribeTaskDefinition", "other", CLIENT, "Unable to describe task definition."),
        ("DeregisterTaskDefinition", "web", CLIENT, "Revision is missing."),
        (
            "DeregisterTaskDefinition",
            "web:foo",
            "InvalidParameterException",
            "Invalid revision number. Number: foo",
        ),
    ] {
        let refused = api.refused(operation, json!({"taskDefinition": named})).await;
        assert_eq!(refused, (code.to_owned(), message.to_owned()));
    }
}

#[tokio::test]
async fn a_deleted_revision_is_never_given_out_again() {
    let api = Api::start().await;
    let arn = api.definition("web").await;
    let delete = || api.ok("DeleteTaskDefinitions", json!({"taskDefinitions": [arn.clone(), "x", "web:7"]}));
    let reasons = |reply: &Value| {
        reply["failures"].as_array().unwrap().iter().map(|f| text(&f["reason"])).collect::<Vec<_>>()
    };
    let early = delete().await;
    assert!(reasons(&early)[0].contains("still in ACTIVE status"), "{early}");
    assert!(
        reasons(&early)[1].contains("identifier is invalid") && reasons(&early)[2].contains("does not exist")
    );
    api.ok("DeregisterTaskDefinition", json!({"taskDefinition": "web:1"})).await;
    assert_eq!(delete().await["taskDefinitions"][0]["status"], "DELETE_IN_PROGRESS");
    api.refused("DescribeTaskDefinition", json!({"taskDefinition": "web:1"})).await;
    assert!(api.definition("web").await.ends_with(":2"));
}

#[tokio::test]
async fn lists_follow_family_and_number_and_come_in_pages() {
    let api = Api::start().await;
    for _ in 0..11 {
        api.definition("web").await;
    }
    api.definition("web-2").await;
    api.ok("DeregisterTaskDefinition", json!({"taskDefinition": "web:4"})).await;
    let numbers = |reply: &Value| -> Vec<String> {
        let arns = reply["taskDefinitionArns"].as_array().unwrap().iter().map(text);
        arns.map(|arn| arn.rsplit('/').next().unwrap().to_owned()).collect()
    };
    let query =
        |token: Value| json!({"familyPrefix": "web", "sort": "DESC", "maxResults": 4, "nextToken": token});
    let first = api.ok("ListTaskDefinitions", query(json!(null))).await;
    assert_eq!(numbers(&first), ["web:11", "web:10", "web:9", "web:8"]);
    let second = api.ok("ListTaskDefinitions", query(first["nextToken"].clone())).await;
    assert_eq!(numbers(&second), ["web:7", "web:6", "web:5", "web:3"]);
    let token = json!({"nextToken": first["nextToken"], "maxResults": 4});
    assert_eq!(api.refused("ListTaskDefinitions", token).await.0, "InvalidParameterException");
    let families = |input: Value| api.ok("ListTaskDefinitionFamilies", input);
    assert_eq!(families(json!({"familyPrefix": "we"})).await["families"], json!(["web", "web-2"]));
    api.ok("DeregisterTaskDefinition", json!({"taskDefinition": "web-2:1"})).await;
    assert_eq!(families(json!({"status": "ACTIVE"})).await["families"], json!(["web"]));
    assert_eq!(families(json!({"status": "INACTIVE"})).await["families"], json!(["web-2"]));
}
