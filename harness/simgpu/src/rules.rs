//! The active plan and its state in this process: reads the plan, counts the calls that match its rules, and
//! decides what is injected into a call. Knows the driver's functions by name only, and only the arguments
//! that a [`DriverCall`] contains.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, RwLock};

use globset::{Glob, GlobMatcher};
use simgpu_plan::{
    Backend, ControlFile, DIRECTORY_VARIABLE, DriverCallKind, ErrorTiming, Evidence, FaultRule, GpuHealth,
    OverwriteValue, Persistence, PlanDirectory, RuleEffect, ShimPlan, SimulatedMachine,
};

use crate::{calls, codes};

/// The active plan, and the state of its faults in this process.
pub(crate) struct FaultState {
    /// `None`: there is no plan directory, and there are no rules.
    directory: Option<PlanDirectory>,
    compiled: RwLock<Arc<CompiledPlan>>,
    /// Generation of the compiled plan.
    generation: AtomicU64,
    reload_lock: Mutex<()>,
    /// Names of the functions, by number.
    function_names: RwLock<Vec<&'static str>>,
    /// For each function, the armed rules that may match its calls, one bit per rule.
    rules_by_function: Vec<AtomicU64>,
    /// The code with which every call fails. 0: none.
    sticky_code: AtomicU32,
    /// The code with which the next call that waits fails. 0: none.
    deferred_code: AtomicU32,
    deferred_is_sticky: AtomicBool,
    lost: AtomicBool,
    /// The rules that have written evidence, one bit per rule.
    reported_rules: AtomicU64,
}

/// A plan with its patterns compiled.
pub(crate) struct CompiledPlan {
    pub(crate) plan: ShimPlan,
    /// By rule.
    functions: Vec<Option<GlobMatcher>>,
    /// By rule.
    kernels: Vec<Option<GlobMatcher>>,
}

/// What rules can know about a call.
pub(crate) struct DriverCall<'a> {
    pub(crate) name: &'a str,
    /// For launches.
    pub(crate) kernel: Option<&'a str>,
    /// For allocations and copies.
    pub(crate) bytes: Option<u64>,
}

/// A fault that is injected into the work that a call queues. `rule` is the rule that injects it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Corruption {
    /// The work never ends.
    Hang,
    /// One value that the work wrote is replaced.
    Overwrite { with: OverwriteValue, seed: u64, rule: usize },
    /// One bit of the largest allocation flips after the work.
    FlipBit { seed: u64, rule: usize },
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

static FAULT_STATE: OnceLock<FaultState> = OnceLock::new();
/// For tests: the plan directory of a copy that takes the place of the real driver.
static CHAINED_DIRECTORY: OnceLock<Option<String>> = OnceLock::new();

/// Makes this copy take the place of the real driver. `directory` overrides the environment. Must be the
/// first call.
pub(crate) fn chain_to(directory: Option<String>) {
    let _ = CHAINED_DIRECTORY.set(directory);
}

