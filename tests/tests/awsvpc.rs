//! A task in `awsvpc` mode has an interface of its own: the address that DescribeTasks shows is the
//! one that others reach it by, its containers share it, its security groups guard it, and nothing of
//! it is left behind.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use berth_tests::cluster::{container, text};
use berth_tests::expect::PATIENCE;
use berth_tests::vpc::{self, ENV, Vpc, address, client, detail, reaches, server, traces};
use berth_tests::{Cluster, demo, eventually};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

#[tokio::test]
async fn tasks_reach_each_other_at_the_addresses_that_are_shown() -> Result<()> {
    let vpc = Vpc::new("veth");
    let cluster = Cluster::start_vpc(vpc.file(), &ENV).await?;
    let arn = vpc::run(&cluster, server(8080), &["sg-open"]).await?;
    let task = cluster.until(&arn, "RUNNING", PATIENCE).await?;

    let attachment = &task["attachments"][0];
    assert_eq!(
        (&attachment["type"], &attachment["status"]),
        (&json!("ElasticNetworkInterface"), &json!("ATTACHED"))
    );
    let own = address(&task)?;
    ensure!(vpc.has(&own), "{own} is not of the subnet");
    assert_eq!(detail(&task, "subnetId")?, vpc::SUBNET);
    ensure!(detail(&task, "networkInterfaceId")?.starts_with("eni-"), "{attachment}");
    let interface = &container(&task, "web")?["networkInterfaces"][0];
    assert_eq!(interface["privateIpv4Address"], own.as_str());
    assert_eq!(interface["attachmentId"], attachment["id"]);

    ensure!(reaches(&cluster, client(&own, 8080, 5000), &["sg-open"]).await?, "{own} does not answer");
    let six = detail(&task, "ipv6Address")?;
    ensure!(
        reaches(&cluster, client(&format!("[{six}]"), 8080, 5000), &["sg-open"]).await?,
        "{six} does not answer"
    );
    Ok(())
}

#[tokio::test]
async fn containers_of_a_task_share_localhost() -> Result<()> {
    let cluster = Cluster::start_vpc(Vpc::new("veth").file(), &ENV).await?;
    let web = demo::container_with("web", &["serve", "--port", "7000"], json!({ "essential": false }));
    let one = demo::container_with(
        "client",
        &["connect", "127.0.0.1", "7000", "--for", "5000"],
        json!({ "dependsOn": [{ "containerName": "web", "condition": "START" }] }),
    );
    ensure!(
        reaches(&cluster, vpc::task("pair", json!([web, one])), &["sg-open"]).await?,
        "no answer on localhost"
    );
    Ok(())
}

#[tokio::test]
async fn what_ecs_refuses_is_refused() -> Result<()> {
    let cluster = Cluster::start_vpc(Vpc::new("veth").file(), &ENV).await?;
    let definition = cluster.register(server(8080)).await?;
    let with = |subnets: Value, groups: Value| json!({ "networkConfiguration": { "awsvpcConfiguration": { "subnets": subnets, "securityGroups": groups } } });
    for (members, part) in [
        (json!({}), "Network Configuration must be provided"),
        (with(json!(["subnet-none"]), json!([])), "subnet-none"),
        (with(json!([vpc::SUBNET]), json!(["sg-none"])), "sg-none"),
    ] {
        let refused = cluster.run_with(&definition, members).await;
        let said = refused.err().with_context(|| format!("{part}: was accepted"))?;
        ensure!(format!("{said:#}").contains(part), "{said:#}");
    }
    Ok(())
}

#[tokio::test]
async fn nothing_is_left_of_a_task_that_has_stopped() -> Result<()> {
    let cluster = Cluster::start_vpc(Vpc::new("veth").file(), &ENV).await?;
    let before = traces(cluster.agent.data_dir())?;
    let enis = remaining_interfaces(&cluster).await?;
    let mut arns = Vec::new();
    let definition = cluster.register(server(8080)).await?;
    for _ in 0..6 {
        arns.push(cluster.run_with(&definition, vpc::network(&["sg-open"])).await?);
    }
    for arn in &arns {
        cluster.until(arn, "RUNNING", PATIENCE).await?;
    }
    ensure!(traces(cluster.agent.data_dir())? != before, "six tasks run and have left no trace");
    for arn in &arns {
        cluster.stop(arn, None).await?;
    }
    for arn in &arns {
        let task = cluster.until(arn, "STOPPED", PATIENCE).await?;
        ensure!(task["attachments"][0]["status"] != "ATTACHED", "{task}");
    }
    vpc::nothing_more_than(&before, &cluster).await?;
    eventually(PATIENCE, "all interfaces are free again", || async {
        Ok((remaining_interfaces(&cluster).await? == enis).then_some(()))
    })
    .await
}

