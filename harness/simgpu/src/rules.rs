//! The plan in force: reads it, counts the calls that its rules speak of, and says what happens at a call. Knows the driver's
//! functions by name only, and no arguments but those that it is told.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, RwLock};

use globset::{Glob, GlobMatcher};
use simgpu_plan::{
    Backend, ControlFile, DIRECTORY_VARIABLE, DriverCallKind, ErrorTiming, Evidence, FaultRule, GpuHealth,
    OverwriteValue, Persistence, PlanDirectory, RuleEffect, ShimPlan, SimulatedMachine,
};

use crate::{calls, codes};

/// The plan, and what has become of it in this process.
pub(crate) struct FaultState {
    directory: Option<PlanDirectory>,
    compiled: RwLock<Arc<CompiledPlan>>,
    generation: AtomicU64,
    reload_lock: Mutex<()>,
    /// Names of functions, and for each the armed rules that may speak of it, one bit each.
    names: RwLock<Vec<&'static str>>,
    rules_by_function: Vec<AtomicU64>,
    /// Every call fails with it; 0: none.
    sticky: AtomicU32,
    /// The next call that waits fails with it.
    deferred_code: AtomicU32,
    deferred_is_sticky: AtomicBool,
    lost: AtomicBool,
    reported_rules: AtomicU64,
}

/// A plan with its patterns made ready.
pub(crate) struct CompiledPlan {
    pub(crate) plan: ShimPlan,
    functions: Vec<Option<GlobMatcher>>,
    kernels: Vec<Option<GlobMatcher>>,
}

/// One call, as far as rules ask.
pub(crate) struct DriverCall<'a> {
    pub(crate) name: &'a str,
    pub(crate) kernel: Option<&'a str>,
    pub(crate) bytes: Option<u64>,
}

/// What happens to the work that a call gives out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Corruption {
    Hang,
    Overwrite { with: OverwriteValue, seed: u64, rule: usize },
    FlipBit { seed: u64, rule: usize },
}

/// What happens at a call.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct CallOutcome {
    /// The call isn't made: it gives this code.
    pub(crate) error_code: Option<u32>,
    pub(crate) corruptions: Vec<Corruption>,
    /// Before the call is made.
    pub(crate) max_hole_bytes: Option<u64>,
}

static FAULT_STATE: OnceLock<FaultState> = OnceLock::new();
/// The folder of a library that stands behind another one.
static CHAINED_DIRECTORY: OnceLock<Option<String>> = OnceLock::new();

/// Says before anything else that this library is the one behind; `folder` takes the place of the environment.
pub(crate) fn chain_to(folder: Option<String>) {
    let _ = CHAINED_DIRECTORY.set(folder);
}

pub(crate) fn fault_state() -> &'static FaultState {
    FAULT_STATE.get_or_init(|| {
        let folder = match CHAINED_DIRECTORY.get() {
            Some(folder) => folder.clone(),
            None => std::env::var(DIRECTORY_VARIABLE).ok(),
        };
        FaultState::new(folder.as_deref().map(Path::new))
    })
}

impl FaultState {
    fn new(folder: Option<&Path>) -> FaultState {
        let folder = folder.map(|path| {
            // A plan that can't be read must not pass for a GPU without faults.
            PlanDirectory::open(path).unwrap_or_else(|error| abort_with(&error.to_string()))
        });
        let plan = match &folder {
            Some(folder) => folder.read_plan().unwrap_or_else(|error| abort_with(&error.to_string())),
            None => ShimPlan {
                backend: Backend::Simulated(SimulatedMachine::default()),
                health: GpuHealth::default(),
                rules: Vec::new(),
            },
        };
        let names = crate::symbols::NAMES.to_vec();
        let watch = (0..names.len() + crate::symbols::SPARES).map(|_| AtomicU64::new(0)).collect();
        let generation = folder.as_ref().map_or(0, |folder| folder.control().generation());
        let world = FaultState {
            directory: folder,
            compiled: RwLock::new(Arc::new(CompiledPlan::new(plan))),
            generation: AtomicU64::new(generation),
            reload_lock: Mutex::new(()),
            names: RwLock::new(names),
            rules_by_function: watch,
            sticky: AtomicU32::new(0),
            deferred_code: AtomicU32::new(0),
            deferred_is_sticky: AtomicBool::new(false),
            lost: AtomicBool::new(false),
            reported_rules: AtomicU64::new(0),
        };
        world.index_rules();
        world
    }

    pub(crate) fn current_plan(&self) -> Arc<CompiledPlan> {
        self.reload_if_stale();
        self.compiled.read().unwrap_or_else(|poison| poison.into_inner()).clone()
    }

    pub(crate) fn control(&self) -> Option<&ControlFile> {
        self.directory.as_ref().map(PlanDirectory::control)
    }

