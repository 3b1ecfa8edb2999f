//! The plan in force: reads it, counts the calls that its rules speak of, and says what happens at a call. Knows the driver's
//! functions by name only, and no arguments but those that it is told.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, RwLock};

use globset::{Glob, GlobMatcher};
use simgpu_plan::{
    Control, Effect, Evidence, FOLDER, Folder, Kind, Machine, Overwrite, Plan, Rule, Simulated, State,
    Strike, Told,
};

use crate::{calls, codes};

/// The plan, and what has become of it in this process.
pub(crate) struct World {
    folder: Option<Folder>,
    compiled: RwLock<Arc<Compiled>>,
    generation: AtomicU64,
    reading: Mutex<()>,
    /// Names of functions, and for each the armed rules that may speak of it, one bit each.
    names: RwLock<Vec<&'static str>>,
    watch: Vec<AtomicU64>,
    /// Every call fails with it; 0: none.
    sticky: AtomicU32,
    /// The next call that waits fails with it.
    deferred: AtomicU32,
    deferred_sticks: AtomicBool,
    lost: AtomicBool,
    told: AtomicU64,
}

/// A plan with its patterns made ready.
pub(crate) struct Compiled {
    pub(crate) plan: Plan,
    functions: Vec<Option<GlobMatcher>>,
    kernels: Vec<Option<GlobMatcher>>,
}

/// One call, as far as rules ask.
pub(crate) struct Call<'a> {
    pub(crate) name: &'a str,
    pub(crate) kernel: Option<&'a str>,
    pub(crate) bytes: Option<u64>,
}

/// What happens to the work that a call gives out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Twist {
    Hang,
    Overwrite { with: Overwrite, seed: u64, rule: usize },
    FlipBit { seed: u64, rule: usize },
}

/// What happens at a call.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Outcome {
    /// The call isn't made: it gives this code.
    pub(crate) fails: Option<u32>,
    pub(crate) twists: Vec<Twist>,
    /// Before the call is made.
    pub(crate) fragments: Option<u64>,
}

static WORLD: OnceLock<World> = OnceLock::new();
/// The folder of a library that stands behind another one.
static BEHIND: OnceLock<Option<String>> = OnceLock::new();

/// Says before anything else that this library is the one behind; `folder` takes the place of the environment.
pub(crate) fn stand_behind(folder: Option<String>) {
    let _ = BEHIND.set(folder);
}

pub(crate) fn world() -> &'static World {
    WORLD.get_or_init(|| {
        let folder = match BEHIND.get() {
            Some(folder) => folder.clone(),
            None => std::env::var(FOLDER).ok(),
        };
        World::new(folder.as_deref().map(Path::new))
    })
}

impl World {
    fn new(folder: Option<&Path>) -> World {
        let folder = folder.map(|path| {
            // A plan that can't be read must not pass for a GPU without faults.
            Folder::open(path).unwrap_or_else(|error| give_up(&error.to_string()))
        });
        let plan = match &folder {
            Some(folder) => folder.plan().unwrap_or_else(|error| give_up(&error.to_string())),
            None => Plan {
                machine: Machine::Simulated(Simulated::default()),
                state: State::default(),
                rules: Vec::new(),
            },
        };
        let names = crate::symbols::NAMES.to_vec();
        let watch = (0..names.len() + crate::symbols::SPARES).map(|_| AtomicU64::new(0)).collect();
        let generation = folder.as_ref().map_or(0, |folder| folder.control().generation());
        let world = World {
            folder,
            compiled: RwLock::new(Arc::new(Compiled::new(plan))),
            generation: AtomicU64::new(generation),
            reading: Mutex::new(()),
            names: RwLock::new(names),
            watch,
            sticky: AtomicU32::new(0),
            deferred: AtomicU32::new(0),
            deferred_sticks: AtomicBool::new(false),
            lost: AtomicBool::new(false),
            told: AtomicU64::new(0),
        };
        world.watch_again();
        world
    }

    pub(crate) fn plan(&self) -> Arc<Compiled> {
        self.refresh();
        self.compiled.read().unwrap_or_else(|poison| poison.into_inner()).clone()
    }

    pub(crate) fn control(&self) -> Option<&Control> {
        self.folder.as_ref().map(Folder::control)
    }

    /// Adds a function that the list of symbols does not know: its number, while there is one left.
    pub(crate) fn learn(&self, name: &'static str) -> Option<usize> {
        let index = {
            let mut names = self.names.write().unwrap_or_else(|poison| poison.into_inner());
            if names.len() == self.watch.len() {
                return None;
            }
            names.push(name);
            names.len() - 1
        };
        self.watch_again();
        Some(index)
    }

