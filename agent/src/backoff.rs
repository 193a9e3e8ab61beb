//! Pauses between attempts at something that others attempt as well: growing, bounded, and not in step with
//! those of the others.

use std::time::Duration;

use tokio::time::Instant;

const FACTOR: f64 = 1.5;
/// What lasted this long starts the pauses afresh.
const GOOD: Duration = Duration::from_secs(5);

/// The next pause.
#[derive(Debug)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    next: Duration,
    seed: u64,
}

impl Backoff {
    /// Begins with the first pause; `seed` spreads those apart who attempt the same.
    #[must_use]
    pub const fn new(seed: u64, first: Duration, longest: Duration) -> Self {
        Self { first, longest, next: first, seed: seed | 1 }
    }

    /// The pause to make now: up to a fifth longer than the plain one.
    pub fn pause(&mut self) -> Duration {
        let plain = self.next;
        self.next = plain.mul_f64(FACTOR).min(self.longest);
        // Xorshift: chance enough for that.
        self.seed ^= self.seed << 13;
        self.seed ^= self.seed >> 7;
        self.seed ^= self.seed << 17;
        let share = u32::try_from(self.seed % 1000).unwrap_or(0);
        plain + plain * share / 5000
    }

    /// Takes note of how long what was attempted lasted.
    pub fn lasted(&mut self, since: Instant) {
        if since.elapsed() >= GOOD {
            self.next = self.first;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_bound_and_differ() {
        const FIRST: Duration = Duration::from_millis(250);
        const LONGEST: Duration = Duration::from_secs(15);
        let (mut one, mut other) = (Backoff::new(7, FIRST, LONGEST), Backoff::new(8, FIRST, LONGEST));
        let mut last = Duration::ZERO;
        let mut differed = false;
        for _ in 0..30 {
            let pause = one.pause();
            differed |= pause != other.pause();
            assert!(pause >= last.mul_f64(0.8) && pause <= LONGEST.mul_f64(1.2));
            last = pause;
        }
        assert!(last >= LONGEST && differed);
    }
}
