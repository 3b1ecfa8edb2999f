//! Runs scenarios in parallel, and each scenario from its baseline to its verdict.
//!
//! Checks first whether this machine supports the scenario. Emits events and prints nothing.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use rayon::iter::{IntoParallelRefIterator, ParallelIterator};
use scenarios::{
    BaselineFacts, Event, Fault, Mechanism, Scenario, ScenarioStarted, TargetFile, TargetGpu, TrialsPlanned,
    Trigger, Verdict, ViolationKind,
};

use crate::explore::WarmStart;
use crate::file_error::{chain, file_error};
use crate::gpu;
use crate::judge::{
    AblationRuns, JudgedTrial, ablation_verdict, unmatched_pattern_text, verdict, weakened_verdict,
};
use crate::observe::Reporter;
use crate::plan::{BaselineCounts, Trial, TrialPlan, TrialSelection};
use crate::run::baseline::{BaselineCache, CountRequests};
use crate::run::crash_state_trials::{self, RecordedRun};
use crate::run::error::RunError;
use crate::run::resume_check::ResumeCache;
use crate::run::trial::{FinishedTrial, TrialContext};
use crate::run::trial_env::{TrialConfig, settings_without_guard};
use crate::run::trial_runs::{EndedTrials, TrialRuns};
use crate::sandbox::HostAccess;

/// Without a guard, at least so many trials are tried in search of harm if only words are missing.
const MIN_SEARCH_TRIALS: u32 = 32;

/// A scenario with its target, ready to run.
pub struct PreparedScenario {
    /// The checked scenario file.
    pub scenario: Scenario,
    /// The checked target file that it names.
    pub target: TargetFile,
    /// Path of the target's program.
    pub program: PathBuf,
    /// What of the host the target may touch.
    pub host_access: HostAccess,
    /// Path of the shim library, if the scenario has a GPU and the library was found.
    pub shim: Option<PathBuf>,
    /// The first event of the scenario: its files with their texts, the guard that is switched off, and the
    /// command that repeats it.
    pub started: ScenarioStarted,
    /// Directory of the scenario file.
    pub scenario_dir: PathBuf,
    /// Why this installation cannot run it, if so. It is then skipped.
    pub unavailable: Option<String>,
}

/// Which scenarios to run, and how.
pub struct Suite<'a> {
    /// The scenarios, in the order of the results.
    pub scenarios: &'a [PreparedScenario],
    /// Seed of the plans and of the target's workload.
    pub seed: u64,
    /// How many scenarios and trials run at the same time.
    pub jobs: usize,
    /// Which trials of each scenario run.
    pub selection: TrialSelection,
    /// Without a guard, whether the other trials run too once it is caught.
    pub keep_going: bool,
    /// Whether the target is forked in trials of crash states, if it is a Python program.
    pub warm: WarmStart,
    /// Existing directory in which the sandboxes are built. The caller removes it.
    pub sandboxes_dir: &'a Path,
    /// What this machine supports.
    pub mechanisms: &'a [Mechanism],
    /// Polled before each scenario and each trial. Once it returns `true`, none starts any more.
    pub cancelled: fn() -> bool,
}

/// Result of one scenario.
pub struct ScenarioResult {
    /// The scenario's id.
    pub id: String,
    /// Whether a guard was removed, so that a violation is the good result.
    pub without_guard: bool,
    /// Its verdict.
    pub verdict: Verdict,
    /// Its trials. `None` if it did not get that far.
    pub planned: Option<TrialsPlanned>,
    /// Why the harness could not do its work, if so.
    pub failure: Option<String>,
    /// Whether some of its trials did not run, because the run was interrupted.
    pub interrupted: bool,
    /// Duration.
    pub seconds: f64,
}

/// Result of a suite.
pub struct SuiteResult {
    /// One result for each scenario, in the same order.
    pub results: Vec<ScenarioResult>,
}

/// Runs all scenarios. A scenario that fails does not stop the others.
///
/// # Errors
/// If the threads cannot be started.
pub fn run_suite(suite: &Suite<'_>, reporter: &Reporter) -> Result<SuiteResult, RunError> {
    let cache = BaselineCache::default();
    let pool = rayon::ThreadPoolBuilder::new().num_threads(suite.jobs).build().map_err(std::io::Error::other);
    let pool = pool.map_err(file_error::<RunError>("start threads for", suite.sandboxes_dir))?;
    let results = pool.install(|| {
        suite.scenarios.par_iter().map(|prepared| run_scenario(suite, prepared, &cache, reporter)).collect()
    });
    Ok(SuiteResult { results })
}

