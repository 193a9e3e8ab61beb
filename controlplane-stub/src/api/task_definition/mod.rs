//! Task definitions: register, describe, deregister, delete. Their lists are in `list`.

mod attributes;
pub(super) mod defaults;
pub(super) mod input;
mod list;
mod validate;

use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use self::defaults::normalise_sizes;
use self::input::Definition;
pub(super) use self::list::{list, list_families};
use super::context::{Context, epoch, failure, now};
use super::error::{ApiError, ApiResult};
use super::spec;
use super::tag::{self, Tag};
use crate::arn;
use crate::controller::DEFAULT_CLUSTER;
use crate::model::task_definition::DefinitionStatus;
use crate::model::{Tags, TaskDefinition, TaskStatus};
use crate::store::{Key, Record, Txn, View};

/// The most revisions of a family.
const MAX_REVISIONS: u32 = 1_000_000;
/// The most definitions that one request may delete.
const MAX_DELETED: usize = 10;

/// RegisterTaskDefinition: the body is kept as it came.
pub(super) async fn register(context: &Context, mut body: Map<String, Value>) -> ApiResult<Value> {
    let tags: Vec<Tag> = match body.remove("tags") {
        Some(tags) => {
            serde_json::from_value(tags).map_err(|error| ApiError::serialization(error.to_string()))?
        }
        None => Vec::new(),
    };
    let tags = tag::read(&tags)?;
    let bytes = serde_json::to_vec(&body).map_or(usize::MAX, |bytes| bytes.len());
    normalise_sizes(&mut body);
    let definition = Definition::read(&body)?;
    validate::validate(&definition, bytes)?;
    defaults::fill(&mut body);
    let required_attributes = attributes::required(&definition);
    let compatibilities = attributes::compatibilities(&definition);
    let family = definition.family;
    // What is registered must be a task that can run: the last word is the specification's own.
    let mut candidate = TaskDefinition::new(String::new(), family.clone(), 1, now());
    candidate.body.clone_from(&body);
    let placeholder = context
        .arns
        .placeholder_task(DEFAULT_CLUSTER)
        .map_err(|error| ApiError::server(error.to_string()))?;
    spec::specify(&candidate, &json!({}), placeholder, "")
        .map_err(|error| ApiError::client(error.message))?;
    let decide = |view: &dyn View| {
        let last = view.family(&family);
        let revision = last.as_ref().map_or(0, |last| last.value) + 1;
        if revision > MAX_REVISIONS {
            return Err(ApiError::limit_exceeded(format!(
                "A family can have at most {MAX_REVISIONS} revisions."
            )));
        }
        let arn = context.arns.task_definition(&family, revision);
        let mut record = TaskDefinition::new(arn, family.clone(), revision, now());
        record.body.clone_from(&body);
        record.required_attributes.clone_from(&required_attributes);
        record.compatibilities.clone_from(&compatibilities);
        record.tags.clone_from(&tags);
        record.registered_by = context.principal();
        let record = Arc::new(record);
        let counter = Key::Family(family.clone());
        let key = Key::TaskDefinition(family.clone(), revision);
        let txn = Txn {
            compares: vec![(counter.clone(), last.map(|last| last.revision)), (key.clone(), None)],
            puts: vec![
                (counter, Record::Family(revision)),
                (key, Record::TaskDefinition(Arc::clone(&record))),
            ],
            deletes: Vec::new(),
        };
        Ok((txn, record))
    };
    let given_up =
        || ApiError::client("Too many concurrent attempts to create a new revision of the specified family.");
    let record = context.change_or(decide, given_up).await?;
    Ok(json!({"taskDefinition": render(&record), "tags": tag::render(&record.tags)}))
}

/// DescribeTaskDefinition.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Describe {
    task_definition: String,
    include: Vec<String>,
}

pub(super) async fn describe(context: &Context, request: Describe) -> ApiResult<Value> {
    let found = find(&*context.view(), &request.task_definition)?;
    let found = found.ok_or_else(|| ApiError::client("Unable to describe task definition."))?;
    let with_tags = request.include.iter().any(|field| field == "TAGS");
    let tags = tag::render(if with_tags { &found.tags } else { const { &Tags::new() } });
    Ok(json!({"taskDefinition": render(&found), "tags": tags}))
}

/// DeregisterTaskDefinition.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Deregister {
    task_definition: String,
}

pub(super) async fn deregister(context: &Context, request: Deregister) -> ApiResult<Value> {
    let (family, revision) = named(&request.task_definition)?;
    let revision = revision.ok_or_else(|| ApiError::client("Revision is missing."))?;
    let record = context
        .change(|view| {
            let found = view.task_definition(&family, revision);
            let found = found.ok_or_else(|| ApiError::client("Unable to describe task definition."))?;
            if found.value.status != DefinitionStatus::Active {
                return Ok((Txn::default(), found.value));
            }
            let mut record = TaskDefinition::clone(&found.value);
            record.status = DefinitionStatus::Inactive;
            record.deregistered_at = Some(now());
            let record = Arc::new(record);
            Ok((put(&record, found.revision), record))
        })
        .await?;
    Ok(json!({"taskDefinition": render(&record)}))
}

/// DeleteTaskDefinitions.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Delete {
    task_definitions: Vec<String>,
}

