//! Names who may be behind a failure of the engine's: it tells what its driver said, and seldom of which volume
//! or which driver that was.

use berth_core::ids::ContainerName;
use berth_core::spec::TaskSpec;
use berth_core::task::{Failure, FailureKind};

/// The failure to make or start that container, with the drivers that the engine needed for it, where one of
/// them may be the cause.
pub(super) fn named(mut failure: Failure, spec: &TaskSpec, container: &ContainerName) -> Failure {
    let Some(container) = spec.container(container) else { return failure };
    let says = |word: &str| failure.detail.to_ascii_lowercase().contains(word);
    let needs = match failure.kind {
        FailureKind::TimedOut => spec.outside_needs(container),
        FailureKind::Refused if says("log driver") || says("logging driver") => {
            container.outside_log().unwrap_or_default()
        }
        FailureKind::Refused if says("volume") || says("mount") || says("plugin") => {
            spec.outside_volumes(container).join(", ")
        }
        _ => String::new(),
    };
    if !needs.is_empty() {
        failure.detail = format!("{} (it needs {needs})", failure.detail);
    }
    failure
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use berth_core::ids::{Family, TaskArn};
    use berth_core::spec::{
        ContainerSpec, EngineVolume, LogConfiguration, MountPoint, NetworkMode, TaskFields, Volume,
        VolumeSource,
    };
    use berth_core::task::ErrorClass;
    use berth_core::units::{Mebibytes, Millis};

    use super::*;

    fn spec() -> TaskSpec {
        let volume = |name: &str, driver: Option<&str>| Volume {
            name: name.to_owned(),
            source: VolumeSource::Task(EngineVolume {
                driver: driver.map(str::to_owned),
                ..EngineVolume::default()
            }),
        };
        let mount = |volume: &str| MountPoint {
            volume: volume.to_owned(),
            path: format!("/{volume}"),
            read_only: false,
        };
        let mut app = ContainerSpec::minimal(ContainerName::new("app").unwrap(), "image", Mebibytes(4));
        app.mount_points = vec![mount("data"), mount("own")];
        app.log = Some(LogConfiguration {
            driver: "fluentd".to_owned(),
            options: BTreeMap::new(),
            secret_options: Vec::new(),
        });
        TaskSpec::try_from(TaskFields {
            arn: TaskArn::new(
                "arn:aws:ecs:eu-west-1:123456789012:task/blue/0123456789abcdef0123456789abcdef",
            )
            .unwrap(),
            family: Family::new("f").unwrap(),
            revision: 1,
            network_mode: NetworkMode::None,
            cpu: None,
            memory: None,
            containers: vec![app],
            attachment: None,
            pid_mode: None,
            ipc_mode: None,
            volumes: vec![volume("data", Some("rexray")), volume("own", None)],
            task_role: None,
            fault_injection: false,
        })
        .unwrap()
    }

    #[test]
    fn whoever_may_be_to_blame_is_named_and_nobody_else() {
        let app = ContainerName::new("app").unwrap();
        let told = |failure| named(failure, &spec(), &app).detail;
        let refused = |text: &str| told(Failure::refused(ErrorClass::CannotStartContainer, text));
        let late = told(Failure::timed_out("RUNNING", Millis::from_secs(45)));
        assert!(late.ends_with("(it needs volume data of driver rexray, log driver fluentd)"), "{late}");
        assert_eq!(
            refused("failed to initialize logging driver: refused"),
            "failed to initialize logging driver: refused (it needs log driver fluentd)"
        );
        assert_eq!(
            refused("error while mounting volume '': no answer"),
            "error while mounting volume '': no answer (it needs volume data of driver rexray)"
        );
        assert_eq!(refused("exec: \"/no\": not found"), "exec: \"/no\": not found");
    }
}
