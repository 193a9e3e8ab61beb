//! Tasks: stop and describe. Launches, lists, protection and the shape of a task in replies are
//! beside it.

mod attach;
mod launch;
mod list;
mod placement;
mod protection;
mod render;

use serde::Deserialize;
use serde_json::{Value, json};

pub(super) use self::attach::{execute, stream_logs};
pub(super) use self::launch::{run, start};
pub(super) use self::list::list;
pub(super) use self::placement::query;
pub(super) use self::protection::{get as get_protection, update as update_protection};
use self::render::Renderer;
use super::context::{self, Context, failure};
use super::error::{ApiError, ApiResult};
use crate::arn;
use crate::controller::ChangeError;
use crate::model::StopCause;

/// The most tasks that one request may describe.
const MAX_DESCRIBED: usize = 100;
/// The most characters of a reason.
const MAX_REASON: usize = 1024;

/// StopTask.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Stop {
    cluster: Option<String>,
    task: String,
    reason: Option<String>,
}

pub(super) async fn stop(context: &Context, request: Stop) -> ApiResult<Value> {
    if request.task.is_empty() {
        return Err(ApiError::invalid_parameter("Task can not be blank."));
    }
    let reason = request
        .reason
        .filter(|reason| !reason.is_empty())
        .unwrap_or_else(|| "Task stopped by user".to_owned());
    if reason.chars().count() > MAX_REASON {
        return Err(ApiError::invalid_parameter(format!(
            "reason should not be longer than {MAX_REASON} characters."
        )));
    }
    let view = context.view();
    let cluster = context::cluster(&*view, request.cluster.as_deref())?;
    let found = context::task(&*view, &cluster.name, &request.task)?;
    let cause = StopCause { code: "UserInitiated".to_owned(), reason };
    let id = arn::id_of(&found.value.arn);
    let stopped =
        context.state.controller.stop_task(&cluster.name, id, cause).await.map_err(|error| match error {
            // It was there a moment ago: its record has just been cleaned up.
            ChangeError::NotFound(_) => ApiError::invalid_parameter("The referenced task was not found."),
            other => other.into(),
        })?;
    let view = context.view();
    Ok(json!({"task": Renderer::new(context, &*view).task(&stopped, true)}))
}

/// DescribeTasks.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Describe {
    cluster: Option<String>,
    tasks: Vec<String>,
    include: Vec<String>,
}

pub(super) async fn describe(context: &Context, request: Describe) -> ApiResult<Value> {
    if request.tasks.is_empty() {
        return Err(ApiError::invalid_parameter("Tasks cannot be empty."));
    }
    if request.tasks.len() > MAX_DESCRIBED {
        return Err(ApiError::invalid_parameter(format!("tasks can have at most {MAX_DESCRIBED} items.")));
    }
    if request.include.iter().any(|field| field != "TAGS") {
        return Err(ApiError::invalid_parameter("include should be one of [TAGS]"));
    }
    let view = context.view();
    let cluster = context::cluster(&*view, request.cluster.as_deref())?;
    let renderer = Renderer::new(context, &*view);
    let (mut tasks, mut failures) = (Vec::new(), Vec::new());
    for named in &request.tasks {
        let id = context::task_id(&cluster.name, named)?;
        match view.task(&cluster.name, &id) {
            Some(task) => tasks.push(renderer.task(&task.value, !request.include.is_empty())),
            None if named.starts_with("arn:") => failures.push(failure(named, "MISSING")),
            None => failures.push(failure(&context.arns.task(&cluster.name, &id), "MISSING")),
        }
    }
    Ok(json!({"tasks": tasks, "failures": failures}))
}

#[cfg(test)]
mod tests;
