//! UpdateTaskProtection and GetTaskProtection.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Value, json};

use crate::api::context::{self, Context, epoch, failure};
use crate::api::error::{ApiError, ApiResult};
use crate::arn;
use crate::controller::{Protection, Unprotectable, protectable};
use crate::model::Task;

/// The most tasks that one request may change, and may ask about.
const MAX_CHANGED: usize = 10;
const MAX_ASKED: usize = 100;

/// UpdateTaskProtection.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(in crate::api) struct Update {
    cluster: String,
    tasks: Vec<String>,
    protection_enabled: Option<bool>,
    expires_in_minutes: Option<i64>,
}

pub(in crate::api) async fn update(context: &Context, request: Update) -> ApiResult<Value> {
    let Some(enabled) = request.protection_enabled else {
        return Err(ApiError::invalid_parameter("protectionEnabled can not be blank."));
    };
    let wanted = Protection::wanted(enabled, request.expires_in_minutes)
        .map_err(|error| ApiError::invalid_parameter(error.to_string()))?;
    if request.tasks.is_empty() {
        return Err(ApiError::invalid_parameter("Tasks cannot be empty."));
    }
    let (cluster, arns, ids) = named(context, &request.cluster, &request.tasks, MAX_CHANGED)?;
    let results = context.state.controller.protect(&cluster, &ids, wanted).await?;
    Ok(reply(arns.iter().zip(results)))
}

/// GetTaskProtection.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(in crate::api) struct Get {
    cluster: String,
    tasks: Vec<String>,
}

pub(in crate::api) async fn get(context: &Context, request: Get) -> ApiResult<Value> {
    let (cluster, arns, ids) = named(context, &request.cluster, &request.tasks, MAX_ASKED)?;
    let view = context.view();
    let found = |id: &str| protectable(&*view, &cluster, id).map(|found| found.value);
    if !request.tasks.is_empty() {
        return Ok(reply(arns.iter().zip(ids.iter().map(|id| found(id)))));
    }
    let mut all: Vec<Arc<Task>> = view
        .tasks(Some(&cluster))
        .iter()
        .filter_map(|task| found(arn::id_of(&task.value.arn)).ok())
        .collect();
    all.sort_by(|a, b| a.arn.cmp(&b.arn));
    Ok(reply(all.iter().map(|task| (&task.arn, Ok(Arc::clone(task))))))
}

/// The name of the cluster, and the ARNs and ids of the tasks that a request names.
fn named(
    context: &Context,
    cluster: &str,
    tasks: &[String],
    most: usize,
) -> ApiResult<(String, Vec<String>, Vec<String>)> {
    if cluster.is_empty() {
        return Err(ApiError::invalid_parameter("Cluster can not be blank."));
    }
    if tasks.len() > most {
        return Err(ApiError::invalid_parameter(format!("tasks can have at most {most} items.")));
    }
    let cluster = context::cluster(&*context.view(), Some(cluster))?.name.clone();
    let ids: Vec<String> =
        tasks.iter().map(|named| context::task_id(&cluster, named)).collect::<ApiResult<_>>()?;
    let arn = |(named, id): (&String, &String)| {
        if named.starts_with("arn:") { named.clone() } else { context.arns.task(&cluster, id) }
    };
    let arns = tasks.iter().zip(&ids).map(arn).collect();
    Ok((cluster, arns, ids))
}

fn reply<'a>(results: impl Iterator<Item = (&'a String, Result<Arc<Task>, Unprotectable>)>) -> Value {
    let (mut protected, mut failures) = (Vec::new(), Vec::new());
    for (arn, result) in results {
        match result {
            Ok(task) => protected.push(shown(&task)),
            Err(why) => {
                let mut failed = failure(arn, why.reason());
                if let Some(detail) = why.detail() {
                    failed["detail"] = json!(detail);
                }
                failures.push(failed);
            }
        }
    }
    json!({"protectedTasks": protected, "failures": failures})
}

fn shown(task: &Task) -> Value {
    let until = task.protection(context::now());
    let mut shown = json!({"taskArn": task.arn, "protectionEnabled": until.is_some()});
    if let Some(until) = until {
        shown["expirationDate"] = epoch(until);
    }
    shown
}

#[cfg(test)]
mod tests {
    use berth_core::units::Timestamp;
    use serde_json::{Value, json};

    use crate::api::context;
    use crate::api::testing::Api;
    use crate::model::{Task, TaskStatus};

    /// An API with a task of a service, and one of none: their ARNs.
    async fn tasks(change: impl FnOnce(&mut Task)) -> (Api, String, String) {
        let api = Api::start().await;
        let definition = api.definition("web").await;
        let instance = api.instance().await;
        let of_service = api
            .placed(&definition, &instance, |task| {
                task.group = "service:web".to_owned();
                change(task);
            })
            .await;
        let alone = api.placed(&definition, &instance, |_| {}).await;
        (api, of_service, alone)
    }

    /// In how many minutes protection ends, by what a reply says.
    fn minutes(protected: &Value) -> f64 {
        let now = context::epoch(context::now()).as_f64().unwrap();
        (protected["expirationDate"].as_f64().unwrap() - now) / 60.0
    }