async fn remaining_interfaces(cluster: &Cluster) -> Result<Value> {
    Ok(cluster.instance().await?["remainingResources"].clone())
}

#[tokio::test]
async fn a_restarted_agent_keeps_its_tasks_connected_and_clears_up_after_itself() -> Result<()> {
    let mut cluster = Cluster::start_vpc(Vpc::new("veth").file(), &ENV).await?;
    let before = traces(cluster.agent.data_dir())?;
    let kept = vpc::run(&cluster, server(8080), &["sg-open"]).await?;
    let address = address(&cluster.until(&kept, "RUNNING", PATIENCE).await?)?;

    // Killed at some moment of other launches.
    let definition = cluster.register(server(8081)).await?;
    let mut arns = Vec::new();
    for pause_ms in [5, 40, 90, 160] {
        arns.push(cluster.run_with(&definition, vpc::network(&["sg-open"])).await?);
        tokio::time::sleep(Duration::from_millis(pause_ms)).await;
        cluster.agent.kill().await?;
        cluster.disconnected().await?;
        cluster.agent.start_again()?;
        cluster.registered().await?;
    }
    for arn in &arns {
        cluster.until(arn, "RUNNING", PATIENCE).await?;
    }
    ensure!(
        reaches(&cluster, client(&address, 8080, 5000), &["sg-open"]).await?,
        "{address} does not answer"
    );
    for arn in arns.iter().chain([&kept]) {
        cluster.stop(arn, None).await?;
    }
    for arn in arns.iter().chain([&kept]) {
        cluster.until(arn, "STOPPED", PATIENCE).await?;
    }
    vpc::nothing_more_than(&before, &cluster).await
}

#[tokio::test]
async fn a_task_whose_network_ends_is_stopped_and_says_why() -> Result<()> {
    let cluster = Cluster::start_vpc(Vpc::new("veth").file(), &ENV).await?;
    let arn = vpc::run(&cluster, server(8080), &["sg-open"]).await?;
    cluster.until(&arn, "RUNNING", PATIENCE).await?;
    let id = arn.rsplit('/').next().unwrap_or_default();
    let holder = cluster.engine.named(&format!("pause-{id}")).await?;
    cluster.engine.kill(&holder).await?;
    let task = cluster.until(&arn, "STOPPED", PATIENCE).await?;
    let reason = text(&task, "stoppedReason")?;
    ensure!(reason.contains("network"), "{reason}");
    Ok(())
}

/// Where the interface comes from a NIC that somebody else plugs in: here one end of a pair of links
/// with the announced hardware address, whose other end is a port of nothing.
struct Plugged(String);

impl Plugged {
    /// Where `BERTH_TEST_PLUG` names a file, whoever reads the address there plugs a real NIC in.
    fn plug(mac: &str) -> Result<Self> {
        if let Some(path) = std::env::var_os("BERTH_TEST_PLUG") {
            std::fs::write(path, mac)?;
            return Ok(Self(String::new()));
        }
        Self::plug_pair(mac, "h")
    }

    /// A pair of links whose names begin so.
    fn plug_pair(mac: &str, names: &str) -> Result<Self> {
        let tail: String = mac.replace(':', "").chars().skip(4).collect();
        let (inner, outer) = (format!("{names}p{tail}"), format!("{names}o{tail}"));
        vpc::ip(&["link", "add", &outer, "type", "veth", "peer", "name", &inner, "address", mac])?;
        Ok(Self(outer))
    }
}

impl Drop for Plugged {
    fn drop(&mut self) {
        // It goes with its other end, wherever that is.
        if !self.0.is_empty()
            && let Err(why) = vpc::ip(&["link", "delete", &self.0])
        {
            eprintln!("{} stays: {why:#}", self.0);
        }
    }
}

/// Runs a task in a subnet whose interfaces are plugged in; its ARN and the announced address.
async fn announced(cluster: &Cluster) -> Result<(String, String)> {
    let arn = vpc::run(cluster, server(8080), &["sg-open"]).await?;
    let task = cluster.task(&arn).await?;
    assert_eq!(task["lastStatus"], "PROVISIONING", "{task}");
    Ok((arn, detail(&task, "macAddress")?))
}

