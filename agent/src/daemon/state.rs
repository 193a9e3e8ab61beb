//! What the agent keeps on its host: the folders, the store and who it is, its journal, the files of containers and
//! what seals credentials.

use std::fs;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::DaemonError;
use super::place::Place;
use crate::config::Config;
use crate::credentials::Sealed;
use crate::effects::Effects;
use crate::engine::World;
use crate::host;
use crate::journal::Journal;
use crate::metadata_file::{self, MetadataFiles};
use crate::random;
use crate::runtime::EngineInfo;
use crate::store::memory::MemoryStore;
use crate::store::redb::RedbStore;
use crate::store::{Identity, Saved, Store, StoreError, Write};
use crate::supervise::Tracker;

/// Makes the data directory and tells its real path, which names this agent among those that share
/// a container engine: the same after a restart, and after the directory was emptied.
pub(super) fn prepare_data_dir(path: &Path) -> Result<PathBuf, DaemonError> {
    let wrong = |e| DaemonError::Failed(format!("ECS_DATADIR={}: {e}", path.display()));
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(wrong)?;
    private("ECS_DATADIR", path)?;
    tighten(path);
    path.canonicalize().map_err(wrong)
}

/// Takes from others what they may read of an empty folder that somebody else made, such as the engine for a volume.
/// One that holds something may be theirs, too: that is said.
fn tighten(path: &Path) {
    const OTHERS: u32 = 0o077;
    let closed = fs::metadata(path).and_then(|found| {
        let mode = found.permissions().mode() & 0o7777;
        if mode & OTHERS == 0 {
            return Ok(true);
        }
        let is_empty = fs::read_dir(path)?.next().is_none();
        if is_empty {
            fs::set_permissions(path, fs::Permissions::from_mode(mode & !OTHERS))?;
        }
        Ok(is_empty)
    });
    if !closed.unwrap_or(false) {
        tracing::warn!(path = %path.display(), "others may read the folder of the agent's state: chmod go= it");
    }
}

/// Refuses a folder, where it is there, that others than its owner may write to: who can put another file in the
/// place of the agent's has the host.
pub(super) fn private(variable: &str, path: &Path) -> Result<(), DaemonError> {
    const OTHERS_WRITE: u32 = 0o022;
    let Ok(found) = fs::metadata(path) else { return Ok(()) };
    let mode = found.permissions().mode() & 0o7777;
    if mode & OTHERS_WRITE == 0 {
        return Ok(());
    }
    Err(DaemonError::Terminal(format!(
        "{variable}={}: others than its owner may write there (mode {mode:o}); chmod go-w it, or name another folder",
        path.display()
    )))
}

/// Where state is kept, or remembered for as long as this process lives.
pub(super) async fn open_store(config: &Config, data_dir: &Path) -> Result<Arc<dyn Store>, DaemonError> {
    if !config.checkpoint {
        tracing::warn!("ECS_CHECKPOINT=false: a restart knows no more than the labels of running containers");
        return Ok(Arc::new(MemoryStore::default()));
    }
    let data_dir = data_dir.to_owned();
    let opened =
        tokio::task::spawn_blocking(move || RedbStore::open(&data_dir)).await.map_err(DaemonError::failed)?;
    Ok(Arc::new(opened.map_err(|e| match e {
        StoreError::InUse { .. } | StoreError::Newer { .. } => DaemonError::terminal(e),
        other => DaemonError::failed(other),
    })?))
}

/// Finds out who this agent is. The host's key is durable before the first registration, so that
/// a crash in between finds the same instance again.
pub(super) async fn identify(
    config: &Config,
    store: &dyn Store,
    mut saved: Saved,
    world: &World,
) -> Result<(Saved, Identity), DaemonError> {
    let boot = host::boot();
    let identity = match saved.identity.take() {
        Some(identity) if identity.cluster != config.cluster.as_str() => {
            return Err(DaemonError::Terminal(format!(
                "this host belongs to cluster {}, but ECS_CLUSTER={}; set it back, or empty {} to join anew",
                identity.cluster,
                config.cluster,
                config.data_dir.display()
            )));
        }
        Some(identity) if !identity.endpoint_key.is_empty() && identity.boot == boot => identity,
        Some(identity) => {
            saved.rebooted = !identity.boot.is_empty() && !boot.is_empty() && identity.boot != boot;
            let known = Some(identity.endpoint_key.clone()).filter(|key| !key.is_empty());
            let endpoint_key = known.unwrap_or_else(|| random::name().to_string());
            let identity = Identity { endpoint_key, boot, ..identity };
            store.commit(vec![Write::Identity(identity.clone())]).await.map_err(DaemonError::failed)?;
            identity
        }
        None => {
            let identity = Identity {
                endpoint_key: random::name().to_string(),
                host_key: random::name().to_string(),
                cluster: config.cluster.to_string(),
                instance: world.instance.clone(),
                outbox_epoch: random::name().to_string(),
                manifest_sequence: 0,
                last_seen: None,
                boot,
                settled: false,
            };
            store.commit(vec![Write::Identity(identity.clone())]).await.map_err(DaemonError::failed)?;
            identity
        }
    };
    saved.identity = Some(identity.clone());
    Ok((saved, identity))
}

/// What happens to tasks, for people. Tasks run without it, too.
pub(super) fn start_journal(
    config: &Config,
    data_dir: &Path,
    effects: Effects,
    tracker: &Tracker,
) -> Option<Journal> {
    if !config.checkpoint {
        return None;
    }
    let started = Journal::start(data_dir, effects, tracker);
    started
        .map_err(|error| tracing::warn!(%error, "no journal of tasks: berth-agent explain knows nothing"))
        .ok()
}

/// The metadata files of containers; those of earlier containers are minded where none are made any more.
pub(super) fn metadata_files(
    config: &Config,
    data_dir: &Path,
    place: &Place,
    info: &EngineInfo,
) -> Option<MetadataFiles> {
    let host = metadata_file::Host {
        zone: config.attributes.get("ecs.availability-zone").cloned(),
        address: host::address(),
        selinux: info.security_options.iter().any(|option| option == "name=selinux"),
    };
    let files = MetadataFiles::new(data_dir, config.metadata_files, host).seen_at(&place.data_dir);
    (files.makes() || files.list().is_ok_and(|tasks| !tasks.is_empty())).then_some(files)
}

/// What seals credentials; without it they are in memory alone.
pub(super) fn seal(config: &Config, data_dir: &Path, place: &Place) -> Option<Sealed> {
    if !config.checkpoint || !place.allows_sealing(config) {
        return None;
    }
    let sealed = Sealed::new(data_dir, &config.run_dir);
    sealed
        .map_err(|error| {
            tracing::warn!(
                %error,
                "BERTH_RUN_DIR={}: credentials of tasks are not kept across restarts of the agent",
                config.run_dir.display()
            );
        })
        .ok()
}
