//! Tests of container instances and their attributes.

use serde_json::{Value, json};

use crate::api::testing::{Api, registration, text};
use crate::model::TaskStatus;

#[tokio::test]
async fn a_registration_is_echoed_and_described() {
    let api = Api::start().await;
    let reply = api.ok("RegisterContainerInstance", registration()).await;
    let shown = &reply["containerInstance"];
    let attributes = shown["attributes"].as_array().unwrap();
    for sent in registration()["attributes"].as_array().unwrap() {
        assert!(attributes.contains(sent), "{sent} is not in {attributes:?}");
    }
    assert!(attributes.contains(&json!({"name": "ecs.availability-zone", "value": "us-east-1a"})));
    assert_eq!(
        (&shown["status"], &shown["agentConnected"], &shown["version"]),
        (&json!("ACTIVE"), &json!(false), &json!(1))
    );
    let cpu =
        json!({"name": "CPU", "type": "INTEGER", "doubleValue": 0.0, "longValue": 0, "integerValue": 4096});
    assert_eq!(shown["registeredResources"][0], cpu);
    assert_eq!(shown["remainingResources"][2]["stringSetValue"], json!(["22"]));
    let arn = text(&shown["containerInstanceArn"]);
    let id = arn.rsplit('/').next().unwrap();
    let described =
        api.ok("DescribeContainerInstances", json!({"containerInstances": [id, "f".repeat(32)]})).await;
    assert_eq!(described["containerInstances"][0]["containerInstanceArn"], arn);
    assert_eq!(described["failures"][0]["reason"], "MISSING");
}

#[tokio::test]
async fn what_tasks_need_is_taken_from_what_remains() {
    let api = Api::start().await;
    let instance = api.instance().await;
    let container = json!({"name": "app", "image": "i", "memoryReservation": 100, "cpu": 256, "portMappings": [
        {"containerPort": 80, "hostPort": 8080}, {"containerPort": 53, "hostPort": 53, "protocol": "udp"}]});
    api.ok("RegisterTaskDefinition", json!({"family": "web", "containerDefinitions": [container]})).await;
    api.placed("web", &instance, |task| task.observed.status = TaskStatus::Running).await;
    api.placed("web", &instance, |task| task.observed.status = TaskStatus::Stopped).await;
    let shown = api.ok("DescribeContainerInstances", json!({"containerInstances": [instance]})).await;
    let shown = &shown["containerInstances"][0];
    let remaining: Vec<&Value> = shown["remainingResources"].as_array().unwrap().iter().collect();
    assert_eq!((&remaining[0]["integerValue"], &remaining[1]["integerValue"]), (&json!(3840), &json!(3996)));
    assert_eq!(remaining[2]["stringSetValue"], json!(["22", "8080"]));
    assert_eq!(remaining[3]["stringSetValue"], json!(["53"]));
    assert_eq!((&shown["runningTasksCount"], &shown["pendingTasksCount"]), (&json!(1), &json!(0)));
}

