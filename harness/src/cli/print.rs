//! The only place that prints. A closed pipe is not an error: whoever read has read enough.

use std::fmt::Display;
use std::io::Write;

/// One line on standard output.
pub(super) fn line(text: &str) {
    let _ = writeln!(std::io::stdout().lock(), "{text}");
}

/// One error, with all that caused it.
pub(super) fn error(error: &dyn Display) {
    let _ = writeln!(std::io::stderr().lock(), "trainwreck: {error}");
}

/// Text that has its own line ends.
pub(super) fn error_block(text: &str) {
    let _ = write!(std::io::stderr().lock(), "{text}");
}
