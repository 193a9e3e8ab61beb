//! Promise: a task that is allowed to breaks its own network for a while, as ECS's fault injection does: the port
//! is really closed, those who are spared are, and nothing of it outlives the task, whatever becomes of the agent.

use std::collections::BTreeSet;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use berth_agent::network::guard::Named;
use berth_agent::network::guard::named::remove_table;
use berth_agent::network::plan::agent_name;
use berth_tests::endpoint::Inside;
use berth_tests::expect::{PATIENCE, here};
use berth_tests::vpc::{self, Vpc, address};
use berth_tests::{Cluster, Endpoint, demo, eventually};
use serde_json::{Value, json};

/// How long a connection may take that is not to come about.
const CLOSED: Duration = Duration::from_millis(400);

/// The agent's rules in the host's own network: what a test leaves of them is removed with this.
struct Rules {
    data_dir: PathBuf,
}

impl Rules {
    fn of(cluster: &Cluster) -> Self {
        Self { data_dir: cluster.agent.data_dir().to_owned() }
    }

    fn prefix(&self) -> String {
        format!("berth-fault-{}-", agent_name(&self.data_dir.display().to_string()))
    }

    /// The chains that are in force.
    fn chains(&self) -> Result<BTreeSet<String>> {
        let all = Named::list()?;
        let own = all.into_iter().filter(|chain| chain.table.starts_with(&self.prefix()));
        Ok(own.map(|chain| chain.chain).collect())
    }

    async fn are_gone(&self) -> Result<()> {
        eventually(PATIENCE, "the host's network is whole", || async {
            let left = self.chains()?;
            ensure!(left.is_empty(), "{left:?}");
            Ok(Some(()))
        })
        .await
    }
}

impl Drop for Rules {
    fn drop(&mut self) {
        let left = Named::list().unwrap_or_default();
        let tables =
            left.into_iter().map(|chain| chain.table).filter(|table| table.starts_with(&self.prefix()));
        for table in tables.collect::<BTreeSet<_>>() {
            // The agent may be at it, too.
            let _ = remove_table(&table);
        }
    }
}

/// A cluster whose agent serves its tasks, with a subnet.
async fn cluster(vpc: &Vpc) -> Result<(Cluster, Rules, Endpoint)> {
    let endpoint = Endpoint::new()?;
    let own = endpoint.address();
    let env = [("BERTH_ENDPOINT_ADDRESS", own.as_str()), vpc::ENV[0]];
    let cluster = Cluster::start_vpc(vpc.file(), &env).await?;
    let rules = Rules::of(&cluster);
    Ok((cluster, rules, endpoint))
}

/// A definition whose containers may break their network: a server on 8080, and one that idles.
fn breakable(mode: &str) -> Value {
    let containers = match mode {
        "host" => json!([demo::container("app", &["sleep", "3600"])]),
        _ => json!([
            demo::container("app", &["sleep", "3600"]),
            demo::container("web", &["serve", "--port", "8080"]),
        ]),
    };
    demo::merged(demo::task("broken", mode, containers), &json!({ "enableFaultInjection": true }))
}

/// A task in a namespace of its own, what is inside, and its address.
async fn own(cluster: &Cluster) -> Result<(String, Inside, SocketAddr)> {
    let arn = vpc::run(cluster, breakable("awsvpc"), &["sg-open"]).await?;
    let inside = Inside::of(cluster, &arn, "app").await?;
    let at = SocketAddr::new(address(&cluster.task(&arn).await?)?.parse()?, 8080);
    eventually(PATIENCE, "the server answers", || async { Ok(opens(at).then_some(())) }).await?;
    Ok((arn, inside, at))
}

fn opens(at: SocketAddr) -> bool {
    TcpStream::connect_timeout(&at, here(CLOSED)).is_ok()
}

async fn opens_from(inside: &Inside, at: SocketAddr) -> Result<bool> {
    inside.run(move || Ok(opens(at))).await
}

/// What a container gets that asks for that.
async fn ask(inside: &Inside, what: &str, body: &str) -> Result<(u16, Value)> {
    let base = inside.environment.get("ECS_AGENT_URI");
    let base = base.with_context(|| format!("{:?}", inside.environment.keys()))?;
    let (status, answer) = inside.post(&format!("{base}/fault/v1/{what}"), body).await?;
    Ok((status, serde_json::from_str(&answer).with_context(|| answer.clone())?))
}

