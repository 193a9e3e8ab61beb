//! Promise: images come from real registries, with the login that they want; a registry that fails is
//! tried again where that may help, and otherwise the task says why it has no image.

use std::fs;
use std::path::Path;

use anyhow::{Result, ensure};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use berth_tests::cluster::{container, text};
use berth_tests::expect::PATIENCE;
use berth_tests::registry::{PASSWORD, USER};
use berth_tests::{Cluster, Engine, Fault, Registry, Server, demo, eventually};
use serde_json::{Value, json};

fn stays(family: &str, image: &str, members: Value) -> Value {
    let container =
        demo::merged(demo::container_with("app", &["sleep", "3600"], members), &json!({ "image": image }));
    demo::task(family, "host", json!([container]))
}

/// An agent that has the registry's login from the operator.
async fn cluster(registry: &Registry, behaviour: &str) -> Result<Cluster> {
    let logins = json!({ registry.name(): { "username": USER, "password": PASSWORD } }).to_string();
    Cluster::start_with(&[
        ("ECS_ENGINE_AUTH_TYPE", "docker"),
        ("ECS_ENGINE_AUTH_DATA", &logins),
        ("ECS_IMAGE_PULL_BEHAVIOR", behaviour),
    ])
    .await
}

async fn registry() -> Result<Registry> {
    demo::image().await?;
    Registry::start(&Engine::connect().await?).await
}

#[tokio::test]
async fn an_image_comes_from_a_registry_with_the_operators_login_and_tells_its_digest() -> Result<()> {
    let registry = registry().await?;
    let image = registry.put("team/web:1").await?;
    let cluster = cluster(&registry, "default").await?;
    let (_, task) = cluster.running(stays("login", &image, json!({}))).await?;
    let digest = text(container(&task, "app")?, "imageDigest")?;
    ensure!(digest.starts_with("sha256:") && digest.len() == 71, "{digest}");
    ensure!(!cluster.agent.output().contains(PASSWORD), "the password is in the log");
    // By its digest, too.
    let by_digest = format!("{}@{digest}", image.trim_end_matches(":1"));
    let (_, task) = cluster.running(stays("digest", &by_digest, json!({}))).await?;
    assert_eq!(text(container(&task, "app")?, "imageDigest")?, digest);
    Ok(())
}

/// A folder with secrets, one of which is a login.
fn secrets(folder: &Path, password: &str) -> Result<String> {
    fs::write(folder.join("login"), json!({ "username": USER, "password": password }).to_string())?;
    Ok(format!("directory:{}", folder.display()))
}

#[tokio::test]
async fn a_task_brings_the_login_of_its_registry() -> Result<()> {
    let registry = registry().await?;
    let image = registry.put("team/private:1").await?;
    let folder = tempfile::tempdir()?;
    let source = secrets(folder.path(), PASSWORD)?;
    let env = [("BERTH_SECRETS", source.as_str()), ("ECS_IMAGE_PULL_BEHAVIOR", "always")];
    let cluster = Cluster::start_with(&env).await?;
    let login = json!({ "repositoryCredentials": { "credentialsParameter": "login" } });
    cluster.running(stays("private", &image, login.clone())).await?;

    // Without it, and with a wrong one.
    let (_, stopped) = cluster.stopped(stays("nobody", &image, json!({}))).await?;
    let reason = text(container(&stopped, "app")?, "reason")?;
    ensure!(reason.starts_with("CannotPullContainerError: ") && reason.contains("wants a login"), "{reason}");
    secrets(folder.path(), "wrong")?;
    let (_, stopped) = cluster.stopped(stays("wrong", &image, login)).await?;
    let reason = text(container(&stopped, "app")?, "reason")?;
    ensure!(reason.contains("wants a login") && !reason.contains("wrong\""), "{reason}");
    let absent = json!({ "repositoryCredentials": { "credentialsParameter": "absent" } });
    let (_, stopped) = cluster.stopped(stays("absent", &image, absent)).await?;
    let reason = text(container(&stopped, "app")?, "reason")?;
    ensure!(reason.contains("unable to pull registry auth") && reason.contains("absent"), "{reason}");
    Ok(())
}

