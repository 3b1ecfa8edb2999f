//! Counts the candidates that are not enumerated, by the rule that leaves them out. Pure.

use std::collections::BTreeMap;

use scenarios::{CrashCategory, EnumerationRule, MAX_COUNTED_CANDIDATES, NotEnumerated};

/// What the enumeration leaves out. Nothing is left out without it.
#[derive(Debug, Clone, Default)]
pub(super) struct LeftOutCounter {
    by_category: BTreeMap<CrashCategory, u64>,
    by_rule: BTreeMap<EnumerationRule, NotEnumerated>,
}

impl LeftOutCounter {
    /// Counts candidates.
    pub(super) fn add(&mut self, category: CrashCategory, rule: EnumerationRule, count: u64) {
        if count == 0 {
            return;
        }
        let total = self.by_category.entry(category).or_default();
        *total = total.saturating_add(count).min(MAX_COUNTED_CANDIDATES);
        self.by_rule.entry(rule).or_default().add(count);
    }

    /// Counts candidates of which there may be more.
    pub(super) fn add_at_least(&mut self, category: CrashCategory, rule: EnumerationRule, count: u64) {
        self.add(category, rule, count);
        if let Some(counted) = self.by_rule.get_mut(&rule) {
            counted.at_least = true;
        }
    }

    /// By category, and by rule.
    pub(super) fn into_counts(self) -> LeftOutCounts {
        LeftOutCounts { by_category: self.by_category, by_rule: self.by_rule }
    }
}

/// The counts at the end.
pub(super) struct LeftOutCounts {
    pub(super) by_category: BTreeMap<CrashCategory, u64>,
    pub(super) by_rule: BTreeMap<EnumerationRule, NotEnumerated>,
}
