//! Promise: hosts join over TLS with a token and the CA's fingerprint, keep their certificate and
//! renew it; secrets stay secret, and plaintext never leaves the machine.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;

use anyhow::{Context, Result, ensure};
use berth_tests::expect::PATIENCE;
use berth_tests::files::mode;
use berth_tests::program::Program;
use berth_tests::secured::{Secured, private_lines, with_data};
use berth_tests::{Agent, Cluster, demo, eventually};
use serde_json::{Value, json};

fn sleeper() -> Value {
    demo::task("tls", "none", json!([demo::container("one", &["sleep", "3600"])]))
}

/// Waits until the agent has said that often what holds that text.
async fn says(agent: &Agent, what: &str, times: usize) -> Result<()> {
    eventually(PATIENCE, format!("the agent says {what:?} {times} times"), || async {
        Ok((agent.output().matches(what).count() >= times).then_some(()))
    })
    .await
}

#[tokio::test]
async fn a_host_joins_with_a_token_runs_tasks_and_needs_no_token_again() -> Result<()> {
    let secured = Secured::start("1h").await?;
    let mut cluster = secured.joined().await?;
    let instance = cluster.registered().await?;
    let (arn, _) = cluster.running(sleeper()).await?;

    let first = cluster.agent.output();
    cluster.agent.terminate().await?;
    cluster.disconnected().await?;
    cluster.agent.set("BERTH_JOIN_TOKEN", "");
    cluster.agent.set("BERTH_CA_FINGERPRINT", "");
    cluster.agent.start_again()?;
    says(&cluster.agent, "connected to the control plane", 1).await?;
    assert_eq!(cluster.registered().await?, instance);
    assert_eq!(cluster.task(&arn).await?["lastStatus"], "RUNNING");
    ensure!(!cluster.agent.output().contains("enrolled"), "the certificate was kept");
    cluster.stop(&arn, None).await?;
    cluster.until(&arn, "STOPPED", PATIENCE).await?;

    // Secrets: files for their owner alone, and in no log.
    let pem = cluster.agent.data_dir().join("tls/host.pem");
    assert_eq!(mode(&pem)?, 0o600);
    assert_eq!(mode(&cluster.agent.data_dir().join("tls"))?, 0o700);
    let key = std::fs::read_to_string(&pem)?;
    let lines = private_lines(&key);
    ensure!(!lines.is_empty(), "host.pem holds no key");
    let ca: Vec<_> = std::fs::read_dir(secured.data_dir())?.collect::<Result<_, _>>()?;
    for entry in ca.iter().filter(|entry| entry.path().is_file()) {
        assert_eq!(mode(&entry.path())? & 0o077, 0, "{}", entry.path().display());
    }
    for log in [first, cluster.agent.output(), secured.output()] {
        ensure!(!log.contains(&secured.token), "the token is in a log");
        ensure!(lines.iter().all(|line| !log.contains(line)), "the key is in a log");
    }
    Ok(())
}

