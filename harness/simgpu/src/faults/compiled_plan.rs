//! A plan with its patterns compiled: which rules match which call. Must not know what a rule injects.

use globset::{Glob, GlobMatcher};
use simgpu_plan::{DriverCallKind, ShimPlan};

use crate::calls;

/// What rules can know about a call.
pub(crate) struct DriverCall<'a> {
    pub(crate) name: &'a str,
    /// For launches.
    pub(crate) kernel: Option<&'a str>,
    /// For allocations and copies.
    pub(crate) bytes: Option<u64>,
    /// Whether a real driver gets the call.
    pub(crate) is_forwarded: bool,
    /// Returns whether the caller has a context. Only asked once the GPU is lost.
    pub(crate) has_context: &'a dyn Fn() -> bool,
}

/// A plan with its patterns compiled.
pub(crate) struct CompiledPlan {
    pub(crate) plan: ShimPlan,
    /// By rule.
    functions: Vec<Option<GlobMatcher>>,
    /// By rule.
    kernels: Vec<Option<GlobMatcher>>,
}

impl CompiledPlan {
    pub(super) fn new(plan: ShimPlan) -> CompiledPlan {
        // An invalid pattern is matched literally. It matches no function, so the scenario becomes
        // inconclusive.
        let glob = |pattern: &Option<String>| {
            pattern.as_ref().map(|pattern| {
                let literal = || Glob::new(&globset::escape(pattern)).expect("an escaped pattern is valid");
                Glob::new(pattern).unwrap_or_else(|_| literal()).compile_matcher()
            })
        };
        let functions = plan.rules.iter().map(|rule| glob(&rule.calls.function)).collect();
        let kernels = plan.rules.iter().map(|rule| glob(&rule.calls.kernel)).collect();
        CompiledPlan { plan, functions, kernels }
    }

    /// Returns the armed rules that may match calls of a function, one bit per rule.
    pub(super) fn rules_for(&self, name: &str) -> u64 {
        let rules = self.plan.rules.iter().enumerate().filter(|(_, rule)| rule.armed);
        let kind = calls::call_kind(name);
        rules
            .filter(|(index, rule)| {
                let matches_kind = rule.calls.kinds.is_empty() || rule.calls.kinds.contains(&kind);
                let matches_name = self.functions[*index].as_ref().is_none_or(|glob| glob.is_match(name));
                let may_match_kernel = self.kernels[*index].is_none() || kind == DriverCallKind::Launch;
                matches_kind && matches_name && may_match_kernel
            })
            .fold(0, |bits, (index, _)| bits | 1 << index)
    }

    /// Returns whether a rule matches a call, given that it may match calls of this function.
    pub(super) fn matches(&self, rule: usize, call: &DriverCall<'_>) -> bool {
        let Some(filter) = self.plan.rules.get(rule) else { return false };
        let matches_kernel = match &self.kernels[rule] {
            Some(glob) => call.kernel.is_some_and(|kernel| glob.is_match(kernel)),
            None => true,
        };
        filter.armed
            && matches_kernel
            && (filter.calls.min_bytes == 0
                || call.bytes.is_some_and(|bytes| bytes >= filter.calls.min_bytes))
    }
}
