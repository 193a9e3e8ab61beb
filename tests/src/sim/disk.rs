//! A disk of a few MiB for an agent's state, which a test can fill.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;

const FILLER: &str = "filler";
const BLOCK: [u8; 4096] = [0x5a; 4096];

/// A mounted tmpfs of bounded size. Unmounted with its value.
#[derive(Debug)]
pub struct SmallDisk {
    folder: TempDir,
}

impl SmallDisk {
    /// Mounts one of that many MiB.
    ///
    /// # Errors
    /// When this process may not mount.
    pub fn mount(mebibytes: u32) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("berth-disk-").tempdir()?;
        let options = format!("size={mebibytes}m,mode=0700");
        run(Command::new("mount").args(["-t", "tmpfs", "-o", &options, "berth-disk"]).arg(folder.path()))?;
        Ok(Self { folder })
    }

    /// Where it is mounted.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Has nothing written to it any more, or again.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn read_only(&self, read_only: bool) -> Result<()> {
        let options = if read_only { "remount,ro" } else { "remount,rw" };
        run(Command::new("mount").args(["-o", options]).arg(self.path()))
    }

    /// Writes until there is no room for another byte.
    ///
    /// # Errors
    /// When something else than the room comes to its end.
    pub fn fill(&self) -> Result<()> {
        let mut filler = OpenOptions::new().create(true).append(true).open(self.path().join(FILLER))?;
        loop {
            match filler.write_all(&BLOCK) {
                Ok(()) => {}
                Err(why) if why.kind() == ErrorKind::StorageFull => return Ok(()),
                Err(why) => return Err(why).context("filling the small disk"),
            }
        }
    }

    /// Makes room again.
    ///
    /// # Errors
    /// When the filler cannot be cut.
    pub fn free(&self) -> Result<()> {
        File::options()
            .write(true)
            .open(self.path().join(FILLER))?
            .set_len(0)
            .context("freeing the small disk")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: who still has a file open there keeps nobody from going on.
        if let Err(why) = run(Command::new("umount").arg("--lazy").arg(self.folder.path())) {
            eprintln!("{} stays mounted: {why:#}", self.folder.path().display());
        }
    }
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("{command:?}"))?;
    let error = String::from_utf8_lossy(&output.stderr);
    if error.contains("permission denied") {
        bail!("{command:?} needs root: {}", error.trim());
    }
    ensure!(output.status.success(), "{command:?}: {}", error.trim());
    Ok(())
}
