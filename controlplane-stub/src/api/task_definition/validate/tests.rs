//! Every rule and the words in which it is reported.

use serde_json::{Value, json};

use crate::api::testing::Api;

/// One small container, changed by `members`.
fn container(members: &Value) -> Value {
    let mut container = json!({"name": "app", "image": "busybox", "memory": 64});
    for (name, value) in members.as_object().unwrap() {
        container[name] = value.clone();
    }
    container.as_object_mut().unwrap().retain(|_, value| !value.is_null());
    container
}

fn definition(members: Value, containers: Value) -> Value {
    let mut body = json!({"family": "f", "containerDefinitions": containers});
    for (name, value) in members.as_object().unwrap() {
        body[name] = value.clone();
    }
    body
}

/// A definition whose only container has `members`.
fn with(members: Value) -> Value {
    definition(json!({}), json!([container(&members)]))
}

/// A definition in a network mode whose only container has `members`.
fn within(mode: &str, members: Value) -> Value {
    definition(json!({"networkMode": mode}), json!([container(&members)]))
}

fn pair(first: Value, second: Value) -> Value {
    let mut first = container(&first);
    first["name"] = json!("a");
    let mut second = container(&second);
    second["name"] = json!("b");
    json!([first, second])
}

const CLIENT: &str = "ClientException";