/// Returns the fault state of this process. The first call reads the plan.
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
            PlanDirectory::open(path).unwrap_or_else(|error| abort_with(&error.to_string()))
        });
        let plan = match &directory {
            Some(directory) => directory.read_plan().unwrap_or_else(|error| abort_with(&error.to_string())),
            None => ShimPlan {
                backend: Backend::Simulated(SimulatedMachine::default()),
                health: GpuHealth::default(),
                rules: Vec::new(),
            },
        };
        let names = crate::symbols::NAMES.to_vec();
        let rules_by_function =
            (0..names.len() + crate::symbols::TRAMPOLINE_COUNT).map(|_| AtomicU64::new(0)).collect();
        let generation = directory.as_ref().map_or(0, |directory| directory.control().generation());
        let faults = FaultState {
            directory,
            compiled: RwLock::new(Arc::new(CompiledPlan::new(plan))),
            generation: AtomicU64::new(generation),
            reload_lock: Mutex::new(()),
            function_names: RwLock::new(names),
            rules_by_function,
            sticky_code: AtomicU32::new(0),
            deferred_code: AtomicU32::new(0),
            deferred_is_sticky: AtomicBool::new(false),
            lost: AtomicBool::new(false),
            reported_rules: AtomicU64::new(0),
        };
        faults.index_rules();
        faults
    }

    /// Returns the plan. Reads it again if the harness has replaced it.
    pub(crate) fn current_plan(&self) -> Arc<CompiledPlan> {
        self.reload_if_stale();
        self.compiled.read().unwrap_or_else(|poison| poison.into_inner()).clone()
    }

    /// Returns the counters and flags that all processes share.
    pub(crate) fn control(&self) -> Option<&ControlFile> {
        self.directory.as_ref().map(PlanDirectory::control)
    }

    /// Adds a function that the list of symbols does not contain. Returns its number, or `None` if all are in
    /// use.
    pub(crate) fn add_function(&self, name: &'static str) -> Option<usize> {
        let index = {
            let mut names = self.function_names.write().unwrap_or_else(|poison| poison.into_inner());
            if names.len() == self.rules_by_function.len() {
                return None;
            }
            names.push(name);
            names.len() - 1
        };
        self.index_rules();
        Some(index)
    }

    /// Returns the name of a function.
    pub(crate) fn function_name(&self, index: usize) -> &'static str {
        self.function_names.read().unwrap_or_else(|poison| poison.into_inner())[index]
    }

    fn is_stale(&self) -> bool {
        self.control().is_some_and(|control| control.generation() != self.generation.load(Ordering::Acquire))
    }

    fn reload_if_stale(&self) {
        let (true, Some(directory)) = (self.is_stale(), &self.directory) else { return };
        let _guard = self.reload_lock.lock().unwrap_or_else(|poison| poison.into_inner());
        let generation = directory.control().generation();
        // If the plan cannot be read, the old one stays active until the next call.
        if let Ok(plan) = directory.read_plan() {
            *self.compiled.write().unwrap_or_else(|poison| poison.into_inner()) =
                Arc::new(CompiledPlan::new(plan));
            self.generation.store(generation, Ordering::Release);
            self.index_rules();
        }
    }

    /// Updates the rules of each function after a change of the plan or of the functions.
    fn index_rules(&self) {
        let compiled = self.compiled.read().unwrap_or_else(|poison| poison.into_inner()).clone();
        self.lost.store(compiled.plan.health.lost, Ordering::Release);
        let names = self.function_names.read().unwrap_or_else(|poison| poison.into_inner());
        for (name, rules) in names.iter().zip(&self.rules_by_function) {
            rules.store(compiled.rules_for(name), Ordering::Release);
        }
    }

    /// Returns whether nothing can be injected into this call. Almost all calls take only this path, so it is
    /// fast.
    #[inline]
    pub(crate) fn is_quiet(&self, index: usize) -> bool {
        self.rules_by_function[index].load(Ordering::Relaxed) == 0
            && self.sticky_code.load(Ordering::Relaxed) == 0
            && self.deferred_code.load(Ordering::Relaxed) == 0
            && !self.is_lost()
            && !self.is_stale()
    }

    /// Returns whether the GPU is lost, by the plan or by an injected error.
    pub(crate) fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Acquire) || self.control().is_some_and(ControlFile::is_lost)
    }

    /// Returns the code with which every call fails. 0: none.
    pub(crate) fn sticky(&self) -> u32 {
        self.sticky_code.load(Ordering::Acquire)
    }

    /// Makes every later call of this process fail with a code. An earlier sticky error stays.
    pub(crate) fn set_sticky(&self, code: u32) {
        let _ = self.sticky_code.compare_exchange(0, code, Ordering::AcqRel, Ordering::Acquire);
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
        let existing = self.standing_error(call);
        let compiled = self.current_plan();
        if existing.error_code.is_some() {
            self.count_failed_call(index, call, &compiled);
            return existing;
        }
        let mut outcome = CallOutcome::default();
        let mut remaining = self.rules_by_function[index].load(Ordering::Acquire);
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
        let rules = self.rules_by_function[index].load(Ordering::Acquire);
        for (number, rule) in
            compiled.plan.rules.iter().enumerate().filter(|(number, _)| rules >> number & 1 == 1)
        {
            if rule.effect == RuleEffect::Count && compiled.matches(number, call) {
                control.count_call(number);
            }
        }
    }

    /// Returns the error that a call reports independently of the rules: sticky, lost or deferred.
    fn standing_error(&self, call: &DriverCall<'_>) -> CallOutcome {
        let fails = |code| CallOutcome { error_code: Some(code), ..CallOutcome::default() };
        if calls::works_after_errors(call.name) {
            return CallOutcome::default();
        }
        match self.sticky() {
            0 => (),
            code => return fails(code),
        }
        if self.is_lost() {
            // A process without a context finds no device. A process with one gets an unknown error
            // permanently, as after a real GPU has fallen off the bus.
            let is_starting = calls::call_kind(call.name) == DriverCallKind::Initialise
                || call.name.starts_with("cuDeviceGet");
            if is_starting && !crate::driver::has_context() {
                return fails(codes::NO_DEVICE);
            }
            self.set_sticky(codes::UNKNOWN);
            return fails(codes::UNKNOWN);
        }
        match reports_earlier_errors(call.name) {
            true => CallOutcome { error_code: self.take_deferred_error(), ..CallOutcome::default() },
            false => CallOutcome::default(),
        }
    }

    /// Takes the deferred error. The first call that waits reports it.
    pub(crate) fn take_deferred_error(&self) -> Option<u32> {
        let code = self.deferred_code.swap(0, Ordering::AcqRel);
        if code != 0 && self.deferred_is_sticky.load(Ordering::Acquire) {
            self.set_sticky(code);
        }
        (code != 0).then_some(code)
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
                match reported {
                    ErrorTiming::Immediately => {
                        if sticky {
                            self.set_sticky(code);
                        }
                        outcome.error_code.get_or_insert(code);
                    }
                    ErrorTiming::AtNextSync if reports_earlier_errors(call.name) => {
                        if sticky {
                            self.set_sticky(code);
                        }
                        outcome.error_code.get_or_insert(code);
                    }
                    ErrorTiming::AtNextSync => {
                        self.deferred_is_sticky.store(sticky, Ordering::Release);
                        self.deferred_code.store(code, Ordering::Release);
                    }
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
fn reports_earlier_errors(name: &str) -> bool {
    calls::waits_for_work(name) || (name.starts_with("cuMemcpyDtoHAsync") && crate::forward::is_active())
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

/// Prints why the shim cannot work and aborts the process.
#[expect(clippy::print_stderr, reason = "the target's process has no other way to report why it aborts")]
pub(crate) fn abort_with(message: &str) -> ! {
    eprintln!("the shim for the GPU driver cannot work: {message}");
    std::process::abort()
}

impl CompiledPlan {
    fn new(plan: ShimPlan) -> CompiledPlan {
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
    fn rules_for(&self, name: &str) -> u64 {
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
    fn matches(&self, rule: usize, call: &DriverCall<'_>) -> bool {
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
