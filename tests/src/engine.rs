//! The container engine itself, beside Berth: what is there, and its raw floor.

use std::collections::HashMap;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use bollard::Docker;
use bollard::models::{ContainerCreateBody, ContainerInspectResponse, ContainerSummary, HostConfig};
use bollard::query_parameters::{
    InspectContainerOptions, KillContainerOptions, ListContainersOptionsBuilder, ListVolumesOptionsBuilder,
    LogsOptionsBuilder, RemoveContainerOptionsBuilder, RemoveVolumeOptions, StartContainerOptions,
    StopContainerOptionsBuilder,
};
use futures_util::TryStreamExt;

use crate::demo;

/// The label with the ARN of the task that a container belongs to.
pub const TASK_ARN: &str = "com.amazonaws.ecs.task-arn";
/// The label with the name of the container in its task definition.
pub const CONTAINER_NAME: &str = "com.amazonaws.ecs.container-name";

/// A connection to the engine that Berth uses too.
#[derive(Debug, Clone)]
pub struct Engine {
    docker: Docker,
}

/// How long the steps of a container's life took with nothing between.
#[derive(Debug, Clone, Copy)]
pub struct Floor {
    /// The create call.
    pub create: Duration,
    /// The start call.
    pub start: Duration,
    /// The stop call.
    pub stop: Duration,
}

impl Engine {
    /// Connects to `DOCKER_HOST`, or to the usual socket.
    ///
    /// # Errors
    /// When no engine answers.
    pub async fn connect() -> Result<Self> {
        let host = std::env::var("DOCKER_HOST").unwrap_or_else(|_| "unix:///var/run/docker.sock".to_owned());
        Self::at(&host).await
    }

    /// Connects to the engine at an address such as `DOCKER_HOST` has.
    ///
    /// # Errors
    /// When no engine answers.
    pub async fn at(host: &str) -> Result<Self> {
        let docker = Docker::connect_with_host(host)?.negotiate_version().await;
        let docker =
            docker.with_context(|| format!("no engine at {host}: run tests/scripts/engine.sh ensure"))?;
        Ok(Self { docker })
    }

    /// The client, for what has no helper here.
    #[must_use]
    pub fn docker(&self) -> &Docker {
        &self.docker
    }

    /// Containers of tasks of the cluster, ended ones included.
    ///
    /// # Errors
    /// What the engine says.
    pub async fn containers_of(&self, cluster: &str) -> Result<Vec<ContainerSummary>> {
        let within = format!(":task/{cluster}/");
        let mut found = self.containers_labelled(TASK_ARN).await?;
        found.retain(|c| label(c, TASK_ARN).is_some_and(|arn| arn.contains(&within)));
        Ok(found)
    }

    /// Containers of one task, ended ones included.
    ///
    /// # Errors
    /// What the engine says.
    pub async fn containers_of_task(&self, task_arn: &str) -> Result<Vec<ContainerSummary>> {
        self.containers_labelled(&format!("{TASK_ARN}={task_arn}")).await
    }

    /// The engine's id of the container of that name in the task.
    ///
    /// # Errors
    /// When there is none.
    pub async fn id_of(&self, task_arn: &str, container: &str) -> Result<String> {
        let all = self.containers_of_task(task_arn).await?;
        let found = all.into_iter().find(|c| label(c, CONTAINER_NAME) == Some(container));
        found.and_then(|c| c.id).with_context(|| format!("{task_arn} has no container {container}"))
    }

    /// Containers with a label (`key` or `key=value`), ended ones included.
    ///
    /// # Errors
    /// What the engine says.
    pub async fn containers_labelled(&self, label: &str) -> Result<Vec<ContainerSummary>> {
        let filters = HashMap::from([("label", vec![label])]);
        let options = ListContainersOptionsBuilder::new().all(true).filters(&filters).build();
        Ok(self.docker.list_containers(Some(options)).await?)
    }

    /// The id of the container whose name has that part.
    ///
    /// # Errors
    /// When there is none.
    pub async fn named(&self, part: &str) -> Result<String> {
        let filters = HashMap::from([("name", vec![part])]);
        let options = ListContainersOptionsBuilder::new().all(true).filters(&filters).build();
        let found = self.docker.list_containers(Some(options)).await?.pop();
        found.and_then(|c| c.id).with_context(|| format!("no container has {part} in its name"))
    }

    /// What the engine knows of a container.
    ///
    /// # Errors
    /// What the engine says.
    pub async fn inspect(&self, id: &str) -> Result<ContainerInspectResponse> {
        Ok(self.docker.inspect_container(id, None::<InspectContainerOptions>).await?)
    }

