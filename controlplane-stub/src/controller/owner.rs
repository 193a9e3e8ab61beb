//! The one owner of placement: takes orders from a queue, decides, commits, answers.
//!
//! Launches that wait together are decided on one view, each seeing the ones before it, and made
//! durable in one transaction.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use berth_core::attachment::{Attachment, SecurityGroup};
use berth_core::ids::TaskArn;
use berth_core::spec::{TaskFields, TaskSpec};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::{Author, ChangeError, LaunchError, LaunchRequest, Launched, NetworkRequest, Order};
use crate::agents::registry::Registry;
use crate::arn::{self, Arns};
use crate::clock;
use crate::model::{Instance, InstanceStatus, ObservedTask, StopCause, Task, TaskStatus};
use crate::scheduler::candidate::ClusterView;
use crate::scheduler::placement::{Failure, PlacementRequest, Target, place};
use crate::store::{CommitError, Key, Record, Store, Txn, View};
use crate::vpc::allocate::{Chance, InUse, attach};
use crate::vpc::{CurrentVpc, Vpc};

/// Most orders that are taken up together.
const TOGETHER: usize = 64;

/// Decides and commits, alone.
pub(super) struct Owner {
    pub(super) store: Arc<dyn Store>,
    pub(super) registry: Registry,
    pub(super) arns: Arns,
    pub(super) vpc: CurrentVpc,
}

type Answer<T, E> = oneshot::Sender<Result<T, E>>;
type Pending = (Box<LaunchRequest>, Answer<Launched, LaunchError>);

