//! The command line: one function per command. The only module that prints.

mod args;
mod bench;
mod consolidate_job;
mod error;
mod file_rights;
mod output_queue;
mod print;
mod root;
mod submit;
mod verify;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use clap::Parser;
use nix::sys::prctl;
use nix::sys::signal::Signal;

use crate::day_logs::DayLog;
use crate::device::WaitTracker;
use crate::exit::Exit;
use crate::file_error::chain;
use crate::local_time::local_now;
use crate::settings::{DeviceRequest, Guards, Settings};
use crate::store::RootLayout;
use crate::train::{self, WorkerEvent};
use crate::{daemon, denial, make_data, plain_text, progress};
use args::{CliCommand, CommandLine, DataKind, WorkerArgs};
use error::CliError;
use file_rights::keep_files_private;

/// Time between two heartbeats of a worker.
const HEARTBEAT_INTERVAL: Duration = Duration::from_millis(250);

/// Size of a day's log file at which it is renamed. The one that was renamed before is gone.
const MAX_LOG_BYTES: u64 = 8 << 20;

/// Parses the command line, runs the command, and prints its error, if any.
pub fn main() -> Exit {
    std::panic::set_hook(Box::new(|panic| print::error(&panic.to_string())));
    let command_line = match CommandLine::try_parse() {
        Ok(command_line) => command_line,
        Err(error) => {
            // clap reports help and version as errors too.
            let text = error.render().to_string();
            if !error.use_stderr() {
                print::lines(text.trim_end());
                return Exit::Done;
            }
            print::usage_error(&text);
            return Exit::Usage;
        }
    };
    let result = match command_line.command {
        CliCommand::Init { root, preset, seed, set } => root::init(&root, preset, seed, &set),
        CliCommand::Daemon { root, drain, device } => run_daemon(&root, drain, device),
        CliCommand::Submit { root, file, name } => submit::submit(&root, &file, name.as_deref()),
        CliCommand::Status { root } => root::status(&root),
        CliCommand::Verify { root } => verify::verify(&root),
        CliCommand::ResumeInfo { root } => verify::resume_info(&root),
        CliCommand::Consolidate { root, job, remove_adapter } => {
            consolidate_job::consolidate_job(&root, &job, remove_adapter)
        }
        CliCommand::MakeData(kind) => write_data(kind),
        CliCommand::Bench(args) => bench::bench(&args),
        CliCommand::Worker(args) => run_worker(&args),
    };
    let exit = result.unwrap_or_else(|error| {
        print::error(&chain(&error));
        error.exit()
    });
    print::flush();
    exit
}

/// A flag that the signals set which ask a process to end: those of people, schedulers, terminals and power
/// supplies. One that is ignored stays ignored, as `nohup` arranges for SIGHUP. SIGXFSZ no longer ends the
/// process: the write that is too large fails instead.
fn stop_flag(guards: &Guards) -> Result<Arc<AtomicBool>, CliError> {
    use nix::libc::{SIGHUP, SIGINT, SIGPWR, SIGTERM, SIGUSR1, SIGUSR2, SIGXCPU, SIGXFSZ};
    signal_hook::flag::register(SIGXFSZ, Arc::default()).map_err(CliError::Signal)?;
    let flag = Arc::new(AtomicBool::new(false));
    let stop_signals = [SIGTERM, SIGINT, SIGHUP, SIGXCPU, SIGUSR1, SIGUSR2, SIGPWR];
    let is_handled = |signal: &i32| guards.defer_stop && (*signal == SIGTERM || !is_ignored(*signal));
    for signal in stop_signals.into_iter().filter(is_handled) {
        signal_hook::flag::register(signal, Arc::clone(&flag)).map_err(CliError::Signal)?;
    }
    Ok(flag)
}

/// Whether this process ignores a signal.
fn is_ignored(signal: i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    mask & (1 << (signal - 1)) != 0
}

/// Prepares standard output and standard error of a process that must not depend on them.
fn start_output(guards: &Guards) {
    if guards.output_queue {
        print::start_queues();
    }
    if !guards.policy_suspect {
        denial::leave_unexplained();
    }
    if !guards.escape_text {
        plain_text::leave_raw();
    }
}

/// The log of a root, and whether the process goes on if it can't be written.
fn day_log(layout: &RootLayout, settings: &Settings) -> print::LogFile {
    let file_bytes = MAX_LOG_BYTES.min(settings.maintenance.log_bytes / 8);
    let log = DayLog::new(layout.logs(), settings.guards.log_limits.then_some(file_bytes));
    print::LogFile::new(log, settings.guards.log_errors)
}

fn run_daemon(root: &Path, drain: bool, device: Option<DeviceRequest>) -> Result<Exit, CliError> {
    let layout = RootLayout::new(root);
    let (mut settings, notes) = Settings::read_with_notes(&layout.settings())?;
    settings.device.request = device.unwrap_or(settings.device.request);
    keep_files_private(&settings.guards);
    let layout = layout.with_settings(&settings);
    start_output(&settings.guards);
    print::start_logging(Some(day_log(&layout, &settings)));
    notes.iter().for_each(|note| tracing::warn!("{note}"));
    let stop = stop_flag(&settings.guards)?;
    let config = daemon::DaemonConfig {
        layout,
        settings,
        drain,
        local_now: &local_now,
        print_line: &print::line,
        stop_requested: &|| stop.load(Ordering::Relaxed),
    };
    Ok(daemon::run(&config)?)
}

