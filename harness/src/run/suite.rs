//! Many scenarios, several at a time; and one scenario from its steady state to its verdict.

use std::path::{Path, PathBuf};

use rayon::iter::{IntoParallelIterator, IntoParallelRefIterator, ParallelIterator};
use scenarios::{
    BaselineFacts, Effect, Event, Mechanism, Scenario, ScenarioStarted, TargetFile, TargetGpu, Trigger,
    Verdict,
};

use crate::gpu;
use crate::judge::{JudgedTrial, verdict};
use crate::observe::Reporter;
use crate::plan::{Trial, TrialPlan};
use crate::run::RunError;
use crate::run::baseline::{BaselineCache, CountRequests};
use crate::run::crash_state_trials::{self, RecordedRun};
use crate::run::trial::{FinishedTrial, TrialContext, run_trial};
use crate::run::trial_env::{TrialConfig, settings_without_guard};

/// A scenario with its target, and the guard that is taken away in it.
pub struct PreparedScenario {
    pub scenario: Scenario,
    pub target: TargetFile,
    pub program: PathBuf,
    /// Library that stands in for the GPU's driver, where the scenario has a GPU and the library is there.
    pub shim: Option<PathBuf>,
    /// Where the files were read from, their texts, the folder of the library, the command that repeats it.
    pub started: ScenarioStarted,
    /// Folder of the scenario's file.
    pub scenario_dir: PathBuf,
}

/// What is run, and where.
pub struct Suite<'a> {
    pub scenarios: &'a [PreparedScenario],
    pub seed: u64,
    /// Scenarios and trials at a time.
    pub jobs: usize,
    /// Only this trial of each scenario.
    pub only_trial: Option<u32>,
    /// Existing folder for the rooms; swept by its owner.
    pub sandboxes_dir: &'a Path,
    pub mechanisms: &'a [Mechanism],
}

/// One scenario's end.
pub struct ScenarioResult {
    pub id: String,
    pub verdict: Verdict,
    /// The harness could not do its work.
    pub failure: Option<String>,
    pub seconds: f64,
}

/// Ends in the order of the casts.
pub struct SuiteResult {
    pub results: Vec<ScenarioResult>,
}

/// Runs them all. Each scenario's failure is its own.
pub fn run_suite(suite: &Suite<'_>, reporter: &Reporter) -> Result<SuiteResult, RunError> {
    let cache = BaselineCache::default();
    let pool =
        rayon::ThreadPoolBuilder::new().num_threads(suite.jobs).build().map_err(|error| RunError::File {
            doing: "start threads for",
            path: suite.sandboxes_dir.into(),
            error: std::io::Error::other(error),
        })?;
    let ends = pool.install(|| {
        suite.scenarios.par_iter().map(|cast| run_scenario(suite, cast, &cache, reporter)).collect()
    });
    Ok(SuiteResult { results: ends })
}

fn run_scenario(
    suite: &Suite<'_>,
    cast: &PreparedScenario,
    cache: &BaselineCache,
    reporter: &Reporter,
) -> ScenarioResult {
    let guard = cast.started.guard_removed.as_ref().map(|guard| format!(" without {guard}"));
    let name = format!("{}{}", cast.scenario.id(), guard.unwrap_or_default());
    let reporter = reporter.for_scenario(&name);
    let began = reporter.elapsed_s();
    reporter.emit(Event::ScenarioStarted(Box::new(cast.started.clone())));
    let (verdict, failure) = match missing_mechanism(&cast.scenario, suite.mechanisms) {
        Some(why) => (Verdict::Skipped { why }, None),
        None => match scenario_verdict(suite, cast, cache, &reporter) {
            Ok(verdict) => (verdict, None),
            Err(error) => (
                Verdict::Inconclusive { why: format!("the harness failed: {error}") },
                Some(error.to_string()),
            ),
        },
    };
    let seconds = reporter.elapsed_s() - began;
    reporter.emit(Event::Judged { verdict: verdict.clone(), seconds });
    ScenarioResult { id: cast.scenario.id().to_owned(), verdict, failure, seconds }
}

