//! What happened in a world, line by line, and a number that tells two stories apart.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Mutex, PoisonError};

use tokio::time::Instant;

/// Lines that are kept of a story that nobody wants to read whole.
const KEPT: usize = 400;

/// The lines of one story.
#[derive(Debug)]
pub struct Trace {
    began: Instant,
    whole: bool,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    lines: VecDeque<String>,
    count: u64,
    digest: u64,
}

impl Trace {
    /// Begins now. With `whole`, every line is kept.
    #[must_use]
    pub fn new(whole: bool) -> Self {
        // FNV-1a.
        let inner = Inner { lines: VecDeque::new(), count: 0, digest: 0xcbf2_9ce4_8422_2325 };
        Self { began: Instant::now(), whole, inner: Mutex::new(inner) }
    }

    /// Writes down what happens now.
    pub fn note(&self, what: fmt::Arguments<'_>) {
        let line = format!("{:>10.3} {what}", self.began.elapsed().as_secs_f64());
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        for byte in line.bytes() {
            inner.digest = (inner.digest ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
        inner.count += 1;
        if !self.whole && inner.lines.len() == KEPT {
            inner.lines.pop_front();
        }
        inner.lines.push_back(line);
    }

    /// How many lines there are, and a number that another story does not have.
    #[must_use]
    pub fn digest(&self) -> (u64, u64) {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        (inner.count, inner.digest)
    }

    /// The lines that were kept.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).lines.iter().cloned().collect()
    }

    /// For how long it has gone on, in milliseconds.
    #[must_use]
    pub fn millis(&self) -> u128 {
        self.began.elapsed().as_millis()
    }
}
