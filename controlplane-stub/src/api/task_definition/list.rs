//! Lists of task definitions and of their families.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Value, json};

use crate::api::context::Context;
use crate::api::error::{ApiError, ApiResult};
use crate::api::page::{Paging, reply};
use crate::model::TaskDefinition;
use crate::model::task_definition::DefinitionStatus;

/// ListTaskDefinitions.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(in crate::api) struct List {
    family_prefix: Option<String>,
    status: Option<String>,
    sort: Option<String>,
    max_results: Option<i64>,
    next_token: Option<String>,
}

pub(in crate::api) async fn list(context: &Context, request: List) -> ApiResult<Value> {
    let wanted = request.status.as_deref().unwrap_or("ACTIVE");
    check("status", wanted, &["ACTIVE", "INACTIVE", "DELETE_IN_PROGRESS"])?;
    let order = request.sort.as_deref().unwrap_or("ASC");
    check("sort", order, &["ASC", "DESC"])?;
    // A "prefix" by name, the whole family by meaning.
    let family = request.family_prefix.as_deref().filter(|family| !family.is_empty());
    let mut found = context.view().task_definitions(family);
    found.retain(|definition| definition.status.as_str() == wanted);
    found.sort_by_cached_key(|definition| position(definition));
    if order == "DESC" {
        found.reverse();
    }
    let filters = format!("definitions {family:?} {wanted} {order}");
    let paging = Paging::usual(request.max_results, request.next_token.as_deref());
    let (page, next) = paging.page(&filters, found, |definition| position(definition))?;
    let arns: Vec<&str> = page.iter().map(|definition| definition.arn.as_str()).collect();
    Ok(reply("taskDefinitionArns", json!(arns), next))
}

/// Sorts by family, then by the revision as a number.
fn position(definition: &TaskDefinition) -> String {
    format!("{} {:010}", definition.family, definition.revision)
}

/// ListTaskDefinitionFamilies.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(in crate::api) struct ListFamilies {
    family_prefix: Option<String>,
    status: Option<String>,
    max_results: Option<i64>,
    next_token: Option<String>,
}

pub(in crate::api) async fn list_families(context: &Context, request: ListFamilies) -> ApiResult<Value> {
    let wanted = request.status.as_deref().unwrap_or("ALL");
    check("status", wanted, &["ACTIVE", "INACTIVE", "ALL"])?;
    let prefix = request.family_prefix.unwrap_or_default();
    // Whether a family has an ACTIVE revision.
    let mut families: BTreeMap<String, bool> = BTreeMap::new();
    for definition in context.view().task_definitions(None) {
        if definition.family.starts_with(&prefix) && definition.status != DefinitionStatus::DeleteInProgress {
            *families.entry(definition.family.clone()).or_default() |=
                definition.status == DefinitionStatus::Active;
        }
    }
    let shown = |active: bool| wanted == "ALL" || (wanted == "ACTIVE") == active;
    let families =
        families.into_iter().filter(|(_, active)| shown(*active)).map(|(family, _)| family).collect();
    let filters = format!("families {prefix} {wanted}");
    let paging = Paging::usual(request.max_results, request.next_token.as_deref());
    let (page, next) = paging.page(&filters, families, String::clone)?;
    Ok(reply("families", json!(page), next))
}

fn check(what: &str, value: &str, allowed: &[&str]) -> ApiResult<()> {
    if allowed.contains(&value) {
        Ok(())
    } else {
        Err(ApiError::invalid_parameter(format!("{what} should be one of [{}]", allowed.join(", "))))
    }
}
