//! The metadata file of a container: what ECS tells it in a file (developer guide, "Amazon ECS container
//! metadata file"). Each container has a folder of its own, `metadata/TASK/CONTAINER` in the agent's data
//! folder, which it sees read-only; a file in it is replaced whole, never changed.
//!
//! The calls block: callers put them off the runtime through [`MetadataFiles::off_runtime`].

mod shape;

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::net::Ipv4Addr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use berth_core::ids::{ContainerInstanceArn, ContainerName, EngineId, TaskArn};
use berth_core::spec::{EnvVar, TaskSpec};
use berth_core::task::PortBinding;
use berth_core::units::Timestamp;
use serde_json::Value;

use self::shape::{Metadata, mappings, network};
use crate::clock::rfc3339;
use crate::runtime::{Details, HostMount};

/// The variable that names the file.
const VARIABLE: &str = "ECS_CONTAINER_METADATA_FILE";
/// Where a container sees its folder, below which is a name that nothing of its own has.
const INSIDE: &str = "/opt/ecs/metadata";
const NAME: &str = "ecs-container-metadata.json";
/// What is being written, before it gets its name.
const NEXT: &str = ".ecs-container-metadata.json";

/// Longest that a change of files may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// What is the same for all containers of the host.
#[derive(Debug, Clone, Default)]
pub struct Host {
    /// Its availability zone.
    pub zone: Option<String>,
    /// Its own address.
    pub address: Option<Ipv4Addr>,
    /// Whether the engine has SELinux: a folder needs a label to be read in a container.
    pub selinux: bool,
}

/// A container that runs.
#[derive(Debug, Clone)]
pub struct Life {
    /// Its task.
    pub task: Arc<TaskSpec>,
    /// Its name in the task.
    pub container: ContainerName,
    /// The engine's id.
    pub id: EngineId,
    /// When it started.
    pub started_at: Timestamp,
    /// The instance that it is on.
    pub instance: Option<ContainerInstanceArn>,
}

/// The files of all containers. Cloning shares them.
#[derive(Debug, Clone)]
pub struct MetadataFiles {
    folder: PathBuf,
    /// The same folder as the engine has it.
    seen: PathBuf,
    host: Arc<Host>,
    makes: bool,
    /// Held while files change, so that a folder is not removed while a file is put into it.
    changing: Arc<Mutex<()>>,
}

impl MetadataFiles {
    /// Files below that data folder. Unless it `makes` them, containers get none, and those of earlier
    /// containers are kept until they are removed.
    #[must_use]
    pub fn new(data_dir: &Path, makes: bool, host: Host) -> Self {
        let folder = data_dir.join("metadata");
        Self { seen: folder.clone(), folder, host: Arc::new(host), makes, changing: Arc::default() }
    }

    /// Where the engine has the data folder, for an agent in a container.
    #[must_use]
    pub fn seen_at(self, data_dir: &Path) -> Self {
        Self { seen: data_dir.join("metadata"), ..self }
    }

    /// Whether containers that are made get a file.
    #[must_use]
    pub const fn makes(&self) -> bool {
        self.makes
    }