impl Owner {
    /// Runs until cancelled or until nobody can give orders any more.
    pub(super) async fn run(self, mut inbox: mpsc::Receiver<Order>, stop: CancellationToken) {
        let mut orders = Vec::with_capacity(TOGETHER);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                count = inbox.recv_many(&mut orders, TOGETHER) => if count == 0 { return },
            }
            let mut launches = Vec::new();
            for order in orders.drain(..) {
                match order {
                    Order::Launch(request, answer) => launches.push((request, answer)),
                    Order::SetStatus(key, status, author, answer) => {
                        self.launch(std::mem::take(&mut launches)).await;
                        // A caller that has gone away needs no answer; the change stands.
                        let _ = answer.send(self.set_status(&key, status, author).await);
                    }
                    Order::Deregister(key, force, answer) => {
                        self.launch(std::mem::take(&mut launches)).await;
                        let _ = answer.send(self.deregister(&key, force).await);
                    }
                }
            }
            self.launch(launches).await;
        }
    }

    async fn launch(&self, pending: Vec<Pending>) {
        if pending.is_empty() {
            return;
        }
        loop {
            let view = self.store.view();
            let (txn, results) = self.decide(&*view, pending.iter().map(|(request, _)| &**request));
            let committed = if txn.puts.is_empty() { Ok(0) } else { self.store.commit(txn).await };
            let failed = match committed {
                Ok(_) => None,
                // A cluster was changed meanwhile: decide anew.
                Err(CommitError::Conflict(_)) => continue,
                Err(CommitError::Unavailable(why)) => Some(LaunchError::Unavailable(why)),
            };
            for ((_, answer), result) in pending.into_iter().zip(results) {
                let _ = answer.send(match &failed {
                    Some(error) => Err(error.clone()),
                    None => result,
                });
            }
            return;
        }
    }

    /// Decides some launches on one view: the transaction for all, and the answer of each.
    fn decide<'a>(
        &self,
        view: &dyn View,
        requests: impl Iterator<Item = &'a LaunchRequest>,
    ) -> (Txn, Vec<Result<Launched, LaunchError>>) {
        let mut txn = Txn::default();
        let mut clusters: BTreeMap<&str, ClusterView> = BTreeMap::new();
        let mut tokens: BTreeMap<(&str, &str), (&str, Launched)> = BTreeMap::new();
        let mut compared = BTreeSet::new();
        let mut results = Vec::new();
        let mut network = Network { vpc: self.vpc.get(), in_use: InUse::read(view), view };
        for request in requests {
            let Some(cluster) = view.cluster(&request.cluster) else {
                results.push(Err(LaunchError::ClusterNotFound));
                continue;
            };
            if !cluster.value.active {
                results.push(Err(LaunchError::ClusterInactive));
                continue;
            }
            if let Some((token, digest)) = &request.client_token {
                let known = match tokens.get(&(request.cluster.as_str(), token.as_str())) {
                    Some((before, launched)) => Some((before == digest, launched.tasks.clone())),
                    None => earlier(view, &request.cluster, token, digest),
                };
                if let Some((same, tasks)) = known {
                    results.push(if same {
                        Ok(Launched { tasks, failures: Vec::new() })
                    } else {
                        Err(LaunchError::TokenReused {
                            tasks: tasks.iter().map(|task| task.arn.clone()).collect(),
                        })
                    });
                    continue;
                }
            }
            let state = clusters.entry(&request.cluster).or_insert_with(|| {
                ClusterView::read(view, &self.registry.instances_connected(), &request.cluster)
            });
            let result = self.decide_one(state, request, &mut network);
            if let Ok(launched) = &result {
                // A cluster that is deleted meanwhile must not gain tasks.
                if compared.insert(&request.cluster) {
                    txn.compares.push((Key::Cluster(request.cluster.clone()), Some(cluster.revision)));
                }
                for task in &launched.tasks {
                    let key = Key::Task(task.cluster.clone(), arn::id_of(&task.arn).to_owned());
                    txn.compares.push((key.clone(), None));
                    txn.puts.push((key, Record::Task(Arc::clone(task))));
                }
                if let Some((token, digest)) = &request.client_token {
                    tokens.insert((&request.cluster, token), (digest, launched.clone()));
                }
            }
            results.push(result);
        }
        (txn, results)
    }

    /// Places one launch, and counts it in the cluster's state.
    fn decide_one(
        &self,
        state: &mut ClusterView,
        request: &LaunchRequest,
        network: &mut Network<'_>,
    ) -> Result<Launched, LaunchError> {
        let anywhere = matches!(request.target, Target::Anywhere { .. });
        if anywhere && !state.candidates.iter().any(|c| c.instance.status == InstanceStatus::Active) {
            return Err(LaunchError::NoInstances);
        }
        let now = clock::now();
        let (seed, _) = uuid::Uuid::new_v4().as_u64_pair();
        let group = request.group.clone().unwrap_or_else(|| format!("family:{}", request.spec.family));
        let placement = PlacementRequest {
            need: request.spec.need(),
            required: request.required.clone(),
            group: group.clone(),
            target: request.target.clone(),
            seed,
        };
        let plan = place(state, &placement, now);
        let mut launched = Launched { tasks: Vec::new(), failures: plan.failures };
        for instance in plan.placed {
            let attachment = match &request.network {
                None => None,
                Some(wanted) => match network.attach(wanted) {
                    Some(attachment) => Some(attachment),
                    None => {
                        launched
                            .failures
                            .push(Failure { arn: Some(instance), reason: "RESOURCE:ENI".to_owned() });
                        continue;
                    }
                },
            };
            let task = self.task(request, &group, &instance, attachment)?;
            state.take(&instance, &placement.need, &placement.group);
            launched.tasks.push(Arc::new(task));
        }
        Ok(launched)
    }

    fn task(
        &self,
        request: &LaunchRequest,
        group: &str,
        instance: &str,
        attachment: Option<Attachment>,
    ) -> Result<Task, LaunchError> {
        let invalid = |error: &dyn std::fmt::Display| LaunchError::InvalidSpec(error.to_string());
        let id = arn::new_id();
        // The caller's region, which the specification already carries.
        let arns = Arns::of(request.spec.arn.as_str()).unwrap_or_else(|| self.arns.clone());
        let arn = arns.task(&request.cluster, &id);
        let mut fields = TaskFields::from(request.spec.clone());
        fields.arn = TaskArn::new(&arn).map_err(|error| invalid(&error))?;
        fields.attachment = attachment;
        let spec = TaskSpec::try_from(fields).map_err(|error| invalid(&error))?;
        let container_arn = || arns.container(&request.cluster, &id, &arn::new_container_id());
        let observed = ObservedTask::unseen(&spec, |_| container_arn());
        Ok(Task {
            arn,
            cluster: request.cluster.clone(),
            instance: instance.to_owned(),
            task_definition: request.task_definition.clone(),
            group: group.to_owned(),
            started_by: request.started_by.clone(),
            adopted: false,
            execute_command: request.execute_command,
            overrides: request.overrides.clone(),
            spec,
            tags: request.tags.clone(),
            client_token: request.client_token.clone(),
            stop_requested: None,
            protected_until: None,
            version: 1,
            created_at: clock::now(),
            stopping_at: None,
            observed,
        })
    }

    async fn set_status(
        &self,
        key: &Key,
        status: InstanceStatus,
        author: Author,
    ) -> Result<Arc<Instance>, ChangeError> {
        self.change_instance(key, |_, instance| {
            if instance.status == InstanceStatus::Inactive {
                return Err(ChangeError::Inactive);
            }
            let by_host = author == Author::Host && status == InstanceStatus::Draining;
            let unchanged = match author {
                Author::Operator => instance.status == status && !instance.drained_by_host,
                // What an operator drained stays drained, whatever the host says.
                Author::Host => {
                    instance.status == status
                        || (status == InstanceStatus::Active && !instance.drained_by_host)
                }
            };
            if unchanged {
                return Ok(None);
            }
            let mut instance = instance.clone();
            instance.status = status;
            instance.drained_by_host = by_host;
            instance.version += 1;
            Ok(Some((instance, Txn::default())))
        })
        .await
    }

    async fn deregister(&self, key: &Key, force: bool) -> Result<Arc<Instance>, ChangeError> {
        let instance = self
            .change_instance(key, |view, instance| {
                if instance.status == InstanceStatus::Inactive {
                    return Ok(None);
                }
                let mut tasks = view.tasks_on(&instance.arn);
                tasks.retain(|task| task.value.observed.status != TaskStatus::Stopped);
                if !tasks.is_empty() && !force {
                    return Err(ChangeError::TasksRunning);
                }
                let mut txn = Txn::default();
                for task in tasks {
                    let key = Key::Task(task.value.cluster.clone(), arn::id_of(&task.value.arn).to_owned());
                    txn.compares.push((key.clone(), Some(task.revision)));
                    txn.puts.push((key, Record::Task(Arc::new(orphaned(&task.value)))));
                }
                let mut instance = instance.clone();
                instance.status = InstanceStatus::Inactive;
                instance.version += 1;
                Ok(Some((instance, txn)))
            })
            .await?;
        self.registry.disconnect(&instance.arn, "the container instance was deregistered", true);
        Ok(instance)
    }

    /// Changes one instance by compare-and-swap, together with what `change` adds.
    async fn change_instance(
        &self,
        key: &Key,
        change: impl Fn(&dyn View, &Instance) -> Result<Option<(Instance, Txn)>, ChangeError>,
    ) -> Result<Arc<Instance>, ChangeError> {
        let Key::Instance(cluster, id) = key else { return Err(ChangeError::NotFound(key.to_string())) };
        loop {
            let view = self.store.view();
            let found = view.instance(cluster, id).ok_or_else(|| ChangeError::NotFound(key.to_string()))?;
            let Some((instance, mut txn)) = change(&*view, &found.value)? else { return Ok(found.value) };
            let instance = Arc::new(instance);
            txn.compares.push((key.clone(), Some(found.revision)));
            txn.puts.push((key.clone(), Record::Instance(Arc::clone(&instance))));
            match self.store.commit(txn).await {
                Ok(_) => return Ok(instance),
                Err(CommitError::Conflict(_)) => {}
                Err(CommitError::Unavailable(why)) => return Err(ChangeError::Unavailable(why)),
            }
        }
    }
}

