//! Promise: a container finds out about itself and its task, in every network mode that has a network,
//! under a name and from an address that are its own; nobody else finds out anything.

use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use berth_tests::cluster::container;
use berth_tests::endpoint::Inside;
use berth_tests::expect::PATIENCE;
use berth_tests::{Cluster, Endpoint, demo, eventually, python, vpc};
use serde_json::{Value, json};
use tokio::process::Command;

/// A cluster whose agent serves its tasks, with a subnet.
async fn cluster() -> Result<(Cluster, Endpoint)> {
    let endpoint = Endpoint::new()?;
    let address = endpoint.address();
    let env = [("BERTH_ENDPOINT_ADDRESS", address.as_str()), vpc::ENV[0]];
    Ok((Cluster::start_vpc(vpc::Vpc::new("veth").file(), &env).await?, endpoint))
}

fn stays(name: &str, members: Value) -> Value {
    demo::container_with(name, &["sleep", "3600"], members)
}

#[tokio::test]
async fn a_container_finds_out_about_itself_and_its_task() -> Result<()> {
    let (cluster, _endpoint) = cluster().await?;
    let mut definition = demo::task(
        "about",
        "bridge",
        json!([
            stays(
                "web",
                json!({
                    "cpu": 64, "portMappings": [{ "containerPort": 8080 }], "dockerLabels": { "team": "blue" },
                    "environment": [{ "name": "PRIVATE", "value": "of-web" }],
                    "logConfiguration": { "logDriver": "json-file", "options": { "max-size": "1m" } },
                })
            ),
            stays(
                "side",
                json!({ "memory": 32, "environment": [{ "name": "PRIVATE", "value": "of-side" }] })
            ),
        ]),
    );
    definition["cpu"] = json!("256");
    definition["memory"] = json!("256");
    let arn = cluster.run(definition).await?;
    let web = Inside::of(&cluster, &arn, "web").await?;
    assert_eq!(web.environment["AWS_EXECUTION_ENV"], "AWS_ECS_EC2");
    assert_eq!(web.environment["AWS_REGION"], "us-east-1");

    let described = cluster.task(&arn).await?;
    let told = web.json("").await?;
    let (seen, own) = (container(&described, "web")?, cluster.engine.id_of(&arn, "web").await?);
    assert_eq!((&told["DockerId"], &told["ContainerARN"]), (&json!(own), &seen["containerArn"]));
    assert_eq!((&told["Name"], &told["Image"]), (&json!("web"), &json!(demo::IMAGE)));
    assert_eq!((&told["DesiredStatus"], &told["KnownStatus"]), (&json!("RUNNING"), &json!("RUNNING")));
    assert_eq!(told["Limits"], json!({ "CPU": 64, "Memory": 64 }));
    assert_eq!((&told["Type"], &told["LogDriver"]), (&json!("NORMAL"), &json!("json-file")));
    let options = json!({ "max-size": "1m", "mode": "non-blocking", "max-buffer-size": "10m" });
    assert_eq!(told["LogOptions"], options);
    assert_eq!(
        (&told["Labels"]["team"], &told["Labels"]["com.amazonaws.ecs.task-arn"]),
        (&json!("blue"), &json!(arn))
    );
    let bound = &seen["networkBindings"][0]["hostPort"];
    assert_eq!(told["Ports"], json!([{ "ContainerPort": 8080, "Protocol": "tcp", "HostPort": bound }]));
    assert_eq!(told["Networks"][0]["NetworkMode"], "bridge");
    ensure!(told["Networks"][0]["IPv4Addresses"][0].is_string(), "{told}");
    ensure!(told["ImageID"].as_str().is_some_and(|id| id.starts_with("sha256:")), "{told}");
    for at in ["CreatedAt", "StartedAt"] {
        ensure!(told[at].as_str().is_some_and(|at| at.ends_with('Z')), "{at} in {told}");
    }
    ensure!(!told.to_string().contains("of-side"), "another container's environment");

    let task = web.json("/task").await?;
    assert_eq!(
        (&task["TaskARN"], &task["Family"], &task["Revision"]),
        (&json!(arn), &json!("about"), &json!("1"))
    );
    assert_eq!((&task["Cluster"], &task["LaunchType"]), (&json!(cluster.name), &json!("EC2")));
    assert_eq!(
        (&task["KnownStatus"], &task["Limits"]),
        (&json!("RUNNING"), &json!({ "CPU": 0.25, "Memory": 256 }))
    );
    assert_eq!(task["Containers"].as_array().map(Vec::len), Some(2), "{task}");
    assert_eq!(web.json("/taskWithTags").await?["TaskARN"], task["TaskARN"]);

    // Version 3 is the same with less.
    let three = web.environment["ECS_CONTAINER_METADATA_URI"].clone();
    let (status, body) = web.get(&three).await?;
    ensure!(
        status == 200 && body.contains("\"DockerId\"") && !body.contains("ContainerARN"),
        "{status} {body}"
    );
    Ok(())
}

