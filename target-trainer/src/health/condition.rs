//! A state of the machine that people should know of: when it begins, and when it ends. Reads no file.

use std::collections::BTreeSet;

/// Something to tell people, once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HostEvent {
    /// A state has begun, with its figures.
    Begun(String),
    /// It has ended, with its figures.
    Ended(String),
}

/// How bad a state is. Between the two bounds nothing changes, so that figures near one of them lead to no flood of
/// messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Level {
    /// Beyond the bound at which the state begins.
    Bad,
    /// Not bad enough to begin, not good enough to end.
    Between,
    /// Below the bound at which it ends.
    Good,
}

impl Level {
    pub(super) fn of(is_bad: bool, is_good: bool) -> Level {
        match (is_bad, is_good) {
            (true, _) => Level::Bad,
            (false, true) => Level::Good,
            (false, false) => Level::Between,
        }
    }
}

/// What one look at the machine found about one state. What could not be read is not among the findings.
#[derive(Debug, Clone)]
pub(super) struct Finding {
    /// Which state.
    pub(super) name: String,
    pub(super) level: Level,
    /// What is so, if it is bad.
    pub(super) bad: &'static str,
    /// What is so, if it is good again.
    pub(super) good: &'static str,
    pub(super) figures: String,
}

/// The states that have begun and have not ended.
#[derive(Debug, Default)]
pub(super) struct BadStates(BTreeSet<String>);

impl BadStates {
    /// What is new with these findings.
    pub(super) fn update(&mut self, findings: Vec<Finding>) -> Vec<HostEvent> {
        let event = |finding: Finding| {
            let Finding { name, level, bad, good, figures } = finding;
            match level {
                Level::Bad if self.0.insert(name.clone()) => {
                    Some(HostEvent::Begun(format!("{bad}: {figures}")))
                }
                Level::Good if self.0.remove(&name) => Some(HostEvent::Ended(format!("{good}: {figures}"))),
                _ => None,
            }
        };
        findings.into_iter().filter_map(event).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(level: Level) -> Finding {
        let (name, figures) = ("memory".into(), "5 of 6".into());
        Finding { name, level, bad: "memory is short", good: "memory suffices", figures }
    }

    #[test]
    fn a_state_is_told_when_it_begins_and_when_it_ends() {
        let mut states = BadStates::default();
        let levels = [Level::Good, Level::Between, Level::Bad, Level::Between, Level::Bad, Level::Between];
        let told: Vec<_> = levels.into_iter().flat_map(|level| states.update(vec![finding(level)])).collect();
        assert_eq!(told, [HostEvent::Begun("memory is short: 5 of 6".into())]);
        // What can't be read has neither begun nor ended.
        assert!(states.update(Vec::new()).is_empty());
        let told: Vec<_> =
            [Level::Good, Level::Good].map(|level| states.update(vec![finding(level)])).concat();
        assert_eq!(told, [HostEvent::Ended("memory suffices: 5 of 6".into())]);
    }
}
