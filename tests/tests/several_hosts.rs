//! Several hosts on one wire, each with an engine and an agent of its own: they join over TLS, their
//! tasks talk to each other at the addresses that DescribeTasks shows, and a host that loses its power
//! or its engine comes back without anything of its tasks. tests/scripts/hosts.sh makes the hosts and runs this
//! beside them.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use berth_tests::cluster::{container, text};
use berth_tests::program::{Program, binary};
use berth_tests::vpc::{address, client, network, server};
use berth_tests::{Ecs, eventually};
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(60);
const HOSTS: u8 = 3;
const CLUSTER: &str = "several";
/// Where an agent keeps its state, on a disk that outlives the host's power.
const DATA: &str = "/var/lib/berth-agent";

/// The program that makes hosts.
fn hosts() -> Result<OsString> {
    std::env::var_os("BERTH_HOSTS").context("BERTH_HOSTS names the program that makes hosts")
}

fn on(host: u8, words: &[&str]) -> Result<Command> {
    let mut command = Command::new(hosts()?);
    command.args(["exec", &host.to_string()]).args(words);
    Ok(command)
}

fn said(mut command: Command) -> Result<String> {
    let done = command.output()?;
    ensure!(done.status.success(), "{command:?}: {}", String::from_utf8_lossy(&done.stderr));
    Ok(String::from_utf8(done.stdout)?)
}

/// The control plane on the wire, and what hosts need to join it.
struct Plane {
    _program: Program,
    _data: tempfile::TempDir,
    ecs: Ecs,
    agents: String,
    join: Vec<(String, String)>,
}

impl Plane {
    async fn start() -> Result<Self> {
        let data = tempfile::Builder::new().prefix("berth-controlplane-").tempdir()?;
        let vpc = data.path().join("vpc.json");
        let everywhere = json!([{ "protocol": "-1", "cidrs": ["0.0.0.0/0", "::/0"] }]);
        let file = json!({
            "subnets": [{
                "id": "subnet-a", "cidr": "10.78.0.128/25", "gateway": "10.78.0.129", "availabilityZone": "local-1a",
                "provider": "macvlan",
            }],
            "securityGroups": [{ "id": "sg-open", "ingress": everywhere, "egress": everywhere }],
        });
        std::fs::write(&vpc, file.to_string())?;
        let args = |words: &[&str]| -> Vec<OsString> {
            let data = [OsString::from("--data-dir"), data.path().into()];
            words.iter().map(OsString::from).chain(data).collect()
        };
        let mut serve = args(&["serve", "--listen", "127.0.0.1:0", "--agent-listen", "10.78.0.1:0", "--vpc"]);
        serve.insert(6, vpc.into());
        let mut program = Program::start("berth-controlplane", &serve, &BTreeMap::new())?;
        let line = program.line("listening ", PATIENCE).await?;
        let value = |text: &str, key: &str| {
            let found = text.split_whitespace().find_map(|word| word.strip_prefix(key)).map(str::to_owned);
            found.with_context(|| format!("{key} in {text:?}"))
        };
        let mut token = Program::start("berth-controlplane", &args(&["token"]), &BTreeMap::new())?;
        token.end(PATIENCE).await?;
        let printed = token.output();
        let join = vec![
            ("BERTH_JOIN_TOKEN".to_owned(), value(&printed, "token=")?),
            ("BERTH_CA_FINGERPRINT".to_owned(), value(&printed, "ca=")?),
        ];
        let ecs = Ecs::new(value(&line, "api=")?.parse()?);
        ecs.call("CreateCluster", json!({ "clusterName": CLUSTER })).await?;
        Ok(Self { _program: program, _data: data, ecs, agents: value(&line, "agents=")?, join })
    }

    /// An agent on that host, as an operator would start it.
    fn agent(&self, host: u8) -> Result<AgentOn> {
        let program = binary("berth-agent")?;
        let root = format!("berth-test-{}-{host}", std::process::id());
        let mut command = on(host, &["env"])?;
        command
            .arg(format!("ECS_CLUSTER={CLUSTER}"))
            .arg(format!("ECS_BACKEND_HOST=https://{}", self.agents))
            .arg("ECS_ENABLE_TASK_ENI=true")
            .arg("ECS_IMAGE_PULL_BEHAVIOR=prefer-cached")
            .arg(format!("ECS_DATADIR={DATA}"))
            .arg(format!("BERTH_CGROUP_ROOT={root}"))
            .arg(format!("BERTH_RUN_DIR={DATA}/run"))
            .args(self.join.iter().map(|(key, value)| format!("{key}={value}")))
            .arg(program)
            .stdin(Stdio::null());
        // Not the test's own outputs: it outlives the program that brings it onto the host.
        let log = tempfile::NamedTempFile::new()?;
        command.stdout(log.reopen()?).stderr(log.reopen()?);
        Ok(AgentOn { host, log, command: command.spawn()? })
    }

    async fn instances(&self) -> Result<Vec<Value>> {
        let listed = self.ecs.call("ListContainerInstances", json!({ "cluster": CLUSTER })).await?;
        let arns = &listed["containerInstanceArns"];
        if arns.as_array().is_none_or(Vec::is_empty) {
            return Ok(Vec::new());
        }
        let input = json!({ "cluster": CLUSTER, "containerInstances": arns });
        let mut answer = self.ecs.call("DescribeContainerInstances", input).await?;
        Ok(answer["containerInstances"].as_array_mut().map(std::mem::take).unwrap_or_default())
    }

