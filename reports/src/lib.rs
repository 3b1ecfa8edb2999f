//! Renders records and explorations as HTML, JUnit XML and Markdown. Pure: the caller passes a writer; no
//! files, no clock.
//!
//! Everything that a report shows is in the record. The output of a target is shown as text, never as markup.

#![forbid(unsafe_code)]

mod clean;
mod error;
mod html;
mod junit;
mod markdown;
mod summary;
mod view;

use std::io::Write;

use scenarios::{Exploration, Record};

pub use clean::{clean, clean_block};
pub use error::ReportError;
pub use summary::{StatusCount, Summary, summary};

/// Writes one self-contained HTML page that needs no other file.
///
/// # Errors
///
/// If the record has no `run-started` event or the writer fails.
pub fn html(record: &Record, to: &mut dyn Write) -> Result<(), ReportError> {
    let run = view::run_view(record)?;
    to.write_all(html::page(&run).into_string().as_bytes())?;
    Ok(())
}

/// Writes JUnit XML with one test case per scenario.
///
/// # Errors
///
/// If the record has no `run-started` event or the writer fails.
pub fn junit(record: &Record, to: &mut dyn Write) -> Result<(), ReportError> {
    let run = view::run_view(record)?;
    junit::report(&run).serialize(to)?;
    Ok(())
}

/// Writes a Markdown summary for a CI job or a pull request.
///
/// # Errors
///
/// If the record has no `run-started` event or the writer fails.
pub fn markdown(record: &Record, to: &mut dyn Write) -> Result<(), ReportError> {
    let run = view::run_view(record)?;
    to.write_all(markdown::text(&run).as_bytes())?;
    Ok(())
}

/// One self-contained HTML page about the crash states of one command.
pub fn exploration(exploration: &Exploration) -> String {
    html::exploration(exploration).into_string()
}
