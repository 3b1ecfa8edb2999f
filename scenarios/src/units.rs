//! Sizes and durations as users write them: `64 MiB`, `700 ms`. A number without a unit is an error.

use std::time::Duration;

use crate::yaml::leaf::{leaf, leaf_of};

/// A number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteSize(pub u64);

leaf_of!(ByteSize, parse_bytes, r"^\d+ ?(B|KiB|MiB|GiB|TiB)$", "A size with its unit: `64 MiB`.");
leaf!(TimeSpan(Duration), parse_duration, r"^\d+ ?(us|ms|s|min|h)$", "A duration with its unit: `700 ms`.");

/// Why a text is not a number with a unit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnitError {
    /// There is no number, or no known unit.
    #[error("`{text}` is not {expected}")]
    NoUnit {
        /// The text.
        text: String,
        /// What was expected, with an example and all units.
        expected: &'static str,
    },
    /// The number does not fit into 64 bits.
    #[error("`{text}` is too large")]
    TooLarge {
        /// The text.
        text: String,
    },
}

/// Units of sizes, in bytes.
const SIZE_UNITS: [(&str, u64); 5] =
    [("B", 1), ("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30), ("TiB", 1 << 40)];
/// Units of durations, in microseconds.
const TIME_UNITS: [(&str, u64); 5] =
    [("us", 1), ("ms", 1_000), ("s", 1_000_000), ("min", 60_000_000), ("h", 3_600_000_000)];

/// Parses a size such as `64 MiB`.
///
/// # Errors
///
/// If the text is not a size with a unit, or does not fit into 64 bits.
pub fn parse_bytes(text: &str) -> Result<ByteSize, UnitError> {
    parse_with_unit(text, &SIZE_UNITS, "a size such as `64 MiB` (B, KiB, MiB, GiB, TiB)").map(ByteSize)
}

/// Parses a duration such as `700 ms`.
///
/// # Errors
///
/// If the text is not a duration with a unit, or does not fit into 64 bits of
/// microseconds.
pub fn parse_duration(text: &str) -> Result<Duration, UnitError> {
    parse_with_unit(text, &TIME_UNITS, "a duration such as `700 ms` (us, ms, s, min, h)")
        .map(Duration::from_micros)
}

fn parse_with_unit(text: &str, units: &[(&str, u64)], expected: &'static str) -> Result<u64, UnitError> {
    let text = text.trim();
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = (&text[..split], text[split..].trim());
    let no_unit = || UnitError::NoUnit { text: text.into(), expected };
    let number: u64 = digits.parse().map_err(|_| no_unit())?;
    let (_, scale) = units.iter().find(|(name, _)| *name == unit).ok_or_else(no_unit)?;
    number.checked_mul(*scale).ok_or_else(|| UnitError::TooLarge { text: text.into() })
}

impl std::fmt::Display for ByteSize {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (name, scale) = SIZE_UNITS
            .iter()
            .rev()
            .find(|(_, scale)| self.0 >= *scale && self.0.is_multiple_of(*scale))
            .unwrap_or(&SIZE_UNITS[0]);
        write!(f, "{} {name}", self.0 / scale)
    }
}
