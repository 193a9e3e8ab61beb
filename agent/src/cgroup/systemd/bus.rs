//! The conversation with systemd: a few calls on the system bus over one connection.

use std::io;
use std::time::Duration;

use futures_util::StreamExt;
use tokio::sync::Mutex;
use zbus::proxy::{CacheProperties, SignalStream};
use zbus::zvariant::{OwnedObjectPath, Value};
use zbus::{Connection, Proxy};

const SERVICE: &str = "org.freedesktop.systemd1";
const PATH: &str = "/org/freedesktop/systemd1";
const MANAGER: &str = "org.freedesktop.systemd1.Manager";
const SLICE: &str = "org.freedesktop.systemd1.Slice";
const NO_SUCH_UNIT: &str = "org.freedesktop.systemd1.NoSuchUnit";
const UNIT_EXISTS: &str = "org.freedesktop.systemd1.UnitExists";

/// How long a job may take: systemd may be busy starting half the host.
const JOB_TIMEOUT: Duration = Duration::from_secs(30);
/// SIGKILL.
const KILL: i32 = 9;

/// A unit as `ListUnitsByPatterns` gives it: name, description, three states, follower, path, job.
type ListedUnit =
    (String, String, String, String, String, String, OwnedObjectPath, u32, String, OwnedObjectPath);
/// Properties by name.
type Properties<'a> = [(&'a str, Value<'a>)];

/// The connection to systemd, made when it is first needed and anew after it broke.
#[derive(Debug, Default)]
pub(super) struct Bus {
    connection: Mutex<Option<Connection>>,
}

