//! Clusters.

use std::collections::BTreeMap;
use std::sync::Arc;

use berth_core::ids::is_resource_name;
use serde::Deserialize;
use serde_json::{Value, json};

use super::context::{Context, any_cluster, cluster_name, failure, now};
use super::error::{ApiError, ApiResult};
use super::page::Paging;
use super::tag::{self, Tag};
use crate::controller::DEFAULT_CLUSTER;
use crate::model::{Cluster, InstanceStatus, Tags, TaskStatus};
use crate::store::{Key, Record, Txn, View};

/// The most clusters that one request may describe.
const MAX_DESCRIBED: usize = 100;
const INSIGHTS: &str = "containerInsights";

/// A setting of a cluster.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Setting {
    name: String,
    value: String,
}

/// CreateCluster.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Create {
    cluster_name: Option<String>,
    settings: Vec<Setting>,
    tags: Vec<Tag>,
    configuration: Option<Value>,
    service_connect_defaults: Option<Value>,
    capacity_providers: Vec<String>,
    default_capacity_provider_strategy: Vec<Value>,
}

pub(super) async fn create(context: &Context, request: Create) -> ApiResult<Value> {
    let name =
        request.cluster_name.filter(|name| !name.is_empty()).unwrap_or_else(|| DEFAULT_CLUSTER.to_owned());
    if !is_resource_name(&name) {
        return Err(ApiError::invalid_parameter(
            "Invalid cluster name: 1 to 255 letters, digits, hyphens and underscores.",
        ));
    }
    refuse_unsupported("configuration", request.configuration.is_some())?;
    refuse_unsupported("serviceConnectDefaults", request.service_connect_defaults.is_some())?;
    if !request.capacity_providers.is_empty() || !request.default_capacity_provider_strategy.is_empty() {
        return Err(ApiError::invalid_parameter(
            "The specified capacity provider was not found. Specify a valid capacity provider and try again.",
        ));
    }
    let settings = settings(&request.settings)?;
    let tags = tag::read(&request.tags)?;
    let cluster = context
        .change(|view| {
            let found = view.cluster(&name);
            if let Some(existing) = found.as_ref().filter(|found| found.value.active) {
                // Saying nothing of the settings is consistent with any.
                if !request.settings.is_empty() && existing.value.settings != settings {
                    return Err(ApiError::invalid_parameter(
                        "Arguments on this idempotent request are inconsistent with arguments used in previous request(s).",
                    ));
                }
                return Ok((Txn::default(), Arc::clone(&existing.value)));
            }
            let cluster = Arc::new(Cluster {
                arn: context.arns.cluster(&name),
                name: name.clone(),
                active: true,
                settings: settings.clone(),
                tags: tags.clone(),
                created_at: now(),
            });
            Ok((put(&cluster, found.map(|found| found.revision)), cluster))
        })
        .await?;
    let shown = Include { settings: true, tags: true, statistics: false };
    Ok(json!({"cluster": render(&*context.view(), &cluster, &shown)}))
}

/// UpdateCluster and UpdateClusterSettings.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Update {
    cluster: Option<String>,
    settings: Vec<Setting>,
    configuration: Option<Value>,
    service_connect_defaults: Option<Value>,
}

pub(super) async fn update(context: &Context, request: Update) -> ApiResult<Value> {
    refuse_unsupported("configuration", request.configuration.is_some())?;
    refuse_unsupported("serviceConnectDefaults", request.service_connect_defaults.is_some())?;
    let settings = settings(&request.settings)?;
    let cluster = context
        .change(|view| {
            let found = any_cluster(view, request.cluster.as_deref())?;
            if !found.value.active {
                return Err(ApiError::cluster_inactive());
            }
            let mut cluster = Cluster::clone(&found.value);
            if !request.settings.is_empty() {
                cluster.settings.clone_from(&settings);
            }
            let cluster = Arc::new(cluster);
            Ok((put(&cluster, Some(found.revision)), cluster))
        })
        .await?;
    let shown = Include { settings: true, tags: true, statistics: false };
    Ok(json!({"cluster": render(&*context.view(), &cluster, &shown)}))
}

/// DescribeClusters.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Describe {
    clusters: Vec<String>,
    include: Vec<String>,
}

pub(super) async fn describe(context: &Context, request: Describe) -> ApiResult<Value> {
    if request.clusters.len() > MAX_DESCRIBED {
        return Err(ApiError::invalid_parameter(format!("clusters can have at most {MAX_DESCRIBED} items.")));
    }
    let include = Include::read(&request.include)?;
    let view = context.view();
    let mut named = request.clusters;
    if named.is_empty() {
        named.push(DEFAULT_CLUSTER.to_owned());
    }
    let (mut clusters, mut failures) = (Vec::new(), Vec::new());
    for named in named {
        let name = cluster_name(Some(&named))?;
        match view.cluster(&name) {
            Some(cluster) => clusters.push(render(&*view, &cluster.value, &include)),
            None => failures.push(failure(&context.arns.cluster(&name), "MISSING")),
        }
    }
    Ok(json!({"clusters": clusters, "failures": failures}))
}

/// ListClusters.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct List {
    max_results: Option<i64>,
    next_token: Option<String>,
}

pub(super) async fn list(context: &Context, request: List) -> ApiResult<Value> {
    let clusters: Vec<_> = context.view().clusters().into_iter().filter(|cluster| cluster.active).collect();
    let paging = Paging::usual(request.max_results, request.next_token.as_deref());
    let (page, next) = paging.page("clusters", clusters, |cluster| cluster.name.clone())?;
    let arns: Vec<&str> = page.iter().map(|cluster| cluster.arn.as_str()).collect();
    Ok(super::page::reply("clusterArns", json!(arns), next))
}

