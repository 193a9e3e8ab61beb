//! The engine's shapes, as far as we read them, and what they mean.

use std::collections::BTreeMap;

use berth_core::ids::{ContainerInstanceArn, ContainerName, EngineId, TaskArn};
use berth_core::image::repository;
use berth_core::task::{Exit, Fact, Health};
use berth_core::units::Timestamp;
use serde::Deserialize;

use super::client::clean;
use crate::runtime::{ImageFacts, Listed, labels};

/// A container as an inspection tells it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Inspected {
    pub(super) id: String,
    #[serde(default)]
    pub(super) name: String,
    pub(super) state: State,
    #[serde(default)]
    pub(super) config: Config,
}

/// The part of a container's configuration that tells whose it is.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Config {
    #[serde(deserialize_with = "or_default")]
    pub(super) labels: BTreeMap<String, String>,
}

/// The state of a container.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct State {
    pub(super) status: String,
    pub(super) running: bool,
    #[serde(rename = "OOMKilled")]
    pub(super) oom_killed: bool,
    pub(super) exit_code: i64,
    pub(super) error: String,
    pub(super) started_at: String,
    pub(super) finished_at: String,
    pub(super) health: Option<HealthState>,
}

/// The health of a container.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct HealthState {
    pub(super) status: String,
}

/// A container as a listing tells it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Summary {
    pub(super) id: String,
    /// In seconds.
    #[serde(default)]
    pub(super) created: u64,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) labels: BTreeMap<String, String>,
}

/// An image as an inspection tells it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Image {
    pub(super) id: String,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) repo_digests: Vec<String>,
}

/// An image as a listing tells it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct ListedImage {
    #[serde(default, deserialize_with = "or_default")]
    pub(super) repo_tags: Vec<String>,
    /// In seconds; before 1970 where nobody wrote it down.
    pub(super) created: i64,
    /// In bytes.
    #[serde(default)]
    pub(super) size: i64,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) labels: BTreeMap<String, String>,
}

/// What the engine says of itself.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Info {
    pub(super) server_version: String,
    pub(super) docker_root_dir: String,
    pub(super) cgroup_driver: String,
    /// Engines with cgroup v1 alone leave it out.
    pub(super) cgroup_version: String,
    #[serde(deserialize_with = "or_default")]
    pub(super) plugins: Plugins,
    #[serde(deserialize_with = "or_default")]
    pub(super) security_options: Vec<String>,
    pub(super) live_restore_enabled: bool,
}

/// The engine's plugins.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Plugins {
    #[serde(deserialize_with = "or_default")]
    pub(super) volume: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    pub(super) log: Vec<String>,
}

/// `null` means the same as an absent field.
pub(super) fn or_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

impl Inspected {
    /// What is true of the container. `None` when its id is not one.
    pub(super) fn fact(self) -> Option<Fact> {
        let id = EngineId::new(&self.id).ok()?;
        Some(self.state.fact(id))
    }
}

impl State {
    /// Whether its main process ever started.
    pub(super) fn was_started(&self) -> bool {
        timestamp(&self.started_at).is_some()
    }

    fn fact(self, id: EngineId) -> Fact {
        let started_at = timestamp(&self.started_at);
        match (self.status.as_str(), started_at) {
            // A paused container runs as far as its task is concerned; one that restarts is about to.
            ("running" | "paused" | "restarting", Some(started_at)) => {
                Fact::Running { id, started_at, health: self.health.as_ref().and_then(health) }
            }
            // It vanishes without ever having run.
            ("removing", None) => Fact::Missing,
            ("exited" | "dead" | "removing", _) => self.exited(id),
            ("created", None) => Fact::Created { id },
            // States that are not known here: what the engine says of the process decides.
            (_, Some(started_at)) if self.running => {
                Fact::Running { id, started_at, health: self.health.as_ref().and_then(health) }
            }
            (_, Some(_)) => self.exited(id),
            (_, None) => Fact::Created { id },
        }
    }

    fn exited(self, id: EngineId) -> Fact {
        let error = clean_error(&self.error);
        Fact::Exited {
            id,
            exit: Exit {
                code: i32::try_from(self.exit_code).unwrap_or(i32::MAX),
                oom_killed: self.oom_killed,
                task_memory_peak: None,
                with_engine: false,
                error,
                started_at: timestamp(&self.started_at),
                finished_at: timestamp(&self.finished_at),
            },
        }
    }
}

fn clean_error(text: &str) -> Option<String> {
    (!text.trim().is_empty()).then(|| clean(text))
}

fn health(state: &HealthState) -> Option<Health> {
    match state.status.as_str() {
        "starting" => Some(Health::Unknown),
        "healthy" => Some(Health::Healthy),
        "unhealthy" => Some(Health::Unhealthy),
        _ => None,
    }
}

