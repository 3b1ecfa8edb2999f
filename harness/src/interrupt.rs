//! SIGINT and SIGTERM: the first one asks the command to stop early and to report what it knows, the second
//! one ends the process at once. The kernel then removes the sandboxes. Knows nothing of what is stopped.

use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

use crate::error::CliError;

/// Set by the first signal. Empty until the handlers are installed.
static REQUESTED: OnceLock<Arc<AtomicBool>> = OnceLock::new();

/// Installs the handlers.
///
/// # Errors
/// If the system refuses a handler.
pub(crate) fn install() -> Result<(), CliError> {
    let requested = REQUESTED.get_or_init(Arc::default);
    for signal in [SIGINT, SIGTERM] {
        // Runs before the next one sets the flag, so that only a second signal has its usual effect.
        flag::register_conditional_default(signal, requested.clone()).map_err(CliError::Signals)?;
        flag::register(signal, requested.clone()).map_err(CliError::Signals)?;
    }
    Ok(())
}

/// Whether a signal has asked the command to stop.
pub(crate) fn requested() -> bool {
    REQUESTED.get().is_some_and(|requested| requested.load(Ordering::SeqCst))
}
