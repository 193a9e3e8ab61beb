//! `/metrics`: the host, its tasks and their containers for Prometheus (text format 0.0.4). Everything is
//! read when it is asked for.

use std::fmt::{self, Display, Write};
use std::sync::Arc;

use berth_core::task::{Container, Health, Task, TaskStatus};

use crate::engine::{Engine, Usage as Granted};
use crate::session::SessionStatus;
use crate::usage::Usage;

use super::readings::Readings;

/// One text under construction.
#[derive(Default)]
struct Text(String);

/// A family of figures: its name, its kind, what it means.
struct Family(&'static str, &'static str, &'static str);

const BUILD: Family = Family("berth_build_info", "gauge", "The agent's version");
const SESSION: Family = Family("berth_session_connected", "gauge", "Whether the control plane is connected");
const ENGINE: Family = Family("berth_engine_up", "gauge", "Whether the container engine answers");
const CPU: Family = Family(
    "berth_host_cpu_units",
    "gauge",
    "CPU units (1024 are one CPU) that there are, and that tasks have",
);
const MEMORY: Family =
    Family("berth_host_memory_bytes", "gauge", "Memory that there is for tasks, and that they have");
const ENIS: Family = Family(
    "berth_host_network_interfaces",
    "gauge",
    "Network interfaces that there are for tasks, and that they have",
);
const TASKS: Family = Family("berth_tasks", "gauge", "Tasks by status");
const WAITING: Family = Family("berth_tasks_waiting", "gauge", "Tasks that wait for resources of the host");

const CPU_SECONDS: Family = Family("berth_container_cpu_seconds_total", "counter", "Processor time");
const THROTTLED: Family =
    Family("berth_container_cpu_throttled_seconds_total", "counter", "Time that the CPU bound held it up");
const USED: Family = Family("berth_container_memory_usage_bytes", "gauge", "Memory, the page cache included");
const WORKING: Family = Family(
    "berth_container_memory_working_set_bytes",
    "gauge",
    "Memory without what the kernel can give up at once",
);
const LIMIT: Family = Family("berth_container_memory_limit_bytes", "gauge", "Memory that it may have");
const PROCESSES: Family = Family("berth_container_processes", "gauge", "Processes and threads");
const RECEIVED: Family =
    Family("berth_container_network_receive_bytes_total", "counter", "Bytes received, by interface");
const SENT: Family =
    Family("berth_container_network_transmit_bytes_total", "counter", "Bytes sent, by interface");
const BLOCK: Family =
    Family("berth_container_block_bytes_total", "counter", "Bytes moved to and from block devices");
const RESTARTS: Family = Family("berth_container_restarts_total", "counter", "Starts by its restart policy");
const HEALTHY: Family = Family("berth_container_healthy", "gauge", "Whether its health check passes");

impl Text {
    fn family(&mut self, Family(name, kind, help): &Family) {
        self.line(format_args!("# HELP {name} {help}\n# TYPE {name} {kind}"));
    }

    fn line(&mut self, line: fmt::Arguments<'_>) {
        // Writing to a String cannot fail.
        let _ = writeln!(self.0, "{line}");
    }

    fn one(&mut self, family: &Family, value: impl Display) {
        self.family(family);
        self.line(format_args!("{} {value}", family.0));
    }

    /// What there is, and what is in use.
    fn capacity(&mut self, family: &Family, total: u64, used: u64) {
        self.family(family);
        self.line(format_args!("{}{{state=\"total\"}} {total}", family.0));
        self.line(format_args!("{}{{state=\"in_use\"}} {used}", family.0));
    }
}

/// A label's value as the format wants it.
fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// A container, its labels, and what it uses.
struct Measured {
    container: Container,
    labels: String,
    usage: Option<Usage>,
}

/// All figures of this moment.
pub async fn text(engine: &Engine, readings: &Arc<Readings>, session: &SessionStatus) -> String {
    let tasks = engine.tasks();
    let mut measured: Vec<Measured> = tasks
        .iter()
        .filter(|task| task.state().status != TaskStatus::Stopped)
        .flat_map(|task| task.state().containers.iter().map(|container| of(task, container)))
        .collect();
    let containers: Vec<Container> = measured.iter().map(|m| m.container.clone()).collect();
    for (measured, usage) in measured.iter_mut().zip(readings.of_all(&containers).await) {
        measured.usage = usage;
    }
    let mut text = Text::default();
    text.family(&BUILD);
    text.line(format_args!("{}{{version=\"{}\"}} 1", BUILD.0, env!("CARGO_PKG_VERSION")));
    text.one(&SESSION, u8::from(*session == SessionStatus::Connected));
    text.one(&ENGINE, u8::from(*engine.healthy().borrow()));
    let granted = engine.usage().borrow().clone();
    host(&mut text, &granted);
    text.family(&TASKS);
    for status in [TaskStatus::Pending, TaskStatus::Running, TaskStatus::Stopped] {
        let count = tasks.iter().filter(|task| task.state().status == status).count();
        text.line(format_args!("{}{{status=\"{}\"}} {count}", TASKS.0, status.as_str()));
    }
    text.one(&WAITING, granted.waiting.len());
    of_containers(&mut text, &measured);
    text.0
}

fn host(text: &mut Text, granted: &Granted) {
    let (total, used) = (&granted.total, &granted.in_use);
    text.capacity(&CPU, total.cpu.0.into(), used.cpu.0.into());
    text.capacity(&MEMORY, total.memory.bytes(), used.memory.bytes());
    text.capacity(&ENIS, total.enis.into(), used.enis.into());
}

fn of(task: &Task, container: &Container) -> Measured {
    let spec = task.spec();
    let labels = format!(
        "task=\"{}\",family=\"{}\",revision=\"{}\",container=\"{}\"",
        escaped(spec.arn.id()),
        escaped(spec.family.as_str()),
        spec.revision,
        escaped(container.name.as_str())
    );
    Measured { container: container.clone(), labels, usage: None }
}

fn of_containers(text: &mut Text, all: &[Measured]) {
    let mut each = |family: &Family, value: &dyn Fn(&Measured) -> Option<f64>| {
        text.family(family);
        for measured in all {
            if let Some(value) = value(measured) {
                text.line(format_args!("{}{{{}}} {value}", family.0, measured.labels));
            }
        }
    };
    let used = |of: fn(&Usage) -> f64| move |measured: &Measured| measured.usage.as_ref().map(of);
    each(&CPU_SECONDS, &used(|usage| seconds(usage.cpu.total_ns)));
    each(&THROTTLED, &used(|usage| seconds(usage.cpu.throttled_ns)));
    each(&USED, &used(|usage| figure(usage.memory.usage)));
    each(&WORKING, &used(|usage| figure(working_set(usage))));
    each(&LIMIT, &used(|usage| figure(usage.memory.limit)));
    each(&PROCESSES, &used(|usage| figure(usage.pids.current)));
    each(&RESTARTS, &|measured| Some(f64::from(measured.container.restarts)));
    each(&HEALTHY, &|measured| {
        measured.container.health.map(|health| f64::from(u8::from(health == Health::Healthy)))
    });
    for (family, bytes) in [(&RECEIVED, 0), (&SENT, 1)] {
        text.family(family);
        for measured in all {
            for (name, traffic) in measured.usage.iter().flat_map(|usage| &usage.networks) {
                let bytes = [traffic.received[0], traffic.sent[0]][bytes];
                let name = escaped(name);
                text.line(format_args!("{}{{{},interface=\"{name}\"}} {bytes}", family.0, measured.labels));
            }
        }
    }
    text.family(&BLOCK);
    for measured in all {
        for operation in ["read", "write"] {
            let Some(usage) = &measured.usage else { continue };
            let bytes: u64 = usage.block.iter().filter(|b| b.operation == operation).map(|b| b.bytes).sum();
            text.line(format_args!("{}{{{},operation=\"{operation}\"}} {bytes}", BLOCK.0, measured.labels));
        }
    }
}

/// Without the part of the page cache that was not used lately.
fn working_set(usage: &Usage) -> u64 {
    let detail = &usage.memory.detail;
    let inactive = detail.get("total_inactive_file").or_else(|| detail.get("inactive_file"));
    usage.memory.usage.saturating_sub(inactive.copied().unwrap_or_default())
}

#[expect(clippy::cast_precision_loss, reason = "Prometheus has no other numbers")]
fn figure(number: u64) -> f64 {
    number as f64
}

fn seconds(nanoseconds: u64) -> f64 {
    figure(nanoseconds) / 1e9
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_escaped() {
        assert_eq!(escaped("a\"b\\c\nd"), "a\\\"b\\\\c\\nd");
    }
}
