//! Which attributes a task definition requires of an instance, and which launch types it suits.
//!
//! The names are those that ECS agents register. Where ECS has none, because every ECS agent can
//! do it, the name is `berth.capability.<feature>`: an agent that cannot do it yet is then never
//! given such a task.

use std::collections::BTreeSet;

use berth_core::spec::{BUFFER_LIMIT, router_owner};

use super::input::{Container, Definition, LinuxParameters, Secret, Volume};
use super::validate;
use crate::model::task_definition::RequiredAttribute;

const ECS: &str = "ecs.capability.";
const LEGACY: &str = "com.amazonaws.ecs.capability.";
const BERTH: &str = "berth.capability.";

/// Everything that an instance must have to run the definition, sorted by name.
#[must_use]
pub(super) fn required(definition: &Definition) -> Vec<RequiredAttribute> {
    let mut names = BTreeSet::new();
    of_task(definition, &mut names);
    for volume in &definition.volumes {
        names.insert(of_volume(volume));
    }
    for container in &definition.container_definitions {
        of_container(container, definition, &mut names);
    }
    let mut required: Vec<RequiredAttribute> =
        names.into_iter().map(|name| RequiredAttribute { name, value: None }).collect();
    if let Some(platform) = &definition.runtime_platform {
        let architecture = platform
            .cpu_architecture
            .as_ref()
            .map(|text| ("ecs.cpu-architecture", text.to_ascii_lowercase()));
        let family = platform.operating_system_family.as_ref().filter(|family| *family != "LINUX");
        let family = family.map(|family| ("ecs.os-family", family.clone()));
        for (name, value) in architecture.into_iter().chain(family) {
            required.push(RequiredAttribute { name: name.to_owned(), value: Some(value) });
        }
    }
    required.sort();
    required
}

/// The launch types that the definition is valid for.
#[must_use]
pub(super) fn compatibilities(definition: &Definition) -> Vec<String> {
    let mut kinds = vec!["EC2".to_owned()];
    if definition.network_mode() != "awsvpc" {
        kinds.insert(0, "EXTERNAL".to_owned());
    }
    if validate::suits_fargate(definition) {
        kinds.push("FARGATE".to_owned());
    }
    kinds
}

fn of_task(definition: &Definition, names: &mut BTreeSet<String>) {
    let mut need = |prefix: &str, name: &str, needed: bool| {
        if needed {
            names.insert(format!("{prefix}{name}"));
        }
    };
    let has_role = definition.task_role_arn.as_ref().is_some_and(|role| !role.is_empty());
    let on_host = definition.network_mode() == "host";
    need(ECS, "task-eni", definition.network_mode() == "awsvpc");
    need(ECS, "task-cpu-mem-limit", definition.cpu.is_some() || definition.memory.is_some());
    need(LEGACY, "task-iam-role", has_role && !on_host);
    need(LEGACY, "task-iam-role-network-host", has_role && on_host);
    let modes = || [&definition.pid_mode, &definition.ipc_mode].into_iter().flatten();
    need(ECS, "pid-ipc-namespace-sharing", modes().any(|mode| mode == "task"));
    need(BERTH, "host-namespaces", modes().any(|mode| mode != "task"));
    need(ECS, "aws-appmesh", definition.proxy_configuration.is_some());
    need(ECS, "task-eia", !definition.inference_accelerators.is_empty());
    need(ECS, "fault-injection", definition.fault_injection);
    need(BERTH, "ephemeral-storage", definition.ephemeral_storage.is_some());
    need(BERTH, "trusted-execution", definition.trusted_execution_configuration.is_some());
}

fn of_volume(volume: &Volume) -> String {
    if let Some(docker) = &volume.docker_volume_configuration {
        // An attribute's name has no colon, and a plug-in's may have a tag.
        let driver = docker.driver.as_deref().unwrap_or("local").replace(':', ".");
        format!("{LEGACY}docker-plugin.{driver}")
    } else if let Some(efs) = &volume.efs_volume_configuration {
        let authorised = efs.get("authorizationConfig").is_some() || efs.get("transitEncryption").is_some();
        format!("{ECS}{}", if authorised { "efsAuth" } else { "efs" })
    } else if volume.fsx_windows_file_server_volume_configuration.is_some() {
        format!("{ECS}fsxWindowsFileServer")
    } else {
        format!("{BERTH}volumes")
    }
}

