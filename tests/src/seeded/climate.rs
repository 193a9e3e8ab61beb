//! Which faults are about in a story, and how often each strikes: one story has many of one kind, another none
//! but delays.

use std::time::Duration;

use berth_agent::effects::Side;

use crate::sim::Chance;

/// What befalls the agent at one point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blow {
    /// It dies, as `kill -9` has it.
    Die,
    /// The call never returns.
    Hang,
    /// The call fails: before it has an effect, or its answer is lost after.
    Fail,
    /// It takes its time.
    Wait(Duration),
}

/// How often what strikes: once in so many passages of a point, never where 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Climate {
    /// The agent dies.
    pub die: u64,
    /// A call hangs.
    pub hang: u64,
    /// A call fails.
    pub fail: u64,
    /// A call waits, and for at most how long.
    pub wait: u64,
    /// The longest wait.
    pub longest: Duration,
}

impl Climate {
    /// Nothing strikes.
    pub const FAIR: Self = Self { die: 0, hang: 0, fail: 0, wait: 0, longest: Duration::ZERO };

    /// That of a story.
    #[must_use]
    pub fn of(chance: &mut Chance) -> Self {
        let mut rare = |often: u64, rates: &[u64]| {
            let strikes = chance.once_in(often);
            let rate = chance.pick(rates).copied().unwrap_or_default();
            if strikes { rate } else { 0 }
        };
        Self {
            die: rare(2, &[40, 150, 600]),
            hang: rare(4, &[80, 300, 1000]),
            fail: rare(2, &[15, 60, 300]),
            wait: rare(2, &[3, 10, 50]),
            longest: Duration::from_millis(rare(1, &[5, 100, 4000])),
        }
    }

    /// What strikes at this passage.
    pub fn blow(&self, chance: &mut Chance, effect: &str, side: Side) -> Option<Blow> {
        let once_in = |chance: &mut Chance, among: u64| among > 0 && chance.once_in(among);
        if once_in(chance, self.die) {
            return Some(Blow::Die);
        }
        // A store says that it failed only of what it has not done; and a disk that hangs for good is one more
        // way to die.
        let is_store = effect.starts_with("store.");
        if once_in(chance, self.hang) && !is_store {
            return Some(Blow::Hang);
        }
        if once_in(chance, self.fail) && !(is_store && side == Side::After) && effect != "store.load" {
            return Some(Blow::Fail);
        }
        once_in(chance, self.wait).then(|| Blow::Wait(chance.span(self.longest)))
    }
}
