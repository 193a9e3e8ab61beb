//! Of log routers.

use serde_json::{Value, json};

use super::{pair, with};

fn router(options: &Value) -> Value {
    json!({"firelensConfiguration": {"type": "fluentbit", "options": options}})
}

fn logger(options: &Value) -> Value {
    json!({"logConfiguration": {"logDriver": "awsfirelens", "options": options}})
}

fn one_that_logs_to_itself(members: &Value) -> Value {
    let mut both = super::merged(router(&json!({})), &logger(&json!({"Name": "stdout"})));
    both = super::merged(both, members);
    with(&both)
}

pub(super) fn refusals() -> Vec<(Value, &'static str)> {
    const TYPE: &str = "firelensConfiguration.type of container 'a' should be one of [fluentd, fluentbit]";
    let out = json!({"Name": "stdout"});
    let options = |options: Value| pair(router(&options), logger(&json!({"Name": "stdout"})));
    let waits = super::merged(
        router(&json!({})),
        &json!({"dependsOn": [{"containerName": "b", "condition": "START"}]}),
    );
    vec![
        (
            with(&logger(&out)),
            "When awsfirelens log driver is specified in log configuration, a firelens configuration object must be configured in one of the containers.",
        ),
        (
            with(&router(&json!({}))),
            "When a firelensConfiguration object is specified, at least one container has to be configured with the awsfirelens log driver.",
        ),
        (
            pair(router(&json!({})), router(&json!({}))),
            "Only one container of a task can have a firelensConfiguration, and 'a' and 'b' have one.",
        ),
        (pair(json!({"firelensConfiguration": {}}), logger(&out)), TYPE),
        (pair(json!({"firelensConfiguration": {"type": "logstash"}}), logger(&out)), TYPE),
        (pair(waits, logger(&out)), "Container dependencies should not have a cycle"),
        (
            options(json!({"config-file": "/extra.conf"})),
            "Invalid 'firelensConfiguration' setting for container 'a': options: \"config-file\" is none of enable-ecs-log-metadata, config-file-type and config-file-value.",
        ),
        (
            options(json!({"config-file-type": "s3", "config-file-value": "bucket/key"})),
            "Invalid 'firelensConfiguration' setting for container 'a': options: config-file-value is \"bucket/key\", not the ARN of an S3 object.",
        ),
        (
            pair(router(&json!({})), logger(&json!({"region": "us-west-2"}))),
            "containers[b].logConfiguration: missing output key Name which is required for firelens configuration of type fluentbit",
        ),
        (
            one_that_logs_to_itself(&json!({"user": "fluent"})),
            "containers[app].user: \"fluent\" is neither root nor a number: a log router has UID, UID:GID or UID:GROUP",
        ),
    ]
}

pub(super) fn acceptances() -> Vec<Value> {
    let file = json!({"config-file-type": "file", "config-file-value": "/extra.conf", "enable-ecs-log-metadata": "true"});
    vec![
        one_that_logs_to_itself(&json!({"user": "1000:1000"})),
        pair(router(&file), logger(&json!({}))),
        pair(logger(&json!({"Name": "http", "exclude-pattern": "^debug"})), router(&json!({}))),
        pair(
            json!({"firelensConfiguration": {"type": "fluentd"}, "essential": false}),
            logger(&json!({"@type": "stdout", "log-driver-buffer-limit": "0"})),
        ),
    ]
}