fn of_container(container: &Container, definition: &Definition, names: &mut BTreeSet<String>) {
    let mut need = |prefix: &str, name: &str, needed: bool| {
        if needed {
            names.insert(format!("{prefix}{name}"));
        }
    };
    need(ECS, "container-ordering", !container.depends_on.is_empty());
    need(ECS, "container-health-check", container.health_check.is_some());
    need(ECS, "env-files.s3", !container.environment_files.is_empty());
    need(
        ECS,
        "container-restart-policy",
        container.restart_policy.as_ref().is_some_and(|p| p.enabled == Some(true)),
    );
    need(
        ECS,
        "network.container-port-range",
        container.port_mappings.iter().any(|p| p.container_port_range.is_some()),
    );
    need(ECS, "gmsa", !container.credential_specs.is_empty());
    need(ECS, "private-registry-authentication.secretsmanager", container.repository_credentials.is_some());
    need(LEGACY, "privileged-container", container.privileged);
    need(BERTH, "volumes-from", !container.volumes_from.is_empty());
    need(BERTH, "system-controls", !container.system_controls.is_empty());
    need(BERTH, "disable-networking", container.disable_networking);
    for requirement in &container.resource_requirements {
        need("", &requirement.capability(), true);
    }
    if let Some(firelens) = &container.firelens_configuration {
        need(ECS, &format!("firelens.{}", firelens.kind), true);
        if let Some(kind) = firelens.options.get("config-file-type") {
            need(ECS, &format!("firelens.options.config.{kind}"), true);
        }
        let owner = container.user.as_deref().and_then(router_owner);
        need(ECS, "firelens.non-root-user", owner.is_some_and(|(user, _)| user != 0));
    }
    if let Some(log) = &container.log_configuration {
        need(LEGACY, &format!("logging-driver.{}", log.log_driver), true);
        // The engine's default driver without options is what containers get unasked.
        let configured =
            log.log_driver != "json-file" || !log.options.is_empty() || !log.secret_options.is_empty();
        need(BERTH, "log-configuration", configured);
        let limited = container.logs_to_router() && log.options.contains_key(BUFFER_LIMIT);
        need(ECS, "logging-driver.awsfirelens.log-driver-buffer-limit", limited);
        let has_role = definition.execution_role_arn.is_some();
        need(ECS, "execution-role-awslogs", has_role && log.log_driver == "awslogs");
        for secret in &log.secret_options {
            need(ECS, &format!("secrets.{}.bootstrap.log-driver", keeper(secret)), true);
        }
    }
    for secret in &container.secrets {
        need(ECS, &format!("secrets.{}.environment-variables", keeper(secret)), true);
    }
    for option in &container.docker_security_options {
        match option.split(':').next().unwrap_or_default() {
            "label" => need(LEGACY, "selinux", true),
            "apparmor" => need(LEGACY, "apparmor", true),
            _ => need(BERTH, "docker-security-options", true),
        }
    }
    for member in container.linux_parameters.as_ref().map(linux_members).unwrap_or_default() {
        need(BERTH, &format!("linux-parameters.{member}"), true);
    }
}

/// The service that keeps a secret.
fn keeper(secret: &Secret) -> &'static str {
    if secret.value_from.contains(":secretsmanager:") { "asm" } else { "ssm" }
}