    /// The instances in the order of their hosts, once that many are connected.
    async fn connected(&self, wanted: usize) -> Result<()> {
        eventually(PATIENCE, format!("{wanted} hosts are connected"), || async {
            let all = self.instances().await?;
            let connected = all.iter().filter(|instance| instance["agentConnected"] == true).count();
            Ok((connected == wanted).then_some(()))
        })
        .await
    }

    async fn start_on(&self, instance: &str, definition: Value) -> Result<String> {
        let registered = self.ecs.call("RegisterTaskDefinition", definition).await?;
        let mut input = network(&["sg-open"]);
        input["cluster"] = json!(CLUSTER);
        input["containerInstances"] = json!([instance]);
        input["taskDefinition"] = registered["taskDefinition"]["taskDefinitionArn"].clone();
        let answer = self.ecs.call("StartTask", input).await?;
        text(&answer["tasks"][0], "taskArn").with_context(|| answer.to_string())
    }

    async fn until(&self, task: &str, status: &str) -> Result<Value> {
        eventually(PATIENCE, format!("{task} is {status}"), || async {
            let input = json!({ "cluster": CLUSTER, "tasks": [task] });
            let mut answer = self.ecs.call("DescribeTasks", input).await?;
            let task = answer["tasks"][0].take();
            Ok((task["lastStatus"] == status).then_some(task))
        })
        .await
    }
}

/// An agent on another host; ends with its value.
struct AgentOn {
    host: u8,
    command: Child,
    log: tempfile::NamedTempFile,
}

impl Drop for AgentOn {
    fn drop(&mut self) {
        // On a host without power it has ended already.
        let _ = on(self.host, &["pkill -KILL -x berth-agent || true"]).and_then(said);
        let _ = self.command.kill();
        let _ = self.command.wait();
        let said = std::fs::read_to_string(self.log.path()).unwrap_or_default();
        eprintln!("--- berth-agent on host {} ---\n{said}---", self.host);
    }
}

/// How much a host has of tasks' networks.
fn traces(host: u8) -> Result<String> {
    let links = said(on(host, &["ip -oneline link show | grep -c berth: || true"])?)?;
    let pins = said(on(host, &[&format!("grep -c {DATA}/netns/ /proc/mounts || true")])?)?;
    Ok(format!("links {} pins {}", links.trim(), pins.trim()))
}

#[tokio::test]
async fn tasks_on_different_hosts_talk_and_a_host_comes_back_from_what_it_loses() -> Result<()> {
    let plane = Plane::start().await?;
    let (mut agents, mut arns) = (Vec::new(), Vec::new());
    for host in 1..=HOSTS {
        agents.push(plane.agent(host)?);
        plane.connected(usize::from(host)).await?;
        for instance in plane.instances().await? {
            let arn = text(&instance, "containerInstanceArn")?;
            if !arns.contains(&arn) {
                arns.push(arn);
            }
        }
    }

    // One server each, and from each host a client to the server of another.
    let mut servers = Vec::new();
    for arn in &arns {
        servers.push(plane.start_on(arn, server(8080)).await?);
    }
    let mut addresses = Vec::new();
    for task in &servers {
        addresses.push(address(&plane.until(task, "RUNNING").await?)?);
    }
    for (from, arn) in arns.iter().enumerate() {
        let to = &addresses[(from + 1) % addresses.len()];
        let task = plane.start_on(arn, client(to, 8080, 10_000)).await?;
        let ended = plane.until(&task, "STOPPED").await?;
        assert_eq!(container(&ended, "client")?["exitCode"], 0, "to {to}: {ended}");
    }

    // Power loss on the second host, and on again.
    said(hosts_command(&["kill", "2"])?)?;
    drop(agents.remove(1));
    plane.connected(usize::from(HOSTS) - 1).await?;
    said(hosts_command(&["up", &HOSTS.to_string()])?)?;
    agents.push(plane.agent(2)?);
    plane.connected(usize::from(HOSTS)).await?;
    ensure!(plane.instances().await?.len() == arns.len(), "the host has joined as another");
    let ended = plane.until(&servers[1], "STOPPED").await?;
    ensure!(ended["stoppedReason"].as_str().is_some_and(|reason| !reason.is_empty()), "{ended}");
    eventually(PATIENCE, "nothing is left on the host", || async {
        Ok((traces(2)? == "links 0 pins 0").then_some(()))
    })
    .await?;
    let again = plane.start_on(&arns[1], server(8080)).await?;
    plane.until(&again, "RUNNING").await?;

    // An engine that dies takes the containers with it when it comes back.
    said(hosts_command(&["dockerd", "kill", "3"])?)?;
    said(hosts_command(&["dockerd", "start", "3"])?)?;
    let ended = plane.until(&servers[2], "STOPPED").await?;
    ensure!(ended["stoppedReason"].as_str().is_some_and(|reason| !reason.is_empty()), "{ended}");
    eventually(PATIENCE, "nothing is left on the host", || async {
        Ok((traces(3)? == "links 0 pins 0").then_some(()))
    })
    .await?;
    let again = plane.start_on(&arns[2], server(8080)).await?;
    plane.until(&again, "RUNNING").await?;
    Ok(())
}

fn hosts_command(words: &[&str]) -> Result<Command> {
    let mut command = Command::new(hosts()?);
    command.args(words);
    Ok(command)
}