fn run_scenario(
    suite: &Suite<'_>,
    prepared: &PreparedScenario,
    cache: &BaselineCache,
    reporter: &Reporter,
) -> ScenarioResult {
    let guard = prepared.started.guard_removed.as_ref().map(|guard| format!(" without {guard}"));
    let name = format!("{}{}", prepared.scenario.id(), guard.unwrap_or_default());
    let reporter = reporter.for_scenario(&name);
    let started_s = reporter.elapsed_s();
    reporter.emit(Event::ScenarioStarted(Box::new(prepared.started.clone())));
    let interrupted = |why: &str| JudgedScenario {
        interrupted: true,
        ..JudgedScenario::without_trials(Verdict::Inconclusive { why: why.into() })
    };
    let unavailable = prepared.unavailable.clone();
    let missing = unavailable.or_else(|| missing_mechanism(&prepared.scenario, suite.mechanisms));
    let (judged, failure) = match missing {
        // First, because an interrupted check of the machine finds nothing.
        _ if (suite.cancelled)() => (interrupted("interrupted before it began"), None),
        Some(why) => (JudgedScenario::without_trials(Verdict::Skipped { why }), None),
        None => match judge_scenario(suite, prepared, cache, &reporter) {
            Ok(judged) => (judged, None),
            // With its sandbox gone, whatever was going on fails in some way.
            Err(_) if (suite.cancelled)() => (interrupted("interrupted before its first trial"), None),
            Err(RunError::TargetFailed(failed)) => {
                let why = format!("{failed}, so there is nothing to judge");
                reporter.emit(Event::UndisturbedRunFailed(failed));
                (JudgedScenario::without_trials(Verdict::Inconclusive { why }), None)
            }
            Err(error) => {
                let failure = chain(&error);
                let why = format!("the harness failed: {failure}");
                (JudgedScenario::without_trials(Verdict::Inconclusive { why }), Some(failure))
            }
        },
    };
    let JudgedScenario { verdict, planned, interrupted } = judged;
    let seconds = reporter.elapsed_s() - started_s;
    reporter.emit(Event::Judged { verdict: verdict.clone(), seconds });
    let id = prepared.scenario.id().to_owned();
    let without_guard = prepared.started.guard_removed.is_some();
    ScenarioResult { id, without_guard, verdict, planned, failure, interrupted, seconds }
}

/// A verdict, and the trials that it is about.
struct JudgedScenario {
    verdict: Verdict,
    planned: Option<TrialsPlanned>,
    /// Whether some of them did not run, because the run was interrupted.
    interrupted: bool,
}

impl JudgedScenario {
    fn without_trials(verdict: Verdict) -> JudgedScenario {
        JudgedScenario { verdict, planned: None, interrupted: false }
    }
}

fn judge_scenario(
    suite: &Suite<'_>,
    prepared: &PreparedScenario,
    cache: &BaselineCache,
    reporter: &Reporter,
) -> Result<JudgedScenario, RunError> {
    let guard = prepared.started.guard_removed.as_deref();
    let baseline_plan = TrialPlan::new(&prepared.scenario, suite.seed, &Default::default());
    let plan =
        TrialPlan::new(&prepared.scenario, suite.seed, &settings_without_guard(&prepared.target, guard))
            .with_selection(suite.selection);
    // The same scenario may run several times at once, each time without another guard.
    let without_guard = guard.map(|guard| format!("-without-{guard}")).unwrap_or_default();
    let dir =
        |name: &str| suite.sandboxes_dir.join(format!("{}{without_guard}-{name}", prepared.scenario.id()));
    // The baseline always has all guards, also if the trials run without one.
    let baseline = cache.get(
        dir("baseline"),
        trial_config(suite, prepared, &baseline_plan),
        &prepared.scenario,
        CountRequests { calls: &plan.call_counts(), gpu_calls: &plan.gpu_count_requests() },
        reporter,
    )?;
    if !baseline.facts.ended_well || !baseline.facts.unmatched.is_empty() {
        let none = TrialsPlanned::default();
        let verdict = verdict(&prepared.scenario, &baseline.facts, &none, &[]);
        return Ok(JudgedScenario::without_trials(verdict));
    }
    let control = run_guard_control(suite, prepared, cache, &plan, reporter)?;
    let ablation = AblationRuns { baseline: &baseline.facts, control: control.as_ref() };
    if let Some(why) = ablation.difference() {
        return Ok(JudgedScenario::without_trials(Verdict::Inconclusive { why }));
    }
    let recorded = record_if_needed(&dir("recorded"), trial_config(suite, prepared, &plan), &plan, reporter)?;
    let counts = recorded.as_ref().map_or_else(|| baseline.counts.clone(), RecordedRun::counts);
    let expanded = plan.expand(&counts);
    let planned = expanded.planned;
    reporter.emit(Event::TrialsPlanned(planned));
    let context = TrialContext {
        scenario: &prepared.scenario,
        config: trial_config(suite, prepared, &plan),
        baseline: &baseline,
        recorded: recorded.as_ref(),
        comparable: plan.comparable(),
        same_workload: plan.same_workload(),
        adds_work: plan.adds_work(),
        makes_calls_fail: plan.makes_calls_fail(),
        resumes: &ResumeCache::default(),
        trial_count: planned.to_run(),
    };
    if let (0, Some(why)) = (planned.possible(), why_no_trials(recorded.as_ref(), &plan, &counts)) {
        let verdict = Verdict::Inconclusive { why };
        return Ok(JudgedScenario { planned: Some(planned), ..JudgedScenario::without_trials(verdict) });
    }
    let (stops, caught) = (guard.is_some() && !suite.keep_going, CaughtGuard::default());
    let runs = TrialRuns {
        context,
        planned,
        warm: &suite.warm,
        jobs: suite.jobs,
        cancelled: suite.cancelled,
        is_enough: &|trial| {
            let alone = std::slice::from_ref(trial);
            stops && caught.is_enough(&verdict_of_trials(context, &planned, alone, &ablation))
        },
        dir: &dir,
        reporter,
    };
    judge_trials(runs, &expanded.trials, &ablation)
}