/// Milliseconds of an RFC 3339 time; the engine's zero time, year 1, means that there is none.
pub(super) fn timestamp(text: &str) -> Option<Timestamp> {
    let millis = text.parse::<jiff::Timestamp>().ok()?.as_millisecond();
    u64::try_from(millis).ok().filter(|millis| *millis > 0).map(Timestamp)
}

impl Summary {
    /// A container of ours. `None` when its labels are not such as we write.
    pub(super) fn listed(mut self) -> Option<Listed> {
        let (task, container) = owner(&self.labels)?;
        Some(Listed {
            id: EngineId::new(&self.id).ok()?,
            task,
            container,
            instance: self.labels.get(labels::INSTANCE).and_then(|arn| ContainerInstanceArn::new(arn).ok()),
            spec: self.labels.remove(labels::SPEC),
            // A listing has no start time and no exit code, and it is a snapshot: it says "created"
            // of a container that is being started.
            fact: None,
        })
    }
}

/// The task and the container that labels name.
pub(super) fn owner(labels: &BTreeMap<String, String>) -> Option<(TaskArn, ContainerName)> {
    let task = TaskArn::new(labels.get(labels::TASK_ARN)?).ok()?;
    let container = ContainerName::new(labels.get(labels::CONTAINER_NAME)?).ok()?;
    Some((task, container))
}

impl Image {
    /// The facts of an image that was asked for by `reference`.
    pub(super) fn facts(self, reference: &str) -> ImageFacts {
        let wanted = repository(reference);
        let digest = self
            .repo_digests
            .iter()
            .filter_map(|entry| entry.split_once('@'))
            .find(|(name, _)| repository(name) == wanted)
            .map(|(_, digest)| digest.to_owned());
        ImageFacts { id: self.id, digest }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(status: &str, started: bool) -> State {
        let started_at = if started { "2026-01-02T03:04:05.678901234Z" } else { "0001-01-01T00:00:00Z" };
        State {
            status: status.to_owned(),
            started_at: started_at.to_owned(),
            exit_code: 3,
            ..State::default()
        }
    }

    #[test]
    fn every_state_of_the_engine_has_a_meaning() {
        let id = || EngineId::new("c0ffee").unwrap();
        let kind = |status, started| match state(status, started).fact(id()) {
            Fact::Created { .. } => "created",
            Fact::Running { .. } => "running",
            Fact::Exited { .. } => "exited",
            Fact::Missing => "missing",
            Fact::Silent { .. } => "silent",
        };
        for (status, started, expected) in [
            ("created", false, "created"),
            ("running", true, "running"),
            ("paused", true, "running"),
            ("restarting", true, "running"),
            ("exited", true, "exited"),
            ("exited", false, "exited"),
            ("dead", true, "exited"),
            ("removing", true, "exited"),
            ("removing", false, "missing"),
            ("stopping", true, "exited"),
            ("configured", false, "created"),
        ] {
            assert_eq!(kind(status, started), expected, "{status} {started}");
        }
        let stopping = State { running: true, ..state("stopping", true) };
        assert!(matches!(stopping.fact(id()), Fact::Running { .. }));
    }

    #[test]
    fn an_inspection_yields_times_code_and_cause() {
        let inspected: Inspected = serde_json::from_str(
            r#"{"Id":"c0ffee","Name":"/x","State":{"Status":"exited","Running":false,"OOMKilled":true,"ExitCode":137,
            "Error":"","StartedAt":"2026-01-02T03:04:05.678901234Z","FinishedAt":"2026-01-02T03:04:06Z",
            "Health":{"Status":"new","Log":null}},"Config":{"Labels":null},"Surprise":[1]}"#,
        )
        .unwrap();
        let Some(Fact::Exited { exit, .. }) = inspected.fact() else { panic!("it exited") };
        assert_eq!((exit.code, exit.oom_killed, exit.error), (137, true, None));
        assert_eq!(exit.started_at.unwrap().0 % 100_000, 45_678);
        assert_eq!(exit.finished_at.unwrap().since(exit.started_at.unwrap()).0, 322);
    }

    #[test]
    fn a_digest_is_that_of_the_repository_asked_for() {
        let image = || Image {
            id: "sha256:1".to_owned(),
            repo_digests: vec!["other/busybox@sha256:a".to_owned(), "busybox@sha256:b".to_owned()],
        };
        assert_eq!(image().facts("docker.io/library/busybox:1.36").digest.as_deref(), Some("sha256:b"));
        assert_eq!(image().facts("other/busybox").digest.as_deref(), Some("sha256:a"));
        assert_eq!(image().facts("nothing").digest, None);
    }
}
