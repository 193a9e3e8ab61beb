//! Logins of registries: which one an image's registry wants, from the task, the operator's settings, or
//! what `docker login` left on the host.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use berth_core::image::{HUB, normal_registry, registry};
use futures_util::future::OptionFuture;
use serde::Deserialize;
use tokio::io::AsyncWriteExt;

use super::ecr::Ecr;
use crate::config::{EcrAccess, RegistryLogin, Secret, without_secrets};
use crate::runtime::RegistryAuth;
use crate::secret::Secrets;

/// Docker Hub, as `docker login` writes it.
const HUB_LOGIN: &str = "https://index.docker.io/v1/";
/// Longest that a credential helper may take.
const HELPER: Duration = Duration::from_secs(30);

/// Why there is no login where one was asked for. The text is for users.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
#[error("unable to pull registry auth: {0}")]
pub struct LoginError(String);

/// Knows logins.
pub struct Logins {
    own: HashMap<String, RegistryLogin>,
    ecr: Option<Ecr>,
    docker_config: Option<PathBuf>,
    secrets: Arc<Secrets>,
}

/// What repositoryCredentials names: a secret of this form.
#[derive(Deserialize)]
struct Kept {
    username: String,
    password: String,
}

/// `config.json` of the Docker command line, as far as logins go.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct DockerConfig {
    auths: HashMap<String, DockerAuth>,
    cred_helpers: HashMap<String, String>,
    creds_store: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct DockerAuth {
    auth: String,
}

impl std::fmt::Debug for DockerAuth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}

/// What a credential helper prints.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Helped {
    username: String,
    secret: String,
}

impl Logins {
    /// The operator's own logins by registry, what tokens of ECR are asked for with, the folder of the Docker
    /// command line's settings, and where the logins of tasks are kept.
    #[must_use]
    pub fn new(
        own: HashMap<String, RegistryLogin>,
        ecr: Option<EcrAccess>,
        docker_config: Option<PathBuf>,
        secrets: Arc<Secrets>,
    ) -> Self {
        let own = own.into_iter().map(|(registry, login)| (normal_registry(&registry), login)).collect();
        Self { own, ecr: ecr.map(Ecr::new), docker_config, secrets }
    }

    /// The registry of an image did not take its login: one that can be had anew is.
    pub fn refused(&self, image: &str) {
        if let Some(ecr) = &self.ecr {
            ecr.refused(&registry(image));
        }
    }

    /// The login for an image: the one that the task names, where it names one; `None` for nobody.
    ///
    /// # Errors
    /// [`LoginError`] when the task names one that is not to be had, or a helper fails.
    pub async fn of(&self, image: &str, kept: Option<&str>) -> Result<Option<RegistryAuth>, LoginError> {
        let registry = registry(image);
        let server = if registry == HUB { HUB_LOGIN.to_owned() } else { registry.clone() };
        let auth =
            |username: String, password: String| RegistryAuth { username, password, server: server.clone() };
        if let Some(kept) = kept {
            let secret = self.secrets.value(kept).await.map_err(|error| LoginError(error.to_string()))?;
            let kept: Kept = serde_json::from_str(secret.expose())
                .map_err(|_| LoginError(format!("{kept} is not a JSON object with username and password")))?;
            return Ok(Some(auth(kept.username, kept.password)));
        }
        if let Some(login) = self.own.get(&registry) {
            return Ok(Some(auth(login.username.clone(), login.password.expose().to_owned())));
        }
        if let Some(found) =
            OptionFuture::from(self.ecr.as_ref().map(|ecr| ecr.of(&registry))).await.flatten()
        {
            let (username, password) = found.map_err(LoginError)?;
            return Ok(Some(auth(username, password.expose().to_owned())));
        }
        let Some(folder) = &self.docker_config else { return Ok(None) };
        let found = of_docker(folder, &registry).await?;
        Ok(found.map(|(username, password)| auth(username, password.expose().to_owned())))
    }
}

