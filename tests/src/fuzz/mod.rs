//! Input that nobody would send, by the thousand: what is kept in `tests/corpus` and what chance makes of it.
//!
//! | module | its one job |
//! | --- | --- |
//! | [`bytes`] | changes bytes that are anything |
//! | [`json`] | changes a JSON value, and leaves it JSON |
//! | [`wire`] | changes a message of the protocol, and leaves it one that can be taken apart |
//!
//! `BERTH_FUZZ_SECONDS` says how long each campaign lasts, `BERTH_FUZZ_SEED` repeats one. An input at which
//! something breaks is written below `target/fuzz`; with it in `tests/corpus` it is tried first ever after. There,
//! `to_agents`, `to_control_plane` and `frames` are messages of the session and of programs as bytes, each named by
//! what is wrong with it; `ecs_api` and `hosts_http` are what users and tasks ask.

pub mod bytes;
pub mod json;
pub mod wire;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, Once, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::demo;
use crate::expect::here;
use crate::sim::Chance;

/// How long a campaign lasts unless told otherwise.
const USUAL: Duration = Duration::from_secs(4);
/// Longest that one input may take.
pub const SLOWEST: Duration = Duration::from_secs(2);

static PANICS: AtomicU64 = AtomicU64::new(0);
static LAST_PANIC: Mutex<String> = Mutex::new(String::new());

/// Counts panics from now on, on whatever thread: where a server catches one, it still is one.
pub fn watch_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            *LAST_PANIC.lock().unwrap_or_else(PoisonError::into_inner) = info.to_string();
            PANICS.fetch_add(1, Ordering::SeqCst);
            before(info);
        }));
    });
}

/// Says so where there was a panic.
///
/// # Errors
/// With what was said.
pub fn no_panic() -> Result<()> {
    let said = LAST_PANIC.lock().unwrap_or_else(PoisonError::into_inner).clone();
    ensure!(PANICS.load(Ordering::SeqCst) == 0, "a panic: {said}");
    Ok(())
}

/// One run of inputs of a kind.
#[derive(Debug)]
pub struct Campaign {
    name: &'static str,
    until: Instant,
    /// What chance does.
    pub chance: Chance,
    tried: u64,
    corpus: Vec<(String, Vec<u8>)>,
}

impl Campaign {
    /// Begins with what the corpus of that name holds and with these seeds.
    ///
    /// # Errors
    /// When the corpus cannot be read.
    pub fn begin(name: &'static str, seeds: impl IntoIterator<Item = Vec<u8>>) -> Result<Self> {
        watch_panics();
        let mut corpus: Vec<(String, Vec<u8>)> =
            seeds.into_iter().map(|seed| (String::new(), seed)).collect();
        let folder = demo::checkout().join("tests/corpus").join(name);
        if folder.is_dir() {
            for entry in fs::read_dir(&folder)? {
                let path = entry?.path();
                let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                corpus.push((file, fs::read(&path)?));
            }
        }
        corpus.sort();
        ensure!(!corpus.is_empty(), "{} is empty", folder.display());
        let told = std::env::var("BERTH_FUZZ_SECONDS").ok().and_then(|text| text.parse().ok());
        let lasts = told.map_or(USUAL, Duration::from_secs);
        Ok(Self {
            name,
            until: Instant::now() + lasts,
            chance: Chance::from_env("BERTH_FUZZ_SEED")?,
            tried: 0,
            corpus,
        })
    }

    /// What it began with, by name.
    #[must_use]
    pub fn corpus(&self) -> &[(String, Vec<u8>)] {
        &self.corpus
    }

    /// The next input and the name of what it was made of: each of the corpus as it is, then what `change`
    /// makes of one and, where it likes, another. `None` when it is over.
    pub fn next(
        &mut self,
        mut change: impl FnMut(&mut Chance, &[u8], &[u8]) -> Vec<u8>,
    ) -> Option<(String, Vec<u8>)> {
        let at = usize::try_from(self.tried).unwrap_or(usize::MAX);
        if let Some(given) = self.corpus.get(at) {
            self.tried += 1;
            return Some(given.clone());
        }
        if Instant::now() >= self.until {
            println!("{}: {} inputs", self.name, self.tried);
            return None;
        }
        self.tried += 1;
        let (name, one) = self.chance.pick(&self.corpus)?.clone();
        let (_, other) = self.chance.pick(&self.corpus)?.clone();
        let mut made = change(&mut self.chance, &one, &other);
        while self.chance.once_in(2) {
            made = change(&mut self.chance, &made, &other);
        }
        Some((name, made))
    }

    /// Takes note of what came of an input.
    ///
    /// # Errors
    /// When it broke something, or took too long; it is kept then, and the text says where.
    pub fn judge(&self, input: &[u8], began: Instant, outcome: Result<()>) -> Result<()> {
        let took = began.elapsed();
        let in_time = || {
            ensure!(took < here(SLOWEST), "it took {took:?}");
            Ok(())
        };
        outcome.and_then(|()| no_panic()).and_then(|()| in_time()).with_context(|| match self.keep(input) {
            Ok(path) => format!("{}: {}", self.name, path.display()),
            Err(why) => format!("{}: {input:?} is not kept: {why:#}", self.name),
        })
    }

    fn keep(&self, input: &[u8]) -> Result<PathBuf> {
        let folder: &Path = &demo::checkout().join("target/fuzz").join(self.name);
        fs::create_dir_all(folder)?;
        let path = folder.join(uuid::Uuid::new_v4().simple().to_string());
        fs::write(&path, input)?;
        Ok(path)
    }
}