    /// Adds a function that the list of symbols does not know: its number, while there is one left.
    pub(crate) fn add_function(&self, name: &'static str) -> Option<usize> {
        let index = {
            let mut names = self.names.write().unwrap_or_else(|poison| poison.into_inner());
            if names.len() == self.rules_by_function.len() {
                return None;
            }
            names.push(name);
            names.len() - 1
        };
        self.index_rules();
        Some(index)
    }

    pub(crate) fn function_name(&self, index: usize) -> &'static str {
        self.names.read().unwrap_or_else(|poison| poison.into_inner())[index]
    }

    fn is_stale(&self) -> bool {
        self.control().is_some_and(|control| control.generation() != self.generation.load(Ordering::Acquire))
    }

    fn reload_if_stale(&self) {
        let (true, Some(folder)) = (self.is_stale(), &self.directory) else { return };
        let _reading = self.reload_lock.lock().unwrap_or_else(|poison| poison.into_inner());
        let generation = folder.control().generation();
        // A plan that is being replaced is read at the next call; the old one stays in force.
        if let Ok(plan) = folder.read_plan() {
            *self.compiled.write().unwrap_or_else(|poison| poison.into_inner()) =
                Arc::new(CompiledPlan::new(plan));
            self.generation.store(generation, Ordering::Release);
            self.index_rules();
        }
    }

    fn index_rules(&self) {
        let compiled = self.compiled.read().unwrap_or_else(|poison| poison.into_inner()).clone();
        self.lost.store(compiled.plan.health.lost, Ordering::Release);
        let names = self.names.read().unwrap_or_else(|poison| poison.into_inner());
        for (name, watch) in names.iter().zip(&self.rules_by_function) {
            watch.store(compiled.rules_for(name), Ordering::Release);
        }
    }

    /// Whether nothing can happen at this call: what almost all calls cost.
    #[inline]
    pub(crate) fn is_quiet(&self, index: usize) -> bool {
        self.rules_by_function[index].load(Ordering::Relaxed) == 0
            && self.sticky.load(Ordering::Relaxed) == 0
            && self.deferred_code.load(Ordering::Relaxed) == 0
            && !self.is_lost()
            && !self.is_stale()
    }

    pub(crate) fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Acquire) || self.control().is_some_and(ControlFile::is_lost)
    }

    pub(crate) fn sticky(&self) -> u32 {
        self.sticky.load(Ordering::Acquire)
    }

    /// From now on every call of this process fails with the code; the first error stays.
    pub(crate) fn set_sticky(&self, code: u32) {
        let _ = self.sticky.compare_exchange(0, code, Ordering::AcqRel, Ordering::Acquire);
    }

    /// An error of work that was given out: told by whoever waits next, or now by whom it is handed to.
    pub(crate) fn record_defect(&self, code: u32, what: &str) -> u32 {
        self.record_evidence(None, what);
        self.update_nvml(code);
        self.set_sticky(code);
        code
    }

    /// What NVML tells from now on.
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

    pub(crate) fn record_evidence(&self, rule: Option<usize>, what: &str) {
        if let Some(folder) = &self.directory {
            // Evidence that can't be written makes the scenario inconclusive; the target must not feel it.
            let _ =
                folder.record_evidence(&Evidence { rule, pid: std::process::id(), description: what.into() });
        }
    }

    /// What happens at this call. Counts it for the rules that speak of it.
    pub(crate) fn apply_rules(&self, index: usize, call: &DriverCall<'_>) -> CallOutcome {
        self.reload_if_stale();
        let early = self.standing_error(call);
        let compiled = self.current_plan();
        if early.error_code.is_some() {
            self.count_failed_call(index, call, &compiled);
            return early;
        }
        let mut outcome = CallOutcome::default();
        let mut left = self.rules_by_function[index].load(Ordering::Acquire);
        while left != 0 {
            let rule = left.trailing_zeros() as usize;
            left &= left - 1;
            if compiled.matches(rule, call) {
                self.count_and_inject(rule, &compiled.plan.rules[rule], call, &mut outcome);
            }
        }
        outcome
    }

    /// A call that fails by what stands already is still a call for rules that only count: it shows that the target has met it.
    fn count_failed_call(&self, index: usize, call: &DriverCall<'_>, compiled: &CompiledPlan) {
        let Some(control) = self.control() else { return };
        let watched = self.rules_by_function[index].load(Ordering::Acquire);
        for (number, rule) in
            compiled.plan.rules.iter().enumerate().filter(|(number, _)| watched >> number & 1 == 1)
        {
            if rule.effect == RuleEffect::Count && compiled.matches(number, call) {
                control.count_call(number);
            }
        }
    }

    /// Errors that stand, whatever the rules say.
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
            // A process that starts finds no device. One that has a context gets what a card off the bus gives: an
            // unknown error, for good.
            let starts = calls::call_kind(call.name) == DriverCallKind::Initialise
                || call.name.starts_with("cuDeviceGet");
            if starts && !crate::driver::has_context() {
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

    /// The error that who waits is told, once.
    pub(crate) fn take_deferred_error(&self) -> Option<u32> {
        let code = self.deferred_code.swap(0, Ordering::AcqRel);
        if code != 0 && self.deferred_is_sticky.load(Ordering::Acquire) {
            self.set_sticky(code);
        }
        (code != 0).then_some(code)
    }

    fn count_and_inject(
        &self,
        index: usize,
        rule: &FaultRule,
        call: &DriverCall<'_>,
        outcome: &mut CallOutcome,
    ) {
        // Without a folder there are no rules.
        let Some(control) = self.control() else { return };
        let count = control.count_call(index);
        let strikes = match rule.persistence {
            Persistence::Transient => count == rule.nth && control.claim(index),
            Persistence::Persistent => count >= rule.nth,
        };
        if !strikes || rule.effect == RuleEffect::Count {
            return;
        }
        let first = self.reported_rules.fetch_or(1 << index, Ordering::AcqRel) & (1 << index) == 0;
        if first || rule.persistence == Persistence::Transient {
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
            RuleEffect::Fail { code, reported: told, sticky } => {
                self.update_nvml(code);
                match told {
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

/// Copies to pageable memory wait whatever their name says. The simulation knows which they are; of a real driver's, all that
/// may be are taken for such: CUDA lets any of them tell errors of earlier work.
fn reports_earlier_errors(name: &str) -> bool {
    calls::waits_for_work(name) || (name.starts_with("cuMemcpyDtoHAsync") && crate::forward::is_active())
}

fn describe(effect: &RuleEffect) -> String {
    match effect {
        RuleEffect::Count => "counted".into(),
        RuleEffect::Fail { code, reported: told, sticky } => {
            let when = match told {
                ErrorTiming::Immediately => "at once",
                ErrorTiming::AtNextSync => "at the next call that waits",
            };
            let after = if *sticky { ", and so does every call from then on" } else { "" };
            format!("fails with {} {when}{after}", codes::describe(*code))
        }
        RuleEffect::Hang => "never ends".into(),
        RuleEffect::Overwrite { .. } => "one value of its result is to be overwritten".into(),
        RuleEffect::FlipBit { .. } => "one bit of the largest allocation is to be flipped".into(),
        RuleEffect::Fragment { hole_bytes } => {
            format!("free memory is left in holes of at most {hole_bytes} bytes")
        }
    }
}

#[expect(clippy::print_stderr, reason = "the target's process has no other way to say why it ends")]
pub(crate) fn abort_with(why: &str) -> ! {
    eprintln!("the stand-in for the GPU can't work: {why}");
    std::process::abort()
}

impl CompiledPlan {
    fn new(plan: ShimPlan) -> CompiledPlan {
        // An invalid pattern matches nothing: the rule never strikes, and the scenario is inconclusive.
        let glob = |pattern: &Option<String>| {
            pattern.as_ref().map(|pattern| {
                let literal = || Glob::new(&globset::escape(pattern)).expect("an escaped pattern is one");
                Glob::new(pattern).unwrap_or_else(|_| literal()).compile_matcher()
            })
        };
        let functions = plan.rules.iter().map(|rule| glob(&rule.calls.function)).collect();
        let kernels = plan.rules.iter().map(|rule| glob(&rule.calls.kernel)).collect();
        CompiledPlan { plan, functions, kernels }
    }

    /// Armed rules that may speak of a function, one bit each.
    fn rules_for(&self, name: &str) -> u64 {
        let rules = self.plan.rules.iter().enumerate().filter(|(_, rule)| rule.armed);
        let kind = calls::call_kind(name);
        rules
            .filter(|(index, rule)| {
                let of_kind = rule.calls.kinds.is_empty() || rule.calls.kinds.contains(&kind);
                let of_name = self.functions[*index].as_ref().is_none_or(|glob| glob.is_match(name));
                let of_launch = self.kernels[*index].is_none() || kind == DriverCallKind::Launch;
                of_kind && of_name && of_launch
            })
            .fold(0, |bits, (index, _)| bits | 1 << index)
    }

    fn matches(&self, rule: usize, call: &DriverCall<'_>) -> bool {
        let Some(of) = self.plan.rules.get(rule) else { return false };
        let kernel = match &self.kernels[rule] {
            Some(glob) => call.kernel.is_some_and(|kernel| glob.is_match(kernel)),
            None => true,
        };
        of.armed
            && kernel
            && (of.calls.min_bytes == 0 || call.bytes.is_some_and(|bytes| bytes >= of.calls.min_bytes))
    }
}
