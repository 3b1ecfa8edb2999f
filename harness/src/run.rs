//! `run` and `ablate`: prepares the chosen scenarios, runs them, and writes the record and the reports.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use scenarios::{
    Event, MachineFacts, Mechanism, Record, RunEnded, RunStarted, TrialCounts, TrialTotals, TrialsPlanned,
    Verdict, ViolationKind,
};

use crate::args::RunArgs;
use crate::build_display::on_build;
use crate::error::CliError;
use crate::exit::CommandExit;
use crate::host_access_options::check_apart;
use crate::option_error::OptionError;
use crate::record_writer::RecordWriter;
use crate::report_paths::ReportDir;
use crate::run_display::RunDisplay;
use crate::scenario_library::{self, LibraryError, LoadedScenario};
use crate::session::{Session, core_count};
use crate::shell_quote::shell_quote;
use crate::{diagnostics, interrupt, print, report_files};
use engine::explore::WarmStart;
use engine::file_error::file_error;
use engine::gpu;
use engine::observe::{ObserverThread, Reporter};
use engine::plan::TrialSelection;
use engine::run::{PreparedScenario, ScenarioResult, Suite, run_suite};
use engine::sandbox;

/// A trial waits for the disk, for a time limit or for a restart most of the time.
const MORE_JOBS_THAN_CORES: usize = 2;

/// What is done with the guards that a scenario relies on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RunMode {
    /// All guards stay on. A scenario should survive.
    Run,
    /// Each scenario runs once per guard, without it. The scenario should be violated. With `keep_going`, all of its
    /// trials run, even if the guard is caught already. With `with_guards`, each scenario runs also as with `Run`.
    Ablate { keep_going: bool, with_guards: bool },
}

impl RunMode {
    fn is_ablation(self) -> bool {
        matches!(self, RunMode::Ablate { .. })
    }

    fn keeps_going(self) -> bool {
        matches!(self, RunMode::Ablate { keep_going: true, .. })
    }

    /// Whether each scenario runs with all guards.
    fn has_guards(self) -> bool {
        matches!(self, RunMode::Run | RunMode::Ablate { with_guards: true, .. })
    }
}

/// The scenarios to run, once for each guard with `ablate`.
struct PreparedRun {
    mode: RunMode,
    scenarios: Vec<PreparedScenario>,
    /// The IDs of the scenarios that must not be skipped: those that the user named, or all.
    required: BTreeSet<String>,
}

/// Runs the scenarios that the arguments name.
///
/// # Errors
/// If a scenario cannot be used, or the harness cannot do its work.
pub(crate) fn run(args: &RunArgs, mode: RunMode) -> Result<CommandExit, CliError> {
    let selected = scenario_library::select_scenarios(&args.scenarios)?;
    let tries_crash_states = |loaded: &LoadedScenario| {
        loaded.scenario.method().iter().any(|fault| fault.effect.spec().crash_states().is_some())
    };
    if !args.warm.is_empty() && !selected.iter().any(tries_crash_states) {
        return Err(OptionError::WarmWithoutCrashStates.into());
    }
    let start = RunStart::now(args.seed);
    // Before anything is built or run, which may take minutes.
    let report_dir = ReportDir::create(args.out.as_deref(), &start.name)?;
    let mut prepared = prepare_all(args, mode, selected).inspect_err(|_| report_dir.remove_if_empty())?;
    for scenario in &mut prepared.scenarios {
        scenario.host_access.hidden = vec![report_dir.real_path()];
    }
    run_prepared(args, &prepared, start, &report_dir).inspect_err(|_| report_dir.remove_if_empty())
}

/// When a run starts, and its name.
struct RunStart {
    name: String,
    time: jiff::Timestamp,
}

impl RunStart {
    fn now(seed: u64) -> RunStart {
        let time = jiff::Timestamp::now();
        RunStart { name: format!("{}-seed-{seed}", time.strftime("%Y-%m-%dT%H-%M-%SZ")), time }
    }
}