/// DeleteCluster.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Delete {
    cluster: Option<String>,
}

pub(super) async fn delete(context: &Context, request: Delete) -> ApiResult<Value> {
    if request.cluster.as_deref().unwrap_or_default().is_empty() {
        return Err(ApiError::invalid_parameter("Cluster can not be blank."));
    }
    let cluster = context
        .change(|view| {
            let found = any_cluster(view, request.cluster.as_deref())?;
            if !found.value.active {
                return Ok((Txn::default(), found.value));
            }
            let name = &found.value.name;
            if view.instances(Some(name)).iter().any(|i| i.value.status != InstanceStatus::Inactive) {
                return Err(ApiError::cluster_contains_instances(
                    "The Cluster cannot be deleted while Container Instances are active or draining.",
                ));
            }
            if view.tasks(Some(name)).iter().any(|task| task.value.observed.status != TaskStatus::Stopped) {
                return Err(ApiError::cluster_contains_tasks(
                    "The Cluster cannot be deleted while Tasks are active.",
                ));
            }
            let mut cluster = Cluster::clone(&found.value);
            cluster.active = false;
            let cluster = Arc::new(cluster);
            Ok((put(&cluster, Some(found.revision)), cluster))
        })
        .await?;
    Ok(json!({"cluster": render(&*context.view(), &cluster, &Include::default())}))
}

fn put(cluster: &Arc<Cluster>, revision: Option<u64>) -> Txn {
    let key = Key::Cluster(cluster.name.clone());
    Txn {
        compares: vec![(key.clone(), revision)],
        puts: vec![(key, Record::Cluster(Arc::clone(cluster)))],
        deletes: Vec::new(),
    }
}

fn refuse_unsupported(member: &str, given: bool) -> ApiResult<()> {
    if given {
        Err(ApiError::client(format!("{member} of a cluster is not supported by this control plane.")))
    } else {
        Ok(())
    }
}

fn settings(given: &[Setting]) -> ApiResult<BTreeMap<String, String>> {
    let mut settings = BTreeMap::from([(INSIGHTS.to_owned(), "disabled".to_owned())]);
    for setting in given {
        if setting.name != INSIGHTS {
            return Err(ApiError::invalid_parameter(format!("Setting name should be one of [{INSIGHTS}]")));
        }
        if !matches!(setting.value.as_str(), "enabled" | "disabled" | "enhanced") {
            return Err(ApiError::invalid_parameter(
                "Setting value should be one of [disabled, enabled, enhanced]",
            ));
        }
        settings.insert(setting.name.clone(), setting.value.clone());
    }
    Ok(settings)
}

/// What a reply shows beside the cluster itself.
#[derive(Debug, Default)]
struct Include {
    settings: bool,
    tags: bool,
    statistics: bool,
}

impl Include {
    fn read(include: &[String]) -> ApiResult<Self> {
        let known = ["ATTACHMENTS", "CONFIGURATIONS", "SETTINGS", "STATISTICS", "TAGS"];
        if include.iter().any(|field| !known.contains(&field.as_str())) {
            return Err(ApiError::invalid_parameter(format!(
                "include should be one of [{}]",
                known.join(", ")
            )));
        }
        let has = |field: &str| include.iter().any(|included| included == field);
        Ok(Self { settings: has("SETTINGS"), tags: has("TAGS"), statistics: has("STATISTICS") })
    }
}

fn render(view: &dyn View, cluster: &Cluster, include: &Include) -> Value {
    let instances = view.instances(Some(&cluster.name));
    let registered = instances.iter().filter(|i| i.value.status != InstanceStatus::Inactive).count();
    let tasks = view.tasks(Some(&cluster.name));
    let count = |wanted: &[TaskStatus]| {
        tasks.iter().filter(|task| wanted.contains(&task.value.observed.status)).count()
    };
    let running = count(&[TaskStatus::Running]);
    let pending = count(&[TaskStatus::Provisioning, TaskStatus::Pending]);
    let settings = cluster.settings.iter().filter(|_| include.settings);
    let settings: Vec<Value> = settings.map(|(name, value)| json!({"name": name, "value": value})).collect();
    json!({
        "clusterArn": cluster.arn,
        "clusterName": cluster.name,
        "status": if cluster.active { "ACTIVE" } else { "INACTIVE" },
        "registeredContainerInstancesCount": registered,
        "runningTasksCount": running,
        "pendingTasksCount": pending,
        "activeServicesCount": 0,
        "statistics": if include.statistics { statistics(running, pending) } else { Vec::new() },
        "settings": settings,
        "tags": tag::render(if include.tags { &cluster.tags } else { const { &Tags::new() } }),
        "capacityProviders": [],
        "defaultCapacityProviderStrategy": [],
    })
}

fn statistics(running: usize, pending: usize) -> Vec<Value> {
    let none = [
        "activeEC2ServiceCount",
        "drainingEC2ServiceCount",
        "runningFargateTasksCount",
        "pendingFargateTasksCount",
    ];
    let none = none.into_iter().map(|name| (name, 0));
    [("runningEC2TasksCount", running), ("pendingEC2TasksCount", pending)]
        .into_iter()
        .chain(none)
        .map(|(name, value)| json!({"name": name, "value": value.to_string()}))
        .collect()
}

#[cfg(test)]
mod tests;
