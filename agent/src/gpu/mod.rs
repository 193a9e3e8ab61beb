//! The GPUs of the host: which there are, as ECS's file or the driver's own program says, and which
//! container has which.

mod chooser;

use std::io::ErrorKind;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use berth_core::ids::GpuId;
use serde::Deserialize;
use tokio::process::Command;

use crate::config::{Gpus, without_secrets};

pub use self::chooser::{GpuChooser, NoGpus};

/// The driver's own program.
const PROGRAM: &str = "nvidia-smi";
/// How long it may take: where the driver is not kept awake, it wakes all devices first.
const PATIENCE: Duration = Duration::from_secs(60);
/// The most of what it says that is passed on.
const SAID: usize = 200;

/// The GPUs that a host offers to tasks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Inventory {
    /// Version of their driver, where it is known.
    pub driver: Option<String>,
    /// The devices, in the order in which they are given out.
    pub ids: Vec<GpuId>,
}

impl Inventory {
    /// How many there are.
    #[must_use]
    pub fn count(&self) -> u32 {
        u32::try_from(self.ids.len()).unwrap_or(u32::MAX)
    }

    /// Checks what a file or a program said.
    fn checked(driver: &str, ids: &[String]) -> Result<Self, String> {
        let mut known = Self::default();
        for text in ids {
            let id = GpuId::new(text.trim()).map_err(|error| error.to_string())?;
            if known.ids.contains(&id) {
                return Err(format!("{id} is there twice"));
            }
            known.ids.push(id);
        }
        let driver = driver.trim();
        let fits = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
        if driver.len() > 64 || !driver.bytes().all(fits) {
            return Err(format!("{driver:?} is no version of a driver"));
        }
        known.driver = (!driver.is_empty()).then(|| driver.to_owned());
        Ok(known)
    }
}

/// An inventory file that cannot be made use of.
#[derive(Debug, thiserror::Error)]
#[error(
    "BERTH_GPU_INVENTORY={path}: {problem}; expected \
     {{\"DriverVersion\": \"535.104.05\", \"GPUIDs\": [\"GPU-…\"]}}, or no file for nvidia-smi to be asked"
)]
pub struct BrokenInventory {
    path: String,
    problem: String,
}

/// Why the driver's program does not say which GPUs there are.
#[derive(Debug, thiserror::Error)]
enum NoAnswer {
    #[error("there is no {PROGRAM} on PATH")]
    NotThere,
    #[error("{PROGRAM} cannot be started: {0}")]
    NotStarted(std::io::Error),
    #[error("{PROGRAM} did not answer within {} s", PATIENCE.as_secs())]
    Late,
    #[error("{PROGRAM} failed: {0}")]
    Failed(String),
    #[error("{PROGRAM} said {said:?}: {problem}")]
    Unreadable { said: String, problem: String },
}

/// ECS's file, as its `ecs-init` writes it.
#[derive(Debug, Deserialize)]
struct File {
    #[serde(rename = "DriverVersion", default)]
    driver: Option<String>,
    /// Null where there are none.
    #[serde(rename = "GPUIDs", default)]
    ids: Option<Vec<String>>,
}

/// Finds the GPUs of the host; none where tasks are to have none. Where none is found although some are
/// wanted, the log says why.
///
/// # Errors
/// [`BrokenInventory`] for an inventory file that makes no sense.
pub async fn find(config: Option<&Gpus>) -> Result<Inventory, BrokenInventory> {
    let Some(config) = config else { return Ok(Inventory::default()) };
    let path = config.inventory.display();
    let (found, none) = match read(&config.inventory)? {
        Some(found) => (found, format!("{path} names none")),
        None => match ask().await {
            Ok(found) => (found, format!("there is no {path}, and {PROGRAM} names none")),
            Err(error) => (Inventory::default(), format!("there is no {path}, and {error}")),
        },
    };
    if found.ids.is_empty() {
        tracing::warn!(
            reason = none,
            "ECS_ENABLE_GPU_SUPPORT=true, but no GPU was found: tasks get none here"
        );
    } else {
        tracing::info!(gpus = ?found.ids, driver = found.driver, "GPUs for tasks");
    }
    Ok(found)
}

/// Reads the inventory file, if it is there.
///
/// # Errors
/// [`BrokenInventory`] when it makes no sense.
pub fn read(path: &Path) -> Result<Option<Inventory>, BrokenInventory> {
    let broken = |problem: String| BrokenInventory { path: path.display().to_string(), problem };
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(broken(error.to_string())),
    };
    let file: File = serde_json::from_str(&text).map_err(|error| broken(error.to_string()))?;
    let checked = Inventory::checked(&file.driver.unwrap_or_default(), &file.ids.unwrap_or_default());
    checked.map(Some).map_err(broken)
}