/// Runs a worker. The daemon gets its error as an event.
fn run_worker(args: &WorkerArgs) -> Result<Exit, CliError> {
    train_job(args).inspect_err(|error| {
        print::worker_event(&WorkerEvent::ExitReason { reason: chain(error) });
    })
}

/// Starts the threads that compute, or as many of them as the machine allows: their number changes no bit.
fn start_threads(threads: usize) -> Result<(), CliError> {
    let wanted = match threads {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        threads => threads,
    };
    // The pool can't be started a second time, so the threads are tried before.
    let count = if wanted == 1 { 1 } else { startable_threads(wanted) };
    if count < wanted {
        tracing::warn!("only {count} of {wanted} threads can be started; raise the limit on threads");
    }
    let builder = rayon::ThreadPoolBuilder::new().num_threads(count.max(1));
    // One thread needs no other one than this.
    let builder = if count <= 1 { builder.use_current_thread() } else { builder };
    Ok(builder.build_global()?)
}

/// How many threads can run at once, `wanted` at most.
fn startable_threads(wanted: usize) -> usize {
    let start = |_| std::thread::Builder::new().spawn(std::thread::park).ok();
    let threads: Vec<_> = (0..wanted).map_while(start).collect();
    let count = threads.len();
    for thread in threads {
        thread.thread().unpark();
        // It does nothing, so it can't panic.
        let _ = thread.join();
    }
    count
}

fn train_job(args: &WorkerArgs) -> Result<Exit, CliError> {
    // A worker must not outlive its daemon. The parent check covers a daemon that died before this call.
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    // It was started as `exe`.
    prctl::set_name(c"target-trainer")?;
    if std::os::unix::process::parent_id() != args.parent {
        return Err(CliError::DaemonGone);
    }
    let layout = RootLayout::new(&args.root);
    let settings = std::io::read_to_string(std::io::stdin().lock()).map_err(CliError::WorkerSettings)?;
    let settings = Settings::parse(&settings, "the daemon's settings")?;
    if !settings.guards.no_orphan {
        prctl::set_pdeathsig(None)?;
    }
    if !settings.guards.save_progress {
        progress::leave_saves_out();
    }
    let layout = layout.with_settings(&settings);
    start_output(&settings.guards);
    print::start_logging(None);
    let stop = stop_flag(&settings.guards)?;
    let wait_tracker = Arc::new(WaitTracker::default());
    start_heartbeat(Arc::clone(&wait_tracker), &settings)?;
    start_threads(settings.train.threads)?;
    let config = train::WorkerConfig {
        layout: &layout,
        settings: &settings,
        job: &args.job,
        data: &args.data,
        base: args.base.as_deref(),
        micro_batch: args.micro_batch,
        device: args.device,
        wait_tracker,
        emit: &|event| print::worker_event(&event),
        stop_requested: &|| stop.load(Ordering::Relaxed),
    };
    Ok(train::run_worker(&config))
}

/// Starts a thread that reports a heartbeat whenever the other threads have made progress, or that the GPU is
/// stuck. A thread that waits for the GPU can't report that.
fn start_heartbeat(wait_tracker: Arc<WaitTracker>, settings: &Settings) -> Result<(), CliError> {
    let timeout = settings.guards.gpu_watchdog.then(|| Duration::from_secs(settings.device.patience_s));
    let report = move || {
        let mut reported = None;
        loop {
            let (wait, done) = (wait_tracker.longest_wait(), progress::count());
            match wait.zip(timeout).filter(|(waited, timeout)| waited > timeout) {
                Some((waited, _)) => {
                    print::worker_event(&WorkerEvent::GpuStuck { seconds: waited.as_secs() })
                }
                // The wait for the GPU has a limit of its own.
                None if wait.is_some() || reported != Some(done) => {
                    print::worker_event(&WorkerEvent::Heartbeat)
                }
                None => {}
            }
            reported = Some(done);
            std::thread::sleep(HEARTBEAT_INTERVAL);
        }
    };
    let thread = std::thread::Builder::new().name("heartbeat".into()).spawn(report);
    thread.map_err(CliError::HeartbeatThread)?;
    Ok(())
}

fn write_data(kind: DataKind) -> Result<Exit, CliError> {
    let (lines, out): (Box<dyn Iterator<Item = String>>, _) = match kind {
        DataKind::Arithmetic { seed, samples, length, out } => {
            (Box::new(make_data::arithmetic(seed, samples, length)), out)
        }
        DataKind::Text { dir, chunk, out } => (Box::new(make_data::text(&dir, chunk)?), out),
    };
    let count = root::write_lines(&out, lines)?;
    print::line(&format!("wrote {count} samples to {}", out.display()));
    Ok(Exit::Done)
}