#[tokio::test]
async fn opentelemetry_detects_where_it_runs() -> Result<()> {
    const SCRIPT: &str = "import json\n\
        from opentelemetry.sdk.extension.aws.resource.ecs import AwsEcsResourceDetector\n\
        print(json.dumps(dict(AwsEcsResourceDetector(raise_on_error=True).detect().attributes)))\n";
    let (cluster, _endpoint) = cluster().await?;
    let arn = cluster.run(python::task("detected", "bridge", "app", SCRIPT)?).await?;
    let task = cluster.until(&arn, "STOPPED", PATIENCE).await?;
    let id = cluster.engine.id_of(&arn, "app").await?;
    let said = cluster.engine.logs(&id).await?;
    ensure!(container(&task, "app")?["exitCode"] == 0, "{said} {task}");
    let found: Value = serde_json::from_str(said.trim())?;
    for (name, expected) in [
        ("cloud.platform", json!("aws_ecs")),
        ("container.id", json!(id)),
        ("aws.ecs.container.arn", container(&task, "app")?["containerArn"].clone()),
        ("aws.ecs.task.arn", json!(arn)),
        ("aws.ecs.task.family", json!("detected")),
        ("aws.ecs.launchtype", json!("ec2")),
    ] {
        assert_eq!(found[name], expected, "{name} in {found}");
    }
    ensure!(found["aws.ecs.cluster.arn"].as_str().is_some_and(|c| c.contains(&cluster.name)), "{found}");
    Ok(())
}

#[tokio::test]
async fn what_containers_use_comes_from_the_kernel() -> Result<()> {
    let (cluster, _endpoint) = cluster().await?;
    let busy = demo::container("busy", &[]);
    let (arn, _) = cluster.running(demo::task("stats", "bridge", json!([busy]))).await?;
    let inside = Inside::of(&cluster, &arn, "busy").await?;
    let first = inside.json("/stats").await?;
    let number = |stats: &Value, pointer: &str| {
        stats.pointer(pointer).and_then(Value::as_u64).with_context(|| format!("{pointer} in {stats}"))
    };
    ensure!(number(&first, "/memory_stats/limit")? == 64 << 20, "{first}");
    for pointer in [
        "/cpu_stats/cpu_usage/total_usage",
        "/cpu_stats/system_cpu_usage",
        "/cpu_stats/online_cpus",
        "/memory_stats/usage",
        "/pids_stats/current",
        "/networks/eth0/rx_bytes",
    ] {
        ensure!(number(&first, pointer)? > 0, "{pointer} is 0 in {first}");
    }
    // Its own questions are traffic.
    eventually(PATIENCE, "a rate since an earlier reading", || async {
        let later = inside.json("/stats").await?;
        let rate = later["network_rate_stats"]["tx_bytes_per_sec"].as_f64().is_some_and(|rate| rate > 0.0);
        let earlier = |stats: &Value| stats.pointer("/precpu_stats/cpu_usage/total_usage").cloned();
        Ok((rate && earlier(&later) == first.pointer("/cpu_stats/cpu_usage/total_usage").cloned())
            .then_some(()))
    })
    .await?;
    let whole = inside.json("/task/stats").await?;
    let id = cluster.engine.id_of(&arn, "busy").await?;
    ensure!(whole[&id]["memory_stats"]["usage"].is_u64(), "{whole}");
    Ok(())
}

