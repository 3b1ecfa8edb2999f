//! Smooths the reasons for which a GPU slows down: some come and go with every kernel, and each change would
//! be a warning. Reads no GPU.

use std::collections::BTreeMap;

/// Readings without a reason after which it counts as gone.
const ABSENT_READINGS: u32 = 60;

/// The reasons of the last readings.
#[derive(Debug, Default)]
pub(super) struct ThrottleFilter {
    /// Each reason, with the number of readings since it was last seen.
    absent_for: BTreeMap<&'static str, u32>,
}

impl ThrottleFilter {
    /// Adds a reading. Returns the reasons that count: a new one counts at once, and until it has not been
    /// seen for [`ABSENT_READINGS`].
    pub(super) fn smooth(&mut self, reasons: &[&'static str]) -> Vec<&'static str> {
        self.absent_for.values_mut().for_each(|count| *count += 1);
        self.absent_for.extend(reasons.iter().map(|reason| (*reason, 0)));
        self.absent_for.retain(|_, count| *count < ABSENT_READINGS);
        self.absent_for.keys().copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_that_comes_and_goes_counts_once_and_ends_after_a_while() {
        let mut filter = ThrottleFilter::default();
        assert!(filter.smooth(&[]).is_empty());
        for number in 0..1000 {
            let reasons: &[&'static str] = if number % 7 == 0 { &["power cap"] } else { &[] };
            assert_eq!(filter.smooth(reasons), ["power cap"]);
        }
        let ended = (0..).find(|_| filter.smooth(&[]).is_empty());
        assert!(ended.is_some_and(|count| count < ABSENT_READINGS));
        assert_eq!(filter.smooth(&["thermal", "power cap"]), ["power cap", "thermal"]);
    }
}