#[tokio::test]
async fn gpus_are_shown_by_their_ids_as_far_as_it_is_known_who_has_which() {
    let api = Api::start().await;
    let mut host = registration();
    host["platformDevices"] = json!([{"id": "GPU-1", "type": "GPU"}, {"id": "GPU-2", "type": "GPU"}]);
    let registered = api.ok("RegisterContainerInstance", host).await["containerInstance"].clone();
    let arn = text(&registered["containerInstanceArn"]);
    let set = |ids: &[&str]| json!({"name": "GPU", "type": "STRINGSET", "doubleValue": 0.0, "longValue": 0, "integerValue": 0, "stringSetValue": ids});
    assert_eq!(registered["registeredResources"][4], set(&["GPU-1", "GPU-2"]));
    let gpu = json!([{"type": "GPU", "value": "1"}]);
    let container = json!({"name": "app", "image": "i", "memory": 64, "resourceRequirements": gpu});
    api.ok("RegisterTaskDefinition", json!({"family": "train", "containerDefinitions": [container]})).await;
    let remaining = || async {
        let shown = api.ok("DescribeContainerInstances", json!({"containerInstances": [arn]})).await;
        shown["containerInstances"][0]["remainingResources"][4].clone()
    };
    let task = api
        .placed("train", &arn, |task| task.observed.containers[0].gpu_ids = vec!["GPU-1".to_owned()])
        .await;
    assert_eq!(remaining().await, set(&["GPU-2"]));
    // One that is gone has none, and one that has not told yet which it has counts.
    api.placed("train", &arn, |task| {
        task.observed.status = TaskStatus::Stopped;
        task.observed.containers[0].gpu_ids = vec!["GPU-2".to_owned()];
    })
    .await;
    assert_eq!(remaining().await, set(&["GPU-2"]));
    api.placed("train", &arn, |_| {}).await;
    assert_eq!(remaining().await, set(&[]));
    let described = api.ok("DescribeTasks", json!({"tasks": [task]})).await;
    assert_eq!(described["tasks"][0]["containers"][0]["gpuIds"], json!(["GPU-1"]));
    // Where only their number is known, that is what is shown.
    let mut host = registration();
    host["totalResources"].as_array_mut().unwrap().push(json!({"name": "GPU", "integerValue": 2}));
    let shown = api.ok("RegisterContainerInstance", host).await["containerInstance"].clone();
    assert_eq!(
        (&shown["remainingResources"][4]["type"], &shown["remainingResources"][4]["integerValue"]),
        (&json!("INTEGER"), &json!(2))
    );
}

