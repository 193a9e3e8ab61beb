//! Tests of what goes over the wire, whatever the operation.

use std::sync::Arc;

use axum::body::Bytes;
use axum::http::{HeaderMap, Request};
use http_body_util::{BodyExt, Full};
use serde_json::{Value, json};

use super::{MAX_BODY, TARGET_PREFIX, answer};
use crate::agents::listener::AgentAddress;
use crate::api::account::Settings;
use crate::api::testing;
use crate::simulated::{Dial, Simulated};
use crate::state::{AccessKey, ApiState};

const PEER: ([u8; 4], u16) = ([127, 0, 0, 1], 4000);

async fn send_from(
    state: &ApiState,
    peer: ([u8; 4], u16),
    request: Request<Full<Bytes>>,
) -> (u16, HeaderMap, Value) {
    let response = answer(state, &Settings::default(), peer.into(), request).await;
    let (head, body) = response.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    (head.status.as_u16(), head.headers, serde_json::from_slice(&body).unwrap())
}

async fn send(state: &ApiState, request: Request<Full<Bytes>>) -> (u16, HeaderMap, Value) {
    send_from(state, PEER, request).await
}

fn post(operation: &str, body: impl Into<Bytes>) -> Request<Full<Bytes>> {
    let target = format!("{TARGET_PREFIX}{operation}");
    Request::post("/").header("x-amz-target", target).body(Full::new(body.into())).unwrap()
}

#[tokio::test]
async fn an_answer_has_the_content_type_and_a_request_id() {
    let (state, _tracker) = testing::state().await;
    let (status, headers, body) = send(&state, post("ListClusters", "{}")).await;
    assert_eq!(
        (status, &body),
        (200, &json!({"clusterArns": ["arn:aws:ecs:us-east-1:123456789012:cluster/default"]}))
    );
    assert_eq!(headers["content-type"], "application/x-amz-json-1.1");
    assert_eq!(headers["x-amzn-requestid"].len(), 36);
}

#[tokio::test]
async fn what_is_no_operation_is_refused_clearly() {
    let (state, _tracker) = testing::state().await;
    let plain = |request: axum::http::request::Builder| request.body(Full::default()).unwrap();
    for (request, status, code) in [
        (post("Fly", "{}"), 400, "UnknownOperationException"),
        (post("", "{}"), 400, "UnknownOperationException"),
        (plain(Request::post("/")), 400, "UnknownOperationException"),
        (plain(Request::get("/")), 405, "UnknownOperationException"),
        (plain(Request::delete("/")), 405, "UnknownOperationException"),
        (plain(Request::post("/x")), 404, "UnknownOperationException"),
        (plain(Request::post("/dev/reset")), 404, "UnknownOperationException"),
        (post("ListClusters", ""), 400, "SerializationException"),
        (post("ListClusters", "{"), 400, "SerializationException"),
        (post("ListClusters", "[]"), 400, "SerializationException"),
        (post("ListClusters", r#"{"maxResults": "5"}"#), 400, "SerializationException"),
        (post("ListClusters", "[".repeat(100_000)), 400, "SerializationException"),
        (post("ListClusters", vec![b' '; MAX_BODY + 1]), 413, "RequestEntityTooLargeException"),
        (post("DescribeTaskDefinition", r#"{"taskDefinition": "x"}"#), 400, "ClientException"),
    ] {
        let name = format!("{} {} {:?}", request.method(), request.uri(), request.headers());
        let (got, headers, body) = send(&state, request).await;
        assert_eq!((got, body["__type"].as_str().unwrap()), (status, code), "{name}");
        assert_eq!(headers["x-amzn-errortype"], code);
        assert!(headers.contains_key("x-amzn-requestid") && !body["message"].as_str().unwrap().is_empty());
    }
}

#[tokio::test]
async fn arns_carry_the_region_of_the_credentials() {
    let (state, _tracker) = testing::state().await;
    let mut request = post("CreateCluster", r#"{"clusterName": "blue"}"#);
    let authorization =
        "AWS4-HMAC-SHA256 Credential=K/20260102/eu-west-3/ecs/aws4_request, SignedHeaders=host, Signature=0";
    request.headers_mut().insert("authorization", authorization.parse().unwrap());
    let (_, _, body) = send(&state, request).await;
    assert_eq!(body["cluster"]["clusterArn"], "arn:aws:ecs:eu-west-3:123456789012:cluster/blue");
}

#[tokio::test]
async fn with_access_keys_nobody_else_gets_in() {
    let (mut state, _tracker) = testing::state().await;
    state.access_keys = Arc::new([AccessKey { id: "AKID".to_owned(), secret: "s".to_owned() }]);
    let (status, _, body) = send(&state, post("ListClusters", "{}")).await;
    assert_eq!((status, body["__type"].as_str()), (400, Some("MissingAuthenticationTokenException")));
}

#[tokio::test]
async fn development_routes_are_for_this_host_and_for_programs() {
    let (mut state, tracker) = testing::state().await;
    let nowhere = Dial::Plain(AgentAddress::Tcp(([127, 0, 0, 1], 1).into()));
    state.simulated = Some(Simulated::new(Arc::clone(&state.store), nowhere, &tracker));
    let reset = || Request::post("/dev/reset").body(Full::default()).unwrap();
    send(&state, post("CreateCluster", r#"{"clusterName": "blue"}"#)).await;
    assert_eq!(send_from(&state, ([10, 0, 0, 1], 1), reset()).await.0, 403);
    let mut from_page = reset();
    from_page.headers_mut().insert("origin", "http://example.com".parse().unwrap());
    assert_eq!(send(&state, from_page).await.0, 403);
    assert_eq!(send(&state, reset()).await.0, 200);
    let (_, _, body) = send(&state, post("ListClusters", "{}")).await;
    assert_eq!(body["clusterArns"].as_array().unwrap().len(), 1);
}
