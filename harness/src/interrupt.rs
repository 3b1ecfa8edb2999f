//! SIGINT and SIGTERM: the first one ends what runs in the sandboxes, and asks the command to report what it
//! knows; the second one ends the process at once, and the kernel removes the sandboxes. Knows nothing of
//! what is stopped.

use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGINT, SIGTERM, SIGXFSZ};
use signal_hook::flag;
use signal_hook::iterator::Signals;
use signal_hook::low_level::emulate_default_handler;

use crate::error::CliError;
use crate::print;
use engine::sandbox::interrupt_sandboxes;

/// A signal so soon after the first one is the same request: `timeout` signals a process and then its group.
const SAME_SIGNAL_TIME: Duration = Duration::from_millis(300);

/// Set by the first signal. Empty until the handlers are installed.
static REQUESTED: OnceLock<Arc<AtomicBool>> = OnceLock::new();

/// Lets a write beyond the limit on the size of files (`ulimit -f`) fail with an error, instead of ending this
/// process without a word. Programs that it starts get the usual behaviour again.
pub(crate) fn survive_file_size_limit() {
    // If the system refuses the handler, the signal ends the process, as it ends others.
    let _ = flag::register(SIGXFSZ, Arc::default());
}

/// Installs the handlers.
///
/// # Errors
/// If the system refuses a handler or a thread.
pub(crate) fn install() -> Result<(), CliError> {
    let requested = REQUESTED.get_or_init(Arc::default);
    for signal in [SIGINT, SIGTERM] {
        flag::register(signal, requested.clone()).map_err(CliError::Signals)?;
    }
    let mut signals = Signals::new([SIGINT, SIGTERM]).map_err(CliError::Signals)?;
    let on_signals = move || {
        let mut first: Option<Instant> = None;
        for signal in signals.forever() {
            match first {
                None => {
                    first = Some(Instant::now());
                    let in_progress = interrupt_sandboxes();
                    print::notice(&first_signal_text(in_progress));
                }
                Some(first) if first.elapsed() < SAME_SIGNAL_TIME => {}
                // Does not return, because both signals end a process.
                Some(_) => drop(emulate_default_handler(signal)),
            }
        }
    };
    std::thread::Builder::new().name("signals".into()).spawn(on_signals).map_err(CliError::Signals)?;
    Ok(())
}

fn first_signal_text(in_progress: usize) -> String {
    let ended = match in_progress {
        0 => String::new(),
        1 => "ended the sandbox in progress; ".into(),
        count => format!("ended the {count} sandboxes in progress; "),
    };
    format!("interrupted: {ended}reporting what is known. Another signal ends trainwreck at once")
}

/// Whether a signal has asked the command to stop.
pub(crate) fn requested() -> bool {
    REQUESTED.get().is_some_and(|requested| requested.load(Ordering::SeqCst))
}