fn prepare_all(
    args: &RunArgs,
    mode: RunMode,
    selected: Vec<LoadedScenario>,
) -> Result<PreparedRun, LibraryError> {
    let mut prepared = PreparedRun { mode, scenarios: Vec::new(), required: BTreeSet::new() };
    for scenario in selected {
        if scenario.is_named || args.require.is_some() {
            prepared.required.insert(scenario.scenario.id().to_owned());
        }
        let removed = scenario.scenario.guards().iter().filter(|_| mode.is_ablation()).cloned().map(Some);
        let guards: Vec<Option<String>> =
            mode.has_guards().then_some(None).into_iter().chain(removed).collect();
        if guards.is_empty() {
            // It is not run, but a mistake in its files is one all the same.
            scenario_library::check_target(&scenario.scenario, &scenario.source.path)?;
        }
        for guard in guards {
            let scenario = scenario.clone();
            let mut ready =
                scenario_library::prepare_scenario(scenario, args.seed, guard.as_deref(), &args.host_access)?;
            if let Some(max_trials) = args.max_trials {
                ready.started.repeat += &format!(" --max-trials {max_trials}");
            }
            if !args.warm.is_empty() {
                ready.started.repeat += &format!(" --warm {}", shell_quote(args.warm.join(",").as_ref()));
            }
            if args.no_warm {
                ready.started.repeat += " --no-warm";
            }
            if mode.keeps_going() && guard.is_some() {
                ready.started.repeat += " --keep-going";
            }
            prepared.scenarios.push(ready);
        }
    }
    Ok(prepared)
}

fn run_prepared(
    args: &RunArgs,
    prepared: &PreparedRun,
    start: RunStart,
    report_dir: &ReportDir,
) -> Result<CommandExit, CliError> {
    let PreparedRun { mode, scenarios, .. } = prepared;
    let mode = *mode;
    let started = run_started(args, scenarios, start);
    let out_dir = report_dir.path();
    let session = Session::open(args.jobs, core_count() + MORE_JOBS_THAN_CORES)?;
    let sandboxes_dir = session.dir().to_path_buf();
    for scenario in scenarios {
        check_apart(&scenario.host_access, std::slice::from_ref(&sandboxes_dir))?;
    }
    let record_path = out_dir.join("record.jsonl");
    let record_writer =
        Arc::new(RecordWriter::create(&record_path).map_err(file_error::<CliError>("create", &record_path))?);
    let display = Arc::new(RunDisplay::new(scenarios.len(), mode.is_ablation()));
    let observers = Arc::new(ObserverThread::start(vec![record_writer.clone(), display.clone()]));
    let reporter = Reporter::new(observers.clone());
    let mechanisms = started.machine.mechanisms.clone();
    reporter.emit(Event::RunStarted(started));
    let suite = Suite {
        scenarios,
        seed: args.seed,
        jobs: session.jobs(),
        keep_going: mode.keeps_going(),
        warm: WarmStart::of_options(&args.warm, args.no_warm),
        selection: TrialSelection { max: args.max_trials.unwrap_or_default(), only: args.trial },
        sandboxes_dir: session.dir(),
        mechanisms: &mechanisms,
        cancelled: interrupt::requested,
    };
    let results = run_suite(&suite, &reporter)?.results;
    let mut exits = vec![exit_of_results(&results, prepared)];
    if let Err(error) = session.close() {
        diagnostics::print_failure(&error);
        exits.push(error.exit());
    }
    if interrupt::requested() {
        exits.push(CommandExit::Interrupted);
    } else if let Some(error) = args.trial.and_then(|trial| unknown_trial(trial, &results)) {
        print::error_with_sources(&error);
        exits.push(CliError::from(error).exit());
    }
    let exit = CommandExit::worst(exits);
    reporter.emit(Event::RunEnded(RunEnded { seconds: reporter.elapsed_s(), exit_code: exit.code() }));
    drop(reporter);
    observers.finish();
    drop((observers, display));
    let (record, failure) = record_writer.finish();
    let failure = failure.map(file_error::<CliError>("write", &record_path));
    let failures: Vec<CliError> =
        failure.into_iter().chain(report_files::write_reports(&record, out_dir)).collect();
    report_dir.become_latest();
    if interrupt::requested() {
        let finished = results.iter().filter(|result| !result.interrupted).count();
        print::line(&format!("interrupted: {finished} of {} scenarios", results.len()));
    }
    print_summary(&record, out_dir, &results, mode);
    Ok(diagnostics::exit_despite(exit, &failures))
}

