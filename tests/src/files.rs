//! What is written in files, and who may read them.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result};

/// Who may do what with a file: the nine bits.
///
/// # Errors
/// When it is not there.
pub fn mode(path: &Path) -> Result<u32> {
    let metadata = fs::symlink_metadata(path).with_context(|| path.display().to_string())?;
    Ok(metadata.permissions().mode() & 0o777)
}

/// Everything below a folder with its mode, by its path from there; folders end with a slash.
///
/// # Errors
/// When it cannot be read.
pub fn modes(folder: &Path) -> Result<Vec<(String, u32)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let (name, path) = (entry.file_name().to_string_lossy().into_owned(), entry.path());
        if entry.file_type()?.is_dir() {
            found.push((format!("{name}/"), mode(&path)?));
            let below = modes(&path)?.into_iter();
            found.extend(below.map(|(rest, mode)| (format!("{name}/{rest}"), mode)));
        } else {
            found.push((name, mode(&path)?));
        }
    }
    found.sort();
    Ok(found)
}

/// The files below a folder that hold the text.
///
/// # Errors
/// When one cannot be read.
pub fn with(folder: &Path, text: &str) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(with(&path, text)?);
        } else if path.is_file() {
            let read = match fs::read(&path) {
                // A network namespace that is pinned there has nothing to read.
                Err(error) if error.kind() == ErrorKind::InvalidInput => continue,
                read => read?,
            };
            if read.windows(text.len()).any(|w| w == text.as_bytes()) {
                found.push(path.display().to_string());
            }
        }
    }
    Ok(found)
}
