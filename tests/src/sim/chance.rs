//! Chance that can be repeated: the same choices for the same seed.

use std::time::Duration;

use anyhow::{Context, Result};

/// A source of choices (SplitMix64).
#[derive(Debug, Clone)]
pub struct Chance(u64);

impl Chance {
    /// Choices of that seed.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Choices of the seed in that variable, or else of a fresh one. Prints how to repeat them.
    ///
    /// # Errors
    /// When the variable is no number.
    pub fn from_env(variable: &str) -> Result<Self> {
        let seed = match std::env::var(variable) {
            Ok(text) => text.parse().with_context(|| format!("{variable}={text} is no number"))?,
            Err(_) => uuid::Uuid::new_v4().as_u64_pair().0 >> 16,
        };
        println!("{variable}={seed} repeats these choices");
        Ok(Self(seed))
    }

    /// The next number.
    pub const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`; 0 when that is 0.
    pub const fn below(&mut self, bound: u64) -> u64 {
        if bound == 0 { 0 } else { self.next() % bound }
    }

    /// Yes once in `among` times.
    pub const fn once_in(&mut self, among: u64) -> bool {
        self.below(among) == 0
    }

    /// A span shorter than `bound`, to the microsecond.
    pub fn span(&mut self, bound: Duration) -> Duration {
        Duration::from_micros(self.below(u64::try_from(bound.as_micros()).unwrap_or(u64::MAX)))
    }

    /// One of them; `None` when there is none.
    pub fn pick<'a, T>(&mut self, among: &'a [T]) -> Option<&'a T> {
        let at = self.below(u64::try_from(among.len()).unwrap_or(u64::MAX));
        among.get(usize::try_from(at).unwrap_or(0))
    }
}
