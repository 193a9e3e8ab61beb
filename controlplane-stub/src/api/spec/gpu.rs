//! Whole GPUs of a container.

use crate::api::error::{ApiError, ApiResult};
use crate::api::task_definition::input::{Container, ResourceRequirement};

/// How many a container wants: as the override says, else as the definition does.
///
/// # Errors
/// `InvalidParameterException` for an override that is none.
pub(super) fn count(container: &Container, changed: &[ResourceRequirement]) -> ApiResult<u32> {
    if let Some(problem) = changed.iter().find_map(|requirement| requirement.problem(&container.name)) {
        return Err(ApiError::invalid_parameter(problem));
    }
    let of = |requirements: &[ResourceRequirement]| {
        requirements.iter().filter_map(ResourceRequirement::gpus).reduce(u32::saturating_add)
    };
    Ok(of(changed).or_else(|| of(&container.resource_requirements)).unwrap_or_default())
}