#[tokio::test]
async fn prometheus_gets_the_host_and_every_container() -> Result<()> {
    let (cluster, _endpoint) = cluster().await?;
    let (arn, _) =
        cluster.running(demo::task("figures", "bridge", json!([demo::container("web", &[])]))).await?;
    // So that something came over its network.
    assert_eq!(Inside::of(&cluster, &arn, "web").await?.json("").await?["Name"], "web");
    let url = format!("http://{}/v1/health", cluster.agent.introspection()?);
    let health: Value = serde_json::from_str(&berth_tests::http::get(&url).await?.1)?;
    ensure!(health["Subsystems"]["Engine"] == "answers" && health["Healthy"] == true, "{health}");
    let url = format!("http://{}/metrics", cluster.agent.introspection()?);
    let (status, text) = berth_tests::http::get(&url).await?;
    assert_eq!(status.as_u16(), 200, "{text}");
    let id = arn.rsplit('/').next().unwrap_or_default();
    let figure = |name: &str, label: &str| {
        let line = text.lines().find(|line| line.starts_with(name) && line.contains(label));
        let line = line.with_context(|| format!("no {name} with {label} in {text}"))?;
        Ok::<f64, anyhow::Error>(line.rsplit(' ').next().unwrap_or_default().parse()?)
    };
    ensure!(figure("berth_session_connected", "")? > 0.0 && figure("berth_engine_up", "")? > 0.0, "{text}");
    ensure!(figure("berth_tasks", "status=\"RUNNING\"")? > 0.0, "{text}");
    assert_eq!(figure("berth_host_memory_bytes", "in_use")?, f64::from(64 << 20));
    assert_eq!(figure("berth_container_memory_limit_bytes", id)?, f64::from(64 << 20));
    for name in [
        "berth_container_cpu_seconds_total",
        "berth_container_memory_working_set_bytes",
        "berth_container_processes",
        "berth_container_network_receive_bytes_total",
    ] {
        ensure!(figure(name, id)? > 0.0, "{name} in {text}");
    }
    // Each family is told of once, before its figures.
    for line in text.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
        let name = line.split(' ').next().unwrap_or_default();
        assert_eq!(text.matches(&format!("# TYPE {name} ")).count(), 1, "{name}");
    }
    Ok(())
}

#[tokio::test]
async fn every_mode_with_a_network_has_it_and_none_says_so_by_silence() -> Result<()> {
    let (cluster, _endpoint) = cluster().await?;
    let host = cluster.run(demo::task("on-host", "host", json!([stays("app", json!({}))]))).await?;
    let host = Inside::of(&cluster, &host, "app").await?;
    assert_eq!(host.json("/task").await?["Family"], "on-host");

    let own = vpc::run(&cluster, vpc::task("own", json!([stays("app", json!({}))])), &["sg-open"]).await?;
    let inside = Inside::of(&cluster, &own, "app").await?;
    let task = inside.json("/task").await?;
    let network = &task["Containers"][0]["Networks"][0];
    let described = cluster.task(&own).await?;
    assert_eq!(network["IPv4Addresses"][0], vpc::address(&described)?);
    assert_eq!(network["MACAddress"], vpc::detail(&described, "macAddress")?);
    ensure!(network["SubnetGatewayIpv4Address"].as_str().is_some_and(|g| g.ends_with("/24")), "{network}");
    assert_eq!(task["Containers"][1]["Type"], "CNI_PAUSE");
    // Version 2 knows it by its address.
    let base = inside.uri()?.split("/v4/").next().unwrap_or_default().to_owned();
    let (status, body) = inside.get(&format!("{base}/v2/metadata")).await?;
    ensure!(status == 200 && body.contains(&own), "{status} {body}");
    let (status, body) = inside.get(&format!("{base}/v2/stats")).await?;
    ensure!(status == 200 && body.contains("memory_stats"), "{status} {body}");
    // From here, version 2 knows nobody.
    assert_eq!(host.get(&format!("{base}/v2/metadata")).await?.0, 404);

    let none = cluster.run(demo::task("alone", "none", json!([stays("app", json!({}))]))).await?;
    let none = Inside::of(&cluster, &none, "app").await?;
    ensure!(!none.environment.contains_key("ECS_CONTAINER_METADATA_URI_V4"), "{:?}", none.environment);
    Ok(())
}

#[tokio::test]
async fn a_name_works_from_its_own_task_alone() -> Result<()> {
    let (cluster, _endpoint) = cluster().await?;
    let run = async |family: &str, mode: &str| {
        let arn = cluster.run(demo::task(family, mode, json!([stays("app", json!({}))]))).await?;
        Inside::of(&cluster, &arn, "app").await
    };
    let (mine, other, on_host) =
        (run("mine", "bridge").await?, run("other", "bridge").await?, run("host", "host").await?);
    let own = vpc::run(&cluster, vpc::task("own", json!([stays("app", json!({}))])), &["sg-open"]).await?;
    let own = Inside::of(&cluster, &own, "app").await?;
    let all = [&mine, &other, &on_host, &own];
    for (at, victim) in all.iter().enumerate() {
        for (from, caller) in all.iter().enumerate() {
            let (status, body) = caller.get(&format!("{}/task", victim.uri()?)).await?;
            let expected = if at == from { 200 } else { 404 };
            ensure!(status == expected, "{from} asks about {at}: {status} {body}");
        }
    }
    let base = mine.uri()?.split("/v4/").next().unwrap_or_default().to_owned();
    assert_eq!(mine.get(&format!("{base}/v4/0123456789abcdef0123456789abcdef")).await?.0, 404);
    assert_eq!(mine.get(&format!("{base}/")).await?.0, 404);
    Ok(())
}