impl Bus {
    /// Makes a transient slice; one that is there already gets the same properties.
    pub(super) async fn start(&self, unit: &str, properties: &Properties<'_>) -> io::Result<()> {
        let manager = self.manager().await?;
        let mut jobs = self.ok(removed_jobs(&manager).await).await?;
        let auxiliary: &[(&str, &Properties<'_>)] = &[];
        let started: zbus::Result<OwnedObjectPath> =
            manager.call("StartTransientUnit", &(unit, "replace", properties, auxiliary)).await;
        match started {
            Ok(job) => self.finish(&mut jobs, &job, unit).await,
            Err(error) if is_error(&error, UNIT_EXISTS) => {
                // What cannot be changed later says nothing of bounds.
                let bounds = |(name, _): &&(&str, Value<'_>)| *name != "Description";
                let mut changes = Vec::new();
                for (name, value) in properties.iter().filter(bounds) {
                    changes.push((*name, value.try_clone().map_err(io::Error::other)?));
                }
                self.set(unit, &changes).await?;
                // It may be loaded and yet not active; starting an active one changes nothing.
                let job: OwnedObjectPath =
                    self.ok(manager.call("StartUnit", &(unit, "replace")).await).await?;
                self.finish(&mut jobs, &job, unit).await
            }
            Err(error) => Err(self.broken(error).await),
        }
    }

    /// Sets properties of a unit, for as long as it lives.
    pub(super) async fn set(&self, unit: &str, properties: &Properties<'_>) -> io::Result<()> {
        let manager = self.manager().await?;
        let set: zbus::Result<()> = manager.call("SetUnitProperties", &(unit, true, properties)).await;
        self.ok(set).await
    }

    /// The path of a slice's cgroup, from the root of the hierarchy.
    pub(super) async fn control_group(&self, unit: &str) -> io::Result<String> {
        let manager = self.manager().await?;
        let path: OwnedObjectPath = self.ok(manager.call("GetUnit", &(unit,)).await).await?;
        let slice = self.ok(proxy(manager.connection(), &path, SLICE).await).await?;
        let group: String = self.ok(slice.get_property("ControlGroup").await).await?;
        if group.is_empty() {
            return Err(io::Error::new(io::ErrorKind::NotFound, format!("{unit} is not active")));
        }
        Ok(group)
    }

    /// Stops a unit and everything in it, and has systemd forget that it ever failed.
    pub(super) async fn stop(&self, unit: &str) -> io::Result<()> {
        let manager = self.manager().await?;
        let mut jobs = self.ok(removed_jobs(&manager).await).await?;
        let stopped: zbus::Result<OwnedObjectPath> = manager.call("StopUnit", &(unit, "replace")).await;
        match stopped {
            Ok(job) => self.finish(&mut jobs, &job, unit).await?,
            Err(error) if is_error(&error, NO_SUCH_UNIT) => return Ok(()),
            Err(error) => return Err(self.broken(error).await),
        }
        let reset: zbus::Result<()> = manager.call("ResetFailedUnit", &(unit,)).await;
        match reset {
            // A unit that did not fail is unloaded as soon as it is stopped.
            Err(error) if !is_error(&error, NO_SUCH_UNIT) => Err(self.broken(error).await),
            _ => Ok(()),
        }
    }

    /// Kills all processes of a unit and below.
    pub(super) async fn kill(&self, unit: &str) -> io::Result<()> {
        let manager = self.manager().await?;
        let killed: zbus::Result<()> = manager.call("KillUnit", &(unit, "all", KILL)).await;
        match killed {
            Err(error) if !is_error(&error, NO_SUCH_UNIT) => Err(self.broken(error).await),
            _ => Ok(()),
        }
    }

    /// The names of the loaded units that fit a pattern.
    pub(super) async fn list(&self, pattern: &str) -> io::Result<Vec<String>> {
        let manager = self.manager().await?;
        let states: &[&str] = &["active", "activating", "failed"];
        let units: zbus::Result<Vec<ListedUnit>> =
            manager.call("ListUnitsByPatterns", &(states, &[pattern] as &[&str])).await;
        Ok(self.ok(units).await?.into_iter().map(|unit| unit.0).collect())
    }

    async fn manager(&self) -> io::Result<Proxy<'static>> {
        let mut slot = self.connection.lock().await;
        let connection = match &*slot {
            Some(connection) => connection.clone(),
            None => {
                let connection = Connection::system().await.map_err(other)?;
                // Without a subscriber systemd does not tell when jobs end.
                let manager = proxy(&connection, PATH, MANAGER).await.map_err(other)?;
                let () = manager.call("Subscribe", &()).await.map_err(other)?;
                slot.insert(connection).clone()
            }
        };
        drop(slot);
        proxy(&connection, PATH, MANAGER).await.map_err(other)
    }

    /// Waits until a job is done.
    async fn finish(&self, jobs: &mut SignalStream<'_>, job: &OwnedObjectPath, unit: &str) -> io::Result<()> {
        let wait = async {
            while let Some(message) = jobs.next().await {
                let ended: Result<(u32, OwnedObjectPath, String, String), _> = message.body().deserialize();
                let Ok((_, path, _, result)) = ended else { continue };
                if path != *job {
                    continue;
                }
                return match result.as_str() {
                    "done" | "skipped" => Ok(()),
                    result => {
                        Err(io::Error::other(format!("systemd ended the job for {unit} with {result:?}")))
                    }
                };
            }
            Err(io::Error::new(io::ErrorKind::BrokenPipe, "the system bus closed the connection"))
        };
        let outcome = match tokio::time::timeout(JOB_TIMEOUT, wait).await {
            Ok(outcome) => outcome,
            Err(_) => {
                let text =
                    format!("systemd did not finish the job for {unit} in {} s", JOB_TIMEOUT.as_secs());
                Err(io::Error::new(io::ErrorKind::TimedOut, text))
            }
        };
        if outcome.as_ref().is_err_and(|error| error.kind() != io::ErrorKind::Other) {
            self.forget().await;
        }
        outcome
    }

    async fn ok<T>(&self, result: zbus::Result<T>) -> io::Result<T> {
        match result {
            Ok(output) => Ok(output),
            Err(error) => Err(self.broken(error).await),
        }
    }

    /// The error for the caller; one that is not an answer means that the connection is of no use.
    async fn broken(&self, error: zbus::Error) -> io::Error {
        if !matches!(error, zbus::Error::MethodError(..) | zbus::Error::FDO(_)) {
            self.forget().await;
        }
        other(error)
    }

    async fn forget(&self) {
        *self.connection.lock().await = None;
    }
}

/// Subscribes to the ends of jobs: before a job is begun, or its end could be missed.
async fn removed_jobs(manager: &Proxy<'_>) -> zbus::Result<SignalStream<'static>> {
    manager.receive_signal("JobRemoved").await
}

async fn proxy(connection: &Connection, path: &str, interface: &'static str) -> zbus::Result<Proxy<'static>> {
    zbus::proxy::Builder::new(connection)
        .destination(SERVICE)?
        .path(path.to_owned())?
        .interface(interface)?
        .cache_properties(CacheProperties::No)
        .build()
        .await
}

fn is_error(error: &zbus::Error, name: &str) -> bool {
    matches!(error, zbus::Error::MethodError(named, ..) if named.as_str() == name)
}

fn other(error: zbus::Error) -> io::Error {
    match error {
        zbus::Error::InputOutput(error) => io::Error::new(error.kind(), error.to_string()),
        error => io::Error::other(error),
    }
}