/// Runs the trials and judges them.
fn judge_trials(
    runs: TrialRuns<'_>,
    trials: &[Trial],
    ablation: &AblationRuns<'_>,
) -> Result<JudgedScenario, RunError> {
    let TrialRuns { context, planned, reporter, .. } = runs;
    let EndedTrials { trials, enough } = runs.run(trials)?;
    let verdict = verdict_of_trials(context, &planned, &trials, ablation);
    let is_part = trials.len() < planned.to_run() as usize;
    enough.filter(|_| is_part).into_iter().for_each(|at| reporter.emit(Event::TrialsStopped { at }));
    Ok(JudgedScenario { verdict, planned: Some(planned), interrupted: is_part && enough.is_none() })
}

/// What the trials without a guard have shown of it so far.
#[derive(Default)]
struct CaughtGuard {
    ended: AtomicU32,
    misses_words: AtomicBool,
}

impl CaughtGuard {
    /// Takes the verdict on one more trial. Whether other trials are no longer needed: one has shown harm, or words are
    /// missing and many trials have shown no harm.
    fn is_enough(&self, of_trial: &Verdict) -> bool {
        let ended = self.ended.fetch_add(1, Ordering::Relaxed) + 1;
        let kind = of_trial.violation_kind();
        let is_words = kind == Some(ViolationKind::Words);
        let misses_words = self.misses_words.fetch_or(is_words, Ordering::Relaxed) || is_words;
        kind == Some(ViolationKind::Harm) || misses_words && ended >= MIN_SEARCH_TRIALS
    }
}

/// The verdict on the trials that have ended.
fn verdict_of_trials(
    context: TrialContext<'_>,
    planned: &TrialsPlanned,
    trials: &[FinishedTrial],
    ablation: &AblationRuns<'_>,
) -> Verdict {
    let judged: Vec<JudgedTrial<'_>> = trials
        .iter()
        .map(|trial| JudgedTrial { number: trial.number, facts: &trial.facts, lines: &trial.lines })
        .collect();
    let verdict = verdict(context.scenario, &context.baseline.facts, planned, &judged);
    let weaknesses = context.recorded.map(RecordedRun::weaknesses).unwrap_or_default();
    ablation_verdict(weakened_verdict(verdict, &weaknesses), ablation, &judged)
}

/// Why there is no trial, if that is known.
fn why_no_trials(
    recorded: Option<&RecordedRun>,
    plan: &TrialPlan,
    counts: &BaselineCounts,
) -> Option<String> {
    let unmatched = recorded.and_then(RecordedRun::unmatched_pattern).map(unmatched_pattern_text);
    unmatched.or_else(|| Some(format!("there was no trial: {}", plan.why_no_trial(counts)?)))
}

/// Records a run, if the plan tries crash states.
fn record_if_needed(
    dir: &Path,
    config: TrialConfig<'_>,
    plan: &TrialPlan,
    reporter: &Reporter,
) -> Result<Option<RecordedRun>, RunError> {
    let Some(request) = plan.crash_states() else { return Ok(None) };
    let recorded = crash_state_trials::record(dir, config, request)?;
    let why = recorded.weaknesses();
    if !why.is_empty() {
        reporter.emit(Event::RecordingWeakened { why });
    }
    Ok(Some(recorded))
}

