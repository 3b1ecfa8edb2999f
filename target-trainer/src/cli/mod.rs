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

use crate::cli::args::{Kind, Typed, Verb};
use crate::device::Pulse;
use crate::exit::Exit;
use crate::settings::{Asked, Guards, Settings};
use crate::store::Layout;
use crate::train::{self, Word};
use crate::{daemon, make_data};

/// Between two signs of life of a worker.
const ALIVE: Duration = Duration::from_millis(250);

/// Does what the command line asks for.
pub fn main() -> Exit {
    let typed = match Typed::try_parse() {
        Ok(typed) => typed,
        Err(error) => {
            // Help and version are no errors; clap knows which stream each belongs to.
            let _ = error.print();
            return if error.use_stderr() { Exit::Usage } else { Exit::Done };
        }
    };
    let result = match typed.verb {
        Verb::Init { root, preset, seed, set } => root::init(&root, preset, seed, &set),
        Verb::Daemon { root, drain, device } => run_daemon(&root, drain, device),
        Verb::Submit { root, file } => root::submit(&root, &file),
        Verb::Status { root } => root::status(&root),
        Verb::Verify { root } => verify::verify(&root),
        Verb::ResumeInfo { root } => verify::resume_info(&root),
        Verb::MakeData(kind) => data(kind),
        Verb::Bench(args) => bench::bench(&args),
        Verb::Worker { root, job, micro_batch, device, parent } => {
            run_worker(&root, &job, (micro_batch, device), parent)
        }
    };
    result.unwrap_or_else(|(exit, message)| {
        print::error(&message);
        exit
    })
}

/// An ending that is not good, with the one line that says why.
type Ending = Result<Exit, (Exit, String)>;

fn with<E: std::fmt::Display>(exit: Exit) -> impl FnOnce(E) -> (Exit, String) {
    move |error| (exit, error.to_string())
}

fn settings(layout: &Layout) -> Result<Settings, (Exit, String)> {
    Settings::read(&layout.settings()).map_err(with(Exit::Usage))
}

/// Remembers that a signal asked for the end; never loses one.
fn end_flag(guards: &Guards) -> Result<Arc<AtomicBool>, (Exit, String)> {
    let flag = Arc::new(AtomicBool::new(false));
    let deferred = [signal_hook::consts::SIGTERM, signal_hook::consts::SIGINT];
    for signal in deferred.into_iter().filter(|_| guards.defer_stop) {
        signal_hook::flag::register(signal, Arc::clone(&flag)).map_err(with(Exit::Failed))?;
    }
    Ok(flag)
}

fn run_daemon(root: &Path, drain: bool, device: Option<Asked>) -> Ending {
    let layout = Layout::new(root);
    let mut settings = settings(&layout)?;
    settings.device.place = device.unwrap_or(settings.device.place);
    print::start_logging(Some(&layout));
    let end = end_flag(&settings.guards)?;
    let orders = daemon::Orders {
        layout,
        settings,
        drain,
        say: &print::line,
        asked_to_end: &|| end.load(Ordering::Relaxed),
    };
    daemon::run(&orders).map_err(|error| (error.exit(), error.to_string()))
}

fn run_worker(root: &Path, job: &str, (micro_batch, place): (NonZeroUsize, Asked), parent: u32) -> Ending {
    // No worker trains on without its daemon, not even one that was killed between fork and here.
    prctl::set_pdeathsig(Signal::SIGKILL).map_err(with(Exit::Failed))?;
    if std::os::unix::process::parent_id() != parent {
        return Err((Exit::Failed, "the daemon is gone".into()));
    }
    let layout = Layout::new(root);
    let settings = settings(&layout)?;
    print::start_logging(None);
    let end = end_flag(&settings.guards)?;
    if settings.train.threads > 0 {
        rayon::ThreadPoolBuilder::new()
            .num_threads(settings.train.threads)
            .build_global()
            .map_err(with(Exit::Failed))?;
    }
    let pulse = Arc::new(Pulse::default());
    sign_of_life(Arc::clone(&pulse), &settings);
    let orders = train::Orders {
        layout: &layout,
        settings: &settings,
        job,
        micro_batch,
        place,
        pulse,
        say: &|word| print::word(&word),
        asked_to_end: &|| end.load(Ordering::Relaxed),
    };
    Ok(train::work(&orders))
}

/// Says that the process is alive, and that its device is not: a thread that waits for a GPU can't say so itself.
fn sign_of_life(pulse: Arc<Pulse>, settings: &Settings) {
    let patience = settings.guards.gpu_watchdog.then(|| Duration::from_secs(settings.device.patience_s));
    std::thread::spawn(move || {
        loop {
            let stuck = pulse.stuck_for().zip(patience).filter(|(stuck, patience)| stuck > patience);
            print::word(&match stuck {
                Some((stuck, _)) => Word::Stuck { seconds: stuck.as_secs() },
                None => Word::Alive,
            });
            std::thread::sleep(ALIVE);
        }
    });
}

fn data(kind: Kind) -> Ending {
    let (lines, out): (Box<dyn Iterator<Item = String>>, _) = match kind {
        Kind::Arithmetic { seed, samples, length, out } => {
            (Box::new(make_data::arithmetic(seed, samples, length)), out)
        }
        Kind::Text { folder, chunk, out } => {
            let texts = make_data::text(&folder, chunk).map_err(with(Exit::Failed))?;
            (Box::new(texts), out)
        }
    };
    let count = root::write_lines(&out, lines)?;
    print::line(&format!("wrote {count} samples to {}", out.display()));
    Ok(Exit::Done)
}
