//! Simulated agents over the real session.

use std::collections::BTreeSet;

use berth_controlplane::arn;
use berth_controlplane::model::{Instance, StopCause, TaskStatus};
use berth_controlplane::store::{Key, Record, Txn};

use crate::client::{Site, site_with};

async fn simulated(site: &Site) -> String {
    let arn = site.register("host-a").await;
    site.running.state.simulated.as_ref().unwrap().attach("default", &arn).await.unwrap();
    assert!(site.running.state.registry.is_connected(&arn));
    arn
}

#[tokio::test]
async fn tasks_run_stop_and_are_remembered_over_a_detachment() {
    let site = site_with(|config| config.dev = true).await;
    let arn = simulated(&site).await;
    let tasks = site.launch(3).await;
    let mut ports = BTreeSet::new();
    for task in &tasks {
        let running = site.until_status(task, TaskStatus::Running).await;
        ports.extend(running.observed.containers[0].network_bindings.iter().map(|b| b.host_port));
    }
    assert_eq!(ports, BTreeSet::from([49153, 49154, 49155]));
    let cause = StopCause { code: "UserInitiated".to_owned(), reason: "enough".to_owned() };
    site.running.state.controller.stop_task("default", arn::id_of(&tasks[0]), cause.clone()).await.unwrap();
    let stopped = site.until_status(&tasks[0], TaskStatus::Stopped).await;
    assert_eq!(stopped.observed.containers[0].exit_code, Some(143));
    assert_eq!(stopped.observed.stop, Some(cause.clone()));

    let handle = site.running.state.simulated.as_ref().unwrap();
    assert!(handle.detach(&arn).await);
    assert!(!handle.detach(&arn).await);
    site.until_connected(&arn, false).await;
    site.running.state.controller.stop_task("default", arn::id_of(&tasks[1]), cause).await.unwrap();
    handle.attach("default", &arn).await.unwrap();
    site.until_status(&tasks[1], TaskStatus::Stopped).await;
    assert_eq!(site.task(&tasks[2]).unwrap().observed.status, TaskStatus::Running, "it ran on meanwhile");
    assert!(
        handle
            .attach("default", "arn:aws:ecs:us-east-1:123456789012:container-instance/default/x")
            .await
            .is_err()
    );
}

#[tokio::test]
async fn an_instance_of_the_json_api_gets_a_key() {
    let site = site_with(|config| config.dev = true).await;
    let arn = site.register("host-a").await;
    let store = &site.running.state.store;
    let found = store.view().instance("default", arn::id_of(&arn)).unwrap();
    let mut keyless = Instance::clone(&found.value);
    keyless.host_key.clear();
    let key = Key::Instance("default".to_owned(), arn::id_of(&arn).to_owned());
    store
        .commit(Txn { puts: vec![(key, Record::Instance(keyless.into()))], ..Txn::default() })
        .await
        .unwrap();
    site.running.state.simulated.as_ref().unwrap().attach("default", &arn).await.unwrap();
    assert!(site.running.state.registry.is_connected(&arn));
}

#[tokio::test]
async fn a_reset_leaves_the_default_cluster_alone() {
    let site = site_with(|config| config.dev = true).await;
    let arn = simulated(&site).await;
    site.launch(2).await;
    site.running.state.controller.reset().await.unwrap();
    let view = site.running.state.store.view();
    assert_eq!((view.instances(None).len(), view.tasks(None).len(), view.clusters().len()), (0, 0, 1));
    site.until_connected(&arn, false).await;
    let again = simulated(&site).await;
    assert_eq!(again, arn, "the same host under the same key");
    let tasks = site.launch(1).await;
    site.until_status(&tasks[0], TaskStatus::Running).await;
}