#[tokio::test]
async fn a_task_waits_for_the_interface_that_was_announced() -> Result<()> {
    let cluster = Cluster::start_vpc(Vpc::new("hot-plug").file(), &ENV).await?;
    let (arn, mac) = announced(&cluster).await?;
    // It says what it waits for, until the interface comes.
    eventually(PATIENCE, "the task tells what it waits for", || async {
        let task = cluster.task(&arn).await?;
        let reason = text(container(&task, "web")?, "reason")?;
        Ok(reason.contains(&mac).then_some(()))
    })
    .await?;
    let plugged = Plugged::plug(&mac)?;
    let task = cluster.until(&arn, "RUNNING", PATIENCE).await?;
    assert_eq!(task["attachments"][0]["status"], "ATTACHED");

    // Stopped, the interface is the host's again.
    cluster.stop(&arn, None).await?;
    cluster.until(&arn, "STOPPED", PATIENCE).await?;
    // By its address: what names a host gives to its interfaces is its own affair.
    let links = std::process::Command::new("ip").args(["-oneline", "link", "show"]).output()?;
    let links = String::from_utf8_lossy(&links.stdout).into_owned();
    ensure!(links.contains(&mac), "{mac} is not among the host's interfaces: {links}");
    drop(plugged);
    Ok(())
}

#[tokio::test]
async fn an_interface_that_came_before_its_announcement_is_taken() -> Result<()> {
    let cluster = Cluster::start_vpc(Vpc::new("hot-plug").file(), &ENV).await?;
    // The agent hears of the task when the interface has been there for a while.
    cluster.agent.signal(Signal::SIGSTOP)?;
    let (arn, mac) = announced(&cluster).await?;
    let _plugged = Plugged::plug(&mac)?;
    cluster.agent.signal(Signal::SIGCONT)?;
    let task = cluster.until(&arn, "RUNNING", PATIENCE).await?;
    assert_eq!(task["attachments"][0]["status"], "ATTACHED");
    Ok(())
}

#[tokio::test]
async fn a_second_interface_with_the_same_address_is_left_alone() -> Result<()> {
    let cluster = Cluster::start_vpc(Vpc::new("hot-plug").file(), &ENV).await?;
    let (arn, mac) = announced(&cluster).await?;
    let _plugged = Plugged::plug(&mac)?;
    cluster.until(&arn, "RUNNING", PATIENCE).await?;
    let second = Plugged::plug_pair(&mac, "i")?;
    cluster.stop(&arn, None).await?;
    let task = cluster.until(&arn, "STOPPED", PATIENCE).await?;
    assert_eq!(task["stopCode"], "UserInitiated");
    vpc::ip(&["link", "show", &second.0.replacen('o', "p", 1)])?;
    Ok(())
}

#[tokio::test]
async fn an_interface_that_does_not_come_fails_the_task_and_one_that_came_early_does_not() -> Result<()> {
    let impatient = Vpc::new("hot-plug").with_subnet_member("attachTimeoutSeconds", json!(1));
    let cluster = Cluster::start_vpc(impatient.file(), &ENV).await?;
    let (never, mac) = announced(&cluster).await?;
    let task = cluster.until(&never, "STOPPED", PATIENCE).await?;
    ensure!(text(&task, "stoppedReason")?.contains(&mac), "{task}");
    assert_eq!(task["stopCode"], "TaskFailedToStart");

    // A task that is stopped does not wait any longer.
    let patient = Vpc::new("hot-plug");
    cluster.control_plane.set_vpc(patient.file())?;
    let stopped = eventually(PATIENCE, "a task waits for longer", || async {
        let (arn, _) = announced(&cluster).await?;
        tokio::time::sleep(Duration::from_millis(1500)).await;
        let task = cluster.task(&arn).await?;
        Ok((task["lastStatus"] == "PROVISIONING").then_some(arn))
    })
    .await?;
    cluster.stop(&stopped, None).await?;
    cluster.until(&stopped, "STOPPED", Duration::from_secs(5)).await?;
    Ok(())
}

#[tokio::test]
async fn a_macvlan_child_of_the_hosts_interface_is_a_tasks_own() -> Result<()> {
    let nic = vpc::Nic::new()?;
    let env = [ENV[0], ("BERTH_TASK_INTERFACE", nic.name())];
    let cluster = Cluster::start_vpc(Vpc::new("macvlan").file(), &env).await?;
    let arn = vpc::run(&cluster, server(8080), &["sg-open"]).await?;
    let address = address(&cluster.until(&arn, "RUNNING", PATIENCE).await?)?;
    ensure!(
        reaches(&cluster, client(&address, 8080, 5000), &["sg-open"]).await?,
        "{address} does not answer"
    );
    Ok(())
}