#[tokio::test]
async fn what_docker_login_left_is_used() -> Result<()> {
    let registry = registry().await?;
    let image = registry.put("team/docker:1").await?;
    let folder = tempfile::tempdir()?;
    // A helper, as `docker login` would use one.
    let helper = folder.path().join("docker-credential-berthtest");
    let script = format!(
        "#!/bin/sh\nread -r server\n[ \"$server\" = {} ] || {{ echo 'credentials not found in native keychain'; exit 1; }}\n\
         printf '{{\"Username\": \"%s\", \"Secret\": \"%s\"}}' '{USER}' '{PASSWORD}'\n",
        registry.name()
    );
    fs::write(&helper, script)?;
    fs::set_permissions(&helper, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    fs::write(
        folder.path().join("config.json"),
        json!({ "credHelpers": { registry.name(): "berthtest" } }).to_string(),
    )?;
    let path = format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", folder.path().display());
    let config = folder.path().display().to_string();
    let env = [("DOCKER_CONFIG", config.as_str()), ("PATH", &path), ("ECS_IMAGE_PULL_BEHAVIOR", "always")];
    let cluster = Cluster::start_with(&env).await?;
    cluster.running(stays("helper", &image, json!({}))).await?;
    Ok(())
}

#[tokio::test]
async fn many_that_wait_for_one_image_cost_one_pull() -> Result<()> {
    let registry = registry().await?;
    let image = registry.put("team/shared:1").await?;
    let cluster = cluster(&registry, "prefer-cached").await?;
    let definition = cluster.register(stays("shared", &image, json!({}))).await?;
    let mut tasks = Vec::new();
    for _ in 0..6 {
        tasks.push(cluster.run_definition(&definition).await?);
    }
    for task in &tasks {
        cluster.until(task, "RUNNING", PATIENCE).await?;
    }
    // The engine asks for the manifest once in each pull.
    assert_eq!(registry.manifests("/v2/team/shared/manifests/1"), 1);
    Ok(())
}

#[tokio::test]
async fn a_registry_that_fails_is_told_with_what_to_do() -> Result<()> {
    let registry = registry().await?;
    let image = registry.put("team/failing:1").await?;
    let cluster = cluster(&registry, "always").await?;
    for (fault, why) in [
        (Fault::Status(401), "wants a login"),
        (Fault::Status(403), "wants a login"),
        (Fault::Status(404), "name and tag"),
        (Fault::Status(429), "how often it is asked"),
        (Fault::Status(500), "500 internal"),
        (Fault::Corrupt, "damaged"),
    ] {
        registry.fail(Some(fault));
        let (_, stopped) = cluster.stopped(stays("failing", &image, json!({}))).await?;
        let reason = text(container(&stopped, "app")?, "reason")?;
        let told = reason.starts_with("CannotPullContainerError: ") && reason.to_lowercase().contains(why);
        ensure!(told && reason.contains(&image), "{fault:?}: {reason}");
        assert_eq!(stopped["stopCode"], "TaskFailedToStart", "{fault:?}");
    }
    Ok(())
}

#[tokio::test]
async fn a_registry_that_fails_for_a_moment_is_tried_again() -> Result<()> {
    let registry = registry().await?;
    let image = registry.put("team/passing:1").await?;
    let cluster = cluster(&registry, "always").await?;
    for fault in [Fault::Passing(503, 2), Fault::Passing(429, 1)] {
        registry.forget(&image).await?;
        registry.fail(Some(fault));
        cluster.running(stays("passing", &image, json!({}))).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_pull_that_stalls_holds_up_nobody_and_ends_with_its_task() -> Result<()> {
    let (stalls, works) = (registry().await?, registry().await?);
    let slow = stalls.put("team/stalls:1").await?;
    let quick = works.put("team/works:1").await?;
    let logins = json!({
        stalls.name(): { "username": USER, "password": PASSWORD },
        works.name(): { "username": USER, "password": PASSWORD },
    });
    let cluster = Cluster::start_with(&[
        ("ECS_ENGINE_AUTH_TYPE", "docker"),
        ("ECS_ENGINE_AUTH_DATA", &logins.to_string()),
        ("ECS_IMAGE_PULL_BEHAVIOR", "always"),
    ])
    .await?;
    stalls.fail(Some(Fault::Stall));
    let waits = cluster.run(stays("stalls", &slow, json!({}))).await?;
    eventually(PATIENCE, "it says what it waits for, and how far that is", || async {
        let said = cluster.agent.typed(&["tasks"]).await?;
        let (_, rest) = said.split_once(&format!("waits for image {slow}, ")).unwrap_or_default();
        Ok(rest.contains(" of ").then_some(()))
    })
    .await?;
    cluster.running(stays("works", &quick, json!({}))).await?;
    cluster.stop(&waits, None).await?;
    cluster.until(&waits, "STOPPED", PATIENCE).await?;
    Ok(())
}

#[tokio::test]
async fn a_full_disk_gets_rid_of_images_that_nobody_uses_and_of_no_other() -> Result<()> {
    let registry = registry().await?;
    let (first, second) = (registry.put("team/first:1").await?, registry.put("team/second:1").await?);
    let others = registry.put("team/others:1").await?;
    let logins = json!({ registry.name(): { "username": USER, "password": PASSWORD } }).to_string();
    let cluster = Cluster::start_with(&[
        ("ECS_ENGINE_AUTH_TYPE", "docker"),
        ("ECS_ENGINE_AUTH_DATA", &logins),
        ("ECS_IMAGE_PULL_BEHAVIOR", "once"),
        ("ECS_ENGINE_TASK_CLEANUP_WAIT_DURATION", "1s"),
        // Any disk is as full as that.
        ("BERTH_IMAGE_CLEANUP_DISK", "1,1"),
    ])
    .await?;
    let has = async |image: &str| cluster.engine.docker().inspect_image(image).await.is_ok();
    // Somebody else brings an image.
    registry.pull(&others).await?;
    let (task, _) = cluster.running(stays("first", &first, json!({}))).await?;
    cluster.stop(&task, None).await?;
    cluster.until(&task, "STOPPED", PATIENCE).await?;
    eventually(PATIENCE, "the first task's container is cleaned up", || async {
        Ok(cluster.engine.containers_of_task(&task).await?.is_empty().then_some(()))
    })
    .await?;
    ensure!(has(&first).await, "an image went without a reason");
    // The next pull has the disk looked at.
    cluster.running(stays("second", &second, json!({}))).await?;
    eventually(PATIENCE, "the unused image is gone", || async { Ok((!has(&first).await).then_some(())) })
        .await?;
    ensure!(has(&second).await, "an image that is used is gone");
    ensure!(has(&others).await, "somebody else's image is gone");
    // What was cleaned up comes again when it is wanted.
    cluster.running(stays("again", &first, json!({}))).await?;
    Ok(())
}

#[tokio::test]
async fn a_mirror_is_asked_first_and_the_registry_itself_when_it_does_not_have_the_image() -> Result<()> {
    let (mirror, origin) = (registry().await?, registry().await?);
    // The mirror has the one, the registry itself the other.
    let there = mirror.put("hub/team/mirrored:1").await?;
    let only_at_home = origin.put("team/home:1").await?;
    let mirrored = format!("{}/team/mirrored:1", origin.name());
    let logins = json!({
        mirror.name(): { "username": USER, "password": PASSWORD },
        origin.name(): { "username": USER, "password": PASSWORD },
    });
    let cluster = Cluster::start_with(&[
        ("ECS_ENGINE_AUTH_TYPE", "docker"),
        ("ECS_ENGINE_AUTH_DATA", &logins.to_string()),
        ("BERTH_REGISTRY_MIRRORS", &format!("{}={}/hub", origin.name(), mirror.name())),
    ])
    .await?;
    let (task, described) = cluster.running(stays("mirrored", &mirrored, json!({}))).await?;
    ensure!(text(container(&described, "app")?, "imageDigest")?.starts_with("sha256:"), "{described}");
    ensure!(cluster.engine.docker().inspect_image(&there).await.is_err(), "the mirror's name is left behind");
    cluster.running(stays("home", &only_at_home, json!({}))).await?;
    let told = cluster.agent.typed(&["explain", &task]).await?;
    ensure!(told.contains(" KiB came"), "{told}");
    let images = cluster.agent.typed(&["images"]).await?;
    let line = images.lines().find(|line| line.starts_with(&mirrored)).unwrap_or_default();
    ensure!(line.contains("in use") && line.contains("pulled 20"), "{images}");
    cluster.stop(&task, None).await?;
    cluster.until(&task, "STOPPED", PATIENCE).await?;
    origin.forget(&mirrored).await
}

#[tokio::test]
async fn a_registry_that_never_answers_is_given_up() -> Result<()> {
    let registry = registry().await?;
    let image = registry.put("team/silent:1").await?;
    let logins = json!({ registry.name(): { "username": USER, "password": PASSWORD } }).to_string();
    let cluster = Cluster::start_with(&[
        ("ECS_ENGINE_AUTH_TYPE", "docker"),
        ("ECS_ENGINE_AUTH_DATA", &logins),
        ("ECS_IMAGE_PULL_BEHAVIOR", "always"),
        ("BERTH_IMAGE_PULL_BEGIN_TIMEOUT", "1s"),
    ])
    .await?;
    registry.fail(Some(Fault::Silence));
    let (_, stopped) = cluster.stopped(stays("silent", &image, json!({}))).await?;
    let reason = text(container(&stopped, "app")?, "reason")?;
    ensure!(
        reason.starts_with("CannotPullContainerError: ")
            && reason.contains("the registry says nothing for 1"),
        "{reason}"
    );
    Ok(())
}

#[tokio::test]
async fn a_registry_that_behaves_as_ecr_does_gets_a_token_that_is_asked_for_once() -> Result<()> {
    let registry = registry().await?;
    let image = registry.put("team/ecr:1").await?;
    let token = BASE64_STANDARD.encode(format!("{USER}:{PASSWORD}"));
    let tokens = Server::start(move |asked| {
        let signed = asked.header("authorization");
        if !signed.starts_with("AWS4-HMAC-SHA256 Credential=AKIAHOST/")
            || !signed.contains("/ecr/aws4_request")
        {
            return (400, json!({ "__type": "UnrecognizedClientException", "message": "who?" }).to_string());
        }
        let given = json!({ "authorizationToken": token, "expiresAt": 4_102_444_800_u64 });
        (200, json!({ "authorizationData": [given] }).to_string())
    })
    .await?;
    let (name, url) = (registry.name(), tokens.url("/"));
    let mut env = vec![
        ("AWS_SECRET_ACCESS_KEY", "secret"),
        ("AWS_ENDPOINT_URL_ECR", url.as_str()),
        ("BERTH_ECR_REGISTRIES", name.as_str()),
        ("ECS_IMAGE_PULL_BEHAVIOR", "always"),
        ("AWS_ACCESS_KEY_ID", "AKIAHOST"),
    ];
    let cluster = Cluster::start_with(&env).await?;
    cluster.running(stays("ecr", &image, json!({}))).await?;
    cluster.running(stays("ecr-again", &image, json!({}))).await?;
    assert_eq!(tokens.asked().len(), 1);
    assert_eq!(
        tokens.asked()[0].header("x-amz-target"),
        "AmazonEC2ContainerRegistry_V20150921.GetAuthorizationToken"
    );
    ensure!(!cluster.agent.output().contains(PASSWORD), "the token is in the log");
    // A key that the service does not know.
    env.pop();
    env.push(("AWS_ACCESS_KEY_ID", "AKIASTRANGER"));
    let cluster = Cluster::start_with(&env).await?;
    let (_, stopped) = cluster.stopped(stays("stranger", &image, json!({}))).await?;
    let reason = text(container(&stopped, "app")?, "reason")?;
    ensure!(
        reason.contains("unable to pull registry auth") && reason.contains("UnrecognizedClientException"),
        "{reason}"
    );
    Ok(())
}
