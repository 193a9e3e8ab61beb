//! Of one container by itself.

use serde_json::{Value, json};

use super::{merged, with};
use crate::api::testing::Api;

/// Where a number is in a container, its least and its greatest value.
const BOUNDS: [(&str, i64, i64); 8] = [
    ("healthCheck.interval", 5, 300),
    ("healthCheck.timeout", 2, 60),
    ("healthCheck.retries", 1, 10),
    ("healthCheck.startPeriod", 0, 300),
    ("restartPolicy.restartAttemptPeriod", 60, 1800),
    ("linuxParameters.swappiness", 0, 100),
    ("startTimeout", 0, 604_800),
    ("stopTimeout", 0, 604_800),
];

fn health(members: &Value) -> Value {
    with(&json!({"healthCheck": merged(json!({"command": ["CMD", "true"]}), members)}))
}

fn restart(members: &Value) -> Value {
    with(&json!({"restartPolicy": merged(json!({"enabled": true}), members)}))
}

fn linux(members: &Value) -> Value {
    with(&json!({"linuxParameters": members}))
}

fn ulimit(name: &str, soft: i64, hard: i64) -> Value {
    with(&json!({"ulimits": [{"name": name, "softLimit": soft, "hardLimit": hard}]}))
}

fn environment_files(count: usize, file: &Value) -> Value {
    with(&json!({"environmentFiles": vec![file; count]}))
}

fn gpus(count: &str) -> Value {
    with(&json!({"resourceRequirements": [{"type": "GPU", "value": count}]}))
}

/// A container whose number at `path` is `value`.
fn with_number(path: &str, value: i64) -> Value {
    match path.split_once('.') {
        Some(("healthCheck", member)) => health(&json!({member: value})),
        Some(("restartPolicy", member)) => restart(&json!({member: value})),
        Some((outer, member)) => with(&json!({outer: {member: value}})),
        None => with(&json!({path: value})),
    }
}

pub(super) fn refusals() -> Vec<(Value, &'static str)> {
    [amounts(), environments(), checks(), kernel(), others()].concat()
}

fn amounts() -> Vec<(Value, &'static str)> {
    const HARD_BELOW_SOFT: &str =
        "Invalid ulimit 'nofile' for container 'app'. The hard limit must not be less than the soft limit.";
    const GPU: &str =
        "Invalid 'resourceRequirements' setting for container 'app'. GPU takes a positive number.";
    vec![
        (with(&json!({"cpu": -1})), "Invalid 'cpu' setting for container 'app'."),
        (with(&json!({"memory": 5})), "Invalid 'memory' setting for container 'app'. The minimum is 6 MiB."),
        (
            with(&json!({"memoryReservation": 5})),
            "Invalid 'memoryReservation' setting for container 'app'. The minimum is 6 MiB.",
        ),
        (
            with(&json!({"memory": 64, "memoryReservation": 65})),
            "Invalid setting for container 'app'. The 'memory' setting must not be less than the 'memoryReservation' setting.",
        ),
        (ulimit("nofile", 2, 1), HARD_BELOW_SOFT),
        (ulimit("nofile", -1, 1), HARD_BELOW_SOFT),
        (ulimit("nofile", -2, 1), HARD_BELOW_SOFT),
        (
            ulimit("files", 1, 1),
            "Ulimit.name of container 'app' should be one of [core, cpu, data, fsize, locks, memlock, msgqueue, nice, nofile, nproc, rss, rtprio, rttime, sigpending, stack]",
        ),
        (gpus("0"), GPU),
        (gpus("-1"), GPU),
        (gpus("1.5"), GPU),
        (gpus(""), GPU),
        (
            with(&json!({"resourceRequirements": [{"type": "TPU", "value": "1"}]})),
            "ResourceRequirement.type of container 'app' should be one of [GPU, InferenceAccelerator, NeuronDevice]",
        ),
    ]
}

fn environments() -> Vec<(Value, &'static str)> {
    const SECRET: &str =
        "Invalid 'secrets' setting for container 'app'. A secret needs 'name' and 'valueFrom'.";
    let log = |secret: Value| json!({"logDriver": "splunk", "secretOptions": [secret]});
    vec![
        (
            environment_files(11, &json!({"type": "s3", "value": "arn:aws:s3:::b/f.env"})),
            "Too many environment files for container 'app': at most 10.",
        ),
        (
            environment_files(1, &json!({"type": "s3", "value": "arn:aws:s3:::b/f.txt"})),
            "Invalid environment file 'arn:aws:s3:::b/f.txt' for container 'app'. Its name must end in .env.",
        ),
        (
            environment_files(1, &json!({"value": "arn:aws:s3:::b/f.env"})),
            "EnvironmentFile.type of container 'app' should be one of [s3, http, file]",
        ),
        (
            with(&json!({"environment": [{"name": "A=B", "value": "1"}]})),
            "Invalid 'environment' setting for container 'app'. A variable needs a name without '='.",
        ),
        (with(&json!({"secrets": [{"valueFrom": "p"}]})), SECRET),
        (with(&json!({"secrets": [{"name": "S"}]})), SECRET),
        (with(&json!({"logConfiguration": log(json!({"name": "splunk-token"}))})), SECRET),
    ]
}

