//! Registration: a host becomes a container instance of a cluster, or is found again.
//!
//! The id of a new instance is derived from the host's key, so that two registrations of one host
//! at the same time make the same record, and one of them finds the other's.

use std::collections::BTreeMap;
use std::sync::Arc;

use berth_core::ids::is_resource_name;
use berth_core::resources::Resources;
use berth_proto::{PROTOCOL_VERSION, v1};
use tonic::Status;

use super::convert;
use super::identity;
use super::registry::Registry;
use crate::arn::{self, Arns};
use crate::clock;
use crate::controller::DEFAULT_CLUSTER;
use crate::model::{Instance, InstanceStatus, OutboxCursor, Tags};
use crate::store::{CommitError, Key, Record, Store, Txn, Versioned, View};
use crate::tls::HostId;

/// Longest key of a host.
const MAX_HOST_KEY: usize = 255;
/// Most attributes, the agent's capabilities among them.
const MAX_ATTRIBUTES: usize = 512;
/// Most GPUs, and the longest id of one.
const MAX_GPUS: (usize, usize) = (1024, 128);
/// Attributes with these prefixes are the agent's alone: one that it no longer has is gone.
const CAPABILITIES: [&str; 5] = [
    "ecs.capability.",
    "com.amazonaws.ecs.capability.",
    "berth.capability.",
    "berth.eni-provider.",
    "berth.fault.",
];

/// Why a host was not registered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum RegisterError {
    #[error(
        "Cluster not found. Make it (aws ecs create-cluster --cluster-name {0}), or have ECS_CLUSTER name another"
    )]
    ClusterNotFound(String),
    #[error("The referenced cluster was inactive.")]
    ClusterInactive,
    /// The instance is another host's.
    #[error("{0}")]
    NotYours(String),
    #[error("{0}")]
    Invalid(String),
    #[error("{0}")]
    Unavailable(String),
}

impl From<RegisterError> for Status {
    fn from(error: RegisterError) -> Self {
        let text = error.to_string();
        match error {
            RegisterError::ClusterNotFound(_) | RegisterError::ClusterInactive => Self::not_found(text),
            RegisterError::NotYours(_) => Self::permission_denied(text),
            RegisterError::Invalid(_) => Self::invalid_argument(text),
            RegisterError::Unavailable(_) => Self::unavailable(text),
        }
    }
}

/// A request whose fields were checked.
struct Registration {
    cluster: String,
    host_key: String,
    previous: String,
    total: Resources,
    gpu_ids: Vec<String>,
    attributes: BTreeMap<String, String>,
    versions: v1::Versions,
    hostname: String,
}

fn checked(request: v1::RegisterRequest) -> Result<Registration, RegisterError> {
    let invalid = |text: String| Err(RegisterError::Invalid(text));
    if request.protocol_version != PROTOCOL_VERSION {
        return invalid(format!(
            "protocol_version: the agent speaks {}, this control plane {PROTOCOL_VERSION}",
            request.protocol_version
        ));
    }
    let cluster = if request.cluster.is_empty() { DEFAULT_CLUSTER.to_owned() } else { request.cluster };
    if !is_resource_name(&cluster) {
        return invalid(format!(
            "cluster: {cluster:?} is no cluster name: 1 to 255 letters, digits, hyphens and underscores"
        ));
    }
    if request.host_key.is_empty() || request.host_key.len() > MAX_HOST_KEY {
        return invalid(format!("host_key: 1 to {MAX_HOST_KEY} bytes are needed"));
    }
    let Some(total) = &request.total else { return invalid("total: is missing".to_owned()) };
    let total =
        convert::resources(total).map_err(|problem| RegisterError::Invalid(format!("total.{problem}")))?;
    if request.attributes.len() > MAX_ATTRIBUTES {
        return invalid(format!(
            "attributes: {} of them, at most {MAX_ATTRIBUTES}",
            request.attributes.len()
        ));
    }
    if let Some(bad) =
        request.attributes.iter().find(|a| a.name.is_empty() || a.name.len() > 256 || a.value.len() > 256)
    {
        return invalid(format!(
            "attributes: {:?}: a name of 1 to 256 bytes and a value of at most 256 are needed",
            bad.name
        ));
    }
    let (most, longest) = MAX_GPUS;
    if request.gpu_ids.len() > most || request.gpu_ids.iter().any(|id| id.is_empty() || id.len() > longest) {
        return invalid(format!("gpu_ids: at most {most} ids of 1 to {longest} bytes"));
    }
    Ok(Registration {
        cluster,
        host_key: request.host_key,
        previous: request.previous_instance_arn,
        total,
        gpu_ids: request.gpu_ids,
        attributes: request.attributes.into_iter().map(|a| (a.name, a.value)).collect(),
        versions: request.versions.unwrap_or_default(),
        hostname: request.hostname,
    })
}

