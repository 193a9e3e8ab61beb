//! Holders in Docker.

use std::collections::HashMap;
use std::time::Duration;

use berth_core::ids::EngineId;
use bollard::models::{ContainerCreateBody, HostConfig};
use bollard::query_parameters::{
    CreateContainerOptions, ImportImageOptions, RemoveContainerOptions, RenameContainerOptions,
    StartContainerOptions,
};
use futures_util::future::{BoxFuture, FutureExt};
use futures_util::stream::TryStreamExt;
use serde::Deserialize;

use super::client::CallError;
use super::transport::escape;
use super::{Docker, image, is_container_missing, is_name_taken};
use crate::runtime::holder::{Holder, Holders};
use crate::runtime::{RuntimeError, labels};

/// As a listing and an inspection say it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Summary {
    id: String,
    #[serde(default)]
    names: Vec<String>,
    #[serde(default)]
    state: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Details {
    id: String,
    state: State,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct State {
    running: bool,
    #[serde(default)]
    pid: u32,
}

impl Docker {
    async fn details(&self, id_or_name: &str) -> Result<Option<Details>, RuntimeError> {
        let link = self.connector.link().await?;
        match link.get::<Details>(&format!("/containers/{}/json", escape(id_or_name, ""))).await {
            Ok(details) => Ok(Some(details)),
            Err(CallError::Answer(answer)) if answer.status == 404 => Ok(None),
            Err(error) => Err(self.connector.failed(&link, error).await),
        }
    }

    async fn make_holder(
        &self,
        name: &str,
        image: &str,
        hostname: &str,
        shares_ipc: bool,
    ) -> Result<EngineId, RuntimeError> {
        let link = self.connector.link().await?;
        let own = self.namespace.clone().unwrap_or_default();
        let body = ContainerCreateBody {
            image: Some(image.to_owned()),
            hostname: (!hostname.is_empty()).then(|| hostname.to_owned()),
            labels: Some(HashMap::from([(labels::HOLDER.to_owned(), own)])),
            host_config: Some(HostConfig {
                network_mode: Some("none".to_owned()),
                ipc_mode: shares_ipc.then(|| "shareable".to_owned()),
                ..HostConfig::default()
            }),
            ..ContainerCreateBody::default()
        };
        let options = CreateContainerOptions { name: Some(name.to_owned()), ..Default::default() };
        let id = match link.api.create_container(Some(options), body).await.map_err(CallError::from) {
            Ok(created) => created.id,
            Err(CallError::Answer(answer)) if is_name_taken(&answer) => match self.details(name).await? {
                Some(found) => found.id,
                None => return Err(RuntimeError::Refused(format!("the name {name} is not to be had"))),
            },
            Err(error) => return Err(self.connector.failed(&link, error).await),
        };
        let started = link.api.start_container(&id, None::<StartContainerOptions>).await;
        if let Err(error) = started.map_err(CallError::from) {
            return Err(self.connector.failed(&link, error).await);
        }
        EngineId::new(&id).map_err(|error| RuntimeError::Refused(error.to_string()))
    }
}

impl Holders for Docker {
    fn have_image<'a>(
        &'a self,
        reference: &'a str,
        archive: &'a (dyn Fn() -> Vec<u8> + Send + Sync),
    ) -> BoxFuture<'a, Result<(), RuntimeError>> {
        async move {
            if image::find(&self.connector, reference).await?.is_some() {
                return Ok(());
            }
            let link = self.connector.link().await?;
            let options = ImportImageOptions { quiet: true, ..Default::default() };
            let load = link.api.import_image(options, bollard::body_full(archive().into()), None);
            match load.try_collect::<Vec<_>>().await.map_err(CallError::from) {
                Ok(_) => Ok(()),
                Err(error) => Err(self.connector.failed(&link, error).await),
            }
        }
        .boxed()
    }

    fn hold<'a>(
        &'a self,
        name: &'a str,
        image: &'a str,
        hostname: &'a str,
        shares_ipc: bool,
    ) -> BoxFuture<'a, Result<EngineId, RuntimeError>> {
        self.pace.launch(self.make_holder(name, image, hostname, shares_ipc)).boxed()
    }

    fn rename<'a>(&'a self, id: &'a EngineId, name: &'a str) -> BoxFuture<'a, Result<(), RuntimeError>> {
        async move {
            let link = self.connector.link().await?;
            let options = RenameContainerOptions { name: name.to_owned() };
            match link.api.rename_container(id.as_str(), options).await.map_err(CallError::from) {
                Ok(()) => Ok(()),
                Err(error) => Err(self.connector.failed(&link, error).await),
            }
        }
        .boxed()
    }

    fn pid<'a>(&'a self, id: &'a EngineId) -> BoxFuture<'a, Result<Option<u32>, RuntimeError>> {
        async move {
            let details = self.details(id.as_str()).await?;
            Ok(details.filter(|details| details.state.running).map(|details| details.state.pid))
        }
        .boxed()
    }

    fn holders(&self) -> BoxFuture<'_, Result<Vec<Holder>, RuntimeError>> {
        async move {
            let link = self.connector.link().await?;
            let label = match &self.namespace {
                Some(own) => format!("{}={own}", labels::HOLDER),
                None => labels::HOLDER.to_owned(),
            };
            let filters = serde_json::json!({ "label": [label] }).to_string();
            let path = format!("/containers/json?all=1&filters={}", escape(&filters, ""));
            let found: Vec<Summary> = match link.get(&path).await {
                Ok(found) => found,
                Err(error) => return Err(self.connector.failed(&link, error).await),
            };
            let holder = |summary: Summary| {
                let name = summary.names.first().map(|name| name.trim_start_matches('/').to_owned());
                let id = EngineId::new(&summary.id).ok()?;
                Some(Holder { id, name: name.unwrap_or_default(), running: summary.state == "running" })
            };
            Ok(found.into_iter().filter_map(holder).collect())
        }
        .boxed()
    }

    fn quiet(&self, pause: Duration) -> BoxFuture<'_, ()> {
        self.pace.quiet(pause).boxed()
    }

    fn release<'a>(&'a self, id: &'a EngineId) -> BoxFuture<'a, Result<(), RuntimeError>> {
        let removal = async move {
            let link = self.connector.link().await?;
            let options = RemoveContainerOptions { v: true, force: true, link: false };
            match link.api.remove_container(id.as_str(), Some(options)).await.map_err(CallError::from) {
                Ok(()) => Ok(()),
                Err(CallError::Answer(answer)) if is_container_missing(&answer) || answer.status == 409 => {
                    Ok(())
                }
                Err(error) => Err(self.connector.failed(&link, error).await),
            }
        };
        self.pace.end(removal).boxed()
    }
}
