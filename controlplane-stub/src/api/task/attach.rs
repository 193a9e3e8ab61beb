//! Into a task's containers from afar: ExecuteCommand as ECS has it, and StreamLogs, which is Berth's own.
//! Both answer with a session; what is said in it goes over a connection of its own (`crate::remote`).

use berth_core::ids::ContainerName;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::api::context::{self, Context};
use crate::api::error::{ApiError, ApiResult};
use crate::model::{Task, TaskStatus};
use crate::remote::{Target, Wish};

/// ExecuteCommand.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(in crate::api) struct Execute {
    cluster: Option<String>,
    task: String,
    container: Option<String>,
    command: String,
    interactive: bool,
}

pub(in crate::api) async fn execute(context: &Context, request: Execute) -> ApiResult<Value> {
    if !request.interactive {
        return Err(ApiError::invalid_parameter("Interactive is the only mode supported currently."));
    }
    let command = shlex::split(&request.command).filter(|words| !words.is_empty());
    let command = command.ok_or_else(|| {
        ApiError::invalid_parameter("command should be a program and its arguments, quoted as in a shell.")
    })?;
    let (task, container) = find(context, request.cluster.as_deref(), &request.task, request.container)?;
    if !task.execute_command || task.observed.status != TaskStatus::Running {
        return Err(ApiError::invalid_parameter(
            "The execute command failed because execute command was not enabled when the task was run or the execute \
             command agent isn’t running. Wait and try again or run a new task with execute command enabled and try \
             again.",
        ));
    }
    let mut answer = session(context, &task, container, Wish::Exec(command))?;
    answer["interactive"] = json!(true);
    Ok(answer)
}

/// StreamLogs.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(in crate::api) struct StreamLogs {
    cluster: Option<String>,
    task: String,
    container: Option<String>,
    tail: Option<i64>,
    follow: bool,
}

pub(in crate::api) async fn stream_logs(context: &Context, request: StreamLogs) -> ApiResult<Value> {
    let tail = request.tail.map(u32::try_from).transpose();
    let tail = tail.map_err(|_| ApiError::invalid_parameter("tail should be a number of lines."))?;
    let (task, container) = find(context, request.cluster.as_deref(), &request.task, request.container)?;
    session(context, &task, container, Wish::Logs(tail, request.follow))
}

/// The task, and the container of it that is meant: the only one needs no name.
fn find(
    context: &Context,
    cluster: Option<&str>,
    task: &str,
    container: Option<String>,
) -> ApiResult<(std::sync::Arc<Task>, ContainerName)> {
    let view = context.view();
    let cluster = context::cluster(&*view, cluster)?;
    let task = context::task(&*view, &cluster.name, task)?.value;
    let containers = &task.spec.containers;
    let wanted = container.filter(|name| !name.is_empty());
    let found = match &wanted {
        Some(name) => containers.iter().find(|container| container.name.as_str() == name),
        None => containers.first().filter(|_| containers.len() == 1),
    };
    let name = found.map(|container| container.name.clone());
    let name = name.ok_or_else(|| {
        let names: Vec<&str> = containers.iter().map(|container| container.name.as_str()).collect();
        ApiError::invalid_parameter(format!("container should be one of [{}]", names.join(", ")))
    })?;
    Ok((task, name))
}

fn session(context: &Context, task: &Task, container: ContainerName, wish: Wish) -> ApiResult<Value> {
    let remote = &context.state.remote;
    if !remote.reaches(&task.instance) {
        return Err(ApiError::target_not_connected(
            "The execute command failed due to an internal error. Try again later. The agent of the task's container \
             instance is not connected.",
        ));
    }
    let given = remote.give(Target {
        instance: task.instance.clone(),
        task: task.arn.clone(),
        container: container.to_string(),
        wish,
        who: context.caller.clone(),
    });
    let session = given.map_err(|error| ApiError::limit_exceeded(error.to_string()))?;
    let observed = task.observed.containers.iter().find(|observed| observed.name == container.as_str());
    Ok(json!({
        "clusterArn": context.arns.cluster(&task.cluster),
        "taskArn": task.arn,
        "containerArn": observed.map(|observed| &observed.arn),
        "containerName": container,
        "session": {
            "sessionId": session.id,
            "streamUrl": format!("http://{}{}", context.host, session.path),
            "tokenValue": session.token,
        },
    }))
}
