//! Rules of Fargate, checked for definitions that require it.

use super::super::input::Definition;
use super::refuse;
use crate::api::error::ApiResult;

/// CPU units, then least, greatest and step of the memory in MiB.
const SIZES: [(u32, u32, u32, u32); 6] = [
    (512, 1024, 4096, 1024),
    (1024, 2048, 8192, 1024),
    (2048, 4096, 16_384, 1024),
    (4096, 8192, 30_720, 1024),
    (8192, 16_384, 61_440, 4096),
    (16_384, 32_768, 122_880, 8192),
];

pub(super) fn check(definition: &Definition) -> ApiResult<()> {
    let Some(cpu) = definition.cpu() else {
        return refuse("Fargate requires that 'cpu' be defined at the task level.");
    };
    let Some(memory) = definition.memory() else {
        return refuse("Fargate requires that 'memory' be defined at the task level.");
    };
    if definition.network_mode() != "awsvpc" {
        return refuse("Fargate only supports network mode ‘awsvpc’.");
    }
    if !is_size(cpu, memory) {
        return refuse(format!(
            "No Fargate configuration exists for given values: {cpu} CPU, {memory} memory. See the Amazon ECS documentation for the valid values."
        ));
    }
    if definition.pid_mode.as_deref() == Some("host") {
        return refuse(
            "Tasks using the Fargate launch type do not support pidMode 'host'. The supported value for pidMode is 'task'.",
        );
    }
    if definition.container_definitions.iter().any(|c| c.privileged) {
        return refuse("Tasks using the Fargate launch type do not support privileged containers.");
    }
    let routers = definition.container_definitions.iter().filter_map(|c| c.firelens_configuration.as_ref());
    if routers.filter_map(|router| router.options.get("config-file-type")).any(|kind| kind != "file") {
        return refuse("Tasks using the Fargate launch type only support the config-file-type 'file'.");
    }
    if definition.ephemeral_storage.as_ref().is_some_and(|storage| !(20..=200).contains(&storage.size)) {
        return refuse("Invalid 'ephemeralStorage' setting for task. It must be between 20 and 200 GiB.");
    }
    Ok(())
}

fn is_size(cpu: u32, memory: u32) -> bool {
    if cpu == 256 {
        return [512, 1024, 2048].contains(&memory);
    }
    SIZES.iter().any(|&(size, least, greatest, step)| {
        size == cpu && (least..=greatest).contains(&memory) && (memory - least).is_multiple_of(step)
    })
}
