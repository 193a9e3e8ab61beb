//! Attributes of container instances.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Value, json};

use super::context::{self, Context};
use super::error::{ApiError, ApiResult};
use super::page::{Paging, reply};
use crate::arn;
use crate::model::{Instance, InstanceStatus};
use crate::store::{Key, Record, Txn};

/// The most attributes of one request, and the most custom ones of an instance.
const MAX_ATTRIBUTES: usize = 10;
/// The most bytes of a value that an agent registers.
const MAX_REGISTERED_VALUE: usize = 512;

/// An attribute of a request.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Attribute {
    name: String,
    value: Option<String>,
    target_type: Option<String>,
    target_id: Option<String>,
}

impl Attribute {
    /// Its name and value as an agent registers them: what it tells of its host may hold
    /// characters that operators may not use, such as parentheses.
    ///
    /// # Errors
    /// `InvalidParameterException` for a name that ECS does not take, or an endless value.
    pub(super) fn registered(&self) -> ApiResult<(String, String)> {
        let value = self.value.clone().unwrap_or_default();
        if value.len() > MAX_REGISTERED_VALUE || value.chars().any(char::is_control) {
            return Err(ApiError::invalid_parameter(format!(
                "The value of attribute '{}' is not valid.",
                self.name
            )));
        }
        let name = Self { value: None, ..self.clone() }.checked()?.0;
        Ok((name, value))
    }

    /// Its name and value; an empty value is an attribute without one.
    ///
    /// # Errors
    /// `InvalidParameterException` for a name or value that ECS does not take.
    fn checked(&self) -> ApiResult<(String, String)> {
        if !is_name(&self.name) {
            return Err(ApiError::invalid_parameter(format!(
                "Attribute name '{}' is not valid: 1 to 128 letters, digits, hyphens, underscores, slashes, backslashes and periods.",
                self.name
            )));
        }
        let value = self.value.clone().unwrap_or_default();
        if !value.is_empty() && !is_value(&value) {
            return Err(ApiError::invalid_parameter(format!(
                "The value of attribute '{}' is not valid: 1 to 128 letters, digits, hyphens, underscores, periods, at signs, \
                 slashes, backslashes, colons and spaces, none of them at an end.",
                self.name
            )));
        }
        Ok((self.name.clone(), value))
    }
}

/// Whether it can be the name of an attribute.
#[must_use]
pub(super) fn is_name(name: &str) -> bool {
    (1..=128).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-/\\.".contains(&b))
}

/// Whether it can be the value of an attribute.
#[must_use]
pub(super) fn is_value(value: &str) -> bool {
    (1..=128).contains(&value.len())
        && value.trim() == value
        && value.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-/\\.@: ".contains(&b))
}

/// Whether an operator made it up, rather than the agent or the service.
fn is_custom(name: &str) -> bool {
    !["ecs.", "com.amazonaws.", "berth."].iter().any(|prefix| name.starts_with(prefix))
}

/// PutAttributes and DeleteAttributes.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Change {
    cluster: Option<String>,
    attributes: Vec<Attribute>,
}

pub(super) async fn put(context: &Context, request: Change) -> ApiResult<Value> {
    change(context, &request, |attributes, name, value| {
        attributes.insert(name, value);
    })
    .await
}

pub(super) async fn delete(context: &Context, request: Change) -> ApiResult<Value> {
    change(context, &request, |attributes, name, value| {
        // With a value, only an attribute of that value goes.
        if value.is_empty() || attributes.get(&name) == Some(&value) {
            attributes.remove(&name);
        }
    })
    .await
}

