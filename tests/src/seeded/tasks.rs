//! The tasks that are asked for: every network mode, dependencies, restart policies, bounds, GPUs, roles, and
//! programs that behave in all the ways in which programs do.

use berth_agent::runtime::fake::{Behaviour, FakeRuntime};
use berth_core::task::Health;
use berth_core::units::Millis;
use berth_proto::v1;

use super::world::Asked;
use crate::sim::Chance;

const STEADY: &str = "steady";
const BRIEF: &str = "brief";
const FAILING: &str = "failing";
const STUBBORN: &str = "stubborn";
const SLOW: &str = "slow";
const GREEDY: &str = "greedy";
const LOOPING: &str = "looping";
const REMOTE: &str = "remote";
const ABSENT: &str = "absent";
const HEALTHY: &str = "healthy";
const ILL: &str = "ill";

/// Has an engine know the images.
pub fn introduce(engine: &FakeRuntime) {
    let behave = |image: &str, behaviour: Behaviour| engine.behave(image, behaviour);
    let ends =
        |secs, code| Behaviour { exits: Some((Millis::from_secs(secs), code)), ..Behaviour::default() };
    behave(BRIEF, ends(3, 0));
    behave(FAILING, ends(1, 7));
    behave(STUBBORN, Behaviour { ignores_stop: true, ..Behaviour::default() });
    behave(SLOW, Behaviour { stops_in: Millis::from_secs(4), stop_code: 0, ..Behaviour::default() });
    behave(GREEDY, Behaviour { oom: true, ..ends(20, 137) });
    behave(LOOPING, ends(90, 3));
    let says =
        |health, secs| Behaviour { health: Some((Millis::from_secs(secs), health)), ..Behaviour::default() };
    behave(HEALTHY, says(Health::Healthy, 5));
    behave(ILL, says(Health::Unhealthy, 30));
    engine.remote_image(REMOTE);
    engine.no_image(ABSENT);
}

/// A task and what may become of it.
#[must_use]
pub fn one(chance: &mut Chance, number: u64) -> (v1::TaskSpec, Asked) {
    let modes = ["none", "bridge", "bridge", "host", "awsvpc", "awsvpc"];
    let mode = chance.pick(&modes).copied().unwrap_or("none");
    let mut asked = Asked::to_run();
    let containers = 1 + chance.below(3);
    let mut spec = v1::TaskSpec {
        family: format!("story{}", number % 7),
        revision: 1,
        network_mode: mode.to_owned(),
        ..v1::TaskSpec::default()
    };
    if chance.once_in(3) {
        (spec.cpu, spec.memory_mib) = (128, 256);
    }
    if mode == "awsvpc" {
        spec.attachment = Some(attachment(number));
    } else if chance.once_in(8) {
        spec.pid_mode = "task".to_owned();
    }
    if mode != "none" && chance.once_in(5) {
        spec.task_role = "arn:aws:iam::123456789012:role/story".to_owned();
        asked.may_fail = true;
    }
    spec.fault_injection = chance.once_in(6);
    for _ in 0..containers {
        let container = container(chance, &mut asked, (mode, number), &spec.containers);
        spec.containers.push(container);
    }
    (spec, asked)
}

fn container(
    chance: &mut Chance,
    asked: &mut Asked,
    (mode, number): (&str, u64),
    before: &[v1::ContainerSpec],
) -> v1::ContainerSpec {
    let index = before.len() as u64;
    let images = [
        STEADY, STEADY, STEADY, STEADY, STUBBORN, SLOW, BRIEF, FAILING, GREEDY, LOOPING, REMOTE, HEALTHY,
        HEALTHY, ILL, ABSENT,
    ];
    // The first is mostly one that stays, so that there are tasks which must not be lost.
    let image = if index == 0 && !chance.once_in(3) {
        STEADY
    } else {
        chance.pick(&images).copied().unwrap_or(STEADY)
    };
    let essential = index == 0 || chance.once_in(2);
    let mut one = v1::ContainerSpec {
        name: format!("c{index}"),
        image: image.to_owned(),
        essential,
        cpu: 32,
        memory_mib: 64,
        ..v1::ContainerSpec::default()
    };
    if [HEALTHY, ILL].contains(&image) {
        one.health_check = Some(v1::HealthCheck {
            command: vec!["CMD".to_owned(), "true".to_owned()],
            interval_ms: 30_000,
            timeout_ms: 5_000,
            retries: 3,
            start_period_ms: 0,
        });
    }
    let ends = [BRIEF, FAILING, GREEDY, LOOPING].contains(&image);
    if (ends && chance.once_in(2)) || image == LOOPING {
        one.restart_policy = Some(v1::RestartPolicy {
            ignored_exit_codes: vec![],
            attempt_period_ms: if image == LOOPING { 60_000 } else { 1_000 },
        });
        asked.may_start_again = true;
    }
    asked.may_end |= (essential && ends) || image == ABSENT;
    if chance.once_in(2)
        && let Some(on) = chance.pick(before)
    {
        let condition = condition(chance, on);
        // What it waits for may never be: then it has its patience.
        asked.may_end |= condition != "START" || ends;
        one.depends_on = vec![v1::Dependency { container: on.name.clone(), condition: condition.to_owned() }];
    }
    one.start_timeout_ms = 60_000;
    if chance.once_in(3) {
        one.stop_timeout_ms = Some(2_000);
    }
    if chance.once_in(2) {
        one.port_mappings = ports(chance, asked, mode, number, index);
    }
    if chance.once_in(8) {
        one.gpus = 1;
    }
    one
}

/// One that may be asked of that container.
fn condition(chance: &mut Chance, on: &v1::ContainerSpec) -> &'static str {
    let mut all = vec!["START"];
    all.extend(on.health_check.as_ref().map(|_| "HEALTHY"));
    if !on.essential {
        all.extend(["COMPLETE", "SUCCESS"]);
    }
    chance.pick(&all).copied().unwrap_or("START")
}

fn ports(
    chance: &mut Chance,
    asked: &mut Asked,
    mode: &str,
    number: u64,
    index: u64,
) -> Vec<v1::PortMapping> {
    let port = 8000 + u32::try_from(number % 50 * 4 + index).unwrap_or_default();
    let mapping = |container_port: u32, host_port: u32| v1::PortMapping {
        container_port,
        host_port,
        ..v1::PortMapping::default()
    };
    match mode {
        "bridge" if chance.once_in(4) => {
            // Somebody else may have it.
            asked.may_end = true;
            vec![mapping(80, port)]
        }
        "bridge" => vec![mapping(80, 0), mapping(81, 0)],
        "host" | "awsvpc" => vec![mapping(port, 0)],
        _ => Vec::new(),
    }
}

fn attachment(number: u64) -> v1::Attachment {
    let (high, low) = (number / 200 % 200, number % 200 + 10);
    v1::Attachment {
        id: format!("attachment-{number}"),
        interface_id: format!("eni-{number:08x}"),
        subnet_id: "subnet-a".to_owned(),
        provider: "veth".to_owned(),
        mac: format!("02:00:00:00:{:02x}:{:02x}", high, low % 256),
        addresses: vec![format!("10.7.{high}.{low}/16")],
        gateways: vec!["10.7.0.1".to_owned()],
        patience_ms: 10_000,
        ..v1::Attachment::default()
    }
}