fn scenario_verdict(
    suite: &Suite<'_>,
    cast: &PreparedScenario,
    cache: &BaselineCache,
    reporter: &Reporter,
) -> Result<Verdict, RunError> {
    let guard = cast.started.guard_removed.as_deref();
    let undisturbed = TrialPlan::new(&cast.scenario, suite.seed, &Default::default());
    let plan = TrialPlan::new(&cast.scenario, suite.seed, &settings_without_guard(&cast.target, guard));
    // Without one guard and without another, a scenario may run twice at the same time.
    let without_guard = guard.map(|guard| format!("-without-{guard}")).unwrap_or_default();
    let dir = |name: &str| suite.sandboxes_dir.join(format!("{}{without_guard}-{name}", cast.scenario.id()));
    // The guarded trainer's undisturbed run is what "the same" means, also where a guard is taken away.
    let steady = cache.get(
        dir("steady"),
        trial_config(suite, cast, &undisturbed),
        &cast.scenario,
        CountRequests { calls: plan.counted_calls(), gpu_calls: &plan.gpu_count_requests() },
        reporter,
    )?;
    if !steady.facts.ended_well {
        return Ok(verdict(&cast.scenario, &steady.facts, &[]));
    }
    let recorded = plan
        .crash_states()
        .map(|wanted| crash_state_trials::record(&dir("recorded"), trial_config(suite, cast, &plan), wanted))
        .transpose()?;
    let counts = recorded.as_ref().map_or_else(|| steady.counts.clone(), RecordedRun::counts);
    let unfolded = plan.expand(&counts);
    if unfolded.left_out > 0 {
        reporter.emit(Event::LeftOut { trials: unfolded.left_out, why: "max-trials".into() });
    }
    let of = u32::try_from(unfolded.trials.len()).unwrap_or(u32::MAX);
    let wanted: Vec<&Trial> = unfolded
        .trials
        .iter()
        .filter(|trial| suite.only_trial.is_none_or(|only| only == trial.number))
        .collect();
    let course = TrialContext {
        scenario: &cast.scenario,
        config: trial_config(suite, cast, &plan),
        baseline: &steady,
        recorded: recorded.as_ref(),
        comparable: plan.comparable(),
        trial_count: of,
    };
    let trials: Result<Vec<FinishedTrial>, RunError> = wanted
        .into_par_iter()
        .map(|trial| {
            run_trial(dir(&trial.number.to_string()), course, trial, &reporter.for_trial(trial.number))
        })
        .collect();
    Ok(judge_trials(&cast.scenario, &steady.facts, &trials?))
}

fn judge_trials(scenario: &Scenario, steady: &BaselineFacts, trials: &[FinishedTrial]) -> Verdict {
    let judged: Vec<JudgedTrial<'_>> = trials
        .iter()
        .map(|trial| JudgedTrial { number: trial.number, facts: &trial.facts, lines: &trial.lines })
        .collect();
    verdict(scenario, steady, &judged)
}

/// Why this machine can't run the scenario.
fn missing_mechanism(scenario: &Scenario, mechanisms: &[Mechanism]) -> Option<String> {
    let at_call = scenario.method().iter().any(|fault| matches!(fault.when, Trigger::Call(_)));
    let needed = std::iter::once("user-namespace")
        .chain(scenario.method().iter().filter_map(|fault| required_mechanism(&fault.effect)))
        .chain(at_call.then_some("syscall-gate"))
        .chain(scenario.gpu().map(|wanted| match wanted {
            TargetGpu::Simulated(_) => gpu::SIMULATED_GPU,
            TargetGpu::Real => gpu::REAL_GPU,
        }));
    let lacks = |name: &str| mechanisms.iter().find(|mechanism| mechanism.name == name && !mechanism.granted);
    needed.into_iter().find_map(lacks).map(|mechanism| format!("{}: {}", mechanism.name, mechanism.detail))
}

/// Beside a room and a GPU; memory limits have a fall-back that every room grants.
fn required_mechanism(effect: &Effect) -> Option<&'static str> {
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

fn trial_config<'a>(suite: &Suite<'_>, cast: &'a PreparedScenario, plan: &'a TrialPlan) -> TrialConfig<'a> {
    let PreparedScenario { target, program, scenario_dir: beside, shim: stand_in, .. } = cast;
    let stand_in = stand_in.as_deref();
    let gate = suite.mechanisms.iter().any(|one| one.name == "syscall-gate" && one.granted);
    TrialConfig {
        target,
        program,
        workload: plan.workload(),
        scenario_dir: beside,
        has_gate: gate,
        shim: stand_in,
        poisoned_samples: &[],
    }
}
