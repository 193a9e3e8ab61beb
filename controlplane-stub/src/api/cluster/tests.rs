//! Tests of clusters and their tags.

use serde_json::json;

use crate::api::testing::{Api, text};
use crate::model::TaskStatus;

#[tokio::test]
async fn creating_again_is_no_change_unless_the_arguments_differ() {
    let api = Api::start().await;
    let body =
        json!({"clusterName": "blue", "settings": [{"name": "containerInsights", "value": "enabled"}]});
    let first = api.ok("CreateCluster", body.clone()).await;
    assert_eq!(first["cluster"]["settings"], json!([{"name": "containerInsights", "value": "enabled"}]));
    assert_eq!(api.ok("CreateCluster", body).await, first);
    let other =
        json!({"clusterName": "blue", "settings": [{"name": "containerInsights", "value": "disabled"}]});
    let refused = api.refused("CreateCluster", other).await;
    assert!(refused.1.starts_with("Arguments on this idempotent request are inconsistent"), "{refused:?}");
    assert_eq!(
        api.refused("CreateCluster", json!({"clusterName": "a b"})).await.0,
        "InvalidParameterException"
    );
}

#[tokio::test]
async fn a_deleted_cluster_is_described_but_not_listed_and_comes_back() {
    let api = Api::start().await;
    api.ok("CreateCluster", json!({"clusterName": "blue"})).await;
    assert_eq!(api.ok("DeleteCluster", json!({"cluster": "blue"})).await["cluster"]["status"], "INACTIVE");
    let described = api.ok("DescribeClusters", json!({"clusters": ["blue", "red"]})).await;
    assert_eq!(described["clusters"][0]["status"], "INACTIVE");
    let missing = "arn:aws:ecs:us-east-1:123456789012:cluster/red";
    assert_eq!(described["failures"], json!([{"arn": missing, "reason": "MISSING"}]));
    assert_eq!(api.ok("ListClusters", json!({})).await["clusterArns"].as_array().unwrap().len(), 1);
    let inactive = ("ClusterNotFoundException".to_owned(), "The referenced cluster was inactive.".to_owned());
    assert_eq!(api.refused("ListTasks", json!({"cluster": "blue"})).await, inactive);
    let unknown = ("ClusterNotFoundException".to_owned(), "Cluster not found.".to_owned());
    assert_eq!(api.refused("ListTasks", json!({"cluster": missing})).await, unknown);
    assert_eq!(api.ok("CreateCluster", json!({"clusterName": "blue"})).await["cluster"]["status"], "ACTIVE");
}

#[tokio::test]
async fn a_cluster_that_is_in_use_cannot_be_deleted() {
    let api = Api::start().await;
    let instance = api.instance().await;
    let delete = json!({"cluster": "default"});
    assert_eq!(
        api.refused("DeleteCluster", delete.clone()).await.0,
        "ClusterContainsContainerInstancesException"
    );
    let definition = api.definition("web").await;
    api.placed(&definition, &instance, |task| task.observed.status = TaskStatus::Running).await;
    let counts = api.ok("DescribeClusters", json!({"include": ["STATISTICS", "SETTINGS"]})).await;
    let cluster = &counts["clusters"][0];
    assert_eq!(
        (&cluster["registeredContainerInstancesCount"], &cluster["runningTasksCount"]),
        (&json!(1), &json!(1))
    );
    assert_eq!(cluster["statistics"][0], json!({"name": "runningEC2TasksCount", "value": "1"}));
    let body = json!({"containerInstance": instance, "force": true});
    api.ok("DeregisterContainerInstance", body).await;
    assert_eq!(api.ok("DeleteCluster", delete).await["cluster"]["status"], "INACTIVE");
}

#[tokio::test]
async fn tags_are_put_on_and_taken_off_by_arn() {
    let api = Api::start().await;
    let definition = api.definition("web").await;
    let instance = api.instance().await;
    let task = api.placed(&definition, &instance, |_| {}).await;
    let cluster = text(&api.ok("ListClusters", json!({})).await["clusterArns"][0]);
    for arn in [definition, instance, task, cluster] {
        let tags = json!([{"key": "a", "value": "1"}, {"key": "b", "value": "2"}]);
        api.ok("TagResource", json!({"resourceArn": arn, "tags": tags})).await;
        api.ok("UntagResource", json!({"resourceArn": arn, "tagKeys": ["b", "c"]})).await;
        let left = api.ok("ListTagsForResource", json!({"resourceArn": arn})).await;
        assert_eq!(left, json!({"tags": [{"key": "a", "value": "1"}]}), "{arn}");
    }
    for (arn, tag, code) in [
        ("arn:aws:ecs:us-east-1:123456789012:cluster/red", "k", "ResourceNotFoundException"),
        ("default", "k", "InvalidParameterException"),
        ("arn:aws:ecs:us-east-1:123456789012:cluster/default", "aws:x", "InvalidParameterException"),
        ("arn:aws:ecs:us-east-1:123456789012:cluster/default", "k\u{7}", "InvalidParameterException"),
    ] {
        let body = json!({"resourceArn": arn, "tags": [{"key": tag, "value": "v"}]});
        assert_eq!(api.refused("TagResource", body).await.0, code, "{arn} {tag}");
    }
    let many: Vec<_> = (0..51).map(|n| json!({"key": format!("k{n}"), "value": ""})).collect();
    assert_eq!(
        api.refused("CreateCluster", json!({"clusterName": "x", "tags": many})).await.0,
        "InvalidParameterException"
    );
}

#[tokio::test]
async fn services_and_settings_answer_truthfully() {
    let api = Api::start().await;
    assert_eq!(api.ok("ListServices", json!({})).await, json!({"serviceArns": []}));
    let described = api.ok("DescribeServices", json!({"services": ["web"]})).await;
    let arn = "arn:aws:ecs:us-east-1:123456789012:service/default/web";
    assert_eq!(described, json!({"services": [], "failures": [{"arn": arn, "reason": "MISSING"}]}));
    let effective = json!({"effectiveSettings": true, "name": "taskLongArnFormat"});
    assert_eq!(api.ok("ListAccountSettings", effective).await["settings"][0]["value"], "enabled");
    assert_eq!(api.ok("ListAccountSettings", json!({})).await["settings"], json!([]));
    api.ok("PutAccountSetting", json!({"name": "containerInsights", "value": "enabled"})).await;
    assert_eq!(api.ok("ListAccountSettings", json!({})).await["settings"][0]["value"], "enabled");
    let (code, message) = api.refused("PutAccountSetting", json!({"name": "x", "value": "y"})).await;
    assert_eq!(code, "InvalidParameterException");
    assert!(message.starts_with("x should be one of [serviceLongArnFormat,"), "{message}");
}
