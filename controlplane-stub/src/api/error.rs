//! Errors as ECS's clients read them: a code, a sentence, an HTTP status.

use serde_json::{Map, Value, json};

use crate::store::CommitError;

/// An error that a client gets to see.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{code}: {message}")]
pub(super) struct ApiError {
    /// ECS's name of it, such as `ClusterNotFoundException`.
    pub(super) code: &'static str,
    /// What is wrong, for people.
    pub(super) message: String,
    /// The HTTP status.
    pub(super) status: u16,
    /// Members of the error beside its message, such as `resourceIds`.
    pub(super) members: Map<String, Value>,
}

/// What a handler answers.
pub(super) type ApiResult<T> = Result<T, ApiError>;

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $code:literal $status:literal;)*) => {
        impl ApiError {
            $(
                $(#[$doc])*
                #[must_use]
                pub(super) fn $name(message: impl Into<String>) -> Self {
                    Self { code: $code, message: message.into(), status: $status, members: Map::new() }
                }
            )*
        }
    };
}

codes! {
    /// A parameter breaks a rule.
    invalid_parameter = "InvalidParameterException" 400;
    /// The client did something that cannot be done.
    client = "ClientException" 400;
    /// The fault is ours.
    server = "ServerException" 500;
    /// Something that only a client with rights may do.
    access_denied = "AccessDeniedException" 400;
    /// The body is not what the operation takes.
    serialization = "SerializationException" 400;
    /// No such operation.
    unknown_operation = "UnknownOperationException" 400;
    /// More than a limit allows.
    limit_exceeded = "LimitExceededException" 400;
    /// No such resource.
    resource_not_found = "ResourceNotFoundException" 400;
    /// The host of a task is not to be reached.
    target_not_connected = "TargetNotConnectedException" 400;
    /// No such target of an attribute.
    target_not_found = "TargetNotFoundException" 400;
    /// More attributes than a resource may have.
    attribute_limit_exceeded = "AttributeLimitExceededException" 400;
    /// No such service.
    service_not_found = "ServiceNotFoundException" 400;
    /// The cluster has instances.
    cluster_contains_instances = "ClusterContainsContainerInstancesException" 400;
    /// The cluster has tasks.
    cluster_contains_tasks = "ClusterContainsTasksException" 400;
    /// The request does not say who asks.
    missing_authentication_token = "MissingAuthenticationTokenException" 400;
    /// The authorization is not in SigV4's form.
    incomplete_signature = "IncompleteSignatureException" 400;
    /// The access key is not ours.
    unrecognized_client = "UnrecognizedClientException" 400;
    /// The signature does not match.
    invalid_signature = "InvalidSignatureException" 400;
    /// The body is too large to be read.
    request_too_large = "RequestEntityTooLargeException" 413;
}

impl ApiError {
    /// `Cluster not found.`: the agent matches on that text.
    #[must_use]
    pub(super) fn cluster_not_found() -> Self {
        Self::cluster("Cluster not found.")
    }

    /// The cluster is there, but inactive.
    #[must_use]
    pub(super) fn cluster_inactive() -> Self {
        Self::cluster("The referenced cluster was inactive.")
    }

    fn cluster(message: &str) -> Self {
        Self {
            code: "ClusterNotFoundException",
            message: message.to_owned(),
            status: 400,
            members: Map::new(),
        }
    }

    /// The client token was used with other parameters; names what it made then.
    #[must_use]
    pub(super) fn conflict(message: impl Into<String>, resource_ids: &[String]) -> Self {
        let mut members = Map::new();
        members.insert("resourceIds".to_owned(), json!(resource_ids));
        Self { code: "ConflictException", message: message.into(), status: 400, members }
    }

    /// The body that a client gets.
    #[must_use]
    pub(super) fn body(&self) -> Value {
        let mut body = self.members.clone();
        body.insert("__type".to_owned(), Value::from(self.code));
        body.insert("message".to_owned(), Value::from(self.message.clone()));
        Value::Object(body)
    }
}

impl From<CommitError> for ApiError {
    fn from(error: CommitError) -> Self {
        tracing::error!(%error, "a change could not be stored");
        Self::server(format!("The change could not be stored: {error}. Try again."))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_body_carries_type_message_and_members() {
        let error = ApiError::conflict("taken", &["a".to_owned()]);
        assert_eq!(
            error.body(),
            json!({"__type": "ConflictException", "message": "taken", "resourceIds": ["a"]})
        );
    }
}