async fn hole(inside: &Inside, operation: &str, body: &Value) -> Result<String> {
    let (status, answer) =
        ask(inside, &format!("network-blackhole-port/{operation}"), &body.to_string()).await?;
    ensure!(status == 200, "{operation} {body}: {status} {answer}");
    Ok(answer["Status"].as_str().with_context(|| answer.to_string())?.to_owned())
}

fn port(direction: &str, number: u16) -> Value {
    json!({ "Port": number, "Protocol": "tcp", "TrafficType": direction })
}

fn but_for(hole: &Value, spared: &Value) -> Value {
    demo::merged(hole.clone(), &json!({ "SourcesToFilter": spared }))
}

#[tokio::test]
async fn a_port_is_closed_and_opened_again() -> Result<()> {
    let vpc = Vpc::new("veth");
    let (cluster, _rules, _endpoint) = cluster(&vpc).await?;
    let before = vpc::traces(cluster.agent.data_dir())?;
    let (arn, inside, at) = own(&cluster).await?;
    let metadata = inside.json("/task").await?;
    assert_eq!(metadata["FaultInjectionEnabled"], true, "{metadata}");

    let incoming = port("ingress", 8080);
    assert_eq!(hole(&inside, "status", &incoming).await?, "not-running");
    assert_eq!(hole(&inside, "start", &incoming).await?, "running");
    ensure!(!opens(at), "{at} answers");
    assert_eq!(hole(&inside, "status", &incoming).await?, "running");
    // Once more, it stays as it is; another port's is another.
    assert_eq!(hole(&inside, "start", &but_for(&incoming, &json!([vpc.gateway()]))).await?, "running");
    ensure!(!opens(at), "{at} answers");
    assert_eq!(hole(&inside, "status", &port("egress", 8080)).await?, "not-running");

    // Two at once: one is stopped, the other stays.
    let outgoing = port("egress", 9);
    assert_eq!(hole(&inside, "start", &outgoing).await?, "running");
    assert_eq!(hole(&inside, "stop", &incoming).await?, "stopped");
    ensure!(opens(at), "{at} does not answer");
    assert_eq!(hole(&inside, "status", &outgoing).await?, "running");
    assert_eq!(hole(&inside, "stop", &outgoing).await?, "stopped");
    assert_eq!(hole(&inside, "stop", &outgoing).await?, "stopped");

    // It goes with the task.
    assert_eq!(hole(&inside, "start", &incoming).await?, "running");
    cluster.stop(&arn, None).await?;
    cluster.until(&arn, "STOPPED", PATIENCE).await?;
    vpc::nothing_more_than(&before, &cluster).await
}

#[tokio::test]
async fn those_who_are_spared_come_through() -> Result<()> {
    let vpc = Vpc::new("veth");
    let (cluster, _rules, _endpoint) = cluster(&vpc).await?;
    let (_, inside, at) = own(&cluster).await?;
    let (_, other, there) = own(&cluster).await?;
    ensure!(
        opens_from(&other, at).await? && opens_from(&inside, there).await?,
        "they do not reach each other"
    );

    let incoming = port("ingress", 8080);
    assert_eq!(
        hole(&inside, "start", &but_for(&incoming, &json!([there.ip(), "192.0.2.0/24"]))).await?,
        "running"
    );
    ensure!(opens_from(&other, at).await?, "{} is spared, and did not come through", there.ip());
    ensure!(!opens(at), "the host is not spared, and came through");
    assert_eq!(hole(&inside, "stop", &incoming).await?, "stopped");

    let outgoing = port("egress", 8080);
    assert_eq!(hole(&inside, "start", &outgoing).await?, "running");
    ensure!(!opens_from(&inside, there).await?, "{there} was reached");
    ensure!(opens(at), "what comes in is closed as well");
    assert_eq!(hole(&inside, "stop", &outgoing).await?, "stopped");
    let block = format!("{}/24", vpc.host(0));
    assert_eq!(hole(&inside, "start", &but_for(&outgoing, &json!([block]))).await?, "running");
    ensure!(opens_from(&inside, there).await?, "{block} is spared, and was not reached");

    // Whoever closes the endpoint's own port can open it again.
    let own: SocketAddr = inside.endpoint()?.0.parse()?;
    let endpoint = port("egress", own.port());
    assert_eq!(hole(&inside, "start", &endpoint).await?, "running");
    assert_eq!(hole(&inside, "stop", &endpoint).await?, "stopped");
    Ok(())
}

