//! What ECS fills into a task definition, so that describing one shows it.

use serde_json::{Map, Value, json};

/// Writes task `cpu` and `memory` in plain numbers: `1 vCPU` is `1024`, `2 GB` is `2048`. What is
/// no amount stays as it is, for the validation to refuse.
pub(in crate::api) fn normalise_sizes(body: &mut Map<String, Value>) {
    for (member, unit) in [("cpu", "vcpu"), ("memory", "gb")] {
        if let Some(Value::String(text)) = body.get_mut(member)
            && let Some(plain) = normalised(text, unit)
        {
            *text = plain;
        }
    }
}

fn normalised(text: &str, unit: &str) -> Option<String> {
    let lower = text.trim().to_ascii_lowercase();
    if let Some(amount) = lower.strip_suffix(unit) {
        let thousandths = amount.trim().parse::<f64>().ok().filter(|a| (0.0..=1e6).contains(a))? * 1024.0;
        return (thousandths.fract() == 0.0).then(|| format!("{thousandths:.0}"));
    }
    lower.parse::<u32>().ok().map(|amount| amount.to_string())
}

/// Fills in the defaults of the whole definition and of every container.
pub(super) fn fill(body: &mut Map<String, Value>) {
    default(body, "networkMode", || json!("bridge"));
    for member in ["volumes", "placementConstraints"] {
        default(body, member, || json!([]));
    }
    let mode = body.get("networkMode").and_then(Value::as_str).unwrap_or_default().to_owned();
    if let Some(volumes) = body.get_mut("volumes").and_then(Value::as_array_mut) {
        for volume in volumes.iter_mut().filter_map(Value::as_object_mut) {
            fill_volume(volume);
        }
    }
    if let Some(containers) = body.get_mut("containerDefinitions").and_then(Value::as_array_mut) {
        for container in containers.iter_mut().filter_map(Value::as_object_mut) {
            fill_container(container, &mode);
        }
    }
}

fn fill_container(container: &mut Map<String, Value>, mode: &str) {
    default(container, "cpu", || json!(0));
    default(container, "essential", || json!(true));
    for member in ["environment", "mountPoints", "portMappings", "volumesFrom", "systemControls"] {
        default(container, member, || json!([]));
    }
    if let Some(ports) = container.get_mut("portMappings").and_then(Value::as_array_mut) {
        for port in ports.iter_mut().filter_map(Value::as_object_mut) {
            default(port, "protocol", || json!("tcp"));
            // A range takes its host ports as they are free; it shows none.
            if !port.contains_key("containerPortRange") {
                let same = port.get("containerPort").cloned().unwrap_or_default();
                if mode == "bridge" {
                    default(port, "hostPort", || json!(0));
                } else if port.get("hostPort").is_none_or(|host| host == 0) {
                    port.insert("hostPort".to_owned(), same);
                }
            }
        }
    }
    if let Some(check) = container.get_mut("healthCheck").and_then(Value::as_object_mut) {
        for (member, value) in [("interval", 30), ("timeout", 5), ("retries", 3)] {
            default(check, member, || json!(value));
        }
    }
    // A log router makes a socket that the engine writes to.
    if container.contains_key("firelensConfiguration") {
        default(container, "user", || json!("0"));
    }
    if let Some(policy) = container.get_mut("restartPolicy").and_then(Value::as_object_mut) {
        default(policy, "restartAttemptPeriod", || json!(300));
    }
}

fn fill_volume(volume: &mut Map<String, Value>) {
    let host =
        !["dockerVolumeConfiguration", "efsVolumeConfiguration", "fsxWindowsFileServerVolumeConfiguration"]
            .iter()
            .chain(&["s3filesVolumeConfiguration", "configuredAtLaunch"])
            .any(|kind| volume.contains_key(*kind));
    if host {
        default(volume, "host", || json!({}));
    }
    if let Some(docker) = volume.get_mut("dockerVolumeConfiguration").and_then(Value::as_object_mut) {
        default(docker, "scope", || json!("task"));
    }
}

fn default(map: &mut Map<String, Value>, member: &str, value: impl FnOnce() -> Value) {
    if !map.contains_key(member) {
        map.insert(member.to_owned(), value());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(mut body: Value) -> Value {
        let map = body.as_object_mut().unwrap();
        normalise_sizes(map);
        fill(map);
        body
    }

    #[test]
    fn a_small_definition_shows_what_ecs_fills_in() {
        let shown = filled(json!({"family": "f", "containerDefinitions": [
            {"name": "a", "image": "i", "memory": 64, "portMappings": [{"containerPort": 80}], "healthCheck": {"command": ["CMD", "x"]}}
        ]}));
        assert_eq!(
            shown,
            json!({"family": "f", "networkMode": "bridge", "volumes": [], "placementConstraints": [], "containerDefinitions": [{
                "name": "a", "image": "i", "memory": 64, "cpu": 0, "essential": true, "environment": [], "mountPoints": [],
                "volumesFrom": [], "systemControls": [],
                "portMappings": [{"containerPort": 80, "hostPort": 0, "protocol": "tcp"}],
                "healthCheck": {"command": ["CMD", "x"], "interval": 30, "timeout": 5, "retries": 3}
            }]})
        );
    }

    #[test]
    fn host_ports_are_the_container_ports_where_there_is_no_bridge() {
        for mode in ["host", "awsvpc"] {
            for port in [json!({"containerPort": 80}), json!({"containerPort": 80, "hostPort": 0})] {
                let shown =
                    filled(json!({"networkMode": mode, "containerDefinitions": [{"portMappings": [port]}]}));
                assert_eq!(shown["containerDefinitions"][0]["portMappings"][0]["hostPort"], 80, "{mode}");
            }
        }
    }

    #[test]
    fn a_restart_policy_and_a_docker_volume_show_their_defaults() {
        let shown = filled(json!({
            "volumes": [{"name": "v", "dockerVolumeConfiguration": {}}, {"name": "w"}],
            "containerDefinitions": [{"name": "a", "restartPolicy": {"enabled": true}}]
        }));
        let volumes =
            json!([{"name": "v", "dockerVolumeConfiguration": {"scope": "task"}}, {"name": "w", "host": {}}]);
        assert_eq!(shown["volumes"], volumes);
        let policy = json!({"enabled": true, "restartAttemptPeriod": 300});
        assert_eq!(shown["containerDefinitions"][0]["restartPolicy"], policy);
    }

    #[test]
    fn a_log_router_is_roots_unless_it_says_whose() {
        let shown = filled(json!({"containerDefinitions": [
            {"name": "a", "firelensConfiguration": {"type": "fluentd"}},
            {"name": "b", "firelensConfiguration": {"type": "fluentd"}, "user": "1000"},
            {"name": "c"}
        ]}));
        let users: Vec<&Value> =
            shown["containerDefinitions"].as_array().unwrap().iter().map(|c| &c["user"]).collect();
        assert_eq!(users, [&json!("0"), &json!("1000"), &Value::Null]);
    }

    #[test]
    fn sizes_in_words_become_numbers() {
        for (cpu, memory, plain) in [
            ("1 vCPU", "1 GB", ("1024", "1024")),
            (".25 vcpu", "0.5GB", ("256", "512")),
            ("512", "3072", ("512", "3072")),
            ("x", "-1", ("x", "-1")),
        ] {
            let shown = filled(json!({"cpu": cpu, "memory": memory}));
            assert_eq!((shown["cpu"].as_str().unwrap(), shown["memory"].as_str().unwrap()), plain);
        }
    }
}