async fn ask() -> Result<Inventory, NoAnswer> {
    let mut command = Command::new(PROGRAM);
    without_secrets(&mut command);
    command.args(["--query-gpu=uuid,driver_version", "--format=csv,noheader"]);
    command.stdin(Stdio::null()).kill_on_drop(true);
    let output = match tokio::time::timeout(PATIENCE, command.output()).await {
        Err(_) => return Err(NoAnswer::Late),
        Ok(Err(error)) if error.kind() == ErrorKind::NotFound => return Err(NoAnswer::NotThere),
        Ok(Err(error)) => return Err(NoAnswer::NotStarted(error)),
        Ok(Ok(output)) => output,
    };
    let text = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        // It tells of its troubles on either.
        let error = String::from_utf8_lossy(&output.stderr);
        let said = [text.trim(), error.trim()].into_iter().find(|said| !said.is_empty());
        return Err(NoAnswer::Failed(cut(said.unwrap_or("it says nothing"))));
    }
    parse(&text).map_err(|problem| NoAnswer::Unreadable { said: cut(&text), problem })
}

/// Lines of `GPU-<uuid>, <version of the driver>`.
fn parse(text: &str) -> Result<Inventory, String> {
    let lines = text.lines().filter(|line| !line.trim().is_empty());
    let pairs: Vec<(&str, &str)> = lines.map(|line| line.split_once(',').unwrap_or((line, ""))).collect();
    let ids: Vec<String> = pairs.iter().map(|(id, _)| (*id).to_owned()).collect();
    Inventory::checked(pairs.first().map_or("", |(_, driver)| driver), &ids)
}

fn cut(said: &str) -> String {
    said.trim().chars().take(SAID).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> Result<Option<Inventory>, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("nvidia-gpu-info.json");
        std::fs::write(&path, text).unwrap();
        read(&path).map_err(|error| error.to_string())
    }

    fn inventory(driver: Option<&str>, ids: &[&str]) -> Inventory {
        let ids = ids.iter().map(|id| GpuId::new(id).unwrap()).collect();
        Inventory { driver: driver.map(str::to_owned), ids }
    }

    #[test]
    fn the_file_is_that_of_ecs() {
        let text = r#"{"DriverVersion": "535.104.05", "GPUIDs": ["GPU-1", "GPU-2"], "More": 1}"#;
        assert_eq!(file(text).unwrap(), Some(inventory(Some("535.104.05"), &["GPU-1", "GPU-2"])));
        assert_eq!(file(r#"{"DriverVersion": "", "GPUIDs": null}"#).unwrap(), Some(Inventory::default()));
        assert_eq!(read(Path::new("/nowhere/at/all.json")).unwrap(), None);
    }

    #[test]
    fn a_file_that_makes_no_sense_is_refused_with_its_name() {
        for (text, problem) in [
            ("", "EOF"),
            (r#"{"GPUIDs": "GPU-1"}"#, "invalid type"),
            (r#"{"GPUIDs": ["all"]}"#, "not a valid GPU id"),
            (r#"{"GPUIDs": ["GPU-1", "GPU-1"]}"#, "is there twice"),
            (r#"{"DriverVersion": "a b", "GPUIDs": ["GPU-1"]}"#, "no version of a driver"),
        ] {
            let refused = file(text).unwrap_err();
            assert!(refused.contains(problem), "{refused}");
            assert!(refused.starts_with("BERTH_GPU_INVENTORY=/"), "{refused}");
            assert!(refused.contains("nvidia-gpu-info.json: "), "{refused}");
        }
    }

    #[test]
    fn the_drivers_program_names_a_device_in_each_line() {
        let two = "GPU-6e2d, 535.104.05\nGPU-7f3e, 535.104.05\n";
        assert_eq!(parse(two).unwrap(), inventory(Some("535.104.05"), &["GPU-6e2d", "GPU-7f3e"]));
        assert_eq!(parse("\n").unwrap(), Inventory::default());
        assert!(parse("No devices were found\n").unwrap_err().contains("not a valid GPU id"));
    }

    #[tokio::test]
    async fn where_none_is_wanted_none_is_looked_for() {
        assert_eq!(find(None).await.unwrap(), Inventory::default());
    }
}
