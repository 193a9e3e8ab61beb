//! Of definitions for Fargate.

use serde_json::{Value, json};

use super::{container, merged, task};
use crate::api::testing::Api;

/// What Fargate takes, changed by `members`; null takes one away.
fn fargate(members: &Value) -> Value {
    let sound = json!({
        "requiresCompatibilities": ["FARGATE"], "cpu": "256", "memory": "512", "networkMode": "awsvpc"
    });
    task(&merged(sound, members))
}

pub(super) fn refusals() -> Vec<(Value, &'static str)> {
    vec![
        (fargate(&json!({"cpu": null})), "Fargate requires that 'cpu' be defined at the task level."),
        (fargate(&json!({"memory": null})), "Fargate requires that 'memory' be defined at the task level."),
        (fargate(&json!({"networkMode": null})), "Fargate only supports network mode ‘awsvpc’."),
        (fargate(&json!({"networkMode": "host"})), "Fargate only supports network mode ‘awsvpc’."),
        (
            fargate(&json!({"cpu": "512"})),
            "No Fargate configuration exists for given values: 512 CPU, 512 memory. See the Amazon ECS documentation for the valid values.",
        ),
        (
            fargate(&json!({"pidMode": "host"})),
            "Tasks using the Fargate launch type do not support pidMode 'host'. The supported value for pidMode is 'task'.",
        ),
        (
            fargate(&json!({"containerDefinitions": [container(&json!({"privileged": true}))]})),
            "Tasks using the Fargate launch type do not support privileged containers.",
        ),
        (
            fargate(&json!({"containerDefinitions": [container(&json!({
                "firelensConfiguration": {"type": "fluentbit", "options": {
                    "config-file-type": "s3", "config-file-value": "arn:aws:s3:::bucket/fluent.conf"
                }},
                "logConfiguration": {"logDriver": "awsfirelens"}
            }))]})),
            "Tasks using the Fargate launch type only support the config-file-type 'file'.",
        ),
        (
            fargate(&json!({"ephemeralStorage": {"sizeInGiB": 201}})),
            "Invalid 'ephemeralStorage' setting for task. It must be between 20 and 200 GiB.",
        ),
    ]
}

#[tokio::test]
async fn sizes_are_those_of_the_table_and_no_others() {
    let api = Api::start().await;
    for (cpu, sizes, others) in [
        ("256", [512, 1024, 2048], [511, 1536, 3072]),
        ("512", [1024, 2048, 4096], [512, 1536, 5120]),
        ("1024", [2048, 3072, 8192], [1024, 2560, 9216]),
        ("2048", [4096, 5120, 16_384], [3072, 4608, 17_408]),
        ("4096", [8192, 9216, 30_720], [7168, 8704, 31_744]),
        ("8192", [16_384, 20_480, 61_440], [12_288, 17_408, 65_536]),
        ("16384", [32_768, 40_960, 122_880], [24_576, 36_864, 131_072]),
    ] {
        let sized = |memory: u32| fargate(&json!({"cpu": cpu, "memory": memory.to_string()}));
        for memory in sizes {
            let reply = api.ok("RegisterTaskDefinition", sized(memory)).await;
            assert_eq!(reply["taskDefinition"]["compatibilities"], json!(["EC2", "FARGATE"]));
        }
        for memory in others {
            let (_, message) = api.refused("RegisterTaskDefinition", sized(memory)).await;
            let expected =
                format!("No Fargate configuration exists for given values: {cpu} CPU, {memory} memory.");
            assert!(message.starts_with(&expected), "{message}");
        }
    }
}
