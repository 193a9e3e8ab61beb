//! What guards a task in `awsvpc` mode: who may come in and where it may go, by its security groups;
//! and that it speaks under no other name than its own.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Stdio};

use anyhow::{Context, Result, ensure};
use berth_tests::cluster::text;
use berth_tests::expect::PATIENCE;
use berth_tests::vpc::{self, ENV, Vpc, address, client, detail, reaches, server};
use berth_tests::{Cluster, eventually};
use serde_json::{Value, json};

const HEAR: &str = include_str!("wire/hear.py");
const SAY: &str = include_str!("wire/say.py");
const TALK: &str = include_str!("wire/talk.py");

/// A program in a task's network with which one talks line by line; ended with its owner.
struct Talk {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<std::process::ChildStdout>,
}

impl Talk {
    fn begin(cluster: &Cluster, arn: &str, script: &str, arguments: &[&str]) -> Result<Self> {
        let mut command = vpc::inside(cluster, arn, "timeout");
        command.args(["60", "python3", "-c", script]).args(arguments);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let input = child.stdin.take();
        let output = BufReader::new(child.stdout.take().context("no output")?);
        Ok(Self { child, input, output })
    }

    fn hear(&mut self) -> Result<String> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        Ok(line.trim_end().to_owned())
    }

    fn say(&mut self, line: &str) -> Result<String> {
        let input = self.input.as_mut().context("no input")?;
        input.write_all(format!("{line}\n").as_bytes())?;
        self.hear()
    }

    /// All that it says until its end.
    fn rest(mut self) -> Result<Vec<String>> {
        let mut lines = Vec::new();
        loop {
            let line = self.hear()?;
            if line.is_empty() {
                return Ok(lines);
            }
            lines.push(line);
        }
    }
}

impl Drop for Talk {
    fn drop(&mut self) {
        // Without input it ends by itself; `timeout` passes on what it is ended with.
        self.input.take();
        let _ = nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(i32::try_from(self.child.id()).unwrap_or(i32::MAX)),
            nix::sys::signal::Signal::SIGTERM,
        );
        let _ = self.child.wait();
    }
}

fn group(id: &str, ingress: Value) -> Value {
    json!({ "id": id, "ingress": ingress, "egress": [{ "protocol": "-1", "cidrs": ["0.0.0.0/0", "::/0"] }] })
}

#[tokio::test]
async fn security_groups_decide_who_comes_in_and_change_live() -> Result<()> {
    let own = |peers: Value| {
        group("sg-web", json!([{ "protocol": "tcp", "fromPort": 8080, "toPort": 8080, "cidrs": peers }]))
    };
    let closed = Vpc::new("veth").with_group(own(json!(["192.0.2.0/24"])));
    let cluster = Cluster::start_vpc(closed.file(), &ENV).await?;
    let arn = vpc::run(&cluster, server(8080), &["sg-web"]).await?;
    let address = address(&cluster.until(&arn, "RUNNING", PATIENCE).await?)?;
    let ask = || client(&address, 8080, 1500);
    ensure!(!reaches(&cluster, ask(), &["sg-open"]).await?, "nobody was let in, and somebody came in");

    let open = closed.clone().with_group(own(json!(["10.0.0.0/8"])));
    cluster.control_plane.set_vpc(open.file())?;
    eventually(PATIENCE, "the group lets its neighbours in", || async {
        Ok(reaches(&cluster, ask(), &["sg-open"]).await?.then_some(()))
    })
    .await?;
    Ok(())
}

#[tokio::test]
async fn what_a_task_may_reach_is_decided_as_well() -> Result<()> {
    let vpc = Vpc::new("veth").with_group(json!({ "id": "sg-mute", "ingress": [], "egress": [] }));
    let cluster = Cluster::start_vpc(vpc.file(), &ENV).await?;
    let arn = vpc::run(&cluster, server(8080), &["sg-open"]).await?;
    let address = address(&cluster.until(&arn, "RUNNING", PATIENCE).await?)?;
    ensure!(!reaches(&cluster, client(&address, 8080, 1500), &["sg-mute"]).await?, "a mute task spoke");
    ensure!(
        reaches(&cluster, client(&address, 8080, 5000), &["sg-open"]).await?,
        "{address} does not answer"
    );
    Ok(())
}

/// What an established connection says goes through, whatever a group says of new ones.
#[tokio::test]
async fn a_group_that_changes_does_not_break_connections() -> Result<()> {
    let from = |peers: Value| {
        group("sg-web", json!([{ "protocol": "tcp", "fromPort": 9000, "toPort": 9001, "cidrs": peers }]))
    };
    let open = Vpc::new("veth").with_group(from(json!(["10.0.0.0/8"])));
    let cluster = Cluster::start_vpc(open.file(), &ENV).await?;
    let web = vpc::run(&cluster, server(8080), &["sg-web"]).await?;
    let target = address(&cluster.until(&web, "RUNNING", PATIENCE).await?)?;
    let other = vpc::run(&cluster, server(8080), &["sg-open"]).await?;
    cluster.until(&other, "RUNNING", PATIENCE).await?;

    let mut echo = Talk::begin(&cluster, &web, TALK, &["serve", "9000"])?;
    assert_eq!(echo.hear()?, "ready");
    let mut talk = Talk::begin(&cluster, &other, TALK, &[&target, "9000"])?;
    assert_eq!(talk.say("before")?, "before");

    cluster.control_plane.set_vpc(open.clone().with_group(from(json!(["192.0.2.0/24"]))).file())?;
    let mut another = Talk::begin(&cluster, &web, TALK, &["serve", "9001"])?;
    assert_eq!(another.hear()?, "ready");
    eventually(PATIENCE, "the group keeps new connections out", || async {
        Ok((!reaches(&cluster, client(&target, 9001, 0), &["sg-open"]).await?).then_some(()))
    })
    .await?;
    assert_eq!(talk.say("after")?, "after");
    Ok(())
}