#[tokio::test]
async fn a_fault_outlives_the_agent_and_many_at_once_are_done_one_by_one() -> Result<()> {
    let vpc = Vpc::new("veth");
    let (mut cluster, _rules, _endpoint) = cluster(&vpc).await?;
    let (_, inside, at) = own(&cluster).await?;
    let incoming = port("ingress", 8080);
    let start = || hole(&inside, "start", &incoming);
    let (one, two, three) = tokio::join!(start(), start(), start());
    assert_eq!([one?, two?, three?], ["running"; 3]);

    cluster.agent.kill().await?;
    cluster.disconnected().await?;
    ensure!(!opens(at), "{at} answers");
    cluster.agent.start_again()?;
    cluster.registered().await?;
    let status = eventually(PATIENCE, "the endpoint answers", || async {
        Ok(Some(hole(&inside, "status", &incoming).await?))
    })
    .await?;
    assert_eq!(status, "running");
    assert_eq!(hole(&inside, "stop", &incoming).await?, "stopped");
    ensure!(opens(at), "{at} does not answer");

    // What is asked too often is refused.
    for _ in 0..5 {
        ask(&inside, "network-latency/status", "").await?;
    }
    let (status, answer) = ask(&inside, "network-latency/status", "").await?;
    assert_eq!(status, 429, "{answer}");
    ensure!(answer["Error"].is_string(), "{answer}");
    Ok(())
}

#[tokio::test]
async fn in_host_mode_the_hosts_port_is_closed_until_the_task_ends() -> Result<()> {
    let vpc = Vpc::new("veth");
    let (mut cluster, rules, _endpoint) = cluster(&vpc).await?;
    // The test's own ports: nobody else's are touched.
    let (own, others) = (TcpListener::bind("127.0.0.1:0")?, TcpListener::bind("127.0.0.1:0")?);
    let (at, other) = (own.local_addr()?, others.local_addr()?);
    let (arn, _) = cluster.running(breakable("host")).await?;
    let inside = Inside::of(&cluster, &arn, "app").await?;
    let incoming = port("ingress", at.port());
    assert_eq!(hole(&inside, "start", &incoming).await?, "running");
    ensure!(!opens(at) && opens(other), "{at} is to be closed, and {other} open");
    assert_eq!(rules.chains()?, BTreeSet::from([format!("ingress-tcp-{}", at.port())]));
    assert_eq!(hole(&inside, "stop", &incoming).await?, "stopped");
    ensure!(opens(at), "{at} does not answer");
    rules.are_gone().await?;

    // Each task undoes its own.
    let (second, _) = cluster.running(breakable("host")).await?;
    let beside = Inside::of(&cluster, &second, "app").await?;
    assert_eq!(hole(&inside, "start", &incoming).await?, "running");
    assert_eq!(hole(&beside, "status", &incoming).await?, "not-running");
    assert_eq!(hole(&beside, "start", &port("ingress", other.port())).await?, "running");
    cluster.stop(&second, None).await?;
    cluster.until(&second, "STOPPED", PATIENCE).await?;
    ensure!(opens(other) && !opens(at), "{other} is to be open again, and {at} closed");

    // Also one that ends while the agent is away.
    cluster.agent.kill().await?;
    cluster.disconnected().await?;
    cluster.engine.kill(&cluster.engine.id_of(&arn, "app").await?).await?;
    cluster.agent.start_again()?;
    cluster.registered().await?;
    cluster.until(&arn, "STOPPED", PATIENCE).await?;
    rules.are_gone().await?;
    ensure!(opens(at), "{at} does not answer");
    Ok(())
}

#[tokio::test]
async fn what_nobody_remembers_is_undone() -> Result<()> {
    let (mut cluster, rules, _endpoint) = cluster(&Vpc::new("veth")).await?;
    let own = TcpListener::bind("127.0.0.1:0")?;
    let at = own.local_addr()?;
    let (arn, _) = cluster.running(breakable("host")).await?;
    let inside = Inside::of(&cluster, &arn, "app").await?;
    assert_eq!(hole(&inside, "start", &port("ingress", at.port())).await?, "running");
    cluster.agent.kill().await?;
    cluster.disconnected().await?;
    cluster.engine.remove(&cluster.engine.id_of(&arn, "app").await?).await?;
    cluster.agent.lose_state()?;
    cluster.agent.start_again()?;
    rules.are_gone().await?;
    ensure!(opens(at), "{at} does not answer");
    Ok(())
}

