//! Medians, percentiles, differences within pairs.

use std::time::Duration;

/// Measured values of one kind, in the order in which they were taken.
#[derive(Debug, Clone, Default)]
pub struct Samples(Vec<f64>);

impl Samples {
    /// Adds a span, in milliseconds.
    pub fn push(&mut self, span: Duration) {
        self.0.push(millis(span));
    }

    /// Adds a value.
    pub fn push_value(&mut self, value: f64) {
        self.0.push(value);
    }

    /// How many there are.
    #[must_use]
    pub fn n(&self) -> usize {
        self.0.len()
    }

    /// All of them.
    #[must_use]
    pub fn values(&self) -> &[f64] {
        &self.0
    }

    /// The median; NaN without values.
    #[must_use]
    pub fn median(&self) -> f64 {
        let sorted = self.sorted();
        let middle = sorted.len() / 2;
        match sorted.len() {
            0 => f64::NAN,
            n if n % 2 == 1 => sorted[middle],
            _ => f64::midpoint(sorted[middle - 1], sorted[middle]),
        }
    }

    /// The 95th percentile, by nearest rank; NaN without values.
    #[must_use]
    pub fn p95(&self) -> f64 {
        let sorted = self.sorted();
        let rank = (sorted.len() * 95).div_ceil(100);
        sorted.get(rank.saturating_sub(1)).copied().unwrap_or(f64::NAN)
    }

    /// What these are beyond the others, pair by pair.
    #[must_use]
    pub fn less(&self, floor: &Self) -> Self {
        Self(self.0.iter().zip(&floor.0).map(|(value, floor)| value - floor).collect())
    }

    /// How many times the others these are, pair by pair.
    #[must_use]
    pub fn over(&self, floor: &Self) -> Self {
        Self(self.0.iter().zip(&floor.0).map(|(value, floor)| value / floor).collect())
    }

    fn sorted(&self) -> Vec<f64> {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        sorted
    }
}

impl FromIterator<f64> for Samples {
    fn from_iter<I: IntoIterator<Item = f64>>(values: I) -> Self {
        Self(values.into_iter().collect())
    }
}

/// A span in milliseconds.
#[must_use]
pub fn millis(span: Duration) -> f64 {
    span.as_secs_f64() * 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_and_the_upper_end() {
        let of = |values: &[f64]| values.iter().copied().collect::<Samples>();
        assert_eq!(of(&[3.0, 1.0, 2.0]).median(), 2.0);
        assert_eq!(of(&[4.0, 1.0, 2.0, 3.0]).median(), 2.5);
        let twenty: Samples = (1..=20).map(f64::from).collect();
        assert_eq!(twenty.p95(), 19.0);
        assert_eq!(of(&[7.0]).p95(), 7.0);
        assert!(of(&[]).median().is_nan() && of(&[]).p95().is_nan());
        assert_eq!(of(&[5.0, 9.0]).less(&of(&[1.0, 2.0])).values(), [4.0, 7.0]);
    }
}
