//! What every handler is given, and how names and ARNs of a request are looked up.

use std::sync::Arc;

use berth_core::units::Timestamp;
use serde_json::Value;

use super::account::Settings;
use super::error::{ApiError, ApiResult};
use crate::arn::{self, Arns};
use crate::clock;
use crate::controller::{ChangeError, DEFAULT_CLUSTER};
use crate::model::{Cluster, Instance, Task};
use crate::state::ApiState;
use crate::store::{CommitError, Revision, Txn, Versioned, View};

/// How often a change is tried anew when others keep changing the same record.
const ATTEMPTS: u32 = 256;

/// What every handler is given.
#[derive(Debug, Clone)]
pub(super) struct Context {
    /// The handles.
    pub(super) state: ApiState,
    /// Account settings.
    pub(super) settings: Settings,
    /// The caller's region and the account.
    pub(super) arns: Arns,
    /// The host and port by which the caller reached us.
    pub(super) host: String,
    /// The access key that the request names; empty when it names none.
    pub(super) caller: String,
}

impl Context {
    /// The caller as an IAM principal.
    pub(super) fn principal(&self) -> String {
        format!("arn:aws:iam::{}:root", self.arns.account)
    }

    /// Everything as it is now.
    pub(super) fn view(&self) -> Arc<dyn View> {
        self.state.store.view()
    }

    /// Reads, decides and commits until nobody else changed what was read. `decide` answers the
    /// transaction and what the caller gets.
    ///
    /// # Errors
    /// What `decide` refuses; `ServerException` when the store cannot write or others never stop
    /// changing the same records.
    pub(super) async fn change<T>(
        &self,
        decide: impl FnMut(&dyn View) -> ApiResult<(Txn, T)>,
    ) -> ApiResult<T> {
        let given_up = || ApiError::server("Too many concurrent changes of the same resource. Try again.");
        self.change_or(decide, given_up).await
    }

    /// As [`Self::change`], with the error for when others never stop changing the same records.
    ///
    /// # Errors
    /// As for [`Self::change`].
    pub(super) async fn change_or<T>(
        &self,
        mut decide: impl FnMut(&dyn View) -> ApiResult<(Txn, T)>,
        given_up: impl FnOnce() -> ApiError,
    ) -> ApiResult<T> {
        for _ in 0..ATTEMPTS {
            let (txn, result) = {
                let view = self.view();
                decide(&*view)?
            };
            if txn.puts.is_empty() && txn.deletes.is_empty() {
                return Ok(result);
            }
            match self.state.store.commit(txn).await {
                Ok::<Revision, _>(_) => return Ok(result),
                Err(CommitError::Conflict(_)) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(given_up())
    }
}

/// The cluster that a request names, `default` when it names none; it must be active.
///
/// # Errors
/// `ClusterNotFoundException`.
pub(super) fn cluster(view: &dyn View, named: Option<&str>) -> ApiResult<Arc<Cluster>> {
    let cluster = any_cluster(view, named)?.value;
    if cluster.active { Ok(cluster) } else { Err(ApiError::cluster_inactive()) }
}

/// The cluster that a request names, active or not.
///
/// # Errors
/// `ClusterNotFoundException`.
pub(super) fn any_cluster(view: &dyn View, named: Option<&str>) -> ApiResult<Versioned<Arc<Cluster>>> {
    let name = cluster_name(named)?;
    view.cluster(&name).ok_or_else(ApiError::cluster_not_found)
}

/// The name of the cluster that a request names, `default` when it names none.
///
/// # Errors
/// `InvalidParameterException` for what is neither a name nor the ARN of a cluster.
pub(super) fn cluster_name(named: Option<&str>) -> ApiResult<String> {
    match named.filter(|named| !named.is_empty()) {
        None => Ok(DEFAULT_CLUSTER.to_owned()),
        Some(named) => arn::parse("cluster", named)
            .map(|reference| reference.name)
            .map_err(|error| ApiError::invalid_parameter(format!("Invalid identifier: {error}"))),
    }
}

/// The id of a task or an instance of `cluster` that a request names by id or ARN.
///
/// # Errors
/// `InvalidParameterException` for an ARN of something else or of another cluster.
pub(super) fn scoped_id(kind: &'static str, cluster: &str, named: &str) -> ApiResult<String> {
    let invalid = |why: String| ApiError::invalid_parameter(format!("Invalid identifier: {why}"));
    let reference = arn::parse(kind, named).map_err(|error| invalid(error.to_string()))?;
    match reference.cluster {
        Some(other) if other != cluster => {
            Err(invalid(format!("Identifier is for cluster {other}. Your cluster is {cluster}")))
        }
        _ => Ok(reference.name),
    }
}

/// The instance that a request names.
///
/// # Errors
/// `InvalidParameterException` when there is none.
pub(super) fn instance(view: &dyn View, cluster: &str, named: &str) -> ApiResult<Versioned<Arc<Instance>>> {
    let id = scoped_id("container-instance", cluster, named)?;
    view.instance(cluster, &id)
        .ok_or_else(|| ApiError::invalid_parameter("The referenced container instance was not found."))
}

/// The id of the task that a request names.
///
/// # Errors
/// `InvalidParameterException` for an id of another length than ECS's.
pub(super) fn task_id(cluster: &str, named: &str) -> ApiResult<String> {
    let id = scoped_id("task", cluster, named)?;
    if matches!(id.len(), 32 | 36) {
        Ok(id)
    } else {
        Err(ApiError::invalid_parameter("taskId length should be one of [32,36]"))
    }
}

/// The task that a request names.
///
/// # Errors
/// `InvalidParameterException` when there is none.
pub(super) fn task(view: &dyn View, cluster: &str, named: &str) -> ApiResult<Versioned<Arc<Task>>> {
    let id = task_id(cluster, named)?;
    view.task(cluster, &id).ok_or_else(|| ApiError::invalid_parameter("The referenced task was not found."))
}

/// A point in time as ECS writes it: seconds since the Unix epoch, with a fraction.
#[expect(clippy::cast_precision_loss, reason = "milliseconds of this era are far below 2^53")]
pub(super) fn epoch(at: Timestamp) -> Value {
    Value::from(at.0 as f64 / 1000.0)
}

/// The time now.
pub(super) fn now() -> Timestamp {
    clock::now()
}

/// An entry of `failures`.
pub(super) fn failure(arn: &str, reason: &str) -> Value {
    serde_json::json!({"arn": arn, "reason": reason})
}

impl From<ChangeError> for ApiError {
    fn from(error: ChangeError) -> Self {
        match error {
            ChangeError::Unavailable(why) => Self::server(why),
            other => Self::invalid_parameter(other.to_string()),
        }
    }
}
