//! `run` and `prove`: the main job.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use scenarios::{Event, Machine, Mechanism, Record, RunEnded, RunStarted, Verdict};

use crate::cli::args::RunArgs;
use crate::cli::exit::Exit;
use crate::cli::library::{self, LibraryError};
use crate::cli::recorder::Recorder;
use crate::cli::screen::Screen;
use crate::cli::{diagnose, print, written};
use crate::gpu;
use crate::observe::{Reporter, Tee};
use crate::run::{Cast, ScenarioEnd, Suite, run_suite};
use crate::sandbox::{self, RunDir};

/// Whether guards stand or are taken away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    Run,
    Prove,
}

pub(super) fn run(args: &RunArgs, mode: Mode) -> Exit {
    let casts = match cast_all(args, mode) {
        Ok(casts) => casts,
        Err(error) => return diagnose::library_error(&error),
    };
    match perform(args, mode, &casts) {
        Ok(exit) => exit,
        Err(error) => {
            print::error(&error);
            Exit::HarnessFailed
        }
    }
}

fn cast_all(args: &RunArgs, mode: Mode) -> Result<Vec<Cast>, LibraryError> {
    let mut casts = Vec::new();
    for read in library::chosen(&args.which)? {
        match mode {
            Mode::Run => casts.push(library::cast(read, args.seed, None)?),
            Mode::Prove => {
                for guard in read.scenario.guards().to_vec() {
                    casts.push(library::cast(read.clone(), args.seed, Some(&guard))?);
                }
            }
        }
    }
    Ok(casts)
}

fn perform(args: &RunArgs, mode: Mode, casts: &[Cast]) -> Result<Exit, String> {
    for swept in sandbox::recover().map_err(|error| format!("sweeping what an earlier run left: {error}"))? {
        print::line(&format!("swept {swept}"));
    }
    let rooms = RunDir::create().map_err(|error| format!("making a folder for the rooms: {error}"))?;
    let started = started(args, casts);
    let out = written::folder(args.out.as_deref(), &started.run)?;
    let recorder = Arc::new(
        Recorder::create(&out.join("record.jsonl"))
            .map_err(|error| format!("creating the record: {error}"))?,
    );
    let screen = Arc::new(Screen::new(casts.len(), mode == Mode::Prove));
    let reporter = Reporter::new(Arc::new(Tee::new(vec![recorder.clone(), screen.clone()])));
    let mechanisms = started.machine.mechanisms.clone();
    reporter.emit(Event::RunStarted(started));
    let suite = Suite {
        casts,
        seed: args.seed,
        jobs: args.jobs.map_or_else(cores, usize::from),
        only_trial: args.trial,
        rooms: rooms.path(),
        mechanisms: &mechanisms,
    };
    let ends = run_suite(&suite, &reporter).map_err(|error| error.to_string())?.ends;
    let cleaned = rooms.close();
    let mut exit = Exit::of_all(ends.iter().map(|end| exit_of(end, mode)));
    if let Err(error) = &cleaned {
        print::error(error);
        exit = Exit::CleanUpFailed;
    }
    reporter.emit(Event::RunEnded(RunEnded { seconds: reporter.seconds(), exit_code: exit.code() }));
    drop(reporter);
    drop(screen);
    let (record, failure) = recorder.finish();
    if let Some(error) = failure {
        return Err(format!("writing the record: {error}"));
    }
    written::reports(&record, &out)?;
    summary(&record, &out, &ends, mode);
    Ok(exit)
}

/// With `prove` the wanted ending is a violation.
fn exit_of(end: &ScenarioEnd, mode: Mode) -> Exit {
    if end.failure.is_some() {
        return Exit::HarnessFailed;
    }
    match (mode, &end.verdict) {
        (Mode::Prove, Verdict::Violated { .. }) => Exit::Survived,
        (Mode::Prove, Verdict::Survived) => Exit::Violated,
        (_, verdict) => Exit::of_verdict(verdict),
    }
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get)
}

fn started(args: &RunArgs, casts: &[Cast]) -> RunStarted {
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
        machine: machine(mechanisms),
        scenarios: u32::try_from(casts.len()).unwrap_or(u32::MAX),
    }
}

fn machine(mechanisms: Vec<Mechanism>) -> Machine {
    let uname = nix::sys::utsname::uname();
    let kernel = uname.map(|uname| uname.release().to_string_lossy().into_owned()).unwrap_or_default();
    let memory = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = memory
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    Machine {
        kernel,
        cores: u32::try_from(cores()).unwrap_or(u32::MAX),
        memory_bytes: kib.unwrap_or(0) * 1024,
        user: if nix::unistd::geteuid().is_root() { "root".into() } else { "ordinary user".into() },
        mechanisms,
    }
}

fn summary(record: &Record, out: &Path, ends: &[ScenarioEnd], mode: Mode) {
    let count = |wanted: fn(&Verdict) -> bool| ends.iter().filter(|end| wanted(&end.verdict)).count();
    let survived = count(|verdict| matches!(verdict, Verdict::Survived));
    let violated = count(|verdict| matches!(verdict, Verdict::Violated { .. }));
    let unknown = count(|verdict| matches!(verdict, Verdict::Inconclusive { .. }));
    let skipped = count(|verdict| matches!(verdict, Verdict::Skipped { .. }));
    let (good, bad) = match mode {
        Mode::Run => (format!("{survived} survived"), format!("{violated} violated")),
        Mode::Prove => {
            (format!("{violated} of {} guards noticed", ends.len()), format!("{survived} not noticed"))
        }
    };
    let seconds = record.entries.last().map_or(0.0, |entry| entry.at_us as f64 / 1e6);
    print::line(&format!("\n{good}, {bad}, {unknown} inconclusive, {skipped} skipped in {seconds:.1} s"));
    print::line(&format!("report: {}", shown(&out.join("report.html")).display()));
}

fn shown(path: &Path) -> PathBuf {
    path.canonicalize().unwrap_or_else(|_| path.to_path_buf())
}