/// Changes the attributes of all targets in one transaction.
async fn change(
    context: &Context,
    request: &Change,
    apply: impl Fn(&mut BTreeMap<String, String>, String, String),
) -> ApiResult<Value> {
    if request.attributes.is_empty() {
        return Err(ApiError::invalid_parameter("Attributes cannot be empty."));
    }
    if request.attributes.len() > MAX_ATTRIBUTES {
        return Err(ApiError::invalid_parameter(format!(
            "attributes can have at most {MAX_ATTRIBUTES} items."
        )));
    }
    let shown = context
        .change(|view| {
            let cluster = context::cluster(view, request.cluster.as_deref())?;
            let mut changed: BTreeMap<String, (u64, Instance)> = BTreeMap::new();
            let mut shown = Vec::new();
            for attribute in &request.attributes {
                let (name, value) = attribute.checked()?;
                let id = target(&cluster.name, attribute)?;
                let found =
                    view.instance(&cluster.name, &id).filter(|i| i.value.status != InstanceStatus::Inactive);
                let missing = || {
                    let target = attribute.target_id.as_deref().unwrap_or_default();
                    ApiError::target_not_found(format!("The specified target '{target}' was not found."))
                };
                let found = found.ok_or_else(missing)?;
                let (_, instance) =
                    changed.entry(id).or_insert_with(|| (found.revision, Instance::clone(&found.value)));
                shown.push(render(&name, &value, &instance.arn));
                apply(&mut instance.attributes, name, value);
            }
            let mut txn = Txn::default();
            for (id, (revision, instance)) in changed {
                if instance.attributes.keys().filter(|name| is_custom(name)).count() > MAX_ATTRIBUTES {
                    return Err(ApiError::attribute_limit_exceeded(format!(
                        "A container instance can have at most {MAX_ATTRIBUTES} custom attributes."
                    )));
                }
                let key = Key::Instance(cluster.name.clone(), id);
                txn.compares.push((key.clone(), Some(revision)));
                txn.puts.push((key, Record::Instance(Arc::new(instance))));
            }
            Ok((txn, shown))
        })
        .await?;
    Ok(json!({"attributes": shown}))
}

/// The id of the instance that an attribute is for.
fn target(cluster: &str, attribute: &Attribute) -> ApiResult<String> {
    let Some(named) = attribute.target_id.as_deref().filter(|id| !id.is_empty()) else {
        return Err(ApiError::invalid_parameter(format!(
            "The attribute '{}' needs a targetId.",
            attribute.name
        )));
    };
    match attribute.target_type.as_deref() {
        Some("container-instance") => {}
        None if named.starts_with("arn:") => {}
        None => {
            return Err(ApiError::invalid_parameter(
                "targetType must be specified when the targetId is not an ARN.",
            ));
        }
        Some(_) => {
            return Err(ApiError::invalid_parameter("targetType should be one of [container-instance]"));
        }
    }
    context::scoped_id("container-instance", cluster, named)
}

fn render(name: &str, value: &str, target: &str) -> Value {
    let mut shown = json!({"name": name, "targetId": target, "targetType": "container-instance"});
    if !value.is_empty() {
        shown["value"] = json!(value);
    }
    shown
}

/// ListAttributes.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct List {
    cluster: Option<String>,
    target_type: String,
    attribute_name: Option<String>,
    attribute_value: Option<String>,
    max_results: Option<i64>,
    next_token: Option<String>,
}

pub(super) async fn list(context: &Context, request: List) -> ApiResult<Value> {
    if request.target_type != "container-instance" {
        return Err(ApiError::invalid_parameter("targetType should be one of [container-instance]"));
    }
    if request.attribute_value.is_some() && request.attribute_name.is_none() {
        return Err(ApiError::invalid_parameter("attributeName must be specified with attributeValue."));
    }
    let view = context.view();
    let cluster = context::cluster(&*view, request.cluster.as_deref())?;
    let mut found: Vec<(String, String, String)> = Vec::new();
    for instance in view.instances(Some(&cluster.name)) {
        let instance = instance.value;
        if instance.status != InstanceStatus::Inactive {
            let of_instance = instance.attributes.iter();
            found
                .extend(of_instance.map(|(name, value)| (instance.arn.clone(), name.clone(), value.clone())));
        }
    }
    found.retain(|(_, name, value)| {
        request.attribute_name.as_ref().is_none_or(|wanted| wanted == name)
            && request.attribute_value.as_ref().is_none_or(|wanted| wanted == value)
    });
    found.sort();
    let filters =
        format!("attributes {} {:?} {:?}", cluster.name, request.attribute_name, request.attribute_value);
    let paging = Paging::usual(request.max_results, request.next_token.as_deref());
    let (page, next) =
        paging.page(&filters, found, |(target, name, _)| format!("{} {name}", arn::id_of(target)))?;
    let page: Vec<Value> = page.iter().map(|(target, name, value)| render(name, value, target)).collect();
    Ok(reply("attributes", json!(page), next))
}
