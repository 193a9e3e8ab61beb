//! What is written in files.

use std::fs;
use std::path::Path;

use anyhow::Result;

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
        } else if path.is_file() && fs::read(&path)?.windows(text.len()).any(|w| w == text.as_bytes()) {
            found.push(path.display().to_string());
        }
    }
    Ok(found)
}
