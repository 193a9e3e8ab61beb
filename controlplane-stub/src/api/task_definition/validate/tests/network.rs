//! Of ports and names in each network mode.

use serde_json::{Value, json};

use super::{container, definition, pair, pair_within, with, within};
use crate::api::testing::Api;

fn ports(mappings: &Value) -> Value {
    with(&json!({"portMappings": mappings}))
}

fn ports_within(mode: &str, mappings: &Value) -> Value {
    within(mode, &json!({"portMappings": mappings}))
}

/// As many port ranges of two ports in one container.
fn ranges(count: u32) -> Value {
    let range = |n: u32| json!({"containerPortRange": format!("{}-{}", 1000 + 2 * n, 1001 + 2 * n)});
    ports(&(0..count).map(range).collect())
}

pub(super) fn refusals() -> Vec<(Value, &'static str)> {
    [single_ports(), port_ranges(), modes()].concat()
}

fn single_ports() -> Vec<(Value, &'static str)> {
    const CONTAINER_PORT: &str = "Invalid 'containerPort' setting for container 'app'.";
    const HOST_PORT: &str = "Invalid 'hostPort' setting for container 'app'.";
    vec![
        (ports(&json!([{}])), CONTAINER_PORT),
        (ports(&json!([{"containerPort": 0}])), CONTAINER_PORT),
        (ports(&json!([{"containerPort": -1}])), CONTAINER_PORT),
        (ports(&json!([{"containerPort": 65536}])), CONTAINER_PORT),
        (ports(&json!([{"containerPort": 80, "hostPort": -1}])), HOST_PORT),
        (ports(&json!([{"containerPort": 80, "hostPort": 65536}])), HOST_PORT),
        (
            ports(&json!([{"containerPort": 80, "protocol": "sctp"}])),
            "PortMapping.protocol of container 'app' should be one of [tcp, udp]",
        ),
        (
            ports(&json!([{"containerPort": 80, "appProtocol": "gopher"}])),
            "PortMapping.appProtocol of container 'app' should be one of [http, http2, grpc]",
        ),
        (
            ports_within("awsvpc", &json!([{"containerPort": 80, "hostPort": 81}])),
            "When networkMode=awsvpc, the host ports and container ports in port mappings must match.",
        ),
        (
            ports_within("host", &json!([{"containerPort": 80, "hostPort": 81}])),
            "When networkMode=host, the host ports and container ports in port mappings must match.",
        ),
        (
            ports_within("none", &json!([{"containerPort": 80}])),
            "Port mappings are not supported when networkMode=none.",
        ),
        (
            pair(
                json!({"portMappings": [{"containerPort": 80, "hostPort": 3000}]}),
                json!({"portMappings": [{"containerPort": 81, "hostPort": 3000}]}),
            ),
            "TCP host port '3000' is mapped multiple times in task.",
        ),
        (
            pair_within(
                "awsvpc",
                json!({"portMappings": [{"containerPort": 53, "protocol": "udp"}]}),
                json!({"portMappings": [{"containerPort": 53, "protocol": "udp"}]}),
            ),
            "UDP host port '53' is mapped multiple times in task.",
        ),
    ]
}

