//! The state of the faults in this process: counts the calls that match the plan's rules, and decides what is
//! injected into a call. Must not know what a call does: it knows only what a [`DriverCall`] contains.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use simgpu_plan::{
    Backend, ControlFile, DIRECTORY_VARIABLE, DriverCallKind, ErrorTiming, Evidence, FaultRule, GpuHealth,
    Persistence, PlanDirectory, RuleEffect, ShimPlan, SimulatedMachine,
};

use crate::{calls, codes};

use super::active_rules::ActiveRules;
use super::compiled_plan::{CompiledPlan, DriverCall};
use super::corruption::Corruption;
use super::no_return::abort_with;
use super::standing_error::StandingError;

/// The active plan, and the state of its faults in this process.
pub(crate) struct FaultState {
    /// `None`: there is no plan directory, and there are no rules.
    directory: Option<PlanDirectory>,
    rules: ActiveRules,
    errors: StandingError,
    /// The rules that have written evidence, one bit per rule.
    reported_rules: AtomicU64,
}

/// What is injected into a call.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct CallOutcome {
    /// The call is not made and returns this code.
    pub(crate) error_code: Option<u32>,
    pub(crate) corruptions: Vec<Corruption>,
    /// Free memory is split into holes of at most this size before the call.
    pub(crate) max_hole_bytes: Option<u64>,
}

impl CallOutcome {
    fn failing(code: u32) -> CallOutcome {
        CallOutcome { error_code: Some(code), ..CallOutcome::default() }
    }
}

static FAULT_STATE: OnceLock<FaultState> = OnceLock::new();
/// For tests: the plan directory of a copy that takes the place of the real driver.
static CHAINED_DIRECTORY: OnceLock<Option<String>> = OnceLock::new();

/// Makes this copy take the place of the real driver. `directory` overrides the environment. Must be the
/// first call.
pub(crate) fn chain_to(directory: Option<String>) {
    let _ = CHAINED_DIRECTORY.set(directory);
}

/// Returns the fault state of this process. The first call reads the plan. For entry points, which hand it
/// down.
pub(crate) fn fault_state() -> &'static FaultState {
    FAULT_STATE.get_or_init(|| {
        let directory = match CHAINED_DIRECTORY.get() {
            Some(directory) => directory.clone(),
            None => std::env::var(DIRECTORY_VARIABLE).ok(),
        };
        FaultState::new(directory.as_deref().map(Path::new))
    })
}

impl FaultState {
    fn new(directory: Option<&Path>) -> FaultState {
        let directory = directory.map(|path| {
            // Without a readable plan the target would run without faults, which would look like a success.
            PlanDirectory::open(path).unwrap_or_else(|error| abort_with(&error))
        });
        let plan = match &directory {
            Some(directory) => directory.read_plan().unwrap_or_else(|error| abort_with(&error)),
            None => ShimPlan {
                backend: Backend::Simulated(SimulatedMachine::default()),
                health: GpuHealth::default(),
                rules: Vec::new(),
            },
        };
        let generation = directory.as_ref().map_or(0, |directory| directory.control().generation());
        FaultState {
            directory,
            rules: ActiveRules::new(plan, generation),
            errors: StandingError::default(),
            reported_rules: AtomicU64::new(0),
        }
    }

    /// Returns the plan. Reads it again if the harness has replaced it.
    pub(crate) fn current_plan(&self) -> Arc<CompiledPlan> {
        self.reload_if_stale();
        self.rules.plan()
    }

    /// Returns the machine that is simulated.
    pub(crate) fn simulated_machine(&self) -> SimulatedMachine {
        match &self.current_plan().plan.backend {
            Backend::Simulated(machine) => machine.clone(),
            Backend::Forwarded { .. } => SimulatedMachine::default(),
        }
    }

    /// Returns the counters and flags that all processes share.
    pub(crate) fn control(&self) -> Option<&ControlFile> {
        self.directory.as_ref().map(PlanDirectory::control)
    }

    /// Adds a function that the list of symbols does not contain. Returns its number, or `None` if all are in
    /// use.
    pub(crate) fn add_function(&self, name: &'static str) -> Option<usize> {
        self.rules.add_function(name)
    }

