//! The command: one function per verb. The only room that prints.

mod args;
mod bench;
mod print;
mod root;
mod verify;

use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use clap::Parser;
use nix::sys::prctl;
use nix::sys::signal::Signal;

use crate::cli::args::{CliCommand, CommandLine, DataKind};
use crate::device::WaitTracker;
use crate::exit::Exit;
use crate::settings::{DeviceRequest, Guards, Settings};
use crate::store::RootLayout;
use crate::train::{self, WorkerEvent};
use crate::{daemon, make_data};

/// Between two signs of life of a worker.
const HEARTBEAT_INTERVAL: Duration = Duration::from_millis(250);

/// Does what the command line asks for.
pub fn main() -> Exit {
    let typed = match CommandLine::try_parse() {
        Ok(typed) => typed,
        Err(error) => {
            // Help and version are no errors; clap knows which stream each belongs to.
            let _ = error.print();
            return if error.use_stderr() { Exit::Usage } else { Exit::Done };
        }
    };
    let result = match typed.command {
        CliCommand::Init { root, preset, seed, set } => root::init(&root, preset, seed, &set),
        CliCommand::Daemon { root, drain, device } => run_daemon(&root, drain, device),
        CliCommand::Submit { root, file } => root::submit(&root, &file),
        CliCommand::Status { root } => root::status(&root),
        CliCommand::Verify { root } => verify::verify(&root),
        CliCommand::ResumeInfo { root } => verify::resume_info(&root),
        CliCommand::MakeData(kind) => write_data(kind),
        CliCommand::Bench(args) => bench::bench(&args),
        CliCommand::Worker { root, job, micro_batch, device, parent } => {
            run_worker(&root, &job, (micro_batch, device), parent)
        }
    };
    result.unwrap_or_else(|(exit, message)| {
        print::error(&message);
        exit
    })
}

/// An ending that is not good, with the one line that says why.
type CommandResult = Result<Exit, (Exit, String)>;

fn exit_with<E: std::fmt::Display>(exit: Exit) -> impl FnOnce(E) -> (Exit, String) {
    move |error| (exit, error.to_string())
}

fn read_settings(layout: &RootLayout) -> Result<Settings, (Exit, String)> {
    Settings::read(&layout.settings()).map_err(exit_with(Exit::Usage))
}

/// Remembers that a signal asked for the end; never loses one.
fn stop_flag(guards: &Guards) -> Result<Arc<AtomicBool>, (Exit, String)> {
    let flag = Arc::new(AtomicBool::new(false));
    let deferred = [signal_hook::consts::SIGTERM, signal_hook::consts::SIGINT];
    for signal in deferred.into_iter().filter(|_| guards.defer_stop) {
        signal_hook::flag::register(signal, Arc::clone(&flag)).map_err(exit_with(Exit::Failed))?;
    }
    Ok(flag)
}

fn run_daemon(root: &Path, drain: bool, device: Option<DeviceRequest>) -> CommandResult {
    let layout = RootLayout::new(root);
    let mut settings = read_settings(&layout)?;
    settings.device.request = device.unwrap_or(settings.device.request);
    print::start_logging(Some(&layout));
    let end = stop_flag(&settings.guards)?;
    let orders = daemon::DaemonConfig {
        layout,
        settings,
        drain,
        print_line: &print::line,
        stop_requested: &|| end.load(Ordering::Relaxed),
    };
    daemon::run(&orders).map_err(|error| (error.exit(), error.to_string()))
}

fn run_worker(
    root: &Path,
    job: &str,
    (micro_batch, place): (NonZeroUsize, DeviceRequest),
    parent: u32,
) -> CommandResult {
    // No worker trains on without its daemon, not even one that was killed between fork and here.
    prctl::set_pdeathsig(Signal::SIGKILL).map_err(exit_with(Exit::Failed))?;
    if std::os::unix::process::parent_id() != parent {
        return Err((Exit::Failed, "the daemon is gone".into()));
    }
    let layout = RootLayout::new(root);
    let settings = read_settings(&layout)?;
    print::start_logging(None);
    let end = stop_flag(&settings.guards)?;
    if settings.train.threads > 0 {
        rayon::ThreadPoolBuilder::new()
            .num_threads(settings.train.threads)
            .build_global()
            .map_err(exit_with(Exit::Failed))?;
    }
    let pulse = Arc::new(WaitTracker::default());
    start_heartbeat(Arc::clone(&pulse), &settings);
    let orders = train::WorkerConfig {
        layout: &layout,
        settings: &settings,
        job,
        micro_batch,
        device: place,
        wait_tracker: pulse,
        emit: &|word| print::worker_event(&word),
        stop_requested: &|| end.load(Ordering::Relaxed),
    };
    Ok(train::run_worker(&orders))
}

/// Says that the process is alive, and that its device is not: a thread that waits for a GPU can't say so itself.
fn start_heartbeat(pulse: Arc<WaitTracker>, settings: &Settings) {
    let patience = settings.guards.gpu_watchdog.then(|| Duration::from_secs(settings.device.patience_s));
    std::thread::spawn(move || {
        loop {
            let stuck = pulse.longest_wait().zip(patience).filter(|(stuck, patience)| stuck > patience);
            print::worker_event(&match stuck {
                Some((stuck, _)) => WorkerEvent::GpuStuck { seconds: stuck.as_secs() },
                None => WorkerEvent::Heartbeat,
            });
            std::thread::sleep(HEARTBEAT_INTERVAL);
        }
    });
}

fn write_data(kind: DataKind) -> CommandResult {
    let (lines, out): (Box<dyn Iterator<Item = String>>, _) = match kind {
        DataKind::Arithmetic { seed, samples, length, out } => {
            (Box::new(make_data::arithmetic(seed, samples, length)), out)
        }
        DataKind::Text { dir: folder, chunk, out } => {
            let texts = make_data::text(&folder, chunk).map_err(exit_with(Exit::Failed))?;
            (Box::new(texts), out)
        }
    };
    let count = root::write_lines(&out, lines)?;
    print::line(&format!("wrote {count} samples to {}", out.display()));
    Ok(Exit::Done)
}