pub(super) async fn delete(context: &Context, request: Delete) -> ApiResult<Value> {
    if request.task_definitions.is_empty() {
        return Err(ApiError::invalid_parameter("Task definitions cannot be empty."));
    }
    if request.task_definitions.len() > MAX_DELETED {
        return Err(ApiError::invalid_parameter(format!(
            "taskDefinitions can have at most {MAX_DELETED} items."
        )));
    }
    let (mut deleted, mut failures) = (Vec::new(), Vec::new());
    for text in &request.task_definitions {
        let Ok((family, Some(revision))) = named(text) else {
            failures.push(failure(
                text,
                "The specified task definition identifier is invalid. Specify a valid name or ARN and try again.",
            ));
            continue;
        };
        match context.change(|view| Ok(decide_delete(view, &family, revision))).await? {
            Ok(record) => deleted.push(render(&record)),
            Err(reason) => failures.push(failure(text, reason)),
        }
    }
    Ok(json!({"taskDefinitions": deleted, "failures": failures}))
}

/// Deletes a definition, or marks it while tasks still run by it.
fn decide_delete(
    view: &dyn View,
    family: &str,
    revision: u32,
) -> (Txn, Result<Arc<TaskDefinition>, &'static str>) {
    let Some(found) = view.task_definition(family, revision) else {
        let reason = "The specified task definition does not exist. Specify a valid account, family, revision and try again.";
        return (Txn::default(), Err(reason));
    };
    if found.value.status == DefinitionStatus::Active {
        let reason = "The specified task definition is still in ACTIVE status. Please deregister the target and try again.";
        return (Txn::default(), Err(reason));
    }
    let mut record = TaskDefinition::clone(&found.value);
    record.status = DefinitionStatus::DeleteInProgress;
    record.delete_requested_at = record.delete_requested_at.or_else(|| Some(now()));
    let record = Arc::new(record);
    let used = view.tasks(None).iter().any(|task| {
        task.value.task_definition == record.arn && task.value.observed.status != TaskStatus::Stopped
    });
    let mut txn = put(&record, found.revision);
    if !used {
        txn.deletes = txn.puts.drain(..).map(|(key, _)| key).collect();
    }
    (txn, Ok(record))
}

fn put(record: &Arc<TaskDefinition>, revision: u64) -> Txn {
    let key = Key::TaskDefinition(record.family.clone(), record.revision);
    Txn {
        compares: vec![(key.clone(), Some(revision))],
        puts: vec![(key, Record::TaskDefinition(Arc::clone(record)))],
        deletes: Vec::new(),
    }
}

/// Family and revision of what a request names: `family`, `family:revision` or an ARN.
///
/// # Errors
/// `InvalidParameterException` for what is none of these.
fn named(text: &str) -> ApiResult<(String, Option<u32>)> {
    let name = arn::parse("task-definition", text)
        .map_err(|error| ApiError::invalid_parameter(format!("Invalid identifier: {error}")))?
        .name;
    match name.split_once(':') {
        None => Ok((name, None)),
        Some((family, revision)) => match revision.parse::<u32>() {
            Ok(revision) if revision > 0 => Ok((family.to_owned(), Some(revision))),
            _ => Err(ApiError::invalid_parameter(format!("Invalid revision number. Number: {revision}"))),
        },
    }
}

/// The definition that a request names; the latest ACTIVE one of a bare family.
///
/// # Errors
/// `InvalidParameterException` for what names no definition.
fn find(view: &dyn View, text: &str) -> ApiResult<Option<Arc<TaskDefinition>>> {
    let (family, revision) = named(text)?;
    Ok(match revision {
        Some(revision) => view.task_definition(&family, revision).map(|found| found.value),
        None => {
            let all = view.task_definitions(Some(&family));
            all.into_iter().rev().find(|definition| definition.status == DefinitionStatus::Active)
        }
    })
}

/// The definition that new tasks are to run by.
///
/// # Errors
/// `ClientException` when there is none, `InvalidParameterException` when it was deregistered.
pub(super) fn usable(view: &dyn View, text: &str) -> ApiResult<Arc<TaskDefinition>> {
    if text.is_empty() {
        return Err(ApiError::invalid_parameter("TaskDefinition can not be blank."));
    }
    let found = find(view, text)?.ok_or_else(|| ApiError::client("TaskDefinition not found."))?;
    if found.status == DefinitionStatus::Active {
        Ok(found)
    } else {
        Err(ApiError::invalid_parameter("TaskDefinition is inactive"))
    }
}

/// A definition as a reply shows it.
fn render(record: &TaskDefinition) -> Value {
    let mut shown = record.body.clone();
    let mut set = |member: &str, value: Value| shown.insert(member.to_owned(), value);
    set("taskDefinitionArn", json!(record.arn));
    set("family", json!(record.family));
    set("revision", json!(record.revision));
    set("status", json!(record.status.as_str()));
    set("requiresAttributes", json!(record.required_attributes));
    set("compatibilities", json!(record.compatibilities));
    set("registeredAt", epoch(record.registered_at));
    set("registeredBy", json!(record.registered_by));
    if let Some(at) = record.deregistered_at {
        set("deregisteredAt", epoch(at));
    }
    if let Some(at) = record.delete_requested_at {
        set("deleteRequestedAt", epoch(at));
    }
    Value::Object(shown)
}

#[cfg(test)]
mod tests;