/// The members that ask for more than the default.
fn linux_members(linux: &LinuxParameters) -> Vec<&'static str> {
    let capabilities = linux.capabilities.as_ref().is_some_and(|c| !c.add.is_empty() || !c.drop.is_empty());
    [
        ("capabilities", capabilities),
        ("devices", !linux.devices.is_empty()),
        ("init-process", linux.init_process_enabled),
        ("shared-memory", linux.shared_memory_size.is_some_and(|size| size > 0)),
        ("swap", linux.max_swap.is_some() || linux.swappiness.is_some()),
        ("tmpfs", !linux.tmpfs.is_empty()),
    ]
    .into_iter()
    .filter_map(|(member, needed)| needed.then_some(member))
    .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn names(body: &Value) -> Vec<String> {
        let definition = Definition::read(body.as_object().unwrap()).unwrap();
        required(&definition)
            .into_iter()
            .map(|a| a.value.as_ref().map_or_else(|| a.name.clone(), |v| format!("{}={v}", a.name)))
            .collect()
    }

    #[test]
    fn each_feature_requires_its_attribute() {
        let container = |member: &str, value: Value| json!({"containerDefinitions": [{"name": "a", "image": "i", member: value}]});
        for (body, expected) in [
            (json!({"cpu": "256"}), "ecs.capability.task-cpu-mem-limit"),
            (json!({"networkMode": "awsvpc"}), "ecs.capability.task-eni"),
            (json!({"taskRoleArn": "r"}), "com.amazonaws.ecs.capability.task-iam-role"),
            (
                json!({"taskRoleArn": "r", "networkMode": "host"}),
                "com.amazonaws.ecs.capability.task-iam-role-network-host",
            ),
            (json!({"pidMode": "task"}), "ecs.capability.pid-ipc-namespace-sharing"),
            (json!({"ipcMode": "host"}), "berth.capability.host-namespaces"),
            (json!({"volumes": [{"name": "v"}]}), "berth.capability.volumes"),
            (
                json!({"volumes": [{"name": "v", "dockerVolumeConfiguration": {"driver": "rexray"}}]}),
                "com.amazonaws.ecs.capability.docker-plugin.rexray",
            ),
            (
                json!({"volumes": [{"name": "v", "dockerVolumeConfiguration": {"driver": "vieux/sshfs:latest"}}]}),
                "com.amazonaws.ecs.capability.docker-plugin.vieux/sshfs.latest",
            ),
            (
                json!({"volumes": [{"name": "v", "efsVolumeConfiguration": {"fileSystemId": "fs"}}]}),
                "ecs.capability.efs",
            ),
            (json!({"runtimePlatform": {"cpuArchitecture": "ARM64"}}), "ecs.cpu-architecture=arm64"),
            (container("privileged", json!(true)), "com.amazonaws.ecs.capability.privileged-container"),
            (container("restartPolicy", json!({"enabled": true})), "ecs.capability.container-restart-policy"),
            (
                container("logConfiguration", json!({"logDriver": "json-file"})),
                "com.amazonaws.ecs.capability.logging-driver.json-file",
            ),
            (
                container(
                    "secrets",
                    json!([{"name": "S", "valueFrom": "arn:aws:secretsmanager:r:1:secret:x"}]),
                ),
                "ecs.capability.secrets.asm.environment-variables",
            ),
            (
                container("secrets", json!([{"name": "S", "valueFrom": "parameter"}])),
                "ecs.capability.secrets.ssm.environment-variables",
            ),
            (
                container("linuxParameters", json!({"initProcessEnabled": true})),
                "berth.capability.linux-parameters.init-process",
            ),
            (
                container("resourceRequirements", json!([{"type": "GPU", "value": "1"}])),
                "berth.capability.gpu",
            ),
            (
                container("firelensConfiguration", json!({"type": "fluentd"})),
                "ecs.capability.firelens.fluentd",
            ),
            (
                container("dockerSecurityOptions", json!(["no-new-privileges"])),
                "berth.capability.docker-security-options",
            ),
        ] {
            assert_eq!(names(&body), [expected], "{body}");
        }
    }

    #[test]
    fn a_log_driver_that_is_configured_requires_more_than_its_name() {
        for log in [
            json!({"logDriver": "awslogs"}),
            json!({"logDriver": "json-file", "options": {"max-size": "1m"}}),
        ] {
            let driver = log["logDriver"].as_str().unwrap();
            let body =
                json!({"containerDefinitions": [{"name": "a", "image": "i", "logConfiguration": log}]});
            let expected = [
                "berth.capability.log-configuration".to_owned(),
                format!("com.amazonaws.ecs.capability.logging-driver.{driver}"),
            ];
            assert_eq!(names(&body), expected);
        }
    }

    #[test]
    fn a_log_router_and_the_way_to_it_require_each_of_their_features() {
        let body = json!({"containerDefinitions": [
            {
                "name": "log", "image": "i", "user": "1000:1000",
                "firelensConfiguration": {"type": "fluentbit", "options": {
                    "config-file-type": "s3", "config-file-value": "arn:aws:s3:::bucket/fluent.conf"
                }}
            },
            {"name": "a", "image": "i", "logConfiguration": {
                "logDriver": "awsfirelens", "options": {"Name": "http", "log-driver-buffer-limit": "1000"},
                "secretOptions": [{"name": "token", "valueFrom": "parameter"}]
            }}
        ]});
        let expected = [
            "berth.capability.log-configuration",
            "com.amazonaws.ecs.capability.logging-driver.awsfirelens",
            "ecs.capability.firelens.fluentbit",
            "ecs.capability.firelens.non-root-user",
            "ecs.capability.firelens.options.config.s3",
            "ecs.capability.logging-driver.awsfirelens.log-driver-buffer-limit",
            "ecs.capability.secrets.ssm.bootstrap.log-driver",
        ];
        assert_eq!(names(&body), expected);
    }

    #[test]
    fn harmless_defaults_require_nothing() {
        let body = json!({"networkMode": "bridge", "volumes": [], "containerDefinitions": [{
            "name": "a", "image": "i", "links": [], "mountPoints": [], "volumesFrom": [], "systemControls": [], "secrets": [],
            "linuxParameters": {"initProcessEnabled": false, "capabilities": {"add": [], "drop": []}},
            "restartPolicy": {"enabled": false}, "privileged": false, "disableNetworking": false
        }]});
        assert_eq!(names(&body), Vec::<String>::new());
    }
}
