//! Files of the data directory that nobody else may read.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::TlsError;
use crate::ownership;

/// Names the file in an error.
pub(super) fn failed(path: &Path, why: &dyn std::fmt::Display) -> TlsError {
    TlsError::File { path: path.to_owned(), why: why.to_string() }
}

/// Holds off other processes that change the directory's identity, until dropped. Makes the directory unless it
/// is there.
pub(super) fn lock(directory: &Path) -> Result<File, TlsError> {
    ownership::ensure_directory(directory).map_err(|error| failed(directory, &error))?;
    let path = directory.join("identity.lock");
    let take = || -> io::Result<File> {
        // Only ever seen with its right owner: a service that starts meanwhile can open it.
        if !path.try_exists()? {
            let made = directory.join(format!("identity.lock.{}", uuid::Uuid::new_v4()));
            make(&made)?;
            let linked = fs::hard_link(&made, &path);
            fs::remove_file(&made)?;
            linked.or_else(|error| match error.kind() {
                io::ErrorKind::AlreadyExists => Ok(()),
                _ => Err(error),
            })?;
        }
        let file = ownership::itself().write(true).open(&path)?;
        ownership::inherit(&file, directory)?;
        file.lock()?;
        Ok(file)
    };
    take().map_err(|error| failed(&path, &error))
}

/// Makes an empty file anew, readable by the directory's owner alone.
fn make(path: &Path) -> io::Result<File> {
    // One that a crash left may have other permissions.
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let file = ownership::itself().write(true).create_new(true).mode(0o600).open(path)?;
    ownership::inherit(&file, ownership::parent(path))?;
    Ok(file)
}

/// Writes a file wholly or not at all, durably, readable by the directory's owner alone.
pub(super) fn write_private(path: &Path, contents: &[u8]) -> Result<(), TlsError> {
    let unfinished = path.with_extension("new");
    let write = || -> io::Result<()> {
        let mut file = make(&unfinished)?;
        file.write_all(contents)?;
        file.sync_all()?;
        fs::rename(&unfinished, path)?;
        File::open(ownership::parent(path))?.sync_all()
    };
    write().map_err(|error| failed(path, &error))
}

/// Gives a file that root made earlier to the directory's owner.
pub(super) fn settle(path: &Path) -> Result<(), TlsError> {
    ownership::inherit_at(path).map_err(|error| failed(path, &error))
}

/// Reads a file; `None` when there is none.
pub(super) fn read(path: &Path) -> Result<Option<String>, TlsError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed(path, &error)),
    }
}
