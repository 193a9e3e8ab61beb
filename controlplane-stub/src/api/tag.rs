//! Tags, of whatever has an ARN.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Value, json};

use super::context::Context;
use super::error::{ApiError, ApiResult};
use crate::arn;
use crate::model::{Tags, Task, TaskDefinition};
use crate::store::{Key, Record, Revision, Txn, View};

/// The most tags of a resource.
const MAX_TAGS: usize = 50;

/// A tag of a request.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Tag {
    key: String,
    value: String,
}

/// Checks tags and takes them.
///
/// # Errors
/// `InvalidParameterException` for a tag that breaks a rule.
pub(super) fn read(given: &[Tag]) -> ApiResult<Tags> {
    let mut tags = Tags::new();
    for tag in given {
        if tag.key.is_empty() || tag.key.chars().count() > 128 {
            return Err(ApiError::invalid_parameter("Tag keys must have between 1 and 128 characters."));
        }
        if tag.value.chars().count() > 256 {
            return Err(ApiError::invalid_parameter("Tag values must have at most 256 characters."));
        }
        if tag.key.to_lowercase().starts_with("aws:") {
            return Err(ApiError::invalid_parameter("Tag keys must not begin with aws:, which is reserved."));
        }
        if !tag.key.chars().chain(tag.value.chars()).all(is_allowed) {
            return Err(ApiError::invalid_parameter(
                "Tag keys and values may hold letters, numbers, spaces and the characters _.:/=+-@ alone.",
            ));
        }
        if tags.insert(tag.key.clone(), tag.value.clone()).is_some() {
            return Err(ApiError::invalid_parameter(format!(
                "The tag key {} is given more than once.",
                tag.key
            )));
        }
    }
    check_count(&tags)?;
    Ok(tags)
}

fn is_allowed(c: char) -> bool {
    c.is_alphanumeric() || (c.is_whitespace() && !c.is_control()) || "_.:/=+-@".contains(c)
}

fn check_count(tags: &Tags) -> ApiResult<()> {
    if tags.len() > MAX_TAGS {
        return Err(ApiError::invalid_parameter(format!("A resource can have at most {MAX_TAGS} tags.")));
    }
    Ok(())
}

/// Tags as a reply shows them.
pub(super) fn render(tags: &Tags) -> Value {
    tags.iter().map(|(key, value)| json!({"key": key, "value": value})).collect()
}

/// A resource that has tags.
struct Tagged {
    key: Key,
    revision: Revision,
    record: Record,
}

impl Tagged {
    /// # Errors
    /// `InvalidParameterException` for what is no ARN of a taggable resource,
    /// `ResourceNotFoundException` for a resource that is not there.
    fn find(view: &dyn View, arn: &str) -> ApiResult<Self> {
        let missing = || ApiError::resource_not_found("The specified resource could not be found.");
        let kind = arn.splitn(6, ':').nth(5).and_then(|resource| resource.split('/').next());
        let named = |kind| {
            arn::parse(kind, arn)
                .map_err(|error| ApiError::invalid_parameter(format!("Invalid identifier: {error}")))
        };
        match kind.filter(|_| arn.starts_with("arn:")) {
            Some("cluster") => {
                let name = named("cluster")?.name;
                let found = view.cluster(&name).ok_or_else(missing)?;
                if !found.value.active {
                    return Err(ApiError::invalid_parameter(
                        "The specified cluster is inactive. Specify an active cluster and try again.",
                    ));
                }
                Ok(Self {
                    key: Key::Cluster(name),
                    revision: found.revision,
                    record: Record::Cluster(found.value),
                })
            }
            Some("task-definition") => {
                let name = named("task-definition")?.name;
                let (family, revision) = name.split_once(':').ok_or_else(missing)?;
                let revision = revision.parse().map_err(|_| missing())?;
                let found = view.task_definition(family, revision).ok_or_else(missing)?;
                let key = Key::TaskDefinition(family.to_owned(), revision);
                Ok(Self { key, revision: found.revision, record: Record::TaskDefinition(found.value) })
            }
            Some("container-instance") => {
                let reference = named("container-instance")?;
                let cluster = reference.cluster.ok_or_else(missing)?;
                let found = view.instance(&cluster, &reference.name).ok_or_else(missing)?;
                let key = Key::Instance(cluster, reference.name);
                Ok(Self { key, revision: found.revision, record: Record::Instance(found.value) })
            }
            Some("task") => {
                let reference = named("task")?;
                let cluster = reference.cluster.ok_or_else(missing)?;
                let found = view.task(&cluster, &reference.name).ok_or_else(missing)?;
                let key = Key::Task(cluster, reference.name);
                Ok(Self { key, revision: found.revision, record: Record::Task(found.value) })
            }
            Some("service" | "task-set" | "capacity-provider") => Err(missing()),
            _ => Err(ApiError::invalid_parameter(
                "Invalid ARN: tags belong to clusters, task definitions, container instances and tasks.",
            )),
        }
    }

    fn tags(&self) -> Tags {
        match &self.record {
            Record::Cluster(cluster) => cluster.tags.clone(),
            Record::TaskDefinition(definition) => definition.tags.clone(),
            Record::Instance(instance) => instance.tags.clone(),
            Record::Task(task) => task.tags.clone(),
            Record::Family(_) => Tags::new(),
        }
    }

    fn with(self, tags: Tags) -> Txn {
        let record = match self.record {
            Record::Cluster(cluster) => {
                let mut cluster = crate::model::Cluster::clone(&cluster);
                cluster.tags = tags;
                Record::Cluster(Arc::new(cluster))
            }
            Record::TaskDefinition(definition) => {
                let mut definition = TaskDefinition::clone(&definition);
                definition.tags = tags;
                Record::TaskDefinition(Arc::new(definition))
            }
            Record::Instance(instance) => {
                let mut instance = crate::model::Instance::clone(&instance);
                instance.tags = tags;
                Record::Instance(Arc::new(instance))
            }
            Record::Task(task) => {
                let mut task = Task::clone(&task);
                task.tags = tags;
                Record::Task(Arc::new(task))
            }
            family @ Record::Family(_) => family,
        };
        Txn {
            compares: vec![(self.key.clone(), Some(self.revision))],
            puts: vec![(self.key, record)],
            deletes: Vec::new(),
        }
    }
}

/// TagResource.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct TagResource {
    resource_arn: String,
    tags: Vec<Tag>,
}

pub(super) async fn tag(context: &Context, request: TagResource) -> ApiResult<Value> {
    let added = read(&request.tags)?;
    context
        .change(|view| {
            let found = Tagged::find(view, &request.resource_arn)?;
            let mut tags = found.tags();
            tags.extend(added.clone());
            check_count(&tags)?;
            Ok((found.with(tags), ()))
        })
        .await?;
    Ok(json!({}))
}

/// UntagResource.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct UntagResource {
    resource_arn: String,
    tag_keys: Vec<String>,
}

pub(super) async fn untag(context: &Context, request: UntagResource) -> ApiResult<Value> {
    context
        .change(|view| {
            let found = Tagged::find(view, &request.resource_arn)?;
            let mut tags = found.tags();
            tags.retain(|key, _| !request.tag_keys.contains(key));
            Ok((found.with(tags), ()))
        })
        .await?;
    Ok(json!({}))
}

/// ListTagsForResource.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct List {
    resource_arn: String,
}

pub(super) async fn list(context: &Context, request: List) -> ApiResult<Value> {
    let found = Tagged::find(&*context.view(), &request.resource_arn)?;
    Ok(json!({"tags": render(&found.tags())}))
}
