//! Promise: a task of a service protects itself from scale-in, from inside and for as long as it says; an
//! operator sees and changes the same. Whoever asks has one answer, also when the control plane has none.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use berth_tests::bench::{Scripted, scripted};
use berth_tests::endpoint::Inside;
use berth_tests::expect::{PATIENCE, here};
use berth_tests::{Cluster, Endpoint, demo, eventually, vpc};
use serde_json::{Value, json};

/// A cluster whose agent serves its tasks, with a subnet.
async fn cluster() -> Result<(Cluster, Endpoint)> {
    let endpoint = Endpoint::new()?;
    let address = endpoint.address();
    let env = [("BERTH_ENDPOINT_ADDRESS", address.as_str()), vpc::ENV[0]];
    Ok((Cluster::start_vpc(vpc::Vpc::new("veth").file(), &env).await?, endpoint))
}

fn sleeper(mode: &str) -> Value {
    demo::task("worker", mode, json!([demo::container("app", &["sleep", "3600"])]))
}

/// A task that runs under that group; its ARN and its container.
async fn worker(cluster: &Cluster, mode: &str, group: &str) -> Result<(String, Inside)> {
    let definition = cluster.register(sleeper(mode)).await?;
    let arn = cluster.run_with(&definition, json!({ "group": group })).await?;
    let inside = Inside::of(cluster, &arn, "app").await?;
    Ok((arn, inside))
}

/// Where a container asks for protection.
fn uri(inside: &Inside) -> Result<String> {
    let base = inside.environment.get("ECS_AGENT_URI");
    let base = base.with_context(|| format!("{:?}", inside.environment.keys()))?;
    Ok(format!("{base}/task-protection/v1/state"))
}

async fn state(inside: &Inside) -> Result<(u16, Value)> {
    let (status, body) = inside.get(&uri(inside)?).await?;
    Ok((status, serde_json::from_str(&body).with_context(|| format!("{status}: {body:?}"))?))
}

async fn protect(inside: &Inside, body: &str) -> Result<(u16, Value)> {
    let (status, answer) = inside.put(&uri(inside)?, body).await?;
    Ok((status, serde_json::from_str(&answer).with_context(|| format!("{body}: {status}: {answer:?}"))?))
}

/// The moment that an answer from inside names, in seconds since the epoch.
fn ends(answer: &Value) -> Result<i64> {
    let text = answer["protection"]["ExpirationDate"].as_str();
    let output = std::process::Command::new("date")
        .args(["--utc", "+%s", "--date", text.with_context(|| answer.to_string())?])
        .output()?;
    Ok(String::from_utf8(output.stdout)?.trim().parse()?)
}

fn now() -> Result<i64> {
    Ok(i64::try_from(std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs())?)
}

