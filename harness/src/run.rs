//! `run` and `ablate`: prepares the chosen scenarios, runs them, and writes the record and the reports.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use scenarios::{Event, MachineFacts, Mechanism, Record, RunEnded, RunStarted, Verdict};

use crate::args::RunArgs;
use crate::exit::CommandExit;
use crate::record_writer::RecordWriter;
use crate::run_display::RunDisplay;
use crate::scenario_library::{self, LibraryError};
use crate::{diagnostics, print, report_files};
use engine::gpu;
use engine::observe::{Reporter, Tee};
use engine::run::{PreparedScenario, ScenarioResult, Suite, run_suite};
use engine::sandbox::{self, RunDir};

/// What is done with the guards that a scenario relies on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RunMode {
    /// All guards stay on. A scenario should survive.
    Run,
    /// Each scenario runs once per guard, without it. The scenario should be violated.
    Ablate,
}

/// Runs the scenarios that the arguments name.
pub(crate) fn run(args: &RunArgs, mode: RunMode) -> CommandExit {
    let scenarios = match prepare_all(args, mode) {
        Ok(scenarios) => scenarios,
        Err(error) => return diagnostics::print_library_error(&error),
    };
    match run_prepared(args, mode, &scenarios) {
        Ok(exit) => exit,
        Err(error) => {
            print::error(&error);
            CommandExit::HarnessFailed
        }
    }
}

fn prepare_all(args: &RunArgs, mode: RunMode) -> Result<Vec<PreparedScenario>, LibraryError> {
    let mut prepared = Vec::new();
    for scenario in scenario_library::select_scenarios(&args.scenarios)? {
        match mode {
            RunMode::Run => prepared.push(scenario_library::prepare_scenario(scenario, args.seed, None)?),
            RunMode::Ablate => {
                for guard in scenario.scenario.guards().to_vec() {
                    let scenario = scenario.clone();
                    prepared.push(scenario_library::prepare_scenario(scenario, args.seed, Some(&guard))?);
                }
            }
        }
    }
    Ok(prepared)
}

fn run_prepared(
    args: &RunArgs,
    mode: RunMode,
    scenarios: &[PreparedScenario],
) -> Result<CommandExit, String> {
    for leftover in sandbox::remove_leftovers()
        .map_err(|error| format!("could not remove what an earlier run left behind: {error}"))?
    {
        print::line(&format!("removed {leftover}"));
    }
    let run_dir = RunDir::create()
        .map_err(|error| format!("could not create a directory for the sandboxes: {error}"))?;
    let started = run_started(args, scenarios);
    let out_dir = report_files::create_out_dir(args.out.as_deref(), &started.run)?;
    let record_writer = Arc::new(
        RecordWriter::create(&out_dir.join("record.jsonl"))
            .map_err(|error| format!("could not create the record: {error}"))?,
    );
    let display = Arc::new(RunDisplay::new(scenarios.len(), mode == RunMode::Ablate));
    let reporter = Reporter::new(Arc::new(Tee::new(vec![record_writer.clone(), display.clone()])));
    let mechanisms = started.machine.mechanisms.clone();
    reporter.emit(Event::RunStarted(started));
    let suite = Suite {
        scenarios,
        seed: args.seed,
        jobs: args.jobs.map_or_else(core_count, usize::from),
        only_trial: args.trial,
        sandboxes_dir: run_dir.path(),
        mechanisms: &mechanisms,
    };
    let results = run_suite(&suite, &reporter).map_err(|error| error.to_string())?.results;
    let cleaned_up = run_dir.close();
    let mut exit = CommandExit::worst(results.iter().map(|result| exit_for(result, mode)));
    if let Err(error) = &cleaned_up {
        print::error(error);
        exit = CommandExit::CleanUpFailed;
    }
    reporter.emit(Event::RunEnded(RunEnded { seconds: reporter.elapsed_s(), exit_code: exit.code() }));
    drop(reporter);
    drop(display);
    let (record, failure) = record_writer.finish();
    if let Some(error) = failure {
        return Err(format!("could not write the record: {error}"));
    }
    report_files::write_reports(&record, &out_dir)?;
    print_summary(&record, &out_dir, &results, mode);
    Ok(exit)
}

/// With `ablate` a violation is the good result, and survival is the bad one.
fn exit_for(result: &ScenarioResult, mode: RunMode) -> CommandExit {
    if result.failure.is_some() {
        return CommandExit::HarnessFailed;
    }
    match (mode, &result.verdict) {
        (RunMode::Ablate, Verdict::Violated { .. }) => CommandExit::Success,
        (RunMode::Ablate, Verdict::Survived) => CommandExit::Violation,
        (_, verdict) => CommandExit::from_verdict(verdict),
    }
}

fn core_count() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get)
}

fn run_started(args: &RunArgs, scenarios: &[PreparedScenario]) -> RunStarted {
    let now = jiff::Timestamp::now();
    let mut mechanisms = sandbox::doctor();
    // A GPU driver may take seconds to answer, so it is only asked if a scenario needs it.
    if scenarios.iter().any(|scenario| scenario.scenario.gpu().is_some()) {
        mechanisms.extend(gpu::doctor());
    }
    RunStarted {
        format: scenarios::RECORD_FORMAT,
        version: env!("CARGO_PKG_VERSION").into(),
        run: format!("{}-seed-{}", now.strftime("%Y-%m-%dT%H-%M-%SZ"), args.seed),
        started: now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
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
    let count =
        |matches: fn(&Verdict) -> bool| results.iter().filter(|result| matches(&result.verdict)).count();
    let survived = count(|verdict| matches!(verdict, Verdict::Survived));
    let violated = count(|verdict| matches!(verdict, Verdict::Violated { .. }));
    let inconclusive = count(|verdict| matches!(verdict, Verdict::Inconclusive { .. }));
    let skipped = count(|verdict| matches!(verdict, Verdict::Skipped { .. }));
    let (good, bad) = match mode {
        RunMode::Run => (format!("{survived} survived"), format!("{violated} violated")),
        RunMode::Ablate => {
            (format!("{violated} of {} guards caught", results.len()), format!("{survived} missed"))
        }
    };
    let seconds = record.entries.last().map_or(0.0, |entry| entry.at_us as f64 / 1e6);
    print::line(&format!(
        "\n{good}, {bad}, {inconclusive} inconclusive, {skipped} skipped in {seconds:.1} s"
    ));
    print::line(&format!("report: {}", absolute_path(&out_dir.join("report.html")).display()));
}

fn absolute_path(path: &Path) -> PathBuf {
    path.canonicalize().unwrap_or_else(|_| path.to_path_buf())
}
