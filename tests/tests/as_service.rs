//! The agent as it ships for systemd, on a host of its own: ready when it is registered, watched, not started
//! again when that would not help, apart from the engine's life and from its tasks'; all that it offers works under
//! its unit's restrictions; and a host that is switched off takes its tasks down in order. tests/scripts/service.sh makes the host and runs this beside it.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::Write;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use berth_tests::cluster::{container, text};
use berth_tests::program::{Program, binary};
use berth_tests::{Ecs, demo, eventually, vpc};
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(60);
const CLUSTER: &str = "service";
/// What README says that `systemd-analyze security` has against the unit, of 10: more it may not be.
const EXPOSURE: f64 = 5.6;

/// The program that makes hosts, with these words.
fn hosts(words: &[&str]) -> Result<Command> {
    let program =
        std::env::var_os("BERTH_HOSTS").context("BERTH_HOSTS names the program that makes hosts")?;
    let mut command = Command::new(program);
    command.args(words);
    Ok(command)
}

/// What a command on the host says, whatever its exit code.
fn said(line: &str) -> Result<String> {
    let done = hosts(&["exec", "1", line])?.output()?;
    Ok(format!("{}{}", String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr)))
}

/// The same of one that has to work.
fn works(line: &str) -> Result<String> {
    let done = hosts(&["exec", "1", line])?.output()?;
    let told = String::from_utf8_lossy(&done.stderr);
    ensure!(done.status.success(), "{line}: {told}{}", said("journalctl -u berth-agent -n 40 --no-pager")?);
    Ok(String::from_utf8(done.stdout)?.trim().to_owned())
}

fn puts(path: &str, content: &[u8]) -> Result<()> {
    let mut put = hosts(&["exec", "1", &format!("mkdir -p $(dirname {path}) && cat >{path}")])?
        .stdin(Stdio::piped())
        .spawn()?;
    put.stdin.take().context("no input")?.write_all(content)?;
    ensure!(put.wait()?.success(), "{path} was not written");
    Ok(())
}

/// A property of the agent's unit.
fn shows(property: &str) -> Result<String> {
    works(&format!("systemctl show -p {property} --value berth-agent"))
}

async fn until_shows(property: &str, what: &str) -> Result<()> {
    eventually(PATIENCE, format!("{property} has {what:?} in it"), || async {
        Ok(shows(property)?.contains(what).then_some(()))
    })
    .await
}

/// The control plane beside the host, and the agent on it as a package would put it there.
struct Site {
    _program: Program,
    _data: tempfile::TempDir,
    ecs: Ecs,
    config: String,
}

impl Site {
    async fn start() -> Result<Self> {
        Self::start_with(&BTreeMap::new(), "").await
    }

    /// With more variables for the control plane, and lines of the agent's configuration.
    async fn start_with(env: &BTreeMap<String, String>, lines: &str) -> Result<Self> {
        let net = std::env::var("HOSTS_NET").unwrap_or_else(|_| "10.78".to_owned());
        let data = tempfile::Builder::new().prefix("berth-controlplane-").tempdir()?;
        let args = |words: &[&str]| -> Vec<OsString> {
            let data = [OsString::from("--data-dir"), data.path().into()];
            words.iter().map(OsString::from).chain(data).collect()
        };
        let listen = format!("{net}.0.1:0");
        let serve = args(&["serve", "--listen", "127.0.0.1:0", "--agent-listen", &listen]);
        let mut program = Program::start("berth-controlplane", &serve, env)?;
        let line = program.line("listening ", PATIENCE).await?;
        let value = |text: &str, key: &str| {
            let found = text.split_whitespace().find_map(|word| word.strip_prefix(key)).map(str::to_owned);
            found.with_context(|| format!("{key} in {text:?}"))
        };
        let mut token = Program::start("berth-controlplane", &args(&["token"]), &BTreeMap::new())?;
        token.end(PATIENCE).await?;
        let printed = token.output();
        let ecs = Ecs::new(value(&line, "api=")?.parse()?);
        ecs.call("CreateCluster", json!({ "clusterName": CLUSTER })).await?;
        let config = format!(
            "ECS_CLUSTER={CLUSTER}\nECS_BACKEND_HOST=https://{}\nECS_IMAGE_PULL_BEHAVIOR=prefer-cached\n\
             BERTH_JOIN_TOKEN={}\nBERTH_CA_FINGERPRINT={}\n{lines}",
            value(&line, "agents=")?,
            value(&printed, "token=")?,
            value(&printed, "ca=")?,
        );
        install(&config)?;
        works(
            "systemctl restart systemd-logind && systemctl enable berth-agent && systemctl start berth-agent",
        )?;
        let site = Self { _program: program, _data: data, ecs, config };
        ensure!(site.instance().await?["agentConnected"] == true, "started, and not registered");
        Ok(site)
    }

