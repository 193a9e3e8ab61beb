//! A small client for the JSON API: one call in, a value or ECS's error out.

use std::fmt;
use std::net::SocketAddr;

use bytes::Bytes;
use http_body_util::Full;
use hyper::Request;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use serde_json::Value;

use crate::http;

const TARGET: &str = "AmazonEC2ContainerServiceV20141113";
const AUTHORIZATION: &str = "AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/ecs/aws4_request, \
     SignedHeaders=host, Signature=0";

/// What came back instead of an answer.
#[derive(Debug)]
pub enum EcsError {
    /// The API refused.
    Refused {
        /// The HTTP status.
        status: u16,
        /// ECS's error class, such as `ClusterNotFoundException`.
        code: String,
        /// The message.
        message: String,
    },
    /// Nothing that the API would say.
    Broken(String),
}

impl EcsError {
    /// ECS's error class; empty when there was no answer of the API.
    #[must_use]
    pub fn code(&self) -> &str {
        match self {
            Self::Refused { code, .. } => code,
            Self::Broken(_) => "",
        }
    }

    /// The message.
    #[must_use]
    pub fn message(&self) -> &str {
        match self {
            Self::Refused { message, .. } => message,
            Self::Broken(why) => why,
        }
    }
}

impl fmt::Display for EcsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused { status, code, message } => write!(f, "{code} ({status}): {message}"),
            Self::Broken(why) => f.write_str(why),
        }
    }
}

impl std::error::Error for EcsError {}

/// A client of one control plane.
#[derive(Debug, Clone)]
pub struct Ecs {
    api: SocketAddr,
    client: Client<HttpConnector, Full<Bytes>>,
}

impl Ecs {
    /// A client for the API at that address.
    #[must_use]
    pub fn new(api: SocketAddr) -> Self {
        Self { api, client: http::client() }
    }

    /// Calls an operation, such as `RunTask`.
    ///
    /// # Errors
    /// What the API refused with, or that it did not answer.
    pub async fn call(&self, operation: &str, input: Value) -> Result<Value, EcsError> {
        self.call_raw(operation, input.to_string()).await
    }

    /// Calls an operation with a body of any kind.
    ///
    /// # Errors
    /// What the API refused with, or that it did not answer.
    pub async fn call_raw(&self, operation: &str, body: impl Into<Bytes>) -> Result<Value, EcsError> {
        let request = Request::post(format!("http://{}/", self.api))
            .header("content-type", "application/x-amz-json-1.1")
            .header("x-amz-target", format!("{TARGET}.{operation}"))
            .header("authorization", AUTHORIZATION)
            .body(Full::new(body.into()))
            .map_err(|e| EcsError::Broken(e.to_string()))?;
        let (status, body) = http::send(&self.client, request)
            .await
            .map_err(|e| EcsError::Broken(format!("{operation}: {e:#}")))?;
        let answer: Value = serde_json::from_slice(&body).map_err(|_| {
            let text = String::from_utf8_lossy(&body);
            EcsError::Broken(format!("{operation}: {status} with a body that is no JSON: {text}"))
        })?;
        if status.is_success() {
            return Ok(answer);
        }
        let text = |key: &str| answer.get(key).and_then(Value::as_str).unwrap_or_default();
        // Clients read what is behind a '#'.
        let code = text("__type");
        Err(EcsError::Refused {
            status: status.as_u16(),
            code: code.rsplit('#').next().unwrap_or(code).to_owned(),
            message: text("message").to_owned(),
        })
    }
}
