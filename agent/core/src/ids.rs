//! Identities: names and ARNs that were checked once, where they came in, and cannot be wrong inside.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Why a text is not the identity it was taken for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{value:?} is not a valid {what}: {rule}")]
pub struct InvalidId {
    /// The kind of identity that was expected.
    pub what: &'static str,
    /// The text that was refused.
    pub value: String,
    /// The rule that it breaks.
    pub rule: &'static str,
}

/// Declares a checked, cheaply cloned text type.
macro_rules! checked_text {
    ($(#[$doc:meta])* $name:ident, $what:literal, $rule:literal, $check:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Arc<str>);

        impl $name {
            /// Checks the text and takes it.
            ///
            /// # Errors
            /// [`InvalidId`] with the rule that the text breaks.
            pub fn new(value: impl AsRef<str>) -> Result<Self, InvalidId> {
                let value = value.as_ref();
                let check: fn(&str) -> bool = $check;
                if check(value) {
                    Ok(Self(Arc::from(value)))
                } else {
                    Err(InvalidId { what: $what, value: value.to_owned(), rule: $rule })
                }
            }

            /// The text as it was given.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", &*self.0)
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidId;
            fn try_from(value: String) -> Result<Self, InvalidId> {
                Self::new(value)
            }
        }

        impl From<$name> for String {
            fn from(value: $name) -> Self {
                value.0.as_ref().to_owned()
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;
            fn from_str(value: &str) -> Result<Self, InvalidId> {
                Self::new(value)
            }
        }
    };
}

/// 1 to 255 letters, digits, hyphens and underscores: ECS's rule for families, containers,
/// clusters and services.
#[must_use]
pub fn is_resource_name(value: &str) -> bool {
    (1..=255).contains(&value.len())
        && value.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
}

checked_text!(
    /// The name of a cluster.
    ClusterName,
    "cluster name",
    "1 to 255 letters, digits, hyphens and underscores",
    is_resource_name
);
checked_text!(
    /// The name of a container inside its task.
    ContainerName,
    "container name",
    "1 to 255 letters, digits, hyphens and underscores",
    is_resource_name
);
checked_text!(
    /// The family of a task definition.
    Family,
    "task definition family",
    "1 to 255 letters, digits, hyphens and underscores",
    is_resource_name
);
checked_text!(
    /// The ARN of a task: `arn:aws:ecs:<region>:<account>:task/<cluster>/<32 hex digits>`.
    TaskArn,
    "task ARN",
    "arn:<partition>:ecs:<region>:<account>:task/<cluster>/<32 hex digits>",
    |value| is_scoped_arn(value, "task")
);
checked_text!(
    /// The ARN of a container instance:
    /// `arn:aws:ecs:<region>:<account>:container-instance/<cluster>/<32 hex digits>`.
    ContainerInstanceArn,
    "container instance ARN",
    "arn:<partition>:ecs:<region>:<account>:container-instance/<cluster>/<32 hex digits>",
    |value| is_scoped_arn(value, "container-instance")
);
checked_text!(
    /// The engine's own id of a container: 64 hex digits in Docker, opaque here.
    EngineId,
    "engine container id",
    "1 to 255 visible characters",
    |value| (1..=255).contains(&value.len()) && value.bytes().all(|b| b.is_ascii_graphic())
);
checked_text!(
    /// The id of one GPU of a host, as its driver says: `GPU-` and a UUID. Never one of the words by
    /// which drivers call all or none of them.
    GpuId,
    "GPU id",
    "1 to 128 letters, digits and hyphens, and none of all, none and void",
    |value| {
        (1..=128).contains(&value.len())
            && value.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !["all", "none", "void"].iter().any(|word| value.eq_ignore_ascii_case(word))
    }
);

fn is_scoped_arn(value: &str, kind: &str) -> bool {
    let mut parts = value.splitn(6, ':');
    let (Some("arn"), Some(partition), Some("ecs"), Some(_region), Some(_account), Some(resource)) =
        (parts.next(), parts.next(), parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return false;
    };
    let mut path = resource.split('/');
    !partition.is_empty()
        && path.next() == Some(kind)
        && path.next().is_some_and(is_resource_name)
        && path.next().is_some_and(|id| {
            id.len() == 32 && id.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
        })
        && path.next().is_none()
}

fn after_last_slash(value: &str) -> &str {
    value.rsplit('/').next().unwrap_or(value)
}

impl TaskArn {
    /// The task's id: the last 32 hex digits of its ARN.
    #[must_use]
    pub fn id(&self) -> &str {
        after_last_slash(&self.0)
    }

    /// The region that its ARN names.
    #[must_use]
    pub fn region(&self) -> &str {
        self.0.split(':').nth(3).unwrap_or_default()
    }

    /// The name of its cluster.
    #[must_use]
    pub fn cluster(&self) -> &str {
        self.0.split('/').nth(1).unwrap_or_default()
    }
}

impl ContainerInstanceArn {
    /// The instance's id: the last 32 hex digits of its ARN.
    #[must_use]
    pub fn id(&self) -> &str {
        after_last_slash(&self.0)
    }
}

/// Names one attempt at one thing inside one task. An answer that carries another number than
/// the one in flight came too late and counts for nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, Default)]
#[serde(transparent)]
pub struct AttemptId(pub u64);

impl fmt::Display for AttemptId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_arn_tells_its_id_and_cluster() {
        let arn =
            TaskArn::new("arn:aws:ecs:eu-west-1:123456789012:task/blue/0123456789abcdef0123456789abcdef")
                .unwrap();
        assert_eq!(arn.id(), "0123456789abcdef0123456789abcdef");
        assert_eq!(arn.cluster(), "blue");
    }

    #[test]
    fn a_gpu_id_is_that_of_one_device() {
        assert!(GpuId::new("GPU-6e2d1c0b-0000-4f3a-9b1e-1a2b3c4d5e6f").is_ok());
        for bad in ["", "all", "ALL", "none", "void", "GPU-1,GPU-2", "GPU-1/2", "GPU 1"] {
            assert!(GpuId::new(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_not_an_arn_of_that_kind_is_refused_with_the_rule() {
        for bad in [
            "",
            "task/blue/0123456789abcdef0123456789abcdef",
            "arn:aws:ecs:r:1:task/0123456789abcdef0123456789abcdef",
            "arn:aws:ecs:r:1:container-instance/blue/0123456789abcdef0123456789abcdef",
            "arn:aws:ecs:r:1:task/blue/0123456789ABCDEF0123456789abcdef",
            "arn:aws:ecs:r:1:task/blue/0123456789abcdef0123456789abcdef/x",
        ] {
            let refused = TaskArn::new(bad).unwrap_err();
            assert!(refused.to_string().contains("task/<cluster>/<32 hex digits>"), "{refused}");
        }
    }
}
