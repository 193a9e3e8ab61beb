//! The log as a file that is rolled over, by the hour or by its size, and does not grow for ever.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use tracing_subscriber::fmt::MakeWriter;

use crate::clock;
use crate::config::{LogFile, Rollover};

const HOUR_MS: u64 = 3_600_000;

/// Writes to the file; whole events at a time.
#[derive(Debug)]
pub(super) struct RollingFile {
    settings: LogFile,
    open: Mutex<Open>,
}

#[derive(Debug)]
struct Open {
    file: File,
    bytes: u64,
    hour: u64,
}

impl RollingFile {
    /// Opens the file and goes on at its end.
    pub(super) fn open(settings: LogFile) -> io::Result<Self> {
        if let Some(folder) = settings.path.parent() {
            fs::create_dir_all(folder)?;
        }
        let open = Mutex::new(Open::at_end(&settings.path)?);
        Ok(Self { settings, open })
    }

    fn write_at(&self, event: &[u8], hour: u64) -> io::Result<()> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let due = match self.settings.rollover {
            Rollover::Hourly => hour != open.hour,
            Rollover::Size(most) => open.bytes > 0 && open.bytes + event.len() as u64 > most,
        };
        if due && open.bytes > 0 {
            self.roll()?;
            *open = Open::at_end(&self.settings.path)?;
        }
        open.hour = hour;
        open.bytes += event.len() as u64;
        open.file.write_all(event)
    }

    /// Moves every file one number up; the oldest falls off.
    fn roll(&self) -> io::Result<()> {
        let numbered = |number: u32| match number {
            0 => self.settings.path.clone(),
            number => PathBuf::from(format!("{}.{number}", self.settings.path.display())),
        };
        if self.settings.keep == 0 {
            return fs::remove_file(&self.settings.path);
        }
        for number in (0..self.settings.keep).rev() {
            match fs::rename(numbered(number), numbered(number + 1)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }
}

impl Open {
    fn at_end(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().create(true).append(true).mode(0o640).open(path)?;
        let bytes = file.metadata()?.len();
        Ok(Self { file, bytes, hour: clock::now().0 / HOUR_MS })
    }
}

impl Write for &RollingFile {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        self.write_at(event, clock::now().0 / HOUR_MS)?;
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for RollingFile {
    type Writer = &'a Self;

    fn make_writer(&'a self) -> &'a Self {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_is_rolled_over_by_size_and_the_oldest_falls_off() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deeper/agent.log");
        let settings = LogFile { path: path.clone(), rollover: Rollover::Size(10), keep: 2 };
        let log = RollingFile::open(settings.clone()).unwrap();
        for event in ["first\n", "second\n", "third\n", "fourth\n"] {
            (&log).write_all(event.as_bytes()).unwrap();
        }
        assert_eq!(names(&folder.path().join("deeper")), ["agent.log", "agent.log.1", "agent.log.2"]);
        assert_eq!(fs::read_to_string(&path).unwrap(), "fourth\n");
        assert_eq!(fs::read_to_string(folder.path().join("deeper/agent.log.2")).unwrap(), "second\n");
        // Opened again, it goes on where it was.
        let again = RollingFile::open(settings).unwrap();
        (&again).write_all(b"5\n").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "fourth\n5\n");
    }

    #[test]
    fn a_file_is_rolled_over_with_the_hour() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("agent.log");
        let log = RollingFile::open(LogFile { path, rollover: Rollover::Hourly, keep: 3 }).unwrap();
        let hour = clock::now().0 / HOUR_MS;
        log.write_at(b"now\n", hour).unwrap();
        log.write_at(b"still\n", hour).unwrap();
        log.write_at(b"later\n", hour + 1).unwrap();
        assert_eq!(names(folder.path()), ["agent.log", "agent.log.1"]);
        assert_eq!(fs::read_to_string(folder.path().join("agent.log.1")).unwrap(), "now\nstill\n");
    }
}
