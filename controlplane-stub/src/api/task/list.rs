//! ListTasks.

use serde::Deserialize;
use serde_json::{Value, json};

use crate::api::context::{self, Context};
use crate::api::error::{ApiError, ApiResult};
use crate::api::page::{Paging, reply};
use crate::model::Task;

/// ListTasks.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(in crate::api) struct List {
    cluster: Option<String>,
    container_instance: Option<String>,
    family: Option<String>,
    service_name: Option<String>,
    launch_type: Option<String>,
    desired_status: Option<String>,
    started_by: Option<String>,
    max_results: Option<i64>,
    next_token: Option<String>,
}

pub(in crate::api) async fn list(context: &Context, request: List) -> ApiResult<Value> {
    let desired = request.desired_status.as_deref().unwrap_or("RUNNING");
    if !matches!(desired, "RUNNING" | "PENDING" | "STOPPED") {
        return Err(ApiError::invalid_parameter(
            "desiredStatus should be one of [RUNNING, PENDING, STOPPED]",
        ));
    }
    if !matches!(request.launch_type.as_deref(), None | Some("EC2" | "FARGATE" | "EXTERNAL")) {
        return Err(ApiError::invalid_parameter("launch type should be one of [EC2,FARGATE,EXTERNAL]"));
    }
    let view = context.view();
    let cluster = context::cluster(&*view, request.cluster.as_deref())?;
    if request.service_name.is_some() {
        return Err(ApiError::service_not_found("Service not found."));
    }
    let instance = match &request.container_instance {
        Some(named) => Some(context::instance(&*view, &cluster.name, named)?.value.arn.clone()),
        None => None,
    };
    let wanted = |task: &Task| {
        // Nothing is ever desired to be PENDING.
        let status = if task.wants_running() { "RUNNING" } else { "STOPPED" };
        status == desired
            && request.launch_type.as_deref().is_none_or(|kind| kind == "EC2")
            && request.family.as_deref().is_none_or(|family| task.spec.family.as_str() == family)
            && request.started_by.as_ref().is_none_or(|by| task.started_by.as_ref() == Some(by))
            && instance.as_ref().is_none_or(|instance| *instance == task.instance)
    };
    let mut arns: Vec<String> = view
        .tasks(Some(&cluster.name))
        .into_iter()
        .filter(|task| wanted(&task.value))
        .map(|task| task.value.arn.clone())
        .collect();
    arns.sort();
    let filters = format!(
        "tasks {} {instance:?} {:?} {:?} {desired} {:?}",
        cluster.name, request.family, request.launch_type, request.started_by
    );
    let paging = Paging::usual(request.max_results, request.next_token.as_deref());
    let (page, next) = paging.page(&filters, arns, String::clone)?;
    Ok(reply("taskArns", json!(page), next))
}
