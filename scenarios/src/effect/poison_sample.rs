//! The fault `poison-sample`: a sample whose loss overflows.

use crate::effect::checker::Checker;
use crate::effect::keys::fault;
use crate::effect::spec::{CheckEffect, EffectSpec};
use crate::yaml::spanned::Spanned;

fault!(
    /// A sample whose loss overflows.
    PoisonSampleDraft {
        /// Line number of the sample in the file, from 1.
        sample: Spanned<u32>,
        /// Weight of the sample, such as 3.0e38: finite in the file, too large once it is multiplied by a
        /// loss.
        weight: f64,
    }
);

/// Gives one sample of each submitted file this weight, so that its loss overflows.
#[derive(Debug, Clone)]
pub struct PoisonSample {
    /// Line number of the sample in the file, from 1.
    pub sample: u32,
    /// Its weight.
    pub weight: f64,
}

impl CheckEffect for PoisonSampleDraft {
    type Checked = PoisonSample;

    fn check(&self, checker: &mut Checker) -> PoisonSample {
        if self.effective_if.is_none() {
            let message = "only the target's output can show that `poison-sample` was effective";
            let help =
                "add `effective-if: {output: ...}` with what the target prints if a loss is not finite";
            checker.problems.push(self.sample.problem(message).help(help));
        }
        PoisonSample { sample: checker.require_positive(&self.sample, "sample"), weight: self.weight }
    }
}

impl EffectSpec for PoisonSample {
    fn is_momentary(&self) -> bool {
        true
    }

    fn describe(&self) -> String {
        format!("sample {} weighs {:e}", self.sample, self.weight)
    }

    fn changes_workload(&self) -> bool {
        true
    }

    fn changed_sample(&self) -> Option<u32> {
        Some(self.sample)
    }
}