    /// Returns the name of a function.
    pub(crate) fn function_name(&self, index: usize) -> &'static str {
        self.rules.function_name(index)
    }

    fn is_stale(&self) -> bool {
        self.directory.as_ref().is_some_and(|directory| self.rules.is_stale(directory))
    }

    fn reload_if_stale(&self) {
        if let Some(directory) = &self.directory
            && self.rules.is_stale(directory)
        {
            self.rules.reload(directory);
        }
    }

    /// Returns whether nothing can be injected into this call. Almost all calls take only this path, so it is
    /// fast.
    #[inline]
    pub(crate) fn is_quiet(&self, index: usize) -> bool {
        self.rules.of_function(index, Ordering::Relaxed) == 0
            && self.errors.is_none()
            && !self.is_lost()
            && !self.is_stale()
    }

    /// Returns whether the GPU is lost, by the plan or by an injected error.
    pub(crate) fn is_lost(&self) -> bool {
        self.rules.gpu_is_lost() || self.control().is_some_and(ControlFile::is_lost)
    }

    /// Makes every later call of this process fail with a code. An earlier sticky error stays.
    pub(crate) fn set_sticky(&self, code: u32) {
        self.errors.set_sticky(code);
    }

    /// Takes the error that a call reports after it has waited: the sticky one, else the deferred one.
    pub(crate) fn take_error_after_wait(&self) -> Option<u32> {
        let sticky = self.errors.sticky();
        let deferred = self.errors.take_deferred();
        sticky.or(deferred)
    }

    /// Records a defect that the simulation has detected in queued work, and makes its error sticky. Returns
    /// the code.
    pub(crate) fn record_defect(&self, code: u32, description: &str) -> u32 {
        self.record_evidence(None, description);
        self.update_nvml(code);
        self.set_sticky(code);
        code
    }

    /// Makes NVML report the consequences of an error.
    fn update_nvml(&self, code: u32) {
        let Some(control) = self.control() else { return };
        if code == codes::ECC_UNCORRECTABLE {
            control.add_uncorrected_error();
        }
        if code == codes::NO_DEVICE {
            control.mark_lost();
        }
        if let Some(xid) = codes::xid(code) {
            control.add_xid(xid);
        }
    }

    /// Appends to the evidence. `rule` is `None` for a defect that the simulation has detected.
    pub(crate) fn record_evidence(&self, rule: Option<usize>, description: &str) {
        if let Some(directory) = &self.directory {
            let pid = std::process::id();
            // If the evidence cannot be written, the scenario becomes inconclusive. The target must not be
            // affected.
            let _ = directory.record_evidence(&Evidence { rule, pid, description: description.into() });
        }
    }

    /// Counts a call for the rules that match it. Returns what is injected into it.
    pub(crate) fn apply_rules(&self, index: usize, call: &DriverCall<'_>) -> CallOutcome {
        self.reload_if_stale();
        let existing = self.existing_error(call);
        let compiled = self.current_plan();
        if let Some(code) = existing {
            self.count_failed_call(index, call, &compiled);
            return CallOutcome::failing(code);
        }
        let mut outcome = CallOutcome::default();
        let mut remaining = self.rules.of_function(index, Ordering::Acquire);
        while remaining != 0 {
            let rule = remaining.trailing_zeros() as usize;
            remaining &= remaining - 1;
            if compiled.matches(rule, call) {
                self.count_and_inject(rule, &compiled.plan.rules[rule], call, &mut outcome);
            }
        }
        outcome
    }

    /// Counts a call that fails with an existing error, for rules that only count. It shows that the target
    /// saw the error.
    fn count_failed_call(&self, index: usize, call: &DriverCall<'_>, compiled: &CompiledPlan) {
        let Some(control) = self.control() else { return };
        let rules = self.rules.of_function(index, Ordering::Acquire);
        for (number, rule) in
            compiled.plan.rules.iter().enumerate().filter(|(number, _)| rules >> number & 1 == 1)
        {
            if rule.effect == RuleEffect::Count && compiled.matches(number, call) {
                control.count_call(number);
            }
        }
    }

    /// Returns the error that a call reports independently of the rules: sticky, lost or deferred.
    fn existing_error(&self, call: &DriverCall<'_>) -> Option<u32> {
        if calls::works_after_errors(call.name) {
            return None;
        }
        if let Some(code) = self.errors.sticky() {
            return Some(code);
        }
        if self.is_lost() {
            // A process without a context finds no device. A process with one gets an unknown error
            // permanently, as after a real GPU has fallen off the bus.
            let is_starting = calls::call_kind(call.name) == DriverCallKind::Initialise
                || call.name.starts_with("cuDeviceGet");
            if is_starting && !(call.has_context)() {
                return Some(codes::NO_DEVICE);
            }
            self.set_sticky(codes::UNKNOWN);
            return Some(codes::UNKNOWN);
        }
        reports_earlier_errors(call).then(|| self.errors.take_deferred()).flatten()
    }

    /// Counts a call that matches a rule. If it is the selected one, writes evidence and injects the effect.
    fn count_and_inject(
        &self,
        index: usize,
        rule: &FaultRule,
        call: &DriverCall<'_>,
        outcome: &mut CallOutcome,
    ) {
        // Without a plan directory there are no rules.
        let Some(control) = self.control() else { return };
        let count = control.count_call(index);
        let is_selected = match rule.persistence {
            Persistence::Transient => count == rule.nth && control.claim(index),
            Persistence::Persistent => count >= rule.nth,
        };
        if !is_selected || rule.effect == RuleEffect::Count {
            return;
        }
        let is_first = self.reported_rules.fetch_or(1 << index, Ordering::AcqRel) & (1 << index) == 0;
        if is_first || rule.persistence == Persistence::Transient {
            let kernel = call.kernel.map(|kernel| format!(" of `{kernel}`")).unwrap_or_default();
            self.record_evidence(
                Some(index),
                &format!("{}{kernel}, call {count}: {}", call.name, describe(&rule.effect)),
            );
        }
        self.inject(index, &rule.effect, call, outcome);
    }

    fn inject(&self, rule: usize, effect: &RuleEffect, call: &DriverCall<'_>, outcome: &mut CallOutcome) {
        match *effect {
            RuleEffect::Count => (),
            RuleEffect::Fail { code, reported, sticky } => {
                self.update_nvml(code);
                if reported == ErrorTiming::Immediately || reports_earlier_errors(call) {
                    if sticky {
                        self.set_sticky(code);
                    }
                    outcome.error_code.get_or_insert(code);
                } else {
                    self.errors.defer(code, sticky);
                }
            }
            RuleEffect::Hang => outcome.corruptions.push(Corruption::Hang),
            RuleEffect::Overwrite { with, seed } => {
                outcome.corruptions.push(Corruption::Overwrite { with, seed, rule })
            }
            RuleEffect::FlipBit { seed } => outcome.corruptions.push(Corruption::FlipBit { seed, rule }),
            RuleEffect::Fragment { hole_bytes } => outcome.max_hole_bytes = Some(hole_bytes),
        }
    }
}