    async fn instance(&self) -> Result<Value> {
        let listed = self.ecs.call("ListContainerInstances", json!({ "cluster": CLUSTER })).await?;
        let input = json!({ "cluster": CLUSTER, "containerInstances": listed["containerInstanceArns"] });
        let mut answer = self.ecs.call("DescribeContainerInstances", input).await?;
        Ok(answer["containerInstances"][0].take())
    }

    async fn run(&self) -> Result<String> {
        let registered = self.ecs.call("RegisterTaskDefinition", pair()).await?;
        let definition = &registered["taskDefinition"]["taskDefinitionArn"];
        let input = json!({ "cluster": CLUSTER, "taskDefinition": definition });
        let answer = self.ecs.call("RunTask", input).await?;
        let task = text(&answer["tasks"][0], "taskArn").with_context(|| answer.to_string())?;
        self.until(&task, "RUNNING").await?;
        Ok(task)
    }

    async fn task(&self, task: &str) -> Result<Value> {
        let input = json!({ "cluster": CLUSTER, "tasks": [task] });
        Ok(self.ecs.call("DescribeTasks", input).await?["tasks"][0].take())
    }

    async fn until(&self, task: &str, status: &str) -> Result<Value> {
        eventually(PATIENCE, format!("{task} is {status}"), || async {
            let task = self.task(task).await?;
            Ok((task["lastStatus"] == status).then_some(task))
        })
        .await
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        let _ = said("systemctl disable --now berth-agent; docker rm -f $(docker ps -aq)");
    }
}

/// What the packages put on a host; the state of an earlier test goes.
fn install(config: &str) -> Result<()> {
    said(
        "systemctl stop berth-agent; docker rm -f $(docker ps -aq); rm -rf /var/lib/berth /run/berth /etc/systemd/logind.conf.d",
    )?;
    let from = |path: &str| std::fs::read(demo::checkout().join("packaging/systemd").join(path));
    puts("/lib/systemd/system/berth-agent.service", &from("berth-agent.service")?)?;
    puts("/lib/systemd/system/berth.slice", &from("berth.slice")?)?;
    puts("/lib/systemd/system/ecstasks.slice", &from("ecstasks.slice")?)?;
    let each = "ecstasks-.slice.d/50-berth.conf";
    puts(&format!("/lib/systemd/system/{each}"), &from(each)?)?;
    puts("/usr/lib/systemd/logind.conf.d/50-berth.conf", &from("logind.conf.d/50-berth.conf")?)?;
    // A watchdog that a test can wait for.
    puts("/etc/systemd/system/berth-agent.service.d/test.conf", b"[Service]\nWatchdogSec=6s\n")?;
    puts("/etc/berth/agent.config", config.as_bytes())?;
    puts("/usr/bin/berth-agent.new", &std::fs::read(binary("berth-agent")?)?)?;
    works("chmod 755 /usr/bin/berth-agent.new && mv /usr/bin/berth-agent.new /usr/bin/berth-agent")?;
    works("systemctl daemon-reload && (systemctl reset-failed berth-agent 2>/dev/null || true)")?;
    Ok(())
}

/// Two containers that heed SIGTERM; `app` takes its time, and is to stop before `db`.
fn pair() -> Value {
    let one = |name: &str, end: &str| {
        let heeds = format!("trap '{end}' TERM; sleep 3600 & wait");
        json!({ "name": name, "image": "busybox:local", "memory": 32, "command": ["sh", "-c", heeds] })
    };
    let mut app = one("app", "sleep 3; exit 0");
    app["dependsOn"] = json!([{ "containerName": "db", "condition": "START" }]);
    json!({ "family": "pair", "networkMode": "none", "containerDefinitions": [one("db", "exit 0"), app] })
}

/// The processes of all containers on the host.
fn processes() -> Result<String> {
    works("docker inspect -f '{{.Id}} {{.State.Pid}}' $(docker ps -q) | sort")
}