fn checks() -> Vec<(Value, &'static str)> {
    const COMMAND: &str = "Invalid 'healthCheck.command' setting for container 'app'. It must begin with CMD or CMD-SHELL, followed by the command.";
    vec![
        (health(&json!({"command": ["curl", "-f"]})), COMMAND),
        (health(&json!({"command": ["CMD"]})), COMMAND),
        (health(&json!({"command": null})), COMMAND),
        (with(&json!({"restartPolicy": {}})), "Invalid 'restartPolicy.enabled' setting for container 'app'."),
        (
            restart(&json!({"ignoredExitCodes": vec![0; 51]})),
            "Invalid 'restartPolicy.ignoredExitCodes' setting for container 'app'. At most 50 exit codes.",
        ),
    ]
}

fn kernel() -> Vec<(Value, &'static str)> {
    const TMPFS: &str = "Invalid 'linuxParameters.tmpfs' setting for container 'app'. It needs 'containerPath' and a positive 'size'.";
    const CONTROL: &str =
        "Invalid 'systemControls' setting for container 'app'. A control needs 'namespace' and 'value'.";
    let device = |members: Value| linux(&json!({"devices": [members]}));
    vec![
        (
            linux(&json!({"maxSwap": -1})),
            "Invalid 'linuxParameters.maxSwap' setting for container 'app'. It must be between 0 and 2147483647.",
        ),
        (
            linux(&json!({"sharedMemorySize": -1})),
            "Invalid 'linuxParameters.sharedMemorySize' setting for container 'app'. It must be between 0 and 2147483647.",
        ),
        (linux(&json!({"tmpfs": [{"containerPath": "/t"}]})), TMPFS),
        (linux(&json!({"tmpfs": [{"containerPath": "/t", "size": 0}]})), TMPFS),
        (linux(&json!({"tmpfs": [{"size": 1}]})), TMPFS),
        (
            device(json!({"containerPath": "/dev/fuse"})),
            "Invalid 'linuxParameters.devices' setting for container 'app'. A device needs 'hostPath'.",
        ),
        (
            device(json!({"hostPath": "/dev/fuse", "permissions": ["all"]})),
            "Device.permissions of container 'app' should be one of [read, write, mknod]",
        ),
        (with(&json!({"systemControls": [{"value": "1"}]})), CONTROL),
        (with(&json!({"systemControls": [{"namespace": "net.core.somaxconn"}]})), CONTROL),
    ]
}

fn others() -> Vec<(Value, &'static str)> {
    const HOST: &str =
        "Invalid 'extraHosts' setting for container 'app'. An entry needs 'hostname' and 'ipAddress'.";
    vec![
        (with(&json!({"image": null})), "Container.image should not be null or empty."),
        (with(&json!({"image": "a b"})), "Container.image contains invalid characters."),
        (
            with(&json!({"image": "i".repeat(256)})),
            "Container.image should not be longer than 255 characters.",
        ),
        (
            with(&json!({"logConfiguration": {"logDriver": "awslogs"}})),
            "Log driver awslogs requires options: awslogs-region, awslogs-group",
        ),
        (
            with(&json!({"logConfiguration": {"logDriver": "paper"}})),
            "logConfiguration.logDriver of container 'app' should be one of [json-file, local, none, syslog, journald, gelf, fluentd, awslogs, splunk, awsfirelens]",
        ),
        (
            with(&json!({"repositoryCredentials": {}})),
            "Invalid 'repositoryCredentials' setting for container 'app'.",
        ),
        (with(&json!({"extraHosts": [{"hostname": "h"}]})), HOST),
        (with(&json!({"extraHosts": [{"ipAddress": "10.0.0.1"}]})), HOST),
    ]
}

pub(super) fn acceptances() -> Vec<Value> {
    vec![
        with(&json!({"memory": 6, "memoryReservation": 6})),
        with(&json!({"image": "i".repeat(255)})),
        ulimit("nofile", 1, 1),
        ulimit("memlock", 1, -1),
        ulimit("memlock", -1, -1),
        environment_files(10, &json!({"type": "s3", "value": "arn:aws:s3:::b/f.env"})),
        with(&json!({"secrets": [{"name": "S", "valueFrom": "p"}]})),
        health(&json!({"command": ["CMD-SHELL", "true"]})),
        restart(&json!({"ignoredExitCodes": vec![0; 50]})),
        linux(&json!({"maxSwap": 0, "swappiness": 60, "sharedMemorySize": 64})),
        // ECS ignores it there.
        linux(&json!({"swappiness": 60})),
        linux(&json!({"tmpfs": [{"containerPath": "/t", "size": 1}]})),
        with(&json!({"systemControls": [{"namespace": "net.core.somaxconn", "value": "1"}]})),
        gpus("1"),
        with(&json!({"extraHosts": [{"hostname": "h", "ipAddress": "10.0.0.1"}]})),
    ]
}

#[tokio::test]
async fn numbers_are_taken_up_to_their_bounds() {
    let api = Api::start().await;
    for (path, least, greatest) in BOUNDS {
        for value in [least, greatest] {
            api.ok("RegisterTaskDefinition", with_number(path, value)).await;
        }
        let message = format!(
            "Invalid '{path}' setting for container 'app'. It must be between {least} and {greatest}."
        );
        for value in [least - 1, greatest + 1] {
            let refused = api.refused("RegisterTaskDefinition", with_number(path, value)).await;
            assert_eq!(refused, ("ClientException".to_owned(), message.clone()), "{value}");
        }
    }
}
