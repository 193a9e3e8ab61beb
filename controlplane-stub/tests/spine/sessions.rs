//! The conversation: what an agent is told, and what becomes of what it tells.

use berth_controlplane::arn;
use berth_controlplane::model::{InstanceStatus, StopCause, TaskStatus};
use berth_proto::v1;
use berth_proto::v1::agent_message::Message as FromAgent;
use berth_proto::v1::control_plane_message::Message as ToAgent;
use tonic::Code;

use crate::client::{Agent, change, request, site, site_with};

fn cause() -> StopCause {
    StopCause { code: "UserInitiated".to_owned(), reason: "Task stopped by user".to_owned() }
}

async fn refused(agent: &mut Agent) -> tonic::Status {
    loop {
        match agent.next().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("the session ended without an error"),
            Err(status) => return status,
        }
    }
}

#[tokio::test]
async fn a_new_session_is_told_everything_that_is_not_stopped() {
    let site = site().await;
    let agent = site.agent("host-a").await;
    let (arn, tasks) = (agent.arn.clone(), site.launch(3).await);
    drop(agent);
    site.running.state.controller.stop_task("default", arn::id_of(&tasks[0]), cause()).await.unwrap();

    let mut agent = site.connect(&arn, "host-a", "epoch-1").await;
    let (manifest, payload) = agent.greeting().await;
    assert_eq!(manifest.tasks.len(), 3);
    assert_eq!(payload.tasks.len(), 3);
    let stops: Vec<_> = payload.tasks.iter().filter(|t| t.desired() == v1::DesiredStatus::Stopped).collect();
    assert_eq!(stops.len(), 1);
    assert_eq!(stops[0].task_arn, tasks[0]);
    assert_eq!(payload.tasks[0].task_arn, tasks[0], "stops come first");
    assert_eq!(stops[0].stop.as_ref().unwrap().reason, "Task stopped by user");
    assert!(
        payload
            .tasks
            .iter()
            .all(|t| t.spec.as_ref().is_some_and(|s| s.family == "web" && s.containers.len() == 1))
    );
    assert!(payload.tasks.iter().all(|t| t.last_heard() == v1::TaskStatus::Pending));
}

#[tokio::test]
async fn what_changes_is_sent_at_once_and_only_once() {
    let site = site().await;
    let mut agent = site.agent("host-a").await;
    let tasks = site.launch(2).await;
    let first = agent.payload().await;
    assert_eq!(first.tasks.len(), 2);
    agent.send(FromAgent::PayloadAck(v1::PayloadAck { sequence: first.sequence })).await;
    site.running.state.controller.stop_task("default", arn::id_of(&tasks[1]), cause()).await.unwrap();
    let second = agent.payload().await;
    assert!(second.sequence > first.sequence);
    assert_eq!(second.tasks.len(), 1);
    assert_eq!(
        (second.tasks[0].task_arn.as_str(), second.tasks[0].desired()),
        (tasks[1].as_str(), v1::DesiredStatus::Stopped)
    );
    assert!(second.tasks[0].spec.is_none());
    // Stopping again, and draining, send nothing of tasks.
    site.running.state.controller.stop_task("default", arn::id_of(&tasks[1]), cause()).await.unwrap();
    site.running
        .state
        .controller
        .set_instance_status("default", arn::id_of(&agent.arn), InstanceStatus::Draining)
        .await
        .unwrap();
    assert!(matches!(agent.next().await, Ok(Some(ToAgent::Drain(v1::Drain { draining: true })))));
    let arn = agent.arn.clone();
    drop(agent);
    let mut agent = site.connect(&arn, "host-a", "epoch-1").await;
    agent.greeting().await;
    assert!(matches!(agent.next().await, Ok(Some(ToAgent::Drain(v1::Drain { draining: true })))));
    site.running
        .state
        .controller
        .set_instance_status("default", arn::id_of(&arn), InstanceStatus::Active)
        .await
        .unwrap();
    assert!(matches!(agent.next().await, Ok(Some(ToAgent::Drain(v1::Drain { draining: false })))));
}

#[tokio::test]
async fn a_newer_session_replaces_the_older() {
    let site = site().await;
    let mut older = site.agent("host-a").await;
    let mut newer = site.connect(&older.arn, "host-a", "epoch-1").await;
    newer.greeting().await;
    let close = older.closed().await;
    assert!(!close.instance_inactive, "{close:?}");
    assert!(matches!(older.next().await, Ok(None)));
    assert!(
        site.running.state.registry.is_connected(&newer.arn),
        "the end of the older must not hide the newer"
    );
    let tasks = site.launch(1).await;
    assert_eq!(newer.payload().await.tasks[0].task_arn, tasks[0]);
}

