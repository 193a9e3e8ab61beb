//! Rules for a task's log router, and for the containers that log to it. What their options may be the
//! specification knows.

use super::super::input::Definition;
use super::{one_of, refuse};
use crate::api::error::ApiResult;

pub(super) fn check(definition: &Definition) -> ApiResult<()> {
    let containers = &definition.container_definitions;
    let logs = containers.iter().any(|container| container.logs_to_router());
    let mut routers = containers.iter().filter_map(|c| Some((&c.name, c.firelens_configuration.as_ref()?)));
    let Some((name, router)) = routers.next() else {
        return if logs {
            refuse(
                "When awsfirelens log driver is specified in log configuration, a firelens configuration object must be configured in one of the containers.",
            )
        } else {
            Ok(())
        };
    };
    one_of(
        &format!("firelensConfiguration.type of container '{name}'"),
        &router.kind,
        &["fluentd", "fluentbit"],
    )?;
    if let Some((other, _)) = routers.next() {
        return refuse(format!(
            "Only one container of a task can have a firelensConfiguration, and '{name}' and '{other}' have one."
        ));
    }
    if !logs {
        return refuse(
            "When a firelensConfiguration object is specified, at least one container has to be configured with the awsfirelens log driver.",
        );
    }
    Ok(())
}