    /// Does something with the files on a thread that may wait for a disk.
    ///
    /// # Errors
    /// What it failed with, or that it took too long.
    pub async fn off_runtime<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Self) -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let files = self.clone();
        let done = tokio::task::spawn_blocking(move || {
            let _alone = files.changing.lock().unwrap_or_else(PoisonError::into_inner);
            work(&files)
        });
        match tokio::time::timeout(PATIENCE, done).await {
            Ok(done) => done.unwrap_or_else(|error| Err(io::Error::other(error))),
            Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "ECS_DATADIR does not answer")),
        }
    }

    /// Makes the folder of a container that is about to be made, with a file that is INITIAL: what is known
    /// of the container before there is one. Yields what the container gets of it.
    ///
    /// # Errors
    /// When it cannot be written, or the engine could not be told of it.
    pub fn begin(
        &self,
        task: &TaskSpec,
        container: &ContainerName,
        instance: Option<&ContainerInstanceArn>,
    ) -> io::Result<(HostMount, EnvVar)> {
        let of_task = self.of_task(task.arn.id());
        let folder = of_task.join(container.as_str());
        let seen = self.seen.join(task.arn.id()).join(container.as_str());
        let host = seen.to_str().filter(|path| !path.contains(':')).ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::InvalidInput,
                "ECS_DATADIR has a path that no container engine takes",
            )
        })?;
        DirBuilder::new().recursive(true).mode(0o700).create(&of_task)?;
        DirBuilder::new().recursive(true).create(&folder)?;
        // Whatever user the container has, and whatever the agent's umask is.
        fs::set_permissions(&folder, Permissions::from_mode(0o755))?;
        write(&folder, &self.initial(task, container, instance))?;
        let inside = format!("{INSIDE}/{}", crate::random::name());
        let variable = EnvVar { name: VARIABLE.to_owned(), value: format!("{inside}/{NAME}") };
        let mount = HostMount {
            host_path: host.to_owned(),
            path: inside,
            read_only: true,
            relabel: self.host.selinux,
        };
        Ok((mount, variable))
    }

    /// Whether the file of a container tells of this life of it already, or it has no file.
    #[must_use]
    pub fn is_told(&self, life: &Life) -> bool {
        let Ok(text) = fs::read(self.of(life).join(NAME)) else { return !self.of(life).is_dir() };
        let Ok(known) = serde_json::from_slice::<Value>(&text) else { return false };
        let is = |name: &str, value: Option<&str>| known.get(name).and_then(Value::as_str) == value;
        is("MetadataFileStatus", Some("READY"))
            && is("ContainerID", Some(life.id.as_str()))
            && is("StartedAt", rfc3339(life.started_at).as_deref())
            && is("ContainerInstanceARN", life.instance.as_ref().map(ContainerInstanceArn::as_str))
    }

    /// Makes the file of a container that runs READY. One that has no file gets none.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn ready(&self, life: &Life, bindings: &[PortBinding], details: &Details) -> io::Result<()> {
        let folder = self.of(life);
        if !folder.is_dir() {
            return Ok(());
        }
        let spec = life.task.container(&life.container);
        let metadata = Metadata {
            id: Some(life.id.to_string()),
            docker_container_name: Some(format!("/{}", details.name)),
            image_id: Some(details.image_id.clone()),
            image_name: spec.map(|spec| spec.image.clone()),
            port_mappings: mappings(life.task.network_mode, bindings),
            networks: vec![network(&life.task, details)],
            metadata_file_status: "READY",
            created_at: details.created_at.and_then(rfc3339),
            started_at: rfc3339(life.started_at),
            ..self.initial(&life.task, &life.container, life.instance.as_ref())
        };
        write(&folder, &metadata)
    }

    /// Removes the folder of a container that is gone, and the task's with its last.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn remove(&self, task: &TaskArn, container: &ContainerName) -> io::Result<()> {
        let of_task = self.of_task(task.id());
        gone(fs::remove_dir_all(of_task.join(container.as_str())))?;
        match fs::remove_dir(of_task) {
            // Others of the task's are still there.
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(()),
            removed => gone(removed),
        }
    }

    /// Removes all that is there of the task with that id.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn forget(&self, task: &str) -> io::Result<()> {
        gone(fs::remove_dir_all(self.of_task(task)))
    }

    /// The ids of the tasks that have anything here.
    ///
    /// # Errors
    /// When that cannot be told.
    pub fn list(&self) -> io::Result<Vec<String>> {
        let entries = match fs::read_dir(&self.folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
    }

    /// What is known before there is a container.
    fn initial(
        &self,
        task: &TaskSpec,
        container: &ContainerName,
        instance: Option<&ContainerInstanceArn>,
    ) -> Metadata {
        Metadata {
            cluster: task.arn.cluster().to_owned(),
            instance: instance.map(ToString::to_string),
            task: task.arn.to_string(),
            family: task.family.to_string(),
            revision: task.revision.to_string(),
            container_name: container.to_string(),
            metadata_file_status: "INITIAL",
            availability_zone: self.host.zone.clone(),
            host_address: self.host.address.map(|address| address.to_string()),
            ..Metadata::default()
        }
    }

    fn of_task(&self, id: &str) -> PathBuf {
        self.folder.join(id)
    }

    fn of(&self, life: &Life) -> PathBuf {
        self.of_task(life.task.arn.id()).join(life.container.as_str())
    }
}

