//! Many scenarios, several at a time; and one scenario from its steady state to its verdict.

use std::path::{Path, PathBuf};

use rayon::iter::{IntoParallelIterator, IntoParallelRefIterator, ParallelIterator};
use scenarios::{
    Effect, Event, Gpu, Mechanism, Scenario, ScenarioStarted, SteadyFacts, TargetFile, Trigger, Verdict,
};

use crate::gpu;
use crate::judge::{JudgedTrial, verdict};
use crate::observe::Reporter;
use crate::plan::{Plan, Trial};
use crate::run::RunError;
use crate::run::crash_states::{self, Recorded};
use crate::run::stage::{Script, without};
use crate::run::steady::{Counted, SteadyCache};
use crate::run::trial::{Course, TrialEnd, run_trial};

/// A scenario with its target, and the guard that is taken away in it.
pub struct Cast {
    pub scenario: Scenario,
    pub target: TargetFile,
    pub program: PathBuf,
    /// Library that stands in for the GPU's driver, where the scenario has a GPU and the library is there.
    pub stand_in: Option<PathBuf>,
    /// Where the files were read from, their texts, the folder of the library, the command that repeats it.
    pub started: ScenarioStarted,
    /// Folder of the scenario's file.
    pub beside: PathBuf,
}

/// What is run, and where.
pub struct Suite<'a> {
    pub casts: &'a [Cast],
    pub seed: u64,
    /// Scenarios and trials at a time.
    pub jobs: usize,
    /// Only this trial of each scenario.
    pub only_trial: Option<u32>,
    /// Existing folder for the rooms; swept by its owner.
    pub rooms: &'a Path,
    pub mechanisms: &'a [Mechanism],
}

/// One scenario's end.
pub struct ScenarioEnd {
    pub id: String,
    pub verdict: Verdict,
    /// The harness could not do its work.
    pub failure: Option<String>,
    pub seconds: f64,
}

/// Ends in the order of the casts.
pub struct SuiteEnd {
    pub ends: Vec<ScenarioEnd>,
}

/// Runs them all. Each scenario's failure is its own.
pub fn run_suite(suite: &Suite<'_>, reporter: &Reporter) -> Result<SuiteEnd, RunError> {
    let cache = SteadyCache::default();
    let pool =
        rayon::ThreadPoolBuilder::new().num_threads(suite.jobs).build().map_err(|error| RunError::File {
            doing: "start threads for",
            path: suite.rooms.into(),
            error: std::io::Error::other(error),
        })?;
    let ends =
        pool.install(|| suite.casts.par_iter().map(|cast| one(suite, cast, &cache, reporter)).collect());
    Ok(SuiteEnd { ends })
}

fn one(suite: &Suite<'_>, cast: &Cast, cache: &SteadyCache, reporter: &Reporter) -> ScenarioEnd {
    let guard = cast.started.guard_removed.as_ref().map(|guard| format!(" without {guard}"));
    let name = format!("{}{}", cast.scenario.id(), guard.unwrap_or_default());
    let reporter = reporter.for_scenario(&name);
    let began = reporter.seconds();
    reporter.emit(Event::ScenarioStarted(Box::new(cast.started.clone())));
    let (verdict, failure) = match missing(&cast.scenario, suite.mechanisms) {
        Some(why) => (Verdict::Skipped { why }, None),
        None => match played(suite, cast, cache, &reporter) {
            Ok(verdict) => (verdict, None),
            Err(error) => (
                Verdict::Inconclusive { why: format!("the harness failed: {error}") },
                Some(error.to_string()),
            ),
        },
    };
    let seconds = reporter.seconds() - began;
    reporter.emit(Event::Judged { verdict: verdict.clone(), seconds });
    ScenarioEnd { id: cast.scenario.id().to_owned(), verdict, failure, seconds }
}