#[tokio::test]
async fn the_same_name_works_after_a_restart_and_when_the_state_is_lost() -> Result<()> {
    let (mut cluster, _endpoint) = cluster().await?;
    let arn = cluster.run(demo::task("again", "bridge", json!([stays("app", json!({}))]))).await?;
    let inside = Inside::of(&cluster, &arn, "app").await?;
    for lost in [false, true] {
        cluster.agent.kill().await?;
        cluster.disconnected().await?;
        if lost {
            cluster.agent.lose_state()?;
        }
        cluster.agent.start_again()?;
        cluster.registered().await?;
        assert_eq!(inside.json("/task").await?["TaskARN"], json!(arn), "state lost: {lost}");
    }
    Ok(())
}

#[tokio::test]
async fn the_host_has_its_address_as_long_as_somebody_may_ask_and_keeps_what_others_gave_it() -> Result<()> {
    let given = || -> Result<bool> {
        let lo =
            std::process::Command::new("ip").args(["-oneline", "address", "show", "dev", "lo"]).output()?;
        Ok(String::from_utf8(lo.stdout)?.contains("169.254.170.2/32"))
    };
    let endpoint = Endpoint::of_nobody()?;
    let address = endpoint.address();
    let mut cluster = Cluster::start_with(&[("BERTH_ENDPOINT_ADDRESS", address.as_str())]).await?;
    let (task, _) = cluster.running(demo::task("asks", "bridge", json!([stays("app", json!({}))]))).await?;
    ensure!(given()?, "nobody gave the host the address");
    cluster.agent.terminate().await?;
    ensure!(given()?, "what the task asks would go to the host's neighbours");
    cluster.agent.start_again()?;
    cluster.stop(&task, None).await?;
    cluster.until(&task, "STOPPED", PATIENCE).await?;
    cluster.agent.terminate().await?;
    ensure!(!given()?, "the agent left its address");

    vpc::ip(&["address", "add", "169.254.170.2/32", "dev", "lo"])?;
    cluster.agent.start_again()?;
    cluster.registered().await?;
    cluster.agent.terminate().await?;
    ensure!(given()?, "the agent took away what it did not give");
    Ok(())
}