#[tokio::test]
async fn a_service_that_is_watched_and_stands_apart_from_its_tasks_and_its_engine() -> Result<()> {
    let site = Site::start().await?;
    assert_eq!(shows("SubState")?, "running");
    ensure!(
        shows("StatusText")?.starts_with("connected to the control plane as "),
        "{}",
        shows("StatusText")?
    );
    assert_eq!(shows("Slice")?, "berth.slice");
    let delay = "busctl get-property org.freedesktop.login1 /org/freedesktop/login1 org.freedesktop.login1.Manager InhibitDelayMaxUSec";
    assert_eq!(works(delay)?, "t 120000000");
    let task = site.run().await?;
    until_shows("StatusText", "; 1 task").await?;
    let before = processes()?;

    // An upgrade.
    works("systemctl restart berth-agent")?;
    assert_eq!(
        (processes()?, site.task(&task).await?["lastStatus"].clone()),
        (before.clone(), json!("RUNNING"))
    );

    // One that hangs is ended and started again.
    let pid = shows("MainPID")?;
    works(&format!("kill -STOP {pid}"))?;
    until_shows("NRestarts", "1").await?;
    until_shows("StatusText", "connected to the control plane as ").await?;
    ensure!(shows("MainPID")? != pid, "the same process");
    assert_eq!((processes()?, site.task(&task).await?["lastStatus"].clone()), (before, json!("RUNNING")));

    // The engine has a life of its own.
    let pid = shows("MainPID")?;
    works("systemctl stop docker.socket docker.service")?;
    until_shows("StatusText", "the container engine does not answer").await?;
    works("systemctl start docker")?;
    let again = site.run().await?;
    assert_eq!(shows("MainPID")?, pid);
    let input = json!({ "cluster": CLUSTER, "task": again });
    site.ecs.call("StopTask", input).await?;
    site.until(&again, "STOPPED").await?;

    // A configuration that makes no sense is not tried again.
    puts("/etc/berth/agent.config", format!("{}ECS_RESERVED_MEMORY=lots\n", site.config).as_bytes())?;
    ensure!(!hosts(&["exec", "1", "systemctl restart berth-agent"])?.status()?.success(), "it started");
    assert_eq!((shows("ActiveState")?.as_str(), shows("ExecMainStatus")?.as_str()), ("failed", "5"));
    ensure!(
        said("journalctl -u berth-agent -n 5 --no-pager")?.contains("ECS_RESERVED_MEMORY=\"lots\""),
        "not told why"
    );

    // A control plane that is away does not fail the start.
    let away = site
        .config
        .lines()
        .filter(|line| !line.starts_with("ECS_BACKEND_HOST"))
        .collect::<Vec<_>>()
        .join("\n");
    puts("/etc/berth/agent.config", format!("{away}\nECS_BACKEND_HOST=https://127.0.0.1:9\n").as_bytes())?;
    let began = Instant::now();
    works("systemctl start berth-agent")?;
    ensure!(began.elapsed() < Duration::from_secs(25), "{:?}", began.elapsed());
    ensure!(shows("StatusText")?.starts_with("without the control plane"), "{}", shows("StatusText")?);

    let line = works("systemd-analyze security --no-pager berth-agent.service | tail -1")?;
    let score =
        line.split_whitespace().find_map(|word| word.parse::<f64>().ok()).with_context(|| line.clone())?;
    ensure!(score <= EXPOSURE, "{line}");
    let told = format!("`systemd-analyze security berth-agent` says {EXPOSURE}.");
    let readme = std::fs::read_to_string(demo::checkout().join("README.md"))?;
    ensure!(readme.contains(&told), "README does not say: {told}");
    Ok(())
}