/// Returns whether a call may report errors of earlier work. Copies to pageable memory always wait. The
/// simulation knows which copies these are. For a real driver, every asynchronous copy to the host counts as
/// one, because CUDA allows any of them to report earlier errors.
fn reports_earlier_errors(call: &DriverCall<'_>) -> bool {
    calls::waits_for_work(call.name) || (call.name.starts_with("cuMemcpyDtoHAsync") && call.is_forwarded)
}

/// Describes an effect, for evidence.
fn describe(effect: &RuleEffect) -> String {
    match effect {
        RuleEffect::Count => "counted".into(),
        RuleEffect::Fail { code, reported, sticky } => {
            let when = match reported {
                ErrorTiming::Immediately => "immediately",
                ErrorTiming::AtNextSync => "at the next synchronisation",
            };
            let after = if *sticky { ", and so does every later call" } else { "" };
            format!("fails with {} {when}{after}", codes::describe(*code))
        }
        RuleEffect::Hang => "never ends".into(),
        RuleEffect::Overwrite { .. } => "one value of its result will be overwritten".into(),
        RuleEffect::FlipBit { .. } => "one bit of the largest allocation will be flipped".into(),
        RuleEffect::Fragment { hole_bytes } => {
            format!("free memory is split into holes of at most {hole_bytes} bytes")
        }
    }
}
