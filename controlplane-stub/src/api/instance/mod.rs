//! Container instances: describe, list, drain, deregister. Their registration and their shape in
//! replies are beside it.

mod register;
mod render;
mod resources;

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Value, json};

pub(super) use self::register::register;
use self::render::Renderer;
use super::context::{self, Context, failure, now};
use super::error::{ApiError, ApiResult};
use super::page::{Paging, reply};
use super::task::query;
use crate::arn;
use crate::controller::ChangeError;
use crate::model::InstanceStatus;
use crate::scheduler::candidate::ClusterView;

/// The most instances that one request may describe.
const MAX_DESCRIBED: usize = 100;
/// The most instances that one request may drain.
const MAX_UPDATED: usize = 10;

/// DescribeContainerInstances.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Describe {
    cluster: Option<String>,
    container_instances: Vec<String>,
    include: Vec<String>,
}

pub(super) async fn describe(context: &Context, request: Describe) -> ApiResult<Value> {
    if request.container_instances.is_empty() {
        return Err(ApiError::client("Container Instances cannot be empty."));
    }
    if request.container_instances.len() > MAX_DESCRIBED {
        return Err(ApiError::invalid_parameter(format!(
            "containerInstances can have at most {MAX_DESCRIBED} items."
        )));
    }
    let known = ["TAGS", "CONTAINER_INSTANCE_HEALTH"];
    if request.include.iter().any(|field| !known.contains(&field.as_str())) {
        return Err(ApiError::invalid_parameter(format!("include should be one of [{}]", known.join(", "))));
    }
    let view = context.view();
    let cluster = context::cluster(&*view, request.cluster.as_deref())?;
    let renderer = Renderer::new(context, &*view).including(&request.include);
    let (mut instances, mut failures) = (Vec::new(), Vec::new());
    for named in &request.container_instances {
        let id = context::scoped_id("container-instance", &cluster.name, named)?;
        match view.instance(&cluster.name, &id) {
            Some(instance) => instances.push(renderer.instance(&instance.value)),
            None => failures.push(missing(context, &cluster.name, named, &id)),
        }
    }
    Ok(json!({"containerInstances": instances, "failures": failures}))
}

fn missing(context: &Context, cluster: &str, named: &str, id: &str) -> Value {
    if named.starts_with("arn:") {
        failure(named, "MISSING")
    } else {
        failure(&context.arns.container_instance(cluster, id), "MISSING")
    }
}

/// ListContainerInstances.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct List {
    cluster: Option<String>,
    filter: Option<String>,
    status: Option<String>,
    max_results: Option<i64>,
    next_token: Option<String>,
}

pub(super) async fn list(context: &Context, request: List) -> ApiResult<Value> {
    let statuses = ["ACTIVE", "DRAINING", "REGISTERING", "DEREGISTERING", "REGISTRATION_FAILED"];
    if request.status.as_deref().is_some_and(|status| !statuses.contains(&status)) {
        return Err(ApiError::invalid_parameter(format!(
            "Container instance status should be one of [{}]",
            statuses.join(", ")
        )));
    }
    let filter = request.filter.as_deref().filter(|filter| !filter.is_empty());
    let matching = filter.map(query).transpose()?;
    let view = context.view();
    let cluster = context::cluster(&*view, request.cluster.as_deref())?;
    let candidates =
        ClusterView::read(&*view, &context.state.registry.instances_connected(), &cluster.name).candidates;
    let now = now();
    let mut arns: Vec<String> = candidates
        .iter()
        .filter(|candidate| match &request.status {
            Some(status) => candidate.instance.status.as_str() == status,
            None => candidate.instance.status != InstanceStatus::Inactive,
        })
        .filter(|candidate| matching.as_ref().is_none_or(|query| query.matches(candidate, now)))
        .map(|candidate| candidate.instance.arn.clone())
        .collect();
    arns.sort();
    let filters = format!("instances {} {filter:?} {:?}", cluster.name, request.status);
    let paging = Paging::usual(request.max_results, request.next_token.as_deref());
    let (page, next) = paging.page(&filters, arns, String::clone)?;
    Ok(reply("containerInstanceArns", json!(page), next))
}

/// UpdateContainerInstancesState.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct UpdateState {
    cluster: Option<String>,
    container_instances: Vec<String>,
    status: String,
}

pub(super) async fn update_state(context: &Context, request: UpdateState) -> ApiResult<Value> {
    let status = match request.status.as_str() {
        "ACTIVE" => InstanceStatus::Active,
        "DRAINING" => InstanceStatus::Draining,
        _ => {
            return Err(ApiError::invalid_parameter(
                "Container instance status should be one of [ACTIVE, DRAINING]",
            ));
        }
    };
    if request.container_instances.is_empty() {
        return Err(ApiError::client("Container Instances cannot be empty."));
    }
    if request.container_instances.len() > MAX_UPDATED {
        return Err(ApiError::invalid_parameter(format!(
            "containerInstances can have at most {MAX_UPDATED} items."
        )));
    }
    let cluster = context::cluster(&*context.view(), request.cluster.as_deref())?;
    let mut ids = BTreeMap::new();
    for named in &request.container_instances {
        ids.insert(context::scoped_id("container-instance", &cluster.name, named)?, named);
    }
    let (mut changed, mut failures) = (Vec::new(), Vec::new());
    for (id, named) in ids {
        match context.state.controller.set_instance_status(&cluster.name, &id, status).await {
            Ok(instance) => changed.push(instance),
            Err(ChangeError::NotFound(_)) => failures.push(missing(context, &cluster.name, named, &id)),
            Err(ChangeError::Inactive) => {
                failures.push(failure(&context.arns.container_instance(&cluster.name, &id), "INACTIVE"));
            }
            Err(error) => return Err(error.into()),
        }
    }
    let view = context.view();
    let renderer = Renderer::new(context, &*view);
    let changed: Vec<Value> = changed.iter().map(|instance| renderer.instance(instance)).collect();
    Ok(json!({"containerInstances": changed, "failures": failures}))
}

/// DeregisterContainerInstance.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Deregister {
    cluster: Option<String>,
    container_instance: String,
    force: bool,
}

pub(super) async fn deregister(context: &Context, request: Deregister) -> ApiResult<Value> {
    let found = {
        let view = context.view();
        let cluster = context::cluster(&*view, request.cluster.as_deref())?;
        context::instance(&*view, &cluster.name, &request.container_instance)?.value
    };
    let id = arn::id_of(&found.arn);
    let instance = context.state.controller.deregister_instance(&found.cluster, id, request.force).await?;
    let view = context.view();
    Ok(json!({"containerInstance": Renderer::new(context, &*view).instance(&instance)}))
}

/// DiscoverPollEndpoint.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct DiscoverPollEndpoint {}

pub(super) async fn discover_poll_endpoint(context: &Context, _: DiscoverPollEndpoint) -> ApiResult<Value> {
    let endpoint = format!("http://{}/", context.host);
    Ok(json!({"endpoint": endpoint, "telemetryEndpoint": endpoint, "serviceConnectEndpoint": endpoint}))
}

#[cfg(test)]
mod tests;
