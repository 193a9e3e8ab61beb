//! ECS's rules for a task definition, with its own words where they are known.

mod container;
mod dependency;
mod fargate;
mod firelens;
mod network;
mod task;

use super::input::Definition;
use crate::api::error::{ApiError, ApiResult};

/// The most bytes that a definition may have.
const MAX_BYTES: usize = 64 * 1024;

/// Checks a definition; `bytes` is its size as JSON.
///
/// # Errors
/// The first rule that it breaks, as ECS reports it.
pub(super) fn validate(definition: &Definition, bytes: usize) -> ApiResult<()> {
    if bytes > MAX_BYTES {
        return refuse(format!("Actual length: '{bytes}'. Max allowed length is '{MAX_BYTES}' bytes."));
    }
    task::check_set(definition)?;
    for container in &definition.container_definitions {
        container::check(container)?;
    }
    task::check_sizes(definition)?;
    network::check(definition)?;
    firelens::check(definition)?;
    dependency::check(definition)?;
    task::check_volumes(definition)?;
    task::check_constraints(definition)?;
    task::check_members(definition)?;
    if definition.wants_fargate() {
        fargate::check(definition)?;
    }
    Ok(())
}

/// Whether a definition would do for Fargate, which ECS tells unasked.
#[must_use]
pub(super) fn suits_fargate(definition: &Definition) -> bool {
    fargate::check(definition).is_ok()
}

fn refuse<T>(message: impl Into<String>) -> ApiResult<T> {
    Err(ApiError::client(message))
}

/// Refuses a value that is none of `allowed`.
fn one_of(what: &str, value: &str, allowed: &[&str]) -> ApiResult<()> {
    if allowed.contains(&value) {
        Ok(())
    } else {
        refuse(format!("{what} should be one of [{}]", allowed.join(", ")))
    }
}

#[cfg(test)]
mod tests;
