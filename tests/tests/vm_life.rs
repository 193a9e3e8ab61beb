//! A host with a kernel of its own that is rebooted, that loses its power in the middle of writes, and whose clock is
//! put right: the agent as it ships comes back by itself, and no task is lost, doubled or left without a word. tests/scripts/vm.sh makes the
//! host and runs this beside it.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::io::Write;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use berth_tests::cluster::{container, text};
use berth_tests::expect::{PATIENCE, here};
use berth_tests::program::Program;
use berth_tests::{Ecs, demo, eventually};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

const CLUSTER: &str = "life";
/// A boot, and what the agent has to look at then.
const BOOT: Duration = Duration::from_secs(60);
/// Tasks that are asked for while the power lasts, and how many of them run when it goes.
const LAUNCHES: usize = 12;
const RUNNING: usize = 3;
/// How long a container must have run to be started again: the shortest that ECS takes.
const PERIOD: Duration = Duration::from_secs(60);

/// The program that makes the host, with these words.
fn rig(words: &[&str]) -> Result<Command> {
    let program = std::env::var_os("BERTH_RIG").context("BERTH_RIG names the program that makes the host")?;
    let mut command = Command::new(program);
    command.args(words);
    Ok(command)
}

fn does(words: &[&str]) -> Result<()> {
    let done = rig(words)?.output()?;
    ensure!(done.status.success(), "{words:?}: {}", String::from_utf8_lossy(&done.stderr));
    Ok(())
}

/// Has it boot from its disk after its power was cut. The rig may trip over the machine that is just going: then its
/// power is cut again.
async fn powers_on() -> Result<()> {
    eventually(BOOT, "the host is up", || async {
        let up = does(&["up", &host()?]);
        if let Err(why) = &up {
            println!("{why:#}");
            does(&["kill", &host()?])?;
        }
        up.map(Some)
    })
    .await
}

/// Its name.
fn host() -> Result<String> {
    std::env::var("BERTH_TEST_HOST").context("BERTH_TEST_HOST names the host")
}

/// What a command on the host says, whatever its exit code.
fn said(line: &str) -> Result<String> {
    let done = rig(&["exec", &host()?, line])?.output()?;
    Ok(format!("{}{}", String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr)))
}

/// The same of one that has to work.
fn works(line: &str) -> Result<String> {
    let done = rig(&["exec", &host()?, line])?.output()?;
    let told = String::from_utf8_lossy(&done.stderr);
    ensure!(done.status.success(), "{line}: {told}{}", said("journalctl -u berth-agent -n 40 --no-pager")?);
    Ok(String::from_utf8(done.stdout)?.trim().to_owned())
}

fn puts(path: &str, content: &[u8]) -> Result<()> {
    let line = format!("mkdir -p $(dirname {path}) && cat >{path}");
    let mut put = rig(&["exec", "-i", &host()?, &line])?.stdin(Stdio::piped()).spawn()?;
    put.stdin.take().context("no input")?.write_all(content)?;
    ensure!(put.wait()?.success(), "{path} was not written");
    Ok(())
}

/// The control plane beside the host, and the agent on it as a package would put it there.
struct Site {
    program: Program,
    _data: tempfile::TempDir,
    ecs: Ecs,
}