#[tokio::test]
async fn what_was_acknowledged_is_durable_and_counts_once() {
    let site = site().await;
    let mut agent = site.agent("host-a").await;
    let arn = agent.arn.clone();
    let tasks = site.launch(2).await;
    agent.report(1, &tasks[0], v1::TaskStatus::Pending).await;
    agent.report(2, &tasks[0], v1::TaskStatus::Running).await;
    agent.report(3, &tasks[1], v1::TaskStatus::Running).await;
    while agent.acknowledged().await < 3 {}
    let running = site.task(&tasks[0]).unwrap();
    assert_eq!(running.observed.status, TaskStatus::Running);
    assert!(running.observed.started_at.is_some());
    assert_eq!(running.observed.containers[0].network_bindings[0].host_port, 49153);

    // Delivered again: acknowledged, and nothing changes.
    agent.report(2, &tasks[0], v1::TaskStatus::Stopped).await;
    assert_eq!(agent.acknowledged().await, 3);
    assert_eq!(site.task(&tasks[0]).unwrap(), running);
    // A status never goes back.
    agent.report(4, &tasks[0], v1::TaskStatus::Pending).await;
    assert_eq!(agent.acknowledged().await, 4);
    assert_eq!(site.task(&tasks[0]).unwrap().observed.status, TaskStatus::Running);
    agent.report(5, &tasks[0], v1::TaskStatus::Stopped).await;
    agent.report(6, &tasks[0], v1::TaskStatus::Running).await;
    agent.report(7, "arn:aws:ecs:us-east-1:123456789012:task/default/unknown", v1::TaskStatus::Running).await;
    while agent.acknowledged().await < 7 {}
    let stopped = site.task(&tasks[0]).unwrap();
    assert_eq!(stopped.observed.status, TaskStatus::Stopped);
    assert_eq!(stopped.observed.stop.as_ref().unwrap().code, "EssentialContainerExited");
    assert!(stopped.observed.stopped_at.is_some());

    // After a restart nothing is lost, and the numbering goes on.
    drop(agent);
    let site = site.restarted().await;
    assert_eq!(site.task(&tasks[0]).unwrap(), stopped);
    let mut agent = site.connect(&arn, "host-a", "epoch-1").await;
    let (_, payload) = agent.greeting().await;
    assert_eq!(payload.tasks.len(), 1, "a stopped task is not sent again");
    assert_eq!(payload.tasks[0].last_heard(), v1::TaskStatus::Running);
    agent.report(7, &tasks[1], v1::TaskStatus::Stopped).await;
    assert_eq!(agent.acknowledged().await, 7);
    assert_eq!(site.task(&tasks[1]).unwrap().observed.status, TaskStatus::Running);

    // A new life of the outbox begins at 1 again.
    let mut agent = site.connect(&arn, "host-a", "epoch-2").await;
    agent.greeting().await;
    agent.report(1, &tasks[1], v1::TaskStatus::Stopped).await;
    assert_eq!(agent.acknowledged().await, 1);
    assert_eq!(site.task(&tasks[1]).unwrap().observed.status, TaskStatus::Stopped);
}

#[tokio::test]
async fn many_state_changes_are_applied_in_order() {
    let site = site().await;
    let mut agent = site.agent("host-a").await;
    let mut tasks = Vec::new();
    for _ in 0..5 {
        tasks.extend(site.launch(10).await);
    }
    let mut sequence = 0;
    for status in [v1::TaskStatus::Pending, v1::TaskStatus::Running, v1::TaskStatus::Stopped] {
        for task in &tasks {
            sequence += 1;
            agent.send(FromAgent::TaskStateChange(change(sequence, task, status))).await;
        }
    }
    while agent.acknowledged().await < sequence {}
    let view = site.running.state.store.view();
    assert!(view.tasks(None).iter().all(|t| t.value.observed.status == TaskStatus::Stopped));
}

#[tokio::test]
async fn a_stop_needs_two_steps_and_names() {
    let site = site().await;
    let mut agent = site.agent("host-a").await;
    let tasks = site.launch(3).await;
    agent.report(1, &tasks[1], v1::TaskStatus::Stopped).await;
    site.running.state.controller.stop_task("default", arn::id_of(&tasks[2]), cause()).await.unwrap();
    let unknown = site.running.state.arns.task("default", &"f".repeat(32));
    let mut asked = tasks.clone();
    asked.push(unknown.clone());
    let question =
        v1::StopVerification { message_id: "q1".to_owned(), manifest_sequence: 1, task_arns: asked };
    agent.send(FromAgent::StopVerification(question)).await;
    let answer = agent.find(|m| if let ToAgent::StopVerificationAck(a) = m { Some(a) } else { None }).await;
    assert_eq!(answer.message_id, "q1");
    assert_eq!(
        answer.task_arns,
        [tasks[1].clone(), tasks[2].clone(), unknown],
        "the running one is not to be stopped"
    );
}