    /// What a container has said.
    ///
    /// # Errors
    /// What the engine says.
    pub async fn logs(&self, id: &str) -> Result<String> {
        let options = LogsOptionsBuilder::new().stdout(true).stderr(true).build();
        let chunks: Vec<_> = self.docker.logs(id, Some(options)).try_collect().await?;
        Ok(chunks.iter().map(ToString::to_string).collect())
    }

    /// SIGKILL from outside, behind Berth's back.
    ///
    /// # Errors
    /// What the engine says.
    pub async fn kill(&self, id: &str) -> Result<()> {
        Ok(self.docker.kill_container(id, None::<KillContainerOptions>).await?)
    }

    /// Removes a container, running or not. One that is not there is fine.
    ///
    /// # Errors
    /// What the engine says.
    pub async fn remove(&self, id: &str) -> Result<()> {
        let options = RemoveContainerOptionsBuilder::new().force(true).v(true).build();
        match self.docker.remove_container(id, Some(options)).await {
            Ok(()) => Ok(()),
            // 404: gone. 409: somebody else is removing it.
            Err(bollard::errors::Error::DockerResponseServerError { status_code: 404 | 409, .. }) => Ok(()),
            Err(why) => Err(why).with_context(|| format!("removing container {id}")),
        }
    }

    /// Removes a volume.
    ///
    /// # Errors
    /// When the engine refuses.
    pub async fn remove_volume(&self, name: &str) -> Result<()> {
        Ok(self.docker.remove_volume(name, None::<RemoveVolumeOptions>).await?)
    }

    /// Removes the volumes that were of tasks of the cluster alone.
    ///
    /// # Errors
    /// The first that failed.
    pub async fn remove_volumes_of(&self, cluster: &str) -> Result<()> {
        let within = format!(":task/{cluster}/");
        let filters = HashMap::from([("label", vec![TASK_ARN])]);
        let options = ListVolumesOptionsBuilder::new().filters(&filters).build();
        for volume in self.docker.list_volumes(Some(options)).await?.volumes.unwrap_or_default() {
            if volume.labels.get(TASK_ARN).is_some_and(|arn| arn.contains(&within)) {
                self.remove_volume(&volume.name).await?;
            }
        }
        Ok(())
    }

    /// Removes all containers of tasks of the cluster; every one is tried.
    ///
    /// # Errors
    /// The first that failed.
    pub async fn remove_containers_of(&self, cluster: &str) -> Result<()> {
        let ids = self.containers_of(cluster).await?.into_iter().filter_map(|c| c.id);
        let removed: Vec<Result<()>> =
            futures_util::future::join_all(ids.map(|id| async move { self.remove(&id).await })).await;
        removed.into_iter().collect()
    }

    /// Removes all holders of network namespaces of the agent with that data folder.
    ///
    /// # Errors
    /// The first that failed.
    pub async fn remove_holders_of(&self, data_dir: &Path) -> Result<()> {
        let label = format!("io.berth.holder={}", data_dir.display());
        for holder in self.containers_labelled(&label).await? {
            self.remove(holder.id.as_deref().unwrap_or_default()).await?;
        }
        Ok(())
    }

    /// Creates, starts, stops and removes one demo container with nothing between: what any agent
    /// on this engine pays at least. `network` is the engine's: host, none or bridge.
    ///
    /// # Errors
    /// What the engine says.
    pub async fn floor(&self, network: &str) -> Result<Floor> {
        let body = ContainerCreateBody {
            image: Some(demo::IMAGE.to_owned()),
            cmd: Some(vec!["sleep".to_owned(), "3600".to_owned()]),
            labels: Some(HashMap::from([("berth.floor".to_owned(), String::new())])),
            host_config: Some(HostConfig { network_mode: Some(network.to_owned()), ..HostConfig::default() }),
            ..ContainerCreateBody::default()
        };
        let began = Instant::now();
        let id = self.docker.create_container(None, body).await?.id;
        let create = began.elapsed();
        let rest = self.floor_of(&id).await;
        self.remove(&id).await?;
        let (start, stop) = rest?;
        Ok(Floor { create, start, stop })
    }

    async fn floor_of(&self, id: &str) -> Result<(Duration, Duration)> {
        let began = Instant::now();
        self.docker.start_container(id, None::<StartContainerOptions>).await?;
        let start = began.elapsed();
        let began = Instant::now();
        self.docker.stop_container(id, Some(StopContainerOptionsBuilder::new().t(30).build())).await?;
        let stop = began.elapsed();
        if stop > Duration::from_secs(20) {
            bail!("the demo program did not end at SIGTERM");
        }
        Ok((start, stop))
    }
}

fn label<'a>(container: &'a ContainerSummary, key: &str) -> Option<&'a str> {
    container.labels.as_ref()?.get(key).map(String::as_str)
}