#[tokio::test]
async fn who_may_not_and_what_cannot_be_is_told_in_ecs_words() -> Result<()> {
    let (cluster, rules, _endpoint) = cluster(&Vpc::new("veth")).await?;
    let good = port("ingress", 8080).to_string();
    let start = "network-blackhole-port/start";

    // Not allowed to.
    let plain = vpc::task("plain", json!([demo::container("app", &["sleep", "3600"])]));
    let arn = vpc::run(&cluster, plain, &["sg-open"]).await?;
    let inside = Inside::of(&cluster, &arn, "app").await?;
    let expected = json!({ "Error": format!("enableFaultInjection is not enabled for task: {arn}") });
    assert_eq!(ask(&inside, start, &good).await?, (400, expected));
    assert_eq!(inside.json("/task").await?["FaultInjectionEnabled"], false);

    // Without a network that is told from the others'.
    let (arn, _) = cluster.running(breakable("bridge")).await?;
    let bridged = Inside::of(&cluster, &arn, "app").await?;
    let words = "bridge mode is not supported. Please use either host or awsvpc mode.";
    assert_eq!(ask(&bridged, start, &good).await?, (400, json!({ "Error": words })));

    // What is wrong with a request is told before.
    for (what, body, words) in [
        (start, "", "required request body is missing"),
        (start, r#"{"Port":80,"Protocol":"icmp"}"#, "required parameter TrafficType is missing"),
        (
            start,
            r#"{"Port":80,"Protocol":"icmp","TrafficType":"ingress"}"#,
            "invalid value icmp for parameter Protocol",
        ),
        ("network-blackhole-port/stop", "{}", "required parameter Port is missing"),
        ("network-latency/start", "{}", "required parameter DelayMilliseconds is missing"),
        ("network-packet-loss/start", r#"{"LossPercent":0}"#, "invalid value 0 for parameter LossPercent"),
        (
            "network-packet-loss/start",
            r#"{"LossPercent":1,"Sources":["a"]}"#,
            "invalid value a for parameter Sources",
        ),
    ] {
        assert_eq!(ask(&bridged, what, body).await?, (400, json!({ "Error": words })), "{what} {body}");
    }
    let (status, answer) = ask(&bridged, start, &format!("{:20000}", "")).await?;
    assert_eq!(status, 400, "{answer}");
    let base = bridged.environment.get("ECS_AGENT_URI").context("ECS_AGENT_URI")?;
    assert_eq!(bridged.get(&format!("{base}/fault/v1/{start}")).await?.0, 405);
    assert_eq!(bridged.post(&format!("{base}/fault/v1/network-partition/start"), &good).await?.0, 404);
    // Nobody breaks another's.
    let (status, body) = inside.post(&format!("{base}/fault/v1/{start}"), &good).await?;
    assert_eq!(status, 404, "{body}");
    rules.are_gone().await
}

/// A kernel without netem says so, and the host does not promise what it cannot do.
#[tokio::test]
async fn what_the_host_cannot_do_is_not_offered() -> Result<()> {
    let (cluster, _rules, _endpoint) = cluster(&Vpc::new("veth")).await?;
    let instance = cluster.instance().await?;
    let attributes = instance["attributes"].as_array().context("no attributes")?;
    let has = |name: &str| attributes.iter().any(|attribute| attribute["name"] == name);
    ensure!(has("ecs.capability.fault-injection") && has("berth.fault.network-blackhole-port"), "{instance}");
    if !has("berth.fault.network-latency") {
        let (_, inside, _) = own(&cluster).await?;
        let body = r#"{"DelayMilliseconds":10,"JitterMilliseconds":0,"Sources":["10.0.0.0/8"]}"#;
        let (status, answer) = ask(&inside, "network-latency/start", body).await?;
        let said = answer["Error"].as_str().with_context(|| answer.to_string())?;
        ensure!(status == 500 && said.contains("netem"), "{status} {answer}");
        let none = json!({ "Status": "not-running" });
        assert_eq!(ask(&inside, "network-latency/status", "").await?, (200, none));
        assert_eq!(ask(&inside, "network-latency/stop", "").await?, (200, json!({ "Status": "stopped" })));
    }

    let definition = cluster.register(breakable("host")).await?;
    let described =
        cluster.ecs.call("DescribeTaskDefinition", json!({ "taskDefinition": definition })).await?;
    let described = &described["taskDefinition"];
    assert_eq!(described["enableFaultInjection"], true);
    let required = described["requiresAttributes"].as_array().context("no requiresAttributes")?;
    ensure!(required.iter().any(|one| one["name"] == "ecs.capability.fault-injection"), "{described}");
    // An agent whose tasks cannot ask it for anything.
    let without = Cluster::start().await?;
    let refused = without.run(breakable("host")).await;
    ensure!(format!("{:#}", refused.err().context("it was placed")?).contains("ATTRIBUTE"), "another reason");
    Ok(())
}
