//! Python programs in containers: the demo image with this host's Python and the tests' clients mounted.

use std::path::Path;
use std::process::Command;

use anyhow::Result;
use serde_json::{Value, json};

use crate::demo;

/// A task of that mode whose one container runs a script.
///
/// # Errors
/// When there is no Python in `.venv`.
pub fn task(family: &str, network_mode: &str, name: &str, script: &str) -> Result<Value> {
    let venv = demo::checkout().join(".venv");
    let program = venv.join("bin/python");
    let prefix = Command::new(&program).args(["-c", "import sys; print(sys.base_prefix)"]).output()?;
    let prefix = String::from_utf8(prefix.stdout)?.trim().to_owned();
    let mut folders =
        vec!["/usr".to_owned(), "/lib".to_owned(), "/lib64".to_owned(), venv.display().to_string()];
    if !prefix.starts_with("/usr") {
        folders.push(prefix);
    }
    folders.retain(|folder| Path::new(folder).exists());
    let named = || folders.iter().enumerate().map(|(n, folder)| (format!("v{n}"), folder));
    let mounts: Vec<Value> = named()
        .map(|(name, folder)| json!({ "sourceVolume": name, "containerPath": folder, "readOnly": true }))
        .collect();
    let members = json!({ "entryPoint": [program], "mountPoints": mounts, "memory": 256 });
    let container = demo::container_with(name, &["-c", script], members);
    let mut definition = demo::task(family, network_mode, json!([container]));
    definition["volumes"] =
        named().map(|(name, folder)| json!({ "name": name, "host": { "sourcePath": folder } })).collect();
    Ok(definition)
}
