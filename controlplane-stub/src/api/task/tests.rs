//! Tests of tasks. No agent is connected here, so nothing is placed; tasks are recorded as placed.

use berth_core::units::Timestamp;
use serde_json::{Value, json};

use crate::api::testing::{Api, text};
use crate::model::{NetworkBinding, StopCause, TaskStatus};

const INVALID: &str = "InvalidParameterException";

#[tokio::test]
async fn a_launch_that_cannot_be_is_refused_in_the_words_of_ecs() {
    let api = Api::start().await;
    api.definition("web").await;
    let body = json!({"family": "vpc", "networkMode": "awsvpc", "containerDefinitions": [{"name": "a", "image": "i", "memory": 64}]});
    api.ok("RegisterTaskDefinition", body).await;
    api.definition("old").await;
    api.ok("DeregisterTaskDefinition", json!({"taskDefinition": "old:1"})).await;
    let network = json!({"awsvpcConfiguration": {"subnets": ["subnet-1"]}});
    for (body, code, message) in [
        (json!({}), INVALID, "TaskDefinition can not be blank."),
        (json!({"taskDefinition": "none"}), "ClientException", "TaskDefinition not found."),
        (json!({"taskDefinition": "old:1"}), INVALID, "TaskDefinition is inactive"),
        (json!({"taskDefinition": "web", "cluster": "x"}), "ClusterNotFoundException", "Cluster not found."),
        (json!({"taskDefinition": "web", "count": 0}), INVALID, "count should be between 1 and 10."),
        (
            json!({"taskDefinition": "web", "count": 11, "cluster": "x"}),
            INVALID,
            "count should be between 1 and 10.",
        ),
        (
            json!({"taskDefinition": "web", "launchType": "MOON"}),
            INVALID,
            "launch type should be one of [EC2,FARGATE,EXTERNAL]",
        ),
        (
            json!({"taskDefinition": "web", "launchType": "FARGATE"}),
            INVALID,
            "Task definition does not support launch_type FARGATE.",
        ),
        (
            json!({"taskDefinition": "web", "networkConfiguration": network}),
            INVALID,
            "Network Configuration is not valid for the given networkMode of this task definition.",
        ),
        (
            json!({"taskDefinition": "vpc"}),
            INVALID,
            "Network Configuration must be provided when networkMode 'awsvpc' is specified.",
        ),
        (
            json!({"taskDefinition": "vpc", "networkConfiguration": {"awsvpcConfiguration": {"subnets": []}}}),
            INVALID,
            "subnets can not be empty.",
        ),
        (
            json!({"taskDefinition": "web", "overrides": {"containerOverrides": [{"name": "x"}]}}),
            INVALID,
            "Override for container named x is not a container in the TaskDefinition.",
        ),
        (
            json!({"taskDefinition": "web", "placementConstraints": [{"type": "distinctInstance", "expression": "x"}]}),
            INVALID,
            "distinctInstance expression should not be specified.",
        ),
        (json!({"taskDefinition": "web"}), INVALID, "No Container Instances were found in your cluster."),
    ] {
        assert_eq!(
            api.refused("RunTask", body.clone()).await,
            (code.to_owned(), message.to_owned()),
            "{body}"
        );
    }
}

/// Parameters of a launch of `web` that break a rule, and the words in which it is reported.
fn parameter_refusals() -> Vec<(Value, &'static str)> {
    const TOKEN: &str = "clientToken should have at most 64 printable ASCII characters.";
    const BOTH: &str = "Specifying both a launch type and capacity provider strategy is not supported. Remove one and try again.";
    let strategy = json!([{"capacityProvider": "x"}]);
    let member_of = |expression: &str| json!({"type": "memberOf", "expression": expression});
    vec![
        (json!({"count": -1}), "count should be between 1 and 10."),
        (json!({"group": "g".repeat(256)}), "group should not be longer than 255 characters."),
        (json!({"startedBy": "s".repeat(129)}), "startedBy should not be longer than 128 characters."),
        (json!({"propagateTags": "SERVICE"}), "propagateTags should be one of [TASK_DEFINITION, NONE]"),
        (json!({"clientToken": "t".repeat(65)}), TOKEN),
        (json!({"clientToken": "a b"}), TOKEN),
        (json!({"clientToken": "é"}), TOKEN),
        (json!({"launchType": "EC2", "capacityProviderStrategy": strategy}), BOTH),
        (
            json!({"capacityProviderStrategy": strategy}),
            "The specified capacity provider was not found. Specify a valid capacity provider and try again.",
        ),
        (
            json!({"placementConstraints": vec![json!({"type": "distinctInstance"}); 10]}),
            "Too many placement constraints: at most 10.",
        ),
        (
            json!({"placementConstraints": [member_of("")]}),
            "memberOf expression should not be null or empty.",
        ),
        (
            json!({"placementConstraints": [{"type": "near"}]}),
            "constraint.type should be one of [distinctInstance, memberOf]",
        ),
        (
            json!({"placementStrategy": vec![json!({"type": "random"}); 6]}),
            "Too many placement strategies: at most 5.",
        ),
        (
            json!({"placementStrategy": [{"type": "pack"}]}),
            "strategy.type should be one of [random, spread, binpack]",
        ),
        (
            json!({"overrides": {"containerOverrides": [{"name": "app", "memory": 5}]}}),
            "Invalid 'memory' setting for container 'app'.",
        ),
        (json!({"overrides": {"cpu": "127"}}), "Invalid 'cpu' setting for task."),
    ]
}

