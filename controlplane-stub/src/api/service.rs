//! Services and capacity providers: there are none yet, and the answers say so.

use serde::Deserialize;
use serde_json::{Value, json};

use super::context::{Context, cluster, failure};
use super::error::{ApiError, ApiResult};

/// The most services that one request may describe.
const MAX_DESCRIBED: usize = 10;

/// ListServices.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct List {
    cluster: Option<String>,
}

pub(super) async fn list(context: &Context, request: List) -> ApiResult<Value> {
    cluster(&*context.view(), request.cluster.as_deref())?;
    Ok(json!({"serviceArns": []}))
}

/// DescribeServices.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Describe {
    cluster: Option<String>,
    services: Vec<String>,
}

pub(super) async fn describe(context: &Context, request: Describe) -> ApiResult<Value> {
    if request.services.is_empty() {
        return Err(ApiError::invalid_parameter("Services cannot be empty."));
    }
    if request.services.len() > MAX_DESCRIBED {
        return Err(ApiError::invalid_parameter(format!("services can have at most {MAX_DESCRIBED} items.")));
    }
    let cluster = cluster(&*context.view(), request.cluster.as_deref())?;
    let base = cluster.arn.replacen(":cluster/", ":service/", 1);
    let missing = request.services.iter().map(|named| {
        let arn = if named.starts_with("arn:") { named.clone() } else { format!("{base}/{named}") };
        failure(&arn, "MISSING")
    });
    Ok(json!({"services": [], "failures": missing.collect::<Vec<_>>()}))
}

/// DescribeCapacityProviders.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct DescribeCapacityProviders {
    capacity_providers: Vec<String>,
}

pub(super) async fn describe_capacity_providers(
    _: &Context,
    request: DescribeCapacityProviders,
) -> ApiResult<Value> {
    let missing = request.capacity_providers.iter().map(|name| failure(name, "MISSING"));
    Ok(json!({"capacityProviders": [], "failures": missing.collect::<Vec<_>>()}))
}
