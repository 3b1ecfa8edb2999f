//! The only file that writes to standard output and standard error. If the reader has closed the pipe, it does
//! not need the rest; any other error of standard output is remembered for the end.

use std::error::Error;
use std::fmt::Display;
use std::io::{ErrorKind, Write};
use std::sync::OnceLock;

use reports::clean_block;

/// Why a line of the result is lost.
static LOST_OUTPUT: OnceLock<String> = OnceLock::new();

/// Why a part of the result could not be printed, such as a full disk. A closed pipe is no loss.
pub(crate) fn lost_output() -> Option<&'static str> {
    note_result(std::io::stdout().lock().flush());
    LOST_OUTPUT.get().map(String::as_str)
}

/// Remembers why standard output failed.
pub(crate) fn note_result(written: Result<(), std::io::Error>) {
    if let Err(error) = written
        && error.kind() != ErrorKind::BrokenPipe
    {
        let _ = LOST_OUTPUT.set(error.to_string());
    }
}

/// Prints one line on standard output. Names and output of a target may be part of it, so control characters
/// other than line breaks are made visible.
pub(crate) fn line(text: &str) {
    let mut stdout = std::io::stdout().lock();
    note_result(writeln!(stdout, "{}", clean_block(text)).and_then(|()| stdout.flush()));
}

/// Prints a line on standard error that is no result, such as what happens meanwhile.
pub(crate) fn notice(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{}", clean_block(text));
}

/// Prints the text of an error on standard error, as [`line`] does.
pub(crate) fn error(error: &dyn Display) {
    let _ = writeln!(std::io::stderr().lock(), "trainwreck: {}", clean_block(&error.to_string()));
}

/// Prints an error and its sources on standard error.
pub(crate) fn error_with_sources(failure: &dyn Error) {
    error(&error_chain(failure));
}

/// Prints text that brings its own line breaks on standard error.
pub(crate) fn error_block(text: &str) {
    let _ = write!(std::io::stderr().lock(), "{text}");
}

/// An error and its sources, from the outermost to the innermost: `outer: inner`. A source that the text
/// before it already ends with is not repeated.
pub(crate) fn error_chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        let inner = source.to_string();
        if !text.ends_with(&inner) {
            text = format!("{text}: {inner}");
        }
        next = source.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::error_chain;
    use std::io::Error;

    #[derive(Debug, thiserror::Error)]
    enum Outer {
        #[error("could not save")]
        Cause(#[source] Error),
        #[error("could not save: {0}")]
        CauseInText(#[source] Error),
        #[error("could not train")]
        Nested(#[source] Box<Outer>),
    }

    #[test]
    fn each_source_is_printed_once() {
        let full = || Error::other("disk is full");
        assert_eq!(error_chain(&Outer::Cause(full())), "could not save: disk is full");
        assert_eq!(error_chain(&Outer::CauseInText(full())), "could not save: disk is full");
        let nested = Outer::Nested(Box::new(Outer::CauseInText(full())));
        assert_eq!(error_chain(&nested), "could not train: could not save: disk is full");
        assert_eq!(error_chain(&full()), "disk is full");
    }
}
