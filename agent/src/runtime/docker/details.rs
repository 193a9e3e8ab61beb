//! A container in detail, as the engine's inspection has it.

use std::collections::BTreeMap;
use std::net::IpAddr;

use berth_core::ids::EngineId;
use serde::Deserialize;

use super::client::{CallError, Connector};
use super::convert::{or_default, timestamp};
use super::is_container_missing;
use super::transport::escape;
use crate::runtime::{Checked, Details, Interface, Mounted, RuntimeError};

/// Longest output of a health check that is kept, in characters (ECS's limit).
const MAX_OUTPUT: usize = 1024;

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Whole {
    name: String,
    created: String,
    image: String,
    driver: String,
    state: State,
    host_config: HostConfig,
    network_settings: NetworkSettings,
    #[serde(deserialize_with = "or_default")]
    mounts: Vec<Mount>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct State {
    pid: u32,
    health: Option<Health>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Health {
    #[serde(deserialize_with = "or_default")]
    log: Vec<Check>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Check {
    end: String,
    exit_code: i64,
    output: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct HostConfig {
    log_config: LogConfig,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct LogConfig {
    #[serde(rename = "Type")]
    driver: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct NetworkSettings {
    #[serde(deserialize_with = "or_default")]
    networks: BTreeMap<String, Network>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Network {
    #[serde(rename = "IPAddress")]
    four: String,
    #[serde(rename = "GlobalIPv6Address")]
    six: String,
    #[serde(rename = "MacAddress")]
    mac: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Mount {
    name: String,
    source: String,
    destination: String,
}

impl From<Whole> for Details {
    fn from(whole: Whole) -> Self {
        let checks = whole.state.health.unwrap_or_default().log;
        Self {
            pid: whole.state.pid,
            name: whole.name.trim_start_matches('/').to_owned(),
            image_id: whole.image,
            created_at: timestamp(&whole.created),
            log_driver: whole.host_config.log_config.driver,
            storage_driver: whole.driver,
            networks: whole.network_settings.networks.into_values().filter_map(Network::interface).collect(),
            mounts: whole
                .mounts
                .into_iter()
                .map(|mount| Mounted {
                    volume: mount.name,
                    source: mount.source,
                    destination: mount.destination,
                })
                .collect(),
            health: checks.into_iter().next_back().map(|check| Checked {
                at: timestamp(&check.end),
                exit_code: check.exit_code,
                output: check.output.chars().take(MAX_OUTPUT).collect(),
            }),
        }
    }
}

impl Network {
    /// `None` for one without an address: that of the host, or none at all.
    fn interface(self) -> Option<Interface> {
        let addresses: Vec<IpAddr> =
            [self.four, self.six].iter().filter_map(|address| address.parse().ok()).collect();
        (!addresses.is_empty()).then_some(Interface { addresses, mac: self.mac })
    }
}

/// Asks about one container.
///
/// # Errors
/// The engine's.
pub(super) async fn of(connector: &Connector, id: &EngineId) -> Result<Option<Details>, RuntimeError> {
    let link = connector.link().await?;
    match link.get::<Whole>(&format!("/containers/{}/json", escape(id.as_str(), ""))).await {
        Ok(whole) => Ok(Some(whole.into())),
        Err(CallError::Answer(answer)) if is_container_missing(&answer) => Ok(None),
        Err(error) => Err(connector.failed(&link, error).await),
    }
}