fn played(
    suite: &Suite<'_>,
    cast: &Cast,
    cache: &SteadyCache,
    reporter: &Reporter,
) -> Result<Verdict, RunError> {
    let guard = cast.started.guard_removed.as_deref();
    let undisturbed = Plan::new(&cast.scenario, suite.seed, &Default::default());
    let plan = Plan::new(&cast.scenario, suite.seed, &without(&cast.target, guard));
    // Without one guard and without another, a scenario may run twice at the same time.
    let without_guard = guard.map(|guard| format!("-without-{guard}")).unwrap_or_default();
    let dir = |name: &str| suite.rooms.join(format!("{}{without_guard}-{name}", cast.scenario.id()));
    // The guarded trainer's undisturbed run is what "the same" means, also where a guard is taken away.
    let steady = cache.get(
        dir("steady"),
        script(suite, cast, &undisturbed),
        &cast.scenario,
        Counted { calls: plan.counted_calls(), gpu: &plan.gpu_counters() },
        reporter,
    )?;
    if !steady.facts.ended_well {
        return Ok(verdict(&cast.scenario, &steady.facts, &[]));
    }
    let recorded = plan
        .crash_states()
        .map(|wanted| crash_states::record(&dir("recorded"), script(suite, cast, &plan), wanted))
        .transpose()?;
    let counts = recorded.as_ref().map_or_else(|| steady.counts.clone(), Recorded::counts);
    let unfolded = plan.unfold(&counts);
    if unfolded.left_out > 0 {
        reporter.emit(Event::LeftOut { trials: unfolded.left_out, why: "max-trials".into() });
    }
    let of = u32::try_from(unfolded.trials.len()).unwrap_or(u32::MAX);
    let wanted: Vec<&Trial> = unfolded
        .trials
        .iter()
        .filter(|trial| suite.only_trial.is_none_or(|only| only == trial.number))
        .collect();
    let course = Course {
        scenario: &cast.scenario,
        script: script(suite, cast, &plan),
        steady: &steady,
        recorded: recorded.as_ref(),
        comparable: plan.comparable(),
        of,
    };
    let trials: Result<Vec<TrialEnd>, RunError> = wanted
        .into_par_iter()
        .map(|trial| {
            run_trial(dir(&trial.number.to_string()), course, trial, &reporter.for_trial(trial.number))
        })
        .collect();
    Ok(judged(&cast.scenario, &steady.facts, &trials?))
}

fn judged(scenario: &Scenario, steady: &SteadyFacts, trials: &[TrialEnd]) -> Verdict {
    let judged: Vec<JudgedTrial<'_>> = trials
        .iter()
        .map(|trial| JudgedTrial { number: trial.number, facts: &trial.facts, said: &trial.said })
        .collect();
    verdict(scenario, steady, &judged)
}

/// Why this machine can't run the scenario.
fn missing(scenario: &Scenario, mechanisms: &[Mechanism]) -> Option<String> {
    let at_call = scenario.method().iter().any(|fault| matches!(fault.when, Trigger::Call(_)));
    let needed = std::iter::once("user-namespace")
        .chain(scenario.method().iter().filter_map(|fault| needs(&fault.effect)))
        .chain(at_call.then_some("syscall-gate"))
        .chain(scenario.gpu().map(|wanted| match wanted {
            Gpu::Simulated(_) => gpu::SIMULATED,
            Gpu::Real => gpu::REAL,
        }));
    let lacks = |name: &str| mechanisms.iter().find(|mechanism| mechanism.name == name && !mechanism.granted);
    needed.into_iter().find_map(lacks).map(|mechanism| format!("{}: {}", mechanism.name, mechanism.detail))
}

/// Beside a room and a GPU; memory limits have a fall-back that every room grants.
fn needs(effect: &Effect) -> Option<&'static str> {
    match effect {
        Effect::FillDisk { .. } | Effect::ExhaustInodes { .. } => Some("tmpfs"),
        Effect::ReadOnly { .. } => Some("read-only-remount"),
        Effect::Vanish { .. } => Some("inotify"),
        Effect::FailCall { .. }
        | Effect::ShortCall { .. }
        | Effect::DelayCall { .. }
        | Effect::SwapFile { .. }
        | Effect::SweepErrno
        | Effect::CrashStates(_) => Some("syscall-gate"),
        Effect::Crash { .. }
        | Effect::Terminate { .. }
        | Effect::MemoryLimit { .. }
        | Effect::Plant { .. }
        | Effect::PoisonSample { .. }
        | Effect::GpuError { .. }
        | Effect::GpuHang { .. }
        | Effect::GpuOverwrite { .. }
        | Effect::GpuFlipBit { .. }
        | Effect::GpuFragment { .. }
        | Effect::GpuState(_) => None,
    }
}

fn script<'a>(suite: &Suite<'_>, cast: &'a Cast, plan: &'a Plan) -> Script<'a> {
    let Cast { target, program, beside, stand_in, .. } = cast;
    let stand_in = stand_in.as_deref();
    let gate = suite.mechanisms.iter().any(|one| one.name == "syscall-gate" && one.granted);
    Script { target, program, workload: plan.workload(), beside, gate, stand_in, poisoned: &[] }
}