#[tokio::test]
async fn a_heartbeat_is_remembered_and_acknowledged() {
    let site = site().await;
    let mut agent = site.agent("host-a").await;
    let waiting = v1::WaitingTask {
        task_arn: "t".to_owned(),
        missing: "memory, 412 MiB short".to_owned(),
        container: String::new(),
    };
    let heartbeat = v1::Heartbeat {
        sequence: 7,
        remaining: Some(v1::Resources { cpu: 100, memory_mib: 200, ..Default::default() }),
        engine_healthy: true,
        waiting: vec![waiting],
        ..Default::default()
    };
    agent.send(FromAgent::Heartbeat(heartbeat)).await;
    assert_eq!(
        agent.find(|m| if let ToAgent::HeartbeatAck(a) = m { Some(a.sequence) } else { None }).await,
        7
    );
    let known = site.running.state.registry.heartbeat(&agent.arn).unwrap();
    assert_eq!((known.remaining.cpu.0, known.remaining.memory.0, known.engine_healthy), (100, 200, true));
    assert_eq!(known.waiting[0].on, "memory, 412 MiB short");
    let arn = agent.arn.clone();
    drop(agent);
    site.until_connected(&arn, false).await;
    assert!(site.running.state.registry.heartbeat(&arn).is_none());
}

#[tokio::test]
async fn a_deregistered_instance_is_closed_for_good() {
    let site = site().await;
    let mut agent = site.agent("host-a").await;
    let tasks = site.launch(2).await;
    agent.report(1, &tasks[0], v1::TaskStatus::Stopped).await;
    agent.acknowledged().await;
    let controller = &site.running.state.controller;
    let id = arn::id_of(&agent.arn).to_owned();
    let error = controller.deregister_instance("default", &id, false).await.unwrap_err();
    assert_eq!(error.to_string(), "Found running tasks on the instance.");
    controller.deregister_instance("default", &id, true).await.unwrap();
    assert!(agent.closed().await.instance_inactive);
    let orphan = site.task(&tasks[1]).unwrap();
    assert_eq!(orphan.observed.status, TaskStatus::Stopped);
    assert!(orphan.observed.stop.unwrap().reason.contains("deregistration forced by user"));
    assert!(site.task(&tasks[0]).unwrap().observed.stop.unwrap().reason.contains("Essential"));
    let mut again = site.connect(&agent.arn, "host-a", "epoch-1").await;
    assert!(again.closed().await.instance_inactive);
}

#[tokio::test]
async fn a_session_that_begins_wrongly_is_refused() {
    let site = site().await;
    let arn = site.register("host-a").await;
    let mut stranger = site.connect(&arn, "host-b", "epoch-1").await;
    assert_eq!(refused(&mut stranger).await.code(), Code::PermissionDenied);
    let unknown = site.running.state.arns.container_instance("default", &"e".repeat(32));
    let mut lost = site.connect(&unknown, "host-a", "epoch-1").await;
    assert_eq!(refused(&mut lost).await.code(), Code::NotFound);
    let mut twice = site.connect(&arn, "host-a", "epoch-1").await;
    twice.greeting().await;
    twice.send(FromAgent::Hello(v1::Hello::default())).await;
    assert_eq!(refused(&mut twice).await.code(), Code::InvalidArgument);
    site.until_connected(&arn, false).await;
}

#[tokio::test]
async fn stopping_the_control_plane_tells_the_agents() {
    let site = site().await;
    let mut agent = site.agent("host-a").await;
    site.running.stop().await.unwrap();
    let close = agent.closed().await;
    assert!(!close.instance_inactive && close.reason.contains("shutting down"), "{close:?}");
}

#[tokio::test]
async fn an_agent_that_falls_silent_counts_as_gone() {
    let site = site_with(|config| config.heartbeat_interval = std::time::Duration::from_millis(50)).await;
    let mut agent = site.agent("host-a").await;
    let close = agent.closed().await;
    assert!(close.reason.contains("nothing was heard"), "{close:?}");
    assert!(!close.instance_inactive);
    site.until_connected(&agent.arn, false).await;
}

