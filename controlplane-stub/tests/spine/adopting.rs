//! Hosts that knew other records than the control plane's.

use berth_controlplane::arn;
use berth_controlplane::model::{StopCause, TaskStatus};
use berth_core::ids::TaskArn;
use berth_core::spec::{TaskFields, TaskSpec};
use berth_proto::v1;
use berth_proto::v1::agent_message::Message as FromAgent;
use berth_proto::v1::control_plane_message::Message as ToAgent;

use crate::client::{Agent, Site, change, site, spec};

/// A session of the host whose greeting says that it has seen those records.
async fn greets(site: &Site, arn: &str, last_seen: Option<v1::RecordsPoint>, last_manifest: u64) -> Agent {
    let hello = v1::Hello {
        container_instance_arn: arn.to_owned(),
        host_key: "host-a".to_owned(),
        outbox_epoch: "e".to_owned(),
        last_manifest_sequence: last_manifest,
        last_seen,
    };
    Agent::greet(site.client().await, hello).await
}

fn foreign() -> Option<v1::RecordsPoint> {
    Some(v1::RecordsPoint { life: "another".to_owned(), revision: 3 })
}

async fn ask(agent: &Agent, manifest: &v1::Manifest, tasks: &[String]) {
    let question = v1::StopVerification {
        message_id: "q".to_owned(),
        manifest_sequence: manifest.sequence,
        task_arns: tasks.to_vec(),
    };
    agent.send(FromAgent::StopVerification(question)).await;
    agent.send(FromAgent::ManifestAck(v1::ManifestAck { sequence: manifest.sequence })).await;
}

async fn to_stop(agent: &mut Agent) -> Vec<String> {
    agent.find(|m| if let ToAgent::StopVerificationAck(a) = m { Some(a.task_arns) } else { None }).await
}

async fn asked(agent: &mut Agent) -> Vec<String> {
    agent.find(|m| if let ToAgent::TaskInquiry(inquiry) = m { Some(inquiry.task_arns) } else { None }).await
}

/// What a host has of a task that is no record here.
fn account(site: &Site, arn: &str) -> v1::TaskAccount {
    let fields = TaskFields { arn: TaskArn::new(arn).unwrap(), ..TaskFields::from(spec(site)) };
    v1::TaskAccount {
        task_arn: arn.to_owned(),
        spec_json: serde_json::to_string(&TaskSpec::try_from(fields).unwrap()).unwrap(),
        state: Some(change(0, arn, v1::TaskStatus::Running)),
    }
}

#[tokio::test]
async fn what_an_estranged_host_runs_becomes_a_record_however_often_it_comes_back() {
    let site = site().await;
    let arn = site.agent("host-a").await.arn;
    let stranger = site.running.state.arns.task("default", &"f".repeat(32));
    let account = account(&site, &stranger);
    site.launch(1).await;

    // The first session ends before anything was told: the next one goes on, though the host knows these now.
    let mut agent = greets(&site, &arn, foreign(), 7).await;
    let (manifest, _) = agent.greeting().await;
    ask(&agent, &manifest, std::slice::from_ref(&stranger)).await;
    assert_eq!(to_stop(&mut agent).await, Vec::<String>::new());
    drop(agent);
    let mut agent = greets(&site, &arn, manifest.at.clone(), manifest.sequence).await;
    let (manifest, _) = agent.greeting().await;
    assert_eq!(asked(&mut agent).await.len(), 1, "the one that is on record is asked for as well");
    ask(&agent, &manifest, std::slice::from_ref(&stranger)).await;
    assert_eq!(asked(&mut agent).await, std::slice::from_ref(&stranger));
    // What is told before it is a record is not lost.
    agent.report(1, &stranger, v1::TaskStatus::Stopped).await;
    assert_eq!(agent.acknowledged().await, 1);
    agent.send(FromAgent::TaskAccount(account.clone())).await;
    let known = site.until_status(&stranger, TaskStatus::Stopped).await;
    assert!(known.adopted && known.started_by.as_deref() == Some("adopted"), "{known:?}");
    assert_eq!(known.instance, arn);

    // Nobody was asked about this one.
    let other = site.running.state.arns.task("default", &"e".repeat(32));
    let unasked = v1::TaskAccount { task_arn: other.clone(), ..account };
    agent.send(FromAgent::TaskAccount(unasked)).await;
    agent.report(2, &other, v1::TaskStatus::Running).await;
    assert_eq!(agent.acknowledged().await, 2);
    assert_eq!(site.task(&other), None);
}

