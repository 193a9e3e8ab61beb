//! The program itself: what it prints, how it dies, and what it finds again.

use std::path::Path;
use std::process::Stdio;

use berth_controlplane::arn;
use berth_proto::v1::control_plane_client::ControlPlaneClient;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

use crate::client::{Agent, registration, within};

fn program(data_dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_berth-controlplane"));
    command.arg("--data-dir").arg(data_dir).args([
        "--listen",
        "127.0.0.1:0",
        "--agent-listen",
        "127.0.0.1:0",
    ]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command
}

struct Started {
    child: Child,
    agents: String,
    _lines: Lines<BufReader<ChildStdout>>,
}

async fn start(data_dir: &Path) -> Started {
    let mut child = program(data_dir).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let line = within("the line that says it listens", lines.next_line()).await.unwrap().unwrap();
    let rest = line.strip_prefix("listening api=127.0.0.1:").unwrap_or_else(|| panic!("{line}"));
    let (_, agents) = rest.split_once(" agents=").unwrap();
    Started { child, agents: format!("http://{agents}"), _lines: lines }
}

async fn client(started: &Started) -> ControlPlaneClient<tonic::transport::Channel> {
    ControlPlaneClient::connect(started.agents.clone()).await.unwrap()
}

#[tokio::test]
async fn what_was_answered_survives_a_kill() {
    let directory = tempfile::tempdir().unwrap();
    let mut started = start(directory.path()).await;
    let mut arns = Vec::new();
    for host in 0..10 {
        let reply = client(&started)
            .await
            .register(registration(&format!("host-{host}")))
            .await
            .unwrap()
            .into_inner();
        arns.push(reply.container_instance_arn);
    }
    let mut agent = Agent::connect(client(&started).await, &arns[0], "host-0", "epoch-1").await;
    let (before, _) = agent.greeting().await;
    started.child.kill().await.unwrap();

    let again = start(directory.path()).await;
    for (host, arn) in arns.iter().enumerate() {
        let reply =
            client(&again).await.register(registration(&format!("host-{host}"))).await.unwrap().into_inner();
        assert_eq!(&reply.container_instance_arn, arn);
    }
    let mut agent = Agent::connect(client(&again).await, &arns[0], "host-0", "epoch-1").await;
    let (after, _) = agent.greeting().await;
    assert!(after.sequence > before.sequence, "numbers rise across restarts");
    assert_eq!(arn::scoped_of(&arns[0]).unwrap().0, "default");
}

#[tokio::test]
async fn a_signal_ends_it_in_time_with_success() {
    let directory = tempfile::tempdir().unwrap();
    let mut started = start(directory.path()).await;
    let arn = client(&started)
        .await
        .register(registration("host-a"))
        .await
        .unwrap()
        .into_inner()
        .container_instance_arn;
    let mut agent = Agent::connect(client(&started).await, &arn, "host-a", "epoch-1").await;
    agent.greeting().await;
    let pid = started.child.id().unwrap().to_string();
    let began = std::time::Instant::now();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().await.unwrap().success());
    agent.closed().await;
    let status = within("the end", started.child.wait()).await.unwrap();
    assert!(status.success(), "{status}");
    assert!(began.elapsed() < std::time::Duration::from_secs(5), "{:?}", began.elapsed());
}

#[tokio::test]
async fn an_error_is_one_line_that_says_what_to_do() {
    let directory = tempfile::tempdir().unwrap();
    let _first = start(directory.path()).await;
    let second = within("the second start", program(directory.path()).output()).await.unwrap();
    assert!(!second.status.success());
    let text = String::from_utf8(second.stderr).unwrap();
    assert_eq!(text.lines().count(), 1, "{text}");
    assert!(text.starts_with("berth-controlplane: ") && text.contains("in use by another process"), "{text}");
    let open = within(
        "the open start",
        program(directory.path()).args(["serve"]).env("BERTH_CP_LISTEN", "x").output(),
    )
    .await
    .unwrap();
    assert!(!open.status.success());
}

#[tokio::test]
async fn the_token_command_prints_a_token_and_the_fingerprint() {
    let directory = tempfile::tempdir().unwrap();
    let mut printed = Vec::new();
    for _ in 0..2 {
        let output = program(directory.path()).args(["token", "--lifetime", "1h"]).output().await.unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        printed.push(String::from_utf8(output.stdout).unwrap());
    }
    let parts = |text: &str| {
        let (token, ca) = text.trim().split_once('\n').unwrap();
        (
            token.strip_prefix("token=berth-").unwrap().to_owned(),
            ca.strip_prefix("ca=sha256:").unwrap().to_owned(),
        )
    };
    let (first, second) = (parts(&printed[0]), parts(&printed[1]));
    assert_ne!(first.0, second.0);
    assert_eq!(first.1, second.1);
    assert_eq!((first.0.len(), first.1.len()), (64, 64));
}