#[tokio::test]
async fn a_task_asks_for_protection_through_the_agent_of_its_instance_alone() {
    use v1::task_protection_reply::Outcome;
    let site = site().await;
    let mut agent = site.agent("host-a").await;
    let mut request = request(&site, 1);
    request.group = Some("service:web".to_owned());
    let launched = site.running.state.controller.launch(request).await.unwrap();
    let (of_service, alone) = (launched.tasks[0].arn.clone(), site.launch(1).await.remove(0));
    let missing = site.running.state.arns.task("default", &"f".repeat(32));
    let change = |enabled, minutes| Some(v1::TaskProtectionChange { enabled, expires_in_minutes: minutes });
    let mut other = site.agent("host-b").await;
    let mut asked = 0;
    let mut ask = async |agent: &mut Agent, task: &str, change: Option<v1::TaskProtectionChange>| {
        asked += 1;
        let question = v1::TaskProtectionRequest { request_id: asked, task_arn: task.to_owned(), change };
        agent.send(FromAgent::TaskProtectionRequest(question)).await;
        let reply = agent
            .find(|m| if let ToAgent::TaskProtectionReply(reply) = m { Some(reply) } else { None })
            .await;
        assert_eq!(reply.request_id, asked);
        reply.outcome.unwrap()
    };
    let none = Outcome::Protection(v1::TaskProtection { enabled: false, expires_at_ms: 0 });
    assert_eq!(ask(&mut agent, &of_service, None).await, none);
    let given = ask(&mut agent, &of_service, change(true, Some(1))).await;
    let Outcome::Protection(protection) = &given else { panic!("{given:?}") };
    let until = site.task(&of_service).unwrap().protected_until.unwrap();
    assert!(protection.enabled && protection.expires_at_ms == until.0, "{given:?}");
    assert_eq!(ask(&mut agent, &of_service, None).await, given);
    // An agent speaks for its own tasks.
    let refused = ask(&mut other, &of_service, change(false, None)).await;
    let Outcome::Error(error) = refused else { panic!("{refused:?}") };
    assert_eq!(error.code, "AccessDeniedException");
    let refused = ask(&mut agent, &of_service, change(true, Some(0))).await;
    let Outcome::Error(error) = refused else { panic!("{refused:?}") };
    assert!(error.code == "InvalidParameterException" && !error.request_id.is_empty(), "{error:?}");
    assert_eq!(site.task(&of_service).unwrap().protected_until, Some(until));
    for (task, reason) in [(&alone, "TASK_NOT_VALID"), (&missing, "MISSING")] {
        let failed = ask(&mut agent, task, change(true, None)).await;
        let Outcome::Failure(failure) = failed else { panic!("{failed:?}") };
        assert_eq!(failure.reason, reason);
    }
    assert_eq!(ask(&mut agent, &of_service, change(false, None)).await, none);
    assert_eq!(site.task(&of_service).unwrap().protected_until, None);
}

#[tokio::test]
async fn a_host_that_goes_drains_its_instance_and_takes_back_only_what_it_said_itself() {
    let site = site().await;
    let mut agent = site.agent("host-a").await;
    let controller = &site.running.state.controller;
    let id = arn::id_of(&agent.arn).to_owned();
    let notice = |going: bool| {
        let reason = if going { "it shuts down" } else { "" };
        FromAgent::HostNotice(v1::HostNotice { going, reason: reason.to_owned(), deadline_ms: 0 })
    };
    let draining = |draining: bool| ToAgent::Drain(v1::Drain { draining });

    agent.send(notice(false)).await;
    agent.send(notice(true)).await;
    assert_eq!(agent.next().await.unwrap(), Some(draining(true)));
    agent.send(notice(true)).await;
    agent.send(notice(false)).await;
    assert_eq!(agent.next().await.unwrap(), Some(draining(false)));

    // An operator's word stands, before and after the host's.
    controller.set_instance_status("default", &id, InstanceStatus::Draining).await.unwrap();
    assert_eq!(agent.next().await.unwrap(), Some(draining(true)));
    agent.send(notice(true)).await;
    agent.send(notice(false)).await;
    controller.set_instance_status("default", &id, InstanceStatus::Active).await.unwrap();
    assert_eq!(agent.next().await.unwrap(), Some(draining(false)));

    agent.send(notice(true)).await;
    assert_eq!(agent.next().await.unwrap(), Some(draining(true)));
    let known = controller.set_instance_status("default", &id, InstanceStatus::Draining).await.unwrap();
    assert!(!known.drained_by_host, "it is the operator's now");
    agent.send(notice(false)).await;
    controller.set_instance_status("default", &id, InstanceStatus::Active).await.unwrap();
    assert_eq!(agent.next().await.unwrap(), Some(draining(false)));
}
