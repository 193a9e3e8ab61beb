//! Of what containers wait for.

use serde_json::{Value, json};

use super::{container, definition, pair, with};

fn after(name: &str, condition: &str) -> Value {
    json!({"dependsOn": [{"containerName": name, "condition": condition}]})
}

pub(super) fn refusals() -> Vec<(Value, &'static str)> {
    const ESSENTIAL: &str =
        "A dependency container with SUCCESS or COMPLETE condition cannot be an essential container";
    const CYCLE: &str = "Container dependencies should not have a cycle";
    const LINK_CYCLE: &str = "Container links should not have a cycle";
    let ring = ["a", "b", "c"].into_iter().zip(["b", "c", "a"]).map(|(name, next)| {
        let mut members = after(next, "START");
        members["name"] = json!(name);
        container(&members)
    });
    vec![
        (with(&after("x", "START")), "Cannot depend on container + 'x' because it does not exist"),
        (pair(after("b", "SUCCESS"), json!({})), ESSENTIAL),
        (pair(after("b", "COMPLETE"), json!({})), ESSENTIAL),
        (
            pair(after("b", "HEALTHY"), json!({})),
            "Container 'a' depends on container 'b' being HEALTHY, but that one has no health check.",
        ),
        (
            pair(after("b", "SOON"), json!({})),
            "ContainerDependency.condition should be one of [START, COMPLETE, SUCCESS, HEALTHY]",
        ),
        (with(&json!({"links": ["x:y"]})), "Container 'app' links to container 'x', which does not exist."),
        (
            with(&json!({"volumesFrom": [{"sourceContainer": "x"}]})),
            "Container 'app' takes volumes from container 'x', which does not exist.",
        ),
        (with(&after("app", "START")), CYCLE),
        (definition(&json!({}), ring.collect()), CYCLE),
        (pair(after("b", "START"), json!({"volumesFrom": [{"sourceContainer": "a"}]})), CYCLE),
        (pair(after("b", "START"), json!({"links": ["a"]})), CYCLE),
        (with(&json!({"volumesFrom": [{"sourceContainer": "app"}]})), CYCLE),
        (pair(json!({"links": ["b"]}), json!({"links": ["a:alias"]})), LINK_CYCLE),
        (with(&json!({"links": ["app"]})), LINK_CYCLE),
    ]
}

pub(super) fn acceptances() -> Vec<Value> {
    let check = json!({"command": ["CMD", "true"]});
    vec![
        pair(after("b", "START"), json!({})),
        pair(after("b", "COMPLETE"), json!({"essential": false})),
        pair(after("b", "SUCCESS"), json!({"essential": false})),
        pair(after("b", "HEALTHY"), json!({"healthCheck": check})),
        pair(json!({"links": ["b:alias"], "volumesFrom": [{"sourceContainer": "b"}]}), json!({})),
    ]
}
