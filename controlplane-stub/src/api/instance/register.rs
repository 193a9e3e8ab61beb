//! RegisterContainerInstance, for hosts that are driven through the JSON API.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Value, json};

use super::render::{INSTANCE_ID, Renderer};
use super::resources::{self, Device, Given};
use crate::api::attribute::{self, Attribute};
use crate::api::context::{self, Context, now};
use crate::api::error::{ApiError, ApiResult};
use crate::api::tag::{self, Tag};
use crate::arn;
use crate::model::{Instance, InstanceStatus, OutboxCursor};
use crate::store::{Key, Record, Txn, View};

/// The attribute that an instance may not change.
const INSTANCE_TYPE: &str = "ecs.instance-type";

/// RegisterContainerInstance.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(in crate::api) struct Register {
    cluster: Option<String>,
    container_instance_arn: Option<String>,
    instance_identity_document: Option<String>,
    total_resources: Vec<Given>,
    platform_devices: Vec<Device>,
    version_info: VersionInfo,
    attributes: Vec<Attribute>,
    tags: Vec<Tag>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct VersionInfo {
    agent_version: String,
    agent_hash: String,
    docker_version: String,
}

/// What the cloud says of a host.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct IdentityDocument {
    instance_id: String,
    instance_type: String,
    availability_zone: String,
    image_id: String,
}

pub(in crate::api) async fn register(context: &Context, request: Register) -> ApiResult<Value> {
    let (total, gpu_ids) = resources::read(&request.total_resources, &request.platform_devices)?;
    let tags = tag::read(&request.tags)?;
    let mut attributes = of_identity(request.instance_identity_document.as_deref());
    for given in &request.attributes {
        let (name, value) = given.registered()?;
        attributes.insert(name, value);
    }
    attributes
        .entry("ecs.availability-zone".to_owned())
        .or_insert_with(|| format!("{}a", context.arns.region));
    let id = arn::new_id();
    let instance = context
        .change(|view| {
            let cluster = context::any_cluster(view, request.cluster.as_deref())?;
            if !cluster.value.active {
                return Err(ApiError::cluster_inactive());
            }
            let cluster_name = cluster.value.name.clone();
            let again = request.container_instance_arn.as_deref().filter(|arn| !arn.is_empty());
            let mut txn = Txn::default();
            // A cluster that is deleted meanwhile must not gain instances.
            txn.compares.push((Key::Cluster(cluster_name.clone()), Some(cluster.revision)));
            let (key, mut instance) = match again {
                Some(named) => registered(view, &cluster_name, named, &attributes, &mut txn)?,
                None => {
                    let key = Key::Instance(cluster_name.clone(), id.clone());
                    txn.compares.push((key.clone(), None));
                    (key, fresh(context.arns.container_instance(&cluster_name, &id), cluster_name))
                }
            };
            instance.total.clone_from(&total);
            instance.gpu_ids.clone_from(&gpu_ids);
            // Attributes that operators put on the instance stay when it registers again.
            instance.attributes.extend(attributes.clone());
            instance.agent_version.clone_from(&request.version_info.agent_version);
            instance.agent_hash.clone_from(&request.version_info.agent_hash);
            instance.engine_version.clone_from(&request.version_info.docker_version);
            instance.tags.extend(tags.clone());
            instance.version += 1;
            let instance = Arc::new(instance);
            txn.puts.push((key, Record::Instance(Arc::clone(&instance))));
            Ok((txn, instance))
        })
        .await?;
    let view = context.view();
    Ok(json!({"containerInstance": Renderer::new(context, &*view).instance(&instance)}))
}

/// The record of an instance that registers again.
fn registered(
    view: &dyn View,
    cluster: &str,
    named: &str,
    attributes: &BTreeMap<String, String>,
    txn: &mut Txn,
) -> ApiResult<(Key, Instance)> {
    let found = context::instance(view, cluster, named)?;
    let instance = Instance::clone(&found.value);
    if instance.status == InstanceStatus::Inactive {
        return Err(ApiError::client("The referenced container instance is inactive: it was deregistered."));
    }
    let changed = attributes
        .get(INSTANCE_TYPE)
        .zip(instance.attributes.get(INSTANCE_TYPE))
        .is_some_and(|(new, old)| new != old);
    if changed {
        return Err(ApiError::client("Container instance type changes are not supported."));
    }
    let key = Key::Instance(cluster.to_owned(), arn::id_of(&instance.arn).to_owned());
    txn.compares.push((key.clone(), Some(found.revision)));
    Ok((key, instance))
}

fn fresh(arn: String, cluster: String) -> Instance {
    Instance {
        arn,
        cluster,
        host_key: String::new(),
        host_id: String::new(),
        status: InstanceStatus::Active,
        drained_by_host: false,
        version: 0,
        total: berth_core::resources::Resources::default(),
        gpu_ids: Vec::new(),
        attributes: BTreeMap::new(),
        agent_version: String::new(),
        agent_hash: String::new(),
        engine_version: String::new(),
        hostname: String::new(),
        tags: BTreeMap::new(),
        registered_at: now(),
        outbox: OutboxCursor::default(),
        estranged: false,
    }
}

/// The attributes that follow from the identity document; none without a readable one.
fn of_identity(document: Option<&str>) -> BTreeMap<String, String> {
    let document: IdentityDocument =
        document.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
    [
        (INSTANCE_ID, document.instance_id),
        (INSTANCE_TYPE, document.instance_type),
        ("ecs.availability-zone", document.availability_zone),
        ("ecs.ami-id", document.image_id),
    ]
    .into_iter()
    .filter(|(name, value)| attribute::is_name(name) && attribute::is_value(value))
    .map(|(name, value)| (name.to_owned(), value))
    .collect()
}
