//! ARNs: how they are built, and what a caller's "name or ARN" means.

use berth_core::ids::{InvalidId, TaskArn};
use serde::{Deserialize, Serialize};

/// Builds the ARNs of one region and account.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Arns {
    /// The region, such as `us-east-1`.
    pub region: String,
    /// The account, twelve digits.
    pub account: String,
}

impl Arns {
    /// The region and account of an ARN; `None` when it is none.
    #[must_use]
    pub fn of(arn: &str) -> Option<Self> {
        let mut parts = arn.split(':').skip(3);
        Some(Self::new(parts.next()?, parts.next()?))
    }

    /// For a region and an account.
    #[must_use]
    pub fn new(region: impl Into<String>, account: impl Into<String>) -> Self {
        Self { region: region.into(), account: account.into() }
    }

    fn build(&self, resource: &str) -> String {
        format!("arn:aws:ecs:{}:{}:{resource}", self.region, self.account)
    }

    /// Of a cluster.
    #[must_use]
    pub fn cluster(&self, name: &str) -> String {
        self.build(&format!("cluster/{name}"))
    }

    /// Of a task definition.
    #[must_use]
    pub fn task_definition(&self, family: &str, revision: u32) -> String {
        self.build(&format!("task-definition/{family}:{revision}"))
    }

    /// Of a task.
    #[must_use]
    pub fn task(&self, cluster: &str, id: &str) -> String {
        self.build(&format!("task/{cluster}/{id}"))
    }

    /// Of a container instance.
    #[must_use]
    pub fn container_instance(&self, cluster: &str, id: &str) -> String {
        self.build(&format!("container-instance/{cluster}/{id}"))
    }

    /// Of a container of a task; `id` is a UUID with hyphens.
    #[must_use]
    pub fn container(&self, cluster: &str, task: &str, id: &str) -> String {
        self.build(&format!("container/{cluster}/{task}/{id}"))
    }

    /// A task ARN that stands for no task: for a specification that is checked before its tasks
    /// have names.
    ///
    /// # Errors
    /// [`InvalidId`] when the cluster's name, the region or the account makes no ARN.
    pub fn placeholder_task(&self, cluster: &str) -> Result<TaskArn, InvalidId> {
        TaskArn::new(self.task(cluster, &"0".repeat(32)))
    }
}

/// A new id of a task or an instance: 32 hex digits.
#[must_use]
pub fn new_id() -> String {
    uuid::Uuid::new_v4().simple().to_string()
}

/// A new id of a container: a UUID with hyphens.
#[must_use]
pub fn new_container_id() -> String {
    uuid::Uuid::new_v4().hyphenated().to_string()
}

/// What a caller named by "name or ARN".
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    /// The cluster that the ARN names; `None` for a bare name or id, and for a cluster itself.
    pub cluster: Option<String>,
    /// The name, id, or `family:revision`.
    pub name: String,
}

/// Why a reference is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{value:?} is neither the name nor the ARN of a {kind}")]
pub struct InvalidReference {
    /// What was expected: `cluster`, `task-definition`, `task` or `container-instance`.
    pub kind: &'static str,
    /// What was given.
    pub value: String,
}

/// Reads the name or the ARN of a thing of that kind (`cluster`, `task-definition`, `task`,
/// `container-instance`). Region and account of an ARN are not looked at.
///
/// # Errors
/// [`InvalidReference`] for an ARN of something else, and for what is neither name nor ARN.
pub fn parse(kind: &'static str, value: &str) -> Result<Reference, InvalidReference> {
    let invalid = || InvalidReference { kind, value: value.to_owned() };
    let path = if value.starts_with("arn:") {
        let resource = value.splitn(6, ':').nth(5).ok_or_else(invalid)?;
        resource.strip_prefix(kind).and_then(|rest| rest.strip_prefix('/')).ok_or_else(invalid)?
    } else {
        value
    };
    let (cluster, name) = match path.split_once('/') {
        Some((cluster, name)) if value.starts_with("arn:") => (Some(cluster.to_owned()), name),
        Some(_) => return Err(invalid()),
        None => (None, path),
    };
    let scoped = matches!(kind, "task" | "container-instance");
    if name.is_empty()
        || name.contains('/')
        || (cluster.is_some() && !scoped)
        || cluster.as_deref() == Some("")
    {
        return Err(invalid());
    }
    Ok(Reference { cluster, name: name.to_owned() })
}

/// The last part of an ARN, or the text itself: the id of a task or instance.
#[must_use]
pub fn id_of(arn: &str) -> &str {
    arn.rsplit('/').next().unwrap_or(arn)
}

/// Cluster name and id of a task or instance ARN.
#[must_use]
pub fn scoped_of(arn: &str) -> Option<(&str, &str)> {
    let mut parts = arn.splitn(6, ':').nth(5)?.split('/');
    let (_kind, cluster, id) = (parts.next()?, parts.next()?, parts.next()?);
    parts.next().is_none().then_some((cluster, id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_arns_mean_the_same() {
        let arns = Arns::new("us-east-1", "123456789012");
        assert_eq!(parse("cluster", "blue").unwrap().name, "blue");
        assert_eq!(parse("cluster", &arns.cluster("blue")).unwrap().name, "blue");
        assert_eq!(parse("task-definition", "web:3").unwrap().name, "web:3");
        assert_eq!(parse("task-definition", &arns.task_definition("web", 3)).unwrap().name, "web:3");
        let id = new_id();
        let task = parse("task", &arns.task("blue", &id)).unwrap();
        assert_eq!((task.cluster.as_deref(), task.name.as_str()), (Some("blue"), id.as_str()));
        assert_eq!(scoped_of(&arns.container_instance("blue", &id)), Some(("blue", id.as_str())));
    }

    #[test]
    fn what_is_neither_is_refused() {
        let arns = Arns::new("us-east-1", "123456789012");
        for bad in [
            "",
            "a/b",
            "arn:aws:ecs:r:1:task/blue/x",
            "arn:aws:ecs:r:1:cluster/",
            "arn:aws",
            &arns.cluster("a/b"),
        ] {
            assert!(parse("cluster", bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_placeholder_is_a_valid_task_arn() {
        assert!(Arns::new("us-east-1", "123456789012").placeholder_task("default").is_ok());
    }
}
