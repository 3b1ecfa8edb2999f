//! How many candidates for crash states an enumeration left out, and by which rule. Knows nothing of how they are
//! enumerated.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::trials_planned::grouped;

/// Candidates are not counted beyond this: the number of sets of pages of a few files has hundreds of digits.
pub const MAX_COUNTED_CANDIDATES: u64 = 1_000_000_000;

/// A rule by which an enumeration of crash states leaves candidates out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EnumerationRule {
    /// In a long run of writes to one file, only some are crash points.
    WriteRuns,
    /// Of the sets of many pending changes of names, only some are tried.
    NameSets,
    /// Of the sets of pages of the pending files, only some are tried.
    PageSets,
    /// Changes that btrfs may write with the sync of another file are not tried ahead of earlier ones.
    EarlyChanges,
    /// The enumeration takes bounded time and memory, and then samples every kind of candidate.
    Budget,
}

impl EnumerationRule {
    /// What is left out, for people.
    pub fn description(self) -> &'static str {
        match self {
            EnumerationRule::WriteRuns => "crash points inside long runs of writes",
            EnumerationRule::NameSets => "sets of pending changes of names",
            EnumerationRule::PageSets => "sets of pages of pending files",
            EnumerationRule::EarlyChanges => "changes that btrfs may write with a sync of another file",
            EnumerationRule::Budget => {
                "beyond the bound on time and memory, where some of every kind are tried"
            }
        }
    }
}

/// How many candidates a rule left out. `3`, `at least 3`, or `more than 1,000,000,000`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NotEnumerated {
    /// At most [`MAX_COUNTED_CANDIDATES`], which stands for more.
    pub count: u64,
    /// Whether there may be more.
    #[serde(default)]
    pub at_least: bool,
}

impl NotEnumerated {
    /// Counts further ones.
    pub fn add(&mut self, count: u64) {
        self.count = self.count.saturating_add(count).min(MAX_COUNTED_CANDIDATES);
        self.at_least |= self.count == MAX_COUNTED_CANDIDATES;
    }
}

impl fmt::Display for NotEnumerated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.at_least && self.count < MAX_COUNTED_CANDIDATES {
            true => write!(f, "at least {}", grouped(self.count)),
            false => f.write_str(&counted(self.count)),
        }
    }
}

/// A number of candidates that is not counted beyond [`MAX_COUNTED_CANDIDATES`].
pub fn counted(count: u64) -> String {
    let is_exact = count < MAX_COUNTED_CANDIDATES;
    let more = if is_exact { "" } else { "more than " };
    format!("{more}{}", grouped(count.min(MAX_COUNTED_CANDIDATES)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_says_whether_the_count_is_exact() {
        let mut counted = NotEnumerated::default();
        counted.add(1234);
        assert_eq!(counted.to_string(), "1,234");
        assert_eq!(NotEnumerated { at_least: true, ..counted }.to_string(), "at least 1,234");
        counted.add(u64::MAX);
        assert_eq!(counted.to_string(), "more than 1,000,000,000");
    }
}