/// A login of the Docker command line.
async fn of_docker(folder: &Path, registry: &str) -> Result<Option<(String, Secret)>, LoginError> {
    let path = folder.join("config.json");
    let Ok(text) = tokio::fs::read_to_string(&path).await else { return Ok(None) };
    let config: DockerConfig = serde_json::from_str(&text).map_err(|error| {
        LoginError(format!("{} is wrong in line {}, column {}", path.display(), error.line(), error.column()))
    })?;
    let helper = config
        .cred_helpers
        .iter()
        .find(|(name, _)| normal_registry(name) == registry)
        .map(|(_, helper)| helper);
    if let Some(helper) = helper.or(config.creds_store.as_ref()) {
        return helped(helper, registry).await;
    }
    let found =
        config.auths.iter().find(|(name, auth)| normal_registry(name) == registry && !auth.auth.is_empty());
    let Some((name, auth)) = found else { return Ok(None) };
    let decoded = BASE64_STANDARD.decode(&auth.auth).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    let pair = decoded.as_deref().and_then(|text| text.split_once(':'));
    let (username, password) =
        pair.ok_or_else(|| LoginError(format!("{}: the login of {name} cannot be read", path.display())))?;
    Ok(Some((username.to_owned(), Secret::new(password.to_owned()))))
}

/// Asks a credential helper of the Docker command line (docker/docker-credential-helpers, "Development").
async fn helped(helper: &str, registry: &str) -> Result<Option<(String, Secret)>, LoginError> {
    let program = format!("docker-credential-{helper}");
    let failed = |why: String| LoginError(format!("{program}: {why}"));
    if helper.contains('/') {
        return Err(failed("is no name of a helper".to_owned()));
    }
    let mut command = tokio::process::Command::new(&program);
    without_secrets(&mut command);
    command.arg("get").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let asked = async {
        let mut child = command.spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            let server = if registry == HUB { HUB_LOGIN } else { registry };
            stdin.write_all(server.as_bytes()).await?;
        }
        child.wait_with_output().await
    };
    let output = match tokio::time::timeout(HELPER, asked).await {
        Ok(output) => output.map_err(|error| failed(error.to_string()))?,
        Err(_) => return Err(failed(format!("no answer within {} s", HELPER.as_secs()))),
    };
    if !output.status.success() {
        // So helpers say that they have none.
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        return if said.contains("credentials not found") {
            Ok(None)
        } else {
            Err(failed(output.status.to_string()))
        };
    }
    let helped: Helped = serde_json::from_slice(&output.stdout)
        .map_err(|_| failed("did not print what a credential helper prints".to_owned()))?;
    Ok(Some((helped.username, Secret::new(helped.secret))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_tasks_login_comes_first_then_the_operators_then_dockers() {
        let folder = tempfile::tempdir().unwrap();
        let secrets = folder.path().join("secrets");
        std::fs::create_dir(&secrets).unwrap();
        std::fs::write(secrets.join("login"), r#"{"username": "task", "password": "p"}"#).unwrap();
        std::fs::write(secrets.join("broken"), "p").unwrap();
        let auths =
            r#"{"auths": {"https://r.local": {"auth": "ZG9ja2VyOnA6cQ=="}, "bad.local": {"auth": "!"}}}"#;
        std::fs::write(folder.path().join("config.json"), auths).unwrap();
        let own = RegistryLogin { username: "own".to_owned(), password: Secret::new("p".to_owned()) };
        let logins = Logins::new(
            HashMap::from([("https://own.local".to_owned(), own)]),
            None,
            Some(folder.path().to_owned()),
            Arc::new(Secrets::new(Some(crate::config::SecretSource::Directory(secrets)))),
        );
        let user = async |image: &str, kept: Option<&str>| {
            logins.of(image, kept).await.map(|auth| auth.map(|auth| auth.username))
        };
        assert_eq!(user("own.local/web", Some("login")).await, Ok(Some("task".to_owned())));
        assert_eq!(user("own.local/web", None).await, Ok(Some("own".to_owned())));
        assert_eq!(user("r.local/web", None).await, Ok(Some("docker".to_owned())));
        assert_eq!(logins.of("r.local/web", None).await.unwrap().unwrap().password, "p:q");
        assert_eq!(user("web", None).await, Ok(None));
        assert!(user("web", Some("absent")).await.unwrap_err().to_string().contains("absent"));
        assert!(user("web", Some("broken")).await.unwrap_err().to_string().contains("username and password"));
        assert!(user("bad.local/web", None).await.is_err());
    }
}
