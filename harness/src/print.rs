//! The only file that writes to standard output and standard error. Errors are ignored: if the reader has
//! closed the pipe, it does not need the rest.

use std::fmt::Display;
use std::io::Write;

/// Prints one line on standard output.
pub(crate) fn line(text: &str) {
    let _ = writeln!(std::io::stdout().lock(), "{text}");
}

/// Prints an error on standard error.
pub(crate) fn error(error: &dyn Display) {
    let _ = writeln!(std::io::stderr().lock(), "trainwreck: {error}");
}

/// Prints text that brings its own line breaks on standard error.
pub(crate) fn error_block(text: &str) {
    let _ = write!(std::io::stderr().lock(), "{text}");
}
