//! Of the definition as a whole.

use serde_json::{Value, json};

use super::{container, definition, merged, pair, task, with};
use crate::api::testing::Api;

fn containers(count: usize) -> Value {
    let containers = (0..count).map(|n| container(&json!({"name": format!("c{n}")}))).collect();
    definition(&json!({}), Value::Array(containers))
}

fn constraints(count: usize, constraint: &Value) -> Value {
    task(&json!({"placementConstraints": vec![constraint; count]}))
}

fn member_of(expression: &str) -> Value {
    json!({"type": "memberOf", "expression": expression})
}

/// As long as an expression may be, in characters of two bytes for the most part.
fn long_expression() -> String {
    let test = "attribute:a == ";
    format!("{test}{}", "é".repeat(2000 - test.len()))
}

/// A definition with a volume, which its container mounts.
fn volume(members: &Value) -> Value {
    let volume = merged(json!({"name": "v"}), members);
    let mounts = json!([{"sourceVolume": "v", "containerPath": "/v"}]);
    definition(&json!({"volumes": [volume]}), json!([container(&json!({"mountPoints": mounts}))]))
}

pub(super) fn refusals() -> Vec<(Value, &'static str)> {
    [sets(), sizes(), volumes(), members()].concat()
}

fn sets() -> Vec<(Value, &'static str)> {
    vec![
        (json!({"containerDefinitions": []}), "Family should not be null or empty."),
        (json!({"family": "a b", "containerDefinitions": []}), "Family contains invalid characters."),
        (task(&json!({"family": "f".repeat(256)})), "Family should not be longer than 255 characters."),
        (json!({"family": "f"}), "Container list cannot be empty."),
        (containers(0), "Container list cannot be empty."),
        (containers(11), "Too many containers."),
        (with(&json!({"name": null})), "Container.name should not be null or empty."),
        (with(&json!({"name": "a b"})), "Container.name contains invalid characters."),
        (with(&json!({"name": "n".repeat(256)})), "Container.name should not be longer than 255 characters."),
        (
            definition(&json!({}), json!([container(&json!({})), container(&json!({}))])),
            "Container names must be unique within a Task Definition.",
        ),
        (with(&json!({"essential": false})), "Task definition doesn't have any essential container."),
        (task(&json!({"networkMode": "nat"})), "networkMode should be one of [bridge, host, awsvpc, none]"),
    ]
}

fn sizes() -> Vec<(Value, &'static str)> {
    let cpu = |cpu: &str| (task(&json!({"cpu": cpu})), "Invalid 'cpu' setting for task.");
    let memory = |memory: &str| (task(&json!({"memory": memory})), "Invalid 'memory' setting for task.");
    vec![
        cpu("127"),
        cpu("196609"),
        cpu("much"),
        memory("0"),
        memory("much"),
        (
            with(&json!({"memory": null})),
            "Invalid setting for container 'app'. At least one of 'memory' or 'memoryReservation' must be specified.",
        ),
        (
            task(&json!({"memory": "63"})),
            "The 'memory' setting for container 'app' is greater than for the task.",
        ),
        (
            merged(
                pair(json!({"memoryReservation": 60}), json!({"memoryReservation": 60})),
                &json!({"memory": "119"}),
            ),
            "The sum of all container 'memoryReservation' values cannot be greater than the value of the task 'memory'.",
        ),
        (
            merged(pair(json!({"cpu": 200}), json!({"cpu": 57})), &json!({"cpu": "256"})),
            "The sum of all container 'cpu' values cannot be greater than the value of the task 'cpu'.",
        ),
    ]
}

fn volumes() -> Vec<(Value, &'static str)> {
    const ONE_KIND: &str =
        "When the volume parameter is specified, only one volume configuration type should be used.";
    let mounts = |mount: Value| with(&json!({"mountPoints": [mount]}));
    vec![
        (task(&json!({"volumes": [{}]})), "Volume.name should not be null or empty."),
        (task(&json!({"volumes": [{"name": "a b"}]})), "Volume.name contains invalid characters."),
        (
            task(&json!({"volumes": [{"name": "v"}, {"name": "v"}]})),
            "Volume names must be unique within a Task Definition.",
        ),
        (volume(&json!({"host": {"sourcePath": "/s"}, "dockerVolumeConfiguration": {}})), ONE_KIND),
        (
            volume(&json!({"host": {"sourcePath": "/s"}, "efsVolumeConfiguration": {"fileSystemId": "fs"}})),
            ONE_KIND,
        ),
        (
            volume(&json!({"dockerVolumeConfiguration": {}, "fsxWindowsFileServerVolumeConfiguration": {}})),
            ONE_KIND,
        ),
        (
            volume(&json!({"dockerVolumeConfiguration": {"scope": "host"}})),
            "dockerVolumeConfiguration.scope should be one of [task, shared]",
        ),
        (
            volume(&json!({"dockerVolumeConfiguration": {"scope": "task", "autoprovision": true}})),
            "Volume 'v': autoprovision is only possible with the scope 'shared'.",
        ),
        (
            volume(&json!({"dockerVolumeConfiguration": {"autoprovision": true}})),
            "Volume 'v': autoprovision is only possible with the scope 'shared'.",
        ),
        (mounts(json!({"sourceVolume": "v", "containerPath": "/v"})), "Unknown volume 'v'."),
        (
            merged(mounts(json!({"sourceVolume": "v"})), &json!({"volumes": [{"name": "v"}]})),
            "Invalid 'containerPath' setting for a mount point of container 'app'.",
        ),
    ]
}

