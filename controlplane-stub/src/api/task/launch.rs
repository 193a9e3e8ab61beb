//! RunTask and StartTask.

use ring::digest;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::placement::{GivenConstraint, GivenStrategy, constraints, strategies};
use super::render::Renderer;
use crate::api::context::{self, Context};
use crate::api::error::{ApiError, ApiResult};
use crate::api::tag::{self, Tag};
use crate::api::{setting, spec, task_definition};
use crate::controller::{LaunchError, LaunchRequest, Launched, NetworkRequest};
use crate::hex;
use crate::model::{Cluster, TaskDefinition};
use crate::scheduler::placement::{MAX_COUNT, RequiredAttribute, Target};

/// The most instances of a StartTask.
const MAX_INSTANCES: usize = 10;
const MAX_SUBNETS: usize = 16;
const MAX_SECURITY_GROUPS: usize = 5;

/// The members that RunTask and StartTask share, and those that only RunTask has.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Request {
    cluster: Option<String>,
    task_definition: String,
    overrides: Option<Value>,
    group: Option<String>,
    started_by: Option<String>,
    network_configuration: Option<NetworkConfiguration>,
    tags: Vec<Tag>,
    propagate_tags: Option<String>,
    #[serde(rename = "enableECSManagedTags")]
    managed_tags: bool,
    enable_execute_command: bool,
    volume_configurations: Vec<Value>,
    container_instances: Vec<String>,
    count: Option<i64>,
    launch_type: Option<String>,
    capacity_provider_strategy: Vec<Value>,
    platform_version: Option<String>,
    placement_constraints: Vec<GivenConstraint>,
    placement_strategy: Vec<GivenStrategy>,
    client_token: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct NetworkConfiguration {
    awsvpc_configuration: Option<Awsvpc>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Awsvpc {
    subnets: Vec<String>,
    security_groups: Vec<String>,
    assign_public_ip: Option<String>,
}

pub(in crate::api) async fn run(context: &Context, mut input: Map<String, Value>) -> ApiResult<Value> {
    input.remove("containerInstances");
    let request = read(&input)?;
    let count = match request.count {
        None => 1,
        Some(count) => {
            u32::try_from(count).ok().filter(|count| (1..=MAX_COUNT).contains(count)).ok_or_else(|| {
                ApiError::invalid_parameter(format!("count should be between 1 and {MAX_COUNT}."))
            })?
        }
    };
    check_launch_type(&request)?;
    let strategies = strategies(&request.placement_strategy)?;
    let token = client_token(&request, &input)?;
    check(&request)?;
    let (cluster, definition) = look_up(context, &request)?;
    check_compatible(&request, &definition)?;
    let constraints = constraints(&request.placement_constraints, &definition)?;
    launch(context, request, cluster, &definition, token, Target::Anywhere { count, constraints, strategies })
        .await
}

pub(in crate::api) async fn start(context: &Context, input: Map<String, Value>) -> ApiResult<Value> {
    let request = read(&input)?;
    if request.container_instances.is_empty() {
        return Err(ApiError::invalid_parameter("Container Instances cannot be empty."));
    }
    if request.container_instances.len() > MAX_INSTANCES {
        return Err(ApiError::invalid_parameter(format!(
            "containerInstances can have at most {MAX_INSTANCES} items."
        )));
    }
    check(&request)?;
    let (cluster, definition) = look_up(context, &request)?;
    let view = context.view();
    let mut instances = Vec::new();
    for named in &request.container_instances {
        let id = context::scoped_id("container-instance", &cluster.name, named)?;
        instances.push(match view.instance(&cluster.name, &id) {
            Some(instance) => instance.value.arn.clone(),
            // Answered as a failure of that instance alone.
            None => context.arns.container_instance(&cluster.name, &id),
        });
    }
    launch(context, request, cluster, &definition, None, Target::Instances(instances)).await
}

fn read(input: &Map<String, Value>) -> ApiResult<Request> {
    Request::deserialize(Value::Object(input.clone()))
        .map_err(|error| ApiError::serialization(error.to_string()))
}

fn look_up(
    context: &Context,
    request: &Request,
) -> ApiResult<(std::sync::Arc<Cluster>, std::sync::Arc<TaskDefinition>)> {
    let view = context.view();
    let cluster = context::cluster(&*view, request.cluster.as_deref())?;
    let definition = task_definition::usable(&*view, &request.task_definition)?;
    check_network(request, &definition)?;
    check_vpc(context, request)?;
    Ok((cluster, definition))
}

async fn launch(
    context: &Context,
    request: Request,
    cluster: std::sync::Arc<Cluster>,
    definition: &TaskDefinition,
    client_token: Option<(String, String)>,
    target: Target,
) -> ApiResult<Value> {
    let arn =
        context.arns.placeholder_task(&cluster.name).map_err(|error| ApiError::server(error.to_string()))?;
    let overrides = request.overrides.unwrap_or_else(|| json!({}));
    let specified = spec::specify(definition, &overrides, arn, &setting::log_mode(context))?;
    let mut required = specified.required;
    if request.enable_execute_command {
        required.push(RequiredAttribute { name: "ecs.capability.execute-command".to_owned(), value: None });
    }
    let network = request.network_configuration.and_then(|network| network.awsvpc_configuration);
    let network = network
        .map(|given| NetworkRequest { subnets: given.subnets, security_groups: given.security_groups });
    if let Some(subnet) = network
        .iter()
        .flat_map(|network| &network.subnets)
        .find_map(|id| context.state.vpc.get().subnets.get(id).cloned())
    {
        let name = format!("berth.eni-provider.{}", subnet.provider.name());
        required.push(RequiredAttribute { name, value: None });
    }
    let mut tags = tag::read(&request.tags)?;
    if request.propagate_tags.as_deref() == Some("TASK_DEFINITION") {
        for (key, value) in &definition.tags {
            tags.entry(key.clone()).or_insert_with(|| value.clone());
        }
    }
    if request.managed_tags {
        tags.insert("aws:ecs:clusterName".to_owned(), cluster.name.clone());
    }
    let launched = context.state.controller.launch(LaunchRequest {
        cluster: cluster.name.clone(),
        task_definition: definition.arn.clone(),
        spec: specified.spec,
        required,
        target,
        group: request.group.filter(|group| !group.is_empty()),
        started_by: request.started_by.filter(|by| !by.is_empty()),
        execute_command: request.enable_execute_command,
        overrides,
        tags,
        network,
        client_token,
    });
    let Launched { tasks, failures } = launched.await?;
    let view = context.view();
    let renderer = Renderer::new(context, &*view);
    let tasks: Vec<Value> = tasks.iter().map(|task| renderer.task(task, true)).collect();
    let failures: Vec<Value> = failures
        .iter()
        .map(|failure| match &failure.arn {
            Some(arn) => json!({"arn": arn, "reason": failure.reason}),
            None => json!({"reason": failure.reason}),
        })
        .collect();
    Ok(json!({"tasks": tasks, "failures": failures}))
}

impl From<LaunchError> for ApiError {
    fn from(error: LaunchError) -> Self {
        match error {
            LaunchError::ClusterNotFound => Self::cluster_not_found(),
            LaunchError::ClusterInactive => Self::cluster_inactive(),
            LaunchError::NoInstances => Self::invalid_parameter(error.to_string()),
            LaunchError::TokenReused { tasks } => {
                Self::conflict("The clientToken was used for a request with other parameters before.", &tasks)
            }
            LaunchError::InvalidSpec(_) | LaunchError::Unavailable(_) => Self::server(error.to_string()),
        }
    }
}

/// Rules that need neither cluster nor definition.
fn check(request: &Request) -> ApiResult<()> {
    for (member, value, longest) in [("group", &request.group, 255), ("startedBy", &request.started_by, 128)]
    {
        if value.as_ref().is_some_and(|value| value.chars().count() > longest) {
            return Err(ApiError::invalid_parameter(format!(
                "{member} should not be longer than {longest} characters."
            )));
        }
    }
    if !matches!(request.propagate_tags.as_deref(), None | Some("TASK_DEFINITION" | "NONE")) {
        return Err(ApiError::invalid_parameter("propagateTags should be one of [TASK_DEFINITION, NONE]"));
    }
    if !request.volume_configurations.is_empty() {
        return Err(ApiError::invalid_parameter(
            "Volumes that are configured at launch are not supported by this control plane.",
        ));
    }
    Ok(())
}

fn check_launch_type(request: &Request) -> ApiResult<()> {
    match request.launch_type.as_deref() {
        None | Some("EC2" | "FARGATE" | "EXTERNAL") => {}
        Some(_) => {
            return Err(ApiError::invalid_parameter("launch type should be one of [EC2,FARGATE,EXTERNAL]"));
        }
    }
    if !request.capacity_provider_strategy.is_empty() {
        return Err(ApiError::invalid_parameter(if request.launch_type.is_some() {
            "Specifying both a launch type and capacity provider strategy is not supported. Remove one and try again."
        } else {
            "The specified capacity provider was not found. Specify a valid capacity provider and try again."
        }));
    }
    if request.platform_version.is_some() && request.launch_type.as_deref() != Some("FARGATE") {
        return Err(ApiError::invalid_parameter(
            "The platform version must be null when specifying an EC2 launch type.",
        ));
    }
    Ok(())
}

fn check_compatible(request: &Request, definition: &TaskDefinition) -> ApiResult<()> {
    let kind = request.launch_type.as_deref().unwrap_or("EC2");
    if !definition.compatibilities.iter().any(|compatible| compatible == kind) {
        return Err(ApiError::invalid_parameter(format!(
            "Task definition does not support launch_type {kind}."
        )));
    }
    if kind != "EC2" {
        // All hosts here are of the launch type EC2.
        return Err(LaunchError::NoInstances.into());
    }
    Ok(())
}

fn check_network(request: &Request, definition: &TaskDefinition) -> ApiResult<()> {
    let awsvpc = definition.body.get("networkMode").and_then(Value::as_str) == Some("awsvpc");
    let given =
        request.network_configuration.as_ref().and_then(|network| network.awsvpc_configuration.as_ref());
    let Some(given) = given else {
        return if awsvpc {
            Err(ApiError::invalid_parameter(
                "Network Configuration must be provided when networkMode 'awsvpc' is specified.",
            ))
        } else {
            Ok(())
        };
    };
    let refused = if !awsvpc {
        "Network Configuration is not valid for the given networkMode of this task definition.".to_owned()
    } else if given.subnets.is_empty() {
        "subnets can not be empty.".to_owned()
    } else if given.subnets.len() > MAX_SUBNETS {
        format!("subnets can have at most {MAX_SUBNETS} items.")
    } else if given.security_groups.len() > MAX_SECURITY_GROUPS {
        format!("securityGroups can have at most {MAX_SECURITY_GROUPS} items.")
    } else if given.assign_public_ip.as_deref() == Some("ENABLED") {
        "Assign public IP is not supported for this launch type.".to_owned()
    } else {
        return Ok(());
    };
    Err(ApiError::invalid_parameter(refused))
}

/// Subnets and security groups must be there.
fn check_vpc(context: &Context, request: &Request) -> ApiResult<()> {
    let Some(given) = request.network_configuration.as_ref().and_then(|n| n.awsvpc_configuration.as_ref())
    else {
        return Ok(());
    };
    let vpc = context.state.vpc.get();
    if let Some(unknown) = given.subnets.iter().find(|id| !vpc.subnets.contains_key(*id)) {
        return Err(ApiError::invalid_parameter(format!(
            "Error retrieving subnet information for [{unknown}]: The subnet ID '{unknown}' does not exist"
        )));
    }
    if let Some(unknown) = given.security_groups.iter().find(|id| !vpc.groups.contains_key(*id)) {
        return Err(ApiError::invalid_parameter(format!(
            "Error retrieving security group information for [{unknown}]: The security group '{unknown}' does not exist"
        )));
    }
    Ok(())
}

/// The request's token, and a digest of everything else in it.
fn client_token(request: &Request, input: &Map<String, Value>) -> ApiResult<Option<(String, String)>> {
    let Some(token) = request.client_token.as_ref().filter(|token| !token.is_empty()) else {
        return Ok(None);
    };
    if token.len() > 64 || !token.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(ApiError::invalid_parameter(
            "clientToken should have at most 64 printable ASCII characters.",
        ));
    }
    let mut rest = input.clone();
    rest.remove("clientToken");
    let digest = digest::digest(&digest::SHA256, Value::Object(rest).to_string().as_bytes());
    Ok(Some((token.clone(), hex::encode(digest.as_ref()))))
}