#[tokio::test]
async fn parameters_of_a_launch_have_bounds() {
    let api = Api::start().await;
    let container = json!({"name": "app", "image": "busybox", "memory": 64});
    let constraint = json!({"type": "memberOf", "expression": "attribute:stack exists"});
    let body =
        json!({"family": "web", "containerDefinitions": [container], "placementConstraints": [constraint]});
    api.ok("RegisterTaskDefinition", body).await;
    let launch = |parameters: Value| {
        let mut body = json!({"taskDefinition": "web"});
        body.as_object_mut().unwrap().extend(parameters.as_object().unwrap().clone());
        body
    };
    for (parameters, message) in parameter_refusals() {
        let refused = api.refused("RunTask", launch(parameters.clone())).await;
        assert_eq!(refused, (INVALID.to_owned(), message.to_owned()), "{parameters}");
    }
    // As an agent is not connected, what is sound fails at the instance.
    api.instance().await;
    for parameters in [
        json!({"count": 10}),
        json!({"group": "g".repeat(255), "startedBy": "s".repeat(128), "clientToken": "~".repeat(64)}),
        json!({"placementConstraints": vec![json!({"type": "distinctInstance"}); 9]}),
        json!({"placementStrategy": vec![json!({"type": "random"}); 5]}),
        json!({"overrides": {"cpu": "128", "containerOverrides": [{"name": "app", "memory": 6}]}}),
    ] {
        let reply = api.ok("RunTask", launch(parameters.clone())).await;
        assert_eq!(reply["failures"][0]["reason"], "AGENT", "{parameters}");
    }
    let many = json!({"taskDefinition": "web", "containerInstances": vec!["f".repeat(32); 11]});
    let refused = api.refused("StartTask", many).await;
    assert_eq!(refused, (INVALID.to_owned(), "containerInstances can have at most 10 items.".to_owned()));
}

#[tokio::test]
async fn the_interface_of_a_task_is_asked_for_within_bounds() {
    let api = Api::start().await;
    let container = json!({"name": "app", "image": "busybox", "memory": 64});
    let body = json!({"family": "vpc", "networkMode": "awsvpc", "containerDefinitions": [container]});
    api.ok("RegisterTaskDefinition", body).await;
    for (network, message) in [
        (json!({"subnets": vec!["subnet-1"; 17]}), "subnets can have at most 16 items."),
        (
            json!({"subnets": ["subnet-1"], "securityGroups": vec!["sg-1"; 6]}),
            "securityGroups can have at most 5 items.",
        ),
        (
            json!({"subnets": ["subnet-1"], "assignPublicIp": "ENABLED"}),
            "Assign public IP is not supported for this launch type.",
        ),
    ] {
        let body = json!({"taskDefinition": "vpc", "networkConfiguration": {"awsvpcConfiguration": network}});
        assert_eq!(api.refused("RunTask", body).await, (INVALID.to_owned(), message.to_owned()));
    }
}

#[tokio::test]
async fn instances_that_cannot_take_a_task_are_failures() {
    let api = Api::start().await;
    api.definition("web").await;
    let arn = api.instance().await;
    let run = api.ok("RunTask", json!({"taskDefinition": "web"})).await;
    assert_eq!(run, json!({"tasks": [], "failures": [{"arn": arn, "reason": "AGENT"}]}));
    let missing = "f".repeat(32);
    let start = api.ok("StartTask", json!({"taskDefinition": "web", "containerInstances": [missing]})).await;
    assert_eq!(start["failures"][0]["reason"], "MISSING");
    let refused = api.refused("StartTask", json!({"taskDefinition": "web"})).await;
    assert_eq!(refused.1, "Container Instances cannot be empty.");
}

