//! Which records these are: the lives of a store, so that whoever has seen some of its records can be told from
//! one who has seen others, or newer ones than there are.
//!
//! Every opening of a store begins a life with a random name. A copy that is put back knows the lives up to the
//! copy, and how far each of them came in it; what it came to after the copy is nowhere in it.

use serde::{Deserialize, Serialize};

use super::Revision;

/// Most lives that are remembered. Whoever has seen nothing newer counts as one who has seen other records.
pub(super) const MOST: usize = 128;

/// A moment of a store: a revision in one of its lives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Point {
    /// The life.
    pub life: String,
    /// The revision.
    pub revision: Revision,
}

/// One life: from the opening of the store to the next one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Life {
    /// Its name.
    pub(super) name: String,
    /// The store's revision when it began.
    pub(super) from: Revision,
}

impl Life {
    /// A life of its own name.
    pub(super) fn new(from: Revision) -> Self {
        Self { name: uuid::Uuid::new_v4().simple().to_string(), from }
    }
}

/// The lives of a store, the present one last.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct History {
    lives: Vec<Life>,
}

impl History {
    /// That of a store whose lives are these.
    pub(super) const fn of(lives: Vec<Life>) -> Self {
        Self { lives }
    }

    /// That of a store which is new.
    pub(super) fn begin() -> Self {
        Self::of(vec![Life::new(0)])
    }

    /// That revision in the present life.
    #[must_use]
    pub fn at(&self, revision: Revision) -> Point {
        let life = self.lives.last().map(|life| life.name.clone()).unwrap_or_default();
        Point { life, revision }
    }

    /// Whether somebody who has seen that point has seen nothing but what this store was, or is at its present
    /// revision.
    #[must_use]
    pub fn holds(&self, seen: &Point, now: Revision) -> bool {
        let Some(at) = self.lives.iter().position(|life| life.name == seen.life) else { return false };
        let end = self.lives.get(at + 1).map_or(now, |next| next.from);
        seen.revision <= end
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn life(name: &str, from: Revision) -> Life {
        Life { name: name.to_owned(), from }
    }

    fn seen(life: &str, revision: Revision) -> Point {
        Point { life: life.to_owned(), revision }
    }

    #[test]
    fn what_was_seen_of_this_store_is_told_from_what_was_not() {
        let history = History::of(vec![life("a", 0), life("b", 7), life("c", 20)]);
        for known in [seen("a", 0), seen("a", 7), seen("b", 7), seen("b", 20), seen("c", 20), seen("c", 25)] {
            assert!(history.holds(&known, 25), "{known:?}");
        }
        // After the copy that it began with again, after the one before that, of another store, of nobody.
        for other in [seen("b", 21), seen("a", 8), seen("c", 26), seen("d", 1), seen("", 0)] {
            assert!(!history.holds(&other, 25), "{other:?}");
        }
        assert_eq!(history.at(25), seen("c", 25));
    }

    #[test]
    fn two_new_stores_are_not_the_same() {
        let (one, other) = (History::begin(), History::begin());
        assert!(one.holds(&one.at(3), 3));
        assert!(!one.holds(&other.at(0), 3));
    }
}
