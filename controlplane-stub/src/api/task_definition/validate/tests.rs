//! Every rule and the words in which it is reported; the tables are divided as the rules are.

mod container;
mod dependency;
mod fargate;
mod firelens;
mod network;
mod task;

use serde_json::{Value, json};

use crate::api::testing::Api;

/// One small container, changed by `members`; null takes one away.
fn container(members: &Value) -> Value {
    merged(json!({"name": "app", "image": "busybox", "memory": 64}), members)
}

fn merged(mut whole: Value, members: &Value) -> Value {
    let map = whole.as_object_mut().unwrap();
    map.extend(members.as_object().unwrap().clone());
    map.retain(|_, value| !value.is_null());
    whole
}

fn definition(members: &Value, containers: Value) -> Value {
    merged(json!({"family": "f", "containerDefinitions": containers}), members)
}

/// A definition with `members` and one small container.
fn task(members: &Value) -> Value {
    definition(members, json!([container(&json!({}))]))
}

/// A definition whose only container has `members`.
fn with(members: &Value) -> Value {
    definition(&json!({}), json!([container(members)]))
}

/// A definition in a network mode whose only container has `members`.
fn within(mode: &str, members: &Value) -> Value {
    definition(&json!({"networkMode": mode}), json!([container(members)]))
}

/// A definition whose containers `a` and `b` have members of their own.
fn pair(first: Value, second: Value) -> Value {
    pair_within("bridge", first, second)
}

fn pair_within(mode: &str, mut first: Value, mut second: Value) -> Value {
    first["name"] = json!("a");
    second["name"] = json!("b");
    definition(&json!({"networkMode": mode}), json!([container(&first), container(&second)]))
}

#[tokio::test]
async fn every_rule_is_reported_in_the_words_of_ecs() {
    let api = Api::start().await;
    let refusals = task::refusals()
        .into_iter()
        .chain(container::refusals())
        .chain(network::refusals())
        .chain(dependency::refusals())
        .chain(firelens::refusals())
        .chain(fargate::refusals());
    for (body, message) in refusals {
        let refused = api.refused("RegisterTaskDefinition", body.clone()).await;
        assert_eq!(refused, ("ClientException".to_owned(), message.to_owned()), "{body}");
    }
}

#[tokio::test]
async fn what_is_just_within_the_rules_is_registered() {
    let api = Api::start().await;
    let acceptances = task::acceptances()
        .into_iter()
        .chain(container::acceptances())
        .chain(network::acceptances())
        .chain(dependency::acceptances())
        .chain(firelens::acceptances());
    for body in acceptances {
        if let Err(error) = api.send("RegisterTaskDefinition", body.clone()).await {
            panic!("{body}: {error}");
        }
    }
}