#[tokio::test]
async fn a_running_task_is_described_as_ecs_describes_it() {
    let api = Api::start().await;
    let definition = api.definition("web").await;
    let instance = api.instance().await;
    let arn = api
        .placed(&definition, &instance, |task| {
            task.started_by = Some("me".to_owned());
            task.created_at = Timestamp(1_500);
            task.observed.status = TaskStatus::Running;
            task.observed.started_at = Some(Timestamp(2_250));
            let container = &mut task.observed.containers[0];
            container.status = TaskStatus::Running;
            container.runtime_id = Some("abc".to_owned());
            container.network_bindings = vec![
                NetworkBinding {
                    bind_ip: "0.0.0.0".to_owned(),
                    container_port: 80,
                    container_port_last: None,
                    host_port: 32_768,
                    protocol: "tcp".to_owned(),
                },
                NetworkBinding {
                    bind_ip: "0.0.0.0".to_owned(),
                    container_port: 90,
                    container_port_last: Some(92),
                    host_port: 40_000,
                    protocol: "udp".to_owned(),
                },
            ];
        })
        .await;
    let id = arn.rsplit('/').next().unwrap();
    let shown = api.ok("DescribeTasks", json!({"tasks": [id]})).await;
    let task = &shown["tasks"][0];
    for (member, value) in [
        ("taskArn", json!(arn)),
        ("clusterArn", json!("arn:aws:ecs:us-east-1:123456789012:cluster/default")),
        ("taskDefinitionArn", json!(definition)),
        ("containerInstanceArn", json!(instance)),
        ("group", json!("family:web")),
        ("launchType", json!("EC2")),
        ("lastStatus", json!("RUNNING")),
        ("desiredStatus", json!("RUNNING")),
        ("healthStatus", json!("UNKNOWN")),
        ("cpu", json!("10")),
        ("memory", json!("64")),
        ("overrides", json!({"containerOverrides": [{"name": "app"}], "inferenceAcceleratorOverrides": []})),
        ("attachments", json!([])),
        ("tags", json!([])),
        ("startedBy", json!("me")),
        ("createdAt", json!(1.5)),
        ("startedAt", json!(2.25)),
        ("availabilityZone", json!("us-east-1a")),
        ("connectivity", json!("DISCONNECTED")),
        ("version", json!(1)),
    ] {
        assert_eq!(task[member], value, "{member}");
    }
    let container = &task["containers"][0];
    assert_eq!(
        container["networkBindings"][0],
        json!({"bindIP": "0.0.0.0", "containerPort": 80, "hostPort": 32768, "protocol": "tcp"})
    );
    let range = json!({"bindIP": "0.0.0.0", "containerPortRange": "90-92", "hostPortRange": "40000-40002", "protocol": "udp"});
    assert_eq!(container["networkBindings"][1], range);
    assert_eq!(
        (&container["cpu"], &container["memory"], &container["lastStatus"]),
        (&json!("10"), &json!("64"), &json!("RUNNING"))
    );
    assert!(text(&container["containerArn"]).contains(&format!(":container/default/{id}/")));
    assert!(task.get("stoppedReason").is_none() && container.get("exitCode").is_none());
}

#[tokio::test]
async fn a_waiting_task_says_what_it_waits_for() {
    let api = Api::start().await;
    let definition = api.definition("web").await;
    let instance = api.instance().await;
    let waiting = "Waiting for resources: memory, 412 MiB short";
    let arn = api.placed(&definition, &instance, |task| task.observed.waiting_for = waiting.to_owned()).await;
    let shown = api.ok("DescribeTasks", json!({"tasks": [arn]})).await;
    assert_eq!(shown["tasks"][0]["containers"][0]["reason"], waiting);
}

#[tokio::test]
async fn the_health_of_a_task_is_that_of_its_checked_essential_containers() {
    let api = Api::start().await;
    let check = json!({"command": ["CMD", "true"]});
    let containers = json!([
        {"name": "a", "image": "i", "memory": 64, "healthCheck": check},
        {"name": "b", "image": "i", "memory": 64, "healthCheck": check},
        {"name": "c", "image": "i", "memory": 64, "essential": false, "healthCheck": check}
    ]);
    api.ok("RegisterTaskDefinition", json!({"family": "web", "containerDefinitions": containers})).await;
    let instance = api.instance().await;
    for (healths, expected) in [
        (["HEALTHY", "HEALTHY", "UNHEALTHY"], "HEALTHY"),
        (["HEALTHY", "UNKNOWN", "HEALTHY"], "UNKNOWN"),
        (["UNKNOWN", "UNHEALTHY", "HEALTHY"], "UNHEALTHY"),
    ] {
        let arn = api
            .placed("web", &instance, |task| {
                for (container, health) in task.observed.containers.iter_mut().zip(healths) {
                    container.health = Some(health.to_owned());
                }
            })
            .await;
        let shown = api.ok("DescribeTasks", json!({"tasks": [arn]})).await;
        assert_eq!(shown["tasks"][0]["healthStatus"], expected, "{healths:?}");
    }
}