/// The undisturbed run without the guard, if one is removed.
fn run_guard_control(
    suite: &Suite<'_>,
    prepared: &PreparedScenario,
    cache: &BaselineCache,
    plan: &TrialPlan,
    reporter: &Reporter,
) -> Result<Option<BaselineFacts>, RunError> {
    let Some(guard) = &prepared.started.guard_removed else { return Ok(None) };
    let dir = suite.sandboxes_dir.join(format!("{}-without-{guard}-control", prepared.scenario.id()));
    let config = trial_config(suite, prepared, plan);
    let control = cache.guard_control(dir, config, &prepared.scenario, reporter)?;
    Ok(Some(control.facts))
}

/// The mechanisms that a scenario needs, by their names in `doctor`.
pub fn needed_mechanisms(scenario: &Scenario) -> Vec<&'static str> {
    let needs_gate = |fault: &Fault| {
        let spec = fault.effect.spec();
        matches!(fault.when, Trigger::Call(_)) || spec.is_shown_by_failed_calls() || spec.answers_calls()
    };
    let needs_gate = scenario.method().iter().any(needs_gate);
    std::iter::once("user-namespace")
        .chain(scenario.method().iter().filter_map(|fault| fault.effect.spec().needed_mechanism()))
        .chain(needs_gate.then_some("syscall-gate"))
        .chain(scenario.gpu().map(|gpu| match gpu {
            TargetGpu::Simulated(_) => gpu::SIMULATED_GPU,
            TargetGpu::Real => gpu::REAL_GPU,
        }))
        .collect()
}

/// Why this machine cannot run the scenario, if so.
fn missing_mechanism(scenario: &Scenario, mechanisms: &[Mechanism]) -> Option<String> {
    let not_granted =
        |name: &str| mechanisms.iter().find(|mechanism| mechanism.name == name && !mechanism.granted);
    needed_mechanisms(scenario)
        .into_iter()
        .find_map(not_granted)
        .map(|mechanism| format!("{}: {}", mechanism.name, mechanism.detail))
        .or_else(|| missing_file(scenario))
}

/// Which file of the kernel a fault of the scenario needs and this machine lacks, if so.
pub fn missing_file(scenario: &Scenario) -> Option<String> {
    let mut needed = scenario.method().iter().filter_map(|fault| fault.effect.spec().needed_file());
    let missing = needed.find(|path| !path.exists())?;
    Some(format!("the kernel of this machine has no `{}`", missing.display()))
}

fn trial_config<'a>(
    suite: &Suite<'_>,
    prepared: &'a PreparedScenario,
    plan: &'a TrialPlan,
) -> TrialConfig<'a> {
    let PreparedScenario { target, program, host_access, scenario_dir, shim, .. } = prepared;
    let shim = shim.as_deref();
    let has_gate =
        suite.mechanisms.iter().any(|mechanism| mechanism.name == "syscall-gate" && mechanism.granted);
    TrialConfig {
        target,
        program,
        workload: plan.workload(),
        host_access,
        scenario_dir,
        has_gate,
        shim,
        faults: &[],
    }
}

#[cfg(test)]
mod tests {
    use scenarios::Reason;

    use super::*;

    fn violated(kinds: &[ViolationKind]) -> Verdict {
        let reason = |kind: &ViolationKind| Reason {
            expectation: String::new(),
            trial: Some(1),
            found: String::new(),
            kind: *kind,
        };
        Verdict::Violated { reasons: kinds.iter().map(reason).collect() }
    }

    #[test]
    fn harm_is_enough_at_once_and_missing_words_after_a_search() {
        let (harm, words) =
            (violated(&[ViolationKind::Words, ViolationKind::Harm]), violated(&[ViolationKind::Words]));
        let caught = CaughtGuard::default();
        assert!(!caught.is_enough(&Verdict::Survived));
        assert!(caught.is_enough(&harm));
        let caught = CaughtGuard::default();
        let search: Vec<bool> = (1..=MIN_SEARCH_TRIALS).map(|_| caught.is_enough(&words)).collect();
        assert_eq!(search.iter().position(|enough| *enough), Some(search.len() - 1));
        let never = CaughtGuard::default();
        assert!((0..100).all(|_| !never.is_enough(&Verdict::Survived)));
        assert!(never.is_enough(&words));
    }
}