/// The error if the trials of every scenario are known, and none of them is the one that the user asked for.
fn unknown_trial(trial: u32, results: &[ScenarioResult]) -> Option<OptionError> {
    let not_skipped = results.iter().filter(|result| !matches!(result.verdict, Verdict::Skipped { .. }));
    let planned: Option<Vec<TrialsPlanned>> = not_skipped.map(|result| result.planned).collect();
    let planned = planned.filter(|planned| planned.iter().all(|planned| planned.to_run() == 0))?;
    let most = planned.iter().map(|planned| planned.total).max()?;
    Some(OptionError::UnknownTrial { trial, most, scenarios: planned.len() })
}

/// The exit for all scenarios. A skipped scenario counts only if it must not be skipped.
fn exit_of_results(results: &[ScenarioResult], prepared: &PreparedRun) -> CommandExit {
    let exit_of = |result: &ScenarioResult| {
        let is_required = prepared.required.contains(&result.id);
        if result.failure.is_some() {
            return Some(CommandExit::HarnessFailed);
        }
        match result.without_guard {
            false => CommandExit::from_verdict(&result.verdict),
            true => CommandExit::from_ablation(&result.verdict),
        }
        .or(is_required.then_some(CommandExit::Inconclusive))
    };
    CommandExit::worst(results.iter().filter_map(exit_of))
}

fn run_started(args: &RunArgs, scenarios: &[PreparedScenario], start: RunStart) -> RunStarted {
    let mut mechanisms = sandbox::doctor();
    // A GPU driver may take seconds to answer, so it is only asked if a scenario needs it.
    if scenarios.iter().any(|scenario| scenario.scenario.gpu().is_some()) {
        mechanisms.extend(gpu::doctor(&on_build));
    }
    RunStarted {
        format: scenarios::RECORD_FORMAT,
        version: env!("CARGO_PKG_VERSION").into(),
        run: start.name,
        started: start.time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        seed: args.seed,
        command: std::env::args().collect(),
        machine: describe_machine(mechanisms),
        scenarios: u32::try_from(scenarios.len()).unwrap_or(u32::MAX),
    }
}

fn describe_machine(mechanisms: Vec<Mechanism>) -> MachineFacts {
    let uname = nix::sys::utsname::uname();
    let kernel = uname.map(|uname| uname.release().to_string_lossy().into_owned()).unwrap_or_default();
    let memory = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = memory
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    MachineFacts {
        kernel,
        cores: u32::try_from(core_count()).unwrap_or(u32::MAX),
        memory_bytes: kib.unwrap_or(0) * 1024,
        user: if nix::unistd::geteuid().is_root() { "root".into() } else { "ordinary user".into() },
        mechanisms,
    }
}