/// What is not there is removed already.
fn gone(removed: io::Result<()>) -> io::Result<()> {
    removed.or_else(|error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) })
}

/// Puts a file in the place of the one before it. A crash of the host ends the containers, too: there is
/// no need to wait for the disk.
fn write(folder: &Path, metadata: &Metadata) -> io::Result<()> {
    let text = serde_json::to_vec_pretty(metadata).map_err(io::Error::other)?;
    let next = folder.join(NEXT);
    gone(fs::remove_file(&next))?;
    let mut file: File = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&next)?;
    file.write_all(&text)?;
    file.set_permissions(Permissions::from_mode(0o644))?;
    fs::rename(next, folder.join(NAME))
}

#[cfg(test)]
mod tests {
    use berth_core::ids::Family;
    use berth_core::spec::{ContainerSpec, NetworkMode, TaskFields};
    use berth_core::units::{Mebibytes, PortRange, Protocol};
    use serde_json::json;

    use super::*;
    use crate::runtime::Interface;

    const ARN: &str = "arn:aws:ecs:r:1:task/blue/0123456789abcdef0123456789abcdef";
    const INSTANCE: &str = "arn:aws:ecs:r:1:container-instance/blue/0123456789abcdef0123456789abcdef";

    fn files() -> (tempfile::TempDir, MetadataFiles) {
        let data = tempfile::tempdir().unwrap();
        let host = Host { zone: Some("rack-1".to_owned()), address: "10.0.0.9".parse().ok(), selinux: false };
        let files = MetadataFiles::new(data.path(), true, host);
        (data, files)
    }

    fn life(mode: NetworkMode) -> Life {
        let name = ContainerName::new("web").unwrap();
        let mut container = ContainerSpec::minimal(name.clone(), "httpd:2.4", Mebibytes(6));
        container.environment = vec![EnvVar { name: "PASSWORD".to_owned(), value: "hush".to_owned() }];
        let task = TaskSpec::try_from(TaskFields {
            arn: TaskArn::new(ARN).unwrap(),
            family: Family::new("shop").unwrap(),
            revision: 7,
            network_mode: mode,
            cpu: None,
            memory: None,
            containers: vec![container],
            attachment: None,
            pid_mode: None,
            ipc_mode: None,
            volumes: Vec::new(),
            task_role: None,
            fault_injection: false,
        });
        Life {
            task: Arc::new(task.unwrap()),
            container: name,
            id: EngineId::new("c0ffee").unwrap(),
            started_at: Timestamp(1_767_225_600_000),
            instance: ContainerInstanceArn::new(INSTANCE).ok(),
        }
    }

    fn details() -> Details {
        Details {
            name: "ecs-shop-7-web".to_owned(),
            image_id: "sha256:ab".to_owned(),
            networks: vec![Interface {
                addresses: vec!["172.17.0.2".parse().unwrap()],
                mac: "02:42:ac:11:00:02".to_owned(),
            }],
            ..Details::default()
        }
    }

    fn binding() -> PortBinding {
        PortBinding {
            container: ContainerName::new("web").unwrap(),
            container_ports: PortRange::new(80, 81).unwrap(),
            host_ports: PortRange::new(8080, 8081).unwrap(),
            protocol: Protocol::Tcp,
        }
    }

    fn read(folder: &HostMount) -> Value {
        serde_json::from_slice(&fs::read(Path::new(&folder.host_path).join(NAME)).unwrap()).unwrap()
    }