#[tokio::test]
async fn registering_again_keeps_the_arn_and_the_custom_attributes() {
    let api = Api::start().await;
    let arn = api.instance().await;
    let rack = json!({"name": "rack", "value": "7", "targetId": arn});
    api.ok("PutAttributes", json!({"attributes": [rack]})).await;
    let mut again = registration();
    again["containerInstanceArn"] = json!(arn);
    again["instanceIdentityDocument"] =
        json!(r#"{"instanceId": "i-1", "instanceType": "c5.large", "availabilityZone": "us-east-1b"}"#);
    let shown = api.ok("RegisterContainerInstance", again.clone()).await["containerInstance"].clone();
    assert_eq!(
        (&shown["containerInstanceArn"], &shown["ec2InstanceId"], &shown["version"]),
        (&json!(arn), &json!("i-1"), &json!(2))
    );
    let attributes = shown["attributes"].as_array().unwrap();
    assert!(attributes.contains(&json!({"name": "rack", "value": "7"})));
    again["instanceIdentityDocument"] = json!(r#"{"instanceType": "c5.xlarge"}"#);
    let refused = api.refused("RegisterContainerInstance", again).await;
    assert_eq!(refused.1, "Container instance type changes are not supported.");
    let elsewhere = json!({"cluster": "nowhere", "totalResources": registration()["totalResources"]});
    assert_eq!(api.refused("RegisterContainerInstance", elsewhere).await.1, "Cluster not found.");
    assert_eq!(api.refused("RegisterContainerInstance", json!({})).await.0, "InvalidParameterException");
}

#[tokio::test]
async fn draining_and_deregistering_follow_the_rules() {
    let api = Api::start().await;
    let (arn, other) = (api.instance().await, api.instance().await);
    let definition = api.definition("web").await;
    api.placed(&definition, &arn, |_| {}).await;
    let drain = json!({"containerInstances": [arn], "status": "DRAINING"});
    assert_eq!(
        api.ok("UpdateContainerInstancesState", drain).await["containerInstances"][0]["status"],
        "DRAINING"
    );
    let list = |input: Value| api.ok("ListContainerInstances", input);
    assert_eq!(list(json!({"status": "DRAINING"})).await["containerInstanceArns"], json!([arn]));
    assert_eq!(list(json!({})).await["containerInstanceArns"].as_array().unwrap().len(), 2);
    let body = json!({"containerInstances": [arn], "status": "GONE"});
    let refused = api.refused("UpdateContainerInstancesState", body).await;
    assert_eq!(refused.1, "Container instance status should be one of [ACTIVE, DRAINING]");
    let refused = api.refused("DeregisterContainerInstance", json!({"containerInstance": arn})).await;
    assert_eq!(
        refused,
        ("InvalidParameterException".to_owned(), "Found running tasks on the instance.".to_owned())
    );
    let forced = json!({"containerInstance": arn, "force": true});
    assert_eq!(
        api.ok("DeregisterContainerInstance", forced).await["containerInstance"]["status"],
        "INACTIVE"
    );
    assert_eq!(list(json!({})).await["containerInstanceArns"], json!([other]));
    assert_eq!(
        api.refused("DescribeContainerInstances", json!({})).await.1,
        "Container Instances cannot be empty."
    );
}

#[tokio::test]
async fn instances_are_found_by_query() {
    let api = Api::start().await;
    let (first, second) = (api.instance().await, api.instance().await);
    let rack = json!({"name": "rack", "value": "7", "targetId": second, "targetType": "container-instance"});
    api.ok("PutAttributes", json!({"attributes": [rack]})).await;
    let list = |filter: &str| api.ok("ListContainerInstances", json!({"filter": filter}));
    assert_eq!(list("attribute:rack == 7").await["containerInstanceArns"], json!([second]));
    assert_eq!(list("attribute:rack !exists").await["containerInstanceArns"], json!([first]));
    let refused = api.refused("ListContainerInstances", json!({"filter": "attribute:rack ="})).await;
    assert_eq!(refused.0, "InvalidParameterException");
}

#[tokio::test]
async fn attributes_are_put_listed_and_deleted() {
    let api = Api::start().await;
    let arn = api.instance().await;
    let id = arn.rsplit('/').next().unwrap();
    let put = |attribute: Value| api.send("PutAttributes", json!({"attributes": [attribute]}));
    let shown =
        put(json!({"name": "rack", "value": "7", "targetId": id, "targetType": "container-instance"}))
            .await
            .unwrap();
    let rack = json!({"name": "rack", "value": "7", "targetId": arn, "targetType": "container-instance"});
    assert_eq!(shown, json!({"attributes": [rack]}));
    let list = |input: Value| api.ok("ListAttributes", input);
    let named = json!({"targetType": "container-instance", "attributeName": "rack"});
    assert_eq!(list(named.clone()).await, json!({"attributes": [rack]}));
    for (attribute, code) in [
        (json!({"name": "rack", "targetId": id}), "InvalidParameterException"),
        (json!({"name": "ra ck", "targetId": arn}), "InvalidParameterException"),
        (json!({"name": "rack", "value": " 7", "targetId": arn}), "InvalidParameterException"),
        (
            json!({"name": "rack", "targetId": "f".repeat(32), "targetType": "container-instance"}),
            "TargetNotFoundException",
        ),
    ] {
        assert_eq!(put(attribute).await.unwrap_err().code, code);
    }
    api.ok("DeleteAttributes", json!({"attributes": [{"name": "rack", "targetId": arn}]})).await;
    assert_eq!(list(named).await, json!({"attributes": []}));
    let many = |from: u32| {
        (from..from + 9).map(|n| json!({"name": format!("a{n}"), "targetId": arn})).collect::<Vec<_>>()
    };
    api.ok("PutAttributes", json!({"attributes": many(0)})).await;
    assert_eq!(
        api.refused("PutAttributes", json!({"attributes": many(9)})).await.0,
        "AttributeLimitExceededException"
    );
}

#[tokio::test]
async fn the_poll_endpoint_is_where_the_caller_came_in() {
    let api = Api::start().await;
    assert_eq!(api.ok("DiscoverPollEndpoint", json!({})).await["endpoint"], "http://localhost:8080/");
}
