//! The demo image, made once for all tests of a process, and definitions that use it.

use std::path::Path;
use std::process::Stdio;

use anyhow::{Result, bail};
use serde_json::{Value, json};
use tokio::process::Command;
use tokio::sync::OnceCell;

/// The image that tests run.
pub const IMAGE: &str = "berth-demo:latest";

/// The folder of the checkout that this was built from.
#[must_use]
pub fn checkout() -> &'static Path {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().unwrap_or(tests)
}

/// Makes sure that the engine has the image of the present source. Where `BERTH_TEST_DEMO=there`
/// says so, it has, and no source is at hand.
///
/// # Errors
/// When no engine answers or the image cannot be made.
pub async fn image() -> Result<()> {
    if std::env::var_os("BERTH_TEST_DEMO").is_some_and(|told| told == "there") {
        return Ok(());
    }
    static MADE: OnceCell<()> = OnceCell::const_new();
    MADE.get_or_try_init(|| async {
        let mut script = Command::new(checkout().join("tests/scripts/demo-image.sh"));
        let output = script.stdin(Stdio::null()).kill_on_drop(true).output().await?;
        if !output.status.success() {
            bail!("tests/scripts/demo-image.sh: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(())
    })
    .await
    .copied()
}

/// A container definition: the demo program with that command (empty: its HTTP server on 8080), 64 MiB.
#[must_use]
pub fn container(name: &str, command: &[&str]) -> Value {
    json!({ "name": name, "image": IMAGE, "memory": 64, "essential": true, "command": command })
}

/// A container definition like [`container`], with more members that go over its own.
#[must_use]
pub fn container_with(name: &str, command: &[&str], members: Value) -> Value {
    merged(container(name, command), &members)
}

/// A task definition of that mode.
#[must_use]
pub fn task(family: &str, network_mode: &str, containers: Value) -> Value {
    json!({ "family": family, "networkMode": network_mode, "containerDefinitions": containers })
}

/// `base` with the members of `over` put over it, one level deep.
#[must_use]
pub fn merged(mut base: Value, over: &Value) -> Value {
    if let (Some(base), Some(over)) = (base.as_object_mut(), over.as_object()) {
        base.extend(over.clone());
    }
    base
}
