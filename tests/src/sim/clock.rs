//! The clock of an agent's host, which a test puts forward and back; that of the host itself stays as it is.

use std::process::Command;

use anyhow::{Result, ensure};
use tempfile::TempDir;

/// A clock for programs that are started with its [`environment`](Self::environment).
#[derive(Debug)]
pub struct WrongClock {
    folder: TempDir,
}

impl WrongClock {
    /// A clock that is right as yet.
    ///
    /// # Errors
    /// When there is no C compiler, which Rust's linking needs, too.
    pub fn new() -> Result<Self> {
        let clock = Self { folder: tempfile::Builder::new().prefix("berth-clock-").tempdir()? };
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/src/sim/wrong_clock.c");
        let library = clock.folder.path().join("clock.so");
        let made = Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(library).arg(source).output()?;
        ensure!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        clock.put(0)?;
        Ok(clock)
    }

    /// What a program is started with that goes by it.
    #[must_use]
    pub fn environment(&self) -> [(&'static str, String); 2] {
        let path = |name: &str| self.folder.path().join(name).display().to_string();
        [("LD_PRELOAD", path("clock.so")), ("BERTH_TEST_CLOCK", path("off"))]
    }

    /// Puts it so many seconds before the right time, or after it where that is negative.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn put(&self, seconds: i64) -> Result<()> {
        let next = self.folder.path().join("next");
        std::fs::write(&next, seconds.to_string())?;
        Ok(std::fs::rename(next, self.folder.path().join("off"))?)
    }
}