fn print_summary(record: &Record, out_dir: &Path, results: &[ScenarioResult], mode: RunMode) {
    let (ablated, with_guards): (Vec<&ScenarioResult>, Vec<&ScenarioResult>) =
        results.iter().partition(|result| result.without_guard);
    let count = |results: &[&ScenarioResult], matches: fn(&Verdict) -> bool| {
        results.iter().filter(|result| matches(&result.verdict)).count()
    };
    let of_all = |matches: fn(&Verdict) -> bool| count(&ablated, matches) + count(&with_guards, matches);
    let is_survived = |verdict: &Verdict| matches!(verdict, Verdict::Survived);
    let is_violated = |verdict: &Verdict| matches!(verdict, Verdict::Violated { .. });
    let mut parts = Vec::new();
    if mode.has_guards() {
        let [survived, violated] = [is_survived, is_violated].map(|matches| count(&with_guards, matches));
        parts.push(format!("{survived} survived, {violated} violated"));
    }
    if mode.is_ablation() {
        let [missed, caught] = [is_survived, is_violated].map(|matches| count(&ablated, matches));
        let words = count(&ablated, |verdict| verdict.violation_kind() == Some(ViolationKind::Words));
        let words = if words > 0 { format!(" ({words} by words only)") } else { String::new() };
        parts.push(format!("{caught} of {} guards caught{words}, {missed} missed", ablated.len()));
    }
    let inconclusive = of_all(|verdict| matches!(verdict, Verdict::Inconclusive { .. }));
    let skipped = of_all(|verdict| matches!(verdict, Verdict::Skipped { .. }));
    let seconds = record.entries.last().map_or(0.0, |entry| entry.at_us as f64 / 1e6);
    print::line(&format!(
        "\n{}, {inconclusive} inconclusive, {skipped} skipped in {seconds:.1} s",
        parts.join(", ")
    ));
    let totals: TrialTotals = TrialCounts::by_scenario(record).values().collect();
    print::line(&totals.to_string());
    if results.is_empty() {
        print::line("none of the scenarios relies on a guard, so that nothing was judged");
    }
    print::line(&format!("report: {}", absolute_path(&out_dir.join("report.html")).display()));
}

fn absolute_path(path: &Path) -> PathBuf {
    path.canonicalize().unwrap_or_else(|_| path.to_path_buf())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One kind of result, and its exit codes in a run and in an ablation. `None`: it does not count.
    struct ResultKind {
        verdict: Verdict,
        failure: Option<String>,
        codes: [Option<u8>; 2],
    }

    fn result_kinds() -> Vec<ResultKind> {
        let why = || "because".to_owned();
        let kind = |verdict, codes| ResultKind { verdict, failure: None, codes };
        let inconclusive = || Verdict::Inconclusive { why: why() };
        vec![
            kind(Verdict::Survived, [Some(0), Some(1)]),
            kind(Verdict::Violated { reasons: Vec::new() }, [Some(1), Some(0)]),
            kind(inconclusive(), [Some(3), Some(3)]),
            kind(Verdict::Skipped { why: why() }, [None, None]),
            ResultKind { verdict: inconclusive(), failure: Some(why()), codes: [Some(4), Some(4)] },
        ]
    }

    #[test]
    fn each_set_of_results_has_the_first_of_their_documented_codes() {
        let kinds = result_kinds();
        let ablate = RunMode::Ablate { keep_going: false, with_guards: false };
        for (mode, nth) in [(RunMode::Run, 0), (ablate, 1)] {
            for set in 0..1_usize << kinds.len() {
                let chosen: Vec<&ResultKind> = kinds
                    .iter()
                    .enumerate()
                    .filter(|(bit, _)| set >> bit & 1 == 1)
                    .map(|(_, kind)| kind)
                    .collect();
                let results: Vec<ScenarioResult> = chosen
                    .iter()
                    .map(|kind| ScenarioResult {
                        id: "aa-01".into(),
                        without_guard: mode.is_ablation(),
                        verdict: kind.verdict.clone(),
                        planned: None,
                        failure: kind.failure.clone(),
                        interrupted: false,
                        seconds: 0.0,
                    })
                    .collect();
                let has_skipped = chosen.iter().any(|kind| kind.codes[nth].is_none());
                for is_required in [false, true] {
                    let required = is_required.then(|| "aa-01".to_owned()).into_iter().collect();
                    let prepared = PreparedRun { mode, scenarios: Vec::new(), required };
                    let mut codes: Vec<u8> = chosen.iter().filter_map(|kind| kind.codes[nth]).collect();
                    // A skip that must not be, or nothing that was judged.
                    if codes.is_empty() || is_required && has_skipped {
                        codes.push(3);
                    }
                    let first = [2, 4, 130, 1, 5, 3, 0].into_iter().find(|code| codes.contains(code));
                    assert_eq!(
                        Some(exit_of_results(&results, &prepared).code()),
                        first,
                        "{set:b} {is_required}"
                    );
                }
            }
        }
    }
}