/// Registers a host, which has that certificate unless it speaks in plaintext; durable when it returns.
pub(super) async fn register(
    store: &dyn Store,
    registry: &Registry,
    arns: &Arns,
    host: Option<&HostId>,
    request: v1::RegisterRequest,
) -> Result<Arc<Instance>, RegisterError> {
    let registration = checked(request)?;
    loop {
        let view = store.view();
        let cluster = view
            .cluster(&registration.cluster)
            .ok_or_else(|| RegisterError::ClusterNotFound(registration.cluster.clone()))?;
        if !cluster.value.active {
            return Err(RegisterError::ClusterInactive);
        }
        let mut txn = Txn::default();
        let instance = match find(&*view, registry, host, &registration)? {
            Some(found) => {
                let instance = refreshed(&found.value, host, &registration);
                if instance == *found.value {
                    return Ok(found.value);
                }
                txn.compares.push((key_of(&instance), Some(found.revision)));
                instance
            }
            None => {
                let instance = new_instance(&*view, arns, host, &registration);
                txn.compares.push((key_of(&instance), None));
                // A cluster that is deleted meanwhile must not gain instances.
                txn.compares.push((Key::Cluster(registration.cluster.clone()), Some(cluster.revision)));
                instance
            }
        };
        let instance = Arc::new(instance);
        txn.puts.push((key_of(&instance), Record::Instance(Arc::clone(&instance))));
        match store.commit(txn).await {
            Ok(_) => {
                tracing::info!(instance = instance.arn, hostname = instance.hostname, "a host registered");
                return Ok(instance);
            }
            Err(CommitError::Conflict(_)) => {}
            Err(CommitError::Unavailable(why)) => return Err(RegisterError::Unavailable(why)),
        }
    }
}

fn key_of(instance: &Instance) -> Key {
    Key::Instance(instance.cluster.clone(), arn::id_of(&instance.arn).to_owned())
}

/// The instance that the host is: by its key, or else the one that it remembers. With a certificate it has to
/// be that host's, or nobody's yet and by the key alone; without, nobody may be connected as the one that is
/// remembered.
fn find(
    view: &dyn View,
    registry: &Registry,
    host: Option<&HostId>,
    registration: &Registration,
) -> Result<Option<Versioned<Arc<Instance>>>, RegisterError> {
    let others = |instance: &Instance| host.filter(|host| !identity::is_of(instance, host));
    let refused = |instance: &Instance, host| Err(RegisterError::NotYours(identity::refusal(instance, host)));
    let mut live = view.instances(Some(&registration.cluster));
    live.retain(|instance| instance.value.status != InstanceStatus::Inactive);
    if let Some(known) = live.iter().find(|instance| instance.value.host_key == registration.host_key) {
        return match others(&known.value) {
            Some(host) if !known.value.host_id.is_empty() => refused(&known.value, host),
            _ => Ok(Some(known.clone())),
        };
    }
    let remembered = live.into_iter().find(|instance| instance.value.arn == registration.previous);
    let Some(remembered) = remembered else { return Ok(None) };
    if let Some(host) = others(&remembered.value) {
        return refused(&remembered.value, host);
    }
    Ok((host.is_some() || !registry.is_connected(&remembered.value.arn)).then_some(remembered))
}

fn refreshed(before: &Instance, host: Option<&HostId>, registration: &Registration) -> Instance {
    let mut instance = before.clone();
    if let Some(host) = host {
        host.as_str().clone_into(&mut instance.host_id);
    }
    registration.host_key.clone_into(&mut instance.host_key);
    instance.total = registration.total.clone();
    registration.gpu_ids.clone_into(&mut instance.gpu_ids);
    // What operators set stays; what the agent says of itself wins.
    instance.attributes.retain(|name, _| !CAPABILITIES.iter().any(|prefix| name.starts_with(prefix)));
    instance.attributes.extend(registration.attributes.clone());
    tell(&mut instance, registration);
    if instance != *before {
        instance.version += 1;
    }
    instance
}

fn tell(instance: &mut Instance, registration: &Registration) {
    let versions = &registration.versions;
    versions.agent.clone_into(&mut instance.agent_version);
    versions.agent_hash.clone_into(&mut instance.agent_hash);
    versions.engine.clone_into(&mut instance.engine_version);
    registration.hostname.clone_into(&mut instance.hostname);
}

fn new_instance(
    view: &dyn View,
    arns: &Arns,
    host: Option<&HostId>,
    registration: &Registration,
) -> Instance {
    let cluster = &registration.cluster;
    // A deregistered instance keeps its id; the host comes back under the next one.
    let mut life = 0_u64;
    let id = loop {
        let id = derived_id(cluster, &registration.host_key, life);
        if view.instance(cluster, &id).is_none() {
            break id;
        }
        life += 1;
    };
    let mut instance = Instance {
        arn: arns.container_instance(cluster, &id),
        cluster: cluster.clone(),
        host_key: registration.host_key.clone(),
        host_id: host.map(ToString::to_string).unwrap_or_default(),
        status: InstanceStatus::Active,
        drained_by_host: false,
        version: 1,
        total: registration.total.clone(),
        gpu_ids: registration.gpu_ids.clone(),
        attributes: registration.attributes.clone(),
        agent_version: String::new(),
        agent_hash: String::new(),
        engine_version: String::new(),
        hostname: String::new(),
        tags: Tags::new(),
        registered_at: clock::now(),
        outbox: OutboxCursor::default(),
        estranged: false,
    };
    tell(&mut instance, registration);
    instance
}

fn derived_id(cluster: &str, host_key: &str, life: u64) -> String {
    let text = format!("{cluster}/{life}/{host_key}");
    let digest = ring::digest::digest(&ring::digest::SHA256, text.as_bytes());
    crate::hex::encode(&digest.as_ref()[..16])
}
