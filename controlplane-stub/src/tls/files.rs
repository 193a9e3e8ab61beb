//! Files of the data directory that nobody else may read.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use super::TlsError;

/// Names the file in an error.
pub(super) fn failed(path: &Path, why: &dyn std::fmt::Display) -> TlsError {
    TlsError::File { path: path.to_owned(), why: why.to_string() }
}

/// Makes the directory unless it is there.
pub(super) fn ensure_directory(directory: &Path) -> Result<(), TlsError> {
    DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(|error| failed(directory, &error))
}

/// Holds off other processes that change the directory's identity, until dropped.
pub(super) fn lock(directory: &Path) -> Result<File, TlsError> {
    ensure_directory(directory)?;
    let path = directory.join("identity.lock");
    let take = || -> io::Result<File> {
        let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path)?;
        file.lock()?;
        Ok(file)
    };
    take().map_err(|error| failed(&path, &error))
}

/// Writes a file wholly or not at all, durably, readable by its owner alone.
pub(super) fn write_private(path: &Path, contents: &[u8]) -> Result<(), TlsError> {
    let unfinished = path.with_extension("new");
    let write = || -> io::Result<()> {
        // One that a crash left may have other permissions.
        match fs::remove_file(&unfinished) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&unfinished)?;
        file.write_all(contents)?;
        file.sync_all()?;
        fs::rename(&unfinished, path)?;
        let directory = path.parent().unwrap_or_else(|| Path::new("."));
        File::open(directory)?.sync_all()
    };
    write().map_err(|error| failed(path, &error))
}

/// Reads a file; `None` when there is none.
pub(super) fn read(path: &Path) -> Result<Option<String>, TlsError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed(path, &error)),
    }
}