/// Interfaces of tasks, credentials, log routers, faults: what the unit takes from the agent is not what they need.
#[tokio::test]
async fn what_the_agent_offers_it_can_do_as_the_service_that_it_is() -> Result<()> {
    const ROLE: &str = "arn:aws:iam::123456789012:role/web";
    const ASKS: &str = "wget -qO- $ECS_CONTAINER_METADATA_URI_V4/task | grep -q TaskARN || exit 11
        wget -qO- http://169.254.170.2$AWS_CONTAINER_CREDENTIALS_RELATIVE_URI | grep -q AKIAWEB || exit 12
        wget -qO- --header 'Content-Type: application/json' --post-data \
        '{\"Port\": 1234, \"Protocol\": \"tcp\", \"TrafficType\": \"ingress\"}' \
        $ECS_AGENT_URI/fault/v1/network-blackhole-port/start | grep -q running || exit 13";
    let folder = tempfile::tempdir()?;
    let put = |name: &str, content: Value| {
        let path = folder.path().join(name);
        std::fs::write(&path, content.to_string())?;
        anyhow::Ok(path.display().to_string())
    };
    let keys = json!({ "AccessKeyId": "AKIAWEB", "SecretAccessKey": "hush", "SessionToken": "token" });
    let roles = format!("file:{}", put("roles", json!({ ROLE: keys }))?);
    let subnets = put("vpc", vpc::Vpc::new("veth").file().clone())?;
    let env = [("BERTH_CP_VPC", subnets), ("BERTH_CP_CREDENTIALS", roles)];
    let env = env.map(|(name, value)| (name.to_owned(), value)).into();
    let site = Site::start_with(&env, "ECS_ENABLE_TASK_ENI=true\n").await?;

    let one = |name: &str, line: &str, more: Value| {
        let plain =
            json!({ "name": name, "image": "busybox:local", "memory": 32, "command": ["sh", "-c", line] });
        demo::merged(plain, &more)
    };
    let router = one(
        "router",
        "grep -q INPUT /fluent-bit/etc/fluent-bit.conf && sleep 3600",
        json!({ "firelensConfiguration": { "type": "fluentbit" } }),
    );
    let log = json!({ "logDriver": "awsfirelens", "options": { "Name": "null" } });
    let definition = json!({
        "family": "offers", "networkMode": "awsvpc", "taskRoleArn": ROLE, "enableFaultInjection": true,
        "containerDefinitions": [router, one("app", ASKS, json!({ "logConfiguration": log }))],
    });
    let registered = site.ecs.call("RegisterTaskDefinition", definition).await?;
    let network =
        json!({ "awsvpcConfiguration": { "subnets": [vpc::SUBNET], "securityGroups": ["sg-open"] } });
    let input = json!({
        "cluster": CLUSTER, "taskDefinition": registered["taskDefinition"]["taskDefinitionArn"],
        "networkConfiguration": network,
    });
    let answer = site.ecs.call("RunTask", input).await?;
    let task = text(&answer["tasks"][0], "taskArn").with_context(|| answer.to_string())?;
    let ended = site.until(&task, "STOPPED").await?;
    assert_eq!(container(&ended, "app")?["exitCode"], 0, "{ended}");
    assert_eq!(ended["stopCode"], "EssentialContainerExited", "{ended}");
    Ok(())
}

#[tokio::test]
async fn a_host_that_is_switched_off_takes_its_tasks_down_and_comes_back_without_them() -> Result<()> {
    let site = Site::start().await?;
    // Less than the tasks need: the rest is systemd's, which stops nothing of them while the agent is at it.
    puts("/etc/systemd/logind.conf.d/test.conf", b"[Login]\nInhibitDelayMaxSec=1\n")?;
    works("systemctl restart systemd-logind")?;
    let task = site.run().await?;
    eventually(PATIENCE, "logind waits for the agent", || async {
        Ok(said("systemd-inhibit --list --no-pager")?.contains("Berth").then_some(()))
    })
    .await?;
    works("systemctl poweroff")?;
    let ended = site.until(&task, "STOPPED").await?;
    assert_eq!(ended["stopCode"], "TerminationNotice");
    let reason = text(&ended, "stoppedReason")?;
    ensure!(reason.ends_with(" is shutting down"), "{reason}");
    for name in ["db", "app"] {
        assert_eq!(container(&ended, name)?["exitCode"], 0, "{ended}");
    }
    eventually(PATIENCE, "the host is off", || async {
        Ok(String::from_utf8(hosts(&["ls"])?.output()?.stdout)?.contains("stopped").then_some(()))
    })
    .await?;

    ensure!(
        hosts(&["up", "1", "--systemd"])?.stdout(Stdio::null()).status()?.success(),
        "it does not come back"
    );
    eventually(PATIENCE, "the host takes tasks again", || async {
        let instance = site.instance().await?;
        Ok((instance["agentConnected"] == true && instance["status"] == "ACTIVE").then_some(()))
    })
    .await?;
    assert_eq!(site.task(&task).await?["lastStatus"], "STOPPED");
    assert_eq!(works("docker ps -q")?, "");
    let ends = works("docker inspect -f '{{.State.FinishedAt}} {{.Name}}' $(docker ps -aq) | sort")?;
    let order: Vec<&str> = ends.lines().filter_map(|line| line.split('-').rev().nth(1)).collect();
    assert_eq!(order, ["app", "db"], "{ends}");

    // Without notice: what ran is not begun again, and says why it ended.
    let task = site.run().await?;
    ensure!(hosts(&["kill", "1"])?.status()?.success(), "it does not lose its power");
    ensure!(
        hosts(&["up", "1", "--systemd"])?.stdout(Stdio::null()).status()?.success(),
        "it does not come back"
    );
    let ended = site.until(&task, "STOPPED").await?;
    assert_eq!(text(&ended, "stoppedReason")?, "Essential container in task exited: its host was restarted");
    site.run().await?;
    Ok(())
}
