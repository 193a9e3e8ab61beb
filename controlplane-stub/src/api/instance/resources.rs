//! Resources of an instance in ECS's typed shape.

use std::collections::BTreeSet;

use berth_core::resources::Resources;
use berth_core::units::{CpuUnits, Mebibytes};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::api::error::{ApiError, ApiResult};
use crate::model::Instance;

/// A resource as a request gives it.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Given {
    name: String,
    integer_value: i64,
    string_set_value: Vec<String>,
}

/// A device of a host as a request gives it.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Device {
    id: String,
    #[serde(rename = "type")]
    kind: String,
}

/// Reads the resources of a registration; the ids of its GPUs are beside them, where it names any.
///
/// # Errors
/// `InvalidParameterException` naming the resource that is missing or makes no sense.
pub(super) fn read(given: &[Given], devices: &[Device]) -> ApiResult<(Resources, Vec<String>)> {
    let find = |name: &str| given.iter().find(|resource| resource.name == name);
    let amount = |name: &str| {
        let value = find(name).map(|resource| resource.integer_value);
        value.and_then(|value| u32::try_from(value).ok()).filter(|value| *value > 0).ok_or_else(|| {
            ApiError::invalid_parameter(format!(
                "totalResources must have {name} with a positive integerValue."
            ))
        })
    };
    let ports = |name: &str| -> ApiResult<BTreeSet<u16>> {
        let texts = find(name).map(|resource| resource.string_set_value.as_slice()).unwrap_or_default();
        texts
            .iter()
            .map(|text| {
                text.parse().map_err(|_| {
                    ApiError::invalid_parameter(format!("'{text}' in {name} of totalResources is no port."))
                })
            })
            .collect()
    };
    let mut resources = Resources {
        cpu: CpuUnits(amount("CPU")?),
        memory: Mebibytes(amount("MEMORY")?),
        ..Resources::default()
    };
    resources.ports.tcp = ports("PORTS")?;
    resources.ports.udp = ports("PORTS_UDP")?;
    let mut gpus = BTreeSet::new();
    gpus.extend(devices.iter().filter(|device| device.kind == "GPU").map(|device| device.id.clone()));
    if let Some(given) = find("GPU") {
        gpus.extend(given.string_set_value.iter().cloned());
        resources.gpus = u32::try_from(given.integer_value).unwrap_or_default();
    }
    resources.gpus = resources.gpus.max(u32::try_from(gpus.len()).unwrap_or_default());
    Ok((resources, gpus.into_iter().collect()))
}

/// Resources of an instance as a reply shows them. `gpus` are the ids of those GPUs that may count towards
/// `resources`.
pub(super) fn render(instance: &Instance, resources: &Resources, gpus: &[&String]) -> Value {
    let mut shown = vec![
        integer("CPU", resources.cpu.0),
        integer("MEMORY", resources.memory.0),
        ports("PORTS", &resources.ports.tcp),
        ports("PORTS_UDP", &resources.ports.udp),
    ];
    if instance.total.gpus > 0 && instance.gpu_ids.is_empty() {
        shown.push(integer("GPU", resources.gpus));
    } else if instance.total.gpus > 0 {
        // A task that was placed and has not told yet which it has counts already.
        let count = usize::try_from(resources.gpus).unwrap_or(usize::MAX).min(gpus.len());
        shown.push(string_set("GPU", gpus.get(..count).unwrap_or_default()));
    }
    Value::Array(shown)
}

fn integer(name: &str, value: u32) -> Value {
    json!({"name": name, "type": "INTEGER", "doubleValue": 0.0, "longValue": 0, "integerValue": value})
}

fn ports(name: &str, ports: &BTreeSet<u16>) -> Value {
    string_set(name, &ports.iter().map(ToString::to_string).collect::<Vec<_>>())
}

fn string_set(name: &str, texts: &[impl serde::Serialize]) -> Value {
    json!({
        "name": name, "type": "STRINGSET", "doubleValue": 0.0, "longValue": 0, "integerValue": 0, "stringSetValue": texts
    })
}