#[tokio::test]
async fn the_network_of_a_task_is_shown_as_the_kernel_has_it() -> Result<()> {
    let cluster = Cluster::start_vpc(Vpc::new("veth").file(), &ENV).await?;
    let arn = vpc::run(&cluster, server(8080), &["sg-open"]).await?;
    let address = address(&cluster.until(&arn, "RUNNING", PATIENCE).await?)?;
    let id = arn.rsplit('/').next().unwrap_or_default();
    let listed = net(&cluster, &["list"])?;
    ensure!(listed.contains(id), "{listed}");
    let shown = net(&cluster, &["inspect", &arn])?;
    ensure!(net(&cluster, &["inspect", &id[..6]])? == shown, "the beginning of an id is not enough");
    let none = net(&cluster, &["inspect", "zz"]).unwrap_err().to_string();
    ensure!(none.contains("no task that has a network namespace here begins with zz"), "{none}");
    for part in
        ["interface eth0 up 02:", &address, "route default via ", "dev eth0", "169.254.170.2/32", "rules "]
    {
        ensure!(shown.contains(part), "{part}: {shown}");
    }
    Ok(())
}

fn net(cluster: &Cluster, arguments: &[&str]) -> Result<String> {
    let program = berth_tests::program::binary("berth-agent")?;
    let mut command = std::process::Command::new(program);
    command.arg("net").args(arguments).env("ECS_DATADIR", cluster.agent.data_dir());
    let done = command.output()?;
    ensure!(done.status.success(), "net {arguments:?}: {}", String::from_utf8_lossy(&done.stderr));
    Ok(String::from_utf8(done.stdout)?)
}

#[tokio::test]
async fn a_task_has_its_own_name_and_resolver() -> Result<()> {
    let named = Vpc::new("veth")
        .with_subnet_member("dnsServers", json!(["192.0.2.53"]))
        .with_subnet_member("dnsSearchDomains", json!(["tasks.example"]));
    let cluster = Cluster::start_vpc(named.file(), &ENV).await?;
    let arn = vpc::run(&cluster, server(8080), &["sg-open"]).await?;
    let task = cluster.until(&arn, "RUNNING", PATIENCE).await?;
    let name = detail(&task, "privateDnsName")?;
    let container = cluster.engine.inspect(&cluster.engine.id_of(&arn, "web").await?).await?;
    let pid = container.state.and_then(|state| state.pid).context("it does not run")?;
    let read = |file: &str| std::fs::read_to_string(format!("/proc/{pid}/root/etc/{file}"));
    assert_eq!(read("hostname")?.trim(), name);
    ensure!(read("hosts")?.contains(&format!("{}\t{name}", address(&task)?)), "{}", read("hosts")?);
    assert_eq!(read("resolv.conf")?, "nameserver 192.0.2.53\nsearch tasks.example\n");
    let own = std::process::Command::new("nsenter")
        .args(["--target", &pid.to_string(), "--uts", "hostname"])
        .output()?;
    assert_eq!(String::from_utf8(own.stdout)?.trim(), name);
    Ok(())
}

#[tokio::test]
async fn thirty_at_once_have_thirty_addresses_and_leave_nothing() -> Result<()> {
    let cluster = Cluster::start_vpc(Vpc::new("veth").file(), &ENV).await?;
    let before = traces(cluster.agent.data_dir())?;
    let definition = cluster.register(server(8080)).await?;
    let mut arns = Vec::new();
    for _ in 0..3 {
        let members = demo::merged(
            vpc::network(&["sg-open"]),
            &json!({ "count": 10, "cluster": cluster.name, "taskDefinition": definition }),
        );
        let answer = cluster.ecs.call("RunTask", members).await?;
        let tasks = answer["tasks"].as_array().cloned().unwrap_or_default();
        ensure!(tasks.len() == 10, "{answer}");
        arns.extend(tasks.iter().filter_map(|task| task["taskArn"].as_str().map(str::to_owned)));
    }
    let mut addresses = BTreeSet::new();
    for arn in &arns {
        addresses.insert(address(&cluster.until(arn, "RUNNING", PATIENCE).await?)?);
    }
    assert_eq!(addresses.len(), 30);
    for arn in &arns {
        cluster.stop(arn, None).await?;
    }
    for arn in &arns {
        cluster.until(arn, "STOPPED", PATIENCE).await?;
    }
    vpc::nothing_more_than(&before, &cluster).await
}