fn members() -> Vec<(Value, &'static str)> {
    let role = |role: &str| (task(&json!({"taskRoleArn": role})), "Role is not valid");
    vec![
        role("a b"),
        role("arn:aws:iam::1:user/x"),
        role("arn:aws:iam:::role/x"),
        role("arn:aws:iam::1:role/"),
        role("arn:aws:s3:::bucket"),
        (task(&json!({"executionRoleArn": "arn:aws:iam::1:user/x"})), "Role is not valid"),
        (task(&json!({"pidMode": "none"})), "pidMode should be one of [host, task]"),
        (task(&json!({"ipcMode": "shared"})), "ipcMode should be one of [host, task, none]"),
        (
            task(&json!({"requiresCompatibilities": ["MOON"]})),
            "requiresCompatibilities should be one of [EC2, FARGATE, EXTERNAL, MANAGED_INSTANCES]",
        ),
        (
            task(&json!({"runtimePlatform": {"cpuArchitecture": "VAX"}})),
            "runtimePlatform.cpuArchitecture should be one of [X86_64, ARM64]",
        ),
        (
            task(&json!({"proxyConfiguration": {"type": "ENVOY", "containerName": "app"}})),
            "proxyConfiguration.type should be one of [APPMESH]",
        ),
        (
            task(&json!({"proxyConfiguration": {"type": "APPMESH", "containerName": "envoy"}})),
            "The proxy configuration names container 'envoy', which does not exist.",
        ),
        (constraints(11, &member_of("attribute:a exists")), "Too many placement constraints: at most 10."),
        (
            constraints(1, &json!({"type": "distinctInstance"})),
            "constraint.type 'distinctInstance' is not supported.",
        ),
        (constraints(1, &json!({"type": "memberOf"})), "constraint.expression should not be null or empty."),
        (constraints(1, &member_of(" ")), "constraint.expression should not be null or empty."),
        (
            constraints(1, &member_of(&format!("{}é", long_expression()))),
            "constraint.expression should not be longer than 2000 characters.",
        ),
    ]
}

pub(super) fn acceptances() -> Vec<Value> {
    let role = |role: &str| task(&json!({"taskRoleArn": role, "executionRoleArn": role}));
    vec![
        containers(10),
        with(&json!({"memory": null, "memoryReservation": 6})),
        merged(with(&json!({"memory": null})), &json!({"memory": "64"})),
        task(&json!({"memory": "64", "cpu": "128"})),
        task(&json!({"cpu": "196608"})),
        merged(
            pair(json!({"cpu": 200, "memoryReservation": 60}), json!({"cpu": 56, "memoryReservation": 60})),
            &json!({"cpu": "256", "memory": "120"}),
        ),
        volume(&json!({"host": {}, "dockerVolumeConfiguration": {"scope": "task", "autoprovision": false}})),
        volume(&json!({"host": {"sourcePath": ""}, "efsVolumeConfiguration": {"fileSystemId": "fs"}})),
        volume(&json!({"dockerVolumeConfiguration": {"scope": "shared", "autoprovision": true}})),
        role("app"),
        role("arn:aws:iam::123456789012:role/service/app"),
        task(&json!({"pidMode": "host", "ipcMode": "none"})),
        task(&json!({"ipcMode": "host"})),
        task(&json!({"proxyConfiguration": {"containerName": "app"}})),
        constraints(10, &member_of("attribute:a exists")),
        constraints(1, &member_of(&long_expression())),
    ]
}

#[tokio::test]
async fn an_expression_that_cannot_be_read_is_refused_with_the_place() {
    let api = Api::start().await;
    let (code, message) =
        api.refused("RegisterTaskDefinition", constraints(1, &member_of("attribute:a =="))).await;
    assert_eq!(code, "ClientException");
    assert!(message.starts_with("constraint.expression 'attribute:a ==' is not valid: "), "{message}");
}

#[tokio::test]
async fn a_definition_of_more_than_64_kib_is_refused() {
    let api = Api::start().await;
    let body = with(&json!({"environment": [{"name": "A", "value": "x".repeat(70_000)}]}));
    let (code, message) = api.refused("RegisterTaskDefinition", body).await;
    assert_eq!(code, "ClientException");
    assert!(
        message.starts_with("Actual length: '70")
            && message.ends_with("Max allowed length is '65536' bytes."),
        "{message}"
    );
}
