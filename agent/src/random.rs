//! The one place that asks for chance.

use std::cell::Cell;
use std::marker::PhantomData;

use uuid::Uuid;

thread_local! {
    /// What follows next on this thread, while its chance is simulated.
    static NEXT: Cell<Option<u64>> = const { Cell::new(None) };
}

/// A name that nobody guesses and nobody else has.
#[must_use]
pub fn name() -> Uuid {
    if NEXT.get().is_some() { Uuid::from_u64_pair(number(), number()) } else { Uuid::new_v4() }
}

/// A number that is another each time.
#[must_use]
pub fn number() -> u64 {
    let Some(state) = NEXT.get() else {
        return Uuid::new_v4().as_u64_pair().0;
    };
    // SplitMix64.
    let state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    NEXT.set(Some(state));
    let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// A thread whose chance follows from a seed. It is chance again when this is dropped.
#[derive(Debug)]
#[must_use]
pub struct Simulated(PhantomData<*const ()>);

/// Makes all chance of this thread follow from `seed`: for simulations, which have a thread to themselves.
pub fn simulate(seed: u64) -> Simulated {
    NEXT.set(Some(seed));
    Simulated(PhantomData)
}

impl Drop for Simulated {
    fn drop(&mut self) {
        NEXT.set(None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn simulated_chance_follows_from_its_seed() {
        let draw = |seed| {
            let _simulated = simulate(seed);
            (name(), number(), name())
        };
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
        assert_ne!(name(), name());
    }
}