fn port_ranges() -> Vec<(Value, &'static str)> {
    const WRITTEN: &str =
        "Invalid 'containerPortRange' setting for container 'app'. It is written like 8000-8010.";
    const ALONE: &str = "Invalid 'containerPortRange' setting for container 'app'. It excludes 'containerPort' and 'hostPort'.";
    const ONE_PORT: &str = "Invalid 'containerPortRange' setting for container 'app'. The first port must be less than the last one.";
    let range = |range: &str| ports(&json!([{"containerPortRange": range}]));
    vec![
        (range("90-80"), WRITTEN),
        (range("0-80"), WRITTEN),
        (range("65530-65536"), WRITTEN),
        (range("http-https"), WRITTEN),
        (range("80-80"), ONE_PORT),
        (range("80"), ONE_PORT),
        (
            range("1000-1100"),
            "Invalid 'containerPortRange' setting for container 'app'. It may hold at most 100 ports.",
        ),
        (ranges(101), "Invalid 'containerPortRange' setting for container 'app'. At most 100 port ranges."),
        (ports(&json!([{"containerPortRange": "80-81", "hostPort": 80}])), ALONE),
        (ports(&json!([{"containerPortRange": "80-81", "containerPort": 80}])), ALONE),
        (
            ports_within("host", &json!([{"containerPortRange": "80-81"}])),
            "Invalid 'containerPortRange' setting for container 'app'. It needs the network mode bridge or awsvpc.",
        ),
        (
            pair_within(
                "awsvpc",
                json!({"portMappings": [{"containerPortRange": "80-82"}]}),
                json!({"portMappings": [{"containerPort": 82}]}),
            ),
            "TCP host port '82' is mapped multiple times in task.",
        ),
    ]
}

fn modes() -> Vec<(Value, &'static str)> {
    vec![
        (within("awsvpc", &json!({"links": ["x"]})), "Links are not supported when networkMode=awsvpc."),
        (within("host", &json!({"links": ["x"]})), "Links are not supported when networkMode=host."),
        (within("none", &json!({"links": ["x"]})), "Links are not supported when networkMode=none."),
        (
            within("awsvpc", &json!({"hostname": "h"})),
            "hostname is not supported on container when networkMode=awsvpc.",
        ),
        (
            within("awsvpc", &json!({"dnsServers": ["1.1.1.1"]})),
            "dnsServers is not supported on container when networkMode=awsvpc.",
        ),
        (
            within("awsvpc", &json!({"dnsSearchDomains": ["example.com"]})),
            "dnsSearchDomains is not supported on container when networkMode=awsvpc.",
        ),
        (
            within("awsvpc", &json!({"extraHosts": [{"hostname": "h", "ipAddress": "10.0.0.1"}]})),
            "extraHosts is not supported on container when networkMode=awsvpc.",
        ),
    ]
}

pub(super) fn acceptances() -> Vec<Value> {
    vec![
        ports(&json!([{"containerPort": 1}, {"containerPort": 65535, "hostPort": 65535}])),
        // A name server listens on both.
        ports(&json!([
            {"containerPort": 53, "hostPort": 53}, {"containerPort": 53, "hostPort": 53, "protocol": "udp"}
        ])),
        ports_within("awsvpc", &json!([{"containerPort": 80}, {"containerPort": 81, "hostPort": 81}])),
        ports_within(
            "host",
            &json!([{"containerPort": 80, "hostPort": 0}, {"containerPort": 81, "hostPort": 81}]),
        ),
        // Where the engine chooses the host ports, containers may have the same ones.
        pair(
            json!({"portMappings": [{"containerPort": 80}, {"containerPortRange": "90-91"}]}),
            json!({"portMappings": [{"containerPort": 80}, {"containerPortRange": "90-91"}]}),
        ),
        ports_within("awsvpc", &json!([{"containerPortRange": "1000-1099"}])),
        ranges(100),
        within("none", &json!({"hostname": "h", "dnsServers": ["1.1.1.1"]})),
        definition(&json!({"networkMode": "awsvpc"}), json!([container(&json!({"links": []}))])),
    ]
}

#[tokio::test]
async fn a_container_port_is_mapped_once() {
    let api = Api::start().await;
    for (mappings, port) in [
        (json!([{"containerPort": 80}, {"containerPort": 80, "hostPort": 81}]), 80),
        (json!([{"containerPortRange": "80-82"}, {"containerPort": 82}]), 82),
        (json!([{"containerPortRange": "80-82"}, {"containerPortRange": "81-83"}]), 81),
    ] {
        let message =
            format!("Container port {port} is used in more than one port mapping for container app");
        let refused = api.refused("RegisterTaskDefinition", ports(&mappings)).await;
        assert_eq!(refused, ("InvalidParameterException".to_owned(), message), "{mappings}");
    }
}
