//! What containers use, in the shape of the engine's own statistics, read from the kernel when somebody
//! asks.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use berth_core::ids::{ContainerName, EngineId};
use berth_core::spec::NetworkMode;
use berth_core::task::{Container, ResourceKey, Task};
use serde_json::{Value, json};

use crate::endpoint::readings::Readings;
use crate::usage::{Cpu, Traffic, Usage};

use crate::clock::rfc3339;

/// The least time between two readings that are compared.
const LEAST_SPAN_MS: u64 = 1000;
/// Most containers whose last reading is kept.
const MOST: usize = 2048;

/// Reads, and remembers the last reading of each.
pub(super) struct Stats {
    readings: Arc<Readings>,
    last: Mutex<HashMap<EngineId, Usage>>,
}

impl Stats {
    pub(super) fn new(readings: Arc<Readings>) -> Self {
        Self { readings, last: Mutex::default() }
    }

    /// Of every container of a task, by the engine's id; null for one that does not run.
    pub(super) async fn of_task(&self, task: &Task) -> BTreeMap<String, Value> {
        let mut all = BTreeMap::new();
        for container in &task.state().containers {
            if let Some(id) = &container.id {
                let stats = self.of_container(task, &container.name).await;
                all.insert(id.to_string(), stats.unwrap_or(Value::Null));
            }
        }
        all
    }

    /// Of one container; `None` when it does not run.
    pub(super) async fn of_container(&self, task: &Task, name: &ContainerName) -> Option<Value> {
        let container = task.state().containers.iter().find(|c| &c.name == name)?;
        let id = container.id.as_ref()?;
        let usage = self.readings.of(container).await?;
        let before = self.before(id, &usage);
        let on_host = task.spec().network_mode == NetworkMode::Host;
        Some(shape(task, container, &usage, before.as_ref(), on_host))
    }

    /// The reading before this one, which is remembered in its place.
    fn before(&self, id: &EngineId, usage: &Usage) -> Option<Usage> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let before = last.get(id).cloned();
        let old =
            before.as_ref().is_none_or(|before| usage.at.0.saturating_sub(before.at.0) >= LEAST_SPAN_MS);
        if old {
            if last.len() >= MOST {
                last.clear();
            }
            last.insert(id.clone(), usage.clone());
        }
        before
    }
}

fn shape(task: &Task, container: &Container, usage: &Usage, before: Option<&Usage>, on_host: bool) -> Value {
    let block: Vec<Value> = usage
        .block
        .iter()
        .map(|block| {
            json!({ "major": block.device.0, "minor": block.device.1, "op": block.operation, "value": block.bytes })
        })
        .collect();
    let mut stats = json!({
        "read": rfc3339(usage.at),
        "preread": before.map_or_else(|| Some("0001-01-01T00:00:00Z".to_owned()), |before| rfc3339(before.at)),
        "num_procs": 0,
        "pids_stats": { "current": usage.pids.current, "limit": usage.pids.limit },
        "blkio_stats": { "io_service_bytes_recursive": block },
        "storage_stats": {},
        "cpu_stats": cpu(&usage.cpu),
        "precpu_stats": before.map_or_else(|| json!({ "cpu_usage": { "total_usage": 0 } }), |before| cpu(&before.cpu)),
        "memory_stats": {
            "usage": usage.memory.usage,
            "max_usage": usage.memory.peak,
            "limit": usage.memory.limit,
            "failcnt": usage.memory.failures,
            "stats": usage.memory.detail,
        },
        "name": format!("/{}", crate::engine::engine_name(task.spec(), &container.name)),
        "id": container.id.as_ref().map(ToString::to_string),
    });
    // On the host's network there is no telling whose traffic it is.
    if !on_host {
        stats["networks"] =
            usage.networks.iter().map(|(name, traffic)| (name.clone(), network(traffic))).collect();
        stats["network_rate_stats"] = rates(task, usage, before);
    }
    stats
}

fn cpu(cpu: &Cpu) -> Value {
    let mut used = json!({
        "total_usage": cpu.total_ns,
        "usage_in_kernelmode": cpu.system_ns,
        "usage_in_usermode": cpu.user_ns,
    });
    if !cpu.per_cpu_ns.is_empty() {
        used["percpu_usage"] = json!(cpu.per_cpu_ns);
    }
    json!({
        "cpu_usage": used,
        "system_cpu_usage": cpu.host_ns,
        "online_cpus": cpu.online,
        "throttling_data": {
            "periods": cpu.periods,
            "throttled_periods": cpu.throttled_periods,
            "throttled_time": cpu.throttled_ns,
        },
    })
}

fn network(traffic: &Traffic) -> Value {
    let [rx_bytes, rx_packets, rx_errors, rx_dropped] = traffic.received;
    let [tx_bytes, tx_packets, tx_errors, tx_dropped] = traffic.sent;
    json!({
        "rx_bytes": rx_bytes, "rx_packets": rx_packets, "rx_errors": rx_errors, "rx_dropped": rx_dropped,
        "tx_bytes": tx_bytes, "tx_packets": tx_packets, "tx_errors": tx_errors, "tx_dropped": tx_dropped,
    })
}

/// Bytes in a second; null without an earlier reading. The link to the agent is not counted.
fn rates(task: &Task, usage: &Usage, before: Option<&Usage>) -> Value {
    let own = |usage: &Usage, of: fn(&Traffic) -> u64| -> u64 {
        let counted = |name: &str| task.resource(&ResourceKey::Interface).is_none() || name == "eth0";
        usage.networks.iter().filter(|(name, _)| counted(name)).map(|(_, traffic)| of(traffic)).sum()
    };
    let rate = |of: fn(&Traffic) -> u64| {
        let before = before?;
        #[expect(clippy::cast_precision_loss, reason = "a rate, for people")]
        let span = usage.at.0.saturating_sub(before.at.0) as f64 / 1000.0;
        #[expect(clippy::cast_precision_loss, reason = "a rate, for people")]
        let bytes = own(usage, of).saturating_sub(own(before, of)) as f64;
        (span > 0.0).then(|| bytes / span)
    };
    json!({ "rx_bytes_per_sec": rate(|t| t.received[0]), "tx_bytes_per_sec": rate(|t| t.sent[0]) })
}