#[tokio::test]
async fn one_that_asks_too_often_is_told_so_and_holds_up_nobody() -> Result<()> {
    const FLOOD: Duration = Duration::from_secs(3);
    let (cluster, _endpoint) = cluster().await?;
    let run = async |family: &str| {
        let arn = cluster.run(demo::task(family, "bridge", json!([stays("app", json!({}))]))).await?;
        Inside::of(&cluster, &arn, "app").await
    };
    let (greedy, modest) = (run("greedy").await?, run("modest").await?);
    let url = format!("{}/task", greedy.uri()?);
    let numbered = format!("{url}?[1-100000]");
    let mut flood = Command::new("nsenter")
        .args(["--target", &greedy.pid.to_string(), "--net", "--", "curl", "--silent", "--parallel"])
        .args([
            "--max-time",
            &FLOOD.as_secs().to_string(),
            "--output",
            "/dev/null",
            // Which keeps nothing back.
            "--write-out",
            "%{stderr}%{http_code}\n",
        ])
        .arg(&numbered)
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let began = Instant::now();
    let mut answered = 0;
    while began.elapsed() < FLOOD {
        assert_eq!(modest.json("").await?["Name"], "app");
        answered += 1;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    ensure!(answered > 10, "{answered} answers");
    flood.start_kill()?;
    let said = String::from_utf8(flood.wait_with_output().await?.stderr)?;
    let count = |status: &str| said.lines().filter(|line| *line == status).count();
    ensure!(
        count("429") > count("200") && count("200") > 40,
        "{} × 200, {} × 429",
        count("200"),
        count("429")
    );
    Ok(())
}

#[tokio::test]
async fn how_the_agent_itself_is_can_be_asked_where_the_operator_wants_it() -> Result<()> {
    const TOLD: &str = "runtime statistics: ";
    let mut cluster = Cluster::start().await?;
    let get = async |cluster: &Cluster, path: &str| {
        let url = format!("http://{}{path}", cluster.agent.introspection()?);
        let (status, text) = berth_tests::http::get(&url).await?;
        anyhow::Ok((status.as_u16(), text))
    };
    let unknown = get(&cluster, "/nowhere").await?;
    for path in ["/debug/pprof/", "/debug/pprof/runtime"] {
        assert_eq!(get(&cluster, path).await?, unknown, "{path}");
    }
    ensure!(!cluster.agent.output().contains(TOLD), "{}", cluster.agent.output());

    cluster.agent.terminate().await?;
    cluster.disconnected().await?;
    cluster.agent.set("ECS_ENABLE_RUNTIME_STATS", "true");
    cluster.agent.start_again()?;
    cluster.registered().await?;
    let (arn, _) =
        cluster.running(demo::task("figures", "bridge", json!([demo::container("web", &[])]))).await?;
    let (status, index) = get(&cluster, "/debug/pprof/").await?;
    ensure!(status == 200 && index.contains("runtime") && index.contains("perf"), "{status} {index}");
    let (status, text) = get(&cluster, "/debug/pprof/runtime").await?;
    assert_eq!(status, 200, "{text}");
    let figure = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        Ok::<u64, anyhow::Error>(line.with_context(|| format!("no {name} in {text}"))?.parse()?)
    };
    for name in ["resident_memory_bytes", "threads", "open_files", "futures", "workers", "tasks_running"] {
        ensure!(figure(name)? > 0, "{name} is 0 in {text}");
    }
    assert_eq!(figure("task_actors")?, 1, "{arn}: {text}");
    ensure!(figure("resident_memory_bytes")? < 1 << 30, "{text}");
    let (status, text) = get(&cluster, "/debug/pprof/heap").await?;
    ensure!(status == 404 && text.contains("Unknown profile") && text.contains("runtime"), "{status} {text}");
    let (status, text) = get(&cluster, "/debug/pprof/cmdline").await?;
    ensure!(status == 200 && text.contains("berth-agent"), "{status} {text}");
    ensure!(cluster.agent.output().contains(TOLD), "{}", cluster.agent.output());
    Ok(())
}

/// Whoever reaches the introspection API from another host does not reach that.
#[tokio::test]
async fn how_the_agent_itself_is_is_told_on_the_host_alone() -> Result<()> {
    let env = [("ECS_ENABLE_RUNTIME_STATS", "true"), ("BERTH_INTROSPECTION_ADDRESS", "0.0.0.0:0")];
    let cluster = Cluster::start_with(&env).await?;
    let (arn, _) = cluster
        .running(demo::task("other", "bridge", json!([demo::container("app", &["sleep", "600"])])))
        .await?;
    let inside = Inside::of(&cluster, &arn, "app").await?;
    let at = cluster.agent.introspection()?;
    let port = at.rsplit(':').next().context("a port")?;
    let (status, here) = berth_tests::http::get(&format!("http://127.0.0.1:{port}/debug/pprof/")).await?;
    ensure!(status.is_success() && here.contains("perf"), "{here}");
    // The host, as the engine's bridge has it.
    let host = "172.17.0.1";
    let there = inside.get(&format!("http://{host}:{port}/debug/pprof/")).await?;
    assert_eq!(there, inside.get(&format!("http://{host}:{port}/nowhere")).await?);
    ensure!(there.1.contains("AvailableCommands"), "{there:?}");
    Ok(())
}

#[tokio::test]
async fn a_port_of_the_introspection_api_that_is_taken_is_had_as_soon_as_it_is_free() -> Result<()> {
    let taken = std::net::TcpListener::bind("127.0.0.1:0")?;
    let at = taken.local_addr()?.to_string();
    let cluster = Cluster::start_with(&[("BERTH_INTROSPECTION_ADDRESS", at.as_str())]).await?;
    let told = cluster.agent.output();
    ensure!(told.contains("no introspection API until that port is free"), "{told}");
    drop(taken);
    let url = format!("http://{at}/v1/metadata");
    let metadata = eventually(PATIENCE, "it is served", || async {
        Ok(berth_tests::http::get(&url).await.ok().filter(|(status, _)| status.is_success()))
    })
    .await?;
    ensure!(metadata.1.contains("ContainerInstanceArn"), "{metadata:?}");
    Ok(())
}
