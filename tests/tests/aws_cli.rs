//! Promise: the unmodified AWS command line takes an application from nothing to running to gone.

use anyhow::{Result, ensure};
use berth_tests::cluster::{container, demo_answer, host_port, text};
use berth_tests::{Cluster, demo};

#[tokio::test]
async fn runs_scorekeep_from_definition_to_stopped() -> Result<()> {
    let cluster = Cluster::start().await?;
    let (aws, name) = (cluster.aws()?, cluster.name.as_str());

    // Idempotent: the cluster is there already.
    let created = aws.ecs(&["create-cluster", "--cluster-name", name]).await?;
    assert_eq!(created["cluster"]["status"], "ACTIVE");

    let fixture = format!("file://{}", demo::checkout().join("tests/fixtures/scorekeep.json").display());
    let registered = aws.ecs(&["register-task-definition", "--cli-input-json", &fixture]).await?;
    let definition = &registered["taskDefinition"];
    assert_eq!(definition["family"], "scorekeep");
    assert_eq!(definition["revision"], 1);
    assert_eq!(definition["status"], "ACTIVE");
    assert_eq!(definition["cpu"], "1024");
    assert_eq!(definition["memory"], "2048");

    let ran = aws.ecs(&["run-task", "--cluster", name, "--task-definition", "scorekeep"]).await?;
    assert_eq!(ran["failures"], serde_json::json!([]));
    let arn = text(&ran["tasks"][0], "taskArn")?;
    aws.ecs(&["wait", "tasks-running", "--cluster", name, "--tasks", &arn]).await?;

    let described = aws.ecs(&["describe-tasks", "--cluster", name, "--tasks", &arn]).await?;
    let task = &described["tasks"][0];
    assert_eq!(task["lastStatus"], "RUNNING");
    assert_eq!(task["desiredStatus"], "RUNNING");
    for (server, port) in [("scorekeep-frontend", 8080), ("scorekeep-api", 5000)] {
        assert_eq!(container(task, server)?["lastStatus"], "RUNNING");
        let answer = demo_answer(host_port(task, server, port, "tcp")?, "/").await?;
        ensure!(answer.starts_with("hello from berth-demo"), "{server} answers {answer:?}");
    }

    aws.ecs(&["stop-task", "--cluster", name, "--task", &arn, "--reason", "the game is over"]).await?;
    aws.ecs(&["wait", "tasks-stopped", "--cluster", name, "--tasks", &arn]).await?;
    let task = cluster.task(&arn).await?;
    assert_eq!(task["stopCode"], "UserInitiated");
    assert_eq!(task["stoppedReason"], "the game is over");
    assert_eq!(container(&task, "scorekeep-api")?["exitCode"], 0);
    Ok(())
}

#[tokio::test]
async fn shows_the_instance_and_what_is_left_of_it() -> Result<()> {
    let cluster = Cluster::start().await?;
    let (aws, name) = (cluster.aws()?, cluster.name.as_str());

    let listed = aws.ecs(&["list-container-instances", "--cluster", name]).await?;
    let arn = listed["containerInstanceArns"][0].as_str().unwrap_or_default().to_owned();
    let command = ["describe-container-instances", "--cluster", name, "--container-instances", &arn];
    let before = aws.ecs(&command).await?;
    let instance = &before["containerInstances"][0];
    assert_eq!(instance["status"], "ACTIVE");
    assert_eq!(instance["agentConnected"], true);
    let cpus = std::thread::available_parallelism()?.get() * 1024;
    assert_eq!(amount(instance, "registeredResources", "CPU"), Some(i64::try_from(cpus)?));

    let definition = demo::task("room", "none", serde_json::json!([demo::container("one", &[])]));
    let (task, _) = cluster.running(definition).await?;
    let during = aws.ecs(&command).await?;
    let left = |answer: &serde_json::Value| {
        amount(&answer["containerInstances"][0], "remainingResources", "MEMORY").unwrap_or_default()
    };
    assert_eq!(left(&before) - left(&during), 64);

    cluster.stop(&task, None).await?;
    aws.ecs(&["wait", "tasks-stopped", "--cluster", name, "--tasks", &task]).await?;
    assert_eq!(left(&aws.ecs(&command).await?), left(&before));
    Ok(())
}

fn amount(instance: &serde_json::Value, list: &str, name: &str) -> Option<i64> {
    instance[list].as_array()?.iter().find(|r| r["name"] == name)?["integerValue"].as_i64()
}

#[tokio::test]
async fn errors_come_with_ecs_own_names() -> Result<()> {
    let cluster = Cluster::start().await?;
    let aws = cluster.aws()?;
    for (args, expected) in [
        (vec!["list-tasks", "--cluster", "nowhere"], "ClusterNotFoundException"),
        (vec!["describe-task-definition", "--task-definition", "nothing"], "ClientException"),
        (vec!["stop-task", "--cluster", &cluster.name, "--task", "0"], "InvalidParameterException"),
    ] {
        let output = aws.output(&args).await?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(!output.status.success() && said.contains(expected), "aws ecs {args:?} said {said}");
    }
    Ok(())
}