#[tokio::test]
async fn a_token_that_root_makes_is_the_services_to_read() -> Result<()> {
    const SERVICE: u32 = 12345;
    for token_first in [true, false] {
        let secured = Secured::start_as_user(SERVICE, token_first).await?;
        secured.joined().await.with_context(|| format!("{token_first}: {}", secured.output()))?;
        for entry in std::fs::read_dir(secured.data_dir())? {
            let (path, found) = entry.and_then(|entry| Ok((entry.path(), entry.metadata()?)))?;
            assert_eq!((found.uid(), found.gid()), (SERVICE, SERVICE), "{}", path.display());
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_host_that_is_told_of_another_authority_enrols_anew_and_its_tasks_run_on() -> Result<()> {
    let mut secured = Secured::start("1h").await?;
    let mut cluster = secured.joined().await?;
    let instance = cluster.registered().await?;
    let (arn, _) = cluster.running(sleeper()).await?;
    let container = cluster.engine.id_of(&arn, "one").await?;
    let process = async |cluster: &Cluster| -> Result<Option<i64>> {
        Ok(cluster.engine.inspect(&container).await?.state.and_then(|state| state.pid))
    };
    let before = process(&cluster).await?;
    ensure!(before.is_some_and(|pid| pid > 0), "{before:?}");

    secured.replace_authority().await?;
    cluster.disconnected().await?;
    let pem = cluster.agent.data_dir().join("tls/host.pem");
    let old = std::fs::read_to_string(&pem)?;
    cluster.agent.terminate().await?;
    // Told of the authority alone it cannot, and keeps what it has.
    cluster.agent.set("BERTH_JOIN_TOKEN", "");
    cluster.agent.set("BERTH_CA_FINGERPRINT", &secured.fingerprint);
    cluster.agent.start_again()?;
    says(&cluster.agent, "not connected to the control plane", 1).await?;
    cluster.agent.terminate().await?;
    assert_eq!(std::fs::read_to_string(&pem)?, old);

    cluster.agent.set("BERTH_JOIN_TOKEN", &secured.token);
    cluster.agent.start_again()?;
    assert_eq!(cluster.registered().await?, instance);
    says(&cluster.agent, "enrolled anew", 1).await?;
    ensure!(std::fs::read_to_string(&pem)? != old, "the certificate is new");
    assert_eq!(mode(&pem)?, 0o600);
    assert_eq!(cluster.task(&arn).await?["lastStatus"], "RUNNING");
    assert_eq!(process(&cluster).await?, before);

    // Once is enough, and the task is still one that can be stopped.
    cluster.agent.kill().await?;
    cluster.agent.start_again()?;
    says(&cluster.agent, "connected to the control plane", 1).await?;
    ensure!(!cluster.agent.output().contains("enrolled"), "{}", cluster.agent.output());
    assert_eq!(process(&cluster).await?, before);
    cluster.registered().await?;
    cluster.stop(&arn, None).await?;
    cluster.until(&arn, "STOPPED", PATIENCE).await?;
    Ok(())
}

#[tokio::test]
async fn a_host_that_lost_all_of_its_state_is_refused_until_its_instance_is_deregistered() -> Result<()> {
    let secured = Secured::start("1h").await?;
    let mut cluster = secured.joined().await?;
    let instance = cluster.registered().await?;
    let (task, _) = cluster.running(sleeper()).await?;
    let container = cluster.engine.id_of(&task, "one").await?;
    let runs = async |cluster: &Cluster| -> Result<bool> {
        let state = cluster.engine.inspect(&container).await?.state;
        Ok(state.is_some_and(|state| state.running == Some(true)))
    };
    cluster.agent.kill().await?;
    cluster.disconnected().await?;
    cluster.agent.lose_state()?;
    cluster.agent.start_again()?;
    says(&cluster.agent, "belongs to a host with another certificate", 1).await?;
    ensure!(runs(&cluster).await?, "the task did not run on");

    let away = json!({ "cluster": cluster.name, "containerInstance": instance, "force": true });
    cluster.ecs.call("DeregisterContainerInstance", away).await?;
    // As README says: what runs there is the operator's to end, and this ended it.
    cluster.agent.terminate().await?;
    cluster.agent.start_again()?;
    let anew = cluster.registered().await?;
    ensure!(anew != instance, "{anew}");
    eventually(PATIENCE, "what ran there has ended", || async { Ok((!runs(&cluster).await?).then_some(())) })
        .await?;
    let (_, placed) = cluster.running(sleeper()).await?;
    assert_eq!(placed["containerInstanceArn"], anew);
    Ok(())
}

#[tokio::test]
async fn a_wrong_token_is_refused_and_the_agent_keeps_trying() -> Result<()> {
    let secured = Secured::start("1h").await?;
    let wrong = format!("berth-{}", "0".repeat(64));
    let env = [("BERTH_JOIN_TOKEN", wrong.as_str()), ("BERTH_CA_FINGERPRINT", &secured.fingerprint)];
    let mut cluster = secured.cluster(&env).await?;
    let refused = "the join token is unknown or has expired; make another with `berth-controlplane token`";
    says(&cluster.agent, refused, 3).await?;
    ensure!(!cluster.agent.output().contains(&wrong), "not even a wrong token is logged");
    ensure!(!secured.output().contains(&wrong), "not even a wrong token is logged");
    ensure!(cluster.instance().await.is_err(), "nobody registered");
    ensure!(!cluster.agent.data_dir().join("tls/host.pem").exists(), "nothing is kept");

    // The right one, and it is in.
    cluster.agent.terminate().await?;
    cluster.agent.set("BERTH_JOIN_TOKEN", &secured.token);
    cluster.agent.start_again()?;
    cluster.registered().await?;
    Ok(())
}

#[tokio::test]
async fn a_wrong_fingerprint_is_refused_before_the_token_leaves() -> Result<()> {
    let secured = Secured::start("1h").await?;
    let wrong = format!("sha256:{}", "ab".repeat(32));
    let env = [("BERTH_JOIN_TOKEN", secured.token.as_str()), ("BERTH_CA_FINGERPRINT", &wrong)];
    let cluster = secured.cluster(&env).await?;
    says(&cluster.agent, "not connected to the control plane", 3).await?;
    let output = cluster.agent.output();
    let line = output.lines().find(|line| line.contains("not connected")).context("it says so")?;
    ensure!(line.contains("BERTH_CA_FINGERPRINT"), "it says what does not match: {line}");
    ensure!(!secured.output().contains("a host enrolled"), "nobody enrolled");
    Ok(())
}

#[tokio::test]
async fn without_a_token_a_host_says_what_it_needs() -> Result<()> {
    let secured = Secured::start("1h").await?;
    let cluster = secured.cluster(&[]).await?;
    says(&cluster.agent, "set BERTH_JOIN_TOKEN and BERTH_CA_FINGERPRINT", 2).await?;
    ensure!(cluster.instance().await.is_err(), "nobody registered");
    Ok(())
}

#[tokio::test]
async fn a_certificate_is_renewed_before_it_ends_without_a_token() -> Result<()> {
    let secured = Secured::start("15s").await?;
    let mut cluster = secured.joined().await?;
    let pem = cluster.agent.data_dir().join("tls/host.pem");
    let first = std::fs::read_to_string(&pem)?;
    // Without the token: what follows is the certificate's doing.
    cluster.agent.terminate().await?;
    cluster.disconnected().await?;
    cluster.agent.set("BERTH_JOIN_TOKEN", "");
    cluster.agent.start_again()?;
    cluster.registered().await?;
    let (arn, _) = cluster.running(sleeper()).await?;
    says(&cluster.agent, "renewed the host's certificate", 1).await?;
    let second = std::fs::read_to_string(&pem)?;
    ensure!(
        first != second && private_lines(&first) != private_lines(&second),
        "key and certificate are new"
    );
    assert_eq!(mode(&pem)?, 0o600);

    // Past the end of the first one it goes on, and the new one opens the door again.
    says(&cluster.agent, "renewed the host's certificate", 2).await?;
    cluster.agent.kill().await?;
    cluster.agent.start_again()?;
    says(&cluster.agent, "connected to the control plane", 1).await?;
    cluster.registered().await?;
    assert_eq!(cluster.task(&arn).await?["lastStatus"], "RUNNING");
    Ok(())
}

#[tokio::test]
async fn the_agent_speaks_no_plaintext_beyond_this_machine() -> Result<()> {
    let data = tempfile::tempdir()?;
    let datadir = data.path().to_str().context("a strange path")?.to_owned();
    let env = BTreeMap::from([
        ("ECS_BACKEND_HOST".to_owned(), "http://192.0.2.1:8046".to_owned()),
        ("ECS_DATADIR".to_owned(), datadir),
        ("BERTH_INTROSPECTION_ADDRESS".to_owned(), "off".to_owned()),
    ]);
    let mut program = Program::start("berth-agent", &[], &env)?;
    assert_eq!(program.end(PATIENCE).await?.code(), Some(5), "{}", program.output());
    ensure!(
        program.output().contains("plaintext is only spoken on loopback and unix sockets"),
        "{}",
        program.output()
    );
    Ok(())
}

#[tokio::test]
async fn the_control_plane_listens_to_no_plaintext_beyond_this_machine() -> Result<()> {
    let data = tempfile::tempdir()?;
    let args = ["serve", "--agent-tls=off", "--listen", "127.0.0.1:0", "--agent-listen", "0.0.0.0:0"];
    let mut program = Program::start("berth-controlplane", &with_data(&args, data.path()), &BTreeMap::new())?;
    assert_eq!(program.end(PATIENCE).await?.code(), Some(1), "{}", program.output());
    ensure!(program.output().contains("without TLS only loopback addresses"), "{}", program.output());
    // And the JSON API answers nobody from elsewhere without a key.
    let args = ["serve", "--listen", "0.0.0.0:0", "--agent-listen", "127.0.0.1:0"];
    let mut program = Program::start("berth-controlplane", &with_data(&args, data.path()), &BTreeMap::new())?;
    assert_eq!(program.end(PATIENCE).await?.code(), Some(1), "{}", program.output());
    ensure!(program.output().contains("--access-key"), "{}", program.output());
    Ok(())
}

#[tokio::test]
async fn plaintext_at_the_port_of_tls_gets_nowhere() -> Result<()> {
    let secured = Secured::start("1h").await?;
    let plain = format!("http://{}", secured.agents);
    let cluster = secured.cluster(&[("ECS_BACKEND_HOST", plain.as_str())]).await?;
    says(&cluster.agent, "not connected to the control plane", 2).await?;
    ensure!(cluster.instance().await.is_err(), "nobody registered");
    Ok(())
}
