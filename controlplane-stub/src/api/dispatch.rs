//! Which handler answers which operation.

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::context::Context;
use super::error::{ApiError, ApiResult};
use super::{attribute, cluster, instance, service, setting, tag, task, task_definition};

/// Reads a typed request out of an input whose shape was checked.
fn read<R: DeserializeOwned>(input: Value) -> ApiResult<R> {
    serde_json::from_value(input).map_err(|error| ApiError::serialization(error.to_string()))
}

macro_rules! dispatch {
    ($context:ident, $operation:ident, $input:ident, { $($name:literal => $handler:path,)* }) => {
        match $operation {
            $($name => $handler($context, read($input)?).await,)*
            other => Err(ApiError::unknown_operation(format!("The operation {other} is not known here."))),
        }
    };
}

/// Answers an operation.
///
/// # Errors
/// What the operation's handler refuses.
pub(super) async fn dispatch(context: &Context, operation: &str, input: Value) -> ApiResult<Value> {
    dispatch!(context, operation, input, {
        "CreateCluster" => cluster::create,
        "DescribeClusters" => cluster::describe,
        "ListClusters" => cluster::list,
        "UpdateCluster" => cluster::update,
        "UpdateClusterSettings" => cluster::update,
        "DeleteCluster" => cluster::delete,
        "RegisterTaskDefinition" => task_definition::register,
        "DescribeTaskDefinition" => task_definition::describe,
        "DeregisterTaskDefinition" => task_definition::deregister,
        "DeleteTaskDefinitions" => task_definition::delete,
        "ListTaskDefinitions" => task_definition::list,
        "ListTaskDefinitionFamilies" => task_definition::list_families,
        "RegisterContainerInstance" => instance::register,
        "DeregisterContainerInstance" => instance::deregister,
        "DescribeContainerInstances" => instance::describe,
        "ListContainerInstances" => instance::list,
        "UpdateContainerInstancesState" => instance::update_state,
        "DiscoverPollEndpoint" => instance::discover_poll_endpoint,
        "PutAttributes" => attribute::put,
        "DeleteAttributes" => attribute::delete,
        "ListAttributes" => attribute::list,
        "RunTask" => task::run,
        "StartTask" => task::start,
        "StopTask" => task::stop,
        "DescribeTasks" => task::describe,
        "ListTasks" => task::list,
        "ExecuteCommand" => task::execute,
        "StreamLogs" => task::stream_logs,
        "UpdateTaskProtection" => task::update_protection,
        "GetTaskProtection" => task::get_protection,
        "TagResource" => tag::tag,
        "UntagResource" => tag::untag,
        "ListTagsForResource" => tag::list,
        "ListAccountSettings" => setting::list,
        "PutAccountSetting" => setting::put,
        "PutAccountSettingDefault" => setting::put,
        "DeleteAccountSetting" => setting::delete,
        "ListServices" => service::list,
        "DescribeServices" => service::describe,
        "DescribeCapacityProviders" => service::describe_capacity_providers,
    })
}