#[expect(clippy::too_many_lines, reason = "a table")]
fn refusals() -> Vec<(Value, &'static str)> {
    let many: Vec<Value> = (0..11).map(|n| container(&json!({"name": format!("c{n}")}))).collect();
    let health = |members: Value| {
        let mut check = json!({"command": ["CMD", "true"]});
        check.as_object_mut().unwrap().extend(members.as_object().unwrap().clone());
        with(json!({"healthCheck": check}))
    };
    vec![
        (json!({"containerDefinitions": []}), "Family should not be null or empty."),
        (json!({"family": "a b", "containerDefinitions": []}), "Family contains invalid characters."),
        (json!({"family": "f"}), "Container list cannot be empty."),
        (definition(json!({}), json!([])), "Container list cannot be empty."),
        (definition(json!({}), json!(many)), "Too many containers."),
        (with(json!({"name": null})), "Container.name should not be null or empty."),
        (with(json!({"name": "a b"})), "Container.name contains invalid characters."),
        (with(json!({"image": null})), "Container.image should not be null or empty."),
        (with(json!({"image": "a b"})), "Container.image contains invalid characters."),
        (
            definition(json!({}), json!([container(&json!({})), container(&json!({}))])),
            "Container names must be unique within a Task Definition.",
        ),
        (with(json!({"essential": false})), "Task definition doesn't have any essential container."),
        (
            with(json!({"memory": null})),
            "Invalid setting for container 'app'. At least one of 'memory' or 'memoryReservation' must be specified.",
        ),
        (with(json!({"memory": 5})), "Invalid 'memory' setting for container 'app'. The minimum is 6 MiB."),
        (
            with(json!({"memory": 64, "memoryReservation": 65})),
            "Invalid setting for container 'app'. The 'memory' setting must not be less than the 'memoryReservation' setting.",
        ),
        (
            definition(json!({"memory": "32"}), json!([container(&json!({}))])),
            "The 'memory' setting for container 'app' is greater than for the task.",
        ),
        (
            definition(
                json!({"memory": "100"}),
                pair(json!({"memoryReservation": 60}), json!({"memoryReservation": 60})),
            ),
            "The sum of all container 'memoryReservation' values cannot be greater than the value of the task 'memory'.",
        ),
        (
            definition(json!({"cpu": "256"}), pair(json!({"cpu": 200}), json!({"cpu": 100}))),
            "The sum of all container 'cpu' values cannot be greater than the value of the task 'cpu'.",
        ),
        (definition(json!({"cpu": "64"}), json!([container(&json!({}))])), "Invalid 'cpu' setting for task."),
        (
            definition(json!({"cpu": "much"}), json!([container(&json!({}))])),
            "Invalid 'cpu' setting for task.",
        ),
        (
            definition(json!({"memory": "0"}), json!([container(&json!({}))])),
            "Invalid 'memory' setting for task.",
        ),
        (with(json!({"cpu": -1})), "Invalid 'cpu' setting for container 'app'."),
        (with(json!({"portMappings": [{}]})), "Invalid 'containerPort' setting for container 'app'."),
        (
            with(json!({"portMappings": [{"containerPort": 0}]})),
            "Invalid 'containerPort' setting for container 'app'.",
        ),
        (
            with(json!({"portMappings": [{"containerPort": 65536}]})),
            "Invalid 'containerPort' setting for container 'app'.",
        ),
        (
            with(json!({"portMappings": [{"containerPort": 80, "hostPort": 70000}]})),
            "Invalid 'hostPort' setting for container 'app'.",
        ),
        (
            with(json!({"portMappings": [{"containerPort": 80, "protocol": "sctp"}]})),
            "PortMapping.protocol of container 'app' should be one of [tcp, udp]",
        ),
        (
            within("awsvpc", json!({"portMappings": [{"containerPort": 80, "hostPort": 81}]})),
            "When networkMode=awsvpc, the host ports and container ports in port mappings must match.",
        ),
        (
            within("host", json!({"portMappings": [{"containerPort": 80, "hostPort": 81}]})),
            "When networkMode=host, the host ports and container ports in port mappings must match.",
        ),
        (
            within("none", json!({"portMappings": [{"containerPort": 80}]})),
            "Port mappings are not supported when networkMode=none.",
        ),
        (
            definition(
                json!({}),
                pair(
                    json!({"portMappings": [{"containerPort": 80, "hostPort": 3000}]}),
                    json!({"portMappings": [{"containerPort": 81, "hostPort": 3000}]}),
                ),
            ),
            "TCP host port '3000' is mapped multiple times in task.",
        ),
        (
            with(json!({"portMappings": [{"containerPortRange": "90-80"}]})),
            "Invalid 'containerPortRange' setting for container 'app'. It is written like 8000-8010.",
        ),
        (
            with(json!({"portMappings": [{"containerPortRange": "1000-1100"}]})),
            "Invalid 'containerPortRange' setting for container 'app'. It may hold at most 100 ports.",
        ),
        (
            with(json!({"portMappings": [{"containerPortRange": "80-81", "hostPort": 80}]})),
            "Invalid 'containerPortRange' setting for container 'app'. It excludes 'containerPort' and 'hostPort'.",
        ),
        (
            within("host", json!({"portMappings": [{"containerPortRange": "80-81"}]})),
            "Invalid 'containerPortRange' setting for container 'app'. It needs the network mode bridge or awsvpc.",
        ),
        (within("nat", json!({})), "networkMode should be one of [bridge, host, awsvpc, none]"),
        (within("awsvpc", json!({"links": ["x"]})), "Links are not supported when networkMode=awsvpc."),
        (
            within("awsvpc", json!({"hostname": "h"})),
            "hostname is not supported on container when networkMode=awsvpc.",
        ),
        (
            within("awsvpc", json!({"dnsServers": ["1.1.1.1"]})),
            "dnsServers is not supported on container when networkMode=awsvpc.",
        ),
        (
            with(json!({"dependsOn": [{"containerName": "x", "condition": "START"}]})),
            "Cannot depend on container + 'x' because it does not exist",
        ),
        (
            definition(
                json!({}),
                pair(json!({"dependsOn": [{"containerName": "b", "condition": "SUCCESS"}]}), json!({})),
            ),
            "A dependency container with SUCCESS or COMPLETE condition cannot be an essential container",
        ),
        (
            definition(
                json!({}),
                pair(json!({"dependsOn": [{"containerName": "b", "condition": "HEALTHY"}]}), json!({})),
            ),
            "Container 'a' depends on container 'b' being HEALTHY, but that one has no health check.",
        ),
        (
            definition(
                json!({}),
                pair(json!({"dependsOn": [{"containerName": "b", "condition": "SOON"}]}), json!({})),
            ),
            "ContainerDependency.condition should be one of [START, COMPLETE, SUCCESS, HEALTHY]",
        ),
        (
            definition(
                json!({}),
                pair(
                    json!({"dependsOn": [{"containerName": "b", "condition": "START"}]}),
                    json!({"volumesFrom": [{"sourceContainer": "a"}]}),
                ),
            ),
            "Container dependencies should not have a cycle",
        ),
        (
            definition(json!({}), pair(json!({"links": ["b"]}), json!({"links": ["a:alias"]}))),
            "Container links should not have a cycle",
        ),
        (with(json!({"mountPoints": [{"sourceVolume": "v", "containerPath": "/v"}]})), "Unknown volume 'v'."),
        (
            definition(
                json!({"placementConstraints": [{"type": "distinctInstance"}]}),
                json!([container(&json!({}))]),
            ),
            "constraint.type 'distinctInstance' is not supported.",
        ),
        (
            definition(json!({"taskRoleArn": "arn:aws:iam::1:user/x"}), json!([container(&json!({}))])),
            "Role is not valid",
        ),
        (
            health(json!({"interval": 4})),
            "Invalid 'healthCheck.interval' setting for container 'app'. It must be between 5 and 300.",
        ),
        (
            health(json!({"timeout": 61})),
            "Invalid 'healthCheck.timeout' setting for container 'app'. It must be between 2 and 60.",
        ),
        (
            health(json!({"retries": 0})),
            "Invalid 'healthCheck.retries' setting for container 'app'. It must be between 1 and 10.",
        ),
        (
            health(json!({"startPeriod": 301})),
            "Invalid 'healthCheck.startPeriod' setting for container 'app'. It must be between 0 and 300.",
        ),
        (
            health(json!({"command": ["curl"]})),
            "Invalid 'healthCheck.command' setting for container 'app'. It must begin with CMD or CMD-SHELL, followed by the command.",
        ),
        (
            with(json!({"restartPolicy": {"enabled": true, "restartAttemptPeriod": 59}})),
            "Invalid 'restartPolicy.restartAttemptPeriod' setting for container 'app'. It must be between 60 and 1800.",
        ),
        (
            with(json!({"ulimits": [{"name": "nofile", "softLimit": 2, "hardLimit": 1}]})),
            "Invalid ulimit 'nofile' for container 'app'. The hard limit must not be less than the soft limit.",
        ),
        (
            with(json!({"environmentFiles": [{"type": "s3", "value": "arn:aws:s3:::b/f.txt"}]})),
            "Invalid environment file 'arn:aws:s3:::b/f.txt' for container 'app'. Its name must end in .env.",
        ),
        (
            with(json!({"logConfiguration": {"logDriver": "awslogs"}})),
            "Log driver awslogs requires options: awslogs-region, awslogs-group",
        ),
        (
            with(json!({"linuxParameters": {"tmpfs": [{"containerPath": "/t"}]}})),
            "Invalid 'linuxParameters.tmpfs' setting for container 'app'. It needs 'containerPath' and a positive 'size'.",
        ),
        (
            definition(json!({"requiresCompatibilities": ["FARGATE"]}), json!([container(&json!({}))])),
            "Fargate requires that 'cpu' be defined at the task level.",
        ),
        (
            definition(
                json!({"requiresCompatibilities": ["FARGATE"], "cpu": "256", "memory": "512"}),
                json!([container(&json!({}))]),
            ),
            "Fargate only supports network mode ‘awsvpc’.",
        ),
        (
            definition(
                json!({"requiresCompatibilities": ["FARGATE"], "cpu": "512", "memory": "512", "networkMode": "awsvpc"}),
                json!([container(&json!({}))]),
            ),
            "No Fargate configuration exists for given values: 512 CPU, 512 memory. See the Amazon ECS documentation for the valid values.",
        ),
        (
            definition(
                json!({
                    "requiresCompatibilities": ["FARGATE"], "cpu": "256", "memory": "512", "networkMode": "awsvpc",
                    "pidMode": "host"
                }),
                json!([container(&json!({}))]),
            ),
            "Tasks using the Fargate launch type do not support pidMode 'host'. The supported value for pidMode is 'task'.",
        ),
    ]
}

#[tokio::test]
async fn every_rule_is_reported_in_the_words_of_ecs() {
    let api = Api::start().await;
    for (body, message) in refusals() {
        let refused = api.refused("RegisterTaskDefinition", body.clone()).await;
        assert_eq!(refused, (CLIENT.to_owned(), message.to_owned()), "{body}");
    }
    let twice = with(json!({"portMappings": [{"containerPort": 80}, {"containerPort": 80, "hostPort": 81}]}));
    let refused = api.refused("RegisterTaskDefinition", twice).await;
    let message = "Container port 80 is used in more than one port mapping for container app";
    assert_eq!(refused, ("InvalidParameterException".to_owned(), message.to_owned()));
}

#[tokio::test]
async fn a_definition_of_more_than_64_kib_is_refused() {
    let api = Api::start().await;
    let body = with(json!({"environment": [{"name": "A", "value": "x".repeat(70_000)}]}));
    let (code, message) = api.refused("RegisterTaskDefinition", body).await;
    assert_eq!(code, CLIENT);
    assert!(
        message.starts_with("Actual length: '70")
            && message.ends_with("Max allowed length is '65536' bytes."),
        "{message}"
    );
}
