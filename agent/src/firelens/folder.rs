//! The folders of log routers on the host: a file with the configuration, and a folder for the socket.

use std::collections::HashMap;
use std::fs::{self, DirBuilder, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// Only the agent and the engine look into the folders from outside.
const FOLDER_MODE: u32 = 0o700;
/// What a router that is not root's reads as well: inside, where the file alone is mounted.
const FILE_MODE: u32 = 0o644;

const CONFIGS: &str = "config";
const CONFIG: &str = "config/fluent.conf";
const FETCHED: &str = "config/external.conf";
const SOCKETS: &str = "socket";

/// What is in a router's folder.
pub(super) struct Content {
    /// The configuration that was generated.
    pub(super) config: String,
    /// What was fetched of the user's own.
    pub(super) fetched: Option<String>,
    /// User and group who make the socket; the agent's own where absent.
    pub(super) owner: Option<(u32, Option<u32>)>,
}

/// The folders of all routers, by the ids of their tasks.
pub(super) struct Folders {
    root: PathBuf,
    /// The same folder as the engine has it.
    seen: PathBuf,
    /// Whether there is no disk, and nothing is ever made.
    nowhere: bool,
    /// Whether the folder of a task is gone for good: what comes late makes none anew.
    places: Mutex<HashMap<String, Arc<Mutex<bool>>>>,
}

impl Folders {
    pub(super) fn below(root: PathBuf) -> Self {
        Self { seen: root.clone(), root, nowhere: false, places: Mutex::default() }
    }

    pub(super) fn nowhere() -> Self {
        Self { seen: PathBuf::new(), root: PathBuf::new(), nowhere: true, places: Mutex::default() }
    }

    pub(super) fn seen_at(self, seen: PathBuf) -> Self {
        Self { seen, ..self }
    }

    /// These as the engine has them.
    pub(super) fn config(&self, id: &str) -> PathBuf {
        self.seen.join(id).join(CONFIG)
    }

    pub(super) fn fetched(&self, id: &str) -> PathBuf {
        self.seen.join(id).join(FETCHED)
    }

    pub(super) fn sockets(&self, id: &str) -> PathBuf {
        self.seen.join(id).join(SOCKETS)
    }

    /// Makes the folder of a task, or writes again what is in it.
    pub(super) async fn make(&self, id: &str, content: Content) -> io::Result<()> {
        if self.nowhere {
            return Err(io::Error::from(ErrorKind::Unsupported));
        }
        let (place, folder) = (self.place(id), self.root.join(id));
        blocking(move || fill(&place, &folder, &content)).await
    }

    /// Removes the folder of a task. One that is not there is removed already.
    pub(super) async fn remove(&self, id: &str) -> io::Result<()> {
        if self.nowhere {
            return Ok(());
        }
        let (place, path) = (self.place(id), self.root.join(id));
        blocking(move || {
            let mut gone = place.lock().unwrap_or_else(PoisonError::into_inner);
            *gone = true;
            match fs::remove_dir_all(&path) {
                Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            }
        })
        .await?;
        self.lock().remove(id);
        Ok(())
    }

    /// The tasks that have one.
    pub(super) async fn list(&self) -> io::Result<Vec<String>> {
        if self.nowhere {
            return Ok(Vec::new());
        }
        let root = self.root.clone();
        blocking(move || {
            let entries = match fs::read_dir(&root) {
                Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
                entries => entries?,
            };
            entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
        })
        .await
    }

    fn place(&self, id: &str) -> Arc<Mutex<bool>> {
        Arc::clone(self.lock().entry(id.to_owned()).or_default())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Arc<Mutex<bool>>>> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Makes a folder with what is to be in it, unless it is gone for good.
fn fill(gone: &Mutex<bool>, folder: &Path, content: &Content) -> io::Result<()> {
    let gone = gone.lock().unwrap_or_else(PoisonError::into_inner);
    if *gone {
        return Err(io::Error::new(ErrorKind::NotFound, "the task is at its end"));
    }
    let make = |path: &Path| DirBuilder::new().recursive(true).mode(FOLDER_MODE).create(path);
    make(&folder.join(CONFIGS))?;
    let sockets = folder.join(SOCKETS);
    make(&sockets)?;
    if let Some((user, group)) = content.owner {
        chown(&sockets, Some(user), group)?;
    }
    if let Some(text) = &content.fetched {
        write(&folder.join(FETCHED), text)?;
    }
    write(&folder.join(CONFIG), &content.config)
}

/// Whole or not at all: a router that starts finds no half of a configuration.
fn write(path: &Path, text: &str) -> io::Result<()> {
    let new = path.with_extension("new");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).open(&new)?;
    file.write_all(text.as_bytes())?;
    file.set_permissions(Permissions::from_mode(FILE_MODE))?;
    file.sync_all()?;
    fs::rename(&new, path)
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    fn content(config: &str) -> Content {
        Content { config: config.to_owned(), fetched: Some("own".to_owned()), owner: None }
    }

    #[tokio::test]
    async fn a_folder_is_the_agents_alone_and_goes_whole() {
        let data = tempfile::tempdir().unwrap();
        let root = data.path().join("firelens");
        let folders = Folders::below(root.clone());
        assert_eq!(folders.list().await.unwrap(), Vec::<String>::new());
        folders.make("a", content("old")).await.unwrap();
        fs::write(folders.sockets("a").join("fluent.sock"), "").unwrap();
        folders.make("a", content("new")).await.unwrap();
        assert_eq!(fs::read_to_string(folders.config("a")).unwrap(), "new");
        assert_eq!(fs::read_to_string(folders.fetched("a")).unwrap(), "own");
        assert!(folders.sockets("a").join("fluent.sock").exists());
        let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o777;
        assert_eq!((mode(&root), mode(&root.join("a"))), (0o700, 0o700));
        assert_eq!((mode(&folders.sockets("a")), mode(&folders.config("a"))), (0o700, 0o644));
        assert_eq!(folders.list().await.unwrap(), ["a"]);
        for _ in 0..2 {
            folders.remove("a").await.unwrap();
        }
        assert_eq!(folders.list().await.unwrap(), Vec::<String>::new());
    }

    #[tokio::test]
    async fn what_comes_late_makes_no_folder_anew() {
        let data = tempfile::tempdir().unwrap();
        let folders = Folders::below(data.path().join("firelens"));
        folders.make("a", content("first")).await.unwrap();
        // Given up when the task was to stop, and under way nevertheless.
        let late = folders.place("a");
        folders.remove("a").await.unwrap();
        let refused = fill(&late, &folders.root.join("a"), &content("late")).unwrap_err();
        assert!(refused.to_string().contains("at its end"), "{refused}");
        assert!(!folders.config("a").exists());
    }
}
