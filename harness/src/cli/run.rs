//! `run` and `prove`: the main job.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use scenarios::{Event, MachineFacts, Mechanism, Record, RunEnded, RunStarted, Verdict};

use crate::cli::args::RunArgs;
use crate::cli::exit::CommandExit;
use crate::cli::record_writer::RecordWriter;
use crate::cli::run_display::RunDisplay;
use crate::cli::scenario_library::{self, LibraryError};
use crate::cli::{diagnostics, print, report_files};
use crate::gpu;
use crate::observe::{Reporter, Tee};
use crate::run::{PreparedScenario, ScenarioResult, Suite, run_suite};
use crate::sandbox::{self, RunDir};

/// Whether guards stand or are taken away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RunMode {
    Run,
    Ablate,
}

pub(super) fn run(args: &RunArgs, mode: RunMode) -> CommandExit {
    let casts = match prepare_all(args, mode) {
        Ok(casts) => casts,
        Err(error) => return diagnostics::print_library_error(&error),
    };
    match run_prepared(args, mode, &casts) {
        Ok(exit) => exit,
        Err(error) => {
            print::error(&error);
            CommandExit::HarnessFailed
        }
    }
}

fn prepare_all(args: &RunArgs, mode: RunMode) -> Result<Vec<PreparedScenario>, LibraryError> {
    let mut casts = Vec::new();
    for read in scenario_library::select_scenarios(&args.scenarios)? {
        match mode {
            RunMode::Run => casts.push(scenario_library::prepare_scenario(read, args.seed, None)?),
            RunMode::Ablate => {
                for guard in read.scenario.guards().to_vec() {
                    casts.push(scenario_library::prepare_scenario(read.clone(), args.seed, Some(&guard))?);
                }
            }
        }
    }
    Ok(casts)
}

fn run_prepared(args: &RunArgs, mode: RunMode, casts: &[PreparedScenario]) -> Result<CommandExit, String> {
    for swept in
        sandbox::remove_leftovers().map_err(|error| format!("sweeping what an earlier run left: {error}"))?
    {
        print::line(&format!("swept {swept}"));
    }
    let rooms = RunDir::create().map_err(|error| format!("making a folder for the rooms: {error}"))?;
    let started = run_started(args, casts);
    let out = report_files::create_out_dir(args.out.as_deref(), &started.run)?;
    let recorder = Arc::new(
        RecordWriter::create(&out.join("record.jsonl"))
            .map_err(|error| format!("creating the record: {error}"))?,
    );
    let screen = Arc::new(RunDisplay::new(casts.len(), mode == RunMode::Ablate));
    let reporter = Reporter::new(Arc::new(Tee::new(vec![recorder.clone(), screen.clone()])));
    let mechanisms = started.machine.mechanisms.clone();
    reporter.emit(Event::RunStarted(started));
    let suite = Suite {
        scenarios: casts,
        seed: args.seed,
        jobs: args.jobs.map_or_else(core_count, usize::from),
        only_trial: args.trial,
        sandboxes_dir: rooms.path(),
        mechanisms: &mechanisms,
    };
    let ends = run_suite(&suite, &reporter).map_err(|error| error.to_string())?.results;
    let cleaned = rooms.close();
    let mut exit = CommandExit::worst(ends.iter().map(|end| exit_for(end, mode)));
    if let Err(error) = &cleaned {
        print::error(error);
        exit = CommandExit::CleanUpFailed;
    }
    reporter.emit(Event::RunEnded(RunEnded { seconds: reporter.elapsed_s(), exit_code: exit.code() }));
    drop(reporter);
    drop(screen);
    let (record, failure) = recorder.finish();
    if let Some(error) = failure {
        return Err(format!("writing the record: {error}"));
    }
    report_files::write_reports(&record, &out)?;
    print_summary(&record, &out, &ends, mode);
    Ok(exit)
}

/// With `prove` the wanted ending is a violation.
fn exit_for(end: &ScenarioResult, mode: RunMode) -> CommandExit {
    if end.failure.is_some() {
        return CommandExit::HarnessFailed;
    }
    match (mode, &end.verdict) {
        (RunMode::Ablate, Verdict::Violated { .. }) => CommandExit::Success,
        (RunMode::Ablate, Verdict::Survived) => CommandExit::Violation,
        (_, verdict) => CommandExit::from_verdict(verdict),
    }
}

fn core_count() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get)
}

fn run_started(args: &RunArgs, casts: &[PreparedScenario]) -> RunStarted {
    let now = jiff::Timestamp::now();
    let mut mechanisms = sandbox::doctor();
    // A driver may take seconds to be asked: only where somebody needs it.
    if casts.iter().any(|cast| cast.scenario.gpu().is_some()) {
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
        scenarios: u32::try_from(casts.len()).unwrap_or(u32::MAX),
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

fn print_summary(record: &Record, out: &Path, ends: &[ScenarioResult], mode: RunMode) {
    let count = |wanted: fn(&Verdict) -> bool| ends.iter().filter(|end| wanted(&end.verdict)).count();
    let survived = count(|verdict| matches!(verdict, Verdict::Survived));
    let violated = count(|verdict| matches!(verdict, Verdict::Violated { .. }));
    let unknown = count(|verdict| matches!(verdict, Verdict::Inconclusive { .. }));
    let skipped = count(|verdict| matches!(verdict, Verdict::Skipped { .. }));
    let (good, bad) = match mode {
        RunMode::Run => (format!("{survived} survived"), format!("{violated} violated")),
        RunMode::Ablate => {
            (format!("{violated} of {} guards noticed", ends.len()), format!("{survived} not noticed"))
        }
    };
    let seconds = record.entries.last().map_or(0.0, |entry| entry.at_us as f64 / 1e6);
    print::line(&format!("\n{good}, {bad}, {unknown} inconclusive, {skipped} skipped in {seconds:.1} s"));
    print::line(&format!("report: {}", absolute_path(&out.join("report.html")).display()));
}

fn absolute_path(path: &Path) -> PathBuf {
    path.canonicalize().unwrap_or_else(|_| path.to_path_buf())
}
