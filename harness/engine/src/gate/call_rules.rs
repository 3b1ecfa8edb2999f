//! Rules that select calls: the n-th call that matches, only that one or each one from there on. Pure.

use std::path::{Path, PathBuf};

use globset::GlobMatcher;

use super::CallKind;
use super::handler::{CallDecision, InterceptedCall};

/// Selects calls, and holds the decision for them.
#[derive(Debug, Clone)]
pub struct CallRule {
    /// A call of any of these kinds matches.
    pub kinds: Vec<CallKind>,
    /// Matched against the path relative to the base directory. `None` matches every path below it.
    pub paths: Option<GlobMatcher>,
    /// Number of the matching call at which the rule fires, from 1.
    pub nth: u64,
    /// Whether the rule also fires at each later matching call.
    pub persistent: bool,
    /// What happens to the calls at which the rule fires.
    pub decision: CallDecision,
}

/// Rules with their counts of matching calls. The counts span all threads and processes of the target.
#[derive(Debug, Clone)]
pub struct CallRules {
    base_dir: PathBuf,
    rules: Vec<CountedRule>,
}

/// A rule with its count of matching calls.
#[derive(Debug, Clone)]
struct CountedRule {
    rule: CallRule,
    count: u64,
}

/// A rule that fires at a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleMatch {
    /// Index of the rule, in the order given to [`CallRules::new`].
    pub rule_index: usize,
    /// The call's number among those that match the rule, from 1.
    pub nth: u64,
    /// The rule's decision.
    pub decision: CallDecision,
}

impl CallRule {
    fn matches(&self, call: &InterceptedCall, relative: &Path) -> bool {
        self.kinds.contains(&call.kind) && self.paths.as_ref().is_none_or(|paths| paths.is_match(relative))
    }
}

impl CallRules {
    /// `base_dir` is the directory that the rules' paths are relative to, as the target sees it.
    pub fn new(base_dir: PathBuf, rules: Vec<CallRule>) -> CallRules {
        CallRules { base_dir, rules: rules.into_iter().map(|rule| CountedRule { rule, count: 0 }).collect() }
    }

    /// Counts the call for every rule that it matches. Returns the first rule that fires.
    pub fn on_call(&mut self, call: &InterceptedCall) -> Option<RuleMatch> {
        let paths = std::iter::once(&call.path).chain(call.to.as_ref());
        let relative: Vec<&Path> = paths.filter_map(|path| path.strip_prefix(&self.base_dir).ok()).collect();
        let mut fired = None;
        for (rule_index, CountedRule { rule, count }) in self.rules.iter_mut().enumerate() {
            if !relative.iter().any(|path| rule.matches(call, path)) {
                continue;
            }
            *count += 1;
            if *count == rule.nth || (rule.persistent && *count > rule.nth) {
                fired.get_or_insert(RuleMatch { rule_index, nth: *count, decision: rule.decision });
            }
        }
        fired
    }

    /// How many calls matched the rule.
    pub fn count(&self, rule_index: usize) -> u64 {
        self.rules.get(rule_index).map_or(0, |counted| counted.count)
    }

    /// Whether any rule can still fire.
    pub fn is_pending(&self) -> bool {
        self.rules.iter().any(|counted| counted.rule.persistent || counted.count < counted.rule.nth)
    }

    /// Stops the rule from firing again.
    pub fn disarm(&mut self, rule_index: usize) {
        if let Some(CountedRule { rule, count }) = self.rules.get_mut(rule_index) {
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

    fn rules_with(nth: u64, persistent: bool) -> CallRules {
        let paths = globset::Glob::new("saves/*").map(|glob| glob.compile_matcher()).ok();
        let decision = CallDecision::Fail(Errno::EIO);
        let rule = CallRule { kinds: vec![CallKind::Write], paths, nth, persistent, decision };
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
        calls.iter().filter_map(|call| rules.on_call(call)).map(|fired| fired.nth).collect()
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