#[tokio::test]
async fn stopping_gives_the_reason_once_and_is_idempotent() {
    let api = Api::start().await;
    let definition = api.definition("web").await;
    let instance = api.instance().await;
    let arn = api.placed(&definition, &instance, |_| {}).await;
    let stop = |reason: Value| api.ok("StopTask", json!({"task": arn, "reason": reason}));
    let first = stop(json!("enough")).await["task"].clone();
    assert_eq!((&first["desiredStatus"], &first["lastStatus"]), (&json!("STOPPED"), &json!("PENDING")));
    assert_eq!(
        (&first["stopCode"], &first["stoppedReason"], &first["version"]),
        (&json!("UserInitiated"), &json!("enough"), &json!(2))
    );
    assert!(first["stoppingAt"].is_f64());
    assert_eq!(stop(json!("other")).await["task"]["stoppedReason"], "enough");
    let other = api.placed(&definition, &instance, |_| {}).await;
    let shown = api.ok("StopTask", json!({"task": other})).await;
    assert_eq!(shown["task"]["stoppedReason"], "Task stopped by user");
    for (named, message) in [
        ("f".repeat(32), "The referenced task was not found."),
        ("abc".to_owned(), "taskId length should be one of [32,36]"),
        (
            arn.replace("task/default", "task/blue"),
            "Invalid identifier: Identifier is for cluster blue. Your cluster is default",
        ),
    ] {
        assert_eq!(
            api.refused("StopTask", json!({"task": named})).await,
            (INVALID.to_owned(), message.to_owned())
        );
    }
}

#[tokio::test]
async fn lists_are_filtered_by_what_is_desired() {
    let api = Api::start().await;
    let (web, batch) = (api.definition("web").await, api.definition("batch").await);
    let (first, second) = (api.instance().await, api.instance().await);
    let a = api.placed(&web, &first, |task| task.started_by = Some("me".to_owned())).await;
    let b = api.placed(&batch, &second, |_| {}).await;
    let ended = StopCause {
        code: "EssentialContainerExited".to_owned(),
        reason: "Essential container in task exited".to_owned(),
    };
    let c = api
        .placed(&web, &first, |task| {
            task.observed.status = TaskStatus::Stopped;
            task.observed.stop = Some(ended);
        })
        .await;
    let list = |input: Value| api.ok("ListTasks", input);
    let mut all = [a.clone(), b.clone()];
    all.sort();
    assert_eq!(list(json!({})).await["taskArns"], json!(all));
    for (filter, expected) in [
        (json!({"desiredStatus": "STOPPED"}), json!([c])),
        (json!({"desiredStatus": "PENDING"}), json!([])),
        (json!({"family": "batch"}), json!([b])),
        (json!({"startedBy": "me"}), json!([a])),
        (json!({"containerInstance": second}), json!([b])),
        (json!({"launchType": "FARGATE"}), json!([])),
    ] {
        assert_eq!(list(filter.clone()).await["taskArns"], expected, "{filter}");
    }
    let first_page = list(json!({"maxResults": 1})).await;
    let rest = list(json!({"maxResults": 1, "nextToken": first_page["nextToken"]})).await;
    assert_eq!(json!([first_page["taskArns"][0], rest["taskArns"][0]]), json!(all));
    assert!(rest.get("nextToken").is_none());
    let stale = json!({"nextToken": first_page["nextToken"], "family": "web"});
    assert_eq!(api.refused("ListTasks", stale).await.0, INVALID);
    assert_eq!(api.refused("ListTasks", json!({"serviceName": "web"})).await.0, "ServiceNotFoundException");
    assert_eq!(api.refused("DescribeTasks", json!({})).await.1, "Tasks cannot be empty.");
    let missing = api.ok("DescribeTasks", json!({"tasks": ["f".repeat(32)]})).await;
    assert_eq!(missing["failures"][0]["reason"], "MISSING");
}
