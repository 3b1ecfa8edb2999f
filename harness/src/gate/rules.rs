//! Which calls are met, and with what: the n-th that matches, once or from then on. Pure.

use std::path::{Path, PathBuf};

use globset::GlobMatcher;

use super::{Call, Decision, Kind};

/// What is to be done at which call.
#[derive(Debug, Clone)]
pub struct Rule {
    pub kinds: Vec<Kind>,
    /// On the path below the base; none: every path below it.
    pub paths: Option<GlobMatcher>,
    /// Which of the calls that match, from 1.
    pub nth: u64,
    /// Each one after it as well.
    pub from_then_on: bool,
    pub decision: Decision,
}

/// Rules, and how often each has matched: over all threads and processes of the target.
#[derive(Debug, Clone)]
pub struct Rules {
    base: PathBuf,
    rules: Vec<(Rule, u64)>,
}

/// A rule's turn has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hit {
    /// Which rule, in the order given.
    pub rule: usize,
    /// The call's number among those that match it.
    pub nth: u64,
    pub decision: Decision,
}

impl Rule {
    fn matches(&self, call: &Call, below: &Path) -> bool {
        self.kinds.contains(&call.kind) && self.paths.as_ref().is_none_or(|paths| paths.is_match(below))
    }
}

impl Rules {
    /// `base`: the folder that paths are given below, as the target names it.
    pub fn new(base: PathBuf, rules: Vec<Rule>) -> Rules {
        Rules { base, rules: rules.into_iter().map(|rule| (rule, 0)).collect() }
    }

    /// Counts the call for every rule that it matches; the first whose turn it is decides.
    pub fn meet(&mut self, call: &Call) -> Option<Hit> {
        let paths = std::iter::once(&call.path).chain(call.to.as_ref());
        let below: Vec<&Path> = paths.filter_map(|path| path.strip_prefix(&self.base).ok()).collect();
        let mut hit = None;
        for (number, (rule, count)) in self.rules.iter_mut().enumerate() {
            if !below.iter().any(|path| rule.matches(call, path)) {
                continue;
            }
            *count += 1;
            if *count == rule.nth || (rule.from_then_on && *count > rule.nth) {
                hit.get_or_insert(Hit { rule: number, nth: *count, decision: rule.decision });
            }
        }
        hit
    }

    /// Whether a rule may still have its turn.
    pub fn waiting(&self) -> bool {
        self.rules.iter().any(|(rule, count)| rule.from_then_on || *count < rule.nth)
    }

    /// Rules that repeat have their last turn behind them.
    pub fn end(&mut self, rule: usize) {
        if let Some((rule, count)) = self.rules.get_mut(rule) {
            (rule.from_then_on, rule.nth) = (false, rule.nth.min(*count));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::errno::Errno;

    fn call(kind: Kind, path: &str) -> Call {
        Call { kind, tid: 1, path: Path::new("/root").join(path), to: None, bytes: None }
    }

    fn rule(nth: u64, from_then_on: bool) -> Rules {
        let paths = globset::Glob::new("saves/*").map(|glob| glob.compile_matcher()).ok();
        let decision = Decision::Fail(Errno::EIO);
        let rule = Rule { kinds: vec![Kind::Write], paths, nth, from_then_on, decision };
        Rules::new("/root".into(), vec![rule])
    }

    fn hits(mut rules: Rules) -> Vec<u64> {
        let calls = [
            call(Kind::Write, "saves/a"),
            call(Kind::Fsync, "saves/a"),
            call(Kind::Write, "logs/a"),
            call(Kind::Write, "saves/b"),
            call(Kind::Write, "saves/a"),
        ];
        calls.iter().filter_map(|call| rules.meet(call)).map(|hit| hit.nth).collect()
    }

    #[test]
    fn only_what_matches_is_counted() {
        assert_eq!(hits(rule(2, false)), [2]);
        assert_eq!(hits(rule(2, true)), [2, 3]);
        assert_eq!(hits(rule(4, false)), [0; 0]);
    }

    #[test]
    fn nothing_waits_once_a_single_turn_is_over() {
        let mut rules = rule(1, false);
        assert!(rules.waiting());
        rules.meet(&call(Kind::Write, "saves/a"));
        assert!(!rules.waiting());
        let mut rules = rule(1, true);
        rules.meet(&call(Kind::Write, "saves/a"));
        assert!(rules.waiting());
        rules.end(0);
        assert!(!rules.waiting() && rules.meet(&call(Kind::Write, "saves/a")).is_none());
    }
}
