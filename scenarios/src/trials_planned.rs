//! Which trials a scenario consists of, which of them run, and what leaves out the others. Knows no trial's
//! result.

use serde::{Deserialize, Serialize};

/// What each trial of a scenario stands for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TrialUnit {
    /// A file tree that a crash may leave.
    CrashStates,
    /// A system call of the target, or of one phase of it.
    SystemCalls,
    /// A training step.
    Steps,
    /// A number of free pages.
    Pages,
    /// A call of the GPU driver.
    GpuCalls,
    /// A combination of the above, or one of several variants of a fault.
    #[default]
    Trials,
}

impl TrialUnit {
    /// The word for this many.
    pub(crate) fn name(self, count: u64) -> &'static str {
        match (self, count) {
            (TrialUnit::CrashStates, 1) => "crash state",
            (TrialUnit::CrashStates, _) => "crash states",
            (TrialUnit::SystemCalls, 1) => "system call",
            (TrialUnit::SystemCalls, _) => "system calls",
            (TrialUnit::Steps, 1) => "step",
            (TrialUnit::Steps, _) => "steps",
            (TrialUnit::Pages, 1) => "page",
            (TrialUnit::Pages, _) => "pages",
            (TrialUnit::GpuCalls, 1) => "GPU call",
            (TrialUnit::GpuCalls, _) => "GPU calls",
            (TrialUnit::Trials, 1) => "trial",
            (TrialUnit::Trials, _) => "trials",
        }
    }
}

/// A bound that leaves trials out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TrialBound {
    /// `max-trials` of the scenario's faults, or its default.
    Scenario,
    /// The option `--max-trials` of the command.
    Option,
    /// The number of trials that a scenario has at most, whatever was asked for.
    Limit,
}

impl TrialBound {
    /// The name in reports.
    pub(crate) fn name(self) -> &'static str {
        match self {
            TrialBound::Scenario => "max-trials",
            TrialBound::Option => "--max-trials",
            TrialBound::Limit => "the limit of a scenario",
        }
    }
}

/// Which trials a scenario consists of, and which of them run.
///
/// A trial has the same number whatever the bound is: its place among all trials.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrialsPlanned {
    /// The number of trials, without those that a bound leaves out.
    pub total: u32,
    /// The number of the only trial that runs, if the user asked for one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub only: Option<u32>,
    /// The number of trials that there are without any bound. At least `total`.
    #[serde(default)]
    pub possible: u64,
    /// What each trial stands for.
    #[serde(default)]
    pub unit: TrialUnit,
    /// What makes `total` smaller than `possible`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bound: Option<TrialBound>,
    /// The number of candidates for crash states that fixed bounds of the enumeration left out. What states
    /// they lead to is not known, so they are not part of `possible`.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub not_enumerated: u64,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl TrialsPlanned {
    /// How many trials run if nothing interrupts the run.
    pub fn to_run(&self) -> u32 {
        match self.only {
            None => self.total,
            Some(only) => u32::from((1..=self.possible()).contains(&only.into())),
        }
    }

    /// The number of trials that there are without any bound.
    pub fn possible(&self) -> u64 {
        self.possible.max(self.total.into())
    }
}

/// The number with commas between groups of three digits.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