#[tokio::test]
async fn a_task_protects_itself_and_an_operator_sees_and_ends_it() -> Result<()> {
    let (mut cluster, _endpoint) = cluster().await?;
    let (arn, inside) = worker(&cluster, "bridge", "service:web").await?;
    let none = json!({"protection": {"ExpirationDate": null, "ProtectionEnabled": false, "TaskArn": arn}});
    assert_eq!(state(&inside).await?, (200, none.clone()));

    for (body, minutes) in
        [(r#"{"ProtectionEnabled":true}"#, 120), (r#"{"ProtectionEnabled":true,"ExpiresInMinutes":60}"#, 60)]
    {
        let (status, answer) = protect(&inside, body).await?;
        assert_eq!((status, &answer["protection"]["ProtectionEnabled"]), (200, &json!(true)), "{answer}");
        assert_eq!(answer["protection"]["TaskArn"], json!(arn));
        let left = ends(&answer)? - now()?;
        ensure!((left - minutes * 60).abs() < 30, "{left} s of {minutes} minutes");
        assert_eq!(state(&inside).await?, (200, answer));
    }

    let aws = cluster.aws()?;
    let of_task = ["--cluster", &cluster.name, "--tasks", &arn];
    let told = aws.ecs(&[&["get-task-protection"], &of_task[..]].concat()).await?;
    assert_eq!(told["failures"], json!([]));
    let protected = &told["protectedTasks"][0];
    assert_eq!((&protected["taskArn"], &protected["protectionEnabled"]), (&json!(arn), &json!(true)));
    ensure!(protected["expirationDate"].is_string() || protected["expirationDate"].is_number(), "{told}");
    // It is the control plane's to remember.
    let before = state(&inside).await?;
    cluster.control_plane.terminate().await?;
    cluster.control_plane.start_again().await?;
    cluster.registered().await?;
    assert_eq!(state(&inside).await?, before);

    let aws = cluster.aws()?;
    let longer =
        [&["update-task-protection"], &of_task[..], &["--protection-enabled", "--expires-in-minutes", "5"]];
    aws.ecs(&longer.concat()).await?;
    let (_, answer) = state(&inside).await?;
    let left = ends(&answer)? - now()?;
    ensure!((left - 5 * 60).abs() < 30, "{left} s of 5 minutes");
    let off = [&["update-task-protection"], &of_task[..], &["--no-protection-enabled"]].concat();
    assert_eq!(
        aws.ecs(&off).await?["protectedTasks"][0],
        json!({"taskArn": arn, "protectionEnabled": false})
    );
    assert_eq!(state(&inside).await?, (200, none));

    let wrong =
        [&["update-task-protection"], &of_task[..], &["--protection-enabled", "--expires-in-minutes", "0"]];
    let refused = aws.output(&wrong.concat()).await?;
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    ensure!(said.contains("InvalidParameterException") && said.contains("between 1 and 2880"), "{said}");
    Ok(())
}

#[tokio::test]
async fn who_asks_for_what_cannot_be_is_told_so_in_ecs_shape() -> Result<()> {
    let (cluster, _endpoint) = cluster().await?;
    let (arn, inside) = worker(&cluster, "bridge", "service:web").await?;
    let (alone, single) = worker(&cluster, "host", "family:worker").await?;
    for ask in [state(&single).await?, protect(&single, r#"{"ProtectionEnabled":true}"#).await?] {
        let (status, answer) = ask;
        let failure = &answer["failure"];
        assert_eq!((status, &failure["Reason"]), (200, &json!("TASK_NOT_VALID")), "{answer}");
        assert_eq!(failure["Arn"], json!(alone));
    }
    let failed =
        cluster.aws()?.ecs(&["get-task-protection", "--cluster", &cluster.name, "--tasks", &alone]).await?;
    assert_eq!(failed["failures"][0]["reason"], "TASK_NOT_VALID");

    for (body, words, by_control_plane) in [
        (r#"{"ProtectionEnabled":true,"ExpiresInMinutes":2881}"#, "between 1 and 2880", true),
        (r#"{"ExpiresInMinutes":5}"#, "ProtectionEnabled", false),
        (r#"{"ProtectionEnabled":1}"#, "decode", false),
        (r#"{"ProtectionEnabled":true,"Forever":true}"#, "decode", false),
        (&format!(r#"{{"ProtectionEnabled":true,"Pad":"{}"}}"#, "x".repeat(10_000)), "decode", false),
    ] {
        let (status, answer) = protect(&inside, body).await?;
        let error = &answer["error"];
        assert_eq!((status, &error["Code"]), (400, &json!("InvalidParameterException")), "{answer}");
        assert_eq!(error["Arn"], json!(arn));
        ensure!(error["Message"].as_str().is_some_and(|message| message.contains(words)), "{answer}");
        assert_eq!(answer["requestID"].is_string(), by_control_plane, "{answer}");
    }
    // Nobody protects another's task, nor one that is none.
    for url in [uri(&single)?, uri(&inside)?.replace("/api/", "/api/0")] {
        let (status, body) = inside.put(&url, r#"{"ProtectionEnabled":true}"#).await?;
        let answer: Value = serde_json::from_str(&body)?;
        assert_eq!((status, &answer["error"]["Code"]), (404, &json!("ResourceNotFoundException")), "{body}");
    }
    assert_eq!(state(&inside).await?.1["protection"]["ProtectionEnabled"], false);
    Ok(())
}

#[tokio::test]
async fn every_mode_with_a_network_has_it() -> Result<()> {
    let (cluster, _endpoint) = cluster().await?;
    let definition =
        cluster.register(vpc::task("own", json!([demo::container("app", &["sleep", "3600"])]))).await?;
    let network =
        json!({ "awsvpcConfiguration": { "subnets": [vpc::SUBNET], "securityGroups": ["sg-open"] } });
    let own = json!({ "group": "service:own", "networkConfiguration": network });
    let own = cluster.run_with(&definition, own).await?;
    let own = Inside::of(&cluster, &own, "app").await?;
    let (_, host) = worker(&cluster, "host", "service:host").await?;
    for inside in [own, host] {
        let (status, answer) = protect(&inside, r#"{"ProtectionEnabled":true}"#).await?;
        assert_eq!((status, &answer["protection"]["ProtectionEnabled"]), (200, &json!(true)), "{answer}");
    }
    let (_, none) = worker(&cluster, "none", "service:none").await?;
    ensure!(!none.environment.contains_key("ECS_AGENT_URI"), "{:?}", none.environment);
    Ok(())
}

#[tokio::test]
async fn without_an_answer_of_the_control_plane_there_is_one_all_the_same() -> Result<()> {
    // Five seconds, and what curl takes.
    const WHOLE: Duration = Duration::from_secs(7);
    let (mut cluster, _endpoint) = cluster().await?;
    let (_, inside) = worker(&cluster, "bridge", "service:web").await?;
    cluster.control_plane.kill().await?;
    eventually(PATIENCE, "the agent knows", || async {
        Ok(cluster.agent.output().contains("not connected to the control plane").then_some(()))
    })
    .await?;
    let began = Instant::now();
    let (status, answer) = protect(&inside, r#"{"ProtectionEnabled":true}"#).await?;
    assert_eq!((status, &answer["error"]["Code"]), (504, &json!("RequestCanceled")), "{answer}");
    ensure!(began.elapsed() < here(WHOLE), "{:?}", began.elapsed());
    cluster.control_plane.start_again().await?;
    cluster.registered().await?;
    assert_eq!(protect(&inside, r#"{"ProtectionEnabled":true}"#).await?.0, 200);

    // One that takes the question, and never answers.
    let plane = Scripted::start(&cluster.name).await?;
    cluster.agent.terminate().await?;
    cluster.agent.lose_state()?;
    cluster.agent.set("ECS_BACKEND_HOST", &format!("http://{}", plane.address));
    cluster.agent.start_again()?;
    plane.noted(PATIENCE, |noted| noted.greeted).await?;
    let (arns, _) = plane.run(vec![scripted::task(plane.cluster(), "bridge", 0)])?;
    plane.running(&arns, PATIENCE).await?;
    let inside = Inside::now(&cluster.engine, &arns[0], "one").await?;
    let began = Instant::now();
    let (status, answer) = state(&inside).await?;
    assert_eq!((status, &answer["error"]["Code"]), (504, &json!("RequestCanceled")), "{answer}");
    ensure!(began.elapsed() < here(WHOLE), "{:?}", began.elapsed());

    // And one that goes away with it: that is told at once, and it is not asked again.
    let go = async {
        plane.noted(PATIENCE, |noted| (noted.protection_asked == 2).then_some(())).await?;
        plane.close();
        plane.noted(PATIENCE, |noted| noted.greeted).await
    };
    let (asked, gone) = tokio::join!(protect(&inside, r#"{"ProtectionEnabled":true}"#), go);
    gone?;
    let (status, answer) = asked?;
    assert_eq!((status, &answer["error"]["Code"]), (500, &json!("ServerException")), "{answer}");
    assert_eq!(answer["error"]["Arn"], json!(arns[0]));
    let again = plane.noted(PATIENCE, |noted| Some(noted.protection_asked)).await?;
    assert_eq!(again, 2, "it was asked in two sessions");
    Ok(())
}