    #[tokio::test]
    async fn a_request_that_breaks_a_rule_is_refused() {
        let (api, task, _) = tasks(|_| {}).await;
        let many = vec!["0".repeat(32); 101];
        for (operation, body, message) in [
            (
                "UpdateTaskProtection",
                json!({"cluster": "default", "tasks": [task]}),
                "protectionEnabled can not be blank.",
            ),
            (
                "UpdateTaskProtection",
                json!({"tasks": [task], "protectionEnabled": true}),
                "Cluster can not be blank.",
            ),
            (
                "UpdateTaskProtection",
                json!({"cluster": "default", "protectionEnabled": true}),
                "Tasks cannot be empty.",
            ),
            (
                "UpdateTaskProtection",
                json!({"cluster": "default", "tasks": many[..11], "protectionEnabled": true}),
                "tasks can have at most 10 items.",
            ),
            (
                "UpdateTaskProtection",
                json!({"cluster": "default", "tasks": ["short"], "protectionEnabled": true}),
                "taskId length should be one of [32,36]",
            ),
            ("GetTaskProtection", json!({}), "Cluster can not be blank."),
            (
                "GetTaskProtection",
                json!({"cluster": "default", "tasks": many}),
                "tasks can have at most 100 items.",
            ),
        ] {
            let refused = api.refused(operation, body.clone()).await;
            assert_eq!(refused, ("InvalidParameterException".to_owned(), message.to_owned()), "{body}");
        }
        for minutes in [0, -5, 2881] {
            let body = json!({
                "cluster": "default", "tasks": [task], "protectionEnabled": true, "expiresInMinutes": minutes,
            });
            let refused = api.refused("UpdateTaskProtection", body).await;
            assert_eq!(refused.1, "expiresInMinutes should be between 1 and 2880.");
        }
        let body = json!({"cluster": "none", "tasks": [task], "protectionEnabled": true});
        assert_eq!(api.refused("UpdateTaskProtection", body).await.0, "ClusterNotFoundException");
    }

    #[tokio::test]
    async fn protection_is_given_extended_taken_and_told() {
        let (api, task, _) = tasks(|_| {}).await;
        let id = task.rsplit('/').next().unwrap();
        let update = |members: Value| {
            let mut body = json!({"cluster": "default", "tasks": [id]});
            body.as_object_mut().unwrap().extend(members.as_object().unwrap().clone());
            api.ok("UpdateTaskProtection", body)
        };
        for (members, expected) in [
            (json!({"protectionEnabled": true}), 120.0),
            (json!({"protectionEnabled": true, "expiresInMinutes": 2880}), 2880.0),
            (json!({"protectionEnabled": true, "expiresInMinutes": 1}), 1.0),
        ] {
            let reply = update(members).await;
            assert_eq!(
                (&reply["failures"], &reply["protectedTasks"][0]["taskArn"]),
                (&json!([]), &json!(task))
            );
            assert_eq!(reply["protectedTasks"][0]["protectionEnabled"], true);
            let told = api.ok("GetTaskProtection", json!({"cluster": "default", "tasks": [task]})).await;
            assert_eq!(told, reply);
            assert!((minutes(&told["protectedTasks"][0]) - expected).abs() < 0.5, "{told} {expected}");
        }
        let off = update(json!({"protectionEnabled": false})).await;
        let nothing =
            json!({"protectedTasks": [{"taskArn": task, "protectionEnabled": false}], "failures": []});
        assert_eq!(off, nothing);
        // Without tasks, those of all services are meant.
        assert_eq!(api.ok("GetTaskProtection", json!({"cluster": "default"})).await, nothing);
    }

    #[tokio::test]
    async fn protection_ends_by_itself_and_with_its_task() {
        let long = Timestamp(context::now().0 + 3_600_000);
        for (until, status, protected) in
            [(long, TaskStatus::Running, true), (context::now(), TaskStatus::Running, false)]
        {
            let (api, task, _) = tasks(|task| {
                task.protected_until = Some(until);
                task.observed.status = status;
            })
            .await;
            let told = api.ok("GetTaskProtection", json!({"cluster": "default", "tasks": [task]})).await;
            assert_eq!(told["protectedTasks"][0]["protectionEnabled"], protected);
            assert_eq!(told["protectedTasks"][0]["expirationDate"].is_number(), protected, "{told}");
        }
        let (api, task, _) = tasks(|task| {
            task.protected_until = Some(long);
            task.observed.status = TaskStatus::Stopped;
        })
        .await;
        let told = api.ok("GetTaskProtection", json!({"cluster": "default", "tasks": [task]})).await;
        assert_eq!(told["failures"][0]["reason"], "TASK_NOT_VALID");
    }

    #[tokio::test]
    async fn tasks_that_cannot_have_it_are_failures_beside_those_that_can() {
        let (api, task, alone) = tasks(|_| {}).await;
        let missing = "f".repeat(32);
        let named = json!([missing, alone, task, task]);
        for operation in ["UpdateTaskProtection", "GetTaskProtection"] {
            let body = json!({"cluster": "default", "tasks": named, "protectionEnabled": true});
            let reply = api.ok(operation, body).await;
            let failures: Vec<_> =
                reply["failures"].as_array().unwrap().iter().map(|f| &f["reason"]).collect();
            assert_eq!(failures, ["MISSING", "TASK_NOT_VALID"], "{reply}");
            assert_eq!(reply["failures"][1]["arn"], json!(alone));
            let arn = api.context.arns.task("default", &missing);
            assert_eq!(reply["failures"][0]["arn"], json!(arn));
            let protected = reply["protectedTasks"].as_array().unwrap();
            assert_eq!(protected.len(), 2);
            assert!(protected.iter().all(|told| told["taskArn"] == json!(task)), "{reply}");
            assert!(protected.iter().all(|told| told["protectionEnabled"] == true), "{reply}");
        }
    }
}
