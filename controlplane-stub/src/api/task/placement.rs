//! Placement constraints and strategies of a request, read into the scheduler's words.

use serde::Deserialize;

use crate::api::error::{ApiError, ApiResult};
use crate::model::TaskDefinition;
use crate::scheduler::placement::{Constraint, PackBy, Strategy};
use crate::scheduler::query::Query;

/// The most constraints of definition and request together.
const MAX_CONSTRAINTS: usize = 10;
/// The most strategies.
const MAX_STRATEGIES: usize = 5;

/// An entry of `placementConstraints`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct GivenConstraint {
    #[serde(rename = "type")]
    kind: String,
    expression: Option<String>,
}

/// An entry of `placementStrategy`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct GivenStrategy {
    #[serde(rename = "type")]
    kind: String,
    field: Option<String>,
}

/// The constraints of the request and of the definition.
///
/// # Errors
/// `InvalidParameterException` for one that is none.
pub(super) fn constraints(
    given: &[GivenConstraint],
    definition: &TaskDefinition,
) -> ApiResult<Vec<Constraint>> {
    let of_definition = definition.placement_expressions();
    if given.len() + of_definition.len() > MAX_CONSTRAINTS {
        return Err(ApiError::invalid_parameter(format!(
            "Too many placement constraints: at most {MAX_CONSTRAINTS}."
        )));
    }
    let mut constraints = Vec::new();
    for constraint in given {
        let expression = constraint.expression.as_deref().filter(|expression| !expression.is_empty());
        constraints.push(match (constraint.kind.as_str(), expression) {
            ("distinctInstance", None) => Constraint::DistinctInstance,
            ("distinctInstance", Some(_)) => {
                return Err(ApiError::invalid_parameter(
                    "distinctInstance expression should not be specified.",
                ));
            }
            ("memberOf", Some(expression)) => Constraint::MemberOf(query(expression)?),
            ("memberOf", None) => {
                return Err(ApiError::invalid_parameter("memberOf expression should not be null or empty."));
            }
            _ => {
                return Err(ApiError::invalid_parameter(
                    "constraint.type should be one of [distinctInstance, memberOf]",
                ));
            }
        });
    }
    for expression in of_definition {
        constraints.push(Constraint::MemberOf(query(expression)?));
    }
    Ok(constraints)
}

/// Reads a query of the cluster query language.
///
/// # Errors
/// `InvalidParameterException` with the place and what is wrong there.
pub(in crate::api) fn query(expression: &str) -> ApiResult<Query> {
    Query::parse(expression).map_err(|error| {
        ApiError::invalid_parameter(format!("The expression '{expression}' is not valid: {error}"))
    })
}

/// The strategies of a request.
///
/// # Errors
/// `InvalidParameterException` for one that is none.
pub(super) fn strategies(given: &[GivenStrategy]) -> ApiResult<Vec<Strategy>> {
    if given.len() > MAX_STRATEGIES {
        return Err(ApiError::invalid_parameter(format!(
            "Too many placement strategies: at most {MAX_STRATEGIES}."
        )));
    }
    given.iter().map(strategy).collect()
}

fn strategy(given: &GivenStrategy) -> ApiResult<Strategy> {
    let field = given.field.as_deref().unwrap_or_default();
    let lower = field.to_ascii_lowercase();
    match (given.kind.as_str(), lower.as_str()) {
        ("random", _) => Ok(Strategy::Random),
        ("binpack", "cpu") => Ok(Strategy::Binpack(PackBy::Cpu)),
        ("binpack", "memory") => Ok(Strategy::Binpack(PackBy::Memory)),
        ("binpack", _) => {
            Err(ApiError::invalid_parameter("The field of a binpack strategy should be one of [cpu, memory]"))
        }
        ("spread", "instanceid" | "host") => Ok(Strategy::SpreadInstances),
        ("spread", _) => match field.strip_prefix("attribute:").filter(|name| !name.is_empty()) {
            Some(name) => Ok(Strategy::SpreadAttribute(name.to_owned())),
            None => Err(ApiError::invalid_parameter(
                "The field of a spread strategy should be instanceId, host or attribute:<name>",
            )),
        },
        _ => Err(ApiError::invalid_parameter("strategy.type should be one of [random, spread, binpack]")),
    }
}
