//! What each fault tells the rest of Trainwreck about itself. The defaults are those of a fault that needs
//! nothing special. Knows no fault.

use std::path::Path;
use std::time::Duration;

use crate::effect::call_injection::{CallInjection, CallSite};
use crate::effect::checker::Checker;
use crate::effect::crash_model::CrashStates;
use crate::effect::gpu_injection::{GpuCallTrigger, GpuInjection};
use crate::effect::measurements::Measurements;
use crate::operation::CallKind;
use crate::trials_planned::TrialUnit;

/// A fault as it is written in a scenario file.
pub(crate) trait CheckEffect {
    /// The checked fault.
    type Checked;

    /// Checks what the types of the draft cannot express. The result is only valid if no problem is added.
    fn check(&self, checker: &mut Checker) -> Self::Checked;
}

/// Which GPU a fault needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GpuNeed {
    /// A simulated or a real one.
    Any,
    /// Only the simulation can do it.
    Simulated,
}

/// What a fault tells about itself.
pub trait EffectSpec {
    /// What it does, as the first part of a trial's description.
    fn describe(&self) -> String;

    /// The fault with each of its own choices made, one trial each. `measured`: by the baseline run.
    fn choices(&self, _measured: Measurements<'_>) -> Vec<Self>
    where
        Self: Sized + Clone,
    {
        vec![self.clone()]
    }

    /// Why there is nothing to choose from, if what the baseline run left is not enough.
    fn why_no_choice(&self, _measured: Measurements<'_>) -> Option<String> {
        None
    }

    /// What each of several [`choices`](EffectSpec::choices) stands for.
    fn choice_unit(&self) -> TrialUnit {
        TrialUnit::Trials
    }

    /// The mechanism of this machine that it needs in addition to a sandbox and a GPU, by its name in
    /// `doctor`.
    fn needed_mechanism(&self) -> Option<&'static str> {
        None
    }

    /// A file that this machine's kernel must have for it.
    fn needed_file(&self) -> Option<&Path> {
        None
    }

    /// The place whose mount it changes. Two faults can't change one.
    fn changed_mount(&self) -> Option<&str> {
        None
    }

    /// The GPU that it needs, if any.
    fn needed_gpu(&self) -> Option<GpuNeed> {
        None
    }

    /// It reverts itself after this time. A scenario then can't state when it is reverted.
    fn reverts_after(&self) -> Option<Duration> {
        None
    }

    /// It changes what the target is given to do, so that the target must not end as the baseline does.
    fn changes_workload(&self) -> bool {
        false
    }

    /// It gives the target more to do, so that the target may end with more values than the baseline does.
    fn adds_work(&self) -> bool {
        false
    }

    /// The sample of each submitted file that it changes, from 1.
    fn changed_sample(&self) -> Option<u32> {
        None
    }

    /// It asks the target to exit by itself within a time.
    fn asks_to_exit(&self) -> bool {
        false
    }

    /// It runs commands whose exit codes an expectation may be about.
    fn runs_commands(&self) -> bool {
        false
    }

    /// It asks a server that is a part of the target, whose answers an expectation may be about.
    fn asks_a_server(&self) -> bool {
        false
    }

    /// Calls that fail show its effect, so that the target must run behind the gate.
    fn is_shown_by_failed_calls(&self) -> bool {
        false
    }

    /// It answers calls of the target by itself, so that the target must run behind the gate.
    fn answers_calls(&self) -> bool {
        false
    }

    /// It limits how many processes the target has.
    fn limits_processes(&self) -> bool {
        false
    }

    /// It makes calls of the target fail.
    fn makes_calls_fail(&self) -> bool {
        self.is_shown_by_failed_calls()
    }

    /// The thread that printed the line of its trigger waits until it is done, so that its trigger must be a line.
    fn holds_target(&self) -> bool {
        false
    }

    /// It ends the target each time that it is injected, so that it cannot be reverted.
    fn ends_target(&self) -> bool {
        false
    }

    /// It is over once it is injected: unless it is injected again and again, there is nothing to revert.
    fn is_momentary(&self) -> bool {
        false
    }

    /// It alters a file system call, so that its trigger must be a call.
    fn is_at_call(&self) -> bool {
        false
    }

    /// Whether it can be injected at a call of this kind.
    fn fits_call(&self, _kind: CallKind) -> bool {
        true
    }

    /// What is tried at a file system call, one trial each.
    fn call_injections(&self, _site: &CallSite) -> Vec<CallInjection> {
        vec![CallInjection::HoldUntilInjected]
    }

    /// The driver calls at which it is injected.
    fn gpu_calls(&self) -> Option<&GpuCallTrigger> {
        None
    }

    /// What is tried at a driver call, one trial each. `seed` selects a value or a bit.
    fn gpu_injections(&self, _seed: u64) -> Vec<GpuInjection> {
        Vec::new()
    }

    /// The crash states that are tried instead of a run with an injected fault.
    fn crash_states(&self) -> Option<&CrashStates> {
        None
    }
}