impl Site {
    async fn start() -> Result<Self> {
        let net = std::env::var("RIG_NET").unwrap_or_else(|_| "10.77".to_owned());
        let data = tempfile::Builder::new().prefix("berth-controlplane-").tempdir()?;
        let args = |words: &[&str]| -> Vec<OsString> {
            let data = [OsString::from("--data-dir"), data.path().into()];
            words.iter().map(OsString::from).chain(data).collect()
        };
        let listen = format!("{net}.0.1:0");
        let serve = args(&["serve", "--listen", "127.0.0.1:0", "--agent-listen", &listen]);
        let mut program = Program::start("berth-controlplane", &serve, &BTreeMap::new())?;
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
             BERTH_JOIN_TOKEN={}\nBERTH_CA_FINGERPRINT={}\n",
            value(&line, "agents=")?,
            value(&printed, "token=")?,
            value(&printed, "ca=")?,
        );
        install(&config)?;
        let site = Self { program, _data: data, ecs };
        site.is_ready().await?;
        Ok(site)
    }

    /// Waits until the host takes tasks.
    async fn is_ready(&self) -> Result<()> {
        eventually(BOOT, "the host takes tasks", || async {
            let listed = self.ecs.call("ListContainerInstances", json!({ "cluster": CLUSTER })).await?;
            let input = json!({ "cluster": CLUSTER, "containerInstances": listed["containerInstanceArns"] });
            let answer = self.ecs.call("DescribeContainerInstances", input).await?;
            let instance = &answer["containerInstances"][0];
            Ok((instance["agentConnected"] == true && instance["status"] == "ACTIVE").then_some(()))
        })
        .await
    }

    async fn register(&self, definition: Value) -> Result<Value> {
        let registered = self.ecs.call("RegisterTaskDefinition", definition).await?;
        Ok(registered["taskDefinition"]["taskDefinitionArn"].clone())
    }

    async fn run(&self, definition: &Value) -> Result<String> {
        let input = json!({ "cluster": CLUSTER, "taskDefinition": definition });
        let answer = self.ecs.call("RunTask", input).await?;
        text(&answer["tasks"][0], "taskArn").with_context(|| answer.to_string())
    }

    async fn stop(&self, task: &str) -> Result<()> {
        self.ecs.call("StopTask", json!({ "cluster": CLUSTER, "task": task })).await?;
        Ok(())
    }

    async fn task(&self, task: &str) -> Result<Value> {
        let input = json!({ "cluster": CLUSTER, "tasks": [task] });
        Ok(self.ecs.call("DescribeTasks", input).await?["tasks"][0].take())
    }

    async fn until(&self, task: &str, status: &str) -> Result<Value> {
        eventually(BOOT, format!("{task} is {status}"), || async {
            let task = self.task(task).await?;
            ensure!(task["lastStatus"] == status, "{task}");
            Ok(Some(task))
        })
        .await
    }

    /// The tasks of these that have that status.
    async fn with(&self, status: &str, tasks: &[String]) -> Result<BTreeSet<String>> {
        let mut found = BTreeSet::new();
        for arn in tasks {
            if self.task(arn).await?["lastStatus"] == status {
                found.insert(arn.clone());
            }
        }
        Ok(found)
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        let _ = said("systemctl disable --now berth-agent; docker rm -f $(docker ps -aq)");
    }
}

/// What the packages put on a host, enabled and started; the state of an earlier test goes.
fn install(config: &str) -> Result<()> {
    said("systemctl stop berth-agent; docker rm -f $(docker ps -aq); rm -rf /var/lib/berth /run/berth")?;
    let from = |path: &str| std::fs::read(demo::checkout().join("packaging/systemd").join(path));
    for unit in ["berth-agent.service", "berth.slice", "ecstasks.slice", "ecstasks-.slice.d/50-berth.conf"] {
        puts(&format!("/lib/systemd/system/{unit}"), &from(unit)?)?;
    }
    puts("/usr/lib/systemd/logind.conf.d/50-berth.conf", &from("logind.conf.d/50-berth.conf")?)?;
    puts("/etc/berth/agent.config", config.as_bytes())?;
    // It is there for the tests that run on the host.
    works("install -m 755 /root/berth/berth-agent /usr/bin/berth-agent")?;
    works(
        "systemctl daemon-reload && systemctl restart systemd-logind && systemctl enable berth-agent && \
         systemctl start berth-agent && sync",
    )?;
    Ok(())
}

