//! A control plane in memory for the tests of the API, and how they talk to it.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use super::account::Settings;
use super::context::Context;
use super::error::ApiError;
use super::{dispatch, shape};
use crate::agents::registry::Registry;
use crate::agents::streams::Streams;
use crate::arn::{self, Arns};
use crate::controller::Controller;
use crate::model::{ObservedTask, Task};
use crate::remote::Remote;
use crate::state::ApiState;
use crate::store::memory::MemoryStore;
use crate::store::{Key, Record, Store, Txn};
use crate::supervise::Tracker;
use crate::vpc::CurrentVpc;

/// The instance that [`Api::instance`] registers: 4 CPUs, 4 GiB, port 22 reserved.
pub(super) fn registration() -> Value {
    json!({
        "totalResources": [
            {"name": "CPU", "type": "INTEGER", "integerValue": 4096},
            {"name": "MEMORY", "type": "INTEGER", "integerValue": 4096},
            {"name": "PORTS", "type": "STRINGSET", "stringSetValue": ["22"]},
            {"name": "PORTS_UDP", "type": "STRINGSET", "stringSetValue": []}
        ],
        "versionInfo": {"agentVersion": "1.2.3", "agentHash": "abc", "dockerVersion": "DockerVersion: 20.10.24"},
        "attributes": [{"name": "ecs.capability.task-eni"}, {"name": "stack", "value": "prod"}]
    })
}

/// An API with nobody connected.
pub(super) struct Api {
    pub(super) context: Context,
    _tracker: Tracker,
}

impl Api {
    /// With the cluster `default` alone.
    pub(super) async fn start() -> Self {
        let state = state().await;
        let context = Context {
            arns: state.0.arns.clone(),
            state: state.0,
            settings: Settings::default(),
            host: "localhost:8080".to_owned(),
            caller: String::new(),
        };
        Self { context, _tracker: state.1 }
    }

    /// Sends an operation as the wire does.
    pub(super) async fn send(&self, operation: &str, input: Value) -> Result<Value, ApiError> {
        let input = shape::check(operation, input)?;
        dispatch::dispatch(&self.context, operation, input).await
    }

    /// Sends an operation that succeeds.
    pub(super) async fn ok(&self, operation: &str, input: Value) -> Value {
        match self.send(operation, input).await {
            Ok(reply) => reply,
            Err(error) => panic!("{operation}: {error}"),
        }
    }

    /// Sends an operation that is refused: the code and the message.
    pub(super) async fn refused(&self, operation: &str, input: Value) -> (String, String) {
        match self.send(operation, input).await {
            Ok(reply) => panic!("{operation} was not refused: {reply}"),
            Err(error) => (error.code.to_owned(), error.message),
        }
    }

    /// Registers a definition with one container `app` of 64 MiB; its ARN.
    pub(super) async fn definition(&self, family: &str) -> String {
        let container = json!({"name": "app", "image": "busybox", "memory": 64, "cpu": 10});
        let body = json!({"family": family, "containerDefinitions": [container]});
        let reply = self.ok("RegisterTaskDefinition", body).await;
        text(&reply["taskDefinition"]["taskDefinitionArn"])
    }

    /// Registers an instance; its ARN.
    pub(super) async fn instance(&self) -> String {
        let reply = self.ok("RegisterContainerInstance", registration()).await;
        text(&reply["containerInstance"]["containerInstanceArn"])
    }

    /// Records a task of `definition` on `instance` as placed, and then changes it.
    pub(super) async fn placed(
        &self,
        definition: &str,
        instance: &str,
        change: impl FnOnce(&mut Task),
    ) -> String {
        let view = self.context.view();
        let found = super::task_definition::usable(&*view, definition).expect("the definition is there");
        let id = arn::new_id();
        let task_arn = self.context.arns.task("default", &id);
        let id_arn = berth_core::ids::TaskArn::new(&task_arn).expect("an ARN");
        let specified = super::spec::specify(&found, &json!({}), id_arn, "").expect("a specification");
        let container_arn = || self.context.arns.container("default", &id, &arn::new_container_id());
        let observed = ObservedTask::unseen(&specified.spec, |_| container_arn());
        let mut task = Task {
            arn: task_arn.clone(),
            cluster: "default".to_owned(),
            instance: instance.to_owned(),
            task_definition: found.arn.clone(),
            group: format!("family:{}", found.family),
            started_by: None,
            adopted: false,
            execute_command: false,
            overrides: json!({}),
            spec: specified.spec,
            tags: crate::model::Tags::new(),
            client_token: None,
            stop_requested: None,
            protected_until: None,
            version: 1,
            created_at: super::context::now(),
            stopping_at: None,
            observed,
        };
        change(&mut task);
        let key = Key::Task("default".to_owned(), id);
        let txn = Txn {
            compares: Vec::new(),
            puts: vec![(key, Record::Task(Arc::new(task)))],
            deletes: Vec::new(),
        };
        self.context.state.store.commit(txn).await.expect("a commit in memory");
        task_arn
    }
}

/// Handles on a control plane in memory; it ends with the tracker.
pub(super) async fn state() -> (ApiState, Tracker) {
    let tracker = Tracker::new();
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let registry = Registry::new();
    let arns = Arns::new("us-east-1", "123456789012");
    let retention = Duration::from_secs(3600);
    let vpc = CurrentVpc::of(
        r#"{"subnets": [{"id": "subnet-1", "cidr": "10.0.0.0/24", "provider": "veth"}],
            "securityGroups": [{"id": "sg-1"}]}"#,
    )
    .expect("a file that is sound");
    let controller = Controller::start(
        Arc::clone(&store),
        registry.clone(),
        arns.clone(),
        vpc.clone(),
        retention,
        &tracker,
    );
    controller.ensure_default_cluster().await.expect("a commit in memory");
    let remote = Remote::new(Streams::new(registry.clone()), &tracker);
    let access_keys = Arc::new([]);
    let state = ApiState { store, controller, registry, remote, vpc, simulated: None, arns, access_keys };
    (state, tracker)
}

/// The text of a JSON string.
pub(super) fn text(value: &Value) -> String {
    value.as_str().expect("a string").to_owned()
}
