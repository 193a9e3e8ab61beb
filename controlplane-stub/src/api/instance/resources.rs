//! Resources of an instance in ECS's typed shape.

use std::collections::BTreeSet;

use berth_core::resources::Resources;
use berth_core::units::{CpuUnits, Mebibytes};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::api::error::{ApiError, ApiResult};

/// A resource as a request gives it.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Given {
    name: String,
    integer_value: i64,
    string_set_value: Vec<String>,
}

/// Reads the resources of a registration.
///
/// # Errors
/// `InvalidParameterException` naming the resource that is missing or makes no sense.
pub(super) fn read(given: &[Given]) -> ApiResult<Resources> {
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
    if let Some(gpus) = find("GPU") {
        let count = u32::try_from(gpus.string_set_value.len()).unwrap_or_default();
        resources.gpus = count.max(u32::try_from(gpus.integer_value).unwrap_or_default());
    }
    Ok(resources)
}

/// Resources as a reply shows them.
pub(super) fn render(resources: &Resources) -> Value {
    let mut shown = vec![
        integer("CPU", resources.cpu.0),
        integer("MEMORY", resources.memory.0),
        ports("PORTS", &resources.ports.tcp),
        ports("PORTS_UDP", &resources.ports.udp),
    ];
    if resources.gpus > 0 {
        shown.push(integer("GPU", resources.gpus));
    }
    Value::Array(shown)
}

fn integer(name: &str, value: u32) -> Value {
    json!({"name": name, "type": "INTEGER", "doubleValue": 0.0, "longValue": 0, "integerValue": value})
}

fn ports(name: &str, ports: &BTreeSet<u16>) -> Value {
    let ports: Vec<String> = ports.iter().map(ToString::to_string).collect();
    json!({
        "name": name, "type": "STRINGSET", "doubleValue": 0.0, "longValue": 0, "integerValue": 0, "stringSetValue": ports
    })
}
