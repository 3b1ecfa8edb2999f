//! Which calls are met, and with what: the n-th that matches, once or from then on. Pure.

use std::path::{Path, PathBuf};

use globset::GlobMatcher;

use super::{CallDecision, CallKind, InterceptedCall};

/// What is to be done at which call.
#[derive(Debug, Clone)]
pub struct CallRule {
    pub kinds: Vec<CallKind>,
    /// On the path below the base; none: every path below it.
    pub paths: Option<GlobMatcher>,
    /// Which of the calls that match, from 1.
    pub nth: u64,
    /// Each one after it as well.
    pub persistent: bool,
    pub decision: CallDecision,
}

/// Rules, and how often each has matched: over all threads and processes of the target.
#[derive(Debug, Clone)]
pub struct CallRules {
    base_dir: PathBuf,
    rules: Vec<(CallRule, u64)>,
}

/// A rule's turn has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleMatch {
    /// Which rule, in the order given.
    pub rule_index: usize,
    /// The call's number among those that match it.
    pub nth: u64,
    pub decision: CallDecision,
}

impl CallRule {
    fn matches(&self, call: &InterceptedCall, below: &Path) -> bool {
        self.kinds.contains(&call.kind) && self.paths.as_ref().is_none_or(|paths| paths.is_match(below))
    }
}

impl CallRules {
    /// `base`: the folder that paths are given below, as the target names it.
    pub fn new(base_dir: PathBuf, rules: Vec<CallRule>) -> CallRules {
        CallRules { base_dir, rules: rules.into_iter().map(|rule| (rule, 0)).collect() }
    }

    /// Counts the call for every rule that it matches; the first whose turn it is decides.
    pub fn on_call(&mut self, call: &InterceptedCall) -> Option<RuleMatch> {
        let paths = std::iter::once(&call.path).chain(call.to.as_ref());
        let below: Vec<&Path> = paths.filter_map(|path| path.strip_prefix(&self.base_dir).ok()).collect();
        let mut hit = None;
        for (number, (rule, count)) in self.rules.iter_mut().enumerate() {
            if !below.iter().any(|path| rule.matches(call, path)) {
                continue;
            }
            *count += 1;
            if *count == rule.nth || (rule.persistent && *count > rule.nth) {
                hit.get_or_insert(RuleMatch { rule_index: number, nth: *count, decision: rule.decision });
            }
        }
        hit
    }

    /// Whether a rule may still have its turn.
    pub fn is_pending(&self) -> bool {
        self.rules.iter().any(|(rule, count)| rule.persistent || *count < rule.nth)
    }

    /// Rules that repeat have their last turn behind them.
    pub fn disarm(&mut self, rule: usize) {
        if let Some((rule, count)) = self.rules.get_mut(rule) {
            (rule.persistent, rule.nth) = (false, rule.nth.min(*count));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::errno::Errno;

    fn call(kind: CallKind, path: &str) -> InterceptedCall {
        InterceptedCall { kind, tid: 1, path: Path::new("/root").join(path), to: None, requested_bytes: None }
    }

    fn rules_with(nth: u64, from_then_on: bool) -> CallRules {
        let paths = globset::Glob::new("saves/*").map(|glob| glob.compile_matcher()).ok();
        let decision = CallDecision::Fail(Errno::EIO);
        let rule = CallRule { kinds: vec![CallKind::Write], paths, nth, persistent: from_then_on, decision };
        CallRules::new("/root".into(), vec![rule])
    }

    fn matched_calls(mut rules: CallRules) -> Vec<u64> {
        let calls = [
            call(CallKind::Write, "saves/a"),
            call(CallKind::Fsync, "saves/a"),
            call(CallKind::Write, "logs/a"),
            call(CallKind::Write, "saves/b"),
            call(CallKind::Write, "saves/a"),
        ];
        calls.iter().filter_map(|call| rules.on_call(call)).map(|hit| hit.nth).collect()
    }

    #[test]
    fn only_matching_calls_are_counted() {
        assert_eq!(matched_calls(rules_with(2, false)), [2]);
        assert_eq!(matched_calls(rules_with(2, true)), [2, 3]);
        assert_eq!(matched_calls(rules_with(4, false)), [0; 0]);
    }

    #[test]
    fn a_transient_rule_is_not_pending_after_its_match() {
        let mut rules = rules_with(1, false);
        assert!(rules.is_pending());
        rules.on_call(&call(CallKind::Write, "saves/a"));
        assert!(!rules.is_pending());
        let mut rules = rules_with(1, true);
        rules.on_call(&call(CallKind::Write, "saves/a"));
        assert!(rules.is_pending());
        rules.disarm(0);
        assert!(!rules.is_pending() && rules.on_call(&call(CallKind::Write, "saves/a")).is_none());
    }
}