/// The containers that the engine has of each task, by its ARN: their states.
fn containers() -> Result<BTreeMap<String, Vec<String>>> {
    let listed =
        works(r#"docker ps --all --format '{{.Label "com.amazonaws.ecs.task-arn"}} {{.State}}' | sort"#)?;
    let mut all: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (task, state) in listed.lines().filter_map(|line| line.split_once(' ')) {
        all.entry(task.to_owned()).or_default().push(state.to_owned());
    }
    Ok(all)
}

/// The tasks that have a slice, by their ids.
fn slices() -> Result<BTreeSet<String>> {
    let listed = said("ls -d /sys/fs/cgroup/ecstasks.slice/ecstasks-*.slice 2>/dev/null")?;
    let id = |line: &str| Some(line.rsplit_once("ecstasks-")?.1.strip_suffix(".slice")?.to_owned());
    Ok(listed.lines().filter_map(id).collect())
}

fn id(arn: &str) -> String {
    arn.rsplit('/').next().unwrap_or_default().to_owned()
}

#[tokio::test]
async fn a_host_that_is_rebooted_stops_its_tasks_in_order_and_comes_back_with_its_agent() -> Result<()> {
    let site = Site::start().await?;
    // What is to keep the agent alive under pressure is in force, for it and for what is above it.
    for (path, value) in [
        ("/sys/fs/cgroup/berth.slice/memory.min", "50331648"),
        ("/sys/fs/cgroup/berth.slice/berth-agent.service/memory.min", "50331648"),
        ("/sys/fs/cgroup/berth.slice/berth-agent.service/memory.high", "134217728"),
        ("/proc/$(systemctl show -p MainPID --value berth-agent)/oom_score_adj", "-900"),
    ] {
        assert_eq!(works(&format!("cat {path}"))?, value, "{path}");
    }

    let one = |name: &str, end: &str| {
        let heeds = format!("trap '{end}' TERM; sleep 3600 & wait");
        json!({ "name": name, "image": "busybox:local", "memory": 32, "command": ["sh", "-c", heeds] })
    };
    let mut app = one("app", "sleep 3; exit 0");
    app["dependsOn"] = json!([{ "containerName": "db", "condition": "START" }]);
    let pair = site.register(json!({
        "family": "pair", "networkMode": "none", "containerDefinitions": [one("db", "exit 0"), app],
    }));
    let pair = pair.await?;
    let task = site.run(&pair).await?;
    site.until(&task, "RUNNING").await?;
    let boot = works("cat /proc/sys/kernel/random/boot_id")?;
    does(&["reboot", "-t", &here(BOOT).as_secs().to_string(), &host()?])?;
    ensure!(works("cat /proc/sys/kernel/random/boot_id")? != boot, "it was not rebooted");

    let ended = site.until(&task, "STOPPED").await?;
    assert_eq!(ended["stopCode"], "TerminationNotice", "{ended}");
    ensure!(text(&ended, "stoppedReason")?.ends_with(" is shutting down"), "{ended}");
    for name in ["db", "app"] {
        assert_eq!(container(&ended, name)?["exitCode"], 0, "{ended}");
    }
    site.is_ready().await?;
    assert_eq!(works("docker ps -q")?, "", "what was stopped runs again");
    let ends = works("docker inspect -f '{{.State.FinishedAt}} {{.Name}}' $(docker ps -aq) | sort")?;
    let order: Vec<&str> = ends.lines().filter_map(|line| line.split('-').rev().nth(1)).collect();
    assert_eq!(order, ["app", "db"], "{ends}");
    let again = site.run(&pair).await?;
    site.until(&again, "RUNNING").await?;
    Ok(())
}

/// A task that runs, and is started again when it ends.
async fn again(site: &Site) -> Result<String> {
    let policy = json!({ "enabled": true, "restartAttemptPeriod": PERIOD.as_secs() });
    let again = demo::container_with("again", &["sleep", "3600"], json!({ "restartPolicy": policy }));
    let again = site.register(demo::task("again", "none", json!([again]))).await?;
    let task = site.run(&again).await?;
    site.until(&task, "RUNNING").await?;
    Ok(task)
}

/// Puts the host's clock forward, or back.
fn puts_clock(seconds: i64) -> Result<()> {
    works(&format!("date --set=@$(($(date +%s) + {seconds}))")).map(drop)
}

#[tokio::test]
async fn a_host_whose_clock_is_put_right_hears_of_what_ends_and_starts_it_again() -> Result<()> {
    // Longer than any look at everything is away, shorter than what certificates are valid.
    const FAR: i64 = 1800;
    // Well before the next look.
    const AT_ONCE: Duration = Duration::from_secs(100);
    let site = Site::start().await?;
    let one =
        site.register(demo::task("one", "none", json!([demo::container("one", &["sleep", "3600"])]))).await?;
    let kept = again(&site).await?;
    let ran = Instant::now();
    let tasks = [site.run(&one).await?, site.run(&one).await?];
    for task in &tasks {
        site.until(task, "RUNNING").await?;
    }

    let kill = |task: &str| {
        works(&format!("docker kill $(docker ps -q --filter label=com.amazonaws.ecs.task-arn={task})"))
    };
    for (task, by) in tasks.iter().zip([-FAR, FAR]) {
        puts_clock(by)?;
        kill(task)?;
        let killed = Instant::now();
        site.until(task, "STOPPED").await?;
        ensure!(killed.elapsed() < AT_ONCE, "{by}: it was told after {:?}", killed.elapsed());
    }
    puts_clock(-FAR)?;
    tokio::time::sleep_until((ran + PERIOD).into()).await;
    kill(&kept)?;
    eventually(PATIENCE, "it is started again", || async {
        let told = container(&site.task(&kept).await?, "again")?.clone();
        let again = told["reason"].as_str().is_some_and(|reason| reason.starts_with("restarted once"));
        ensure!(again, "{told}");
        Ok(Some(()))
    })
    .await?;
    puts_clock(FAR)?;
    site.stop(&kept).await?;
    assert_eq!(site.until(&kept, "STOPPED").await?["stopCode"], "UserInitiated");
    Ok(())
}

#[tokio::test]
async fn a_host_that_loses_its_power_amid_launches_loses_and_doubles_nothing() -> Result<()> {
    let site = Site::start().await?;
    let mut definitions = Vec::new();
    for mode in ["none", "bridge"] {
        let one = demo::container_with("one", &["sleep", "3600"], json!({ "memory": 16 }));
        definitions.push(site.register(demo::task(mode, mode, json!([one]))).await?);
    }
    let kept = again(&site).await?;
    // What ended sooner would not be started again.
    tokio::time::sleep(PERIOD).await;
    let mut tasks = Vec::new();
    for n in 0..LAUNCHES {
        tasks.push(site.run(&definitions[n % 2]).await?);
    }
    eventually(BOOT, "some run, and others are about to", || async {
        let running = site.with("RUNNING", &tasks).await?.len();
        Ok((running >= RUNNING).then_some(()))
    })
    .await?;
    does(&["kill", &host()?])?;
    let ran = site.with("RUNNING", &tasks).await?;
    println!("{} of {LAUNCHES} had been told to run", ran.len());
    let unwanted = tasks.iter().find(|task| !ran.contains(*task)).cloned();

    // It boots while the control plane hangs: what it was asked for before, it does.
    site.program.signal(Signal::SIGSTOP)?;
    powers_on().await?;
    eventually(BOOT, "the agent is up", || async {
        Ok(said("systemctl is-active berth-agent")?.starts_with("active").then_some(()))
    })
    .await?;
    eventually(BOOT, "what its policy starts again runs without the control plane", || async {
        Ok((containers()?.get(&kept).map(Vec::as_slice) == Some(&["running".to_owned()])).then_some(()))
    })
    .await?;
    if ran.len() < tasks.len() {
        let alone = eventually(BOOT, "what had been assigned begins without the control plane", || async {
            let all = containers()?;
            let running = all.values().flatten().filter(|state| *state == "running").count();
            // One runs in any case.
            let running = running.saturating_sub(1);
            Ok((running > 0).then_some(running))
        })
        .await?;
        println!("{alone} containers run without the control plane");
    }
    site.program.signal(Signal::SIGCONT)?;
    if let Some(task) = &unwanted {
        site.stop(task).await?;
    }

    // Each is where it belongs: what ran has ended and says why; of the others each runs, or says why it does not.
    let (running, all) = eventually(BOOT, "all tasks are settled", || async {
        let (running, stopped) = (site.with("RUNNING", &tasks).await?, site.with("STOPPED", &tasks).await?);
        ensure!(
            running.len() + stopped.len() == tasks.len(),
            "{} run, {} ended",
            running.len(),
            stopped.len()
        );
        ensure!(running.is_disjoint(&ran), "what ran is not told to have ended");
        let all = containers()?;
        Ok(Some((running, all)))
    })
    .await?;
    for task in &tasks {
        let told = site.task(task).await?;
        let states = all.get(task).map_or(&[][..], Vec::as_slice);
        ensure!(states.len() <= 1, "{task} has {states:?}: {told}");
        let wanted: &[&str] = if running.contains(task) { &["running"] } else { &["exited", "created"] };
        ensure!(states.iter().all(|state| wanted.contains(&state.as_str())), "{task} has {states:?}: {told}");
        if running.contains(task) {
            ensure!(!ran.contains(task) && states.len() == 1, "{told}");
        } else if unwanted.as_ref() == Some(task) {
            continue;
        } else {
            let reason = text(&told, "stoppedReason")?;
            ensure!(reason == "Essential container in task exited: its host was restarted", "{told}");
        }
    }
    ensure!(all.keys().all(|task| tasks.contains(task) || *task == kept), "strangers: {all:?}");
    assert_eq!(site.task(&kept).await?["lastStatus"], "RUNNING");
    println!("{} of {LAUNCHES} run afterwards", running.len());
    let expected: BTreeSet<String> = running.iter().chain([&kept]).map(|task| id(task)).collect();
    eventually(PATIENCE, "what has ended has no cgroup", || async {
        let there = slices()?;
        ensure!(there == expected, "slices: {there:?}, running: {expected:?}");
        Ok(Some(()))
    })
    .await?;
    let damage = said("journalctl -b -u berth-agent --no-pager | grep 'is damaged'; ls /var/lib/berth")?;
    println!("{damage}");
    ensure!(!damage.contains("is damaged") || damage.contains("agent.redb.damaged"), "{damage}");

    for task in running.iter().chain([&kept]) {
        site.stop(task).await?;
    }
    for task in running.iter().chain([&kept]) {
        assert_eq!(site.until(task, "STOPPED").await?["stopCode"], "UserInitiated");
    }
    eventually(PATIENCE, "nothing is left", || async {
        ensure!(works("docker ps -q")?.is_empty(), "containers run");
        ensure!(slices()?.is_empty(), "slices are left: {:?}", slices()?);
        let links = works("ip -brief link | grep -c ^veth || true")?;
        ensure!(links == "0", "{links} links of containers are left");
        Ok(Some(()))
    })
    .await?;
    Ok(())
}
