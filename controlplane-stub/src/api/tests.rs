//! Tests of the whole: real listeners, the embedded store, simulated agents, requests over TCP.

use std::net::SocketAddr;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::testing::{registration, text};
use crate::daemon::{Config, Daemon, Running};

/// A control plane that runs.
struct Plane {
    running: Running,
    _data: tempfile::TempDir,
}

impl Plane {
    async fn start() -> Self {
        let data = tempfile::tempdir().expect("a directory");
        let config = Config { dev: true, ..Config::local(data.path()) };
        Self { running: Daemon::start(config).await.expect("it starts"), _data: data }
    }

    async fn ok(&self, operation: &str, input: Value) -> Value {
        let (status, reply) = self.send(operation, &input).await;
        assert_eq!(status, 200, "{operation}: {reply}");
        reply
    }

    async fn send(&self, operation: &str, input: &Value) -> (u16, Value) {
        let target = format!("X-Amz-Target: AmazonEC2ContainerServiceV20141113.{operation}\r\n");
        http(self.running.api_addr, "POST / HTTP/1.1", &target, &input.to_string()).await
    }

    async fn dev(&self, method: &str, path: &str, body: &Value) -> (u16, Value) {
        http(self.running.api_addr, &format!("{method} /dev/{path} HTTP/1.1"), "", &body.to_string()).await
    }

    /// An instance with a simulated agent; its ARN.
    async fn host(&self) -> String {
        let reply = self.ok("RegisterContainerInstance", registration()).await;
        let arn = text(&reply["containerInstance"]["containerInstanceArn"]);
        let (status, reply) = self.dev("POST", "simulated-agent", &json!({"containerInstance": arn})).await;
        assert_eq!(status, 200, "{reply}");
        arn
    }

    /// Waits until a task shows a status, looking whenever a record changes.
    async fn until(&self, task: &str, status: &str) -> Value {
        let mut changes = self.running.state.store.watch();
        loop {
            let shown = self.ok("DescribeTasks", json!({"tasks": [task]})).await["tasks"][0].clone();
            if shown["lastStatus"] == status {
                return shown;
            }
            changes.recv().await.expect("the store lives");
        }
    }
}

/// One request over a connection of its own: the status and the body.
async fn http(address: SocketAddr, line: &str, headers: &str, body: &str) -> (u16, Value) {
    let mut stream = TcpStream::connect(address).await.expect("a connection");
    let head =
        format!("{line}\r\nHost: x\r\nConnection: close\r\n{headers}Content-Length: {}\r\n\r\n", body.len());
    stream.write_all(format!("{head}{body}").as_bytes()).await.expect("written");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("an answer");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
    (status, serde_json::from_str(body).expect("JSON"))
}

fn web() -> Value {
    let container =
        json!({"name": "app", "image": "busybox", "memory": 64, "portMappings": [{"containerPort": 80}]});
    json!({"family": "web", "containerDefinitions": [container]})
}

#[tokio::test]
async fn a_task_runs_and_is_stopped() {
    let plane = Plane::start().await;
    plane.ok("RegisterTaskDefinition", web()).await;
    let host = plane.host().await;
    let overrides =
        json!({"containerOverrides": [{"name": "app", "environment": [{"name": "A", "value": "1"}]}]});
    let body = json!({"taskDefinition": "web", "count": 2, "overrides": overrides, "startedBy": "me"});
    let reply = plane.ok("RunTask", body).await;
    assert_eq!((reply["tasks"].as_array().unwrap().len(), &reply["failures"]), (2, &json!([])));
    let task = text(&reply["tasks"][0]["taskArn"]);
    assert_eq!(reply["tasks"][0]["lastStatus"], "PENDING");
    let running = plane.until(&task, "RUNNING").await;
    assert_eq!(
        (&running["connectivity"], &running["overrides"]["containerOverrides"]),
        (&json!("CONNECTED"), &overrides["containerOverrides"])
    );
    assert!(running["containers"][0]["networkBindings"][0]["hostPort"].as_u64().unwrap() > 0);
    let on_host = plane.ok("ListTasks", json!({"containerInstance": host})).await;
    assert_eq!(on_host["taskArns"].as_array().unwrap().len(), 2);
    plane.ok("StopTask", json!({"task": task, "reason": "enough"})).await;
    let stopped = plane.until(&task, "STOPPED").await;
    assert_eq!(
        (&stopped["stopCode"], &stopped["stoppedReason"]),
        (&json!("UserInitiated"), &json!("enough"))
    );
    assert!(stopped["containers"][0]["exitCode"].is_i64() && stopped["stoppedAt"].is_f64());
    plane.running.stop().await.unwrap();
}