/// The groups of a rule are those whose tasks it lets in.
#[tokio::test]
async fn a_rule_that_names_a_group_lets_its_tasks_in() -> Result<()> {
    let friends = json!([{ "protocol": "tcp", "fromPort": 8080, "toPort": 8080, "groups": ["sg-friends"] }]);
    let vpc =
        Vpc::new("veth").with_group(group("sg-web", friends)).with_group(group("sg-friends", json!([])));
    let cluster = Cluster::start_vpc(vpc.file(), &ENV).await?;
    let web = vpc::run(&cluster, server(8080), &["sg-web"]).await?;
    let target = address(&cluster.until(&web, "RUNNING", PATIENCE).await?)?;
    ensure!(!reaches(&cluster, client(&target, 8080, 500), &["sg-open"]).await?, "a stranger came in");
    ensure!(reaches(&cluster, client(&target, 8080, 10_000), &["sg-friends"]).await?, "a friend did not");
    ensure!(!reaches(&cluster, client(&target, 8080, 500), &["sg-open"]).await?, "a stranger came in later");
    Ok(())
}

#[tokio::test]
async fn nobody_speaks_under_anothers_address() -> Result<()> {
    let cluster = Cluster::start_vpc(Vpc::new("veth").file(), &ENV).await?;
    let web = vpc::run(&cluster, server(8080), &["sg-open"]).await?;
    let target = address(&cluster.until(&web, "RUNNING", PATIENCE).await?)?;
    let liar = vpc::run(&cluster, server(8081), &["sg-open"]).await?;
    let own = address(&cluster.until(&liar, "RUNNING", PATIENCE).await?)?;
    let inside =
        |program: &str, arguments: &[&str]| vpc::inside(&cluster, &liar, program).args(arguments).output();
    let reaches = |from: &str| {
        let url = format!("http://{target}:8080/");
        inside("curl", &["-s", "-o", "/dev/null", "--max-time", "2", "--interface", from, &url])
    };
    ensure!(reaches(&own)?.status.success(), "{own} does not reach {target}");
    // Whoever may add addresses inside gains nothing by one that is not the task's.
    let other = own.rsplit_once('.').map(|(network, _)| format!("{network}.250")).unwrap_or_default();
    ensure!(
        inside("ip", &["address", "add", &format!("{other}/24"), "dev", "eth0"])?.status.success(),
        "no {other}"
    );
    ensure!(!reaches(&other)?.status.success(), "{other} reaches {target}");
    Ok(())
}

/// Of all that a task sends raw, its neighbour hears what is honest.
async fn only_what_is_honest(vpc: Vpc, env: &[(&str, &str)], ways: &str) -> Result<()> {
    let cluster = Cluster::start_vpc(vpc.file(), env).await?;
    let (web, liar) = (
        vpc::run(&cluster, server(8080), &["sg-open"]).await?,
        vpc::run(&cluster, server(8080), &["sg-open"]).await?,
    );
    let (victim, own) =
        (cluster.until(&web, "RUNNING", PATIENCE).await?, cluster.until(&liar, "RUNNING", PATIENCE).await?);
    let mut hearing = Talk::begin(&cluster, &web, HEAR, &[])?;
    assert_eq!(hearing.hear()?, "ready");
    let said = vpc::inside(&cluster, &liar, "python3")
        .args(["-c", SAY, &detail(&own, "macAddress")?, &address(&own)?, &detail(&own, "ipv6Address")?])
        .args([&address(&victim)?, &detail(&victim, "ipv6Address")?, ways])
        .output()?;
    ensure!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    let mut honest = vec!["honest-arp", "honest-probe", "honest-ipv4", "honest-ipv6", "honest-claim"];
    if ways == "both" {
        honest.extend(honest.clone());
    }
    honest.push("end");
    assert_eq!(hearing.rest()?, honest);
    Ok(())
}

#[tokio::test]
async fn a_task_on_a_bridge_sends_nothing_raw_under_anothers_name() -> Result<()> {
    only_what_is_honest(Vpc::new("veth"), &ENV, "both").await
}

#[tokio::test]
async fn a_task_on_the_hosts_wire_sends_nothing_raw_under_anothers_name() -> Result<()> {
    let nic = vpc::Nic::new()?;
    let env = [ENV[0], ("BERTH_TASK_INTERFACE", nic.name())];
    only_what_is_honest(Vpc::new("macvlan"), &env, "queued").await
}

#[tokio::test]
async fn an_address_that_somebody_has_already_is_not_taken() -> Result<()> {
    // A stranger on the wire has all addresses of a small subnet.
    let nic = vpc::Nic::new()?;
    let vpc = Vpc::new("macvlan");
    for number in 2..15 {
        nic.stranger(&vpc.host(number))?;
    }
    let small = vpc.clone().with_subnet_member("cidr", json!(format!("{}/28", vpc.host(0))));
    let env = [ENV[0], ("BERTH_TASK_INTERFACE", nic.name())];
    let cluster = Cluster::start_vpc(small.file(), &env).await?;
    let arn = vpc::run(&cluster, server(8080), &["sg-open"]).await?;
    let task = cluster.until(&arn, "STOPPED", PATIENCE).await?;
    let reason = text(&task, "stoppedReason")?;
    ensure!(reason.contains("is in use already"), "{reason}");
    Ok(())
}
