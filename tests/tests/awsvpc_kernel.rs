//! Interfaces of tasks that need a kernel with VLANs and ipvlan: tests/scripts/vm.sh runs these on one.

use anyhow::{Context, Result, ensure};
use berth_tests::cluster::container;
use berth_tests::expect::PATIENCE;
use berth_tests::vpc::{self, Vpc, address};
use berth_tests::{Cluster, demo};
use serde_json::json;

/// Two tasks in one subnet of that provider reach each other, and leave nothing behind.
async fn two_tasks(vpc: Vpc) -> Result<()> {
    let nic = vpc::Nic::new()?;
    let env = [("ECS_ENABLE_TASK_ENI", "true"), ("BERTH_TASK_INTERFACE", nic.name())];
    let cluster = Cluster::start_vpc(vpc.file(), &env).await?;
    let before = vpc::traces(cluster.agent.data_dir())?;
    let web = vpc::task("web", json!([demo::container("web", &["serve", "--port", "8080"])]));
    let arn = vpc::run(&cluster, web, &["sg-open"]).await?;
    let address = address(&cluster.until(&arn, "RUNNING", PATIENCE).await?)?;
    let one = demo::container("client", &["connect", &address, "8080", "--for", "20000"]);
    let client = vpc::run(&cluster, vpc::task("client", json!([one])), &["sg-open"]).await?;
    let task = cluster.until(&client, "STOPPED", PATIENCE).await?;
    let exit = container(&task, "client")?["exitCode"].as_i64().context("the client did not run")?;
    ensure!(exit == 0, "{address} does not answer: {task}");
    cluster.stop(&arn, None).await?;
    cluster.until(&arn, "STOPPED", PATIENCE).await?;
    vpc::nothing_more_than(&before, &cluster).await
}

#[tokio::test]
async fn tasks_in_a_vlan_of_the_hosts_trunk() -> Result<()> {
    two_tasks(Vpc::new("vlan").with_subnet_member("vlanId", json!(101))).await
}

#[tokio::test]
async fn tasks_with_ipvlan_children_of_the_hosts_interface() -> Result<()> {
    two_tasks(Vpc::new("ipvlan")).await
}