    #[test]
    fn a_file_is_initial_and_then_ready_in_ecs_shape() {
        let (_data, files) = files();
        let life = life(NetworkMode::Bridge);
        let (folder, variable) = files.begin(&life.task, &life.container, life.instance.as_ref()).unwrap();
        assert_eq!(variable.name, "ECS_CONTAINER_METADATA_FILE");
        assert_eq!(variable.value, format!("{}/ecs-container-metadata.json", folder.path));
        assert!(folder.path.starts_with("/opt/ecs/metadata/"), "{folder:?}");
        let mut expected = json!({
            "Cluster": "blue", "ContainerInstanceARN": INSTANCE, "TaskARN": ARN,
            "TaskDefinitionFamily": "shop", "TaskDefinitionRevision": "7", "ContainerName": "web",
            "MetadataFileStatus": "INITIAL", "AvailabilityZone": "rack-1",
            "HostPrivateIPv4Address": "10.0.0.9",
        });
        assert_eq!(read(&folder), expected);
        assert!(!files.is_told(&life));

        files.ready(&life, &[binding()], &details()).unwrap();
        let more = json!({
            "ContainerID": "c0ffee", "DockerContainerName": "/ecs-shop-7-web", "ImageID": "sha256:ab",
            "ImageName": "httpd:2.4", "MetadataFileStatus": "READY", "StartedAt": "2026-01-01T00:00:00Z",
            "PortMappings": [
                { "ContainerPort": 80, "HostPort": 8080, "BindIp": "0.0.0.0", "Protocol": "tcp" },
                { "ContainerPort": 81, "HostPort": 8081, "BindIp": "0.0.0.0", "Protocol": "tcp" },
            ],
            "Networks": [{ "NetworkMode": "bridge", "IPv4Addresses": ["172.17.0.2"] }],
        });
        expected.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        assert_eq!(read(&folder), expected);
        assert!(files.is_told(&life));
        let next = Life { started_at: Timestamp(1_767_225_600_001), ..life };
        assert!(!files.is_told(&next), "another life of it");
    }

    #[test]
    fn on_the_hosts_network_ports_are_the_hosts() {
        let (_data, files) = files();
        let life = life(NetworkMode::Host);
        let (folder, _) = files.begin(&life.task, &life.container, None).unwrap();
        files.ready(&life, &[binding()], &Details::default()).unwrap();
        let told = read(&folder);
        assert_eq!(told["PortMappings"][0]["BindIp"], "");
        assert_eq!(told["Networks"], json!([{ "NetworkMode": "host", "IPv4Addresses": [] }]));
    }

    #[test]
    fn any_user_may_read_it_and_nothing_else_is_there() {
        let (_data, files) = files();
        let life = life(NetworkMode::Bridge);
        let (folder, _) = files.begin(&life.task, &life.container, None).unwrap();
        // What a crash left behind is in nobody's way.
        fs::write(Path::new(&folder.host_path).join(NEXT), "half").unwrap();
        files.ready(&life, &[], &details()).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(Path::new(&folder.host_path)), 0o755);
        assert_eq!(mode(&Path::new(&folder.host_path).join(NAME)), 0o644);
        let all: Vec<_> = fs::read_dir(&folder.host_path).unwrap().collect();
        assert_eq!(all.len(), 1, "{all:?}");
        assert!(!fs::read_to_string(Path::new(&folder.host_path).join(NAME)).unwrap().contains("hush"));
    }

    #[test]
    fn a_container_without_a_file_gets_none_and_what_is_gone_is_removed() {
        let (data, files) = files();
        let life = life(NetworkMode::Bridge);
        assert!(files.is_told(&life), "there is nothing to tell");
        files.ready(&life, &[], &details()).unwrap();
        assert!(files.list().unwrap().is_empty());
        files.begin(&life.task, &life.container, None).unwrap();
        let other = ContainerName::new("side").unwrap();
        files.begin(&life.task, &other, None).unwrap();
        assert_eq!(files.list().unwrap(), [life.task.arn.id()]);
        files.remove(&life.task.arn, &life.container).unwrap();
        assert_eq!(files.list().unwrap(), [life.task.arn.id()]);
        for _ in 0..2 {
            files.remove(&life.task.arn, &other).unwrap();
            files.forget(life.task.arn.id()).unwrap();
        }
        assert!(files.list().unwrap().is_empty());
        assert_eq!(fs::read_dir(data.path().join("metadata")).unwrap().count(), 0);
    }

    #[test]
    fn a_data_folder_that_the_engine_would_misread_is_refused() {
        let data = tempfile::tempdir().unwrap();
        let files = MetadataFiles::new(&data.path().join("a:b"), true, Host::default());
        let life = life(NetworkMode::Bridge);
        let refused = files.begin(&life.task, &life.container, None).unwrap_err();
        assert!(refused.to_string().contains("ECS_DATADIR"), "{refused}");
    }
}