/// What launches take of the VPC, one after the other.
struct Network<'a> {
    vpc: Arc<Vpc>,
    in_use: InUse,
    view: &'a dyn View,
}

impl Network<'_> {
    /// An interface in the first of the subnets that has a free address.
    fn attach(&mut self, wanted: &NetworkRequest) -> Option<Attachment> {
        let groups: Vec<SecurityGroup> =
            wanted.security_groups.iter().filter_map(|id| self.vpc.security_group(id, self.view)).collect();
        let subnets = wanted.subnets.iter().filter_map(|id| self.vpc.subnets.get(id));
        for subnet in subnets {
            let random = uuid::Uuid::new_v4();
            let [a, b, c, d, e, f, g, h, i, ..] = *random.as_bytes();
            let chance = Chance {
                attachment_id: uuid::Uuid::new_v4().to_string(),
                interface: random.simple().to_string().chars().take(17).collect(),
                mac: [a, b, c, d, e],
                from: u32::from_be_bytes([f, g, h, i]),
            };
            if let Some(attachment) = attach(&mut self.in_use, subnet, groups.clone(), chance) {
                return Some(attachment);
            }
        }
        None
    }
}

/// The tasks that were launched with a token before, and whether by the same parameters.
fn earlier(view: &dyn View, cluster: &str, token: &str, digest: &str) -> Option<(bool, Vec<Arc<Task>>)> {
    let with = |task: &Task| task.client_token.as_ref().is_some_and(|(t, _)| t == token);
    let tasks: Vec<Arc<Task>> =
        view.tasks(Some(cluster)).into_iter().map(|task| task.value).filter(|task| with(task)).collect();
    let first = tasks.first()?;
    let same = first.client_token.as_ref().is_some_and(|(_, d)| d == digest);
    Some((same, tasks))
}

/// A task whose instance was taken away from under it.
fn orphaned(task: &Task) -> Task {
    let now = clock::now();
    let mut task = task.clone();
    let cause = StopCause {
        code: "UserInitiated".to_owned(),
        reason: "Container instance deregistration forced by user".to_owned(),
    };
    task.stopping_at = task.stopping_at.or(Some(now));
    task.version += 1;
    task.observed.status = TaskStatus::Stopped;
    task.observed.stop = Some(cause);
    task.observed.stopped_at = Some(now);
    for container in &mut task.observed.containers {
        container.status = TaskStatus::Stopped;
    }
    task
}