#[tokio::test]
async fn a_client_token_launches_once() {
    let plane = Plane::start().await;
    plane.ok("RegisterTaskDefinition", web()).await;
    plane.host().await;
    let body = |count: u32| json!({"taskDefinition": "web", "clientToken": "t", "count": count});
    let arns = |reply: &Value| {
        reply["tasks"].as_array().unwrap().iter().map(|t| text(&t["taskArn"])).collect::<Vec<_>>()
    };
    let first = plane.ok("RunTask", body(1)).await;
    assert_eq!(arns(&plane.ok("RunTask", body(1)).await), arns(&first));
    let (status, refused) = plane.send("RunTask", &body(2)).await;
    assert_eq!(
        (status, &refused["__type"], &refused["resourceIds"]),
        (400, &json!("ConflictException"), &json!(arns(&first)))
    );
    plane.running.stop().await.unwrap();
}

#[tokio::test]
async fn placement_honours_attributes_constraints_and_room() {
    let plane = Plane::start().await;
    plane.ok("RegisterTaskDefinition", web()).await;
    let mut linked = web();
    linked["family"] = json!("linked");
    linked["containerDefinitions"][0]["systemControls"] =
        json!([{"namespace": "net.core.somaxconn", "value": "1"}]);
    plane.ok("RegisterTaskDefinition", linked).await;
    let mut large = web();
    large["family"] = json!("large");
    large["containerDefinitions"][0]["memory"] = json!(5000);
    plane.ok("RegisterTaskDefinition", large).await;
    let host = plane.host().await;
    for (body, reason) in [
        (json!({"taskDefinition": "linked"}), "ATTRIBUTE"),
        (json!({"taskDefinition": "large"}), "RESOURCE:MEMORY"),
        (
            json!({"taskDefinition": "web", "placementConstraints": [{"type": "memberOf", "expression": "attribute:stack == dev"}]}),
            "MemberOf placement constraint unsatisfied",
        ),
    ] {
        let reply = plane.ok("RunTask", body).await;
        assert_eq!(reply, json!({"tasks": [], "failures": [{"arn": host, "reason": reason}]}));
    }
    let started = plane.ok("StartTask", json!({"taskDefinition": "web", "containerInstances": [host]})).await;
    assert_eq!(started["tasks"][0]["containerInstanceArn"], host);
    let detached = plane.dev("DELETE", "simulated-agent", &json!({"containerInstance": host})).await;
    assert_eq!(detached.1["detached"], true);
    let mut sessions = plane.running.state.registry.changes();
    while plane.running.state.registry.is_connected(&host) {
        sessions.changed().await.unwrap();
    }
    let reply = plane.ok("RunTask", json!({"taskDefinition": "web"})).await;
    assert_eq!(reply["failures"][0]["reason"], "AGENT");
    plane.running.stop().await.unwrap();
}

#[tokio::test]
async fn a_reset_leaves_the_default_cluster_alone() {
    let plane = Plane::start().await;
    plane.ok("RegisterTaskDefinition", web()).await;
    plane.host().await;
    plane.ok("RunTask", json!({"taskDefinition": "web"})).await;
    assert_eq!(plane.dev("POST", "reset", &json!({})).await.0, 200);
    assert_eq!(plane.ok("ListTasks", json!({})).await["taskArns"], json!([]));
    assert_eq!(plane.ok("ListContainerInstances", json!({})).await["containerInstanceArns"], json!([]));
    assert_eq!(plane.ok("ListTaskDefinitionFamilies", json!({})).await["families"], json!([]));
    assert_eq!(plane.ok("DescribeClusters", json!({})).await["clusters"][0]["status"], "ACTIVE");
    plane.running.stop().await.unwrap();
}