#[tokio::test]
async fn a_host_that_knows_these_records_stops_what_is_not_in_them() {
    let site = site().await;
    let arn = site.agent("host-a").await.arn;
    let stranger = site.running.state.arns.task("default", &"f".repeat(32));
    let mut agent = greets(&site, &arn, foreign(), 7).await;
    let (manifest, _) = agent.greeting().await;
    agent.send(FromAgent::ManifestAck(v1::ManifestAck { sequence: manifest.sequence })).await;
    site.until("the host to be no stranger", |view| {
        view.instance("default", arn::id_of(&arn)).filter(|instance| !instance.value.estranged)
    })
    .await;
    drop(agent);
    let mut agent = greets(&site, &arn, manifest.at, manifest.sequence).await;
    let (manifest, _) = agent.greeting().await;
    ask(&agent, &manifest, std::slice::from_ref(&stranger)).await;
    assert_eq!(to_stop(&mut agent).await, [stranger]);
}

#[tokio::test]
async fn an_agent_of_before_is_estranged_from_records_that_never_met_it() {
    let site = site().await;
    let arn = site.register("host-a").await;
    let stranger = site.running.state.arns.task("default", &"f".repeat(32));
    let mut agent = greets(&site, &arn, None, 7).await;
    let (manifest, _) = agent.greeting().await;
    assert!(manifest.sequence > 7);
    ask(&agent, &manifest, std::slice::from_ref(&stranger)).await;
    assert_eq!(asked(&mut agent).await, [stranger]);
    assert_eq!(to_stop(&mut agent).await, Vec::<String>::new());
}

#[tokio::test]
async fn a_host_that_is_ahead_says_first_what_it_has_before_it_is_told_to_begin_any() {
    let site = site().await;
    let agent = site.agent("host-a").await;
    let [over, stops, stays]: [String; 3] = site.launch(3).await.try_into().unwrap();
    let arn = agent.arn.clone();
    drop(agent);
    let cause = StopCause { code: "UserInitiated".to_owned(), reason: "enough".to_owned() };
    site.running.state.controller.stop_task("default", arn::id_of(&stops), cause).await.unwrap();
    let mut agent = greets(&site, &arn, foreign(), 7).await;
    let (_, payload) = agent.greeting().await;
    assert_eq!(payload.tasks, [], "it may be through with these");
    assert_eq!(asked(&mut agent).await.len(), 3);
    let nothing = v1::TaskAccount { task_arn: over.clone(), ..v1::TaskAccount::default() };
    agent.send(FromAgent::TaskAccount(nothing)).await;
    let known = site.until_status(&over, TaskStatus::Stopped).await;
    assert_eq!(known.observed.stop.unwrap().code, "TaskFailedToStart");
    for task in [&stays, &stops] {
        agent.send(FromAgent::TaskAccount(account(&site, task))).await;
        site.until_status(task, TaskStatus::Running).await;
    }
    let told = agent.payload().await.tasks;
    let told: Vec<_> = told.iter().map(|task| (task.task_arn.as_str(), task.desired())).collect();
    assert_eq!(told, [(stops.as_str(), v1::DesiredStatus::Stopped)]);
}

#[tokio::test]
async fn what_one_host_said_of_anothers_task_does_not_end_it_there() {
    let site = site().await;
    let (other, its) = (site.agent("host-a").await.arn, site.agent("host-b").await.arn);
    let stranger = site.running.state.arns.task("default", &"f".repeat(32));
    let mut agent = greets(&site, &other, foreign(), 7).await;
    let (manifest, _) = agent.greeting().await;
    ask(&agent, &manifest, std::slice::from_ref(&stranger)).await;
    assert_eq!(asked(&mut agent).await, std::slice::from_ref(&stranger));
    let state = Some(change(0, &stranger, v1::TaskStatus::Stopped));
    agent.send(FromAgent::TaskAccount(v1::TaskAccount { state, ..account(&site, &stranger) })).await;
    site.until_status(&stranger, TaskStatus::Stopped).await;

    let hello = v1::Hello {
        container_instance_arn: its,
        host_key: "host-b".to_owned(),
        outbox_epoch: "e".to_owned(),
        last_manifest_sequence: 7,
        last_seen: foreign(),
    };
    let mut agent = Agent::greet(site.client().await, hello).await;
    let (manifest, _) = agent.greeting().await;
    ask(&agent, &manifest, std::slice::from_ref(&stranger)).await;
    assert_eq!(to_stop(&mut agent).await, Vec::<String>::new());
}