    pub(crate) fn name(&self, index: usize) -> &'static str {
        self.names.read().unwrap_or_else(|poison| poison.into_inner())[index]
    }

    fn is_stale(&self) -> bool {
        self.control().is_some_and(|control| control.generation() != self.generation.load(Ordering::Acquire))
    }

    fn refresh(&self) {
        let (true, Some(folder)) = (self.is_stale(), &self.folder) else { return };
        let _reading = self.reading.lock().unwrap_or_else(|poison| poison.into_inner());
        let generation = folder.control().generation();
        // A plan that is being replaced is read at the next call; the old one stays in force.
        if let Ok(plan) = folder.plan() {
            *self.compiled.write().unwrap_or_else(|poison| poison.into_inner()) =
                Arc::new(Compiled::new(plan));
            self.generation.store(generation, Ordering::Release);
            self.watch_again();
        }
    }

    fn watch_again(&self) {
        let compiled = self.compiled.read().unwrap_or_else(|poison| poison.into_inner()).clone();
        self.lost.store(compiled.plan.state.lost, Ordering::Release);
        let names = self.names.read().unwrap_or_else(|poison| poison.into_inner());
        for (name, watch) in names.iter().zip(&self.watch) {
            watch.store(compiled.rules_of(name), Ordering::Release);
        }
    }

    /// Whether nothing can happen at this call: what almost all calls cost.
    #[inline]
    pub(crate) fn is_quiet(&self, index: usize) -> bool {
        self.watch[index].load(Ordering::Relaxed) == 0
            && self.sticky.load(Ordering::Relaxed) == 0
            && self.deferred.load(Ordering::Relaxed) == 0
            && !self.is_lost()
            && !self.is_stale()
    }

    pub(crate) fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Acquire) || self.control().is_some_and(Control::is_lost)
    }

    pub(crate) fn sticky(&self) -> u32 {
        self.sticky.load(Ordering::Acquire)
    }

    /// From now on every call of this process fails with the code; the first error stays.
    pub(crate) fn stick(&self, code: u32) {
        let _ = self.sticky.compare_exchange(0, code, Ordering::AcqRel, Ordering::Acquire);
    }

    /// An error of work that was given out: told by whoever waits next, or now by whom it is handed to.
    pub(crate) fn broken(&self, code: u32, what: &str) -> u32 {
        self.tell(None, what);
        self.bring_about(code);
        self.stick(code);
        code
    }

    /// What NVML tells from now on.
    fn bring_about(&self, code: u32) {
        let Some(control) = self.control() else { return };
        if code == codes::ECC_UNCORRECTABLE {
            control.add_uncorrected();
        }
        if code == codes::NO_DEVICE {
            control.lose();
        }
        if let Some(xid) = codes::xid(code) {
            control.add_xid(xid);
        }
    }

    pub(crate) fn tell(&self, rule: Option<usize>, what: &str) {
        if let Some(folder) = &self.folder {
            // Evidence that can't be written makes the scenario inconclusive; the target must not feel it.
            let _ = folder.tell(&Evidence { rule, pid: std::process::id(), what: what.into() });
        }
    }

    /// What happens at this call. Counts it for the rules that speak of it.
    pub(crate) fn consider(&self, index: usize, call: &Call<'_>) -> Outcome {
        self.refresh();
        let early = self.standing(call);
        let compiled = self.plan();
        if early.fails.is_some() {
            self.count_failing(index, call, &compiled);
            return early;
        }
        let mut outcome = Outcome::default();
        let mut left = self.watch[index].load(Ordering::Acquire);
        while left != 0 {
            let rule = left.trailing_zeros() as usize;
            left &= left - 1;
            if compiled.speaks_of(rule, call) {
                self.apply(rule, &compiled.plan.rules[rule], call, &mut outcome);
            }
        }
        outcome
    }

    /// A call that fails by what stands already is still a call for rules that only count: it shows that the target has met it.
    fn count_failing(&self, index: usize, call: &Call<'_>, compiled: &Compiled) {
        let Some(control) = self.control() else { return };
        let watched = self.watch[index].load(Ordering::Acquire);
        for (number, rule) in
            compiled.plan.rules.iter().enumerate().filter(|(number, _)| watched >> number & 1 == 1)
        {
            if rule.effect == Effect::Count && compiled.speaks_of(number, call) {
                control.count(number);
            }
        }
    }

    /// Errors that stand, whatever the rules say.
    fn standing(&self, call: &Call<'_>) -> Outcome {
        let fails = |code| Outcome { fails: Some(code), ..Outcome::default() };
        if calls::outlives_errors(call.name) {
            return Outcome::default();
        }
        match self.sticky() {
            0 => (),
            code => return fails(code),
        }
        if self.is_lost() {
            // A process that starts finds no device. One that has a context gets what a card off the bus gives: an
            // unknown error, for good.
            let starts = calls::kind(call.name) == Kind::Initialise || call.name.starts_with("cuDeviceGet");
            if starts && !crate::driver::has_context() {
                return fails(codes::NO_DEVICE);
            }
            self.stick(codes::UNKNOWN);
            return fails(codes::UNKNOWN);
        }
        match waits(call.name) {
            true => Outcome { fails: self.told_to_who_waits(), ..Outcome::default() },
            false => Outcome::default(),
        }
    }

    /// The error that who waits is told, once.
    pub(crate) fn told_to_who_waits(&self) -> Option<u32> {
        let code = self.deferred.swap(0, Ordering::AcqRel);
        if code != 0 && self.deferred_sticks.load(Ordering::Acquire) {
            self.stick(code);
        }
        (code != 0).then_some(code)
    }

    fn apply(&self, index: usize, rule: &Rule, call: &Call<'_>, outcome: &mut Outcome) {
        // Without a folder there are no rules.
        let Some(control) = self.control() else { return };
        let count = control.count(index);
        let strikes = match rule.strike {
            Strike::Once => count == rule.nth && control.take(index),
            Strike::FromThenOn => count >= rule.nth,
        };
        if !strikes || rule.effect == Effect::Count {
            return;
        }
        let first = self.told.fetch_or(1 << index, Ordering::AcqRel) & (1 << index) == 0;
        if first || rule.strike == Strike::Once {
            let kernel = call.kernel.map(|kernel| format!(" of `{kernel}`")).unwrap_or_default();
            self.tell(
                Some(index),
                &format!("{}{kernel}, call {count}: {}", call.name, described(&rule.effect)),
            );
        }
        self.strike(index, &rule.effect, call, outcome);
    }

    fn strike(&self, rule: usize, effect: &Effect, call: &Call<'_>, outcome: &mut Outcome) {
        match *effect {
            Effect::Count => (),
            Effect::Fail { code, told, sticky } => {
                self.bring_about(code);
                match told {
                    Told::AtOnce => {
                        if sticky {
                            self.stick(code);
                        }
                        outcome.fails.get_or_insert(code);
                    }
                    Told::AtNextSynchronise if waits(call.name) => {
                        if sticky {
                            self.stick(code);
                        }
                        outcome.fails.get_or_insert(code);
                    }
                    Told::AtNextSynchronise => {
                        self.deferred_sticks.store(sticky, Ordering::Release);
                        self.deferred.store(code, Ordering::Release);
                    }
                }
            }
            Effect::Hang => outcome.twists.push(Twist::Hang),
            Effect::Overwrite { with, seed } => outcome.twists.push(Twist::Overwrite { with, seed, rule }),
            Effect::FlipBit { seed } => outcome.twists.push(Twist::FlipBit { seed, rule }),
            Effect::Fragment { hole_bytes } => outcome.fragments = Some(hole_bytes),
        }
    }
}

/// Copies to pageable memory wait whatever their name says. The simulation knows which they are; of a real driver's, all that
/// may be are taken for such: CUDA lets any of them tell errors of earlier work.
fn waits(name: &str) -> bool {
    calls::waits(name) || (name.starts_with("cuMemcpyDtoHAsync") && crate::forward::is_on())
}

fn described(effect: &Effect) -> String {
    match effect {
        Effect::Count => "counted".into(),
        Effect::Fail { code, told, sticky } => {
            let when = match told {
                Told::AtOnce => "at once",
                Told::AtNextSynchronise => "at the next call that waits",
            };
            let after = if *sticky { ", and so does every call from then on" } else { "" };
            format!("fails with {} {when}{after}", codes::named(*code))
        }
        Effect::Hang => "never ends".into(),
        Effect::Overwrite { .. } => "one value of its result is to be overwritten".into(),
        Effect::FlipBit { .. } => "one bit of the largest allocation is to be flipped".into(),
        Effect::Fragment { hole_bytes } => {
            format!("free memory is left in holes of at most {hole_bytes} bytes")
        }
    }
}

#[expect(clippy::print_stderr, reason = "the target's process has no other way to say why it ends")]
pub(crate) fn give_up(why: &str) -> ! {
    eprintln!("the stand-in for the GPU can't work: {why}");
    std::process::abort()
}

impl Compiled {
    fn new(plan: Plan) -> Compiled {
        // An invalid pattern matches nothing: the rule never strikes, and the scenario is inconclusive.
        let glob = |pattern: &Option<String>| {
            pattern.as_ref().map(|pattern| {
                let literal = || Glob::new(&globset::escape(pattern)).expect("an escaped pattern is one");
                Glob::new(pattern).unwrap_or_else(|_| literal()).compile_matcher()
            })
        };
        let functions = plan.rules.iter().map(|rule| glob(&rule.calls.function)).collect();
        let kernels = plan.rules.iter().map(|rule| glob(&rule.calls.kernel)).collect();
        Compiled { plan, functions, kernels }
    }

    /// Armed rules that may speak of a function, one bit each.
    fn rules_of(&self, name: &str) -> u64 {
        let rules = self.plan.rules.iter().enumerate().filter(|(_, rule)| rule.armed);
        let kind = calls::kind(name);
        rules
            .filter(|(index, rule)| {
                let of_kind = rule.calls.kinds.is_empty() || rule.calls.kinds.contains(&kind);
                let of_name = self.functions[*index].as_ref().is_none_or(|glob| glob.is_match(name));
                let of_launch = self.kernels[*index].is_none() || kind == Kind::Launch;
                of_kind && of_name && of_launch
            })
            .fold(0, |bits, (index, _)| bits | 1 << index)
    }

    fn speaks_of(&self, rule: usize, call: &Call<'_>) -> bool {
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
